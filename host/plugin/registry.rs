//! [`PluginHost`]: the known plugins, the bindings in force, and every change to either.

mod apart;
mod barrier;
mod candidates;
mod change;
mod library;
mod proposal;
mod push;
mod restore;
mod share;
mod stage;
mod swap;
mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{broadcast, oneshot};
use wasmtime::Engine;
use witan_kernel::hook::{Hook, Hooks, Plugins};
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{Migration, SigningKey, Slot, StoreError};
use witan_kernel::sync::lock;
use witan_kernel::tenant::Tenant;

use crate::binding::{BindingRecord, CandidateRecord, Partitioning, PluginStore, Reference};
use crate::candidate::Candidate;
use crate::compile::{Compilations, Compiler};
use crate::digest::Digest;
use crate::error::{HostError, PluginError};
use crate::event::{Event, Events};
use crate::folder::Folder;
use crate::history::Author;
use crate::instance::Program;
use crate::late::LateLoading;
use crate::limit::{self, Limits};
use crate::metrics::{Counters, Counts};
use crate::pool::Pool;
use crate::resolvers::Resolvers;
use crate::signature::Signatures;
pub use crate::snapshot::OpenBreakers;
use crate::snapshot::{Bound, Generations, Snapshot, Threads};
use crate::tally::TenantSeries;
use crate::tenant::{ActiveBinding, LoadError, Shared, TenantBinding};
use crate::turn::Turns;
use crate::upload::{Push, Upload, Uploads};
use crate::warm::Warm;

pub use candidates::{CandidateView, ReportView};
pub use library::{Artifact, Source};
use library::{Library, Shelf};
pub use proposal::{BindRequest, Named, Proposal, Proposed, RoutingChange, TryRequest};
pub use push::Pushed;

/// The host's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A folder for the host alone: components, their machine code, the key that authenticates it. Created if missing.
    pub data_dir: PathBuf,
    /// The watched folder, if any: `*.wasm` files in it are staged as they appear. Created if missing.
    pub folder: Option<PathBuf>,
    /// The limits of plugins.
    pub limits: Limits,
    /// Who coordinates here: under this name it reports what it sees of candidates.
    pub coordinator: NodeId,
    /// The program in whose processes components are compiled: one that calls [`crate::compile_if_asked`] first, as the coordinator's own.
    pub compiler: PathBuf,
    /// Whether plugins must be signed, and with which keys.
    pub signatures: Signatures,
}

/// A binding in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// The stored record.
    pub record: BindingRecord,
    /// Counts since this version was put in force in this process.
    pub counts: Counts,
    /// The gauges that the plugin reports.
    pub gauges: Vec<(String, f64)>,
    /// Why the binding cannot answer at all, if so (say, its component is missing): then every question is refused.
    pub broken: Option<String>,
    /// What is tried beside it.
    pub candidate: Option<CandidateRecord>,
    /// The breakers that are open: it is asked less often, or not at all for a while.
    pub breakers: OpenBreakers,
}

/// The plugin host. Cheap to clone; one per process.
#[derive(Clone)]
pub struct PluginHost {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for PluginHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginHost").field("bindings", &self.inner.published.load().bindings.len()).finish()
    }
}

pub(crate) struct Inner {
    engine: Engine,
    shared: Shared,
    compiler: Compiler,
    store: Arc<dyn PluginStore>,
    signatures: Signatures,
    pub(crate) folder: Option<Folder>,
    published: ArcSwap<Published>,
    /// What changes work on. Locked only to look and to replace: never during a probe, a compilation, a call of the store, or while a
    /// file is read or written, so that no change waits here for another tenant's.
    state: Mutex<HostState>,
    /// The components on this host's disk. Whoever adds or removes some holds [`Self::stocking`].
    shelf: Shelf,
    /// Held by the thread that changes which components are known, here and in the store. No rollback and no unbind takes it.
    stocking: Mutex<()>,
    /// Slots whose binding is being stored. Taken last, for two calls of the store.
    turns: Turns<Slot>,
    programs: Mutex<BTreeMap<Digest, std::sync::Weak<Program>>>,
    lanes: Lanes,
    uploads: Uploads,
    coordinator: NodeId,
    /// Versions that slots are to have next, loaded here, by the number of their preparation.
    preparing: Mutex<BTreeMap<Slot, (u64, Arc<Program>)>>,
}

/// Threads for changes, by what may hold them up, so that a change waits only for its own kind.
struct Lanes {
    /// Uploads, which compile.
    uploads: Pool,
    /// Beginnings of pushes that nobody waits for, which wait for the store alone.
    pushes: Pool,
    /// Bindings, which probe, and everything else.
    changes: Pool,
    /// Rollbacks and unbinds, which wait for nothing but the store.
    back: Pool,
}

