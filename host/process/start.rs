//! Assembles a coordinator from its configuration, and starts serving.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use witan_control::{Catalog, Cluster, TenantCache, TurnLimits, follow, register};
use witan_coordinate::{Coordinator, MissedChanges, Ports};
use witan_kernel::capability::OF_COORDINATORS;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Claim, Claimant, Metadata, StorageNode};
use witan_peer::Lanes;
use witan_plugin::PluginHost;
use witan_upkeep::{Healing, Missed, Moves, Upkeep};

use super::cluster::{Local, context_keys};
use super::config::{Config, Live};
use super::formats::Formats;
use super::lines::LOST;
use super::live::Changing;
use super::nodes::watch_nodes;
use super::readiness::{Readiness, Store};
use super::reload::Reloads;
use super::room::Room;
use super::secured::Secured;
use super::signal::stopped;
use super::stores::{IdLost, Idempotency, Seat};
use super::system::{SystemClock, SystemRandomness, unix_ms};
use super::world::{Real, Registered};
use super::{background, busy, plugins, stores, swaps};
use crate::access::Access;
use crate::access::config::may_listen;
use crate::access::issuance::Issuance;
use crate::console::{self, Admin};
use crate::grpc::{AccessApi, CoordinatorApi, Unsent, server};
use crate::platform::PluginApi;

/// A coordinator that serves.
pub struct Serving {
    /// The address on which gRPC is served.
    pub address: SocketAddr,
    /// The address on which HTTP is served.
    pub admin_address: SocketAddr,
    grpc: JoinHandle<anyhow::Result<()>>,
    admin: JoinHandle<std::io::Result<()>>,
    access: Arc<Access>,
    idempotency: Idempotency,
    upkeep: JoinHandle<()>,
    healing: Arc<Healing<Real>>,
    seat: Option<JoinHandle<()>>,
    /// Turns true when it is to stop: at the stop signal, or when another process has taken its id.
    pub stopping: watch::Receiver<bool>,
    lost: JoinHandle<Option<IdLost>>,
    /// Turns true when the servers have stopped.
    over: watch::Sender<bool>,
}

impl Serving {
    /// Waits for the shutdown to complete, which begins at the stop signal or when a server fails.
    ///
    /// # Errors
    /// The error of the server that failed.
    pub async fn ended(self) -> anyhow::Result<()> {
        self.grpc.await.context("serve gRPC")??;
        self.admin.await.context("serve HTTP")??;
        // Its claims are given back before the lease on the id, so that others go on at once. One that hangs expires.
        if tokio::time::timeout(UPKEEP_ENDS, self.upkeep).await.is_err() {
            tracing::info!("upkeep has not ended in time; its claims will expire on their own");
        }
        // After the last operation, of which a node may have missed something.
        if tokio::time::timeout(UPKEEP_ENDS, self.healing.hand_over()).await.is_err() {
            tracing::info!(
                "what nodes have missed was not handed over in time; another coordinator will compare all that they have"
            );
        }
        // Until here operations ran under this coordinator's id and needed other coordinators' changes.
        self.over.send_replace(true);
        if let Some(seat) = self.seat {
            seat.await.context("give back this coordinator's id")?;
        }
        self.idempotency.close().await;
        self.access.close().await;
        match self.lost.await.context("stop")? {
            Some(lost) => Err(lost.into()),
            None => Ok(()),
        }
    }
}

/// A signal to stop that is also given when another process takes this coordinator's id, and the task that waits for either.
fn until_lost(
    stop: watch::Receiver<bool>,
    lost: oneshot::Receiver<IdLost>,
) -> (watch::Receiver<bool>, JoinHandle<Option<IdLost>>) {
    let (stopping, halted) = watch::channel(false);
    let waiting = tokio::spawn(async move {
        let lost = tokio::select! {
            () = stopped(stop) => None,
            // Never for a coordinator with embedded stores, which has no lease.
            Ok(lost) = lost => Some(lost),
        };
        if let Some(lost) = &lost {
            tracing::error!(error = %lost, "shutting down");
        }
        stopping.send_replace(true);
        lost
    });
    (halted, waiting)
}

/// How long the shutdown waits for the claims of upkeep to be given back, which takes one call for each.
const UPKEEP_ENDS: Duration = Duration::from_secs(2);

