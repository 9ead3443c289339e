//! A coordinator put together: which implementation stands behind each port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use witan_kernel::context::ContextKeys;
use witan_kernel::hook::{Pending, ReplicaState};
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{Clock, Randomness, Replicas, StorageNode, StoreError};
use witan_kernel::ring::Ring;
use witan_kernel::scan::{Fullness, Ranges, is_whole};
use witan_kernel::tenant::Tenant;
use witan_plugin::PluginHost;
use witan_store::Durability;
use witan_store::metadata::{Claim, Metadata, NodeOnRecord, Secret, Slot};
use witan_store::tenants::{TenantCache, TenantCacheConfig};

use super::readiness::Readiness;
use super::reload::Reloads;
use super::secured::Secured;
use super::stores::{Idempotency, Seat, Shared};
use super::{platform, stores};
use crate::access::Access;
use crate::access::config::{RateLimits, Security, may_listen};
use crate::admin::{self, Admin};
use crate::catalog::{Catalog, Cluster, Held, follow};
use crate::coordinate::{Coordinator, Defaults, Ports, Timeouts, World};
use crate::grpc::origin::Sampling;
use crate::grpc::{AccessApi, CoordinatorApi, Fallbacks, PluginApi, server};
use crate::peer::{self, Connect, Connecting, Lanes, Tcp, Trust};

/// This machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// Clocks whose monotonic time starts now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall_micros(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

/// The operating system's dice.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn sixteen(&self) -> [u8; 16] {
        rand::random()
    }
}

/// Sockets to nodes whose stores are held against those on record.
#[derive(Clone)]
pub struct Registered {
    metadata: Arc<dyn Metadata>,
    sockets: Tcp,
}

impl Connect for Registered {
    fn connect(&self, node: &StorageNode) -> Connecting {
        self.sockets.connect(node)
    }

    fn admit(&self, node: &NodeId, store: StoreId) -> Pending<Result<Trust, String>> {
        let on_record = self.metadata.record_store_id(node, store);
        Box::pin(async move {
            match on_record.await {
                Ok(on_record) if is_whole(on_record, store) => Ok(Trust::Whole),
                Ok(_) => Ok(Trust::WriteOnly),
                Err(error) => Err(format!("the node's store cannot be held against the one on record: {error}")),
            }
        })
    }
}

/// Sockets, the machine's clock, and the stores that were chosen.
pub struct Real;

impl World for Real {
    type Clock = SystemClock;
    type Randomness = SystemRandomness;
    type Replicas = Arc<Lanes<SystemClock, Registered>>;
    type Idempotency = Idempotency;
    type Tenants = Arc<TenantCache>;
}

/// What may change while a coordinator serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Deadlines of operations for which the client sets none.
    pub timeouts: Timeouts,
    /// What new tenants and nodes get where their request does not choose.
    pub fallbacks: Fallbacks,
    /// How many requests each tenant may make.
    pub rate_limits: RateLimits,
}

impl Default for Live {
    fn default() -> Self {
        let Defaults { write_timeout: write, read_timeout: read, .. } = Defaults::default();
        let timeouts = Timeouts { read, write };
        Self { timeouts, fallbacks: Fallbacks::default(), rate_limits: RateLimits::default() }
    }
}

/// What a coordinator is put together from.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its id, told to storage nodes.
    pub node_id: String,
    /// Where the embedded stores are.
    pub data_dir: PathBuf,
    /// The stores that it shares with other coordinators.
    pub shared: Shared,
    /// Where gRPC is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where HTTP is served; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// Whether the embedded stores sync before they answer.
    pub durability: Durability,
    /// The folder watched for plugins.
    pub plugins: Option<PathBuf>,
    /// Nodes that take part from the first start on.
    pub nodes: Vec<StorageNode>,
    /// Who may do what, and how connections are secured.
    pub security: Security,
    /// How it behaves where nothing else says.
    pub defaults: Defaults,
    /// The tenants that are kept at hand.
    pub tenant_cache: TenantCacheConfig,
    /// Connections of clients at a time.
    pub connections: usize,
    /// Where the metrics are, over HTTP; `None`: nowhere.
    pub metrics_path: Option<String>,
    /// How long a shutdown may take.
    pub drain: Duration,
    /// Which calls are traced.
    pub sampling: Sampling,
    /// What may change meanwhile.
    pub live: watch::Receiver<Live>,
    /// How reading the configuration again goes.
    pub reloads: Reloads,
}

