//! Tenants.

use witan_kernel::fence;
use witan_kernel::name::TenantId;
use witan_kernel::placement::{Moving, Placed, Step};
use witan_kernel::port::{Answer, Changed, StoreError, TenantStore, rules};
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair, Tenant};

use super::db::{Db, Value};
use super::row::Row;
use super::{Driver, SqlMetadata, artifacts, changes, classes, fences, leftovers, pushes, rings};

impl<D: Driver> TenantStore for SqlMetadata<D> {
    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.change(|db| Box::pin(create(db, tenant)))
    }

    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>> {
        let id = id.clone();
        self.read(|db| Box::pin(get(db, id)))
    }

    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>> {
        let after = after.cloned();
        self.read(move |db| Box::pin(list(db, after, limit)))
    }

    fn update_tenant(&self, tenant: Tenant, fenced: bool) -> Answer<Tenant> {
        self.change(move |db| Box::pin(update(db, tenant, fenced)))
    }

    fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64, fenced: bool) -> Answer<Tenant> {
        let id = id.clone();
        self.change(move |db| Box::pin(delete(db, id, version, now_ms, fenced)))
    }
}

/// A query for the tenants of a condition.
macro_rules! tenants_where {
    ($condition:literal) => {
        concat!(
            "SELECT tenant_id, replication_factor, conflict_mode, ordering, read_repair, default_level, minimum_level,
                idempotency_outage, created_at, updated_at, deleted_at, version, idempotency_retention_ms,
                ring, wanted_factor, move_ring, move_factor, move_step, move_prepared, move_since,
                generation, generations, wanted_generation, move_generation
             FROM tenants WHERE ",
            $condition
        )
    };
}

async fn create(db: &mut Db, tenant: Tenant) -> Result<Tenant, StoreError> {
    rules::tenant(&tenant)?;
    if let Some(stored) = get(db, tenant.id.clone()).await? {
        return Err(rules::tenant_exists(&stored));
    }
    let tenant = Tenant { version: 1, deleted_at_ms: None, ..tenant.placed_anew(rings::newest(db).await?) };
    db.execute(
        "INSERT INTO tenants (tenant_id, replication_factor, conflict_mode, ordering, read_repair, default_level,
            minimum_level, idempotency_outage, created_at, updated_at, deleted_at, version, idempotency_retention_ms,
            ring, wanted_factor, move_ring, move_factor, move_step, move_prepared, move_since, generation, generations,
            wanted_generation, move_generation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)",
        &values(&tenant),
    )
    .await?;
    changes::record(db, Changed::Tenant(tenant.id.clone())).await?;
    Ok(tenant)
}

pub(super) async fn get(db: &mut Db, id: TenantId) -> Result<Option<Tenant>, StoreError> {
    let row = db.row(tenants_where!("tenant_id = $1"), &[Value::Text(id.as_str())]).await?;
    row.as_ref().map(tenant).transpose()
}

/// One that is not deleted.
pub(super) async fn living(db: &mut Db, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
    Ok(get(db, id.clone()).await?.filter(|stored| stored.deleted_at_ms.is_none()))
}

/// One that is not deleted and has, or is to have, more replicas than this.
pub(super) async fn with_more_replicas_than(db: &mut Db, nodes: usize) -> Result<Option<Tenant>, StoreError> {
    let sql = tenants_where!(
        "(replication_factor > $1 OR wanted_factor > $1) AND deleted_at IS NULL ORDER BY tenant_id LIMIT 1"
    );
    let row = db.row(sql, &[Value::Number(nodes as u64)]).await?;
    row.as_ref().map(tenant).transpose()
}

async fn list(db: &mut Db, after: Option<TenantId>, limit: u32) -> Result<Vec<Tenant>, StoreError> {
    // '' sorts before every id, and is none.
    let after = after.as_ref().map_or("", TenantId::as_str);
    let rows = db
        .rows(
            tenants_where!("tenant_id > $1 AND deleted_at IS NULL ORDER BY tenant_id LIMIT $2"),
            &[Value::Text(after), Value::Number(rules::page(limit).into())],
        )
        .await?;
    rows.iter().map(tenant).collect()
}

async fn update(db: &mut Db, tenant: Tenant, fenced: bool) -> Result<Tenant, StoreError> {
    rules::tenant(&tenant)?;
    let stored = living(db, &tenant.id).await?.ok_or_else(|| rules::no_tenant(&tenant.id))?;
    if stored.version != tenant.version {
        return Err(rules::lost_update(&tenant.id, tenant.version, stored.version));
    }
    let after = tenant.replacing(&stored)?;
    replace(db, &stored, after, fenced).await
}

async fn delete(db: &mut Db, id: TenantId, version: u64, now_ms: u64, fenced: bool) -> Result<Tenant, StoreError> {
    let stored = get(db, id.clone()).await?.ok_or_else(|| rules::no_tenant(&id))?;
    if stored.deleted_at_ms.is_some() {
        return Ok(stored);
    }
    if stored.version != version {
        return Err(rules::lost_update(&id, version, stored.version));
    }
    leftovers::forget_of_tenant(db, &id).await?;
    artifacts::forget_of_tenant(db, &id).await?;
    classes::forget_of_tenant(db, &id).await?;
    pushes::forget_of_tenant(db, &id).await?;
    replace(db, &stored, stored.deleted(now_ms), fenced).await
}