impl Lanes {
    fn start() -> Result<Self, HostError> {
        let lane =
            |name, threads| Pool::new(name, threads, limit::CHANGES_QUEUE).map_err(HostError::thread("plugin threads"));
        Ok(Self {
            uploads: lane("witan-uploads", limit::COMPILATIONS)?,
            pushes: lane("witan-pushes", limit::COMPILATIONS)?,
            changes: lane("witan-plugins", limit::COMPILATIONS)?,
            back: lane("witan-rollback", limit::BACK_THREADS)?,
        })
    }
}

/// The state that readers see: replaced as a whole, by one atomic swap.
struct Published {
    snapshot: Snapshot,
    bindings: Vec<(Arc<BindingRecord>, Bound)>,
    artifacts: Arc<Vec<Artifact>>,
}

/// The state that changes work on, never on a serving thread.
#[derive(Default)]
struct HostState {
    library: Library,
    bindings: BTreeMap<Slot, LiveBinding>,
    /// Of tenants whose routing hook was swapped.
    partitions: BTreeMap<Slot, LivePartitions>,
    /// Plugins that have passed their probe, each with its owner and the digest of the configuration under which it did.
    probed: BTreeSet<(Option<TenantId>, Digest, Digest)>,
}

/// A binding and everything that it keeps in memory.
struct LiveBinding {
    record: Arc<BindingRecord>,
    active: Arc<ActiveBinding>,
    candidate: Option<Arc<Candidate>>,
    /// Programs of the current and the earlier versions, so that a rollback is instant.
    programs: BTreeMap<Digest, Arc<Program>>,
    /// A component that this binding does not follow to, so that it is not tried again with every scan.
    not_followed: Option<Digest>,
}

impl LiveBinding {
    fn bound(&self) -> Bound {
        Bound { active: self.active.clone(), candidate: self.candidate.clone() }
    }

    fn view(&self) -> Binding {
        view(&self.record, &self.bound())
    }
}

/// By what the keys of each generation of a tenant's rows are placed.
struct LivePartitions {
    record: Vec<Partitioning>,
    live: Generations<ActiveBinding>,
}

impl PluginHost {
    /// Starts the host: loads the known components and bindings, those in force as they are recorded. The watched folder is not looked
    /// into before [`Self::watch_folder`], and plugins of a class that has to be granted are loaded afterwards, except routing hooks.
    /// Blocks: call it outside the runtime (in `spawn_blocking`, or before there is one). A binding whose plugin cannot be loaded does not
    /// prevent the start: its questions are faults until it is bound again.
    pub fn start(settings: Settings, store: Arc<dyn PluginStore>) -> Result<Self, PluginError> {
        let engine = crate::engine::runtime().map_err(|error| HostError::Engine(error.to_string()))?;
        let (warm_tenant, warm) = (settings.limits.warm_tenant, settings.limits.warm);
        let shared = Shared {
            ticks: crate::engine::start_ticking(&engine).map_err(HostError::thread("the ticker"))?,
            limits: Arc::new(settings.limits),
            events: Arc::new(Events::default()),
            totals: Arc::new(std::array::from_fn(|_| Counters::default())),
            tallies: Arc::default(),
            logs: Arc::default(),
            warm: Warm::new(warm_tenant, warm),
            late: Arc::default(),
        };
        let limits = shared.limits.clone();
        let resolvers = Resolvers::start(limits.resolver_threads).map_err(HostError::thread("resolver threads"))?;
        let shadows =
            Pool::new("witan-shadow", 1, limit::SHADOW_QUEUE).map_err(HostError::thread("the thread of shadows"))?;
        let uploads = Uploads::new(&limits);
        let compiler = Compiler::new(settings.compiler, &settings.data_dir, limits)?;
        let (shelf, on_disk) = Shelf::open(&settings.data_dir)?;
        let folder = settings.folder.map(Folder::open).transpose()?;
        let published = Published {
            snapshot: Snapshot::new(&[], HashMap::new(), Threads { resolvers, shadows }),
            bindings: Vec::new(),
            artifacts: Arc::default(),
        };
        let inner = Arc::new(Inner {
            engine,
            shared,
            compiler,
            store,
            signatures: settings.signatures,
            folder,
            published: ArcSwap::from_pointee(published),
            state: Mutex::default(),
            shelf,
            stocking: Mutex::default(),
            turns: Turns::default(),
            programs: Mutex::default(),
            lanes: Lanes::start()?,
            uploads,
            coordinator: settings.coordinator,
            preparing: Mutex::default(),
        });
        if let Err(error) = inner.store.abandon_pushes(&inner.coordinator) {
            tracing::warn!(%error, "pushes that the last stop has interrupted count as under way for some minutes");
        }
        inner.learn_components(on_disk)?;
        let late = inner.restore()?;
        restore::start(&inner, late).map_err(HostError::thread("the loading of plugins"))?;
        crate::folder::start_upkeep(&inner).map_err(HostError::thread("upkeep"))?;
        Ok(Self { inner })
    }

