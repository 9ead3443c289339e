//! A cluster in memory and in paused time: nodes, a metadata store, one tenant with acknowledged records, and any number of leaders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use witan_coordinate::{Coordinator, Defaults, NoCollapses, NothingNoted, Ports, World};
use witan_kernel::context::ContextKeys;
use witan_kernel::hook::{
    Asked, Hooks, Native, Partition, Pending, Plugins, PolicyAnswer, PolicyQuestion, ReadReplica, ResolverQuestion,
    Verdict,
};
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::name::{Era, Key, NodeId, TenantId, WriteId, Zone};
use witan_kernel::placement::{self, Placed};
use witan_kernel::port::{
    ChangeLog, Claim, Claimant, Clock, IdempotencyStore, LeaseStore, Leftover, Metadata, Migration, MigrationStatus,
    MigrationStore, NodeStatus, PlacementChange, PlacementStore, Randomness, StorageNode, StoreError, TenantStore,
    Tenants,
};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::Place;
use witan_kernel::ring::{Rings, token};
use witan_kernel::space::Space;
use witan_kernel::tenant::{Level, Tenant};
use witan_memory::MemoryMetadata;
use witan_upkeep::{Moves, MovesConfig, Upkeep};

use crate::nodes::{Nodes, store};

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

pub(crate) struct NoStore;

impl IdempotencyStore for NoStore {
    async fn step(&self, _: Name, _: Step) -> Result<Stepped, StoreError> {
        Err(StoreError::Unavailable("none".to_owned()))
    }
}

/// The tenant as a coordinator knew it last; `None`: it knows none.
pub(crate) struct Cached(Option<Arc<Tenant>>);

impl Tenants for Cached {
    fn cached(&self, _: &TenantId) -> Option<Arc<Tenant>> {
        self.0.clone()
    }

    async fn tenant(&self, _: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        Ok(self.0.clone())
    }
}

pub(crate) struct InMemory;

impl World for InMemory {
    type Clock = Paused;
    type Randomness = Sixteen;
    type Replicas = Nodes;
    type Idempotency = NoStore;
    type Tenants = Cached;
}

/// The nodes, the metadata store, and what clients were promised.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) nodes: Nodes,
    pub(crate) metadata: MemoryMetadata,
    clock: Paused,
    /// For each key, the highest stamp that was acknowledged.
    acknowledged: Arc<Mutex<BTreeMap<usize, u64>>>,
    pub(crate) hooked: Hooked,
}

pub(crate) fn id(node: usize) -> NodeId {
    NodeId::new(format!("node-{node}")).expect("an id")
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("shop").expect("an id")
}

pub(crate) fn place(key: usize) -> Place {
    place_in(key, 0)
}

/// The place of a key in a generation of the tenant's rows: each has a partition hook of its own.
pub(crate) fn place_in(key: usize, generation: u32) -> Place {
    let key = Key::new(format!("key-{key}")).expect("a key");
    let partition = partition(generation, &key);
    Place { token: token(&tenant(), &partition), space: Space::new(&tenant(), generation), key }
}

fn partition(generation: u32, key: &Key) -> Bytes {
    if generation == 0 { key.bytes().clone() } else { format!("{generation} {key}").into_bytes().into() }
}

/// The partition hooks of the tenant, by generation.
#[derive(Clone, Default)]
pub(crate) struct Hooked {
    /// The key on which hooks fault.
    pub(crate) faults_on: Arc<Mutex<Option<String>>>,
    /// Which generation is not known.
    pub(crate) unknown: Arc<Mutex<Option<u32>>>,
}

impl Plugins for Hooked {
    fn hooks(&self, _: &TenantId) -> Arc<dyn Hooks> {
        Arc::new(self.clone())
    }
}

impl Hooks for Hooked {
    fn policy(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        Native.policy(question)
    }

