//! All of the metadata store: every subject at once.

use super::{
    ArtifactStore, BindingStore, ChangeLog, LeaseStore, PlacementStore, SecretStore, StoreFacts, TenantStore,
    TokenStore,
};

/// The whole metadata store: tenants, placement, coordinator leases, plugin artifacts and bindings, API tokens, secrets, and the
/// log of changes to them. Object safe; whoever needs one subject should take that subject's trait.
pub trait Metadata:
    StoreFacts
    + ChangeLog
    + TenantStore
    + PlacementStore
    + LeaseStore
    + ArtifactStore
    + BindingStore
    + TokenStore
    + SecretStore
{
}

impl<T> Metadata for T where
    T: StoreFacts
        + ChangeLog
        + TenantStore
        + PlacementStore
        + LeaseStore
        + ArtifactStore
        + BindingStore
        + TokenStore
        + SecretStore
{
}
