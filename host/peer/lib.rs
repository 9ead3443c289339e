//! The client of storage nodes: lanes to each node, its health and latency, and the connections.
//!
//! A lane (`lane`) is one bidirectional stream: all queued requests are sent in one frame, and answers arrive in any order and
//! are matched by id. No timer delays a request. Requests over 64 KiB use a second lane, so that small ones never wait behind
//! them. `pending` holds unanswered requests, `vitals` the health of a node, `connect` makes connections, `admit` re-checks the
//! stores of write-only nodes, `range` scans the records of nodes, `fullness` asks how full their disks are, `metrics` exports it all.

mod admit;
mod connect;
mod fullness;
mod lane;
pub mod metrics;
mod pending;
mod range;
mod vitals;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use witan_kernel::fault::Fault;
use witan_kernel::hook::ReplicaState;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{Clock, Replicas, Reply, StorageNode};
use witan_kernel::replica::{Ask, ReplicaError, Request};
use witan_kernel::sync::lock;
use witan_origin as origin;

pub use connect::{Connect, ConnectError, Connecting, Credential, Link, Tcp, Trust, endpoint};
use lane::{Lane, Outgoing};
use vitals::Vitals;

/// Larger requests use the second lane, in bytes.
const BULK_BYTES: usize = 64 << 10;

/// The lanes to every storage node.
pub struct Lanes<C: Clock, N: Connect> {
    clock: C,
    connect: N,
    coordinator_id: String,
    nodes: ArcSwap<HashMap<NodeId, Arc<Node>>>,
    changing: Mutex<()>,
}

struct Node {
    at: StorageNode,
    vitals: Arc<Vitals>,
    small: Lane,
    bulk: Lane,
    scans: range::ScanClient,
    fullness: fullness::LastFullness,
}

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// No lanes yet. `coordinator_id` is sent in the handshake.
    pub fn new(clock: C, connect: N, coordinator_id: String) -> Self {
        Self { clock, connect, coordinator_id, nodes: ArcSwap::default(), changing: Mutex::new(()) }
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

    /// The number of nodes, and how many of them are reachable and read from.
    pub fn reachable(&self) -> (usize, usize) {
        let nodes = self.nodes.load();
        (nodes.len(), nodes.values().filter(|node| node.vitals.state().reachable).count())
    }

    fn open(&self, node: &StorageNode) -> Node {
        let vitals = Arc::new(Vitals::default());
        let lane = |speaks_for_node| {
            lane::open(lane::Ends {
                node: node.clone(),
                coordinator_id: self.coordinator_id.clone(),
                clock: self.clock.clone(),
                connect: self.connect.clone(),
                vitals: Arc::clone(&vitals),
                speaks_for_node,
            })
        };
        Node {
            at: node.clone(),
            small: lane(true),
            bulk: lane(false),
            scans: range::ScanClient::default(),
            fullness: fullness::LastFullness::default(),
            vitals,
        }
    }
}

impl<C: Clock, N: Connect> Replicas for Lanes<C, N> {
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply) {
        let nodes = self.nodes.load();
        match nodes.get(node) {
            Some(lanes)
                if lanes.vitals.is_write_only()
                    && !matches!(request.ask, Ask::Merge { .. })
                    && !Fault::WriteOnlyRead.is_on() =>
            {
                reply.answer(Err(ReplicaError::Incomplete(node.clone())));
            }
            Some(node) => {
                let bytes = weight(&request);
                let lane = if bytes > BULK_BYTES { &node.bulk } else { &node.small };
                lane.send(Outgoing { request, deadline, bytes, reply, traced: origin::traced() });
            }
            None => reply.answer(Err(ReplicaError::NotSent(node.clone()))),
        }
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        self.nodes.load().get(node).map_or(UNKNOWN, |node| node.vitals.state())
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        self.nodes.load().get(node).map_or(UNKNOWN, |node| node.vitals.recent_state())
    }
}

/// The state of a node that is not in the current set.
const UNKNOWN: ReplicaState = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };

/// The approximate size of a request on the wire, in bytes.
fn weight(request: &Request) -> usize {
    let body = match &request.ask {
        Ask::Merge { record } => record.0.len(),
        Ask::Put(put) => {
            put.value.as_ref().map_or(0, bytes::Bytes::len) + put.ids.len() * 16 + put.seen.entries.len() * 32
        }
        Ask::Stamp { .. } | Ask::Read => 0,
    };
    body + request.place.key.bytes().len() + request.place.tenant.bytes().len() + 64
}