/// A coordinator that serves.
pub struct Serving {
    /// Where gRPC is served.
    pub address: SocketAddr,
    /// Where HTTP is served.
    pub admin_address: SocketAddr,
    grpc: JoinHandle<anyhow::Result<()>>,
    admin: JoinHandle<std::io::Result<()>>,
    access: Arc<Access>,
    idempotency: Idempotency,
    seat: Option<JoinHandle<()>>,
    /// Turns true when nothing is served any more.
    over: watch::Sender<bool>,
}

impl Serving {
    /// Waits until it has ended, which it does after the signal to shut down, or when a server fails.
    pub async fn ended(self) -> anyhow::Result<()> {
        self.grpc.await.context("serve gRPC")??;
        self.admin.await.context("serve HTTP")??;
        // Until here operations were carried out: under this id, and by what others change.
        self.over.send_replace(true);
        if let Some(seat) = self.seat {
            seat.await.context("give back this coordinator's id")?;
        }
        self.idempotency.close().await;
        self.access.close().await;
        Ok(())
    }
}

/// Opens the stores, reaches the nodes, and serves until `stop` turns true.
pub async fn start(config: Config, stop: watch::Receiver<bool>) -> anyhow::Result<Serving> {
    for (address, key) in [(config.listen, "server.host"), (config.admin_listen, "metrics.host")] {
        may_listen(&config.security, address).map_err(|why| anyhow::anyhow!("{key}: {why}"))?;
    }
    let secured = Secured::open(&config.security)?;
    let listener = bind(config.listen, "--listen").await?;
    let admin_listener = bind(config.admin_listen, "--admin-listen").await?;
    std::fs::create_dir_all(&config.data_dir).with_context(|| format!("make {}", config.data_dir.display()))?;
    let clock = SystemClock::new();
    let (over, ended) = watch::channel(false);
    let metadata = stores::metadata(&config.shared, &config.data_dir).await?;
    let address = listener.local_addr()?;
    let instance: Option<[u8; 16]> = config.shared.postgres.is_some().then(rand::random);
    let seat = match instance {
        Some(instance) => {
            let node_id = NodeId::new(&config.node_id).context("--node-id")?;
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let claim = Claim { node_id, instance, address: address.to_string(), version };
            Some(tokio::spawn(Seat::take(Arc::clone(&metadata), claim).await?.keep(ended.clone())))
        }
        None => None,
    };
    // Everything is read after this: what changes meanwhile is read again.
    let revision = metadata.changes(u64::MAX).await.context("read the newest revision")?.revision;
    register_nodes(metadata.as_ref(), &config.nodes, clock.wall_micros() / 1000).await?;
    let access = Arc::new(Access::open(&config.security, Arc::clone(&metadata), unix_ms).await.context("open access")?);
    let secrets = metadata.secrets(rand::random(), clock.wall_micros() / 1000).await.context("read secrets")?;
    let keys = context_keys(&secrets)?;
    let placement = metadata.placement().await.context("read nodes")?;
    let nodes: Vec<StorageNode> = placement.nodes.into_iter().map(|on_record| on_record.node).collect();
    let idempotency = Idempotency::open(&config.shared, &config.data_dir, clock, config.durability).await?;
    let tenants = Arc::new(TenantCache::new(Arc::clone(&metadata), clock, config.tenant_cache));
    let connect = Registered { metadata: Arc::clone(&metadata), sockets: secured.to_nodes() };
    let lanes = Arc::new(Lanes::new(clock, connect, config.node_id.clone()));
    lanes.set_nodes(&nodes);
    let known = nodes.len();
    let platform = platform::start(&config, Arc::clone(&metadata)).await?;
    let ports = Ports::<Real> {
        clock,
        randomness: SystemRandomness,
        replicas: Arc::clone(&lanes),
        idempotency: idempotency.clone(),
        tenants: Arc::clone(&tenants),
        plugins: Arc::new(platform.clone()),
    };
    let coordinator = Coordinator::new(ports, ring_of(&nodes, placement.epoch), keys, config.defaults.clone());
    let local: Arc<dyn Cluster> = Arc::new(Local {
        coordinator: Arc::clone(&coordinator),
        lanes: Arc::clone(&lanes),
        tenants,
        metadata: Arc::clone(&metadata),
        plugins: platform.clone(),
        access: Arc::clone(&access),
        clock,
        placing: Mutex::default(),
    });
    let catalog = Arc::new(Catalog::new(Arc::clone(&metadata), Arc::clone(&local), instance));
    let following = follow(Arc::clone(&metadata), local, revision);
    let ending = stopped(ended.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = following => {}
            () = ending => {}
        }
    });
    let mut registry = Registry::default();
    coordinator.metrics().register(&mut registry);
    platform::register(&platform, &mut registry);
    access.register(&mut registry);
    tokio::spawn(Arc::clone(&access).follow(ended));
    config.reloads.register(&mut registry);
    let admin_address = admin_listener.local_addr()?;
    let (incoming, admin_incoming) = secured.listen(listener, admin_listener, config.connections, &mut registry);
    peer::metrics::register(&mut registry, Arc::clone(&lanes));
    tokio::spawn(watch_nodes(Arc::clone(&lanes), stop.clone()));
    let readiness = Readiness::new(Arc::clone(&metadata), Arc::clone(&lanes), clock, &mut registry);
    let admin = Admin {
        metrics: Arc::new(registry),
        metrics_path: config.metrics_path.clone(),
        readiness: readiness.for_probes(),
        access: Arc::clone(&access),
    };
    tracing::info!(nodes = known, "waiting for the storage nodes");
    lanes.tried().await;
    tokio::spawn(readiness.watch(stop.clone()));

    let bounds = server::Bounds { drain: config.drain, sampling: config.sampling, ..server::Bounds::default() };
    let api = CoordinatorApi::new(Arc::clone(&coordinator), Arc::clone(&catalog), stop.clone());
    let changing = Changing { coordinator, fallbacks: Arc::clone(api.fallbacks()), access: Arc::clone(&access) };
    tokio::spawn(changing.follow(config.live, stop.clone()));
    let services = server::Services {
        coordinator: api,
        plugins: PluginApi::new(platform, catalog),
        tokens: AccessApi::new(Arc::clone(&access), metadata),
        access: Arc::clone(&access),
    };
    let grpc = server::serve(incoming, services, bounds, stopped(stop.clone()));
    Ok(Serving {
        address,
        admin_address,
        grpc: tokio::spawn(grpc),
        admin: tokio::spawn(admin::serve(admin_incoming, admin, stopped(stop))),
        access,
        idempotency,
        seat,
        over,
    })
}

