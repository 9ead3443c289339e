//! The machines: storage nodes with their disks, coordinators, and how each starts and restarts.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use turmoil::net::TcpListener;
use witan_control::stores::Progress;
use witan_control::{register, rings};
use witan_coordinate::{
    Coordinator, Defaults, Ports, ReadAnswer, ReadRequest, Respond, UnderWay, World, WriteRequest, Written,
};
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::Failed;
use witan_kernel::name::{Era, Key, NodeId, StoreId};
use witan_kernel::port::{
    Claimant, Metadata, NodeStatus, PlacementStore, Randomness, Replicas, SecretStore, StorageNode, TenantStore,
};
use witan_kernel::record::Record;
use witan_kernel::replica::Place;
use witan_kernel::ring::{Rings, token};
use witan_kernel::scan::{Ranges, Standing};
use witan_kernel::tenant::Tenant;
use witan_memory::MemoryMetadata;
use witan_node::batch::Durability;
use witan_node::driver::{Inline, QueueLimits};
use witan_node::engine::simulated::Disk;
use witan_node::row;
use witan_node::server::{self, Guard, Limits};
use witan_node::store::Store;
use witan_peer::Lanes;
use witan_upkeep::{Healing, HealingConfig, Sweep, Upkeep};

use crate::collapses::Collapsed;
use crate::nemesis::Link;
use crate::oracle::{self, Content};
use crate::plugins::Bound;
use crate::scenario::Scenario;
use crate::stores::{Idempotency, Known, View};
use crate::world::{Accepted, Dial, Dice, Gate, SimClock, lock};

const PORT: u16 = 50052;
/// Points of each node on the ring: enough to spread keys over a few nodes, and cheap to compute for each simulation.
const VIRTUAL_NODES: u32 = 16;

/// The ports of the simulation.
pub(crate) struct Simulated;

impl World for Simulated {
    type Clock = SimClock;
    type Randomness = Dice;
    type Replicas = Arc<Lanes<SimClock, Dial>>;
    type Idempotency = Idempotency;
    type Tenants = View;
}

/// A storage node's machine: the state that outlives its process.
pub(crate) struct NodeMachine {
    pub(crate) name: String,
    pub(crate) id: NodeId,
    disk: Mutex<Disk>,
    /// A disk that the node does not have at present.
    shelf: Mutex<Disk>,
    pub(crate) clock: SimClock,
    /// The longest duration of a sync at present, milliseconds.
    slowest_sync_ms: Arc<AtomicU64>,
    store: Mutex<Option<Arc<Store>>>,
    /// The rows that were damaged and have not been found in that state again, newest last.
    flipped: Mutex<Vec<Flipped>>,
    dice: Dice,
}

/// A row with a flipped bit.
struct Flipped {
    row: Bytes,
    value: Bytes,
    bit: usize,
}

/// Requests of one lane that a node has accepted and not answered: as few as it allows, so that a permit that is never returned shows.
const LANE_REQUESTS: usize = 256;

/// The pause before a node that could not start is started again.
const STARTED_AGAIN: Duration = Duration::from_millis(100);

