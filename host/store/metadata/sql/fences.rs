//! Fences and removals that storage nodes owe.

use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{Answer, FenceStore, Fencing, OWED, OwedFence, Owing, StoreError};
use witan_kernel::tenant::Level;

use super::db::{Db, Value};
use super::row::Row;
use super::{Driver, SqlMetadata};

impl<D: Driver> FenceStore for SqlMetadata<D> {
    fn owed_fences(&self, tenant: Option<&TenantId>, after: Option<Fencing>) -> Answer<Vec<OwedFence>> {
        let tenant = tenant.cloned();
        self.read(move |db| Box::pin(owed(db, tenant, after)))
    }

    fn fence_raised(&self, tenant: Option<&TenantId>, node: &NodeId, epoch: u64) -> Answer<()> {
        let (tenant, node) = (tenant.cloned(), node.clone());
        self.write(move |db| Box::pin(raised(db, tenant, node, epoch)))
    }

    fn owed_removals(&self, deleted_by_ms: u64, after: Option<Owing>) -> Answer<Vec<Owing>> {
        self.read(move |db| Box::pin(removals(db, deleted_by_ms, after)))
    }

    fn records_removed(&self, tenant: &TenantId, node: &NodeId) -> Answer<()> {
        let (tenant, node) = (tenant.clone(), node.clone());
        self.write(move |db| Box::pin(removed(db, tenant, node)))
    }
}

/// Every node owes the fence of a change that the transaction makes at revision `epoch`, of a tenant or (`None`) of all; `level`: the least
/// that operations could have before. What a node owes already is taken over.
pub(super) async fn owe(db: &mut Db, tenant: Option<&TenantId>, epoch: u64, level: Level) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO owed_fences (tenant_id, node_id, epoch, level)
         SELECT CAST($1 AS TEXT), node_id, CAST($2 AS BIGINT), CAST($3 AS BIGINT) FROM storage_nodes WHERE 1 = 1
         ON CONFLICT (tenant_id, node_id) DO UPDATE SET epoch = $2,
             level = CASE WHEN owed_fences.level < $3 THEN owed_fences.level ELSE $3 END",
        &[Value::Text(text(tenant)), Value::Number(epoch), Value::Number(number(level))],
    )
    .await
    .map(drop)
}

async fn owed(db: &mut Db, tenant: Option<TenantId>, after: Option<Fencing>) -> Result<Vec<OwedFence>, StoreError> {
    let (tenant, all) = (text(tenant.as_ref()), u64::from(tenant.is_none()));
    let (after, node) = after.as_ref().map_or(("", ""), |(tenant, node)| (text(tenant.as_ref()), node.as_str()));
    let rows = db
        .rows(
            "SELECT tenant_id, node_id, epoch, level FROM owed_fences WHERE (tenant_id = $1 OR $2 = 1)
                 AND (tenant_id > $4 OR tenant_id = $4 AND node_id > $5)
             ORDER BY tenant_id, node_id LIMIT $3",
            &[
                Value::Text(tenant),
                Value::Number(all),
                Value::Number(OWED as u64),
                Value::Text(after),
                Value::Text(node),
            ],
        )
        .await?;
    rows.iter().map(fence).collect()
}

async fn raised(db: &mut Db, tenant: Option<TenantId>, node: NodeId, epoch: u64) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM owed_fences WHERE tenant_id = $1 AND node_id = $2 AND epoch <= $3",
        &[Value::Text(text(tenant.as_ref())), Value::Text(node.as_str()), Value::Number(epoch)],
    )
    .await
    .map(drop)
}

/// Every node owes the removal of a deleted tenant's records.
pub(super) async fn owe_removal(db: &mut Db, tenant: &TenantId) -> Result<(), StoreError> {
    db.execute(
        "INSERT INTO owed_removals (tenant_id, node_id)
         SELECT CAST($1 AS TEXT), node_id FROM storage_nodes WHERE 1 = 1 ON CONFLICT DO NOTHING",
        &[Value::Text(tenant.as_str())],
    )
    .await
    .map(drop)
}

async fn removals(db: &mut Db, deleted_by_ms: u64, after: Option<Owing>) -> Result<Vec<Owing>, StoreError> {
    let (after, node) = texts(after.as_ref());
    let rows = db
        .rows(
            "SELECT owed_removals.tenant_id, owed_removals.node_id FROM owed_removals
             JOIN tenants ON tenants.tenant_id = owed_removals.tenant_id
             WHERE tenants.deleted_at <= $1
                 AND (owed_removals.tenant_id > $3 OR owed_removals.tenant_id = $3 AND owed_removals.node_id > $4)
             ORDER BY owed_removals.tenant_id, owed_removals.node_id LIMIT $2",
            &[Value::Number(deleted_by_ms), Value::Number(OWED as u64), Value::Text(after), Value::Text(node)],
        )
        .await?;
    let owed = |row: &Row| {
        let tenant = row.spelled("tenant_id", |text| TenantId::new(text).ok())?;
        Ok((tenant, row.spelled("node_id", |text| NodeId::new(text).ok())?))
    };
    rows.iter().map(owed).collect()
}

async fn removed(db: &mut Db, tenant: TenantId, node: NodeId) -> Result<(), StoreError> {
    db.execute(
        "DELETE FROM owed_removals WHERE tenant_id = $1 AND node_id = $2",
        &[Value::Text(tenant.as_str()), Value::Text(node.as_str())],
    )
    .await
    .map(drop)
}

/// A tenant in a column; '' is all tenants, and sorts before every id.
fn text(tenant: Option<&TenantId>) -> &str {
    tenant.map_or("", TenantId::as_str)
}

/// The place after which a page begins. '' sorts before every id, and is none.
fn texts(after: Option<&Owing>) -> (&str, &str) {
    after.map_or(("", ""), |(tenant, node)| (tenant.as_str(), node.as_str()))
}

/// Levels in ascending order, so that the least is the smallest.
fn number(level: Level) -> u64 {
    match level {
        Level::One => 1,
        Level::Quorum => 2,
        Level::All => 3,
    }
}

fn fence(row: &Row) -> Result<OwedFence, StoreError> {
    Ok(OwedFence {
        tenant: match row.text("tenant_id")?.as_str() {
            "" => None,
            _ => Some(row.spelled("tenant_id", |text| TenantId::new(text).ok())?),
        },
        node: row.spelled("node_id", |text| NodeId::new(text).ok())?,
        epoch: row.number("epoch")?,
        level: match row.number::<u64>("level")? {
            3 => Level::All,
            2 => Level::Quorum,
            // The least, should it be anything else: then more nodes have to confirm.
            _ => Level::One,
        },
    })
}