/// What changes while a coordinator serves.
struct Changing {
    coordinator: Arc<Coordinator<Real>>,
    fallbacks: Arc<ArcSwap<Fallbacks>>,
    access: Arc<Access>,
}

impl Changing {
    /// Puts in force what changes meanwhile, until the signal to stop is given.
    async fn follow(self, mut live: watch::Receiver<Live>, stop: watch::Receiver<bool>) {
        let stopped = stopped(stop);
        tokio::pin!(stopped);
        loop {
            let now = live.borrow_and_update().clone();
            self.coordinator.set_timeouts(now.timeouts);
            self.fallbacks.store(Arc::new(now.fallbacks));
            self.access.set_rate_limits(now.rate_limits);
            tokio::select! {
                // Nobody is left who could change anything.
                changed = live.changed() => if changed.is_err() { return },
                () = &mut stopped => return,
            }
        }
    }
}

/// Unix milliseconds.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// How often nodes that are written to only are asked about: another coordinator may have put their stores on record.
const WATCH_STORES: Duration = Duration::from_secs(2);

/// How often nodes are asked how full they are: disks fill within hours.
const ASK_FULLNESS: Duration = Duration::from_secs(15);

/// Asks nodes with a new store again once it is on record, and all nodes how full they are, until the signal to stop is given.
async fn watch_nodes(lanes: Arc<Lanes<SystemClock, Registered>>, stop: watch::Receiver<bool>) {
    let stopped = stopped(stop);
    tokio::pin!(stopped);
    // Nodes that have not been reached yet cannot be asked.
    lanes.tried().await;
    let mut fullness = tokio::time::interval(ASK_FULLNESS);
    fullness.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_STORES) => lanes.admit_again().await,
            _ = fullness.tick() => lanes.ask_fullness().await,
            () = &mut stopped => return,
        }
    }
}

/// Ready when the signal to stop is given, or whoever could give it is gone.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address}; another process may have the port: choose another one with {flag}")
    })
}

