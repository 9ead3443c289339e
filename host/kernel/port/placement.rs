//! Storage nodes and their stores, on record: where keys may be placed.

use super::Answer;
#[cfg(doc)]
use super::StoreError;
use crate::name::{NodeId, StoreId};

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
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// Unix time, milliseconds.
    pub updated_at_ms: u64,
}

/// The storage nodes on which keys are placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Increases with every change to the set of nodes, their addresses or their virtual nodes.
    pub epoch: u64,
    /// Every storage node, by id.
    pub nodes: Vec<NodeOnRecord>,
}

/// Storage nodes on record.
pub trait PlacementStore: Send + Sync + 'static {
    /// Stores the storage nodes of a cluster that has none: all of them or, on an error, none. A cluster that has nodes is left
    /// unchanged, so that of coordinators that start together exactly one founds the cluster. [`StoreError::Exists`] when a node
    /// is named twice; [`StoreError::Refused`] outside the limits or beyond [`NODES`].
    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()>;

    /// Stores a new storage node. [`StoreError::Exists`]; [`StoreError::Refused`] outside the limits or beyond [`NODES`].
    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// Stores a storage node, new or not; the store id on record is kept. [`StoreError::Refused`] as above.
    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()>;

    /// Every storage node, by id, and the placement's epoch.
    fn placement(&self) -> Answer<Placement>;

    /// Every storage node, by id.
    fn nodes(&self) -> Answer<Vec<NodeOnRecord>> {
        let placement = self.placement();
        Box::pin(async move { Ok(placement.await?.nodes) })
    }

    /// Removes a storage node. [`StoreError::Missing`].
    fn remove_node(&self, id: &NodeId) -> Answer<()>;

    /// Records the store id `reported` by a node if none is on record, and returns the one on record. If that differs from
    /// `reported`, the node's disk was replaced or wiped. [`StoreError::Missing`].
    fn record_store_id(&self, id: &NodeId, reported: StoreId) -> Answer<StoreId>;

    /// Replaces the store id `from` of a node with `to`; does nothing if `to` is on record already. [`StoreError::Missing`];
    /// [`StoreError::Conflict`] when a third one is on record; [`StoreError::Refused`] when `to` belongs to another node.
    fn replace_store_id(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()>;
}
