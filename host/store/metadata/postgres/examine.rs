//! A read-only examination of a PostgreSQL server, to find out why a coordinator does not start.

use std::time::{SystemTime, UNIX_EPOCH};

use sqlx::{PgConnection, Row};
use tokio::time::timeout;
use witan_kernel::port::StoreError;

use super::{PostgresConfig, connections, failed, options, pooler, schema};
use crate::metadata::migrations;

/// Facts about a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresFacts {
    /// As the server reports it, such as `15.14 (Debian 15.14-0+deb12u1)`.
    pub server_version: String,
    /// The same as a number: 150014.
    pub server_version_number: u32,
    /// `UTF8`; others cannot be used.
    pub encoding: String,
    /// `on`, `remote_apply`, `remote_write`, `local` or `off`.
    pub synchronous_commit: String,
    /// Whether committed changes are synced to disk.
    pub fsync: bool,
    /// Whether partially written pages can be recovered.
    pub full_page_writes: bool,
    /// A standby: it refuses changes.
    pub in_recovery: bool,
    /// Most connections of all clients together.
    pub max_connections: u32,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// How far its clock is ahead of ours, give or take half the round trip. Milliseconds.
    pub clock_ahead_ms: i64,
    /// The newest migration applied; `None`: there is no schema yet.
    pub schema: Option<i64>,
    /// The newest migration that this program knows.
    pub known_schema: i64,
    /// Whether a pooler is between this program and the server.
    pub pooled: bool,
    /// Whether the address of the server itself is known beside that of a pooler.
    pub has_direct: bool,
    /// Storage nodes on record, as id, host and port.
    pub nodes: Vec<(String, String, u16)>,
}

/// Connects, reads the facts and disconnects.
///
/// # Errors
/// [`StoreError::Refused`] when the address is invalid, [`StoreError::Unavailable`] when the server does not answer.
pub async fn examine(config: &PostgresConfig) -> Result<PostgresFacts, StoreError> {
    let (way, mut connection) = pooler::find(&options(config)?, config.connect).await?;
    let late = |_| StoreError::Unavailable(format!("PostgreSQL: no answer within {:?}", config.operation));
    let facts = timeout(config.operation, facts(&mut connection)).await.map_err(late)?;
    connections::close(connection).await;
    let facts = facts.map_err(failed)?;
    Ok(PostgresFacts { pooled: way.pooled, has_direct: config.direct.is_some(), ..facts })
}

async fn facts(connection: &mut PgConnection) -> sqlx::Result<PostgresFacts> {
    let before = now_ms();
    // One transaction of statements without names, for which a pooler lends one connection.
    sqlx::raw_sql("BEGIN READ ONLY").execute(&mut *connection).await?;
    let row = sqlx::query(
        "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
            current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS commits,
            current_setting('fsync') = 'on' AS fsync, current_setting('full_page_writes') = 'on' AS full_pages,
            pg_is_in_recovery() AS in_recovery, current_setting('max_connections')::int AS connections,
            (SELECT COALESCE(bool_or(ssl), false) FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS encrypted,
            (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
            to_regclass('_sqlx_migrations') IS NOT NULL AS has_schema",
    )
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    let ours = before.midpoint(now_ms());
    let schema = if row.try_get("has_schema")? { schema(connection).await? } else { None };
    let nodes = if schema.is_some() { nodes(connection).await? } else { Vec::new() };
    sqlx::raw_sql("COMMIT").execute(&mut *connection).await?;
    Ok(PostgresFacts {
        pooled: false,
        has_direct: false,
        server_version: row.try_get("version")?,
        server_version_number: row.try_get::<i32, _>("number")?.unsigned_abs(),
        encoding: row.try_get("encoding")?,
        synchronous_commit: row.try_get("commits")?,
        fsync: row.try_get("fsync")?,
        full_page_writes: row.try_get("full_pages")?,
        in_recovery: row.try_get("in_recovery")?,
        max_connections: row.try_get::<i32, _>("connections")?.unsigned_abs(),
        encrypted: row.try_get("encrypted")?,
        clock_ahead_ms: row.try_get::<i64, _>("now_ms")? - ours,
        schema,
        known_schema: migrations::newest(),
        nodes,
    })
}

async fn nodes(connection: &mut PgConnection) -> sqlx::Result<Vec<(String, String, u16)>> {
    let rows = sqlx::query("SELECT node_id, host, port::bigint AS port FROM storage_nodes ORDER BY node_id LIMIT 1000");
    let rows = rows.persistent(false).fetch_all(connection).await?;
    let node = |row: &sqlx::postgres::PgRow| {
        let port = u16::try_from(row.try_get::<i64, _>("port")?).unwrap_or(0);
        Ok((row.try_get("node_id")?, row.try_get("host")?, port))
    };
    rows.iter().map(node).collect()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
