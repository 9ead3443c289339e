//! What the cluster knows about itself: tenants, storage nodes, plugin artifacts and bindings, secrets.
//!
//! [`Metadata`] is a port that a program chooses at its start, so it is object safe. Every operation is atomic, durable when
//! its future is ready, and runs to its end once it has started: a caller that stops waiting does not stop it.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

mod memory;
mod rules;
mod sqlite;

#[cfg(test)]
pub(crate) mod contract;

pub use memory::MemoryMetadata;
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
/// Largest configuration of a binding, in bytes.
pub const CONFIGURATION_BYTES: usize = 64 << 10;
/// Bindings of one slot that are remembered; older ones are forgotten, and cannot be rolled back to.
pub const HISTORY: usize = 64;
/// Most secrets at a time.
pub const SECRETS: usize = 8;

/// An operation's result, when it comes.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Where metadata is kept. Any operation may fail with [`StoreError::Unavailable`] (a change then happened or not) or
/// [`StoreError::Damaged`]; what else each may fail with stands at it. Lists are pages: `after` is the last entry of the page
/// before, `limit` is held within 1..=[`PAGE`].
pub trait Metadata: Send + Sync + 'static {
    /// The store's time, Unix milliseconds. Coordinators hold their clocks against it.
    fn now_ms(&self) -> Answer<u64>;

    /// The number of the newest migration that the store has gone through.
    fn schema_version(&self) -> Answer<u64>;

    /// Stores a new tenant, as version 1, and answers with it. [`StoreError::Exists`]; [`StoreError::Refused`] outside the
    /// data model's bounds.
    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant>;

    /// One tenant.
    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>>;

    /// Tenants by the bytes of their ids.
    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>>;

    /// Replaces a tenant that is still at `tenant.version`, and answers with it as it is now, one version later. What was
    /// chosen when it was created (`created_at_ms`) stays. [`StoreError::Conflict`] when it is at another version,
    /// [`StoreError::Missing`], [`StoreError::Refused`].
    fn update_tenant(&self, tenant: Tenant) -> Answer<Tenant>;

    /// Stores a new storage node. [`StoreError::Exists`]; [`StoreError::Refused`] out of bounds or beyond [`NODES`].
    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// Stores a storage node, new or not; a store id on record stays. [`StoreError::Refused`] as above.
    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// Every storage node, by id.
    fn nodes(&self) -> Answer<Vec<NodeOnRecord>>;

    /// Forgets a storage node. [`StoreError::Missing`].
    fn remove_node(&self, id: &NodeId) -> Answer<()>;

    /// Records the store id that a node has told, if none is on record, and answers with the one on record: another one
    /// than told means another, or a wiped, disk. [`StoreError::Missing`].
    fn record_store_id(&self, id: &NodeId, told: StoreId) -> Answer<StoreId>;

    /// Stores an artifact. One with the same digest is the same artifact: it stays as it is. [`StoreError::Refused`] out of
    /// bounds or beyond [`ARTIFACTS`]. That the digest is the bytes' own is for the caller to know.
    fn put_artifact(&self, artifact: Artifact) -> Answer<()>;

    /// One artifact with its bytes.
    fn artifact(&self, digest: Digest) -> Answer<Option<Artifact>>;

    /// Artifacts without their bytes, by digest.
    fn artifacts(&self, after: Option<Digest>, limit: u32) -> Answer<Vec<ArtifactEntry>>;

    /// Forgets an artifact, and bindings of the past that name it. [`StoreError::Missing`]; [`StoreError::Conflict`] while a
    /// binding in force, or the one before it, names it.
    fn remove_artifact(&self, digest: Digest) -> Answer<()>;

    /// Puts a binding in force, under the next number of its slot. [`StoreError::Missing`] without its artifact,
    /// [`StoreError::Conflict`] for an artifact of another hook, [`StoreError::Refused`] out of bounds.
    fn bind(&self, terms: Terms) -> Answer<Binding>;

    /// Puts the binding before number `from` back in force, and answers with it; `None`: nothing is bound any more.
    /// [`StoreError::Conflict`] when another number than `from` is in force; [`StoreError::Missing`] when nothing is, or
    /// when the one before has been forgotten.
    fn rollback(&self, slot: &Slot, from: u64) -> Answer<Option<Binding>>;

    /// The bindings in force, one for each slot that has one, by tenant and hook.
    fn bindings(&self, after: Option<&Slot>, limit: u32) -> Answer<Vec<Binding>>;

    /// One binding, in force or not.
    fn binding(&self, slot: &Slot, number: u64) -> Answer<Option<Binding>>;

    /// The bindings that a slot has had, newest first, at most [`HISTORY`].
    fn binding_history(&self, slot: &Slot) -> Answer<Vec<Binding>>;

    /// What the plugin platform has stored of its bindings: one text for each slot, by tenant and hook.
    fn binding_records(&self) -> Answer<Vec<String>>;

    /// Stores a slot's text in place of the one before.
    fn save_binding_record(&self, slot: &Slot, record: String) -> Answer<()>;

    /// Forgets a slot's text. Not an error when there is none.
    fn remove_binding_record(&self, slot: &Slot) -> Answer<()>;

    /// The cluster's secrets, newest first: what is on record, or, on the cluster's first start, `fresh` as the first one.
    /// Of several coordinators that start at once, all are answered with the same.
    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>>;

    /// Adds a secret, the newest from now on, and forgets the oldest beyond [`SECRETS`]. Answers as [`Self::secrets`] does.
    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>>;
}