/// Opens the stores, connects to the nodes, and serves until `stop` turns true. `live` holds the settings that may change at run
/// time, `reloads` the metrics of such changes.
///
/// # Errors
/// The first step that failed, and what to do about it.
pub async fn start(
    config: Config,
    live: watch::Receiver<Live>,
    reloads: Reloads,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Serving> {
    let listeners = Listeners::bind(&config).await?;
    let (over, ended) = watch::channel(false);
    let (losing, lost) = oneshot::channel();
    let member = Member::join(&config, listeners.address, ended.clone(), losing).await?;
    let (stop, lost) = until_lost(stop, lost);
    let parts = Parts::assemble(&config, &member, &listeners.secured, live.borrow().clone()).await?;
    let catalog = parts.follow_others(&member, &config, ended.clone()).await?;

    let mut registry = Registry::default();
    parts.register(&mut registry);
    catalog.register(&mut registry);
    reloads.register(&mut registry);
    let unsent = Arc::<Unsent>::default();
    unsent.register(&mut registry);
    tokio::spawn(Arc::clone(&parts.access).follow(ended));
    let Listeners { secured, grpc: listener, admin: admin_listener, address } = listeners;
    let admin_address = admin_listener.local_addr()?;
    let (incoming, admin_incoming) =
        secured.listen((listener, config.grpc.clone()), (admin_listener, config.http.clone()), &mut registry);
    let room = Room::new(parts.idempotency.clone(), &config.data_dir, &mut registry);
    let store = Store { metadata: Arc::clone(&member.metadata), has_clock: config.shared.postgres.is_some() };
    let (lanes, healing, plugins) = (Arc::clone(&parts.lanes), Arc::clone(&parts.healing), parts.plugins.clone());
    let readiness = Readiness::new(store, lanes, parts.clock, room, healing, plugins, &mut registry);
    parts.reach_nodes(Arc::clone(&member.metadata), stop.clone()).await;
    tokio::spawn(Arc::clone(&readiness).watch(stop.clone()));

    let admin = Admin {
        metrics: Arc::new(registry),
        metrics_path: config.metrics_path.clone(),
        readiness: readiness.for_probes(),
        access: Arc::clone(&parts.access),
    };
    let (healing, moves) = (Arc::clone(&parts.healing), Arc::clone(&parts.moves));
    let until = stop.clone();
    let upkeep = background::run(async move {
        futures::future::join(healing.run(stopped(until.clone())), moves.run(stopped(until))).await;
    })?;
    let bounds = server::Bounds { drain: config.drain, sampling: config.sampling, ..server::Bounds::default() };
    let issuance = Issuance::new(Arc::clone(&parts.access), Arc::clone(&member.metadata), config.tenants.max_tokens);
    let services = parts.services(catalog, issuance, live, unsent, &stop);
    let grpc = tokio::spawn(server::serve(incoming, services, bounds, stopped(stop.clone())));
    let stopping = stop.clone();
    // Not earlier: what is in it may take long to compile.
    parts.plugins.watch_folder().context("watch the plugin folder")?;
    Ok(Serving {
        address,
        admin_address,
        grpc,
        admin: tokio::spawn(console::serve(admin_incoming, admin, stopped(stop))),
        access: parts.access,
        idempotency: parts.idempotency,
        upkeep,
        healing: parts.healing,
        seat: member.seat,
        stopping,
        lost,
        over,
    })
}

/// The listeners for clients and probes: bound before any store is opened, so that a port in use fails early.
struct Listeners {
    secured: Secured,
    grpc: TcpListener,
    admin: TcpListener,
    address: SocketAddr,
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        for (address, key) in [(config.listen, "server.host"), (config.admin_listen, "metrics.host")] {
            may_listen(&config.security, address).map_err(|why| anyhow::anyhow!("{key}: {why}"))?;
        }
        let secured = Secured::open(&config.security)?;
        let grpc = bind(config.listen, "--listen").await?;
        let admin = bind(config.admin_listen, "--admin-listen").await?;
        let address = grpc.local_addr()?;
        Ok(Self { secured, grpc, admin, address })
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address}; another process may be using the port: choose another one with {flag}")
    })
}

/// This process as one of the coordinators that share a metadata store.
struct Member {
    metadata: Arc<dyn Metadata>,
    /// Random id of this process, if it holds a lease in a shared metadata store.
    instance: Option<[u8; 16]>,
    seat: Option<JoinHandle<()>>,
    /// Revision of the newest change when it joined. All metadata is read after this, so that later changes are seen again.
    revision: u64,
}

