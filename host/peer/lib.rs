//! The client of storage nodes: lanes to each node, its health and latency, and the connections.
//!
//! A lane (`lane`) is one bidirectional stream: queued requests are sent in one frame, and answers arrive in any order and are matched by
//! id. No timer delays a request. Requests and answers over 64 KiB use a second lane, so that small ones never wait behind them: a node
//! refuses what it would answer with more, and the request is sent again over that lane. `queue` holds requests that wait for their turn,
//! tenant by tenant, `pending` unanswered ones, `vitals` the health of a node, `usual` what its latency usually is, `connect` makes
//! connections, `admit` re-checks the stores of nodes, `range` scans their records, `fullness` asks how full their disks are and what their
//! clocks show, `metrics` exports it all.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

mod admit;
mod connect;
mod fullness;
mod lane;
pub mod metrics;
mod pending;
mod queue;
mod range;
mod usual;
mod vitals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use witan_kernel::condition::Condition;
use witan_kernel::hook::ReplicaState;
use witan_kernel::limit::SMALL_BYTES;
use witan_kernel::name::{NodeId, StoreId, Zone};
use witan_kernel::port::{Clock, Commit, Replicas, Reply, StorageNode};
use witan_kernel::replica::{Ask, ReplicaError, Request};
use witan_kernel::sync::lock;
use witan_kernel::weight::Weights;
use witan_origin as origin;

pub use connect::{Connect, ConnectError, Connecting, Credential, Link, Tcp, endpoint};
use lane::Lane;
use queue::Outgoing;
use vitals::Vitals;
pub use witan_kernel::port::Met;

/// The lanes to every storage node.
pub struct Lanes<C: Clock, N: Connect> {
    clock: C,
    connect: N,
    coordinator_id: String,
    nodes: ArcSwap<BTreeMap<NodeId, Arc<Node>>>,
    weights: Arc<ArcSwap<Weights>>,
    /// Nodes that are out of service for maintenance.
    drained: ArcSwap<BTreeSet<NodeId>>,
    /// The zones of nodes that have one.
    zones: ArcSwap<BTreeMap<NodeId, Zone>>,
    changing: Mutex<()>,
}

struct Node {
    at: StorageNode,
    vitals: Arc<Vitals>,
    small: Lane,
    bulk: Arc<Lane>,
    scans: range::ScanClient,
    described: fullness::LastDescribed,
}

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// No lanes yet. `coordinator_id` is sent in the handshake.
    pub fn new(clock: C, connect: N, coordinator_id: String) -> Self {
        let (nodes, drained, zones) = (ArcSwap::default(), ArcSwap::default(), ArcSwap::default());
        Self {
            clock,
            connect,
            coordinator_id,
            nodes,
            weights: Arc::default(),
            drained,
            zones,
            changing: Mutex::new(()),
        }
    }

    /// Opens lanes to nodes that are new or have another address, and closes those to nodes that are not in `nodes`. Must be called
    /// within a tokio runtime. Unanswered requests on a closed lane are answered with [`ReplicaError::Lost`].
    pub fn set_nodes(&self, nodes: &[StorageNode]) {
        let _one_at_a_time = lock(&self.changing);
        let before = self.nodes.load();
        let after = nodes
            .iter()
            .map(|node| {
                let kept =
                    before.get(&node.id).filter(|known| known.at.host == node.host && known.at.port == node.port);
                let lanes = kept.cloned().unwrap_or_else(|| Arc::new(self.open(node)));
                (node.id.clone(), lanes)
            })
            .collect();
        self.nodes.store(Arc::new(after));
        let zones = nodes.iter().filter(|node| !node.zone.is_none());
        self.zones.store(Arc::new(zones.map(|node| (node.id.clone(), node.zone.clone())).collect()));
    }

    /// Replaces the weights of tenants, by which their requests have turns. What waits at the moment keeps the weight of before.
    pub fn set_weights(&self, weights: Weights) {
        self.weights.store(Arc::new(weights));
    }

    /// These nodes, and no others, are asked last from now on: they are out of service for maintenance.
    pub fn set_drained(&self, drained: BTreeSet<NodeId>) {
        if **self.drained.load() != drained {
            self.drained.store(Arc::new(drained));
        }
    }

    /// Waits until the first attempt to connect to each node has succeeded or failed.
    pub async fn tried(&self) {
        let nodes = self.nodes.load_full();
        for node in nodes.values() {
            node.vitals.tried().await;
        }
    }

    /// The id of a node's store, as reported in its last handshake.
    pub fn store_id(&self, node: &NodeId) -> Option<StoreId> {
        self.nodes.load().get(node).and_then(|node| node.vitals.store_id())
    }

    /// The highest commit number that each connected node's store has shown, and its number of records.
    pub fn commits(&self) -> Vec<Commit> {
        let nodes = self.nodes.load();
        let commit = |node: &Arc<Node>| {
            let store = node.vitals.standing()?.store;
            let keys = node.described.fullness().map(|fullness| fullness.keys);
            Some(Commit { store, commit: node.vitals.commit_of(store), keys })
        };
        nodes.values().filter_map(commit).collect()
    }

    /// The number of nodes, and how many of them are reachable and read from.
    pub fn reachable(&self) -> (usize, usize) {
        let nodes = self.nodes.load();
        (nodes.len(), nodes.values().filter(|node| node.vitals.state().reachable).count())
    }

    /// The condition of a node's store as the node reported it last; `None` while it cannot be reached or does not report it.
    pub fn condition(&self, node: &NodeId) -> Option<Condition> {
        self.nodes.load().get(node).and_then(|node| node.vitals.condition())
    }

    /// The highest fence that any node is known to have; 0: none. Metadata with a lower revision lack changes.
    pub fn highest_fence(&self) -> u64 {
        self.nodes.load().values().map(|node| node.vitals.fence()).max().unwrap_or(0)
    }

    /// The nodes whose store has failed, and why, sorted by id.
    pub fn failed(&self) -> Vec<(NodeId, String)> {
        let nodes = self.nodes.load();
        let condition = |(id, node): (&NodeId, &Arc<Node>)| Some((id.clone(), node.vitals.condition()?));
        let failed = |(id, condition)| match condition {
            Condition::Failed(reason) => Some((id, reason)),
            Condition::Serving | Condition::Full => None,
        };
        let mut failed: Vec<_> = nodes.iter().filter_map(condition).filter_map(failed).collect();
        failed.sort();
        failed
    }

    fn open(&self, node: &StorageNode) -> Node {
        let vitals = Arc::new(Vitals::default());
        let lane = |bulk: Option<Arc<Lane>>| {
            lane::open(lane::Ends {
                node: node.clone(),
                coordinator_id: self.coordinator_id.clone(),
                clock: self.clock.clone(),
                connect: self.connect.clone(),
                vitals: Arc::clone(&vitals),
                weights: Arc::clone(&self.weights),
                bulk,
            })
        };
        let bulk = Arc::new(lane(None));
        Node {
            at: node.clone(),
            small: lane(Some(Arc::clone(&bulk))),
            bulk,
            scans: range::ScanClient::default(),
            described: fullness::LastDescribed::default(),
            vitals,
        }
    }
}

