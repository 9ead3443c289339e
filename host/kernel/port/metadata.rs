//! All of the metadata store: its facts, and every subject at once.

use super::{
    Answer, ArtifactStore, BindingStore, ChangeLog, ClassStore, FenceStore, LeaseStore, MigrationStore, PlacementStore,
    PushStore, SecretStore, SigningKeyStore, TenantStore, TokenStore, UpkeepClaims,
};

/// Facts about the store itself.
pub trait StoreFacts: Send + Sync + 'static {
    /// The store's time, Unix milliseconds. Coordinators compare their clocks with it.
    fn now_ms(&self) -> Answer<u64>;

    /// The number of the newest migration applied to the store.
    fn schema_version(&self) -> Answer<u64>;
}

/// The whole metadata store: tenants, placement and its changes, coordinator leases, plugin artifacts and bindings, API tokens, secrets,
/// signing keys, grants of classes, pushes, claims of upkeep, and the log of changes to all but the latter four. Object safe; whoever needs
/// one subject should take that subject's trait.
pub trait Metadata:
    StoreFacts
    + ChangeLog
    + TenantStore
    + PlacementStore
    + MigrationStore
    + FenceStore
    + LeaseStore
    + ArtifactStore
    + BindingStore
    + TokenStore
    + SecretStore
    + SigningKeyStore
    + ClassStore
    + PushStore
    + UpkeepClaims
{
}

impl<T> Metadata for T where
    T: StoreFacts
        + ChangeLog
        + TenantStore
        + PlacementStore
        + MigrationStore
        + FenceStore
        + LeaseStore
        + ArtifactStore
        + BindingStore
        + TokenStore
        + SecretStore
        + SigningKeyStore
        + ClassStore
        + ClassStore
        + PushStore
        + UpkeepClaims
{
}
