//! Tenants: looked up while serving, and on record.

use std::sync::Arc;

use super::{Answer, StoreError};
use crate::name::TenantId;
use crate::tenant::Tenant;

/// Tenants as they are looked up while serving. Implementations cache.
pub trait Tenants: Send + Sync + 'static {
    /// The tenant, if it is known without waiting.
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>>;

    /// The tenant, from the store if it is not cached; `Ok(None)` when there is none.
    fn tenant(&self, id: &TenantId) -> impl Future<Output = Result<Option<Arc<Tenant>>, StoreError>> + Send;
}

impl<T: Tenants> Tenants for Arc<T> {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        (**self).cached(id)
    }

    fn tenant(&self, id: &TenantId) -> impl Future<Output = Result<Option<Arc<Tenant>>, StoreError>> + Send {
        (**self).tenant(id)
    }
}

/// Tenants on record.
pub trait TenantStore: Send + Sync + 'static {
    /// Stores a new tenant as version 1, on the newest version of the ring, and returns it. [`StoreError::Exists`], also when a tenant of
    /// this id was deleted; [`StoreError::Refused`] outside the data model's limits.
    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant>;

    /// One tenant, deleted ones included.
    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>>;

    /// Tenants ordered by the bytes of their ids, without deleted ones.
    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>>;

    /// Replaces a tenant that is still at `tenant.version` and returns it as stored, one version later. Its creation time and
    /// deletion mark are not changed, nor where its records are, move or are to be. [`StoreError::Conflict`] when it is at another version,
    /// or when its replication factor would change while a placement change decides about it; [`StoreError::Missing`], also when
    /// it is deleted; [`StoreError::Refused`]. `fenced`: if the change [needs](crate::fence::needed) a fence, every storage node on record
    /// owes it from then on.
    fn update_tenant(&self, tenant: Tenant, fenced: bool) -> Answer<Tenant>;

    /// Marks a tenant that is still at `version` as deleted and returns it as stored; a deleted tenant is returned unchanged.
    /// Nothing of it moves any longer, and nothing of it is left over.
    /// [`StoreError::Conflict`] when it is at another version; [`StoreError::Missing`]. Every storage node on record owes the removal of
    /// its records from then on, and a fence if `fenced`.
    fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64, fenced: bool) -> Answer<Tenant>;
}
