//! Storage nodes and their stores, on record: where keys may be placed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Answer;
#[cfg(doc)]
use super::StoreError;
use crate::name::{NodeId, StoreId, Zone};
use crate::ring::{Member, Ring, Rings};
use crate::scan::Trust;

/// Most storage nodes: with 150 virtual nodes each, a ring of 150,000 points.
pub const NODES: usize = 1000;
/// Longest host name or address of a storage node, in bytes: that of DNS.
pub const HOST_BYTES: usize = 255;

/// A storage node, as the metadata store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageNode {
    /// Its id.
    pub id: NodeId,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Virtual nodes on the ring, 1..=4096.
    pub virtual_nodes: u32,
    /// active, draining or inactive.
    pub status: NodeStatus,
    /// Its zone.
    pub zone: Zone,
}

impl StorageNode {
    /// Its part in a ring.
    pub fn member(&self) -> Member {
        Member { node: self.id.clone(), virtual_nodes: self.virtual_nodes, zone: self.zone.clone() }
    }
}

/// Whether keys are placed on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    /// Holds keys.
    Active,
    /// Is removed once its data is elsewhere.
    Draining,
    /// Holds no keys.
    Inactive,
}

impl NodeStatus {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Inactive => "inactive",
        }
    }

    /// Reads the API's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Draining, Self::Inactive].into_iter().find(|s| s.as_str() == text)
    }
}

/// A storage node and what is on record about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOnRecord {
    /// The node.
    pub node: StorageNode,
    /// The id of its store, reported at its first handshake; `None` before that.
    pub store_id: Option<StoreId>,
    /// An operator has taken it out of service for maintenance: it is asked last.
    pub drained: bool,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// Unix time, milliseconds.
    pub updated_at_ms: u64,
}

/// The storage nodes, and on which of them keys are placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Increases with every change to the set of nodes, their addresses, their virtual nodes or their zones.
    pub epoch: u64,
    /// Every storage node, by id, also such as are no members of the newest ring any longer.
    pub nodes: Vec<NodeOnRecord>,
    /// The ring's versions to which tenants, moves or leftovers may refer, oldest first; never empty. As long as no node has joined or left
    /// while data was stored, it is one, number 0, of which every node is a member.
    pub rings: Vec<RingOnRecord>,
}

impl Placement {
    /// The nodes that are [drained](NodeOnRecord::drained).
    pub fn drained(&self) -> BTreeSet<NodeId> {
        self.nodes.iter().filter(|known| known.drained).map(|known| known.node.id.clone()).collect()
    }

    /// The versions of the ring, each with the placement's epoch.
    pub fn rings(&self) -> Rings {
        let ring = |on_record: &RingOnRecord| (on_record.version, Arc::new(Ring::of(&on_record.members, self.epoch)));
        Rings::new(self.rings.iter().map(ring).collect())
    }
}

/// A version of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingOnRecord {
    /// Its number.
    pub version: u64,
    /// Its nodes, by id.
    pub members: Vec<Member>,
}