    fn has_resolver(&self) -> bool {
        false
    }

    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        Native.resolve(question)
    }

    fn partition_key(&self, generation: u32, key: &Key) -> Partition {
        if *self.unknown.lock().unwrap() == Some(generation) {
            return Partition::Unknown;
        }
        if self.faults_on.lock().unwrap().as_ref().is_some_and(|on| *on == key.to_string()) {
            return Partition::Faulted { reason: "out of fuel".to_owned(), by: "bad@1".into() };
        }
        Partition::By { key: partition(generation, key), by: "good@1".into() }
    }

    fn prefer(&self, key: &Key, candidates: &[ReadReplica], zone: Option<&Zone>) -> Asked<Vec<u8>> {
        Native.prefer(key, candidates, zone)
    }
}

fn record(stamp: u64) -> Record {
    let value = (!stamp.is_multiple_of(5)).then(|| Bytes::from_static(b"value"));
    Record::Register(Register::written(Stamp(stamp), WriteId([stamp as u8; 16]), value))
}

pub(crate) fn storage_node(node: usize) -> StorageNode {
    let zone = Zone::default();
    StorageNode { id: id(node), host: "here".to_owned(), port: 1, virtual_nodes: 2, status: NodeStatus::Active, zone }
}

impl Cluster {
    /// This number of nodes, and a tenant with this number of replicas.
    pub(crate) async fn new(nodes: usize, factor: u8) -> Self {
        let clock_began = Instant::now();
        let clock = Paused(clock_began);
        let metadata = MemoryMetadata::new(clock.clone());
        metadata.found_nodes((0..nodes).map(storage_node).collect(), 0).await.expect("founded");
        metadata.create_tenant(Tenant::with_defaults(tenant(), factor, 1)).await.expect("created");
        let cluster =
            Self { nodes: Nodes::default(), metadata, clock, acknowledged: Arc::default(), hooked: Hooked::default() };
        cluster.nodes.set_began(clock_began);
        for node in 0..nodes {
            cluster.meets(node).await;
        }
        cluster
    }

    /// The node reports its first store.
    pub(crate) async fn meets(&self, node: usize) {
        self.nodes.set_away(&id(node), false);
        let met = self.metadata.meet_store(&id(node), store(&id(node), 0), 0, 0).await.expect("met");
        assert_eq!(met.on_record, store(&id(node), 0));
    }

    /// Asks for a placement change.
    pub(crate) async fn change(&self, change: PlacementChange) -> u64 {
        let is_add = match &change {
            PlacementChange::AddNode(node) => Some(node.id.clone()),
            _ => None,
        };
        let number = self.metadata.change_placement(change, 5).await.expect("recorded").number;
        if let Some(node) = is_add {
            self.nodes.set_away(&node, false);
            self.metadata.meet_store(&node, store(&node, 0), 0, 0).await.expect("met");
        }
        number
    }

    pub(crate) async fn migration(&self, number: u64) -> Migration {
        self.metadata.migration(number).await.expect("on record")
    }

    pub(crate) async fn tenant(&self) -> Tenant {
        self.metadata.tenant(&tenant()).await.expect("read").expect("on record")
    }

    pub(crate) async fn leftovers(&self) -> Vec<Leftover> {
        self.metadata.leftovers(None, None).await.expect("read")
    }

    pub(crate) async fn revision(&self) -> u64 {
        self.metadata.changes(u64::MAX).await.expect("read").revision
    }

    async fn rings(&self) -> Rings {
        self.metadata.placement().await.expect("read").rings()
    }

    /// The replicas of a key in a placement.
    pub(crate) async fn replicas(&self, key: usize, at: Placed) -> Vec<NodeId> {
        let rings = self.rings().await;
        let ring = rings.version(at.ring).expect("on record");
        ring.replicas(place_in(key, at.generation).token, at.replication_factor).to_vec()
    }

