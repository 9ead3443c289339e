//! The plugin host, as the control plane needs it, and the store that the plugin host needs.

use bytes::Bytes;

use super::{
    Answer, Artifact, BindingOnRecord, CandidateReport, Digest, HistoryEntry, Migration, PlacementChange, PushBegun,
    PushOnRecord, RecordText, SigningKey, Slot, StoreError,
};
#[cfg(doc)]
use super::{ArtifactStore, ClassStore, MigrationStore, PushStore};
use crate::class::Class;
use crate::name::{NodeId, TenantId};

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

    /// Whether a tenant has a class.
    fn has_class(&self, tenant: &TenantId, class: Class) -> Result<bool, StoreError>;

    /// Counts a compilation for a tenant, as [`ClassStore::count_compilation`] does.
    fn count_compilation(&self, tenant: &TenantId) -> Result<Option<u64>, StoreError>;

    /// Records a push that begins, as [`PushStore::begin_push`] does.
    fn begin_push(&self, push: PushOnRecord) -> Result<PushBegun, StoreError>;

    /// Records how far a push has come, as [`PushStore::step_push`] does.
    fn step_push(&self, push: PushOnRecord) -> Result<bool, StoreError>;

    /// A push, as [`PushStore::push`] shows it.
    fn push(&self, owner: Option<&TenantId>, digest: Digest) -> Result<Option<PushOnRecord>, StoreError>;

    /// Gives up what this coordinator was working on, as [`PushStore::abandon_pushes`] does.
    fn abandon_pushes(&self, worker: &NodeId) -> Result<(), StoreError>;

    /// Every binding. None of them counts as read: a thread may be about to change one of them, from an earlier version.
    fn bindings(&self) -> Result<Vec<BindingOnRecord>, StoreError>;

    /// One binding.
    fn binding(&self, slot: &Slot) -> Result<Option<BindingOnRecord>, StoreError>;

    /// Replaces or removes a slot's binding. Removing what is not there is no error. Durable when it returns. [`StoreError::Conflict`];
    /// [`StoreError::Missing`] when the component that it puts in force, if there is one, is not stored, or belongs to
    /// other tenants alone.
    fn save(&self, slot: &Slot, saved: Saved) -> Result<(), StoreError>;

    /// The same, and records a placement change in the same transaction: as [`MigrationStore::change_placement`], with its errors.
    fn save_and_move(
        &self,
        slot: &Slot,
        saved: Saved,
        change: PlacementChange,
        now_ms: u64,
    ) -> Result<Migration, StoreError>;

    /// A slot's history, the newest entry first.
    fn history(&self, slot: &Slot) -> Result<Vec<HistoryEntry>, StoreError>;

    /// Keeps what this coordinator has seen of a candidate, for a day.
    fn report(&self, report: CandidateReport) -> Result<(), StoreError>;

    /// What all coordinators have seen of a candidate since `since_ms`.
    fn reports(&self, slot: &Slot, number: u64, since_ms: u64) -> Result<Vec<CandidateReport>, StoreError>;

    /// Tells every coordinator to load a version that the slot is to have next; `None`: none is.
    fn prepare(&self, slot: &Slot, version: Option<RecordText>) -> Result<(), StoreError>;

    /// The version that a slot is to have next.
    fn prepared(&self, slot: &Slot) -> Result<Option<RecordText>, StoreError>;

    /// The coordinators that hold a lease, each with whether it knows candidates. Empty while there are no others.
    fn coordinators(&self) -> Result<Vec<(NodeId, bool)>, StoreError>;

    /// From now on, programs that do not know candidates refuse to start on this store. [`StoreError::Conflict`] while a live coordinator
    /// does not know them.
    fn require_candidates(&self) -> Result<(), StoreError>;
}

/// What is saved of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The plugin host's text, which names the components it needs by their digests in lower-case hexadecimal digits; `None`: nothing is
    /// bound.
    pub record: Option<RecordText>,
    /// The component that it puts in force.
    pub puts_in_force: Option<Digest>,
    /// What the slot's history says of it.
    pub entry: Option<String>,
}

impl Saved {
    /// A record, without an entry in the slot's history.
    pub fn of(record: String, puts_in_force: Option<Digest>) -> Self {
        Self { record: Some(RecordText(record)), puts_in_force, entry: None }
    }
}

/// The plugin host, as the control plane needs it.
pub trait PluginHost: Send + Sync + 'static {
    /// Puts in force what other coordinators have changed: the known components, and the bindings of `slots` (`None`: all). What
    /// could not be read stays as it is, with an error.
    fn refresh(&self, slots: Option<Vec<Slot>>) -> Answer<()>;

    /// Reports what candidates have done on this coordinator, and makes what is due for them by what all have reported. True if a binding
    /// was changed.
    fn tend(&self) -> Answer<bool>;
}