    /// Begins to receive an upload, for [`Self::stage`].
    ///
    /// # Errors
    /// [`PluginError::Busy`] when too many are being received.
    pub fn begin_upload(&self) -> Result<Upload, PluginError> {
        self.inner.uploads.begin()
    }

    /// Scans the watched folder from now on, on a thread of its own. Called once the coordinator serves: whatever is in the folder, and
    /// however long it takes to compile, must not keep it from that.
    pub fn watch_folder(&self) -> Result<(), PluginError> {
        Ok(crate::folder::start(&self.inner).map_err(HostError::thread("the watched folder"))?)
    }

    /// Waits until it is known what a reference of a tenant (`None`: for all tenants) means: a name, or a digest that is not known, may
    /// mean a file of the watched folder, whose first scan may not have ended. It waits until `deadline`, or [`limit::FIRST_SCAN_WAIT`] if
    /// that is shorter; then it fails with [`PluginError::HostBusy`].
    pub async fn is_known(
        &self,
        tenant: Option<&TenantId>,
        plugin: &Reference,
        deadline: Option<Instant>,
    ) -> Result<(), PluginError> {
        let is_certain = matches!(plugin, Reference::Digest(_)) && self.artifact(tenant, plugin).is_some();
        let Some(folder) = self.inner.folder.as_ref().filter(|_| !is_certain) else { return Ok(()) };
        let longest = Instant::now() + limit::FIRST_SCAN_WAIT;
        let until = deadline.map_or(longest, |deadline| deadline.min(longest));
        let mut scanned = folder.scanned();
        let scan = tokio::time::timeout_at(until.into(), scanned.wait_for(|scanned| *scanned)).await;
        scan.map(|_| ()).map_err(|_| PluginError::not_scanned())
    }

    /// Stages a component for its owner: checks and compiles it, and has it describe itself. Idempotent, and the same whether or not others
    /// have the component too. It waits for a place to compile in for
    /// [`limit::COMPILER_WAIT`], or until `deadline` if that is earlier; then it fails with [`PluginError::HostBusy`].
    pub async fn stage(&self, push: impl Into<Push>, deadline: Option<Instant>) -> Result<Artifact, PluginError> {
        let push = push.into();
        let longest = compiler_wait();
        let until = deadline.map_or(longest, |deadline| deadline.min(longest));
        // Taken by whoever is first: the thread that begins with it, or the caller, who has then waited long enough for a thread.
        let begun = Arc::new(AtomicBool::new(false));
        let first = begun.clone();
        let staging = self.change(&self.inner.lanes.uploads, move |inner| {
            if first.swap(true, Ordering::AcqRel) {
                return Err(PluginError::uploads_wait());
            }
            inner.stage(&push, Source::Upload, until)
        });
        let mut staging = std::pin::pin!(staging);
        match tokio::time::timeout_at(until.into(), &mut staging).await {
            Ok(staged) => staged,
            Err(_) if !begun.swap(true, Ordering::AcqRel) => Err(PluginError::uploads_wait()),
            Err(_) => staging.await,
        }
    }

