//! The cluster itself: its schema, its storage nodes, its secrets.

use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{NodeStatus, StorageNode, StoreError};

use super::changes;
use super::db::{Db, Value};
use super::row::{Row, damaged};
use crate::metadata::{Changed, NODES, NodeOnRecord, Placement, SECRETS, Secret, rules};

pub(super) async fn schema_version(db: &mut Db) -> Result<u64, StoreError> {
    let newest = "SELECT COALESCE(MAX(version), 0) AS version FROM _sqlx_migrations WHERE success";
    db.one(newest, &[]).await?.number("version")
}

/// The newest migration that a program must know to work here.
pub(super) async fn needs_schema(db: &mut Db) -> Result<u64, StoreError> {
    db.one("SELECT needs_schema FROM cluster_state", &[]).await?.number("needs_schema")
}

pub(super) async fn found_nodes(db: &mut Db, nodes: Vec<StorageNode>, now_ms: u64) -> Result<(), StoreError> {
    if count_nodes(db).await? > 0 {
        return Ok(());
    }
    for node in nodes {
        add_node(db, node, now_ms).await?;
    }
    Ok(())
}

pub(super) async fn add_node(db: &mut Db, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
    if node_exists(db, &node.id).await? {
        return Err(rules::node_exists(&node.id));
    }
    put_node(db, node, now_ms).await
}

pub(super) async fn put_node(db: &mut Db, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
    rules::node(&node)?;
    if !node_exists(db, &node.id).await? && count_nodes(db).await? >= NODES {
        return Err(rules::too_many_nodes());
    }
    db.execute(
        "INSERT INTO storage_nodes (node_id, host, port, status, virtual_nodes, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6)
         ON CONFLICT (node_id) DO UPDATE SET host = $2, port = $3, status = $4, virtual_nodes = $5, updated_at = $6",
        &[
            Value::Text(node.id.as_str()),
            Value::Text(&node.host),
            Value::Number(node.port.into()),
            Value::Text(node.status.as_str()),
            Value::Number(node.virtual_nodes.into()),
            Value::Number(now_ms),
        ],
    )
    .await?;
    placement_changed(db).await
}

/// The next epoch of the placement.
async fn placement_changed(db: &mut Db) -> Result<(), StoreError> {
    let epoch = changes::record(db, Changed::Nodes).await?;
    db.execute("UPDATE cluster_state SET placement_epoch = $1", &[Value::Number(epoch)]).await.map(drop)
}

async fn count_nodes(db: &mut Db) -> Result<usize, StoreError> {
    db.one("SELECT COUNT(*) AS nodes FROM storage_nodes", &[]).await?.number("nodes")
}

async fn node_exists(db: &mut Db, id: &NodeId) -> Result<bool, StoreError> {
    let found = db.row("SELECT node_id FROM storage_nodes WHERE node_id = $1", &[Value::Text(id.as_str())]).await;
    Ok(found?.is_some())
}

/// In one statement, so that epoch and nodes are of one moment.
pub(super) async fn placement(db: &mut Db) -> Result<Placement, StoreError> {
    let rows = db
        .rows(
            "SELECT placement_epoch, node_id, host, port, status, virtual_nodes, store_id, created_at, updated_at
             FROM cluster_state LEFT JOIN storage_nodes ON 1 = 1 ORDER BY node_id",
            &[],
        )
        .await?;
    let first = rows.first().ok_or_else(|| StoreError::Damaged("the cluster's state is missing".into()))?;
    let mut nodes = Vec::with_capacity(rows.len());
    for row in &rows {
        if row.maybe_text("node_id")?.is_some() {
            nodes.push(node(row)?);
        }
    }
    Ok(Placement { epoch: first.number("placement_epoch")?, nodes })
}

async fn nodes(db: &mut Db) -> Result<Vec<NodeOnRecord>, StoreError> {
    let all = "SELECT node_id, host, port, status, virtual_nodes, store_id, created_at, updated_at
               FROM storage_nodes ORDER BY node_id";
    db.rows(all, &[]).await?.iter().map(node).collect()
}