    /// What a coordinator would do that follows everything.
    pub(crate) async fn plan(&self, key: usize) -> Write {
        let (epoch, tenant) = (self.revision().await, self.tenant().await);
        let old = self.replicas(key, tenant.placed()).await;
        let new = match tenant.moving.filter(|moving| moving.step != placement::Step::Preparing) {
            Some(moving) => self.replicas(key, moving.to).await,
            None => Vec::new(),
        };
        let counts = tenant.moving.is_some_and(|moving| moving.step == placement::Step::Cutover);
        let to = tenant.moving.map_or(tenant.generation, |moving| moving.to.generation);
        Write { key, epoch, old, new, counts, generations: (tenant.generation, to) }
    }

    /// Sends a write. True if its level is met in each placement that counts; then it is acknowledged.
    pub(crate) fn send(&self, write: &Write, stamp: u64, level: Level) -> bool {
        let (from, to) = write.generations;
        let mut all: Vec<(&NodeId, u32)> = write.old.iter().map(|node| (node, from)).collect();
        all.extend(write.new.iter().map(|node| (node, to)));
        all.sort();
        all.dedup();
        let sent = |(node, generation): &(&NodeId, u32)| {
            self.nodes.merge(node, &place_in(write.key, *generation), &record(stamp), write.epoch).is_ok()
        };
        let acks: Vec<(&NodeId, u32)> = all.into_iter().filter(sent).collect();
        let meets = |set: &[NodeId], generation: u32| {
            let required = level.required(set.len() as u8);
            set.iter().filter(|node| acks.contains(&(node, generation))).count() >= usize::from(required)
        };
        let is_met = meets(&write.old, from) && (!write.counts || meets(&write.new, to));
        if is_met {
            let mut acknowledged = self.acknowledged.lock().unwrap();
            let highest = acknowledged.entry(write.key).or_default();
            *highest = stamp.max(*highest);
        }
        is_met
    }

    /// Sends a write to the present replicas alone, as if the coming ones could not be reached.
    pub(crate) fn send_to_old(&self, write: &Write, stamp: u64) -> bool {
        let write = Write { old: write.old.clone(), new: Vec::new(), counts: false, ..*write };
        self.send(&write, stamp, Level::Quorum)
    }

    pub(crate) async fn write(&self, key: usize, stamp: u64, level: Level) -> bool {
        let write = self.plan(key).await;
        self.send(&write, stamp, level)
    }

    /// Records with stamps of their own: every fifth is deleted.
    pub(crate) async fn fill(&self, keys: usize) {
        for key in 0..keys {
            assert!(self.write(key, 1000 + key as u64, Level::Quorum).await);
        }
    }

    /// Another coordinator is live, and says nothing of what it has under way.
    pub(crate) async fn another_coordinator(&self) {
        let claim = Claim {
            node_id: NodeId::new("silent").expect("an id"),
            instance: [99; 16],
            address: "here:1".to_owned(),
            version: "1".to_owned(),
            capabilities: Vec::new(),
        };
        self.metadata.hold_lease(claim, 3_600_000).await.expect("held");
    }

    /// Keys of which a quorum of the present replicas may show less than was acknowledged.
    pub(crate) async fn forgotten(&self) -> Vec<usize> {
        let at = self.tenant().await.placed();
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        let mut forgotten = Vec::new();
        for (key, stamp) in acknowledged {
            let replicas = self.replicas(key, at).await;
            let shows = |node: &&NodeId| match self.nodes.row(node, &place_in(key, at.generation)) {
                Some(Record::Register(register)) => register.stamp >= Stamp(stamp),
                _ => false,
            };
            let have = replicas.iter().filter(shows).count();
            let quorum = usize::from(Level::Quorum.required(at.replication_factor));
            if have + quorum <= replicas.len() {
                forgotten.push(key);
            }
        }
        forgotten
    }

    /// Rows on nodes that hold no replica of them.
    pub(crate) async fn misplaced(&self) -> Vec<(NodeId, Place)> {
        let (at, mut misplaced) = (self.tenant().await.placed(), Vec::new());
        let ring = Arc::clone(self.rings().await.version(at.ring).expect("on record"));
        for node in (0..9).map(id) {
            for place in self.nodes.places(&node, &tenant()) {
                let is_present = place.space.generation() == at.generation;
                if !is_present || !ring.replicas(place.token, at.replication_factor).contains(&node) {
                    misplaced.push((node.clone(), place));
                }
            }
        }
        misplaced
    }

