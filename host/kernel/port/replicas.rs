//! Storage nodes as a coordinator reaches them.

use std::sync::Arc;

use crate::hook::ReplicaState;
use crate::name::{NodeId, Zone};
use crate::replica::{Outcome, ReplicaError, Request};

/// The storage nodes, as seen by a coordinator.
pub trait Replicas: Send + Sync + 'static {
    /// Starts one request. Never blocks: a request that cannot be queued is answered with [`ReplicaError::Overloaded`] or
    /// [`ReplicaError::NotSent`]. The answer comes through `reply`, exactly once. A request whose `deadline` (monotonic
    /// microseconds) passes before it is sent is answered with [`ReplicaError::NotSent`].
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply);

    /// The current state of a node. Cheap.
    fn state(&self, node: &NodeId) -> ReplicaState;

    /// Identifies the node's present store at this coordinator: changes whenever the node comes back with another store, or its store
    /// may no longer be used. 0 for an unknown node. An acknowledgement counts only while this is what it was when the request was sent.
    /// Cheap.
    fn incarnation(&self, node: &NodeId) -> u64;

    /// The same as [`Self::state`], with `in_flight` as the maximum over the last tenth of a second, so that it changes as rarely as the
    /// latencies do.
    fn recent_state(&self, node: &NodeId) -> ReplicaState;

    /// True for a node that is asked last although it answers: it is under maintenance. Cheap.
    fn is_asked_last(&self, node: &NodeId) -> bool {
        let _ = node;
        false
    }

    /// The node's zone. Cheap, above all where no node has one.
    fn zone(&self, node: &NodeId) -> Option<Zone> {
        let _ = node;
        None
    }

    /// False when the node has not named [`crate::capability::NAMES`] in its last handshake. One that has not been met yet may have it: a
    /// coordinator that has just started must not repeat writes unasked because a node is away.
    fn has_names(&self, node: &NodeId) -> bool;

    /// How often the node could not be reached any longer, since this coordinator has known it: tells an outage that is over before
    /// anybody has looked. Cheap.
    fn outages(&self, node: &NodeId) -> u64 {
        let _ = node;
        0
    }

    /// How often the node's store was opened, as it has said last, if that acknowledges before it syncs; 0: it syncs first, or does not
    /// say. Another number than before means that it may lack what it has acknowledged. Cheap.
    fn unsynced_boot(&self, node: &NodeId) -> u64 {
        let _ = node;
        0
    }

    /// False when the node has not named [`crate::capability::FENCES`] in its last handshake. One that has not been met yet may have it.
    fn has_fences(&self, node: &NodeId) -> bool {
        let _ = node;
        true
    }

    /// True when the node has named [`crate::capability::MOVES`] in its last handshake.
    fn has_moves(&self, node: &NodeId) -> bool {
        let _ = node;
        true
    }

    /// The median of the node's 99th percentile in each of the last ten minutes' seconds in which it was asked anything, in microseconds;
    /// `None` if it was asked too seldom. Takes some microseconds.
    fn usual_p99_us(&self, node: &NodeId) -> Option<u32> {
        let _ = node;
        None
    }

    /// How full the node's disk was when it last said so, in percent; `None` if that is not known. Cheap.
    fn disk_percent(&self, node: &NodeId) -> Option<f32> {
        let _ = node;
        None
    }

    /// True when the node has named [`crate::capability::COLLECT`] in its last handshake.
    fn has_collect(&self, node: &NodeId) -> bool {
        let _ = node;
        true
    }

    /// True when the node has named [`crate::capability::AGES`] in its last handshake.
    fn has_ages(&self, node: &NodeId) -> bool {
        let _ = node;
        true
    }

    /// True when the node has named [`crate::capability::GENERATIONS`] in its last handshake.
    fn has_generations(&self, node: &NodeId) -> bool {
        let _ = node;
        true
    }
}

/// Collects the answers of replicas. Each operation has one.
pub trait Collect: Send + Sync + 'static {
    /// Takes the answer to the request that was sent under `tag`. Called from any thread; must not block.
    fn collect(&self, tag: u32, outcome: Outcome);
}

/// The obligation to answer once. Dropped unanswered, it answers with [`ReplicaError::Lost`], so that no operation waits
/// for an answer that cannot come.
pub struct Reply {
    tag: u32,
    node: NodeId,
    to: Option<Arc<dyn Collect>>,
}

impl Reply {
    /// A reply to `to`, under `tag`, owed by `node`.
    pub fn new(to: Arc<dyn Collect>, tag: u32, node: NodeId) -> Self {
        Self { tag, node, to: Some(to) }
    }

    /// Answers.
    pub fn answer(mut self, outcome: Outcome) {
        if let Some(to) = self.to.take() {
            to.collect(self.tag, outcome);
        }
    }

    /// The node that owes the answer.
    pub fn node(&self) -> &NodeId {
        &self.node
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.collect(self.tag, Err(ReplicaError::Lost(self.node.clone())));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("tag", &self.tag).field("node", &self.node).finish_non_exhaustive()
    }
}

impl<T: Replicas> Replicas for Arc<T> {
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply) {
        (**self).send(node, request, deadline, reply);
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        (**self).state(node)
    }

    fn incarnation(&self, node: &NodeId) -> u64 {
        (**self).incarnation(node)
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        (**self).recent_state(node)
    }

    fn is_asked_last(&self, node: &NodeId) -> bool {
        (**self).is_asked_last(node)
    }

    fn zone(&self, node: &NodeId) -> Option<Zone> {
        (**self).zone(node)
    }

    fn has_names(&self, node: &NodeId) -> bool {
        (**self).has_names(node)
    }

    fn outages(&self, node: &NodeId) -> u64 {
        (**self).outages(node)
    }

    fn unsynced_boot(&self, node: &NodeId) -> u64 {
        (**self).unsynced_boot(node)
    }

    fn has_fences(&self, node: &NodeId) -> bool {
        (**self).has_fences(node)
    }

    fn has_moves(&self, node: &NodeId) -> bool {
        (**self).has_moves(node)
    }

    fn usual_p99_us(&self, node: &NodeId) -> Option<u32> {
        (**self).usual_p99_us(node)
    }

    fn disk_percent(&self, node: &NodeId) -> Option<f32> {
        (**self).disk_percent(node)
    }

    fn has_collect(&self, node: &NodeId) -> bool {
        (**self).has_collect(node)
    }

    fn has_ages(&self, node: &NodeId) -> bool {
        (**self).has_ages(node)
    }

    fn has_generations(&self, node: &NodeId) -> bool {
        (**self).has_generations(node)
    }
}
