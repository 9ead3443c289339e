//! The log of changes: numbered, the newest of them kept.

use std::pin::Pin;

use tokio::sync::watch;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, ChangeLog, Changed, Changes, Hint, Slot, StoreError, rules};

use super::db::{Db, Value};
use super::{Driver, SqlMetadata};

impl<D: Driver> ChangeLog for SqlMetadata<D> {
    fn changes(&self, after: u64) -> Answer<Changes> {
        self.read(move |db| Box::pin(since(db, after)))
    }

    fn hint(&self) -> Box<dyn Hint> {
        Box::new(Hints(self.hints.subscribe()))
    }
}

struct Hints(watch::Receiver<u64>);

impl Hint for Hints {
    fn given(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            if self.0.changed().await.is_err() {
                // The store is gone, and with it every further hint.
                std::future::pending::<()>().await;
            }
        })
    }
}

/// Logs the transaction's change and returns its revision. Called under the lock of all changes, so that revisions are committed in
/// order.
pub(super) async fn record(db: &mut Db, changed: Changed) -> Result<u64, StoreError> {
    let numbered = "UPDATE cluster_state SET revision = revision + 1 RETURNING revision";
    let revision = db.one(numbered, &[]).await?.number("revision")?;
    let (topic, subject) = stored(&changed);
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

/// In one statement, so that revision and changes are from the same moment.
async fn since(db: &mut Db, after: u64) -> Result<Changes, StoreError> {
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
            // A topic that is not known was written by a newer version, about something that this one does not have.
            all.extend(parse(&topic, &subject));
        }
    }
    Ok(Changes { revision, complete: true, changed: rules::each_once(all.into_iter()) })
}

const TENANT: &str = "tenant";
const NODES: &str = "nodes";
const SECRETS: &str = "secrets";
const ARTIFACTS: &str = "artifacts";
const BINDING: &str = "binding";
const TOKENS: &str = "tokens";
const COORDINATORS: &str = "coordinators";

/// A change as it is stored: topic and subject.
fn stored(changed: &Changed) -> (&'static str, String) {
    match changed {
        Changed::Tenant(id) => (TENANT, id.as_str().to_owned()),
        Changed::Nodes => (NODES, String::new()),
        Changed::Secrets => (SECRETS, String::new()),
        Changed::Artifacts => (ARTIFACTS, String::new()),
        // Neither a hook's name nor a tenant's id contains ':'.
        Changed::Binding(slot) => (BINDING, format!("{}:{}", slot.hook, slot.tenant_text())),
        Changed::Tokens => (TOKENS, String::new()),
        Changed::Coordinators => (COORDINATORS, String::new()),
    }
}

/// Reads what [`stored`] has written. `None`: a topic of a newer version of this program, or damage.
fn parse(topic: &str, subject: &str) -> Option<Changed> {
    Some(match topic {
        TENANT => Changed::Tenant(TenantId::new(subject).ok()?),
        NODES => Changed::Nodes,
        SECRETS => Changed::Secrets,
        ARTIFACTS => Changed::Artifacts,
        BINDING => {
            let (hook, tenant) = subject.split_once(':')?;
            Changed::Binding(Slot::parse(tenant, hook)?)
        }
        TOKENS => Changed::Tokens,
        COORDINATORS => Changed::Coordinators,
        _ => return None,
    })
}
