//! Coordinators: which process holds which node id, and until when.

use super::Answer;
#[cfg(doc)]
use super::StoreError;
use crate::name::NodeId;

/// Most coordinators on record, recently ended ones included: a cluster has a handful, each restart under another id adds one.
pub const COORDINATORS: usize = 1000;
/// How long a coordinator stays on record after its lease has ended, in milliseconds: a day.
pub const COORDINATOR_KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// Longest address of a coordinator, in bytes: a host name of 255 and a port.
pub const ADDRESS_BYTES: usize = 300;
/// Longest version of a coordinator, in bytes: a semantic version with its build metadata.
pub const VERSION_BYTES: usize = 64;
/// Longest list of a coordinator's capabilities, in bytes, each followed by a space.
pub const CAPABILITIES_BYTES: usize = 1024;
/// Longest lease, in milliseconds: an hour. When a holder dies, its node id stays unusable for as long.
pub const LEASE_MS: u64 = 60 * 60 * 1000;

/// A process that wants to coordinate under a node id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The id to hold exclusively.
    pub node_id: NodeId,
    /// Drawn at random by each process at its start.
    pub instance: [u8; 16],
    /// Its address, for people and peers: 1..=300 bytes.
    pub address: String,
    /// The program's version: 1..=64 bytes.
    pub version: String,
    /// The [capabilities](crate::capability) that the program names: of a-z, 0-9 and '-', 1023 bytes in all. A program that names none
    /// is of a version that could not.
    pub capabilities: Vec<String>,
}

/// The right to coordinate under a node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Increases with every lease granted in the cluster and is kept while a lease is renewed in time. A fence that differs from
    /// the last renewal's means that the lease was lost in between.
    pub fence: u64,
    /// When it expires, by the store's clock: Unix time, milliseconds.
    pub until_ms: u64,
    /// The store's clock at the grant: Unix time, milliseconds.
    pub now_ms: u64,
}

/// A coordinator, live or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorOnRecord {
    /// Its claim.
    pub claim: Claim,
    /// The fence of its lease.
    pub fence: u64,
    /// When the lease was granted, by the store's clock: Unix time, milliseconds.
    pub granted_at_ms: u64,
    /// When the lease expires or expired, by the store's clock: Unix time, milliseconds.
    pub until_ms: u64,
    /// Remaining time of the lease when this was read, in milliseconds; 0 when it has expired.
    pub left_ms: u64,
    /// The revision up to which it follows all changes, with no operation under way that began under an earlier one: see
    /// [`LeaseStore::note_drained`]; 0 if it has never said so.
    pub drained: u64,
}

impl CoordinatorOnRecord {
    /// True while its lease holds.
    pub fn is_live(&self) -> bool {
        self.left_ms > 0
    }

    /// True if its program names a capability.
    pub fn names(&self, capability: &str) -> bool {
        self.claim.capabilities.iter().any(|named| named == capability)
    }
}

/// The leases of coordinators.
pub trait LeaseStore: Send + Sync + 'static {
    /// Takes or renews the lease of a node id for `lease_ms` (1..=[`LEASE_MS`]) from now, by the store's clock.
    /// [`StoreError::Conflict`], naming the holder, while another instance holds it; [`StoreError::Refused`] outside the limits
    /// or beyond [`COORDINATORS`].
    fn hold_lease(&self, claim: Claim, lease_ms: u64) -> Answer<Lease>;

    /// Ends the lease of an instance, so that another may take its node id. Does nothing if the instance holds none.
    fn release_lease(&self, node_id: &NodeId, instance: [u8; 16]) -> Answer<()>;

    /// The capabilities of the program that created the store. No earlier version has ever run on it, so nothing has to be readable for
    /// one. Empty if the store was created by a version that recorded none.
    fn founded_with(&self) -> Answer<Vec<String>>;

    /// From now on, programs of versions before that of a capability refuse to start on this store. True if that was so already.
    /// [`StoreError::Conflict`], and nothing has changed, while a live coordinator does not name the capability: it is decided in one
    /// transaction with the leases. [`StoreError::Refused`] for a capability of which no schema of the store is a sign.
    fn require(&self, capability: &'static str) -> Answer<bool>;

    /// Operations of this instance that began under an earlier revision than this one have ended. Does nothing if the instance holds no
    /// lease. This is no change that others follow.
    fn note_drained(&self, node_id: &NodeId, instance: [u8; 16], revision: u64) -> Answer<()>;

    /// Coordinators that are live or were within the last day, by node id.
    fn coordinators(&self) -> Answer<Vec<CoordinatorOnRecord>>;
}
