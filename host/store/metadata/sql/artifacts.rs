//! Plugin artifacts.

use bytes::Bytes;
use witan_kernel::class::Class;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::{
    Answer, Artifact, ArtifactStore, Changed, Component, Digest, Source, StoreError, owners, rules,
};

use super::db::{Db, Value};
use super::row::{Row, damaged};
use super::{Driver, SqlMetadata, changes, pushes, references};

impl<D: Driver> ArtifactStore for SqlMetadata<D> {
    fn put_artifact(&self, component: Component) -> Answer<()> {
        self.change(|db| Box::pin(put(db, component)))
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Component>> {
        self.read(move |db| Box::pin(get(db, digest)))
    }

    fn artifacts(&self, after: Option<(Digest, Option<TenantId>)>, limit: u32) -> Answer<Vec<Artifact>> {
        self.read(move |db| Box::pin(list(db, after, rules::page(limit).into())))
    }

    fn remove_artifact(&self, owner: Option<&TenantId>, digest: Digest) -> Answer<()> {
        let owner = owner.cloned();
        self.change(move |db| Box::pin(remove(db, owner, digest)))
    }
}

async fn put(db: &mut Db, component: Component) -> Result<(), StoreError> {
    rules::component(&component)?;
    let Component { artifact, bytes } = &component;
    pushes::stored(db, artifact.owner.as_ref(), artifact.digest).await?;
    let all = list(db, None, u64::MAX).await?;
    if let Some(known) = all.iter().find(|known| known.digest == artifact.digest && known.owner == artifact.owner) {
        return sign_again(db, known, artifact).await;
    }
    owners::may_own(artifact, all.iter()).map_err(|why| rules::not_owned(&why))?;
    if !all.iter().any(|known| known.digest == artifact.digest) {
        insert(db, artifact, bytes).await?;
    }
    if let Some(owner) = &artifact.owner {
        db.execute(
            "INSERT INTO plugin_owners (digest, tenant_id, signed_by, created_at) VALUES ($1, $2, $3, $4)",
            &[
                Value::Bytes(&artifact.digest.0),
                Value::Text(owner.as_str()),
                Value::MaybeText(artifact.signed_by.as_deref()),
                Value::Number(artifact.staged_at_ms),
            ],
        )
        .await?;
    }
    changes::record(db, Changed::Artifacts).await.map(drop)
}

async fn insert(db: &mut Db, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError> {
    let signed_by = artifact.signed_by.as_deref().filter(|_| artifact.owner.is_none());
    db.execute(
        "INSERT INTO plugin_artifacts (digest, name, version, hook, deterministic, source, bytes, signed_by, created_at,
            class, class_reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        &[
            Value::Bytes(&artifact.digest.0),
            Value::Text(&artifact.name),
            Value::Text(&artifact.version),
            Value::Text(artifact.hook.as_str()),
            Value::Flag(artifact.deterministic),
            Value::MaybeText(file(&artifact.source)),
            Value::Bytes(bytes),
            Value::MaybeText(signed_by),
            Value::Number(artifact.staged_at_ms),
            Value::Text(artifact.class.as_str()),
            Value::Text(&artifact.class_reason),
        ],
    )
    .await
    .map(drop)
}

/// Notes that an owner's artifact is signed, if it was not before, or was by another key.
async fn sign_again(db: &mut Db, known: &Artifact, artifact: &Artifact) -> Result<(), StoreError> {
    if artifact.signed_by.is_none() || artifact.signed_by == known.signed_by {
        return Ok(());
    }
    let sql = match artifact.owner {
        Some(_) => "UPDATE plugin_owners SET signed_by = $3 WHERE digest = $1 AND tenant_id = $2",
        None => "UPDATE plugin_artifacts SET signed_by = $3 WHERE digest = $1 AND $2 = ''",
    };
    let signed_by = Value::MaybeText(artifact.signed_by.as_deref());
    db.execute(sql, &[Value::Bytes(&artifact.digest.0), Value::Text(artifact.owner_text()), signed_by]).await?;
    changes::record(db, Changed::Artifacts).await.map(drop)
}

async fn get(db: &mut Db, digest: Digest) -> Result<Option<Component>, StoreError> {
    let row = db
        .row(
            "SELECT a.digest, COALESCE(o.tenant_id, '') AS tenant_id, name, version, hook, deterministic, source,
                CAST(length(bytes) AS BIGINT) AS size, bytes, COALESCE(o.signed_by, a.signed_by) AS signed_by,
                COALESCE(o.created_at, a.created_at) AS created_at, class, class_reason
             FROM plugin_artifacts a LEFT JOIN plugin_owners o ON o.digest = a.digest
             WHERE a.digest = $1 ORDER BY tenant_id LIMIT 1",
            &[Value::Bytes(&digest.0)],
        )
        .await?;
    let component = |row: &Row| Ok(Component { artifact: artifact(row)?, bytes: Bytes::from(row.bytes("bytes")?) });
    row.as_ref().map(component).transpose()
}

async fn list(db: &mut Db, after: Option<(Digest, Option<TenantId>)>, limit: u64) -> Result<Vec<Artifact>, StoreError> {
    let (digest, owner) = after.map_or((Vec::new(), None), |(digest, owner)| (digest.0.to_vec(), owner));
    let owner = owner.as_ref().map_or("", TenantId::as_str);
    let rows = db
        .rows(
            "SELECT a.digest, COALESCE(o.tenant_id, '') AS tenant_id, name, version, hook, deterministic, source,
                CAST(length(bytes) AS BIGINT) AS size, COALESCE(o.signed_by, a.signed_by) AS signed_by,
                COALESCE(o.created_at, a.created_at) AS created_at, class, class_reason
             FROM plugin_artifacts a LEFT JOIN plugin_owners o ON o.digest = a.digest
             WHERE a.digest > $1 OR (a.digest = $1 AND COALESCE(o.tenant_id, '') > $2)
             ORDER BY a.digest, tenant_id LIMIT $3",
            &[Value::Bytes(&digest), Value::Text(owner), Value::Number(limit)],
        )
        .await?;
    rows.iter().map(artifact).collect()
}

async fn remove(db: &mut Db, owner: Option<TenantId>, digest: Digest) -> Result<(), StoreError> {
    let sql = "SELECT COALESCE(o.tenant_id, '') AS tenant_id
         FROM plugin_artifacts a LEFT JOIN plugin_owners o ON o.digest = a.digest WHERE a.digest = $1";
    let rows = db.rows(sql, &[Value::Bytes(&digest.0)]).await?;
    let owners = rows.iter().map(|row| row.text("tenant_id")).collect::<Result<Vec<_>, _>>()?;
    let text = owner.as_ref().map_or("", TenantId::as_str);
    if !owners.iter().any(|owner| owner == text) {
        return Err(rules::no_artifact(digest));
    }
    if references::is_named(db, owner.as_ref(), digest).await? {
        return Err(rules::needed_artifact(digest));
    }
    let one = "DELETE FROM plugin_owners WHERE digest = $1 AND tenant_id = $2";
    db.execute(one, &[Value::Bytes(&digest.0), Value::Text(text)]).await?;
    if owners.len() == 1 {
        db.execute("DELETE FROM plugin_artifacts WHERE digest = $1", &[Value::Bytes(&digest.0)]).await?;
    }
    changes::record(db, Changed::Artifacts).await.map(drop)
}

/// Takes from a deleted tenant what none of its bindings names, and removes what is nobody's then.
pub(super) async fn forget_of_tenant(db: &mut Db, tenant: &TenantId) -> Result<(), StoreError> {
    let of_tenant = "SELECT digest FROM plugin_owners WHERE tenant_id = $1";
    let rows = db.rows(of_tenant, &[Value::Text(tenant.as_str())]).await?;
    for row in rows {
        match remove(db, Some(tenant.clone()), Digest(row.exactly("digest")?)).await {
            Ok(()) | Err(StoreError::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The name of the watched folder's file, as it is stored: NULL for an upload.
fn file(source: &Source) -> Option<&str> {
    match source {
        Source::Upload => None,
        Source::File(name) => Some(name),
    }
}

fn artifact(row: &Row) -> Result<Artifact, StoreError> {
    let owner = row.text("tenant_id")?;
    let owner = (!owner.is_empty()).then(|| TenantId::new(owner)).transpose();
    Ok(Artifact {
        digest: Digest(row.exactly("digest")?),
        owner: owner.map_err(|error| damaged("a plugin's owner", &error.to_string()))?,
        name: row.text("name")?,
        version: row.text("version")?,
        hook: row.spelled("hook", Hook::parse)?,
        deterministic: row.flag("deterministic")?,
        size: row.number("size")?,
        staged_at_ms: row.number("created_at")?,
        source: row.maybe_text("source")?.map_or(Source::Upload, Source::File),
        signed_by: row.maybe_text("signed_by")?,
        class: row.spelled("class", Class::parse)?,
        class_reason: row.text("class_reason")?,
    })
}
