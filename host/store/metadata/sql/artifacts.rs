//! Plugin artifacts.

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::port::{
    ARTIFACTS, Answer, Artifact, ArtifactStore, Changed, Component, Digest, Source, StoreError, rules,
};

use super::db::{Db, Value};
use super::row::Row;
use super::{Driver, SqlMetadata, changes, references};

impl<D: Driver> ArtifactStore for SqlMetadata<D> {
    fn put_artifact(&self, component: Component) -> Answer<()> {
        self.change(|db| Box::pin(put(db, component)))
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Component>> {
        self.read(move |db| Box::pin(get(db, digest)))
    }

    fn artifacts(&self, after: Option<Digest>, limit: u32) -> Answer<Vec<Artifact>> {
        self.read(move |db| Box::pin(list(db, after, limit)))
    }

    fn remove_artifact(&self, digest: Digest) -> Answer<()> {
        self.change(move |db| Box::pin(remove(db, digest)))
    }
}

async fn put(db: &mut Db, component: Component) -> Result<(), StoreError> {
    rules::component(&component)?;
    let Component { artifact, bytes } = &component;
    if references::is_stored(db, artifact.digest).await? {
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
            Value::Bytes(&artifact.digest.0),
            Value::Text(&artifact.name),
            Value::Text(&artifact.version),
            Value::Text(artifact.hook.as_str()),
            Value::Flag(artifact.deterministic),
            Value::MaybeText(file(&artifact.source)),
            Value::Bytes(bytes),
            Value::Number(artifact.staged_at_ms),
        ],
    )
    .await?;
    changes::record(db, Changed::Artifacts).await.map(drop)
}

async fn get(db: &mut Db, digest: Digest) -> Result<Option<Component>, StoreError> {
    let row = db
        .row(
            "SELECT digest, name, version, hook, deterministic, source, CAST(length(bytes) AS BIGINT) AS size, bytes,
                created_at
             FROM plugin_artifacts WHERE digest = $1",
            &[Value::Bytes(&digest.0)],
        )
        .await?;
    let component = |row: &Row| Ok(Component { artifact: artifact(row)?, bytes: Bytes::from(row.bytes("bytes")?) });
    row.as_ref().map(component).transpose()
}

async fn list(db: &mut Db, after: Option<Digest>, limit: u32) -> Result<Vec<Artifact>, StoreError> {
    let after = after.as_ref().map_or(&[][..], |digest| &digest.0[..]);
    let rows = db
        .rows(
            "SELECT digest, name, version, hook, deterministic, source, CAST(length(bytes) AS BIGINT) AS size, created_at
             FROM plugin_artifacts WHERE digest > $1 ORDER BY digest LIMIT $2",
            &[Value::Bytes(after), Value::Number(rules::page(limit).into())],
        )
        .await?;
    rows.iter().map(artifact).collect()
}

async fn remove(db: &mut Db, digest: Digest) -> Result<(), StoreError> {
    if references::is_named(db, digest).await? {
        return Err(rules::needed_artifact(digest));
    }
    let removed = db.execute("DELETE FROM plugin_artifacts WHERE digest = $1", &[Value::Bytes(&digest.0)]).await?;
    if removed == 0 {
        return Err(rules::no_artifact(digest));
    }
    changes::record(db, Changed::Artifacts).await.map(drop)
}

/// The name of the watched folder's file, as it is stored: NULL for an upload.
fn file(source: &Source) -> Option<&str> {
    match source {
        Source::Upload => None,
        Source::File(name) => Some(name),
    }
}

fn artifact(row: &Row) -> Result<Artifact, StoreError> {
    Ok(Artifact {
        digest: Digest(row.exactly("digest")?),
        name: row.text("name")?,
        version: row.text("version")?,
        hook: row.spelled("hook", Hook::parse)?,
        deterministic: row.flag("deterministic")?,
        size: row.number("size")?,
        staged_at_ms: row.number("created_at")?,
        source: row.maybe_text("source")?.map_or(Source::Upload, Source::File),
    })
}