/// On a first start the nodes of the configuration take part. Later ones join by AddStorageNode; one that has moved is
/// updated, for its data moves with it. How many virtual nodes it has stays: another number would move keys, and not their data.
async fn register_nodes(metadata: &dyn Metadata, wanted: &[StorageNode], now_ms: u64) -> anyhow::Result<()> {
    metadata.found_nodes(wanted.to_vec(), now_ms).await.context("add the first nodes")?;
    let known = metadata.nodes().await.context("read nodes")?;
    for node in wanted {
        match known.iter().find(|on_record| on_record.node.id == node.id) {
            Some(NodeOnRecord { node: known, .. }) => {
                if known.virtual_nodes != node.virtual_nodes {
                    tracing::warn!(
                        node = %node.id,
                        on_record = known.virtual_nodes,
                        configured = node.virtual_nodes,
                        "the number of a node's virtual nodes is fixed when it joins; what is configured has no effect"
                    );
                }
                if (&known.host, known.port) != (&node.host, node.port) {
                    let moved = StorageNode { host: node.host.clone(), port: node.port, ..known.clone() };
                    metadata.put_node(moved, now_ms).await.context("update a node")?;
                }
            }
            None => anyhow::bail!(
                "node {} is not part of this cluster, which has nodes already; add it with `witan nodes add`",
                node.id
            ),
        }
    }
    Ok(())
}

fn context_keys(secrets: &[Secret]) -> anyhow::Result<ContextKeys> {
    let keys: Vec<(u32, [u8; 32])> = secrets.iter().map(|secret| (secret.id, secret.key)).collect();
    ContextKeys::new(&keys).context("read the cluster's context keys")
}

fn ring_of(nodes: &[StorageNode], epoch: u64) -> Ring {
    let points: Vec<(NodeId, u32)> = nodes.iter().map(|node| (node.id.clone(), node.virtual_nodes)).collect();
    Ring::new(&points, epoch)
}

/// This coordinator, as the catalog changes it.
struct Local {
    coordinator: Arc<Coordinator<Real>>,
    lanes: Arc<Lanes<SystemClock, Registered>>,
    tenants: Arc<TenantCache>,
    metadata: Arc<dyn Metadata>,
    plugins: PluginHost,
    access: Arc<Access>,
    clock: SystemClock,
    /// Held while another placement is put in force.
    placing: Mutex<()>,
}

impl Cluster for Local {
    fn tenant_changed(&self, tenant: Tenant) {
        self.tenants.publish(tenant);
    }

    fn tenant_outdated(&self, id: &TenantId) -> Pending<Result<(), StoreError>> {
        let (tenants, id) = (Arc::clone(&self.tenants), id.clone());
        Box::pin(async move { tenants.changed(&id).await })
    }

    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>> {
        let tenants = Arc::clone(&self.tenants);
        Box::pin(async move { tenants.all_changed().await })
    }

    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>> {
        let (metadata, coordinator, clock) = (Arc::clone(&self.metadata), Arc::clone(&self.coordinator), self.clock);
        Box::pin(async move {
            let secrets = metadata.secrets(rand::random(), clock.wall_micros() / 1000).await?;
            match context_keys(&secrets) {
                Ok(keys) => coordinator.set_context_keys(keys),
                Err(error) => tracing::error!(%error, "the cluster's new secrets cannot be used; the old ones stay"),
            }
            Ok(())
        })
    }

    fn plugins_outdated(&self, slots: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>> {
        let plugins = self.plugins.clone();
        Box::pin(async move { platform::refresh(&plugins, slots).await })
    }

    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>> {
        let access = Arc::clone(&self.access);
        Box::pin(async move { access.tokens_outdated().await })
    }

    fn tokens_confirmed(&self) {
        self.access.confirmed();
    }

    fn placement_changed(&self, epoch: u64, nodes: &[StorageNode]) {
        // A newer one may have been published since this one was read.
        let _one_at_a_time = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch <= self.coordinator.ring().epoch() {
            return;
        }
        self.lanes.set_nodes(nodes);
        self.coordinator.set_ring(ring_of(nodes, epoch));
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        self.lanes.state(node)
    }

    fn fullness(&self, node: &NodeId) -> Pending<Option<Fullness>> {
        let (lanes, node) = (Arc::clone(&self.lanes), node.clone());
        Box::pin(async move { lanes.fullness(&node).await })
    }

    fn is_write_only(&self, node: &NodeId) -> bool {
        self.lanes.standing(node).is_some_and(|standing| !standing.whole)
    }

    fn stores_changed(&self) -> Pending<()> {
        let lanes = Arc::clone(&self.lanes);
        Box::pin(async move { lanes.admit_again().await })
    }

    fn hold(&self) -> Pending<Held> {
        let coordinator = Arc::clone(&self.coordinator);
        Box::pin(async move { Box::new(coordinator.hold().await) as Held })
    }
}
