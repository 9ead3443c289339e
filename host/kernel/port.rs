//! Ports: what the rest of Witan needs from clocks, networks, databases and the plugin host, as traits over plain types.
//!
//! Each port has an implementation for production and one in memory (`witan-memory`), and both pass the same contract tests.
//! Nothing here does I/O or needs a runtime; futures are boxed ([`Answer`]) where a port must be object safe.
//!
//! 1. [`Clock`], [`Randomness`], [`Replicas`]: time, random bytes and the storage nodes.
//! 2. [`IdempotencyStore`]: where idempotency records are kept.
//! 3. [`Tenants`]: tenants as they are looked up while serving.
//! 4. [`Metadata`]: what the cluster knows about itself, split by subject. Code that needs one subject takes that trait alone.
//! 5. [`PluginHost`] and [`PluginStore`]: the plugin host as the control plane sees it, and the store of its components and bindings.
//! 6. [`rules`]: limits and error texts that every implementation shares; [`stores`]: which stores of nodes may be
//!    used; [`moves`]: what placement changes make of what is on record; [`owners`]: whose a plugin is.

mod answer;
mod artifacts;
mod bindings;
mod changes;
mod classes;
mod clock;
mod error;
mod fences;
mod idempotency;
mod leases;
mod metadata;
mod migrations;
pub mod moves;
pub mod owners;
mod placement;
mod plugins;
mod pushes;
mod replicas;
pub mod rules;
mod secrets;
mod signing;
pub mod stores;
mod tenants;
mod tokens;
pub mod upkeep;

pub use crate::durability::Durability;
pub use answer::{Answer, PAGE};
pub use artifacts::{
    ARTIFACT_BYTES, ARTIFACTS, Artifact, ArtifactStore, Component, Digest, PLUGIN_CLASS_REASON_BYTES,
    PLUGIN_NAME_BYTES, PLUGIN_SOURCE_BYTES, PLUGIN_VERSION_BYTES, Source,
};
pub use bindings::{
    BINDING_RECORD_BYTES, BINDINGS, BindingChange, BindingOnRecord, BindingStore, CandidateReport, HISTORY_ENTRIES,
    HISTORY_ENTRY_BYTES, HistoryEntry, REPORT_BYTES, REPORTS, REPORTS_KEPT_MS, RecordText, Slot,
};
pub use changes::{CHANGES, ChangeLog, Changed, Changes, Hint};
pub use classes::{ClassGrant, ClassStore, TENANT_COMPILATIONS, TENANT_COMPILATIONS_MS, next_compilation};
pub use clock::{AnyClock, Clock, Randomness, StoreTime, until};
pub use error::StoreError;
pub use fences::{FenceStore, Fencing, OWED, OwedFence, Owing};
pub use idempotency::{IdempotencyStore, SmallRecords};
pub use leases::{
    ADDRESS_BYTES, CAPABILITIES_BYTES, COORDINATOR_KEPT_MS, COORDINATORS, Claim, CoordinatorOnRecord, LEASE_MS, Lease,
    LeaseStore, VERSION_BYTES,
};
pub use metadata::{Metadata, StoreFacts};
pub use migrations::{
    HOOK_FAULTS, LEFTOVERS, Leftover, MIGRATION_TEXT_BYTES, MIGRATIONS, Migration, MigrationProgress, MigrationStatus,
    MigrationStore, MoveTenant, PlacementChange, Published,
};
pub use placement::{
    Commit, HOST_BYTES, Met, NODES, NodeOnRecord, NodeStatus, Placement, PlacementStore, RingOnRecord, StorageNode,
    StoreOnRecord, StoreState,
};
pub use plugins::{PluginHost, PluginStore, Saved};
pub use pushes::{
    Beginning, PUSH_KEPT_MS, PUSH_REASON_BYTES, PUSH_STEP_MS, PUSHES, PushBegun, PushOnRecord, PushState, PushStore,
    PushTable, beginning,
};
pub use replicas::{Collect, Replicas, Reply};
pub use secrets::{SECRETS, Secret, SecretStore, Secrets};
pub use signing::{SIGNING_KEY_ID_BYTES, SIGNING_KEYS, SigningKey, SigningKeyStore};
pub use tenants::{TenantStore, Tenants};
pub use tokens::{TOKEN_ID_BYTES, TOKEN_LABEL_BYTES, TOKENS, Token, TokenStore};
pub use upkeep::{
    Claimant, DUTIES, Duties, Duty, DutyKind, DutyOnRecord, PassEnd, UPKEEP_CLAIM_MS, UPKEEP_CURSOR_BYTES,
    UPKEEP_RANGE_BYTES, UpkeepClaims,
};
