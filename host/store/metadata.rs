//! What the cluster knows about itself: tenants, storage nodes, coordinators, plugin artifacts and bindings, API tokens, secrets.
//!
//! [`Metadata`] is a port that a program chooses at its start, so it is object safe. Every operation is atomic, durable when
//! its future is ready, and runs to its end once it has started: a caller that stops waiting does not stop it.
//!
//! Coordinators that share a store follow each other's changes: each change gets the next number of one [`Changes::revision`]
//! in the transaction that makes it, so that numbers become visible in their order.

use std::pin::Pin;

use tokio::sync::watch;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

mod memory;
mod migrations;
mod model;
mod operations;
mod postgres;
mod rules;
mod sql;
mod sqlite;

#[cfg(test)]
pub(crate) mod contract;

pub use memory::MemoryMetadata;
pub use model::{
    Artifact, ArtifactEntry, BindingOnRecord, Changed, Changes, Claim, CoordinatorOnRecord, Digest, Lease,
    NodeOnRecord, Placement, Secret, Slot, Token,
};
pub use postgres::{PostgresConfig, PostgresDurability, PostgresFacts, PostgresMetadata, examine};
pub use sqlite::SqliteMetadata;

/// Most rows of one page of a list.
pub const PAGE: u32 = 1000;
/// Most storage nodes: with 150 virtual nodes each, a ring of 150,000 points.
pub const NODES: usize = 1000;
/// Longest host name or address of a storage node, in bytes.
pub const HOST_BYTES: usize = 255;
/// Most plugin artifacts.
pub const ARTIFACTS: usize = 1000;
/// Largest plugin artifact, in bytes: that of an interpreted language.
pub const ARTIFACT_BYTES: usize = 32 << 20;
/// Longest name of a plugin, in bytes.
pub const PLUGIN_NAME_BYTES: usize = 128;
/// Longest version of a plugin, in bytes.
pub const PLUGIN_VERSION_BYTES: usize = 64;
/// Longest name of the file that a plugin came from, in bytes: that of any file system.
pub const PLUGIN_SOURCE_BYTES: usize = 255;
/// Most slots with a binding.
pub const BINDINGS: usize = 4096;
/// Largest record of a slot's binding, in bytes: the one in force and eight before it, each with 64 KiB of configuration in
/// hexadecimal digits, have 1.2 MB.
pub const BINDING_RECORD_BYTES: usize = 2 << 20;
/// Most secrets at a time.
pub const SECRETS: usize = 8;
/// Changes that are remembered one by one. Whoever has missed more reads everything anew, as at its start.
pub const CHANGES: u64 = 10_000;
/// Most coordinators on record, the recently dead included.
pub const COORDINATORS: usize = 1000;
/// How long a coordinator that is gone stays on record, in milliseconds: a day.
pub const COORDINATOR_KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// Longest address of a coordinator, in bytes: a host name and a port.
pub const ADDRESS_BYTES: usize = 300;
/// Longest version of a coordinator, in bytes.
pub const VERSION_BYTES: usize = 64;
/// Longest lease, in milliseconds: an hour. A node id is lost for as long when its holder dies.
pub const LEASE_MS: u64 = 60 * 60 * 1000;
/// Most API tokens.
pub const TOKENS: usize = 10_000;
/// Longest id of an API token, in bytes.
pub const TOKEN_ID_BYTES: usize = 64;
/// Longest label of an API token, in bytes.
pub const TOKEN_LABEL_BYTES: usize = 128;

