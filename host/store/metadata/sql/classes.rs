//! Who may use which class of limits of plugins.

use witan_kernel::class::Class;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, ClassGrant, ClassStore, StoreError, TENANT_COMPILATIONS, next_compilation, rules};

use super::db::{Db, Value};
use super::row::{Row, damaged};
use super::{Driver, SqlMetadata};

impl<D: Driver> ClassStore for SqlMetadata<D> {
    fn grant_class(&self, grant: ClassGrant) -> Answer<()> {
        self.change(|db| Box::pin(add(db, grant)))
    }

    fn revoke_class(&self, tenant: &TenantId, class: Class) -> Answer<()> {
        let tenant = tenant.clone();
        self.change(move |db| Box::pin(remove(db, tenant, class)))
    }

    fn class_grants(&self) -> Answer<Vec<ClassGrant>> {
        self.read(|db| Box::pin(all(db)))
    }

    fn count_compilation(&self, tenant: &TenantId) -> Answer<Option<u64>> {
        let tenant = tenant.clone();
        self.change(move |db| Box::pin(count(db, tenant)))
    }
}

async fn add(db: &mut Db, grant: ClassGrant) -> Result<(), StoreError> {
    rules::granted_class(grant.class)?;
    let ClassGrant { tenant, class, granted_at_ms } = grant;
    let is_there = "SELECT 1 FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL";
    if db.row(is_there, &[Value::Text(tenant.as_str())]).await?.is_none() {
        return Err(rules::no_tenant(&tenant));
    }
    db.execute(
        "INSERT INTO plugin_class_grants (tenant_id, class, granted_at) VALUES ($1, $2, $3)
         ON CONFLICT (tenant_id, class) DO NOTHING",
        &[Value::Text(tenant.as_str()), Value::Text(class.as_str()), Value::Number(granted_at_ms)],
    )
    .await
    .map(drop)
}

async fn remove(db: &mut Db, tenant: TenantId, class: Class) -> Result<(), StoreError> {
    rules::granted_class(class)?;
    let sql = "DELETE FROM plugin_class_grants WHERE tenant_id = $1 AND class = $2";
    db.execute(sql, &[Value::Text(tenant.as_str()), Value::Text(class.as_str())]).await.map(drop)
}

async fn all(db: &mut Db) -> Result<Vec<ClassGrant>, StoreError> {
    let all = "SELECT tenant_id, class, granted_at FROM plugin_class_grants ORDER BY tenant_id, class";
    db.rows(all, &[]).await?.iter().map(grant).collect()
}

async fn count(db: &mut Db, tenant: TenantId) -> Result<Option<u64>, StoreError> {
    let now_ms = db.now_ms().await?;
    let sql = "SELECT place, began_at FROM plugin_compilations WHERE tenant_id = $1 ORDER BY began_at";
    let rows = db.rows(sql, &[Value::Text(tenant.as_str())]).await?;
    let began = rows.iter().map(|row| row.number("began_at")).collect::<Result<Vec<u64>, _>>()?;
    if let Some(later) = next_compilation(&began, now_ms) {
        return Ok(Some(later));
    }
    // There are few places, of which the one is taken again that was taken first.
    let place = match rows.first() {
        Some(first) if rows.len() >= TENANT_COMPILATIONS => first.number("place")?,
        _ => rows.len() as u64,
    };
    db.execute(
        "INSERT INTO plugin_compilations (tenant_id, place, began_at) VALUES ($1, $2, $3)
         ON CONFLICT (tenant_id, place) DO UPDATE SET began_at = excluded.began_at",
        &[Value::Text(tenant.as_str()), Value::Number(place), Value::Number(now_ms)],
    )
    .await?;
    Ok(None)
}

/// Takes every class from a deleted tenant.
pub(super) async fn forget_of_tenant(db: &mut Db, tenant: &TenantId) -> Result<(), StoreError> {
    for sql in
        ["DELETE FROM plugin_class_grants WHERE tenant_id = $1", "DELETE FROM plugin_compilations WHERE tenant_id = $1"]
    {
        db.execute(sql, &[Value::Text(tenant.as_str())]).await?;
    }
    Ok(())
}

fn grant(row: &Row) -> Result<ClassGrant, StoreError> {
    let tenant = TenantId::new(row.text("tenant_id")?);
    Ok(ClassGrant {
        tenant: tenant.map_err(|error| damaged("the tenant of a class", &error.to_string()))?,
        class: row.spelled("class", Class::parse)?,
        granted_at_ms: row.number("granted_at")?,
    })
}