impl NodeMachine {
    async fn run(self: Arc<Self>) -> turmoil::Result {
        let store = loop {
            match Store::open(Box::new(self.disk().open()), &self.id, &self.dice) {
                // It does not start until somebody replaces the disk.
                Err(_) if self.disk().is_damaged() => std::future::pending().await,
                // It ends, and is started again, until the disk can be used.
                Err(_) if self.disk().is_failing() => tokio::time::sleep(STARTED_AGAIN).await,
                store => break Arc::new(store?),
            }
        };
        *lock(&self.store) = Some(Arc::clone(&store));
        let (dice, slowest) = (self.dice.clone(), Arc::clone(&self.slowest_sync_ms));
        let sync_takes = Box::new(move || dice.millis(1, slowest.load(Ordering::Relaxed).max(1)));
        let clock = self.clock.clone();
        let driver = Inline::start(store, Durability::Sync, QueueLimits::default(), clock.clone(), sync_takes);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
            Some((accepted, listener))
        });
        let id = self.id.clone();
        let (limits, guard) = (Limits { lane_requests: LANE_REQUESTS, ..Limits::default() }, Guard::default());
        server::serve(incoming, id, Arc::new(driver), clock, limits, guard, std::future::pending()).await?;
        Ok(())
    }

    pub(crate) fn disk(&self) -> Disk {
        lock(&self.disk).clone()
    }

    /// Puts a copy of what is synced on the shelf.
    pub(crate) fn copy_disk(&self) {
        *lock(&self.shelf) = self.disk().copy();
    }

    /// Exchanges its disk for the one on the shelf. The node must be down.
    pub(crate) fn swap_disk(&self) {
        std::mem::swap(&mut *lock(&self.disk), &mut *lock(&self.shelf));
    }

    /// The id of its present store; `None` while it is down.
    pub(crate) fn store_id(&self) -> Option<StoreId> {
        lock(&self.store).as_ref().map(|store| store.id())
    }

    pub(crate) fn set_slowest_sync(&self, ms: u64) {
        self.slowest_sync_ms.store(ms, Ordering::Relaxed);
    }

    /// What is on its disk at a place, synced or not.
    pub(crate) fn content(&self, place: &Place) -> Result<Option<Content>, String> {
        let row = oracle::row(place.token, place.tenant.bytes(), place.key.bytes());
        self.disk().peek(&row).map(|value| oracle::read(&value)).transpose()
    }

    /// Changes the record at a place, as if it had been written so.
    pub(crate) fn rewrite(&self, place: &Place, change: impl FnOnce(&mut Record)) {
        let Some(store) = lock(&self.store).clone() else { return };
        let row = row::key(place);
        let Ok(Some((birth, encoded))) = store.load(&row) else { return };
        let Ok(mut record) = encoded.decode() else { return };
        change(&mut record);
        let mut envelope = BytesMut::new();
        row::put_envelope(&row, birth, &record.encode(), &mut envelope);
        let written = store.write_rows(vec![(row, Some(envelope.freeze()))]);
        written.and_then(|()| store.sync()).expect("the disk works");
        // The shards drop what they have cached.
        self.disk().reopen();
    }

    /// Inverts a bit of a row on its disk.
    pub(crate) fn flip(&self, place: &Place, bit: usize) {
        let row = Bytes::from(oracle::row(place.token, place.tenant.bytes(), place.key.bytes()));
        let disk = self.disk();
        if disk.flip(&row, bit)
            && let Some(value) = disk.peek(&row)
        {
            lock(&self.flipped).push(Flipped { row, value, bit });
        }
    }

    /// Inverts the bits again that are still inverted. A row that was written since is left alone, but a loss of power may bring its
    /// damaged state back.
    pub(crate) fn unflip(&self) {
        let (disk, mut flipped) = (self.disk(), lock(&self.flipped));
        for at in (0..flipped.len()).rev() {
            let Flipped { row, value, bit } = &flipped[at];
            if disk.peek(row).as_ref() == Some(value) {
                disk.flip(row, *bit);
                flipped.remove(at);
            }
        }
    }
}

/// A client's request to a coordinator, with the channel for the response.
pub(crate) enum Call {
    Write(WriteRequest, oneshot::Sender<Result<Written, Failed>>),
    Read(ReadRequest, oneshot::Sender<Result<ReadAnswer, Failed>>),
    /// A repair of everything, which pauses between reading metadata and comparing records.
    Repair(Duration, oneshot::Sender<String>),
}

/// Access to a running coordinator.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) calls: mpsc::UnboundedSender<Call>,
    coordinator: Arc<Coordinator<Simulated>>,
}

impl Doors {
    pub(crate) fn coordinator(&self) -> Arc<Coordinator<Simulated>> {
        Arc::clone(&self.coordinator)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.coordinator.in_flight()
    }

    /// What has not been given back although no operation is under way.
    pub(crate) fn under_way(&self) -> UnderWay {
        self.coordinator.under_way()
    }

    /// Requests to a node that it has not answered, as this coordinator counts them.
    pub(crate) fn unanswered(&self, node: &NodeId) -> u32 {
        self.coordinator.ports().replicas.state(node).in_flight
    }

