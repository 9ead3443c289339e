//! The ring: which nodes hold a key. An immutable value; a change of the cluster makes another one.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use crate::limit::{MAX_REPLICAS, PerReplica};
use crate::name::{NodeId, TenantId, Zone};

mod lists;
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

/// A node's part in a ring.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// How many positions it has.
    pub virtual_nodes: u32,
    /// Replicas of a key lie in different zones while there are enough.
    pub zone: Zone,
}

/// Every virtual node of every node, in the order of their positions.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring {
    epoch: u64,
    /// Sorted by id.
    nodes: Box<[NodeId]>,
    positions: Box<[u64]>,
    /// The replicas that a list has: [`MAX_REPLICAS`], or as many as there are nodes with a position.
    each: usize,
    /// For each position, the replicas of the tokens that belong to it, as indexes in `nodes`. They are determined once, because a lookup
    /// would otherwise have to walk as far as the nearest node of a zone is away, whatever its number of virtual nodes.
    lists: Box<[u32]>,
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
    /// The ring of these nodes, each with its number of virtual nodes, without zones: see [`Self::of`].
    pub fn new(nodes: &[(NodeId, u32)], epoch: u64) -> Self {
        let member = |(node, virtual_nodes): &(NodeId, u32)| Member {
            node: node.clone(),
            virtual_nodes: *virtual_nodes,
            zone: Zone::default(),
        };
        Self::of(&nodes.iter().map(member).collect::<Vec<_>>(), epoch)
    }

    /// The ring of these members; a node named twice counts as it is named first. Where two positions collide, the smaller node id comes
    /// first. The epoch numbers the placement.
    pub fn of(members: &[Member], epoch: u64) -> Self {
        let mut sorted: Vec<&Member> = members.iter().collect();
        sorted.sort_by(|a, b| a.node.cmp(&b.node));
        sorted.dedup_by(|later, kept| later.node == kept.node);
        let mut points: Vec<(u64, u32)> =
            Vec::with_capacity(sorted.iter().map(|member| member.virtual_nodes as usize).sum());
        for (owner, member) in (0u32..).zip(&sorted) {
            points.extend((0..member.virtual_nodes).map(|index| (position(&member.node, index), owner)));
        }
        // Owners are numbered in the order of their ids, so this order breaks ties by id.
        points.sort_unstable();
        let owners: Vec<u32> = points.iter().map(|(_, owner)| *owner).collect();
        let names: BTreeSet<&Zone> = sorted.iter().map(|member| &member.zone).collect();
        let numbers: BTreeMap<&Zone, u32> = names.into_iter().zip(0..).collect();
        let zones: Vec<u32> = sorted.iter().map(|member| numbers[&member.zone]).collect();
        let each = sorted.iter().filter(|member| member.virtual_nodes > 0).count().min(MAX_REPLICAS);
        Self {
            epoch,
            nodes: sorted.into_iter().map(|member| member.node.clone()).collect(),
            positions: points.iter().map(|(position, _)| *position).collect(),
            each,
            lists: lists::lists(&owners, &zones, each),
        }
    }

    /// The replicas of a token: `rf` of them, at most [`MAX_REPLICAS`], and fewer when there are fewer nodes. A token belongs to the first
    /// position that is not before it. From there, the ring is walked clockwise in rounds, each of which takes the next node of every zone,
    /// in the order in which they come. Without zones, or with one, these are the first distinct nodes.
    pub fn replicas(&self, token: u64, rf: u8) -> Preference {
        let at = self.positions.partition_point(|position| *position < token);
        let at = if at == self.positions.len() { 0 } else { at };
        let list = self.lists.get(at * self.each..(at + 1) * self.each).unwrap_or_default();
        list.iter().take(rf.into()).map(|owner| self.nodes[*owner as usize].clone()).collect()
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