/// An operation's result, when it comes.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Where metadata is kept. Any operation may fail with [`StoreError::Unavailable`] (a change then happened or not),
/// [`StoreError::Damaged`] or, where several coordinators share the store, [`StoreError::Conflict`] (nothing was changed); what
/// else each may fail with stands at it. Lists are pages: `after` is the last entry of the page before, `limit` is held within
/// 1..=[`PAGE`].
pub trait Metadata: Send + Sync + 'static {
    /// The store's time, Unix milliseconds. Coordinators hold their clocks against it.
    fn now_ms(&self) -> Answer<u64>;

    /// The number of the newest migration that the store has gone through.
    fn schema_version(&self) -> Answer<u64>;

    /// What has changed since revision `after`. At a start ask with `u64::MAX`, which tells the revision alone, then read
    /// everything, then go on from there.
    fn changes(&self, after: u64) -> Answer<Changes>;

    /// Marked as changed when there may be something new in [`Self::changes`]: after own changes at once, after those of others
    /// when the store tells them. A hint can be lost, a change cannot: look at times without one, too.
    fn hint(&self) -> watch::Receiver<u64>;

    /// Stores a new tenant, as version 1, and answers with it. [`StoreError::Exists`], also when it was deleted;
    /// [`StoreError::Refused`] outside the data model's bounds.
    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant>;

    /// One tenant, also a deleted one.
    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>>;

    /// Tenants by the bytes of their ids, without those that are deleted.
    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>>;

    /// Replaces a tenant that is still at `tenant.version`, and answers with it as it is now, one version later. When it was
    /// created stays, and whether it is deleted. [`StoreError::Conflict`] when it is at another version,
    /// [`StoreError::Missing`], also when it is deleted, [`StoreError::Refused`].
    fn update_tenant(&self, tenant: Tenant) -> Answer<Tenant>;

    /// Marks a tenant that is still at `version` as deleted, and answers with it as it is now; one that is deleted already stays
    /// as it is. [`StoreError::Conflict`] when it is at another version, [`StoreError::Missing`].
    fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64) -> Answer<Tenant>;

    /// Stores the storage nodes of a cluster that has none, all of them or, on an error, none. A cluster that has nodes stays as
    /// it is: of coordinators that start together one founds the cluster. [`StoreError::Exists`] when one is named twice;
    /// [`StoreError::Refused`] out of bounds or beyond [`NODES`].
    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()>;

    /// Stores a new storage node. [`StoreError::Exists`]; [`StoreError::Refused`] out of bounds or beyond [`NODES`].
    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// Stores a storage node, new or not; a store id on record stays. [`StoreError::Refused`] as above.
    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// Every storage node, by id, and the placement's epoch.
    fn placement(&self) -> Answer<Placement>;

    /// Every storage node, by id.
    fn nodes(&self) -> Answer<Vec<NodeOnRecord>> {
        let placement = self.placement();
        Box::pin(async move { Ok(placement.await?.nodes) })
    }

    /// Forgets a storage node. [`StoreError::Missing`].
    fn remove_node(&self, id: &NodeId) -> Answer<()>;

    /// Records the store id that a node has told, if none is on record, and answers with the one on record: another one
    /// than told means another, or a wiped, disk. [`StoreError::Missing`].
    fn record_store_id(&self, id: &NodeId, told: StoreId) -> Answer<StoreId>;

    /// Records another store id of a node in place of the one on record, `from`; nothing happens when it is on record already.
    /// [`StoreError::Missing`]; [`StoreError::Conflict`] when a third one is on record; [`StoreError::Refused`] for one that is
    /// another node's.
    fn replace_store_id(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()>;

    /// Takes or renews the lease of a node id: `lease_ms` (1..=[`LEASE_MS`]) from now, by the store's clock.
    /// [`StoreError::Conflict`], naming it, while another instance holds it; [`StoreError::Refused`] out of bounds or beyond
    /// [`COORDINATORS`].
    fn hold_lease(&self, claim: Claim, lease_ms: u64) -> Answer<Lease>;

    /// Ends the lease of an instance, so that another may take its node id. Nothing happens when it holds none.
    fn release_lease(&self, node_id: &NodeId, instance: [u8; 16]) -> Answer<()>;

    /// Coordinators, live and of the last day, by node id.
    fn coordinators(&self) -> Answer<Vec<CoordinatorOnRecord>>;

    /// Stores an artifact. One with the same digest is the same artifact: it stays as it is. [`StoreError::Refused`] out of
    /// bounds or beyond [`ARTIFACTS`]. That the digest is the bytes' own is for the caller to know.
    fn put_artifact(&self, artifact: Artifact) -> Answer<()>;

    /// One artifact with its bytes.
    fn artifact(&self, digest: Digest) -> Answer<Option<Artifact>>;

    /// Artifacts without their bytes, by digest.
    fn artifacts(&self, after: Option<Digest>, limit: u32) -> Answer<Vec<ArtifactEntry>>;

    /// Forgets an artifact. [`StoreError::Missing`]; [`StoreError::Refused`] while a slot's record names its digest.
    fn remove_artifact(&self, digest: Digest) -> Answer<()>;

    /// What the plugin platform has stored of its bindings: one record for each slot, by tenant and hook. At most
    /// [`BINDINGS`].
    fn binding_records(&self) -> Answer<Vec<BindingOnRecord>>;

    /// One slot's record.
    fn binding_record(&self, slot: &Slot) -> Answer<Option<BindingOnRecord>>;

    /// Stores a slot's record in place of the one of version `expected` (0: there is none yet), and answers with its version,
    /// which is greater than any the slot has had. A record names the artifacts that it needs by their digests in lower-case
    /// hexadecimal digits; `puts_in_force`, if given, has to be there. [`StoreError::Conflict`] when another version is there;
    /// [`StoreError::Missing`] when the artifact is not; [`StoreError::Refused`] for more than [`BINDING_RECORD_BYTES`] or
    /// beyond [`BINDINGS`].
    fn save_binding_record(
        &self,
        slot: &Slot,
        expected: u64,
        record: String,
        puts_in_force: Option<Digest>,
    ) -> Answer<u64>;

    /// Forgets a slot's record of version `expected`. Not an error when there is none. [`StoreError::Conflict`] when another
    /// version is there.
    fn remove_binding_record(&self, slot: &Slot, expected: u64) -> Answer<()>;

    /// Stores a new API token. [`StoreError::Exists`]; [`StoreError::Refused`] out of bounds or beyond [`TOKENS`].
    fn create_token(&self, token: Token) -> Answer<()>;

    /// One API token.
    fn token(&self, id: &str) -> Answer<Option<Token>>;

    /// API tokens, by id.
    fn tokens(&self, after: Option<&str>, limit: u32) -> Answer<Vec<Token>>;

    /// Forgets an API token. [`StoreError::Missing`].
    fn remove_token(&self, id: &str) -> Answer<()>;

    /// The cluster's secrets, newest first: what is on record, or, on the cluster's first start, `fresh` as the first one.
    /// Of several coordinators that start at once, all are answered with the same.
    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>>;

    /// Adds a secret, the newest from now on, and forgets the oldest beyond [`SECRETS`]. Answers as [`Self::secrets`] does.
    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>>;
}