    /// A node's store and whether it is whole, as this coordinator knows it.
    pub(crate) fn standing(&self, node: &NodeId) -> Option<Standing> {
        self.coordinator.ports().replicas.standing(node)
    }
}

/// A coordinator's machine.
pub(crate) struct CoordinatorMachine {
    pub(crate) name: String,
    pub(crate) clock: SimClock,
    /// The tenants as it sees them.
    pub(crate) view: View,
    /// Closed while its process is stopped.
    gate: Gate,
    /// How often it was started or stopped.
    lives: AtomicU64,
    doors: Mutex<Option<Doors>>,
    shared: Arc<Shared>,
}

/// What coordinators share, above all the metadata and idempotency stores.
struct Shared {
    nodes: Vec<StorageNode>,
    rings: Rings,
    idempotency: Idempotency,
    metadata: Arc<dyn Metadata>,
    plugins: Bound,
    collapsed: Collapsed,
    dice: Dice,
    strict: bool,
    /// Whether a write is asked about before it is repeated.
    asks: bool,
    heals: Option<HealingConfig>,
}

/// How long after its start a coordinator begins to heal.
const HEALING_BEGINS: Duration = Duration::from_secs(1);
/// How often a coordinator checks again on stores that it does not believe.
const WATCH_STORES: Duration = Duration::from_millis(500);

impl CoordinatorMachine {
    async fn run(self: Arc<Self>) -> turmoil::Result {
        let dial = Dial {
            metadata: Arc::clone(&self.shared.metadata),
            strict: self.shared.strict,
            away: Arc::clone(&self.view.away),
        };
        let lanes = Arc::new(Lanes::new(self.clock.clone(), dial, self.name.clone()));
        lanes.set_nodes(&self.shared.nodes);
        let (watched, reached, away) = (Arc::clone(&lanes), Arc::clone(&lanes), Arc::clone(&self.view.away));
        let metadata = Arc::clone(&self.shared.metadata);
        tokio::spawn(async move {
            let mut progress = Progress::default();
            loop {
                tokio::time::sleep(WATCH_STORES).await;
                watched.meet_again(false).await;
                if !away.load(Ordering::Relaxed) {
                    // The in-memory store itself does not fail.
                    let _ = progress.note(metadata.as_ref(), watched.commits()).await;
                }
            }
        });
        let (collapses, reported) = witan_upkeep::reports();
        let ports = Ports {
            clock: self.clock.clone(),
            randomness: self.shared.dice.clone(),
            replicas: lanes,
            idempotency: self.shared.idempotency.behind(&self.gate),
            tenants: self.view.clone(),
            plugins: Arc::new(self.shared.plugins.clone()),
            collapses: self.shared.collapsed.noting(collapses),
        };
        let rings = self.shared.rings.clone();
        let keys = context_keys(self.shared.metadata.as_ref()).await;
        let coordinator = Coordinator::new(ports, rings, keys, Defaults::default());
        coordinator.set_names(self.shared.asks);
        let (metadata, away) = (Arc::clone(&self.shared.metadata), Arc::clone(&self.view.away));
        let follower = Arc::downgrade(&coordinator);
        tokio::spawn(async move {
            while let Some(coordinator) = follower.upgrade() {
                if !away.load(Ordering::Relaxed) {
                    coordinator.set_context_keys(context_keys(metadata.as_ref()).await);
                }
                drop(coordinator);
                tokio::time::sleep(WATCH_STORES).await;
            }
        });
        let upkeep = Arc::new(Upkeep::new(Arc::clone(&coordinator), Arc::clone(&self.shared.metadata)));
        tokio::spawn(Upkeep::collapse_reported(Arc::downgrade(&upkeep), reported));
        if let Some(config) = self.shared.heals.clone() {
            let claimant = Claimant { coordinator: NodeId::new(&self.name)?, instance: self.shared.dice.sixteen() };
            let healing = Healing::new(Arc::clone(&upkeep), claimant, config, HEALING_BEGINS);
            tokio::spawn(async move {
                // As in production, so that no node seems to be away only because it was not asked yet.
                reached.tried().await;
                healing.run(std::future::pending()).await;
            });
        }
        let (sender, mut calls) = mpsc::unbounded_channel();
        *lock(&self.doors) = Some(Doors { calls: sender, coordinator: Arc::clone(&coordinator) });
        self.lives.fetch_add(1, Ordering::Relaxed);
        while let Some(call) = calls.recv().await {
            self.gate.opened().await;
            match call {
                Call::Write(request, to) => coordinator.write(request, self.respond(to)),
                Call::Read(request, to) => coordinator.read(request, self.respond(to)),
                Call::Repair(pause, to) => {
                    let upkeep = Arc::clone(&upkeep);
                    tokio::spawn(async move { to.send(repair(&upkeep, pause).await) });
                }
            }
        }
        Ok(())
    }