    async fn coordinator(&self, tenant: Option<Arc<Tenant>>) -> Arc<Coordinator<InMemory>> {
        let ports = Ports::<InMemory> {
            clock: self.clock.clone(),
            randomness: Sixteen,
            replicas: self.nodes.clone(),
            idempotency: NoStore,
            tenants: Cached(tenant),
            plugins: Arc::new(self.hooked.clone()),
            collapses: Arc::new(NoCollapses),
            missed: Arc::new(NothingNoted),
        };
        let keys = ContextKeys::new(Era::default(), &[(1, [1; 32])]).expect("keys");
        let coordinator = Coordinator::new(ports, self.rings().await, keys, Defaults::default());
        coordinator.set_followed(self.revision().await);
        coordinator
    }

    /// The upkeep of a coordinator that hears of nothing from now on, and collects what is left of deleted keys.
    pub(crate) async fn collector(&self) -> Arc<Upkeep<InMemory>> {
        let coordinator = self.coordinator(Some(Arc::new(self.tenant().await))).await;
        let metadata: Arc<dyn Metadata> = Arc::new(self.metadata.clone());
        let upkeep = Arc::new(Upkeep::new(coordinator, metadata));
        upkeep.set_collects(true);
        upkeep
    }

    /// A coordinator that may lead, and follows all changes for as long as it lives.
    pub(crate) async fn leader(&self, number: u8) -> Leader {
        self.leader_with(number, MovesConfig::default()).await
    }

    pub(crate) async fn leader_with(&self, number: u8, config: MovesConfig) -> Leader {
        let coordinator = self.coordinator(None).await;
        let metadata: Arc<dyn Metadata> = Arc::new(self.metadata.clone());
        let upkeep = Arc::new(Upkeep::new(Arc::clone(&coordinator), metadata));
        let name = NodeId::new(format!("coordinator-{number}")).expect("an id");
        let claimant = Claimant { coordinator: name, instance: [number; 16] };
        let moves = Moves::new(Arc::clone(&upkeep), claimant, config);
        Leader { cluster: self.clone(), coordinator, upkeep, moves }
    }

    /// Waits, at most for an hour, until something is so.
    pub(crate) async fn wait_until(&self, what: &str, is: impl AsyncFn(&Self) -> bool) {
        let late = Instant::now() + Duration::from_secs(3600);
        while !is(self).await {
            assert!(Instant::now() < late, "{what}: {:?} {:?}", self.tenant().await, self.leftovers().await);
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn wait_for(&self, number: u64, status: MigrationStatus) -> Migration {
        let what = format!("change {number} is {status:?}");
        self.wait_until(&what, async |cluster| cluster.migration(number).await.status == status).await;
        self.migration(number).await
    }
}

/// A write that was planned.
pub(crate) struct Write {
    key: usize,
    pub(crate) epoch: u64,
    pub(crate) old: Vec<NodeId>,
    new: Vec<NodeId>,
    counts: bool,
    /// Of the rows before and after.
    generations: (u32, u32),
}

/// A coordinator that may lead.
pub(crate) struct Leader {
    cluster: Cluster,
    coordinator: Arc<Coordinator<InMemory>>,
    pub(crate) upkeep: Arc<Upkeep<InMemory>>,
    pub(crate) moves: Arc<Moves<InMemory>>,
}

impl Leader {
    /// Leads until the future is dropped.
    pub(crate) async fn lead(self) {
        let follows = async {
            loop {
                sleep(Duration::from_millis(20)).await;
                if let Ok(changes) = self.cluster.metadata.changes(u64::MAX).await {
                    self.coordinator.set_followed(changes.revision);
                }
            }
        };
        tokio::select! {
            biased;
            () = follows => {}
            () = Arc::clone(&self.moves).run(std::future::pending()) => {}
        }
    }
}