/// Storage nodes on record. Nodes that join or leave by what is here do so in place, in the newest version of the ring: that is right only
/// while nothing is stored. Otherwise see [`MigrationStore`](super::MigrationStore).
pub trait PlacementStore: Send + Sync + 'static {
    /// Stores the storage nodes of a cluster that has none: all of them or, on an error, none. A cluster that has nodes is left
    /// unchanged, so that of coordinators that start together exactly one founds the cluster. [`StoreError::Exists`] when a node
    /// is named twice; [`StoreError::Refused`] outside the limits or beyond [`NODES`].
    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()>;

    /// Stores a new storage node. [`StoreError::Exists`]; [`StoreError::Refused`] outside the limits or beyond [`NODES`].
    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// Stores a storage node, new or not; the store id on record is kept. One that leaves is no member of the ring by that.
    /// [`StoreError::Refused`] as above.
    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// A node is reached at another address from now on. All else stays as it is on record, whoever changes that at the same time.
    /// [`StoreError::Missing`]; [`StoreError::Refused`] as above.
    fn readdress_node(&self, id: &NodeId, host: &str, port: u16, now_ms: u64) -> Answer<()>;

    /// A node is [drained](NodeOnRecord::drained) from now on, or no longer. It keeps its place in the ring, and the placement's epoch
    /// stays as it is. [`StoreError::Missing`].
    fn drain_node(&self, id: &NodeId, drained: bool, now_ms: u64) -> Answer<()>;

    /// Every storage node, by id, and the placement's epoch.
    fn placement(&self) -> Answer<Placement>;

    /// Every storage node, by id.
    fn nodes(&self) -> Answer<Vec<NodeOnRecord>> {
        let placement = self.placement();
        Box::pin(async move { Ok(placement.await?.nodes) })
    }

    /// Removes a storage node, also from every version of the ring. [`StoreError::Missing`].
    fn remove_node(&self, id: &NodeId) -> Answer<()>;

    /// Decides what the store that a node has reported in its handshake may be used for. `commit` is the commit number that it has
    /// shown, `before` one that was known of it before the node was asked.
    ///
    /// The first store that a node reports goes on record. The store on record whose node had another one admitted in its place ends
    /// that: it is used again, and the other one is not. A store that shows less than `before` has lost what it had acknowledged, and is
    /// not used from then on. One that shows less than is on record is [suspect](Met::is_suspect): the higher number may have been
    /// recorded after the node had answered, so the node must be asked again. [`StoreError::Missing`].
    fn meet_store(&self, id: &NodeId, store: StoreId, commit: u64, before: u64) -> Answer<Met>;

    /// Admits `store` in place of `from`, the node's store on record, so that a repair can fill it; another one that was admitted before
    /// is dropped. [`StoreError::Missing`]; [`StoreError::Conflict`] when `from` is not on record; [`StoreError::Refused`] when `store`
    /// belongs to another node, was replaced before, or was set back.
    fn admit_store(&self, id: &NodeId, from: StoreId, store: StoreId) -> Answer<()>;

    /// Puts the admitted store `to` of a node on record, in place of `from`, which is retired: it is never used again. Does nothing if
    /// `to` is on record already. [`StoreError::Missing`]; [`StoreError::Conflict`] when a third one is on record, or `to` is not
    /// admitted any more.
    fn replace_store(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()>;

    /// Every store that any node has reported, except those of removed nodes. Those of nodes that left while data was stored are retired.
    fn stores(&self) -> Answer<Vec<StoreOnRecord>>;

    /// Keeps the highest commit number of each store, and its latest number of records. Unknown stores are ignored. This is no change
    /// that others follow.
    fn note_commits(&self, commits: Vec<Commit>) -> Answer<()>;
}

/// What the metadata store knows of a store that a node has just reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    /// What it may be used for.
    pub trust: Trust,
    /// The node's store on record.
    pub on_record: StoreId,
    /// Why it may not be used.
    pub state: StoreState,
    /// The highest commit number on record.
    pub commit: u64,
}

impl Met {
    /// The answer about a store that is used for everything.
    pub fn whole(store: StoreId) -> Self {
        Self { trust: Trust::Whole, on_record: store, state: StoreState::Reported, commit: 0 }
    }

    /// True when nothing is decided yet: a higher commit number than the `commit` that the store has shown is on record, and the node
    /// has to be asked again, now that this is known.
    pub fn is_suspect(&self, commit: u64) -> bool {
        self.state != StoreState::Retired && self.state != StoreState::SetBack && commit < self.commit
    }
}

/// A store's place in the life of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreState {
    /// Reported by a node. It is used if it is the one on record.
    Reported,
    /// Admitted in place of the one on record, and not filled yet.
    Filling,
    /// Replaced by another one. Never used again.
    Retired,
    /// It has shown a lower commit number than before: a copy of it was restored, or its disk has lost writes. Never used again.
    SetBack,
}

impl StoreState {
    /// The spelling in the metadata store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Filling => "filling",
            Self::Retired => "retired",
            Self::SetBack => "set-back",
        }
    }

    /// Reads the spelling in the metadata store.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Reported, Self::Filling, Self::Retired, Self::SetBack].into_iter().find(|state| state.as_str() == text)
    }
}

/// A store on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOnRecord {
    /// Its id.
    pub store: StoreId,
    /// The node that has reported it.
    pub node: NodeId,
    /// Where it is in its life.
    pub state: StoreState,
    /// The highest commit number that anybody has seen of it.
    pub commit: u64,
    /// The number of records that it reported last, an estimate.
    pub keys: u64,
}

/// A store's progress, as a coordinator has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The store.
    pub store: StoreId,
    /// Its highest commit number.
    pub commit: u64,
    /// Its number of records; `None` if that is unknown.
    pub keys: Option<u64>,
}
