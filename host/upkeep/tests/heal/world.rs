//! A cluster in memory and in paused time: three nodes, each with a map of records, shared by any number of coordinators.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use witan_coordinate::{Coordinator, Defaults, NoCollapses, Ports, World};
use witan_kernel::context::ContextKeys;
use witan_kernel::hook::{Hooks, Native, Plugins, ReplicaState};
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::name::{Era, Key, NodeId, StoreId, TenantId, WriteId, Zone};
use witan_kernel::port::{
    Claimant, Clock, Duties, IdempotencyStore, Metadata, NodeStatus, PlacementStore, Randomness, Replicas, Reply,
    StorageNode, StoreError, TenantStore, Tenants, UpkeepClaims,
};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Place, ReplicaError, Request};
use witan_kernel::ring::{Ring, Rings, token};
use witan_kernel::scan::{Clear, Cleared, Dropped, Found, Page, Ranges, Scan, Standing, Trust};
use witan_kernel::tenant::Tenant;
use witan_memory::MemoryMetadata;
use witan_upkeep::{Healing, HealingConfig, Upkeep};

/// Time that passes only while a test waits.
#[derive(Clone)]
pub(crate) struct Paused(Instant);

impl Clock for Paused {
    fn wall_micros(&self) -> u64 {
        1_800_000_000_000_000 + self.monotonic_micros()
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

pub(crate) struct Sixteen;

impl Randomness for Sixteen {
    fn sixteen(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// What a node has, and what it was sent.
#[derive(Default)]
struct Node {
    records: BTreeMap<(u64, Bytes), (Place, Encoded)>,
    /// Until then, it answers no merge.
    hangs_until: Option<Instant>,
    away: bool,
    /// How often it has gone.
    outages: u64,
    /// It refuses merges of an earlier epoch.
    fence: u64,
    /// Those that it has refused: the epoch of each, and its place.
    refused: Vec<(u64, Place)>,
    /// The merges that it was sent: when, and the stamps in them.
    merges: Vec<(Instant, Stamp)>,
    /// The bytes of records that were read.
    read: u64,
}

/// Three nodes.
#[derive(Clone, Default)]
pub(crate) struct Nodes(Arc<Mutex<BTreeMap<NodeId, Node>>>);

impl Nodes {
    fn all(&self) -> MutexGuard<'_, BTreeMap<NodeId, Node>> {
        self.0.lock().unwrap()
    }

    fn with<T>(&self, node: &NodeId, look: impl FnOnce(&mut Node) -> T) -> T {
        look(self.all().entry(node.clone()).or_default())
    }

    /// Stores a record on a node.
    pub(crate) fn put(&self, node: usize, key: usize, stamp: u64) {
        let place = place(key);
        let write = WriteId([stamp as u8; 16]);
        let register = Register::written(Stamp(stamp), write, Some(Bytes::from_static(&[7; 100])));
        let at = (place.token, place.key.bytes().clone());
        let record = Record::Register(register).encode();
        self.with(&id(node), |node| node.records.insert(at, (place, record)));
    }

    pub(crate) fn hang_until(&self, node: usize, until: Instant) {
        self.with(&id(node), |node| node.hangs_until = Some(until));
    }

    pub(crate) fn set_away(&self, node: usize, away: bool) {
        self.with(&id(node), |node| {
            node.outages += u64::from(away && !node.away);
            node.away = away;
        });
    }

    pub(crate) fn set_fence(&self, node: usize, fence: u64) {
        self.with(&id(node), |node| node.fence = fence);
    }

    /// The merges that a node has refused: the epoch of each, and its place.
    pub(crate) fn refused(&self, node: usize) -> Vec<(u64, Place)> {
        self.with(&id(node), |node| node.refused.clone())
    }

    /// Whether a node has a record.
    pub(crate) fn has(&self, node: usize, place: &Place) -> bool {
        self.with(&id(node), |node| node.records.contains_key(&(place.token, place.key.bytes().clone())))
    }

    pub(crate) fn merges(&self, node: usize) -> Vec<(Instant, Stamp)> {
        self.with(&id(node), |node| node.merges.clone())
    }

    pub(crate) fn read(&self) -> u64 {
        self.all().values().map(|node| node.read).sum()
    }

    /// Whether all nodes have the same.
    pub(crate) fn are_level(&self) -> bool {
        let nodes = self.all();
        let mut all = nodes.values().map(|node| &node.records);
        let Some(first) = all.next() else { return true };
        all.all(|records| records == first)
    }

    fn merge(&self, node: &NodeId, place: &Place, record: &Encoded) {
        self.with(node, |node| {
            let at = (place.token, place.key.bytes().clone());
            let own = node.records.get(&at).map(|(_, own)| own.decode().expect("a record"));
            let merged = Record::merge(own, record.decode().expect("a record")).expect("the same mode").0;
            node.records.insert(at, (place.clone(), merged.encode()));
        });
    }
}

impl Replicas for Nodes {
    fn send(&self, node: &NodeId, request: Request, _: u64, reply: Reply) {
        let Ask::Merge { record } = request.ask else { panic!("only merges are sent: {request:?}") };
        let Ok(Record::Register(register)) = record.decode() else { panic!("a register") };
        let is_stale = self.with(node, |node| {
            let is_stale = request.epoch < node.fence;
            node.refused.extend(is_stale.then(|| (request.epoch, request.place.clone())));
            is_stale
        });
        if is_stale {
            return reply.answer(Err(ReplicaError::StaleEpoch));
        }
        let hangs = self.with(node, |node| {
            node.merges.push((Instant::now(), register.stamp));
            node.hangs_until.is_some_and(|until| Instant::now() < until)
        });
        if hangs {
            // Lanes answer at the deadline, which is five seconds after the merge was sent.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                reply.answer(Err(ReplicaError::Late));
            });
            return;
        }
        self.merge(node, &request.place, &record);
        reply.answer(Ok(Answer::Merged { superseded: false, told: Vec::new() }));
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        let reachable = self.with(node, |node| !node.away);
        ReplicaState { reachable, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 }
    }

    fn incarnation(&self, _: &NodeId) -> u64 {
        1
    }

    fn recent_state(&self, node: &NodeId) -> ReplicaState {
        self.state(node)
    }

    fn has_names(&self, _: &NodeId) -> bool {
        true
    }

    fn outages(&self, node: &NodeId) -> u64 {
        self.with(node, |node| node.outages)
    }
}

impl Ranges for Nodes {
    async fn stores_changed(&self) {}