impl<C: Clock, N: Connect> Replicas for Lanes<C, N> {
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply) {
        let nodes = self.nodes.load();
        match nodes.get(node) {
            Some(known) if known.vitals.is_connected() && !known.vitals.uses().permits(fills(&request)) => {
                reply.answer(Err(ReplicaError::Incomplete(node.clone())));
            }
            // It would take the rows of a later generation for those of another tenant, which has no fences.
            Some(known) if request.place.space.generation() > 0 && !known.vitals.has_generations() => {
                reply.answer(Err(ReplicaError::NotSent(node.clone())));
            }
            Some(node) => {
                let bytes = weight(&request);
                let lane = if bytes > SMALL_BYTES { &node.bulk } else { &node.small };
                lane.send(Outgoing { request, deadline, bytes, reply, traced: origin::traced() });
            }
            None => reply.answer(Err(ReplicaError::NotSent(node.clone()))),
        }
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        self.nodes.load().get(node).map_or(UNKNOWN, |node| node.vitals.state())
    }

    fn incarnation(&self, node: &NodeId) -> u64 {
        self.nodes.load().get(node).map_or(0, |node| node.vitals.uses().incarnation())
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        self.nodes.load().get(node).map_or(UNKNOWN, |node| node.vitals.recent_state())
    }

    fn is_asked_last(&self, node: &NodeId) -> bool {
        self.drained.load().contains(node)
    }

    fn zone(&self, node: &NodeId) -> Option<Zone> {
        self.zones.load().get(node).cloned()
    }

    fn has_names(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_none_or(|node| node.vitals.has_names())
    }

    fn outages(&self, node: &NodeId) -> u64 {
        self.nodes.load().get(node).map_or(0, |node| node.vitals.outages())
    }

    fn unsynced_boot(&self, node: &NodeId) -> u64 {
        self.nodes.load().get(node).map_or(0, |node| node.vitals.unsynced_boot())
    }

    fn has_fences(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_none_or(|node| node.vitals.has_fences())
    }

    fn has_moves(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_some_and(|node| node.vitals.has_moves())
    }

    fn usual_p99_us(&self, node: &NodeId) -> Option<u32> {
        self.nodes.load().get(node).and_then(|node| node.vitals.usual.median())
    }

    fn disk_percent(&self, node: &NodeId) -> Option<f32> {
        let fullness = self.nodes.load().get(node).and_then(|node| node.described.fullness());
        fullness.map(|fullness| fullness.disk_usage_percent)
    }

    fn has_collect(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_some_and(|node| node.vitals.has_collect())
    }

    fn has_ages(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_some_and(|node| node.vitals.has_ages())
    }

    fn has_generations(&self, node: &NodeId) -> bool {
        self.nodes.load().get(node).is_some_and(|node| node.vitals.has_generations())
    }
}

/// The state of a node that is not in the current set.
const UNKNOWN: ReplicaState = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };

/// True for what a store must be sent while it is being filled: it lacks nothing afterwards that the others have. Nothing is concluded
/// from its answers.
fn fills(request: &Request) -> bool {
    matches!(request.ask, Ask::Merge { .. } | Ask::Unpin { .. })
}

/// The approximate size of a request on the wire, in bytes.
fn weight(request: &Request) -> usize {
    let body = match &request.ask {
        Ask::Merge { record } => record.0.len(),
        Ask::Put(put) => put.bytes(),
        Ask::Stamp { .. } | Ask::Read | Ask::Names { .. } | Ask::Unpin { .. } | Ask::Collect { .. } => 0,
    };
    body + request.place.key.bytes().len() + request.place.space.bytes().len() + 64
}
