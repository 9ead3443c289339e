//! Changes to tenants.

use std::sync::Arc;

use tokio::time::Instant;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;
use witan_kernel::scan::Removed;
use witan_kernel::tenant::Tenant;

use super::{Catalog, Refused, to_its_end};

/// A tenant that was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The tenant, as the metadata store keeps it for ever: its id is never given to another.
    pub tenant: Tenant,
    /// What was removed of its records, and what may be left.
    pub removed: Removed,
}

impl Catalog {
    /// Stores a new tenant. [`StoreError::Exists`] when there is one of this id.
    pub async fn create_tenant(&self, tenant: Tenant) -> Result<Tenant, Refused> {
        let _placing = self.placing.lock().await;
        self.enough_nodes(tenant.replication_factor).await?;
        let tenant = self.metadata.create_tenant(tenant).await?;
        self.cluster.tenant_changed(tenant.clone());
        Ok(tenant)
    }

    /// One tenant. A deleted one is none.
    pub async fn tenant(&self, id: &TenantId) -> Result<Tenant, Refused> {
        let found = self.metadata.tenant(id).await?.filter(|tenant| tenant.deleted_at_ms.is_none());
        Ok(found.ok_or_else(|| StoreError::Missing(format!("tenant {id}")))?)
    }

    /// Tenants by id, `limit` (1..=1000) of them after `after`.
    pub async fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Result<Vec<Tenant>, Refused> {
        Ok(self.metadata.tenants(after, limit).await?)
    }

    /// Changes what can change while data exists. With `version` 0 the change is applied to the
    /// newest version, and tried again when another change comes between.
    pub async fn update_tenant(
        &self,
        id: &TenantId,
        version: u64,
        change: impl Fn(&mut Tenant) + Send,
    ) -> Result<Tenant, Refused> {
        /// Each lost race means that somebody else's change went through.
        const TRIES: usize = 16;
        let mut last = None;
        for _ in 0..TRIES {
            let mut tenant = self.tenant(id).await?;
            if version != 0 && tenant.version != version {
                let why =
                    format!("tenant {id} is at version {}, not {version}; read it and decide again", tenant.version);
                return Err(StoreError::Conflict(why).into());
            }
            change(&mut tenant);
            match self.metadata.update_tenant(tenant).await {
                Ok(tenant) => {
                    self.cluster.tenant_changed(tenant.clone());
                    return Ok(tenant);
                }
                Err(error @ StoreError::Conflict(_)) if version == 0 => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.unwrap_or_else(|| StoreError::Conflict(format!("tenant {id} keeps changing"))).into())
    }

    /// Deletes a tenant: from now on requests do not find it, and its id is never given to another. With `version` 0 the
    /// newest version is deleted. One that is deleted already stays as it is. What it has stored is for the caller to remove.
    pub async fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64) -> Result<Tenant, Refused> {
        let version = match (version, self.metadata.tenant(id).await?) {
            (0, Some(newest)) => newest.version,
            (version, _) => version,
        };
        let deleted = self.metadata.delete_tenant(id, version, now_ms).await?;
        self.cluster.tenant_changed(deleted.clone());
        Ok(deleted)
    }

    /// Ends a tenant: it is deleted first, and its records are removed after that, as far as that can be done before `until`. Runs to
    /// its end whatever becomes of whoever waits for it. Repeating it removes what was left.
    ///
    /// # Errors
    /// As for [`Catalog::delete_tenant`]. Records that could not be removed are no error: see [`Ended::removed`].
    pub async fn end_tenant(
        self: &Arc<Self>,
        id: &TenantId,
        version: u64,
        now_ms: u64,
        until: Instant,
    ) -> Result<Ended, Refused> {
        let (catalog, id) = (Arc::clone(self), id.clone());
        to_its_end(async move {
            let tenant = catalog.delete_tenant(&id, version, now_ms).await?;
            tracing::info!(tenant = %id, "a tenant is deleted: its records are being removed");
            let removed = catalog.cluster.remove_records(&id, until).await;
            Ok(Ended { tenant, removed })
        })
        .await
    }
}