/// A storage node and what the store knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOnRecord {
    /// The node.
    pub node: StorageNode,
    /// The store id that it told first; `None` before its first handshake.
    pub store_id: Option<StoreId>,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// Unix time, milliseconds.
    pub updated_at_ms: u64,
}

/// An artifact's identity: the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A plugin's component.
#[derive(Clone, PartialEq, Eq)]
pub struct Artifact {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// What its manifest calls it, 1..=128 bytes.
    pub name: String,
    /// Its manifest's version, 1..=64 bytes.
    pub version: String,
    /// Where it decides.
    pub hook: Hook,
    /// The component, 1 byte to 32 MiB.
    pub bytes: Bytes,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact")
            .field("digest", &self.digest)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("hook", &self.hook)
            .field("bytes", &self.bytes.len())
            .field("created_at_ms", &self.created_at_ms)
            .finish()
    }
}

/// An artifact without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactEntry {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// What its manifest calls it.
    pub name: String,
    /// Its manifest's version.
    pub version: String,
    /// Where it decides.
    pub hook: Hook,
    /// How many bytes it has.
    pub size: u64,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
}

/// Where a plugin is bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slot {
    /// For one tenant; `None` is the default for all.
    pub tenant: Option<TenantId>,
    /// Where it decides.
    pub hook: Hook,
}

/// What answers when a bound plugin fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFault {
    /// The native rule.
    Native,
    /// The request fails.
    Fail,
}

impl OnFault {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fail => "fail",
        }
    }

    /// Reads the API's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Native, Self::Fail].into_iter().find(|choice| choice.as_str() == text)
    }
}

/// How a bound plugin takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It decides.
    Active,
    /// It is asked beside [`Binding::previous`], and differing answers are counted.
    Shadow,
    /// It decides for so many of 100 keys, [`Binding::previous`] for the others.
    Canary {
        /// 0..=100.
        percent: u8,
    },
}

/// What is bound, and how. Its configuration may hold a secret of the tenant's, and is not shown in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Terms {
    /// Where.
    pub slot: Slot,
    /// What.
    pub digest: Digest,
    /// What the plugin is configured with, at most 64 KiB.
    pub configuration: Bytes,
    /// What answers when it fails.
    pub on_fault: OnFault,
    /// How it takes part.
    pub mode: Mode,
    /// The plugin name that the binding follows; `None` binds the digest alone.
    pub by_name: Option<String>,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms")
            .field("slot", &self.slot)
            .field("digest", &self.digest)
            .field("configuration_bytes", &self.configuration.len())
            .field("on_fault", &self.on_fault)
            .field("mode", &self.mode)
            .field("by_name", &self.by_name)
            .field("created_at_ms", &self.created_at_ms)
            .finish()
    }
}

/// A binding on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// From 1 in each slot; no number is given twice.
    pub number: u64,
    /// What was in force before it: 0 for nothing.
    pub previous: u64,
    /// What is bound, and how.
    pub terms: Terms,
}

/// A key that the coordinators of a cluster share and nobody else knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// From 1 on; none is given twice.
    pub id: u32,
    /// The key.
    pub key: [u8; 32],
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}