    /// Puts a plugin in force: probes it under its configuration, stores the binding, then swaps it in. Binding what is already in
    /// force changes nothing.
    pub async fn bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        let wanted = request.clone();
        let coming = self.change(&self.inner.lanes.changes, move |inner| inner.coming(wanted)).await?;
        if let Some(coming) = coming {
            self.ready_everywhere(coming).await?;
        }
        self.change(&self.inner.lanes.changes, move |inner| inner.bind(request)).await
    }

    /// Goes back to the previous version; each further rollback goes back one more. It waits for the store alone: that version is held
    /// loaded, and no other change, compilation or probe is in the way.
    pub async fn rollback(&self, tenant: Option<TenantId>, hook: Hook, author: Author) -> Result<Binding, PluginError> {
        self.change(&self.inner.lanes.back, move |inner| inner.rollback(tenant, hook, &author)).await
    }

    /// Removes a binding: the default binding, or the native rule, applies again. Like a rollback, it waits for the store alone.
    pub async fn unbind(&self, tenant: Option<TenantId>, hook: Hook, author: Author) -> Result<(), PluginError> {
        self.change(&self.inner.lanes.back, move |inner| inner.unbind(tenant, hook, &author)).await
    }

    /// What a change of a tenant's routing hook would be, given the generations that the tenant's entry names. The hook is loaded and
    /// probed; nothing changes.
    pub async fn propose(&self, change: RoutingChange, named: Named) -> Result<Proposal, PluginError> {
        self.change(&self.inner.lanes.changes, move |inner| inner.propose(change, named)).await
    }

    /// Records a swap that was proposed, with the placement change that moves the rows, in one transaction, and puts it in force. `None`
    /// instead of the binding: there is none any longer.
    pub async fn record(&self, proposed: Proposed, now_ms: u64) -> Result<(Option<Binding>, Migration), PluginError> {
        self.change(&self.inner.lanes.back, move |inner| inner.record(proposed, now_ms)).await
    }

    /// Brings the record of a tenant's routing hook into line with the tenant's entry, which `read` reads: after a swap was given up, the
    /// binding is the one of before; what is known of generations that the entry does not name is forgotten. True if anything has changed.
    pub async fn settle(
        &self,
        tenant: TenantId,
        read: impl Fn() -> Result<Option<Tenant>, StoreError> + Send + 'static,
    ) -> Result<bool, PluginError> {
        let named = move || Ok(read()?.map(|tenant| Named::of(&tenant)));
        self.change(&self.inner.lanes.changes, move |inner| inner.settle(&tenant, named)).await
    }

    /// Loads routing hooks that place records and could not be loaded before, say because the machine was too busy.
    pub async fn load_places(&self) -> Result<(), PluginError> {
        self.change(&self.inner.lanes.changes, |inner| inner.hold_all_partitions()).await
    }

    /// Tenants whose routing hooks may have to be [settled](Self::settle): a swap of theirs has begun and, perhaps, ended.
    pub fn unsettled(&self) -> Vec<TenantId> {
        self.inner.unsettled()
    }

    /// True if the routing hook of a tenant was ever swapped while records moved.
    pub fn has_generations(&self, tenant: &TenantId) -> bool {
        let slot = Slot { tenant: Some(tenant.clone()), hook: Hook::RoutingHook };
        lock(&self.inner.state).partitions.contains_key(&slot)
    }

    /// Takes a component from its owner (`None`: the operator), if no binding refers to it, now or for a rollback. It is removed with the
    /// last owner.
    pub async fn remove(&self, owner: Option<TenantId>, plugin: Reference) -> Result<Artifact, PluginError> {
        self.change(&self.inner.lanes.changes, move |inner| inner.remove(owner.as_ref(), &plugin)).await
    }

    /// Puts in force what other coordinators have changed: the components, and the bindings of these slots (`None`: all). What cannot
    /// be read from the store stays unchanged.
    pub async fn refresh(&self, slots: Option<Vec<Slot>>) -> Result<(), PluginError> {
        self.change(&self.inner.lanes.changes, move |inner| inner.refresh(slots)).await
    }

    /// Scans the watched folder now, until it stops changing.
    pub async fn scan(&self) -> Result<(), PluginError> {
        self.change(&self.inner.lanes.changes, |inner| {
            inner.scan_until_quiet();
            Ok(())
        })
        .await
    }

    /// All known components, once for each owner, by name, then newest first. At most [`limit::ARTIFACTS`] of the operator.
    pub fn artifacts(&self) -> Arc<Vec<Artifact>> {
        self.inner.published.load().artifacts.clone()
    }

    /// The component that a reference of a tenant (`None`: for all tenants) means now: its own, or the operator's. Of several with the same
    /// name, the one in the watched folder, otherwise the newest.
    pub fn artifact(&self, tenant: Option<&TenantId>, plugin: &Reference) -> Option<Artifact> {
        library::find(&self.inner.published.load().artifacts, tenant, plugin, self.inner.folder.as_ref()).cloned()
    }

    /// The signing keys that the configuration names.
    pub fn configured_keys(&self) -> &[SigningKey] {
        &self.inner.signatures.keys
    }

    /// All bindings in force, the default ones first, then by tenant.
    pub fn bindings(&self) -> Vec<Binding> {
        let published = self.inner.published.load();
        let open = published.snapshot.open_breakers();
        let seen = |(record, bound): &(Arc<BindingRecord>, Bound)| Binding {
            breakers: open.get(&Arc::as_ptr(&bound.active)).copied().unwrap_or_default(),
            ..view(record, bound)
        };
        published.bindings.iter().map(seen).collect()
    }

    /// The last events, and a receiver for those that follow.
    pub fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.inner.shared.events.watch()
    }

    /// How far the plugins are loaded that were not in force when this host was started.
    pub fn late(&self) -> LateLoading {
        self.inner.shared.late.progress()
    }

    /// What became of compilations.
    pub fn compilations(&self) -> Compilations {
        self.inner.compiler.counts()
    }

    /// Bytes of the warm instances of all tenants: their memories and tables.
    pub fn warm_bytes(&self) -> u64 {
        self.inner.shared.warm.bytes() as u64
    }

    /// Candidates that are tried, per hook.
    pub fn candidates(&self) -> [(Hook, u64); 3] {
        let published = self.inner.published.load();
        let tried = published.bindings.iter().filter(|(_, bound)| bound.candidate.is_some());
        Hook::ALL.map(|hook| (hook, tried.clone().filter(|(of, _)| of.hook == hook).count() as u64))
    }

    /// Counts per hook since the process started.
    pub fn counts(&self) -> [(Hook, Counts); 3] {
        Hook::ALL.map(|hook| (hook, self.inner.shared.totals[hook as usize].read()))
    }

    /// What each tenant has asked of each plugin: a series for each of the busiest, and one of all others for each hook.
    pub fn tenant_counts(&self) -> Vec<TenantSeries> {
        let mut more = Vec::new();
        self.inner.published.load().snapshot.each(|binding| more.push(binding.take_counts()));
        self.inner.shared.tallies.look(more)
    }

    /// Breakers of tenants that are open, per hook.
    pub fn open_breakers(&self) -> [(Hook, usize); 3] {
        let mut open = Hook::ALL.map(|hook| (hook, 0));
        self.inner.published.load().snapshot.each(|binding| {
            open[binding.active.hook as usize].1 += usize::from(binding.is_breaker_open());
        });
        open
    }

    /// Runs a change on one of the lane's threads.
    async fn change<T: Send + 'static>(
        &self,
        lane: &Pool,
        change: impl FnOnce(&Inner) -> Result<T, PluginError> + Send + 'static,
    ) -> Result<T, PluginError> {
        let (answer, answered) = oneshot::channel();
        let inner = self.inner.clone();
        let job = move || {
            // The change is made even if the caller has gone away.
            let _ = answer.send(change(&inner));
        };
        lane.submit(job).map_err(|_| PluginError::Busy)?;
        answered.await.unwrap_or_else(|_| Err(HostError::Panicked.into()))
    }
}

