//! The world, by type: what the coordinator needs of networks, clocks, dice and databases. Each port has an
//! implementation for production and one for the simulation, and both pass the same contract tests.

use std::sync::Arc;
use std::time::Duration;

use crate::hook::ReplicaState;
use crate::idempotency;
use crate::name::{NodeId, TenantId};
use crate::replica::{Outcome, ReplicaError, Request};
use crate::tenant::Tenant;

/// Wall time and monotonic time.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Microseconds since 1970, as this machine believes. May jump.
    fn wall_micros(&self) -> u64;
    /// Microseconds since some fixed moment. Never goes back.
    fn monotonic_micros(&self) -> u64;
}

/// Dice.
pub trait Randomness: Send + Sync + 'static {
    /// Sixteen fresh bytes.
    fn sixteen(&self) -> [u8; 16];
}

/// The storage nodes, as seen by a coordinator.
pub trait Replicas: Send + Sync + 'static {
    /// Starts one request. Never blocks and never waits: what cannot be queued is answered with
    /// [`ReplicaError::Overloaded`] or [`ReplicaError::NotSent`]. The answer comes through `reply`, exactly once.
    /// A request whose `deadline` (monotonic microseconds) passes before it is sent is answered with
    /// [`ReplicaError::NotSent`].
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply);

    /// What is known of a node now. Cheap.
    fn state(&self, node: &NodeId) -> ReplicaState;

    /// The same with `in_flight` as the most at once within the last tenth of a second: it changes as rarely as the
    /// latencies do.
    fn recent_state(&self, node: &NodeId) -> ReplicaState;
}

/// Where answers of replicas are collected. One operation has one.
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

    /// Who owes the answer.
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

/// Where idempotency records are kept. Every step is atomic and durable when its future is ready; time is the store's.
/// The steps and their meaning are [`idempotency`]'s; a store only makes them atomic. A future that is dropped leaves
/// its step done or not done, never half done.
pub trait IdempotencyStore: Send + Sync + 'static {
    /// Carries out one step on the record of `name`.
    fn step(
        &self,
        name: idempotency::Name,
        step: idempotency::Step,
    ) -> impl Future<Output = Result<idempotency::Stepped, StoreError>> + Send;
}

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

/// Whether a node takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    /// Takes part.
    Active,
    /// Leaves once its data is elsewhere.
    Draining,
    /// Does not take part.
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

/// Where tenants are looked up while serving. Implementations cache.
pub trait Tenants: Send + Sync + 'static {
    /// The tenant if it can be told without waiting.
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>>;

    /// The tenant, from the database if need be; `Ok(None)` when there is none.
    fn tenant(&self, id: &TenantId) -> impl Future<Output = Result<Option<Arc<Tenant>>, StoreError>> + Send;
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Out of reach; the step was or was not carried out.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// Another change came first; nothing was changed.
    #[error("{0}")]
    Conflict(String),
    /// It exists already; nothing was changed.
    #[error("{0} exists already")]
    Exists(String),
    /// It does not exist; nothing was changed.
    #[error("{0} does not exist")]
    Missing(String),
    /// It breaks a bound or a rule of the store; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// What is stored cannot be read.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
}

/// How long until a deadline, never negative.
pub fn until(deadline: u64, now: u64) -> Duration {
    Duration::from_micros(deadline.saturating_sub(now))
}

impl<T: Replicas> Replicas for Arc<T> {
    fn send(&self, node: &NodeId, request: Request, deadline: u64, reply: Reply) {
        (**self).send(node, request, deadline, reply);
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        (**self).state(node)
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        (**self).recent_state(node)
    }
}

impl<T: Tenants> Tenants for Arc<T> {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        (**self).cached(id)
    }

    fn tenant(&self, id: &TenantId) -> impl Future<Output = Result<Option<Arc<Tenant>>, StoreError>> + Send {
        (**self).tenant(id)
    }
}

impl<T: IdempotencyStore> IdempotencyStore for Arc<T> {
    fn step(
        &self,
        name: idempotency::Name,
        step: idempotency::Step,
    ) -> impl Future<Output = Result<idempotency::Stepped, StoreError>> + Send {
        (**self).step(name, step)
    }
}
