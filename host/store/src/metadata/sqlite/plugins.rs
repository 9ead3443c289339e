//! Plugin artifacts.

use bytes::Bytes;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use witan_kernel::hook::Hook;
use witan_kernel::port::StoreError;

use super::columns::{column, exactly, number, spelled, whole};
use super::failed;
use crate::metadata::{ARTIFACTS, Artifact, ArtifactEntry, Digest, rules};

pub(super) async fn put(db: &mut SqliteConnection, artifact: Artifact) -> Result<(), StoreError> {
    rules::artifact(&artifact)?;
    if hook(db, artifact.digest).await?.is_some() {
        return Ok(());
    }
    let row = sqlx::query("SELECT COUNT(*) AS artifacts FROM plugin_artifacts").fetch_one(&mut *db).await;
    if number::<usize>(&row.map_err(failed)?, "artifacts")? >= ARTIFACTS {
        return Err(rules::too_many_artifacts());
    }
    sqlx::query(
        "INSERT INTO plugin_artifacts (digest, name, version, hook, bytes, created_at) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(&artifact.digest.0[..])
    .bind(&artifact.name)
    .bind(&artifact.version)
    .bind(artifact.hook.as_str())
    .bind(&artifact.bytes[..])
    .bind(whole(artifact.created_at_ms))
    .execute(db)
    .await
    .map_err(failed)?;
    Ok(())
}

pub(super) async fn get(db: &mut SqliteConnection, digest: Digest) -> Result<Option<Artifact>, StoreError> {
    let row = sqlx::query("SELECT *, length(bytes) AS size FROM plugin_artifacts WHERE digest = ?")
        .bind(&digest.0[..])
        .fetch_optional(db)
        .await
        .map_err(failed)?;
    row.as_ref().map(artifact).transpose()
}

/// Where an artifact decides, if there is such an artifact.
pub(super) async fn hook(db: &mut SqliteConnection, digest: Digest) -> Result<Option<Hook>, StoreError> {
    let row = sqlx::query("SELECT hook FROM plugin_artifacts WHERE digest = ?")
        .bind(&digest.0[..])
        .fetch_optional(db)
        .await
        .map_err(failed)?;
    row.map(|row| spelled(&row, "hook", Hook::parse)).transpose()
}

pub(super) async fn list(
    db: &mut SqliteConnection,
    after: Option<Digest>,
    limit: u32,
) -> Result<Vec<ArtifactEntry>, StoreError> {
    let rows = sqlx::query(
        "SELECT digest, name, version, hook, length(bytes) AS size, created_at FROM plugin_artifacts
         WHERE digest > ? ORDER BY digest LIMIT ?",
    )
    .bind(after.as_ref().map_or(&[][..], |digest| &digest.0[..]))
    .bind(rules::page(limit))
    .fetch_all(db)
    .await
    .map_err(failed)?;
    rows.iter().map(entry).collect()
}

pub(super) async fn remove(db: &mut SqliteConnection, digest: Digest) -> Result<(), StoreError> {
    if hook(db, digest).await?.is_none() {
        return Err(rules::no_artifact(digest));
    }
    let protecting = sqlx::query(
        "SELECT 1 FROM plugin_bindings_in_force AS now
         JOIN plugin_bindings AS bound
            ON bound.tenant_id = now.tenant_id AND bound.hook = now.hook AND bound.number = now.number
         LEFT JOIN plugin_bindings AS before
            ON before.tenant_id = now.tenant_id AND before.hook = now.hook AND before.number = bound.previous
         WHERE bound.digest = ?1 OR before.digest = ?1 LIMIT 1",
    )
    .bind(&digest.0[..])
    .fetch_optional(&mut *db)
    .await
    .map_err(failed)?;
    if protecting.is_some() {
        return Err(rules::artifact_bound(digest));
    }
    let forget = ["DELETE FROM plugin_bindings WHERE digest = ?", "DELETE FROM plugin_artifacts WHERE digest = ?"];
    for statement in forget {
        sqlx::query(statement).bind(&digest.0[..]).execute(&mut *db).await.map_err(failed)?;
    }
    Ok(())
}

fn artifact(row: &SqliteRow) -> Result<Artifact, StoreError> {
    let entry = entry(row)?;
    Ok(Artifact {
        digest: entry.digest,
        name: entry.name,
        version: entry.version,
        hook: entry.hook,
        bytes: Bytes::from(column::<Vec<u8>>(row, "bytes")?),
        created_at_ms: entry.created_at_ms,
    })
}

fn entry(row: &SqliteRow) -> Result<ArtifactEntry, StoreError> {
    Ok(ArtifactEntry {
        digest: Digest(exactly(row, "digest")?),
        name: column(row, "name")?,
        version: column(row, "version")?,
        hook: spelled(row, "hook", Hook::parse)?,
        size: number(row, "size")?,
        created_at_ms: number(row, "created_at")?,
    })
}
