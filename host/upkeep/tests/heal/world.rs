//! A cluster in memory and in paused time: three nodes, each with a map of records, shared by any number of coordinators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use witan_coordinate::{Coordinator, Defaults, MissedChanges, NoCollapses, NothingNoted, Ports, World};
use witan_kernel::context::ContextKeys;
use witan_kernel::hook::{Hooks, Native, Plugins};
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::name::{Era, NodeId, TenantId, Zone};
use witan_kernel::placement::{Moving, Placed};
use witan_kernel::port::{
    Claimant, Duties, IdempotencyStore, Leftover, Metadata, MigrationStore, MoveTenant, NodeStatus, PlacementStore,
    Randomness, StorageNode, StoreError, TenantStore, Tenants, UpkeepClaims,
};
use witan_kernel::replica::Place;
use witan_kernel::ring::{Ring, Rings};
use witan_kernel::slice::Slice;
use witan_kernel::tenant::Tenant;
use witan_memory::MemoryMetadata;
use witan_upkeep::{Healing, HealingConfig, Missed, Upkeep};

pub(crate) use crate::nodes::{Call, id, place};
use crate::nodes::{Nodes, Paused, factor, tenant};

pub(crate) struct Sixteen;

impl Randomness for Sixteen {
    fn sixteen(&self) -> [u8; 16] {
        [7; 16]
    }
}

pub(crate) struct NoStore;

impl IdempotencyStore for NoStore {
    async fn step(&self, _: Name, _: Step) -> Result<Stepped, StoreError> {
        Err(StoreError::Unavailable("none".to_owned()))
    }
}

/// Any tenant. It is in the cache until that is emptied.
#[derive(Clone, Default)]
pub(crate) struct Anyone {
    uncached: Arc<AtomicBool>,
    moving: Arc<Mutex<Option<Moving>>>,
}

impl Anyone {
    fn one(&self, id: &TenantId) -> Tenant {
        Tenant { moving: *self.moving.lock().unwrap(), ..Tenant::with_defaults(id.clone(), factor(id), 1) }
    }
}

impl Tenants for Anyone {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        let is_cached = !self.uncached.load(Ordering::Relaxed);
        is_cached.then(|| Arc::new(self.one(id)))
    }

    async fn tenant(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        Ok(Some(Arc::new(self.one(id))))
    }
}

struct NoPlugins;

impl Plugins for NoPlugins {
    fn hooks(&self, _: &TenantId) -> Arc<dyn Hooks> {
        Arc::new(Native)
    }
}

pub(crate) struct InMemory;

impl World for InMemory {
    type Clock = Paused;
    type Randomness = Sixteen;
    type Replicas = Nodes;
    type Idempotency = NoStore;
    type Tenants = Anyone;
}

/// The nodes, and what coordinators share.
pub(crate) struct Cluster {
    pub(crate) nodes: Nodes,
    pub(crate) metadata: MemoryMetadata,
    tenants: Anyone,
    clock: Paused,
    missed: Mutex<BTreeMap<u8, Arc<Missed>>>,
    ring: Ring,
}

impl Cluster {
    /// Three nodes without a record, and one tenant with three replicas.
    pub(crate) async fn new() -> Self {
        Self::of(3, &[3]).await
    }

    /// Nodes without a record, and a tenant for each of these replication factors.
    pub(crate) async fn of(count: usize, factors: &[u8]) -> Self {
        let clock = Paused(Instant::now());
        let metadata = MemoryMetadata::new(clock.clone());
        let nodes = (0..count).map(|node| StorageNode {
            id: id(node),
            host: "here".to_owned(),
            port: 1,
            virtual_nodes: 8,
            status: NodeStatus::Active,
            zone: Zone::default(),
        });
        metadata.found_nodes(nodes.collect(), 0).await.expect("founded");
        for factor in factors {
            metadata.create_tenant(Tenant::with_defaults(tenant(*factor), *factor, 1)).await.expect("created");
        }
        let nodes = Nodes { all: Arc::default(), traps: Arc::default(), clock: clock.clone() };
        (0..count).for_each(|node| nodes.set_away(node, false));
        let ring = Ring::new(&(0..count).map(|node| (id(node), 8)).collect::<Vec<_>>(), 1);
        Self { nodes, metadata, tenants: Anyone::default(), clock, missed: Mutex::default(), ring }
    }

    /// The replicas of a place.
    pub(crate) fn replicas(&self, place: &Place) -> Vec<NodeId> {
        self.ring.replicas(place.token, factor(&place.tenant())).to_vec()
    }

    /// From now on no coordinator has a tenant in its cache.
    pub(crate) fn forget_tenants(&self) {
        self.tenants.uncached.store(true, Ordering::Relaxed);
    }

    /// From now on the tenant is said to be in this step of a move.
    pub(crate) fn set_moving(&self, moving: Option<Moving>) {
        *self.tenants.moving.lock().unwrap() = moving;
    }

