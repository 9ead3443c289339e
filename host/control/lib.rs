//! The control plane: tenants, storage nodes and bindings as the metadata store has them, who may change what and when, and following
//! the changes of other coordinators.
//!
//! A change is stored first and put in force after: what the store has not accepted is never served.
//!
//! Reading order: [`Catalog`] with its `tenants`, `nodes` and `bindings` (changes), `placement` (changes that would move data),
//! [`stores`] (which of a node's stores may be read), [`defaults`] (of new tenants and nodes), `follow`, `cache` (the tenants that
//! requests see).

mod bindings;
mod cache;
pub mod defaults;
mod follow;
mod nodes;
mod placement;
pub mod stores;
mod tenants;

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::Instant;
use witan_kernel::hook::{Pending, ReplicaState};
use witan_kernel::name::{Invalid, NodeId, TenantId};
use witan_kernel::port::{Metadata, Slot, StorageNode, StoreError};
use witan_kernel::scan::{Fullness, Removed};
use witan_kernel::tenant::Tenant;

pub use bindings::ChangeRefused;
pub use cache::{TenantCache, TenantCacheConfig, TenantCacheCounts};
pub use follow::follow;
pub use nodes::{register, ring};
pub use tenants::Ended;

/// What the coordinator lets the catalog do to it.
pub trait Cluster: Send + Sync + 'static {
    /// Puts a tenant's change in force here.
    fn tenant_changed(&self, tenant: Tenant);

    /// Another coordinator has changed a tenant: it is read anew, if it is known here.
    fn tenant_outdated(&self, id: &TenantId) -> Pending<Result<(), StoreError>>;

    /// Others have changed nobody knows which tenants.
    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has changed the cluster's secrets: they are read anew.
    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has changed plugins, and the bindings of these slots (`None`: nobody knows which): they are read
    /// anew, and put in force.
    fn plugins_outdated(&self, slots: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has made or revoked API tokens: they are read anew.
    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// What is known of API tokens here is what the store says now.
    fn tokens_confirmed(&self);

    /// Puts a placement in force here, if it is newer than the one that is.
    fn placement_changed(&self, epoch: u64, nodes: &[StorageNode]);

    /// What is known of a node.
    fn state(&self, node: &NodeId) -> ReplicaState;

    /// Asks a node how full it is; `None` when it does not answer.
    fn fullness(&self, node: &NodeId) -> Pending<Option<Fullness>>;

    /// True for a node that is written to, and not asked, because its store is not the one on record.
    fn is_write_only(&self, node: &NodeId) -> bool;

    /// Asks nodes that are written to only whether their stores are those on record by now.
    fn stores_changed(&self) -> Pending<()>;

    /// Removes what a deleted tenant has stored, on every node, as far as that can be done before `until`.
    fn remove_records(&self, tenant: &TenantId, until: Instant) -> Pending<Removed>;

    /// Keeps clients' operations out, once those under way have ended, until the answer is dropped.
    fn hold(&self) -> Pending<Held>;
}

/// Operations are kept out while this lives.
pub type Held = Box<dyn Send>;

/// Why a change of the catalog was not made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The request breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store did not accept it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tenant wants more replicas than there are nodes.
    #[error(
        "{wanted} replicas need {wanted} storage nodes and the cluster has {nodes}; add nodes or ask for fewer replicas"
    )]
    TooFewNodes {
        /// Replicas wanted.
        wanted: u8,
        /// Nodes there are.
        nodes: usize,
    },
    /// The configuration names a node that the cluster does not have.
    #[error("node {0} is not part of this cluster, which has nodes already; add it with `witan nodes add`")]
    UnknownNode(NodeId),
    /// The node holds data, or tenants need it.
    #[error("{0}")]
    NodeInUse(String),
    /// It would move data, which this version cannot.
    #[error("{0}")]
    NeedsPlacementChange(String),
    /// A resolver was to be bound to a tenant that keeps one value per key.
    #[error("tenant {0} keeps one value per key; a resolver decides only for conflict_mode \"siblings\"")]
    NothingToResolve(TenantId),
    /// The task that carried the change out ended without a result; the log says why.
    #[error("internal error; the log says more")]
    Lost,
}

/// Tenants and nodes. Changes to the placement are made one at a time.
pub struct Catalog {
    /// This process, if it holds a lease among the coordinators of a shared store.
    instance: Option<[u8; 16]>,
    metadata: Arc<dyn Metadata>,
    cluster: Arc<dyn Cluster>,
    placing: Arc<Mutex<()>>,
}

impl Catalog {
    /// A catalog over `metadata` whose changes `cluster` follows. `instance`: who holds this coordinator's lease, where several
    /// share the store.
    pub fn new(metadata: Arc<dyn Metadata>, cluster: Arc<dyn Cluster>, instance: Option<[u8; 16]>) -> Self {
        Self { instance, metadata, cluster, placing: Arc::default() }
    }
}

/// Carries a change out to its end, whatever becomes of whoever waits for it: a change of the placement goes on in the stores when its
/// caller goes away, and operations that are kept out meanwhile must not be let in before it is done.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    tokio::spawn(change).await.unwrap_or(Err(Refused::Lost))
}
