//! The control plane: tenants, storage nodes and bindings as recorded in the metadata store, the rules for changing them, and
//! following the changes of other coordinators.
//!
//! A change is stored first and applied afterwards: what the store has not accepted is never served.
//!
//! Reading order: [`Turns`] (how many calls may be under way),
//! [`Catalog`] with its `tenants`, `nodes` and `bindings` (changes), `placement` (changes that would move data, while
//! there is none), `migrations`, `swaps`, `plan` and `leftovers` (changes that move it), `maintenance` (what operators do to a node),
//! `fences` (when a change may be answered), [`stores`] (which of a node's stores may be read), [`capabilities`] (which formats may be
//! written), [`small_records`] (one that takes more care), [`defaults`] (of new tenants and nodes), `follow` (others' changes), `cache`
//! (the tenants that requests see).

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

mod bindings;
mod cache;
pub mod capabilities;
mod classes;
pub mod defaults;
mod fences;
mod follow;
mod leftovers;
mod maintenance;
mod migrations;
mod nodes;
mod placement;
mod plan;
mod pushes;
mod signing;
pub mod small_records;
pub mod stores;
mod swaps;
mod tenants;
mod turns;
mod updates;

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use witan_kernel::condition::Condition;
use witan_kernel::failure::Failure;
use witan_kernel::hook::{Pending, ReplicaState};
use witan_kernel::name::{Invalid, Key, NodeId, TenantId};
use witan_kernel::port::{Metadata, Placement, Slot, StoreError};
use witan_kernel::replica::ReplicaError;
use witan_kernel::ring::{Ring, Rings};
use witan_kernel::scan::{Fullness, Removed, Standing, Trust};
use witan_kernel::tenant::Tenant;

pub use bindings::ChangeRefused;
pub use cache::{TenantCache, TenantCacheConfig, TenantCacheCounts};
pub use fences::Unfenced;
pub use follow::follow;
pub use leftovers::{Dropping, Leftovers};
pub use maintenance::Replacement;
pub use migrations::{Changed, Removal};
pub use nodes::register;
pub use placement::FactorChanged;
pub use plan::{Plan, PlannedFill, PlannedNode, PlannedSource, PlannedZone};
pub use swaps::{HookChange, HookPlan, Places, Recorded, Tried};
pub use tenants::Ended;
pub use turns::{Turn, TurnLimits, Turns};
pub use updates::NodeUpdate;

