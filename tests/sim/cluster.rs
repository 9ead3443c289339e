//! The machines: storage nodes with their disks, coordinators, and how each starts and restarts.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use turmoil::net::TcpListener;
use witan_control::stores::Progress;
use witan_control::{register, ring};
use witan_coordinate::{Coordinator, Defaults, Ports, ReadAnswer, ReadRequest, WriteRequest, Written};
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::Failed;
use witan_kernel::name::{Key, NodeId, StoreId};
use witan_kernel::port::{Metadata, NodeStatus, StorageNode};
use witan_kernel::record::Record;
use witan_kernel::replica::Place;
use witan_kernel::ring::{Ring, token};
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
use witan_upkeep::{Sweep, Upkeep};

use crate::scenario::Scenario;
use crate::world::{Accepted, Bound, Dial, Dice, Idempotency, Known, SimClock, Simulated, lock};

const PORT: u16 = 50052;
/// Points of each node on the ring: enough to spread keys over a few nodes, and cheap to compute for each simulation.
const VIRTUAL_NODES: u32 = 16;

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
    dice: Dice,
}

impl NodeMachine {
    async fn run(self: Arc<Self>) -> turmoil::Result {
        let engine = Box::new(self.disk().open());
        let store = match Store::open(engine, &self.id, &self.dice) {
            // It does not start until somebody replaces the disk.
            Err(_) if self.disk().is_damaged() => std::future::pending().await,
            store => Arc::new(store?),
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
        let (limits, guard) = (Limits::default(), Guard::default());
        server::serve(incoming, id, Arc::new(driver), clock, limits, guard, std::future::pending()).await?;
        Ok(())
    }

    pub(crate) fn disk(&self) -> Disk {
        lock(&self.disk).clone()
    }

    /// Puts a copy of what is synced on the shelf.
    pub(crate) fn copy_disk(&self) {
        *lock(&self.shelf) = self.disk().snapshot();
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

    /// The record that it has stored at a place, synced or not. `None`: no record, or the node is down.
    pub(crate) fn stored(&self, place: &Place) -> Result<Option<Record>, String> {
        let Some(store) = lock(&self.store).clone() else { return Ok(None) };
        let loaded = store.load(&row::key(place)).map_err(|error| error.to_string())?;
        loaded.map(|(_, encoded)| encoded.decode().map_err(|error| error.to_string())).transpose()
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
    pub(crate) fn in_flight(&self) -> usize {
        self.coordinator.in_flight()
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
    doors: Mutex<Option<Doors>>,
    shared: Arc<Shared>,
}

/// What coordinators share, above all the metadata and idempotency stores.
struct Shared {
    nodes: Vec<StorageNode>,
    ring: Ring,
    keys: ContextKeys,
    idempotency: Idempotency,
    metadata: Arc<dyn Metadata>,
    tenants: Known,
    plugins: Bound,
    dice: Dice,
    dial: Dial,
    /// Whether a write is asked about before it is repeated.
    asks: bool,
}

/// How often a coordinator checks again on stores that it does not believe.
const WATCH_STORES: Duration = Duration::from_millis(500);

impl CoordinatorMachine {
    async fn run(self: Arc<Self>) -> turmoil::Result {
        let lanes = Arc::new(Lanes::new(self.clock.clone(), self.shared.dial.clone(), self.name.clone()));
        lanes.set_nodes(&self.shared.nodes);
        let watched = Arc::clone(&lanes);
        let metadata = Arc::clone(&self.shared.metadata);
        tokio::spawn(async move {
            let mut progress = Progress::default();
            loop {
                tokio::time::sleep(WATCH_STORES).await;
                watched.meet_again(false).await;
                // The in-memory store is always there.
                let _ = progress.note(metadata.as_ref(), watched.commits()).await;
            }
        });
        let (collapses, reported) = witan_upkeep::reports();
        let ports = Ports {
            clock: self.clock.clone(),
            randomness: self.shared.dice.clone(),
            replicas: lanes,
            idempotency: self.shared.idempotency.clone(),
            tenants: self.shared.tenants.clone(),
            plugins: Arc::new(self.shared.plugins.clone()),
            collapses,
        };
        let ring = self.shared.ring.clone();
        let coordinator = Coordinator::new(ports, ring, self.shared.keys.clone(), Defaults::default());
        coordinator.set_names(self.shared.asks);
        let upkeep = Arc::new(Upkeep::new(Arc::clone(&coordinator), Arc::clone(&self.shared.metadata)));
        tokio::spawn(Upkeep::collapse_reported(Arc::downgrade(&upkeep), reported));
        let (sender, mut calls) = mpsc::unbounded_channel();
        *lock(&self.doors) = Some(Doors { calls: sender, coordinator: Arc::clone(&coordinator) });
        while let Some(call) = calls.recv().await {
            // Sending fails when the client has given up, which is fine.
            match call {
                Call::Write(request, to) => coordinator.write(request, Box::new(|result| drop(to.send(result)))),
                Call::Read(request, to) => coordinator.read(request, Box::new(|result| drop(to.send(result)))),
                Call::Repair(pause, to) => {
                    let upkeep = Arc::clone(&upkeep);
                    tokio::spawn(async move { to.send(repair(&upkeep, pause).await) });
                }
            }
        }
        Ok(())
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
    metadata: Arc<dyn Metadata>,
    known: Known,
    ring: Ring,
    links: Arc<Mutex<HashMap<(usize, usize), Link>>>,
}

/// The state of a link between a coordinator and a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Delivers messages, including those held back before.
    Up,
    /// Drops all messages.
    Cut,
    /// Drops messages from the node.
    Mute,
    /// Drops messages from the coordinator.
    Deaf,
    /// Holds back all messages.
    Held,
}

impl Cluster {
    pub(crate) fn new(scenario: &Scenario, tenants: Vec<Tenant>, resolved: Bound, dice: &Dice) -> Self {
        let (nodes, coordinators) = (scenario.nodes, scenario.coordinators);
        let nodes: Vec<Arc<NodeMachine>> = (1..=nodes).map(|n| Arc::new(node(format!("n{n}"), dice))).collect();
        let on_record: Vec<StorageNode> = nodes.iter().map(|node| at(node)).collect();
        let metadata: Arc<dyn Metadata> = Arc::new(MemoryMetadata::new(SimClock::default()));
        at_once(register(metadata.as_ref(), &on_record, 0)).expect("registers the nodes");
        let (ring, known) = (ring(&on_record, 1), Known::default());
        let idempotency = Idempotency::new(dice.clone());
        let shared = Arc::new(Shared {
            nodes: on_record,
            ring: ring.clone(),
            keys: ContextKeys::new(&[(1, [1; 32])]).expect("one key"),
            idempotency: idempotency.clone(),
            metadata: Arc::clone(&metadata),
            tenants: known.clone(),
            plugins: resolved,
            dice: dice.clone(),
            asks: scenario.asks,
            dial: Dial { metadata: Arc::clone(&metadata), strict: scenario.strict },
        });
        let coordinator = |n| CoordinatorMachine {
            name: format!("c{n}"),
            clock: SimClock::default(),
            doors: Mutex::default(),
            shared: Arc::clone(&shared),
        };
        let coordinators = (1..=coordinators).map(|n| Arc::new(coordinator(n))).collect();
        let cluster = Self { nodes, coordinators, idempotency, tenants, metadata, known, ring, links: Arc::default() };
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

    /// An operator declares that a copy of the whole cluster was restored.
    pub(crate) fn declare_restored(&self) {
        at_once(self.metadata.forget_commits()).expect("forgets");
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
            let links = (0..self.nodes.len()).map(|node| (coordinator, node));
            self.cut_power(sim, &machine.name, links.collect());
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
        match state {
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
        let preference = self.ring.replicas(place.token, self.tenants[tenant].replication_factor);
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

/// The result of a future that is ready immediately, as those of an in-memory store are.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("an in-memory store does not wait")
}

/// Time after the last fault within which everything must work again.
pub(crate) const RECOVERY: Duration = Duration::from_secs(12);