    /// Passes an answer on, once the process runs.
    fn respond<T: Send + 'static>(&self, to: oneshot::Sender<Result<T, Failed>>) -> Respond<T> {
        let gate = self.gate.clone();
        Box::new(move |result| {
            // Sending fails when the client has given up, which is fine.
            if gate.is_open() {
                drop(to.send(result));
                return;
            }
            tokio::spawn(async move {
                gate.opened().await;
                drop(to.send(result));
            });
        })
    }

    /// A number that changes whenever it is started or stopped; `None` while it is down or stopped.
    pub(crate) fn life(&self) -> Option<u64> {
        (self.gate.is_open() && self.doors().is_some()).then(|| self.lives.load(Ordering::Relaxed))
    }

    /// `None` while it is down.
    pub(crate) fn doors(&self) -> Option<Doors> {
        lock(&self.doors).clone()
    }
}

/// Repairs everything, and describes the result.
async fn repair(upkeep: &Arc<Upkeep<Simulated>>, pause: Duration) -> String {
    let repair = match upkeep.begin_repair(Sweep::everything()).await {
        Ok(repair) => repair,
        Err(error) => return format!("not begun: {error}"),
    };
    tokio::time::sleep(pause).await;
    let (progress, mut progresses) = mpsc::channel(1);
    let listening = tokio::spawn(async move { while progresses.recv().await.is_some() {} });
    let repaired = repair.run(progress).await;
    listening.abort();
    format!("{repaired:?}")
}

/// All machines.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Arc<NodeMachine>>,
    pub(crate) coordinators: Vec<Arc<CoordinatorMachine>>,
    pub(crate) idempotency: Idempotency,
    pub(crate) tenants: Vec<Tenant>,
    /// Questions that plugins fail to answer, per mille.
    pub(crate) faulty: Arc<AtomicU64>,
    pub(crate) collapsed: Collapsed,
    metadata: MemoryMetadata,
    known: Known,
    rings: Rings,
    links: Arc<Mutex<HashMap<(usize, usize), Link>>>,
}

impl Cluster {
    pub(crate) fn new(scenario: &Scenario, tenants: Vec<Tenant>, bound: Bound, dice: &Dice) -> Self {
        let (nodes, coordinators) = (scenario.nodes, scenario.coordinators);
        let nodes: Vec<Arc<NodeMachine>> = (1..=nodes).map(|n| Arc::new(node(format!("n{n}"), dice))).collect();
        let on_record: Vec<StorageNode> = nodes.iter().map(|node| at(node)).collect();
        let metadata = MemoryMetadata::new(SimClock::default());
        at_once(register(&metadata, &on_record, 0)).expect("registers the nodes");
        let placement = at_once(metadata.placement()).expect("the nodes are on record");
        let (rings, known, faulty) = (rings(&placement), Known::default(), Arc::clone(&bound.faulty));
        let collapsed = Collapsed::default();
        let idempotency = Idempotency::new(dice.clone());
        let shared = Arc::new(Shared {
            nodes: on_record,
            rings: rings.clone(),
            idempotency: idempotency.clone(),
            metadata: Arc::new(metadata.clone()),
            plugins: bound,
            collapsed: collapsed.clone(),
            dice: dice.clone(),
            strict: scenario.strict,
            asks: scenario.asks,
            heals: scenario.heals.clone(),
        });
        let coordinator = |n| CoordinatorMachine {
            name: format!("c{n}"),
            clock: SimClock::default(),
            view: View::new(known.clone(), dice.clone()),
            gate: Gate::default(),
            lives: AtomicU64::default(),
            doors: Mutex::default(),
            shared: Arc::clone(&shared),
        };
        let coordinators = (1..=coordinators).map(|n| Arc::new(coordinator(n))).collect();
        let links = Arc::default();
        let cluster =
            Self { nodes, coordinators, idempotency, tenants, faulty, collapsed, metadata, known, rings, links };
        let from_the_start = scenario.casts.iter().enumerate().filter(|(_, cast)| !cast.comes_later);
        from_the_start.for_each(|(tenant, _)| cluster.create_tenant(tenant));
        cluster
    }