/// The coordinator as the catalog sees it: applies changes here, and reports on nodes.
pub trait Cluster: Send + Sync + 'static {
    /// Applies a tenant's change here.
    fn tenant_changed(&self, tenant: Tenant);

    /// Another coordinator has changed a tenant: reads it again, if it is cached here.
    fn tenant_outdated(&self, id: &TenantId) -> Pending<Result<(), StoreError>>;

    /// Other coordinators have changed an unknown set of tenants.
    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has changed the cluster's secrets: reads them again.
    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has changed plugins, and the bindings of these slots (`None`: an unknown set): reads and applies them.
    fn plugins_outdated(&self, slots: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has created or revoked API tokens: reads them again.
    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// Confirms that the API tokens cached here match the store as of now.
    fn tokens_confirmed(&self);

    /// Coordinators have come or gone: decides again which formats may be written.
    fn coordinators_changed(&self) -> Pending<Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// All changes up to this revision of tenants and of the placement are applied here.
    fn followed(&self, revision: u64) {
        let _ = revision;
    }

    /// Bindings of these tenants (`None`: of all) have changed after this revision, and are not in force here yet. Called before
    /// [`Cluster::followed`] says that the change is applied.
    fn bindings_change(&self, tenants: Vec<Option<TenantId>>, revision: u64) {
        let _ = (tenants, revision);
    }

    /// All bindings are in force here as of the revision that is followed.
    fn bindings_followed(&self) {}

    /// The revision up to which all changes are followed by every operation that is under way here.
    fn drained(&self) -> u64 {
        u64::MAX
    }

    /// Ready when an operation here waits for later changes.
    fn behind(&self) -> Pending<()> {
        Box::pin(std::future::pending())
    }

    /// Whether changes are fenced.
    fn fences(&self) -> bool {
        false
    }

    /// The highest fence that any node is known to have here; 0: none.
    fn highest_fence(&self) -> u64 {
        0
    }

    /// Whether records can be moved while they are used: every coordinator and every node knows how, and changes are fenced.
    fn moves(&self) -> bool {
        false
    }

    /// True for a node that was reached and cannot clear rows under an epoch. One that has not been reached may be able to.
    fn lacks_moves(&self, node: &NodeId) -> bool {
        let _ = node;
        false
    }

    /// True for a node that was reached and does not keep the rows of generations apart.
    fn lacks_generations(&self, node: &NodeId) -> bool {
        let _ = node;
        false
    }

    /// Keys of a tenant that have a value, a page at a time, with their places in the ring.
    fn keys(&self, tenant: &Tenant, from: Option<KeysFrom>) -> Pending<Result<KeysAt, Failure>> {
        let _ = (tenant, from);
        Box::pin(std::future::ready(Ok(KeysAt::default())))
    }

    /// A swap of a tenant's routing hook was given up: the binding becomes the one of before again.
    fn hook_given_up(&self, tenant: &TenantId) -> Pending<()> {
        let _ = tenant;
        Box::pin(std::future::ready(()))
    }

    /// The newest ring.
    fn ring(&self) -> Arc<Ring>;

    /// Every version of the ring that is in use.
    fn rings(&self) -> Arc<Rings> {
        Arc::new(Rings::new(vec![(0, self.ring())]))
    }

    /// Raises the fence of a tenant, or of all tenants, at a node.
    fn raise_fence(&self, node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> Pending<Result<(), ReplicaError>>;

    /// Applies a placement here, if it is newer than the present one.
    fn placement_changed(&self, placement: Placement);

    /// The last observed state of a node.
    fn state(&self, node: &NodeId) -> ReplicaState;

    /// Asks a node how full it is; `None` when it does not respond.
    fn fullness(&self, node: &NodeId) -> Pending<Option<Fullness>>;

    /// The condition of a node's store as it reported it last; `None` if it is not known.
    fn condition(&self, node: &NodeId) -> Option<Condition> {
        let _ = node;
        None
    }

    /// What a node's store may be used for; `None` while the node cannot be reached.
    fn trust(&self, node: &NodeId) -> Option<Trust> {
        self.standing(node).map(|standing| standing.trust)
    }

    /// The store that a node shows, and what it may be used for; `None` while the node cannot be reached.
    fn standing(&self, node: &NodeId) -> Option<Standing>;

    /// True for a node that is asked last here, since it is drained.
    fn is_drained(&self, node: &NodeId) -> bool {
        let _ = node;
        false
    }

    /// Checks again what the stores of nodes may be used for.
    fn stores_changed(&self) -> Pending<()>;

    /// Removes a deleted tenant's records from these nodes, or from every one, as far as possible before `until`.
    fn remove_records(&self, tenant: &TenantId, from: Option<Vec<NodeId>>, until: Instant) -> Pending<Removed>;

    /// Blocks clients' operations, once those in flight have ended, until the returned guard is dropped.
    fn hold(&self) -> Pending<Held>;
}

/// Where a page of keys begins: at a token, after a key of it.
pub type KeysFrom = (u64, Option<Key>);

/// A page of keys with their tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeysAt {
    /// The keys.
    pub keys: Vec<(u64, Key)>,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<KeysFrom>,
}

/// A guard that blocks operations until it is dropped.
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
        /// Replicas requested.
        wanted: u8,
        /// Storage nodes in the cluster.
        nodes: usize,
    },
    /// The configuration names a node that is not part of the cluster.
    #[error("node {0} is not part of this cluster, which has nodes already; add it with `witan nodes add`")]
    UnknownNode(NodeId),
    /// The node holds data, or tenants need it.
    #[error("{0}")]
    NodeInUse(String),
    /// It would have to move data, which is not supported.
    #[error("{0}")]
    NeedsPlacementChange(String),
    /// It has to move records, and somebody does not know how.
    #[error(
        "{what} has to move records under load, and {who} cannot: upgrade these, and repeat the call; until then it can be made only \
         while nothing is stored: {otherwise}"
    )]
    TooOld {
        /// The change.
        what: String,
        /// Coordinators and nodes, for people.
        who: String,
        /// Why it cannot be made without moving anything.
        otherwise: String,
    },
    /// A coordinator would place keys as if there were no zones.
    #[error(
        "{what} requires that every coordinator knows zones, and this one does not: {who}; upgrade it, and repeat the call"
    )]
    NoZones {
        /// The change.
        what: String,
        /// Coordinators, for people.
        who: String,
    },
    /// A coordinator would not do its part.
    #[error(
        "{what} requires that every coordinator knows it, and this one does not: {who}; upgrade it, and repeat the call"
    )]
    NoMaintenance {
        /// The change.
        what: &'static str,
        /// Coordinators, for people.
        who: String,
    },
    /// The node cannot be reached.
    #[error("{0}")]
    NodeAway(String),
    /// The node shows the store that is on record.
    #[error("{0}")]
    NothingToReplace(String),
    /// The store that the node shows is never used again, or is another node's.
    #[error("{0}")]
    StoreRefused(String),
    /// A routing hook gives no answer for a key of the tenant, which would have no place then.
    #[error(
        "hook faults on key {key}: {reason}; nothing has changed: repair the hook, or delete the key, and repeat the call"
    )]
    HookFaults {
        /// The key, shortened.
        key: String,
        /// What happened.
        reason: String,
    },
    /// Too few of a tenant's replicas would be left to copy from.
    #[error("{0}")]
    SourcesUnreachable(String),
    /// Another migration is in its way.
    #[error("{0}; wait until it has ended, or cancel it")]
    MigrationConflict(String),
    /// A migration can no longer be given up.
    #[error("{0}")]
    TooLate(String),
    /// The change would bind a resolver to a tenant that keeps one value per key.
    #[error("tenant {0} keeps one value per key; a resolver decides only for conflict_mode \"siblings\"")]
    NothingToResolve(TenantId),
    /// The change is stored, and storage nodes could still serve coordinators that do not know of it.
    #[error(
        "the change of tenant {tenant} is stored, but not yet certain to be in force: {}; a coordinator that is cut off from the metadata \
         store may still use what lacks it under the settings of before. Bring the nodes back, or remove them, and repeat the call",
        reasons(.lacking)
    )]
    FencesOwed {
        /// The tenant.
        tenant: TenantId,
        /// The nodes that have not confirmed it, with the reason.
        lacking: BTreeMap<NodeId, String>,
    },
    /// As many calls about the catalog are under way as there may be.
    #[error(
        "too many administrative calls of this tenant, or of all tenants, are under way here; wait for the answers to earlier ones, and \
         try again"
    )]
    Busy,
    /// The task that carried the change out ended without a result; the log has the reason.
    #[error("internal error; see the log")]
    Lost,
}