impl Member {
    async fn join(
        config: &Config,
        address: SocketAddr,
        ended: watch::Receiver<bool>,
        lost: oneshot::Sender<IdLost>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&config.data_dir).with_context(|| format!("create {}", config.data_dir.display()))?;
        let metadata = stores::metadata(&config.shared, &config.data_dir).await?;
        let instance: Option<[u8; 16]> = config.shared.postgres.is_some().then(rand::random);
        let seat = match instance {
            Some(instance) => {
                let node_id = NodeId::new(&config.node_id).context("--node-id")?;
                let version = env!("CARGO_PKG_VERSION").to_owned();
                let capabilities = OF_COORDINATORS.map(str::to_owned).to_vec();
                let claim = Claim { node_id, instance, address: address.to_string(), version, capabilities };
                Some(tokio::spawn(Seat::take(Arc::clone(&metadata), claim).await?.keep(ended, lost)))
            }
            None => None,
        };
        let revision = metadata.changes(u64::MAX).await.context("read the newest revision")?.revision;
        let registered = register(metadata.as_ref(), &config.nodes, unix_ms()).await;
        registered.context("register the configured nodes")?;
        Ok(Self { metadata, instance, seat, revision })
    }
}

/// How often it is looked whether coordinators have gone without giving back their lease: that changes nothing in the metadata store.
const LOOK_FOR_EXPIRED: Duration = Duration::from_secs(10);

async fn leases_expire(local: Arc<dyn Cluster>) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_FOR_EXPIRED).await;
        if let Err(error) = local.coordinators_changed().await {
            tracing::debug!(%error, "cannot read which coordinators there are");
        }
    }
}

/// The parts of a coordinator, connected to each other.
struct Parts {
    clock: SystemClock,
    access: Arc<Access>,
    tenants: Arc<TenantCache>,
    idempotency: Idempotency,
    lanes: Arc<Lanes<SystemClock, Registered>>,
    plugins: PluginHost,
    following: plugins::Following,
    coordinator: Arc<Coordinator<Real>>,
    upkeep: Arc<Upkeep<Real>>,
    healing: Arc<Healing<Real>>,
    moves: Arc<Moves<Real>>,
}

impl Parts {
    async fn assemble(config: &Config, member: &Member, secured: &Secured, live: Live) -> anyhow::Result<Self> {
        let (metadata, clock) = (&member.metadata, SystemClock::new());
        let access = Access::open(&config.security, Arc::clone(metadata), unix_ms).await.context("open access")?;
        let secrets = metadata.secrets(rand::random(), unix_ms()).await.context("read secrets")?;
        let keys = context_keys(&secrets)?;
        let placement = metadata.placement().await.context("read nodes")?;
        let (rings, drained) = (placement.rings(), placement.drained());
        let nodes: Vec<StorageNode> = placement.nodes.into_iter().map(|on_record| on_record.node).collect();
        let idempotency = Idempotency::open(&config.shared, &config.data_dir, clock, config.durability).await?;
        let tenants = Arc::new(TenantCache::new(metadata.clone(), clock, config.tenant_cache));
        let connect = Registered { metadata: Arc::clone(metadata), sockets: secured.to_nodes() };
        let lanes = Arc::new(Lanes::new(clock, connect, config.node_id.clone()));
        lanes.set_nodes(&nodes);
        lanes.set_drained(drained);
        let following = plugins::Following::default();
        let plugins = plugins::start(config, Arc::clone(metadata), Arc::clone(&following)).await?;
        let (collapses, reported) = witan_upkeep::reports();
        let missed = Arc::<Missed>::default();
        let ports = Ports::<Real> {
            clock,
            randomness: SystemRandomness,
            replicas: Arc::clone(&lanes),
            idempotency: idempotency.clone(),
            tenants: Arc::clone(&tenants),
            plugins: Arc::new(plugins.clone()),
            collapses,
            missed: Arc::clone(&missed) as Arc<dyn MissedChanges>,
        };
        let coordinator = Coordinator::new(ports, rings, keys, config.defaults.clone());
        tokio::spawn(busy::follow(Arc::downgrade(&coordinator)));
        let upkeep = Upkeep::new(Arc::clone(&coordinator), Arc::clone(metadata));
        let upkeep = Arc::new(upkeep.with_repairs_of_tenants(config.tenants.max_repairs).with_missed(missed));
        tokio::spawn(Upkeep::collapse_reported(Arc::downgrade(&upkeep), reported));
        let instance = member.instance.unwrap_or_else(rand::random);
        let claimant = Claimant { coordinator: NodeId::new(&config.node_id).context("--node-id")?, instance };
        let healing = Healing::new(Arc::clone(&upkeep), claimant.clone(), live.healing, config.healing_begins);
        let moves = Moves::new(Arc::clone(&upkeep), claimant, live.moves);
        let access = Arc::new(access);
        Ok(Self { clock, access, tenants, idempotency, lanes, plugins, following, coordinator, upkeep, healing, moves })
    }