    /// A move of the tenant has left rows on a node.
    pub(crate) async fn leave_over(&self) -> Leftover {
        let (store, to) = (&self.metadata, Placed { ring: 0, replication_factor: 2, generation: 0 });
        let version = store.tenant(&tenant(3)).await.expect("it is read").expect("it is there").version;
        let moved = store.move_tenant(&tenant(3), version, MoveTenant::Prepare(to), 1).await.expect("published");
        let given_up = MoveTenant::GiveUp(vec![id(0)]);
        store.move_tenant(&tenant(3), moved.tenant.version, given_up, 1).await.expect("published");
        store.leftovers(None, None).await.expect("read").remove(0)
    }

    pub(crate) async fn cleaned(&self, left: &Leftover) {
        self.metadata.leftover_cleaned(&left.tenant, &left.node, left.epoch).await.expect("noted");
    }

    fn coordinator(&self) -> Arc<Coordinator<InMemory>> {
        let ports = Ports::<InMemory> {
            clock: self.clock.clone(),
            randomness: Sixteen,
            replicas: self.nodes.clone(),
            idempotency: NoStore,
            tenants: self.tenants.clone(),
            plugins: Arc::new(NoPlugins),
            collapses: Arc::new(NoCollapses),
            missed: Arc::new(NothingNoted),
        };
        let keys = ContextKeys::new(Era::default(), &[(1, [1; 32])]).expect("keys");
        Coordinator::new(ports, Rings::one(self.ring.clone()), keys, Defaults::default())
    }

    /// A coordinator's upkeep.
    pub(crate) fn upkeep(&self) -> Arc<Upkeep<InMemory>> {
        self.upkeep_of(self.coordinator(), Arc::default())
    }

    fn upkeep_of(&self, coordinator: Arc<Coordinator<InMemory>>, missed: Arc<Missed>) -> Arc<Upkeep<InMemory>> {
        let metadata: Arc<dyn Metadata> = Arc::new(self.metadata.clone());
        let upkeep = Arc::new(Upkeep::new(coordinator, metadata).with_missed(missed));
        upkeep.set_collects(true);
        upkeep
    }

    /// What nodes have missed of the changes of a coordinator.
    pub(crate) fn missed(&self, number: u8) -> Arc<Missed> {
        Arc::clone(self.missed.lock().unwrap().entry(number).or_default())
    }

    /// A coordinator has written a key with this stamp to the other nodes, and one of them has missed it.
    pub(crate) fn write_missed_by(&self, number: u8, node: usize, key: usize, stamp: u64) {
        (0..3).filter(|other| *other != node).for_each(|other| self.nodes.put(other, key, stamp));
        self.miss(number, node, key);
    }

    /// A node has missed a coordinator's change of a key.
    pub(crate) fn miss(&self, number: u8, node: usize, key: usize) {
        self.missed(number).missed(&id(node), Slice::of(place(3, key).token));
    }

    /// The healing of a coordinator of its own, which begins at once.
    pub(crate) fn healing(&self, number: u8, config: &HealingConfig) -> Arc<Healing<InMemory>> {
        self.healing_of(self.coordinator(), number, config)
    }

    /// The same, of a coordinator that has followed all changes up to this revision.
    pub(crate) fn healing_at(
        &self,
        revision: u64,
        config: &HealingConfig,
    ) -> (Arc<Coordinator<InMemory>>, Arc<Healing<InMemory>>) {
        let coordinator = self.coordinator();
        coordinator.set_followed(revision);
        (Arc::clone(&coordinator), self.healing_of(coordinator, 1, config))
    }

    /// The same as [`Self::healing`], with the coordinator's upkeep.
    pub(crate) fn healing_with(
        &self,
        number: u8,
        config: &HealingConfig,
    ) -> (Arc<Upkeep<InMemory>>, Arc<Healing<InMemory>>) {
        let upkeep = self.upkeep();
        (Arc::clone(&upkeep), Self::healing_as(upkeep, number, config))
    }

    fn healing_of(
        &self,
        coordinator: Arc<Coordinator<InMemory>>,
        number: u8,
        config: &HealingConfig,
    ) -> Arc<Healing<InMemory>> {
        Self::healing_as(self.upkeep_of(coordinator, self.missed(number)), number, config)
    }

    fn healing_as(upkeep: Arc<Upkeep<InMemory>>, number: u8, config: &HealingConfig) -> Arc<Healing<InMemory>> {
        let id = NodeId::new(format!("coordinator-{number}")).expect("an id");
        let claimant = Claimant { coordinator: id, instance: [number; 16] };
        Healing::new(upkeep, claimant, config.clone(), Duration::ZERO)
    }

    pub(crate) async fn duties(&self) -> Duties {
        self.metadata.duties().await.expect("duties")
    }
}
