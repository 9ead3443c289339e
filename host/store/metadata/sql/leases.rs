//! Leases of coordinators: who holds which node id, and until when.

use witan_kernel::name::NodeId;
use witan_kernel::port::rules::Granting;
use witan_kernel::port::{
    Answer, COORDINATOR_KEPT_MS, COORDINATORS, Changed, Claim, CoordinatorOnRecord, Lease, LeaseStore, StoreError,
    rules,
};

use super::db::{Db, Value};
use super::facts::needs_schema;
use super::row::Row;
use super::{Driver, SqlMetadata, changes};

impl<D: Driver> LeaseStore for SqlMetadata<D> {
    fn hold_lease(&self, claim: Claim, lease_ms: u64) -> Answer<Lease> {
        let store = self.clone();
        Box::pin(async move {
            rules::claim(&claim, lease_ms)?;
            // A renewal is one statement, and waits for no other change.
            let renewed = claim.clone();
            match store.write(move |db| Box::pin(renew(db, renewed, lease_ms))).await? {
                Some(lease) => Ok(lease),
                None => store.change(move |db| Box::pin(grant(db, claim, lease_ms))).await,
            }
        })
    }

    fn note_drained(&self, node_id: &NodeId, instance: [u8; 16], revision: u64) -> Answer<()> {
        let node_id = node_id.clone();
        self.write(move |db| Box::pin(note_drained(db, node_id, instance, revision)))
    }

    fn release_lease(&self, node_id: &NodeId, instance: [u8; 16]) -> Answer<()> {
        let node_id = node_id.clone();
        self.change(move |db| Box::pin(release(db, node_id, instance)))
    }

    fn founded_with(&self) -> Answer<Vec<String>> {
        self.read(|db| Box::pin(founded_with(db)))
    }

    fn require(&self, capability: &'static str) -> Answer<bool> {
        let store = self.clone();
        Box::pin(async move {
            let schema = rules::schema_of(capability)?;
            // Looked up often and changed once in the life of a store: only that takes the lock of all changes.
            if store.read(|db| Box::pin(needs_schema(db))).await? >= schema {
                return Ok(true);
            }
            store.change(move |db| Box::pin(require(db, capability, schema))).await
        })
    }

    fn coordinators(&self) -> Answer<Vec<CoordinatorOnRecord>> {
        self.read(|db| Box::pin(list(db)))
    }
}

/// Renews a lease in one statement that reads the clock itself, so that an expired one is never renewed. `None` when there is no
/// such lease to renew.
async fn renew(db: &mut Db, claim: Claim, lease_ms: u64) -> Result<Option<Lease>, StoreError> {
    let sql = db.dialect(
        "UPDATE coordinators SET lease_until = CAST(unixepoch('subsec') * 1000 AS INTEGER) + $5
         WHERE node_id = $1 AND instance = $2 AND address = $3 AND version = $4
            AND lease_until > CAST(unixepoch('subsec') * 1000 AS INTEGER)
         RETURNING fence, lease_until",
        "UPDATE coordinators SET lease_until = CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) + $5
         WHERE node_id = $1 AND instance = $2 AND address = $3 AND version = $4
            AND lease_until > CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)
         RETURNING fence, lease_until",
    );
    let row = db
        .row(
            sql,
            &[
                Value::Text(claim.node_id.as_str()),
                Value::Bytes(&claim.instance),
                Value::Text(&claim.address),
                Value::Text(&claim.version),
                Value::Number(lease_ms),
            ],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let until_ms = row.number::<u64>("lease_until")?;
    Ok(Some(Lease { fence: row.number("fence")?, until_ms, now_ms: until_ms.saturating_sub(lease_ms) }))
}

async fn grant(db: &mut Db, claim: Claim, lease_ms: u64) -> Result<Lease, StoreError> {
    let now_ms = db.now_ms().await?;
    let on_record = get(db, &claim.node_id, now_ms).await?;
    let (fence, granted_at_ms, drained) = match rules::grant(&claim, on_record.as_ref(), now_ms)? {
        Granting::Renewed(fence) => {
            let (granted_at_ms, drained) = on_record.map_or((now_ms, 0), |at| (at.granted_at_ms, at.drained));
            (fence, granted_at_ms, drained)
        }
        Granting::New => {
            make_room(db, &claim.node_id, now_ms).await?;
            changes::record(db, Changed::Coordinators).await?;
            let next = "UPDATE cluster_state SET fence = fence + 1 RETURNING fence";
            (db.one(next, &[]).await?.number("fence")?, now_ms, 0)
        }
    };
    let until_ms = now_ms.saturating_add(lease_ms);
    // A program of a version without capabilities leaves both columns of them as they were, under another fence.
    db.execute(
        "INSERT INTO coordinators
            (node_id, instance, address, version, fence, granted_at, lease_until, capabilities, capabilities_fence, drained)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $5, $9)
         ON CONFLICT (node_id) DO UPDATE
         SET instance = $2, address = $3, version = $4, fence = $5, granted_at = $6, lease_until = $7,
            capabilities = $8, capabilities_fence = $5, drained = $9",
        &[
            Value::Text(claim.node_id.as_str()),
            Value::Bytes(&claim.instance),
            Value::Text(&claim.address),
            Value::Text(&claim.version),
            Value::Number(fence),
            Value::Number(granted_at_ms),
            Value::Number(until_ms),
            Value::Text(&claim.capabilities.join(" ")),
            Value::Number(drained),
        ],
    )
    .await?;
    Ok(Lease { fence, until_ms, now_ms })
}