    /// Creates a tenant of the scenario.
    pub(crate) fn create_tenant(&self, tenant: usize) {
        let tenant = self.tenants[tenant].clone();
        let created = at_once(self.metadata.create_tenant(tenant)).expect("creates the tenant");
        self.known.add(created);
    }

    /// The metadata store.
    pub(crate) fn metadata(&self) -> MemoryMetadata {
        self.metadata.clone()
    }

    /// The tenants that exist.
    pub(crate) fn known(&self) -> Known {
        self.known.clone()
    }

    /// An operator declares that a copy of the whole cluster was restored.
    pub(crate) fn declare_restored(&self) {
        at_once(self.metadata.begin_era(Era([1; 16]), [2; 32], 0, 0)).expect("begins an era");
    }

    /// What the metadata store has now.
    pub(crate) fn copy_metadata(&self) -> MemoryMetadata {
        self.metadata.copy()
    }

    /// The metadata store goes back to a copy.
    pub(crate) fn restore_metadata(&self, copy: &MemoryMetadata) {
        self.metadata.restore(copy);
    }

    /// Adds every machine to the simulation.
    pub(crate) fn boot(&self, sim: &mut turmoil::Sim<'_>) {
        for node in &self.nodes {
            let machine = Arc::clone(node);
            sim.host(node.name.as_str(), move || Arc::clone(&machine).run());
        }
        for coordinator in &self.coordinators {
            let machine = Arc::clone(coordinator);
            sim.host(coordinator.name.as_str(), move || Arc::clone(&machine).run());
        }
    }

    /// A node loses power. `survivors` maps its number of unsynced batches to the number that survive.
    pub(crate) fn crash_node(&self, sim: &mut turmoil::Sim<'_>, node: usize, survivors: impl FnOnce(usize) -> usize) {
        let machine = &self.nodes[node];
        if sim.is_host_running(machine.name.as_str()) {
            machine.disk().crash_keeping(survivors);
            *lock(&machine.store) = None;
            let links = (0..self.coordinators.len()).map(|coordinator| (coordinator, node));
            self.cut_power(sim, &machine.name, links.collect());
        }
    }

    /// A coordinator loses power.
    pub(crate) fn crash_coordinator(&self, sim: &mut turmoil::Sim<'_>, coordinator: usize) {
        let machine = &self.coordinators[coordinator];
        if sim.is_host_running(machine.name.as_str()) {
            *lock(&machine.doors) = None;
            machine.gate.set_open(true);
            let links = (0..self.nodes.len()).map(|node| (coordinator, node));
            self.cut_power(sim, &machine.name, links.collect());
        }
    }

    /// A coordinator's process is stopped, as if by a signal, or continues: what it is sent waits, and so does what it sends.
    pub(crate) fn set_stopped(&self, sim: &mut turmoil::Sim<'_>, coordinator: usize, stopped: bool) {
        let machine = &self.coordinators[coordinator];
        if stopped == machine.gate.is_open() && (!stopped || machine.doors().is_some()) {
            machine.gate.set_open(!stopped);
            machine.lives.fetch_add(1, Ordering::Relaxed);
            for link in (0..self.nodes.len()).map(|node| (coordinator, node)) {
                self.set_link(sim, link, self.link(link));
            }
        }
    }