    /// Follows other coordinators' changes until the servers have stopped. Returns the catalog, which makes this coordinator's own.
    async fn follow_others(
        &self,
        member: &Member,
        config: &Config,
        ended: watch::Receiver<bool>,
    ) -> anyhow::Result<Arc<Catalog>> {
        let local: Arc<dyn Cluster> = Arc::new(Local::new(
            Arc::clone(&self.coordinator),
            Arc::clone(&self.upkeep),
            Arc::clone(&self.lanes),
            Arc::clone(&self.tenants),
            Arc::clone(&member.metadata),
            self.plugins.clone(),
            Arc::clone(&self.access),
            Formats::new(config, self.idempotency.clone(), member.instance.is_some()),
        ));
        _ = self.following.set(Arc::downgrade(&local));
        self.coordinator.set_followed(member.revision);
        local.coordinators_changed().await.context("read which coordinators there are")?;
        let changes = TurnLimits { of_tenant: config.tenants.max_changes, ..TurnLimits::CHANGES };
        let catalog = Catalog::new(Arc::clone(&member.metadata), Arc::clone(&local), member.instance, changes);
        let expiring = leases_expire(Arc::clone(&local));
        let catalog = Arc::new(catalog);
        let raising = Arc::clone(&catalog).raise_owed_fences();
        let removing = Arc::clone(&catalog).remove_leftovers();
        let tending = Arc::clone(&catalog).tend_candidates(Arc::new(self.plugins.clone()));
        let settling = swaps::settle_all(Arc::clone(&member.metadata), self.plugins.clone());
        let following = follow(Arc::clone(&member.metadata), local, member.revision);
        let (upkeep, own) = (Arc::clone(&self.upkeep), self.moves.claimant().clone());
        tokio::spawn(async move {
            tokio::select! {
                () = following => {}
                () = upkeep.note_drained(own) => {}
                () = raising => {}
                never = settling => match never {},
                () = removing => {}
                () = tending => {}
                never = expiring => match never {},
                () = stopped(ended) => {}
            }
        });
        Ok(catalog)
    }

    fn register(&self, registry: &mut Registry) {
        self.coordinator.register(registry);
        self.upkeep.metrics().register(registry);
        plugins::register(&self.plugins, registry);
        self.access.register(registry);
        registry.register(
            "witan_log_lines_lost",
            "Log lines lost because standard error was not read in time",
            LOST.clone(),
        );
        witan_peer::metrics::register(registry, Arc::clone(&self.lanes));
    }

    /// Starts polling the storage nodes, and waits until a connection to each has succeeded or failed once.
    async fn reach_nodes(&self, metadata: Arc<dyn Metadata>, stop: watch::Receiver<bool>) {
        tokio::spawn(watch_nodes(Arc::clone(&self.lanes), metadata, stop));
        tracing::info!(nodes = self.coordinator.ring().nodes().len(), "waiting for the storage nodes");
        self.lanes.tried().await;
    }

    /// The gRPC services; from now on settings follow `live`.
    fn services(
        &self,
        catalog: Arc<Catalog>,
        issuance: Issuance,
        live: watch::Receiver<Live>,
        unsent: Arc<Unsent>,
        stop: &watch::Receiver<bool>,
    ) -> server::Services<Real, PluginApi> {
        let (coordinator, upkeep) = (Arc::clone(&self.coordinator), Arc::clone(&self.upkeep));
        let plugins = PluginApi::new(self.plugins.clone(), Arc::clone(&catalog), self.coordinator.clone(), unix_ms);
        let hooks = Arc::new(plugins.clone());
        let api = CoordinatorApi::new(coordinator, upkeep, Arc::clone(&catalog), hooks, stop.clone(), unsent);
        let changing = Changing {
            coordinator: Arc::clone(&self.coordinator),
            fallbacks: Arc::clone(api.fallbacks()),
            access: Arc::clone(&self.access),
            healing: Arc::clone(&self.healing),
            moves: Arc::clone(&self.moves),
        };
        tokio::spawn(changing.follow(live, stop.clone()));
        server::Services {
            coordinator: api,
            plugins,
            tokens: AccessApi::new(issuance, catalog, self.coordinator.clone()),
            access: Arc::clone(&self.access),
        }
    }
}
