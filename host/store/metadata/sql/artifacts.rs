//! Plugin artifacts.

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::port::StoreError;

use super::db::{Db, Value};
use super::row::Row;
use super::{bindings, changes};
use crate::metadata::{ARTIFACTS, Artifact, ArtifactEntry, Changed, Digest, rules};

pub(super) async fn put(db: &mut Db, artifact: Artifact) -> Result<(), StoreError> {
    rules::artifact(&artifact)?;
    let entry = &artifact.entry;
    if is_there(db, entry.digest).await? {
        return Ok(());
    }
    let there = db.one("SELECT COUNT(*) AS artifacts FROM plugin_artifacts", &[]).await?;
    if there.number::<usize>("artifacts")? >= ARTIFACTS {
        return Err(rules::too_many_artifacts());
    }
    db.execute(
        "INSERT INTO plugin_artifacts (digest, name, version, hook, deterministic, source, bytes, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            Value::Bytes(&entry.digest.0),
            Value::Text(&entry.name),
            Value::Text(&entry.version),
            Value::Text(entry.hook.as_str()),
            Value::Flag(entry.deterministic),
            Value::MaybeText(entry.source.as_deref()),
            Value::Bytes(&artifact.bytes),
            Value::Number(entry.created_at_ms),
        ],
    )
    .await?;
    changes::record(db, Changed::Artifacts).await.map(drop)
}

pub(super) async fn is_there(db: &mut Db, digest: Digest) -> Result<bool, StoreError> {
    let known = "SELECT digest FROM plugin_artifacts WHERE digest = $1";
    Ok(db.row(known, &[Value::Bytes(&digest.0)]).await?.is_some())
}

pub(super) async fn get(db: &mut Db, digest: Digest) -> Result<Option<Artifact>, StoreError> {
    let row = db
        .row(
            "SELECT digest, name, version, hook, deterministic, source, CAST(length(bytes) AS BIGINT) AS size, bytes,
                created_at
             FROM plugin_artifacts WHERE digest = $1",
            &[Value::Bytes(&digest.0)],
        )
        .await?;
    let artifact = |row: &Row| Ok(Artifact { entry: entry(row)?, bytes: Bytes::from(row.bytes("bytes")?) });
    row.as_ref().map(artifact).transpose()
}

pub(super) async fn list(db: &mut Db, after: Option<Digest>, limit: u32) -> Result<Vec<ArtifactEntry>, StoreError> {
    let after = after.as_ref().map_or(&[][..], |digest| &digest.0[..]);
    let rows = db
        .rows(
            "SELECT digest, name, version, hook, deterministic, source, CAST(length(bytes) AS BIGINT) AS size, created_at
             FROM plugin_artifacts WHERE digest > $1 ORDER BY digest LIMIT $2",
            &[Value::Bytes(after), Value::Number(rules::page(limit).into())],
        )
        .await?;
    rows.iter().map(entry).collect()
}

pub(super) async fn remove(db: &mut Db, digest: Digest) -> Result<(), StoreError> {
    if bindings::need(db, digest).await? {
        return Err(rules::needed_artifact(digest));
    }
    let removed = db.execute("DELETE FROM plugin_artifacts WHERE digest = $1", &[Value::Bytes(&digest.0)]).await?;
    if removed == 0 {
        return Err(rules::no_artifact(digest));
    }
    changes::record(db, Changed::Artifacts).await.map(drop)
}

fn entry(row: &Row) -> Result<ArtifactEntry, StoreError> {
    Ok(ArtifactEntry {
        digest: Digest(row.exactly("digest")?),
        name: row.text("name")?,
        version: row.text("version")?,
        hook: row.spelled("hook", Hook::parse)?,
        deterministic: row.flag("deterministic")?,
        source: row.maybe_text("source")?,
        size: row.number("size")?,
        created_at_ms: row.number("created_at")?,
    })
}
