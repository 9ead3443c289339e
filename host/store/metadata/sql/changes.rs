//! What coordinators follow: numbered changes, the newest of them remembered.

use witan_kernel::port::StoreError;

use super::db::{Db, Value};
use crate::metadata::{Changed, Changes, rules};

/// Gives the transaction's change its number. Called under the lock of all changes, so that no smaller one comes after.
pub(super) async fn record(db: &mut Db, changed: Changed) -> Result<u64, StoreError> {
    let numbered = "UPDATE cluster_state SET revision = revision + 1 RETURNING revision";
    let revision = db.one(numbered, &[]).await?.number("revision")?;
    let (topic, subject) = changed.store();
    db.execute(
        "INSERT INTO changes (revision, topic, subject) VALUES ($1, $2, $3)",
        &[Value::Number(revision), Value::Text(topic), Value::Text(&subject)],
    )
    .await?;
    let forgotten = Value::Number(rules::remembered_from(revision));
    db.execute("DELETE FROM changes WHERE revision <= $1", &[forgotten]).await?;
    db.changes();
    Ok(revision)
}

/// In one statement, so that revision and changes are of one moment.
pub(super) async fn since(db: &mut Db, after: u64) -> Result<Changes, StoreError> {
    let rows = db
        .rows(
            "SELECT cluster_state.revision AS newest, topic, subject FROM cluster_state
             LEFT JOIN changes ON changes.revision > $1 ORDER BY changes.revision",
            &[Value::Number(after)],
        )
        .await?;
    let newest = rows.first().ok_or_else(|| StoreError::Damaged("the cluster's state is missing".into()))?;
    let revision = newest.number("newest")?;
    if !rules::complete(after, revision) {
        return Ok(Changes { revision, complete: false, changed: Vec::new() });
    }
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        if let (Some(topic), Some(subject)) = (row.maybe_text("topic")?, row.maybe_text("subject")?) {
            // One that is not understood is a newer program's, and about something that this one does not know.
            all.extend(Changed::read(&topic, &subject));
        }
    }
    Ok(Changes { revision, complete: true, changed: rules::each_once(all.into_iter()) })
}
