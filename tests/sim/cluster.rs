//! The machines, and how each starts and restarts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use witan_control::register;
use witan_control::stores::Progress;
use witan_coordinate::{
    Coordinator, Defaults, MissedChanges, Ports, ReadAnswer, ReadRequest, Respond, UnderWay, WriteRequest, Written,
};
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::Failed;
use witan_kernel::hook::Partition;
use witan_kernel::name::{Era, Key, NodeId};
use witan_kernel::port::{
    Claimant, Metadata, PlacementStore, Randomness, Replicas, SecretStore, StorageNode, TenantStore,
};
use witan_kernel::replica::Place;
use witan_kernel::ring::{Rings, token};
use witan_kernel::scan::{Ranges, Standing};
use witan_kernel::space::Space;
use witan_kernel::tenant::Tenant;
use witan_memory::MemoryMetadata;
use witan_peer::Lanes;
use witan_upkeep::{Healing, HealingConfig, Missed, Sweep, Upkeep};

use crate::collapses::Collapsed;
use crate::follower::{self, learn};
use crate::nemesis::Link;
use crate::node::NodeMachine;
use crate::plugins::{Bound, partition};
use crate::scenario::Scenario;
use crate::simulated::Simulated;
use crate::stores::{Idempotency, Known, View};
use crate::world::{Dial, Dice, Gate, SimClock, lock};

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
    /// The same.
    store: MemoryMetadata,
    /// Whether coordinators follow changes of tenants and of the ring, and lead placement changes.
    moves: bool,
    late_ms: u64,
    copy_rate: u64,
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
        let known = if self.shared.moves { Some(learn(self.metadata().as_ref(), &self.view).await) } else { None };
        lanes.set_nodes(&known.as_ref().map_or_else(|| self.shared.nodes.clone(), follower::Known::nodes));
        self.watch_stores(Arc::clone(&lanes));
        let (reached, follows) = (Arc::clone(&lanes), Arc::clone(&lanes));
        let (collapses, reported) = witan_upkeep::reports();
        let missed = Arc::<Missed>::default();
        let ports = Ports {
            clock: self.clock.clone(),
            randomness: self.shared.dice.clone(),
            replicas: lanes,
            idempotency: self.shared.idempotency.behind(&self.gate),
            tenants: self.view.clone(),
            plugins: Arc::new(self.shared.plugins.clone()),
            collapses: self.shared.collapsed.noting(collapses),
            missed: Arc::clone(&missed) as Arc<dyn MissedChanges>,
        };
        let rings = known.as_ref().map_or_else(|| self.shared.rings.clone(), follower::Known::rings);
        let keys = context_keys(self.shared.metadata.as_ref()).await;
        let coordinator = Coordinator::new(ports, rings, keys, Defaults::default());
        coordinator.set_names(self.shared.asks);
        self.follow_context_keys(Arc::downgrade(&coordinator));
        let upkeep = Arc::new(Upkeep::new(Arc::clone(&coordinator), self.metadata()).with_missed(missed));
        upkeep.set_collects(true);
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
        if let Some(known) = known {
            let parts = follower::Parts {
                name: NodeId::new(&self.name)?,
                metadata: self.metadata(),
                view: self.view.clone(),
                lanes: follows,
                coordinator: Arc::clone(&coordinator),
                upkeep: Arc::clone(&upkeep),
                dice: self.shared.dice.clone(),
                late_ms: self.shared.late_ms,
                copy_rate: self.shared.copy_rate,
            };
            follower::start(parts, &known);
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

    /// Meets stores that it does not believe again and again, and notes how far stores are.
    fn watch_stores(&self, lanes: Arc<Lanes<SimClock, Dial>>) {
        let away = Arc::clone(&self.view.away);
        let metadata = Arc::clone(&self.shared.metadata);
        tokio::spawn(async move {
            let mut progress = Progress::default();
            loop {
                tokio::time::sleep(WATCH_STORES).await;
                lanes.meet_again(false).await;
                if !away.load(Ordering::Relaxed) {
                    // The in-memory store itself does not fail.
                    let _ = progress.note(metadata.as_ref(), lanes.commits()).await;
                }
            }
        });
    }

    /// Follows the context keys on record for as long as the coordinator runs.
    fn follow_context_keys(&self, follower: Weak<Coordinator<Simulated>>) {
        let (metadata, away) = (Arc::clone(&self.shared.metadata), Arc::clone(&self.view.away));
        tokio::spawn(async move {
            while let Some(coordinator) = follower.upgrade() {
                if !away.load(Ordering::Relaxed) {
                    coordinator.set_context_keys(context_keys(metadata.as_ref()).await);
                }
                drop(coordinator);
                tokio::time::sleep(WATCH_STORES).await;
            }
        });
    }

    /// The metadata store, as it reaches it.
    fn metadata(&self) -> Arc<dyn Metadata> {
        match self.shared.moves {
            true => Arc::new(self.shared.store.behind(Arc::clone(&self.view.away))),
            false => Arc::clone(&self.shared.metadata),
        }
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
    links: Arc<Mutex<HashMap<(usize, usize), Link>>>,
}

impl Cluster {
    pub(crate) fn new(scenario: &Scenario, tenants: Vec<Tenant>, bound: Bound, dice: &Dice) -> Self {
        let (nodes, coordinators) = (scenario.nodes, scenario.coordinators);
        let nodes: Vec<Arc<NodeMachine>> =
            (1..=nodes + scenario.spare).map(|n| Arc::new(NodeMachine::new(format!("n{n}"), dice))).collect();
        let on_record: Vec<StorageNode> = nodes.iter().take(scenario.nodes).map(|node| node.on_record()).collect();
        let metadata = MemoryMetadata::new(SimClock::default());
        at_once(register(&metadata, &on_record, 0)).expect("registers the nodes");
        let placement = at_once(metadata.placement()).expect("the nodes are on record");
        let (rings, known, faulty) = (placement.rings(), Known::default(), Arc::clone(&bound.faulty));
        let collapsed = Collapsed::default();
        let idempotency = Idempotency::new(dice.clone());
        let shared = Arc::new(Shared {
            nodes: on_record,
            rings,
            idempotency: idempotency.clone(),
            metadata: Arc::new(metadata.clone()),
            store: metadata.clone(),
            moves: scenario.moves,
            late_ms: scenario.late_ms,
            copy_rate: scenario.copy_rate,
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
            // Who follows changes knows what it has followed.
            view: View::new(if scenario.moves { Known::default() } else { known.clone() }, dice.clone()),
            gate: Gate::default(),
            lives: AtomicU64::default(),
            doors: Mutex::default(),
            shared: Arc::clone(&shared),
        };
        let coordinators = (1..=coordinators).map(|n| Arc::new(coordinator(n))).collect();
        let links = Arc::default();
        let cluster = Self { nodes, coordinators, idempotency, tenants, faulty, collapsed, metadata, known, links };
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
            machine.ended();
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

    /// Where a key is, as on record.
    pub(crate) fn place(&self, tenant: usize, key: &Key) -> Place {
        let generation = self.on_record(tenant).generation;
        self.place_in(tenant, generation, generation, key)
    }

    fn on_record(&self, tenant: usize) -> Tenant {
        let on_record = at_once(self.metadata.tenant(&self.tenants[tenant].id)).ok().flatten();
        on_record.unwrap_or_else(|| self.tenants[tenant].clone())
    }

    /// The place in a generation that the hook of one gives a key.
    fn place_in(&self, tenant: usize, generation: u32, hook: u32, key: &Key) -> Place {
        let id = &self.tenants[tenant].id;
        let token = match partition(hook, key) {
            Partition::By { key, .. } => token(id, &key),
            _ => token(id, key.bytes()),
        };
        Place { token, space: Space::new(id, generation), key: key.clone() }
    }

    /// Where a key is not: in other generations, and where other hooks would have it.
    pub(crate) fn other_places(&self, tenant: usize, key: &Key) -> Vec<Place> {
        let Tenant { generation, generations, .. } = self.on_record(tenant);
        let all = (0..=generations).flat_map(|of| (0..=generations).map(move |hook| (of, hook)));
        let own = self.place_in(tenant, generation, generation, key);
        let others = all.map(|(of, hook)| self.place_in(tenant, of, hook, key));
        others.filter(|place| *place != own).collect()
    }

    /// The machines of a place's replicas, as on record.
    pub(crate) fn replicas(&self, tenant: usize, place: &Place) -> Vec<&Arc<NodeMachine>> {
        let on_record = at_once(self.metadata.tenant(&place.tenant())).ok().flatten();
        let tenant = on_record.as_ref().unwrap_or(&self.tenants[tenant]);
        let placement = at_once(self.metadata.placement()).expect("the nodes are on record");
        let rings = placement.rings();
        let ring = rings.version(tenant.ring).unwrap_or(rings.newest());
        let preference = ring.replicas(place.token, tenant.replication_factor);
        preference.iter().filter_map(|id| self.nodes.iter().find(|node| node.id == *id)).collect()
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