pub(super) async fn remove_node(db: &mut Db, id: NodeId) -> Result<(), StoreError> {
    let removed = db.execute("DELETE FROM storage_nodes WHERE node_id = $1", &[Value::Text(id.as_str())]).await?;
    if removed == 0 {
        return Err(rules::no_node(&id));
    }
    placement_changed(db).await
}

pub(super) async fn record_store_id(db: &mut Db, id: NodeId, told: StoreId) -> Result<StoreId, StoreError> {
    let row = db.row("SELECT store_id FROM storage_nodes WHERE node_id = $1", &[Value::Text(id.as_str())]).await?;
    if let Some(on_record) = store_id(&row.ok_or_else(|| rules::no_node(&id))?)? {
        return Ok(on_record);
    }
    db.execute(
        "UPDATE storage_nodes SET store_id = $2 WHERE node_id = $1",
        &[Value::Text(id.as_str()), Value::Bytes(&told.0)],
    )
    .await?;
    changes::record(db, Changed::Nodes).await?;
    Ok(told)
}

pub(super) async fn replace_store_id(db: &mut Db, id: NodeId, from: StoreId, to: StoreId) -> Result<(), StoreError> {
    let all = nodes(db).await?;
    let on_record = all.iter().find(|other| other.node.id == id).ok_or_else(|| rules::no_node(&id))?.store_id;
    let others = all.iter().filter(|other| other.node.id != id).filter_map(|other| other.store_id);
    if !rules::replaces_store(&id, on_record, from, to, others)? {
        return Ok(());
    }
    let replaced = db
        .execute(
            "UPDATE storage_nodes SET store_id = $2 WHERE node_id = $1 AND store_id = $3",
            &[Value::Text(id.as_str()), Value::Bytes(&to.0), Value::Bytes(&from.0)],
        )
        .await?;
    if replaced == 0 {
        return Err(StoreError::Conflict(format!(
            "the store of storage node {id} has just been replaced by another one"
        )));
    }
    changes::record(db, Changed::Nodes).await.map(drop)
}

fn store_id(row: &Row) -> Result<Option<StoreId>, StoreError> {
    let stored = row.maybe_bytes("store_id")?;
    stored.map(|id| StoreId::from_slice(&id).ok_or_else(|| damaged("store_id", &id.len()))).transpose()
}

fn node(row: &Row) -> Result<NodeOnRecord, StoreError> {
    Ok(NodeOnRecord {
        node: StorageNode {
            id: row.spelled("node_id", |text| NodeId::new(text).ok())?,
            host: row.text("host")?,
            port: row.number("port")?,
            virtual_nodes: row.number("virtual_nodes")?,
            status: row.spelled("status", NodeStatus::parse)?,
        },
        store_id: store_id(row)?,
        created_at_ms: row.number("created_at")?,
        updated_at_ms: row.number("updated_at")?,
    })
}

pub(super) async fn secrets(db: &mut Db, fresh: [u8; 32], now_ms: u64) -> Result<Vec<Secret>, StoreError> {
    let on_record = all_secrets(db).await?;
    if on_record.is_empty() { rotate_secret(db, fresh, now_ms).await } else { Ok(on_record) }
}

pub(super) async fn rotate_secret(db: &mut Db, fresh: [u8; 32], now_ms: u64) -> Result<Vec<Secret>, StoreError> {
    db.execute(
        "INSERT INTO cluster_secrets (secret_id, secret, created_at)
         SELECT COALESCE(MAX(secret_id), 0) + 1, $1, $2 FROM cluster_secrets",
        &[Value::Bytes(&fresh), Value::Number(now_ms)],
    )
    .await?;
    db.execute(
        "DELETE FROM cluster_secrets
         WHERE secret_id NOT IN (SELECT secret_id FROM cluster_secrets ORDER BY secret_id DESC LIMIT $1)",
        &[Value::Number(SECRETS as u64)],
    )
    .await?;
    changes::record(db, Changed::Secrets).await?;
    all_secrets(db).await
}

async fn all_secrets(db: &mut Db) -> Result<Vec<Secret>, StoreError> {
    let rows = db.rows("SELECT secret_id, secret FROM cluster_secrets ORDER BY secret_id DESC", &[]).await?;
    rows.iter().map(|row| Ok(Secret { id: row.number("secret_id")?, key: row.exactly("secret")? })).collect()
}
