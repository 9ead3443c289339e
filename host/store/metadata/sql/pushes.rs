//! Components that were pushed and that nobody waits for.

use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{
    Answer, Beginning, Digest, PUSH_KEPT_MS, PushBegun, PushOnRecord, PushState, PushStore, StoreError, beginning,
    rules,
};

use super::db::{Db, Value};
use super::row::{Row, damaged};
use super::{Driver, SqlMetadata};

impl<D: Driver> PushStore for SqlMetadata<D> {
    fn begin_push(&self, push: PushOnRecord) -> Answer<PushBegun> {
        self.change(|db| Box::pin(begin(db, push)))
    }

    fn step_push(&self, push: PushOnRecord) -> Answer<bool> {
        self.change(|db| Box::pin(step(db, push)))
    }

    fn push(&self, owner: Option<&TenantId>, digest: Digest) -> Answer<Option<PushOnRecord>> {
        let owner = owner.cloned();
        self.read(move |db| Box::pin(get(db, owner, digest)))
    }

    fn abandon_pushes(&self, worker: &NodeId) -> Answer<()> {
        let worker = worker.clone();
        self.change(move |db| Box::pin(abandon(db, worker)))
    }
}

async fn begin(db: &mut Db, push: PushOnRecord) -> Result<PushBegun, StoreError> {
    let (now_ms, owner) = (db.now_ms().await?, owner_text(push.owner.as_ref()));
    let old = "DELETE FROM plugin_pushes WHERE since <= $1";
    db.execute(old, &[Value::Number(now_ms.saturating_sub(PUSH_KEPT_MS))]).await?;
    let of_owner =
        "SELECT tenant_id, digest, bytes, state, reason, worker, since FROM plugin_pushes WHERE tenant_id = $1";
    let rows = db.rows(of_owner, &[Value::Text(owner)]).await?;
    let own = rows.iter().map(on_record).collect::<Result<Vec<_>, _>>()?;
    let forgotten = match beginning(own.iter(), push.digest, now_ms)? {
        Beginning::UnderWay(known) => return Ok(PushBegun::UnderWay(known)),
        Beginning::Begin(forgotten) => forgotten,
    };
    for digest in forgotten {
        let one = "DELETE FROM plugin_pushes WHERE tenant_id = $1 AND digest = $2";
        db.execute(one, &[Value::Text(owner), Value::Bytes(&digest.0)]).await?;
    }
    db.execute(
        "INSERT INTO plugin_pushes (tenant_id, digest, bytes, state, reason, worker, since)
         VALUES ($1, $2, $3, $4, '', $5, $6)",
        &[
            Value::Text(owner),
            Value::Bytes(&push.digest.0),
            Value::Number(push.size),
            Value::Text(PushState::Staged.as_str()),
            Value::Text(push.worker.as_str()),
            Value::Number(now_ms),
        ],
    )
    .await?;
    Ok(PushBegun::Begun)
}

async fn step(db: &mut Db, push: PushOnRecord) -> Result<bool, StoreError> {
    rules::push(&push)?;
    let now_ms = db.now_ms().await?;
    let stepped = db
        .execute(
            "UPDATE plugin_pushes SET state = $4, reason = $5, since = $6
             WHERE tenant_id = $1 AND digest = $2 AND worker = $3 AND state IN ('staged', 'compiling')",
            &[
                Value::Text(owner_text(push.owner.as_ref())),
                Value::Bytes(&push.digest.0),
                Value::Text(push.worker.as_str()),
                Value::Text(push.state.as_str()),
                Value::Text(&push.reason),
                Value::Number(now_ms),
            ],
        )
        .await?;
    Ok(stepped > 0)
}

async fn get(db: &mut Db, owner: Option<TenantId>, digest: Digest) -> Result<Option<PushOnRecord>, StoreError> {
    let one = "SELECT tenant_id, digest, bytes, state, reason, worker, since FROM plugin_pushes
         WHERE tenant_id = $1 AND digest = $2";
    let row = db.row(one, &[Value::Text(owner_text(owner.as_ref())), Value::Bytes(&digest.0)]).await?;
    let Some(push) = row.as_ref().map(on_record).transpose()? else { return Ok(None) };
    Ok(push.seen(db.now_ms().await?))
}

async fn abandon(db: &mut Db, worker: NodeId) -> Result<(), StoreError> {
    let now_ms = db.now_ms().await?;
    let under_way = "SELECT tenant_id, digest, bytes, state, reason, worker, since FROM plugin_pushes
         WHERE worker = $1 AND state IN ('staged', 'compiling')";
    let rows = db.rows(under_way, &[Value::Text(worker.as_str())]).await?;
    for push in rows.iter().map(on_record).collect::<Result<Vec<_>, _>>()? {
        // What has been given up long ago keeps its time, so that it is forgotten.
        if push.seen(now_ms).is_some_and(|seen| seen.state.is_under_way()) {
            step(db, push.abandoned()).await?;
        }
    }
    Ok(())
}

/// Notes that a component of this owner is stored.
pub(super) async fn stored(db: &mut Db, owner: Option<&TenantId>, digest: Digest) -> Result<(), StoreError> {
    let now_ms = db.now_ms().await?;
    let ready =
        "UPDATE plugin_pushes SET state = 'ready', reason = '', since = $3 WHERE tenant_id = $1 AND digest = $2";
    let key = [Value::Text(owner_text(owner)), Value::Bytes(&digest.0), Value::Number(now_ms)];
    db.execute(ready, &key).await.map(drop)
}

/// Forgets the pushes of a deleted tenant.
pub(super) async fn forget_of_tenant(db: &mut Db, tenant: &TenantId) -> Result<(), StoreError> {
    db.execute("DELETE FROM plugin_pushes WHERE tenant_id = $1", &[Value::Text(tenant.as_str())]).await.map(drop)
}

fn owner_text(owner: Option<&TenantId>) -> &str {
    owner.map_or("", TenantId::as_str)
}

fn on_record(row: &Row) -> Result<PushOnRecord, StoreError> {
    let owner = row.text("tenant_id")?;
    let owner = (!owner.is_empty()).then(|| TenantId::new(owner)).transpose();
    let worker = NodeId::new(row.text("worker")?);
    Ok(PushOnRecord {
        owner: owner.map_err(|error| damaged("a push's owner", &error.to_string()))?,
        digest: Digest(row.exactly("digest")?),
        size: row.number("bytes")?,
        state: row.spelled("state", PushState::parse)?,
        reason: row.text("reason")?,
        worker: worker.map_err(|error| damaged("a push's coordinator", &error.to_string()))?,
        since_ms: row.number("since")?,
    })
}
