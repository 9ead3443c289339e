//! The ring: which nodes hold a key. An immutable value; a change of the cluster makes another one.

use sha2::{Digest, Sha256};

use crate::limit::PerReplica;
use crate::name::{NodeId, TenantId};

mod ranges;
mod versions;

pub use ranges::ReplicaRange;
pub use versions::Rings;

/// The replicas of a key, in ring order: the first mints, and is asked first unless latencies say otherwise.
pub type Preference = PerReplica<NodeId>;

/// A key's position on the ring: the first eight bytes, big endian, of SHA-256 of "tenant:partition-key".
pub fn token(tenant: &TenantId, partition_key: &[u8]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(tenant.bytes());
    hash.update(b":");
    hash.update(partition_key);
    first_eight(hash)
}

/// The position of a node's virtual node: the same hash of "node-vnode-index".
pub fn position(node: &NodeId, index: u32) -> u64 {
    first_eight(Sha256::new_with_prefix(format!("{node}-vnode-{index}")))
}

fn first_eight(hash: Sha256) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash.finalize().0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Every virtual node of every node, in the order of their positions.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring {
    epoch: u64,
    /// Sorted by id.
    nodes: Box<[NodeId]>,
    /// Nodes that have at least one virtual node.
    placed: usize,
    positions: Box<[u64]>,
    /// For each position, its node's index in `nodes`.
    owners: Box<[u32]>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("epoch", &self.epoch)
            .field("nodes", &self.nodes)
            .field("positions", &self.positions.len())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// The ring of these nodes, each with its number of virtual nodes; a node named twice counts with its first number. Where
    /// two positions collide, the smaller node id comes first. The epoch numbers the placement.
    pub fn new(nodes: &[(NodeId, u32)], epoch: u64) -> Self {
        let mut sorted = nodes.to_vec();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        sorted.dedup_by(|later, kept| later.0 == kept.0);
        let mut points: Vec<(u64, u32)> = Vec::with_capacity(sorted.iter().map(|(_, count)| *count as usize).sum());
        for (owner, (node, count)) in (0u32..).zip(&sorted) {
            points.extend((0..*count).map(|index| (position(node, index), owner)));
        }
        // Owners are numbered in the order of their ids, so this order breaks ties by id.
        points.sort_unstable();
        Self {
            epoch,
            placed: sorted.iter().filter(|(_, count)| *count > 0).count(),
            nodes: sorted.into_iter().map(|(node, _)| node).collect(),
            positions: points.iter().map(|(position, _)| *position).collect(),
            owners: points.iter().map(|(_, owner)| *owner).collect(),
        }
    }

    /// The first `rf` distinct nodes clockwise from a token, starting at the first position that is not before it. Fewer when
    /// there are fewer nodes.
    pub fn replicas(&self, token: u64, rf: u8) -> Preference {
        let wanted = usize::from(rf).min(self.placed);
        let mut found: PerReplica<u32> = PerReplica::new();
        let start = self.positions.partition_point(|position| *position < token);
        for owner in self.owners[start..].iter().chain(&self.owners[..start]) {
            if found.len() == wanted {
                break;
            }
            if !found.contains(owner) {
                found.push(*owner);
            }
        }
        found.iter().map(|owner| self.nodes[*owner as usize].clone()).collect()
    }

    /// Nodes, sorted by id.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// How many nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True without nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The number of the placement.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}
