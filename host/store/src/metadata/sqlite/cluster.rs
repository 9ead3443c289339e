//! The cluster itself: its time, its schema, its nodes, its secrets.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{NodeStatus, StorageNode, StoreError};

use super::columns::{column, damaged, exactly, number, spelled, whole};
use super::failed;
use crate::metadata::{NODES, NodeOnRecord, SECRETS, Secret, rules};

pub(super) async fn now_ms(db: &mut SqliteConnection) -> Result<u64, StoreError> {
    // Julian days would do as well, but for their rounding.
    let row = sqlx::query("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now").fetch_one(db).await;
    number(&row.map_err(failed)?, "now")
}

pub(super) async fn schema_version(db: &mut SqliteConnection) -> Result<u64, StoreError> {
    let newest = "SELECT COALESCE(MAX(version), 0) AS version FROM _sqlx_migrations WHERE success";
    number(&sqlx::query(newest).fetch_one(db).await.map_err(failed)?, "version")
}

pub(super) async fn add_node(db: &mut SqliteConnection, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
    rules::node(&node)?;
    if node_exists(db, &node.id).await? {
        return Err(rules::node_exists(&node.id));
    }
    put_node(db, node, now_ms).await
}

pub(super) async fn put_node(db: &mut SqliteConnection, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
    rules::node(&node)?;
    if !node_exists(db, &node.id).await? {
        let row = sqlx::query("SELECT COUNT(*) AS nodes FROM storage_nodes").fetch_one(&mut *db).await;
        if number::<usize>(&row.map_err(failed)?, "nodes")? >= NODES {
            return Err(rules::too_many_nodes());
        }
    }
    sqlx::query(
        "INSERT INTO storage_nodes (node_id, host, port, status, virtual_nodes, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)
         ON CONFLICT (node_id) DO UPDATE SET host = ?2, port = ?3, status = ?4, virtual_nodes = ?5, updated_at = ?6",
    )
    .bind(node.id.as_str())
    .bind(&node.host)
    .bind(i64::from(node.port))
    .bind(node.status.as_str())
    .bind(i64::from(node.virtual_nodes))
    .bind(whole(now_ms))
    .execute(db)
    .await
    .map_err(failed)?;
    Ok(())
}

async fn node_exists(db: &mut SqliteConnection, id: &NodeId) -> Result<bool, StoreError> {
    let found = sqlx::query("SELECT 1 FROM storage_nodes WHERE node_id = ?").bind(id.as_str()).fetch_optional(db).await;
    Ok(found.map_err(failed)?.is_some())
}

pub(super) async fn nodes(db: &mut SqliteConnection) -> Result<Vec<NodeOnRecord>, StoreError> {
    let rows = sqlx::query("SELECT * FROM storage_nodes ORDER BY node_id").fetch_all(db).await.map_err(failed)?;
    rows.iter().map(node).collect()
}

pub(super) async fn remove_node(db: &mut SqliteConnection, id: NodeId) -> Result<(), StoreError> {
    let removed = sqlx::query("DELETE FROM storage_nodes WHERE node_id = ?").bind(id.as_str()).execute(db).await;
    match removed.map_err(failed)?.rows_affected() {
        0 => Err(rules::no_node(&id)),
        _ => Ok(()),
    }
}

pub(super) async fn record_store_id(
    db: &mut SqliteConnection,
    id: NodeId,
    told: StoreId,
) -> Result<StoreId, StoreError> {
    let row =
        sqlx::query("UPDATE storage_nodes SET store_id = COALESCE(store_id, ?) WHERE node_id = ? RETURNING store_id")
            .bind(&told.0[..])
            .bind(id.as_str())
            .fetch_optional(db)
            .await
            .map_err(failed)?
            .ok_or_else(|| rules::no_node(&id))?;
    exactly(&row, "store_id").map(StoreId)
}

fn node(row: &SqliteRow) -> Result<NodeOnRecord, StoreError> {
    let store_id: Option<&[u8]> = row.try_get("store_id").map_err(failed)?;
    let store_id = store_id.map(|stored| StoreId::from_slice(stored).ok_or_else(|| damaged("store_id", &stored.len())));
    Ok(NodeOnRecord {
        node: StorageNode {
            id: spelled(row, "node_id", |text| NodeId::new(text).ok())?,
            host: column(row, "host")?,
            port: number(row, "port")?,
            virtual_nodes: number(row, "virtual_nodes")?,
            status: spelled(row, "status", NodeStatus::parse)?,
        },
        store_id: store_id.transpose()?,
        created_at_ms: number(row, "created_at")?,
        updated_at_ms: number(row, "updated_at")?,
    })
}

pub(super) async fn secrets(
    db: &mut SqliteConnection,
    fresh: [u8; 32],
    now_ms: u64,
) -> Result<Vec<Secret>, StoreError> {
    let on_record = all_secrets(db).await?;
    if on_record.is_empty() { rotate_secret(db, fresh, now_ms).await } else { Ok(on_record) }
}

pub(super) async fn rotate_secret(
    db: &mut SqliteConnection,
    fresh: [u8; 32],
    now_ms: u64,
) -> Result<Vec<Secret>, StoreError> {
    sqlx::query(
        "INSERT INTO cluster_secrets (secret_id, secret, created_at)
         SELECT COALESCE(MAX(secret_id), 0) + 1, ?, ? FROM cluster_secrets",
    )
    .bind(&fresh[..])
    .bind(whole(now_ms))
    .execute(&mut *db)
    .await
    .map_err(failed)?;
    sqlx::query(
        "DELETE FROM cluster_secrets
         WHERE secret_id NOT IN (SELECT secret_id FROM cluster_secrets ORDER BY secret_id DESC LIMIT ?)",
    )
    .bind(SECRETS as i64)
    .execute(&mut *db)
    .await
    .map_err(failed)?;
    all_secrets(db).await
}

async fn all_secrets(db: &mut SqliteConnection) -> Result<Vec<Secret>, StoreError> {
    let rows = sqlx::query("SELECT secret_id, secret FROM cluster_secrets ORDER BY secret_id DESC").fetch_all(db).await;
    let secret = |row| Ok(Secret { id: number(row, "secret_id")?, key: exactly(row, "secret")? });
    rows.map_err(failed)?.iter().map(secret).collect()
}