impl Plugins for PluginHost {
    fn hooks(&self, tenant: &TenantId) -> Arc<dyn Hooks> {
        self.inner.published.load().snapshot.hooks(tenant)
    }
}

/// Until when a change that begins now waits for a place to compile in.
pub(crate) fn compiler_wait() -> Instant {
    Instant::now() + limit::COMPILER_WAIT
}

fn view(record: &BindingRecord, Bound { active, candidate }: &Bound) -> Binding {
    Binding {
        candidate: candidate.as_ref().map(|candidate| candidate.record.clone()),
        record: record.clone(),
        counts: active.counters.read(),
        gauges: active.counters.gauges(),
        broken: active.primary.as_ref().err().map(LoadError::shown),
        breakers: OpenBreakers::default(),
    }
}

impl Inner {
    /// Publishes the state: it applies from the next request on.
    fn publish(&self, state: &HostState) {
        let bindings: Vec<_> = state.bindings.values().map(|live| (live.record.clone(), live.bound())).collect();
        let bound: Vec<Bound> = bindings.iter().map(|(_, bound)| bound.clone()).collect();
        let of_tenant = |(slot, of): (&Slot, &LivePartitions)| Some((slot.tenant.clone()?, of.live.clone()));
        let partitions = state.partitions.iter().filter_map(of_tenant).collect();
        let snapshot = self.published.load().snapshot.next(&bound, partitions);
        self.published.store(Arc::new(Published { snapshot, bindings, artifacts: state.library.list() }));
    }

    /// The binding whose version answers for a tenant now.
    pub(crate) fn in_force(&self, tenant: &TenantId, hook: Hook) -> Option<Arc<TenantBinding>> {
        self.published.load().snapshot.in_force(tenant, hook)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Drops idle instances.
    pub(crate) fn release_idle(&self) {
        self.published.load().snapshot.release_idle();
    }
}