    fn standing(&self, node: &NodeId) -> Option<Standing> {
        let away = self.with(node, |node| node.away);
        (!away).then_some(Standing { store: store(node), trust: Trust::Whole })
    }

    async fn scan(&self, node: &NodeId, scan: Scan) -> Result<Page, ReplicaError> {
        self.with(node, |own| {
            if own.away {
                return Err(ReplicaError::NotSent(node.clone()));
            }
            let after = scan.after.map(|after| (after.token, after.key.bytes().clone()));
            let within = own.records.iter().filter(|(at, _)| {
                (scan.from..=scan.to).contains(&at.0) && after.as_ref().is_none_or(|after| *at > after)
            });
            let mut found = Vec::new();
            let (mut bytes, mut is_last) = (0, true);
            for (_, (place, record)) in within {
                if found.len() >= scan.records as usize || bytes >= scan.bytes as usize {
                    is_last = false;
                    break;
                }
                bytes += record.0.len();
                found.push(Found { place: place.clone(), record: Some(record.clone()) });
            }
            own.read += bytes as u64;
            let next = if is_last { None } else { found.last().map(|found: &Found| found.place.clone()) };
            Ok(Page { store: store(node), found, next })
        })
    }

    async fn drop_tenant(&self, _: &NodeId, _: TenantId, _: Option<Place>) -> Result<Dropped, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }

    async fn raise_fence(&self, _: &NodeId, _: Option<&TenantId>, _: u64) -> Result<StoreId, ReplicaError> {
        Err(ReplicaError::Overloaded)
    }

    async fn clear(&self, _: &NodeId, _: Clear) -> Result<Cleared, ReplicaError> {
        Err(ReplicaError::Overloaded)
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
}

impl Tenants for Anyone {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        let is_cached = !self.uncached.load(Ordering::Relaxed);
        is_cached.then(|| Arc::new(Tenant::with_defaults(id.clone(), 3, 1)))
    }

    async fn tenant(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        Ok(Some(Arc::new(Tenant::with_defaults(id.clone(), 3, 1))))
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
}

impl Cluster {
    /// Three nodes without a record, and one tenant with three replicas.
    pub(crate) async fn new() -> Self {
        let clock = Paused(Instant::now());
        let metadata = MemoryMetadata::new(clock.clone());
        let nodes = (0..3).map(|node| StorageNode {
            id: id(node),
            host: "here".to_owned(),
            port: 1,
            virtual_nodes: 8,
            status: NodeStatus::Active,
            zone: Zone::default(),
        });
        metadata.found_nodes(nodes.collect(), 0).await.expect("founded");
        metadata.create_tenant(Tenant::with_defaults(tenant(), 3, 1)).await.expect("created");
        let nodes = Nodes::default();
        (0..3).for_each(|node| nodes.set_away(node, false));
        Self { nodes, metadata, tenants: Anyone::default(), clock }
    }

    /// From now on no coordinator has a tenant in its cache.
    pub(crate) fn forget_tenants(&self) {
        self.tenants.uncached.store(true, Ordering::Relaxed);
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
        };
        let ring = Ring::new(&[(id(0), 8), (id(1), 8), (id(2), 8)], 1);
        let keys = ContextKeys::new(Era::default(), &[(1, [1; 32])]).expect("keys");
        Coordinator::new(ports, Rings::one(ring), keys, Defaults::default())
    }

    /// A coordinator's upkeep.
    pub(crate) fn upkeep(&self) -> Arc<Upkeep<InMemory>> {
        self.upkeep_of(self.coordinator())
    }

    fn upkeep_of(&self, coordinator: Arc<Coordinator<InMemory>>) -> Arc<Upkeep<InMemory>> {
        let metadata: Arc<dyn Metadata> = Arc::new(self.metadata.clone());
        Arc::new(Upkeep::new(coordinator, metadata))
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

    fn healing_of(
        &self,
        coordinator: Arc<Coordinator<InMemory>>,
        number: u8,
        config: &HealingConfig,
    ) -> Arc<Healing<InMemory>> {
        let id = NodeId::new(format!("coordinator-{number}")).expect("an id");
        let claimant = Claimant { coordinator: id, instance: [number; 16] };
        Healing::new(self.upkeep_of(coordinator), claimant, config.clone(), Duration::ZERO)
    }

    pub(crate) async fn duties(&self) -> Duties {
        self.metadata.duties().await.expect("duties")
    }
}

pub(crate) fn id(node: usize) -> NodeId {
    NodeId::new(format!("node-{node}")).expect("an id")
}

fn store(node: &NodeId) -> StoreId {
    let bytes = node.as_str().as_bytes();
    StoreId([bytes[bytes.len() - 1]; 16])
}

fn tenant() -> TenantId {
    TenantId::new("t").expect("an id")
}

fn place(key: usize) -> Place {
    let key = Key::new(format!("key-{key}")).expect("a key");
    Place { token: token(&tenant(), key.bytes()), tenant: tenant(), key }
}
