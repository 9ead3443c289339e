//! Tenants: creation, changes and deletion.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;
use witan_kernel::scan::Removed;
use witan_kernel::tenant::Tenant;

use super::{Catalog, Refused, Turn, to_its_end};

/// A tenant that was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The tenant, as the metadata store keeps it forever: its id is never reused.
    pub tenant: Tenant,
    /// How many of its records were removed, and the nodes on which some may remain.
    pub removed: Removed,
}

impl Catalog {
    /// Stores a new tenant. [`StoreError::Exists`] when the id is taken.
    pub async fn create_tenant(&self, _turn: Turn, tenant: Tenant) -> Result<Tenant, Refused> {
        tenant.id.check_new()?;
        let _placing = self.placing.lock().await;
        self.enough_nodes(tenant.replication_factor).await?;
        let tenant = self.metadata.create_tenant(tenant).await?;
        self.cluster.tenant_changed(tenant.clone());
        Ok(tenant)
    }

    /// A tenant by id; [`StoreError::Missing`] when it does not exist or is deleted.
    pub async fn tenant(&self, id: &TenantId) -> Result<Tenant, Refused> {
        let found = self.metadata.tenant(id).await?.filter(|tenant| tenant.deleted_at_ms.is_none());
        Ok(found.ok_or_else(|| StoreError::Missing(format!("tenant {id}")))?)
    }

    /// Up to `limit` (1..=1000) tenants with ids after `after`, ordered by id.
    pub async fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Result<Vec<Tenant>, Refused> {
        Ok(self.metadata.tenants(after, limit).await?)
    }

    /// Changes settings that may change while data exists. With `version` 0 the change is applied to the newest version, and
    /// retried when another change interferes.
    pub async fn update_tenant(
        &self,
        _turn: Turn,
        id: &TenantId,
        version: u64,
        change: impl Fn(&mut Tenant) + Send,
    ) -> Result<Tenant, Refused> {
        /// Attempts before giving up; each lost race means that another change succeeded.
        const TRIES: usize = 16;
        let fenced = self.fenced();
        let mut last = None;
        for _ in 0..TRIES {
            let mut tenant = self.tenant(id).await?;
            if version != 0 && tenant.version != version {
                let why =
                    format!("tenant {id} is at version {}, not {version}; read it again and retry", tenant.version);
                return Err(StoreError::Conflict(why).into());
            }
            change(&mut tenant);
            match self.metadata.update_tenant(tenant, fenced).await {
                Ok(tenant) => {
                    self.cluster.tenant_changed(tenant.clone());
                    // Also those of an earlier change: this one may repeat it, and so change nothing.
                    self.fences_of(&tenant).await?;
                    return Ok(tenant);
                }
                Err(error @ StoreError::Conflict(_)) if version == 0 => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.unwrap_or_else(|| StoreError::Conflict(format!("tenant {id} keeps changing"))).into())
    }

    /// Deletes a tenant: from now on requests do not find it, and its id is never reused. With `version` 0 the newest version is
    /// deleted. A tenant that is deleted already is left as it is. The caller removes the tenant's records.
    pub async fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64) -> Result<Tenant, Refused> {
        let version = match (version, self.metadata.tenant(id).await?) {
            (0, Some(newest)) => newest.version,
            (version, _) => version,
        };
        let deleted = self.metadata.delete_tenant(id, version, now_ms, self.fenced()).await?;
        self.cluster.tenant_changed(deleted.clone());
        Ok(deleted)
    }

    /// Deletes a tenant, then removes its records as far as possible before `until`. Runs to completion even if the caller is
    /// dropped. Repeating it removes the remaining records.
    ///
    /// # Errors
    /// As for [`Catalog::delete_tenant`]. Records that could not be removed are not an error: see [`Ended::removed`].
    pub async fn end_tenant(
        self: &Arc<Self>,
        turn: Turn,
        id: &TenantId,
        version: u64,
        now_ms: u64,
        until: Instant,
    ) -> Result<Ended, Refused> {
        let (catalog, id) = (Arc::clone(self), id.clone());
        to_its_end(turn, async move {
            let tenant = catalog.delete_tenant(&id, version, now_ms).await?;
            tracing::info!(tenant = %id, "tenant deleted; removing its records");
            // Before the records are removed: a coordinator that does not know of the deletion would write others.
            let lacking = match timeout_at(until, catalog.fences_of(&tenant)).await {
                Ok(Err(Refused::FencesOwed { lacking, .. })) => lacking,
                Ok(Err(error)) => catalog.every_node(&error.to_string()),
                // Past the deadline, no node is asked to remove records either, and each is reported.
                Ok(Ok(())) | Err(_) => BTreeMap::new(),
            };
            let mut removed = catalog.remove_records(&id, None, until).await;
            for (node, why) in lacking {
                let why = format!("coordinators that do not know of the deletion may still write to it: {why}");
                removed.incomplete.entry(node).or_insert(why);
            }
            Ok(Ended { tenant, removed })
        })
        .await
    }
}
