//! Tenants.

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair, Tenant};

use super::columns::{column, number, spelled, whole};
use super::failed;
use crate::metadata::rules;

pub(super) async fn create(db: &mut SqliteConnection, tenant: Tenant) -> Result<Tenant, StoreError> {
    rules::tenant(&tenant)?;
    let tenant = Tenant { version: 1, ..tenant };
    let created = sqlx::query(
        "INSERT INTO tenants (tenant_id, replication_factor, conflict_mode, ordering, read_repair, default_level,
            minimum_level, idempotency_outage, created_at, updated_at, version)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO NOTHING",
    )
    .bind(tenant.id.as_str())
    .bind(i64::from(tenant.replication_factor))
    .bind(tenant.conflict_mode.as_str())
    .bind(tenant.ordering.as_str())
    .bind(tenant.read_repair.as_str())
    .bind(tenant.default_level.as_str())
    .bind(tenant.minimum_level.as_str())
    .bind(tenant.idempotency_outage.as_str())
    .bind(whole(tenant.created_at_ms))
    .bind(whole(tenant.updated_at_ms))
    .execute(db)
    .await
    .map_err(failed)?;
    if created.rows_affected() == 0 {
        return Err(rules::tenant_exists(&tenant.id));
    }
    Ok(tenant)
}

pub(super) async fn get(db: &mut SqliteConnection, id: TenantId) -> Result<Option<Tenant>, StoreError> {
    let row = sqlx::query("SELECT * FROM tenants WHERE tenant_id = ?").bind(id.as_str()).fetch_optional(db).await;
    row.map_err(failed)?.as_ref().map(tenant).transpose()
}

pub(super) async fn list(
    db: &mut SqliteConnection,
    after: Option<TenantId>,
    limit: u32,
) -> Result<Vec<Tenant>, StoreError> {
    // No tenant has the id '', so that it stands before all.
    let rows = sqlx::query("SELECT * FROM tenants WHERE tenant_id > ? ORDER BY tenant_id LIMIT ?")
        .bind(after.as_ref().map_or("", TenantId::as_str))
        .bind(rules::page(limit))
        .fetch_all(db)
        .await
        .map_err(failed)?;
    rows.iter().map(tenant).collect()
}

pub(super) async fn update(db: &mut SqliteConnection, tenant: Tenant) -> Result<Tenant, StoreError> {
    rules::tenant(&tenant)?;
    let stored = get(db, tenant.id.clone()).await?.ok_or_else(|| rules::no_tenant(&tenant.id))?;
    if stored.version != tenant.version {
        return Err(rules::lost_update(&tenant, stored.version));
    }
    let tenant = Tenant { version: stored.version + 1, created_at_ms: stored.created_at_ms, ..tenant };
    sqlx::query(
        "UPDATE tenants SET replication_factor = ?, conflict_mode = ?, ordering = ?, read_repair = ?, default_level = ?,
            minimum_level = ?, idempotency_outage = ?, updated_at = ?, version = ?
         WHERE tenant_id = ?",
    )
    .bind(i64::from(tenant.replication_factor))
    .bind(tenant.conflict_mode.as_str())
    .bind(tenant.ordering.as_str())
    .bind(tenant.read_repair.as_str())
    .bind(tenant.default_level.as_str())
    .bind(tenant.minimum_level.as_str())
    .bind(tenant.idempotency_outage.as_str())
    .bind(whole(tenant.updated_at_ms))
    .bind(whole(tenant.version))
    .bind(tenant.id.as_str())
    .execute(db)
    .await
    .map_err(failed)?;
    Ok(tenant)
}

fn tenant(row: &SqliteRow) -> Result<Tenant, StoreError> {
    let level = |name| spelled(row, name, |text| Level::parse(name, text).ok().flatten());
    Ok(Tenant {
        id: TenantId::new(column::<String>(row, "tenant_id")?)
            .map_err(|error| StoreError::Damaged(error.to_string()))?,
        replication_factor: number(row, "replication_factor")?,
        conflict_mode: spelled(row, "conflict_mode", |text| ConflictMode::parse(text).ok())?,
        ordering: spelled(row, "ordering", |text| Ordering::parse(text).ok())?,
        read_repair: spelled(row, "read_repair", |text| ReadRepair::parse(text).ok())?,
        default_level: level("default_level")?,
        minimum_level: level("minimum_level")?,
        idempotency_outage: spelled(row, "idempotency_outage", |text| IdempotencyOutage::parse(text).ok())?,
        version: number(row, "version")?,
        created_at_ms: number(row, "created_at")?,
        updated_at_ms: number(row, "updated_at")?,
    })
}