    /// A machine that loses power sends nothing more, not even while its tasks are dropped. (They are dropped in an order that
    /// depends on the process's count of tasks, so messages sent then would make a seed run differently each time.)
    fn cut_power(&self, sim: &mut turmoil::Sim<'_>, name: &str, links: Vec<(usize, usize)>) {
        let ends = |(coordinator, node): (usize, usize)| {
            let (coordinator, node) = (self.coordinators[coordinator].name.as_str(), self.nodes[node].name.as_str());
            (name, if name == node { coordinator } else { node })
        };
        for link in &links {
            let (from, to) = ends(*link);
            sim.partition_oneway(from, to);
        }
        sim.crash(name);
        for link in links {
            self.set_link(sim, link, self.link(link));
        }
    }

    /// The state of the link between a coordinator and a node.
    pub(crate) fn link(&self, link: (usize, usize)) -> Link {
        lock(&self.links).get(&link).copied().unwrap_or(Link::Up)
    }

    pub(crate) fn set_link(&self, sim: &mut turmoil::Sim<'_>, link: (usize, usize), state: Link) {
        let (coordinator, node) = (self.coordinators[link.0].name.as_str(), self.nodes[link.1].name.as_str());
        lock(&self.links).insert(link, state);
        let stopped = !self.coordinators[link.0].gate.is_open();
        match if stopped { Link::Held } else { state } {
            Link::Up => {
                sim.repair(coordinator, node);
                sim.release(coordinator, node);
            }
            Link::Cut => sim.partition(coordinator, node),
            Link::Mute => {
                sim.repair_oneway(coordinator, node);
                sim.partition_oneway(node, coordinator);
            }
            Link::Deaf => {
                sim.repair_oneway(node, coordinator);
                sim.partition_oneway(coordinator, node);
            }
            Link::Held => sim.hold(coordinator, node),
        }
    }

    pub(crate) fn restart(&self, sim: &mut turmoil::Sim<'_>, name: &str) {
        if !sim.is_host_running(name) {
            sim.bounce(name);
        }
    }

    pub(crate) fn place(&self, tenant: usize, key: &Key) -> Place {
        let tenant = &self.tenants[tenant].id;
        Place { token: token(tenant, key.bytes()), tenant: tenant.clone(), key: key.clone() }
    }

    /// The machines of a place's replicas.
    pub(crate) fn replicas(&self, tenant: usize, place: &Place) -> Vec<&Arc<NodeMachine>> {
        let preference = self.rings.newest().replicas(place.token, self.tenants[tenant].replication_factor);
        preference.iter().filter_map(|id| self.nodes.iter().find(|node| node.id == *id)).collect()
    }
}

fn node(name: String, dice: &Dice) -> NodeMachine {
    NodeMachine {
        id: NodeId::new(&name).expect("a node id"),
        name,
        disk: Mutex::default(),
        shelf: Mutex::default(),
        clock: SimClock::default(),
        slowest_sync_ms: Arc::new(AtomicU64::new(5)),
        store: Mutex::default(),
        flipped: Mutex::default(),
        dice: dice.clone(),
    }
}

fn at(node: &NodeMachine) -> StorageNode {
    StorageNode {
        id: node.id.clone(),
        host: node.name.clone(),
        port: PORT,
        virtual_nodes: VIRTUAL_NODES,
        status: NodeStatus::Active,
    }
}

/// The context keys on record.
async fn context_keys(metadata: &dyn Metadata) -> ContextKeys {
    let secrets = metadata.secrets([1; 32], 0).await.expect("the in-memory store does not fail");
    let keys: Vec<(u32, [u8; 32])> = secrets.keys.iter().map(|secret| (secret.id, secret.key)).collect();
    ContextKeys::new(secrets.era, &keys).expect("valid keys")
}

/// The result of a future that is ready immediately, as those of an in-memory store are.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("an in-memory store does not wait")
}

/// Time after the last fault within which everything must work again.
pub(crate) const RECOVERY: Duration = Duration::from_secs(12);