/// Nodes with reasons, for people: a few of them.
fn reasons(lacking: &BTreeMap<NodeId, String>) -> String {
    /// A line on a terminal.
    const SHOWN: usize = 5;
    let shown: Vec<String> =
        lacking.iter().take(SHOWN).map(|(node, why)| format!("node {node} has not confirmed it ({why})")).collect();
    let more = lacking.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{}, and {more} others", shown.join(", ")) }
}

/// Tenants, nodes and bindings. Changes to the placement are made one at a time.
pub struct Catalog {
    /// Id of this process, if it holds a lease in a shared metadata store.
    instance: Option<[u8; 16]>,
    metadata: Arc<dyn Metadata>,
    cluster: Arc<dyn Cluster>,
    placing: Arc<Mutex<()>>,
    changes: Turns,
    lookups: Turns,
    /// Fences that nodes owe, as found last.
    owed: Gauge,
    /// Woken when nodes owe fences that nobody waits for.
    owing: Notify,
}

impl Catalog {
    /// A catalog over `metadata` whose changes are applied to `cluster`. `instance`: the holder of this coordinator's lease, where
    /// several coordinators share the store. `changes`: limits of the changes that may be under way.
    pub fn new(
        metadata: Arc<dyn Metadata>,
        cluster: Arc<dyn Cluster>,
        instance: Option<[u8; 16]>,
        changes: TurnLimits,
    ) -> Self {
        let (changes, lookups) = (Turns::new(changes), Turns::new(TurnLimits::LOOKUPS));
        Self {
            instance,
            metadata,
            cluster,
            placing: Arc::default(),
            changes,
            lookups,
            owed: Gauge::default(),
            owing: Notify::new(),
        }
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let counters = [
            ("witan_catalog_changes_refused", "Changes of the catalog refused: too many were under way", &self.changes),
            (
                "witan_catalog_lookups_refused",
                "Look-ups in the catalog refused: too many were under way",
                &self.lookups,
            ),
        ];
        for (name, help, turns) in counters {
            registry.register(name, help, turns.refused().clone());
        }
        let help = "Fences that storage nodes owe: coordinators that do not know of a change may still use these nodes";
        registry.register("witan_owed_fences", help, self.owed.clone());
    }

    /// The turns of changes. Whoever changes something takes one first, and hands it to the change.
    pub fn changes(&self) -> &Turns {
        &self.changes
    }

    /// The turns of look-ups in the metadata store.
    pub fn lookups(&self) -> &Turns {
        &self.lookups
    }
}

/// Runs a change to completion even if its caller is dropped, and holds its turn until then: a change of the placement
/// continues in the stores when its caller has disconnected, and operations that it blocks must stay blocked until it is done.
async fn to_its_end<T: Send + 'static>(
    turn: Turn,
    change: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let changing = async move {
        let changed = change.await;
        drop(turn);
        changed
    };
    tokio::spawn(changing).await.unwrap_or(Err(Refused::Lost))
}