/// Stores the next version of a tenant that was read at its version, and the fences that nodes owe for the change.
async fn replace(db: &mut Db, before: &Tenant, tenant: Tenant, fenced: bool) -> Result<Tenant, StoreError> {
    let tenant = put(db, tenant).await?;
    let epoch = changes::record(db, Changed::Tenant(tenant.id.clone())).await?;
    if let Some(level) = fence::needed(before, &tenant).filter(|_| fenced) {
        fences::owe(db, Some(&tenant.id), epoch, level).await?;
    }
    if tenant.deleted_at_ms.is_some() {
        fences::owe_removal(db, &tenant.id).await?;
    }
    Ok(tenant)
}

/// Stores the next version of a tenant that was read at its version; the change is not logged. The lock of all changes guarantees the
/// condition already; it is repeated against tenants changed by hand.
pub(super) async fn put(db: &mut Db, tenant: Tenant) -> Result<Tenant, StoreError> {
    let written = db
        .execute(
            "UPDATE tenants SET replication_factor = $2, conflict_mode = $3, ordering = $4, read_repair = $5,
                default_level = $6, minimum_level = $7, idempotency_outage = $8, created_at = $9, updated_at = $10,
                deleted_at = $11, version = version + 1, idempotency_retention_ms = $13, ring = $14, wanted_factor = $15,
                move_ring = $16, move_factor = $17, move_step = $18, move_prepared = $19, move_since = $20,
                generation = $21, generations = $22, wanted_generation = $23, move_generation = $24
             WHERE tenant_id = $1 AND version = $12",
            &values(&tenant),
        )
        .await?;
    if written == 0 {
        return Err(rules::lost_update(&tenant.id, tenant.version, tenant.version + 1));
    }
    Ok(Tenant { version: tenant.version + 1, ..tenant })
}

fn values(tenant: &Tenant) -> [Value<'_>; 24] {
    let moving = tenant.moving.as_ref();
    [
        Value::Text(tenant.id.as_str()),
        Value::Number(tenant.replication_factor.into()),
        Value::Text(tenant.conflict_mode.as_str()),
        Value::Text(tenant.ordering.as_str()),
        Value::Text(tenant.read_repair.as_str()),
        Value::Text(tenant.default_level.as_str()),
        Value::Text(tenant.minimum_level.as_str()),
        Value::Text(tenant.idempotency_outage.as_str()),
        Value::Number(tenant.created_at_ms),
        Value::Number(tenant.updated_at_ms),
        Value::MaybeNumber(tenant.deleted_at_ms),
        Value::Number(tenant.version),
        Value::Number(tenant.idempotency_retention_ms),
        Value::Number(tenant.ring),
        Value::MaybeNumber(tenant.wanted_factor.map(u64::from)),
        Value::MaybeNumber(moving.map(|moving| moving.to.ring)),
        Value::MaybeNumber(moving.map(|moving| moving.to.replication_factor.into())),
        Value::MaybeText(moving.map(|moving| moving.step.as_str())),
        Value::MaybeNumber(moving.map(|moving| moving.prepared)),
        Value::MaybeNumber(moving.map(|moving| moving.since)),
        Value::Number(tenant.generation.into()),
        Value::Number(tenant.generations.into()),
        Value::MaybeNumber(tenant.wanted_generation.map(u64::from)),
        Value::Number(moving.map_or(0, |moving| moving.to.generation.into())),
    ]
}

fn tenant(row: &Row) -> Result<Tenant, StoreError> {
    let level = |name| row.spelled(name, |text| Level::parse(name, text).ok().flatten());
    Ok(Tenant {
        wanted_factor: row.maybe_number("wanted_factor")?,
        ring: row.number("ring")?,
        generation: row.number("generation")?,
        generations: row.number("generations")?,
        wanted_generation: row.maybe_number("wanted_generation")?,
        moving: moving(row)?,
        id: row.spelled("tenant_id", |text| TenantId::new(text).ok())?,
        replication_factor: row.number("replication_factor")?,
        conflict_mode: row.spelled("conflict_mode", |text| ConflictMode::parse(text).ok())?,
        ordering: row.spelled("ordering", |text| Ordering::parse(text).ok())?,
        read_repair: row.spelled("read_repair", |text| ReadRepair::parse(text).ok())?,
        default_level: level("default_level")?,
        minimum_level: level("minimum_level")?,
        idempotency_outage: row.spelled("idempotency_outage", |text| IdempotencyOutage::parse(text).ok())?,
        idempotency_retention_ms: row.number("idempotency_retention_ms")?,
        version: row.number("version")?,
        created_at_ms: row.number("created_at")?,
        updated_at_ms: row.number("updated_at")?,
        deleted_at_ms: row.maybe_number("deleted_at")?,
    })
}

fn moving(row: &Row) -> Result<Option<Moving>, StoreError> {
    if row.maybe_text("move_step")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Moving {
        to: Placed {
            ring: row.number("move_ring")?,
            replication_factor: row.number("move_factor")?,
            generation: row.number("move_generation")?,
        },
        step: row.spelled("move_step", Step::parse)?,
        prepared: row.number("move_prepared")?,
        since: row.number("move_since")?,
    }))
}
