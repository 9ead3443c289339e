//! The plugin host, as the control plane needs it, and the store that the plugin host needs.

use bytes::Bytes;

use super::{Answer, Artifact, BindingOnRecord, Digest, Migration, PlacementChange, SigningKey, Slot, StoreError};
#[cfg(doc)]
use super::{ArtifactStore, MigrationStore};
use crate::name::TenantId;

/// Where the plugin host keeps components and bindings, for one coordinator or for several. Called on a thread of the plugin
/// host, never on one of a runtime: an implementation may block (say, in `tokio::runtime::Handle::block_on`). Several threads call at
/// once, but never for the same slot.
///
/// A store remembers which version of each binding [`PluginStore::binding`] last returned, or was last saved through it. A change fails
/// with [`StoreError::Conflict`] when another coordinator has changed the binding since.
pub trait PluginStore: Send + Sync + 'static {
    /// Whether other coordinators change it too.
    fn is_shared(&self) -> bool;

    /// Every component, without its bytes: once for each of its owners.
    fn components(&self) -> Result<Vec<Artifact>, StoreError>;

    /// A component's bytes. `None` when it is not stored, or was removed.
    fn component(&self, digest: Digest) -> Result<Option<Bytes>, StoreError>;

    /// Stores a component for its owner, as [`ArtifactStore::put_artifact`] does. Durable when it returns.
    fn keep(&self, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError>;

    /// Takes a component from its owner, and removes it with the last one. Not an error when the owner does not have it;
    /// [`StoreError::Refused`] when a binding needs it.
    fn forget(&self, owner: Option<&TenantId>, digest: Digest) -> Result<(), StoreError>;

    /// The keys with which an owner's plugins may be signed.
    fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError>;

    /// Every binding. None of them counts as read: a thread may be about to change one of them, from an earlier version.
    fn bindings(&self) -> Result<Vec<BindingOnRecord>, StoreError>;

    /// One binding.
    fn binding(&self, slot: &Slot) -> Result<Option<BindingOnRecord>, StoreError>;

    /// Replaces a slot's binding. `record` is the plugin host's text, and names the components it needs by their digests in
    /// lower-case hexadecimal digits. Durable when it returns. [`StoreError::Conflict`]; [`StoreError::Missing`] when the
    /// component `puts_in_force`, if there is one, is not stored, or belongs to other tenants alone.
    fn save(&self, slot: &Slot, record: String, puts_in_force: Option<Digest>) -> Result<(), StoreError>;

    /// The same, and records a placement change in the same transaction: as [`MigrationStore::change_placement`], with its errors.
    fn save_and_move(
        &self,
        slot: &Slot,
        record: String,
        puts_in_force: Option<Digest>,
        change: PlacementChange,
        now_ms: u64,
    ) -> Result<Migration, StoreError>;

    /// Removes a slot's binding. Not an error when there is none. [`StoreError::Conflict`].
    fn remove(&self, slot: &Slot) -> Result<(), StoreError>;
}

/// The plugin host, as the control plane needs it.
pub trait PluginHost: Send + Sync + 'static {
    /// Puts in force what other coordinators have changed: the known components, and the bindings of `slots` (`None`: all). What
    /// could not be read stays as it is, with an error.
    fn refresh(&self, slots: Option<Vec<Slot>>) -> Answer<()>;
}