/// Drops coordinators that ended long ago and, if that is not enough, the one that ended first.
async fn make_room(db: &mut Db, id: &NodeId, now_ms: u64) -> Result<(), StoreError> {
    let long_ago = Value::Number(now_ms.saturating_sub(COORDINATOR_KEPT_MS));
    db.execute("DELETE FROM coordinators WHERE lease_until <= $1", &[long_ago]).await?;
    let others = "SELECT COUNT(*) AS others FROM coordinators WHERE node_id <> $1";
    if db.one(others, &[Value::Text(id.as_str())]).await?.number::<usize>("others")? < COORDINATORS {
        return Ok(());
    }
    let dropped = db
        .execute(
            "DELETE FROM coordinators WHERE node_id IN
                (SELECT node_id FROM coordinators WHERE lease_until <= $1 AND node_id <> $2 ORDER BY lease_until LIMIT 1)",
            &[Value::Number(now_ms), Value::Text(id.as_str())],
        )
        .await?;
    if dropped == 0 { Err(rules::too_many_coordinators()) } else { Ok(()) }
}

async fn release(db: &mut Db, node_id: NodeId, instance: [u8; 16]) -> Result<(), StoreError> {
    let now_ms = db.now_ms().await?;
    let released = db
        .execute(
            "UPDATE coordinators SET lease_until = $3 WHERE node_id = $1 AND instance = $2 AND lease_until > $3",
            &[Value::Text(node_id.as_str()), Value::Bytes(&instance), Value::Number(now_ms)],
        )
        .await?;
    if released > 0 {
        changes::record(db, Changed::Coordinators).await?;
    }
    Ok(())
}

/// One statement that reads the clock itself, and waits for no other change.
async fn note_drained(db: &mut Db, node_id: NodeId, instance: [u8; 16], revision: u64) -> Result<(), StoreError> {
    let sql = db.dialect(
        "UPDATE coordinators SET drained = $3 WHERE node_id = $1 AND instance = $2 AND drained < $3
            AND lease_until > CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        "UPDATE coordinators SET drained = $3 WHERE node_id = $1 AND instance = $2 AND drained < $3
            AND lease_until > CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
    );
    let values = [Value::Text(node_id.as_str()), Value::Bytes(&instance), Value::Number(revision)];
    db.execute(sql, &values).await.map(drop)
}

async fn require(db: &mut Db, capability: &str, schema: u64) -> Result<bool, StoreError> {
    if needs_schema(db).await? >= schema {
        return Ok(true);
    }
    rules::all_name(capability, &list(db).await?)?;
    db.execute("UPDATE cluster_state SET needs_schema = $1", &[Value::Number(schema)]).await?;
    Ok(false)
}

async fn get(db: &mut Db, id: &NodeId, now_ms: u64) -> Result<Option<CoordinatorOnRecord>, StoreError> {
    let row = db
        .row(
            "SELECT node_id, instance, address, version, fence, granted_at, lease_until, capabilities, capabilities_fence,
                drained
             FROM coordinators WHERE node_id = $1",
            &[Value::Text(id.as_str())],
        )
        .await?;
    row.map(|row| coordinator(&row, now_ms)).transpose()
}

async fn list(db: &mut Db) -> Result<Vec<CoordinatorOnRecord>, StoreError> {
    // The clock first: one that expires in between is reported live, and none that was renewed is reported expired.
    let now_ms = db.now_ms().await?;
    let rows = db
        .rows(
            "SELECT node_id, instance, address, version, fence, granted_at, lease_until, capabilities, capabilities_fence,
                drained
             FROM coordinators WHERE lease_until > $1 ORDER BY node_id",
            &[Value::Number(now_ms.saturating_sub(COORDINATOR_KEPT_MS))],
        )
        .await?;
    rows.iter().map(|row| coordinator(row, now_ms)).collect()
}

fn coordinator(row: &Row, now_ms: u64) -> Result<CoordinatorOnRecord, StoreError> {
    let until_ms = row.number::<u64>("lease_until")?;
    let fence = row.number("fence")?;
    let named_now = row.number::<u64>("capabilities_fence")? == fence;
    let capabilities = if named_now { words(&row.text("capabilities")?) } else { Vec::new() };
    Ok(CoordinatorOnRecord {
        drained: row.number("drained")?,
        claim: Claim {
            node_id: row.spelled("node_id", |text| NodeId::new(text).ok())?,
            instance: row.exactly("instance")?,
            address: row.text("address")?,
            version: row.text("version")?,
            capabilities,
        },
        fence,
        granted_at_ms: row.number("granted_at")?,
        until_ms,
        left_ms: until_ms.saturating_sub(now_ms),
    })
}

async fn founded_with(db: &mut Db) -> Result<Vec<String>, StoreError> {
    let state = db.one("SELECT founded_with FROM cluster_state", &[]).await?;
    Ok(words(&state.text("founded_with")?))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
