//! [`PluginHost`]: the known plugins, the bindings in force, and every change to either.

mod change;
mod library;
mod share;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{broadcast, oneshot};
use wasmtime::Engine;
use witan_kernel::hook::{Hook, Hooks, Plugins};
use witan_kernel::name::TenantId;
use witan_kernel::port::Slot;

use crate::binding::{BindingRecord, OnFault, PluginStore, Reference};
use crate::compile::Compiler;
use crate::digest::Digest;
use crate::error::{HostError, PluginError};
use crate::event::{Event, Events};
use crate::folder::Folder;
use crate::instance::Program;
use crate::limit::{self, Limits};
use crate::metrics::{Counters, Counts};
use crate::pool::Pool;
use crate::snapshot::Snapshot;
use crate::tenant::{ActiveBinding, Shared};

use library::Library;
pub use library::{Artifact, Source};

/// The host's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A folder for the host alone: components, their machine code, the key that authenticates it. Created if missing.
    pub data_dir: PathBuf,
    /// The watched folder, if any: `*.wasm` files in it are staged as they appear. Created if missing.
    pub folder: Option<PathBuf>,
    /// The limits of plugins.
    pub limits: Limits,
}

/// A request to bind.
#[derive(Debug, Clone)]
pub struct BindRequest {
    /// The tenant; `None` for every tenant that has no binding.
    pub tenant: Option<TenantId>,
    /// The hook that the plugin is to answer.
    pub hook: Hook,
    /// The plugin.
    pub plugin: Reference,
    /// The plugin's configuration; at most 64 KiB.
    pub configuration: Bytes,
    /// What a fault of the plugin means for a request.
    pub on_fault: OnFault,
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
    pub(crate) folder: Option<Folder>,
    published: ArcSwap<Published>,
    state: Mutex<HostState>,
    programs: Mutex<BTreeMap<Digest, std::sync::Weak<Program>>>,
    changes: Pool,
}

/// The state that readers see: replaced as a whole, by one atomic swap.
struct Published {
    snapshot: Snapshot,
    bindings: Vec<(Arc<BindingRecord>, Arc<ActiveBinding>)>,
    artifacts: Arc<Vec<Artifact>>,
}

/// The state that changes work on: one thread at a time, never a serving one.
#[derive(Default)]
struct HostState {
    library: Library,
    bindings: BTreeMap<Slot, LiveBinding>,
    /// Plugins that have passed their probe, each with the digest of the configuration under which it did.
    probed: BTreeSet<(Digest, Digest)>,
}

/// A binding and everything that it keeps in memory.
struct LiveBinding {
    record: Arc<BindingRecord>,
    active: Arc<ActiveBinding>,
    /// Programs of the current and the earlier versions, so that a rollback is instant.
    programs: BTreeMap<Digest, Arc<Program>>,
    /// A component that this binding does not follow to, so that it is not tried again with every scan.
    not_followed: Option<Digest>,
}

impl PluginHost {
    /// Starts the host: loads the known components and bindings, and scans the watched folder once. Blocks: call it outside the
    /// runtime (in `spawn_blocking`, or before there is one). A binding whose plugin cannot be loaded does not prevent the
    /// start: its questions are faults until it is bound again.
    pub fn start(settings: Settings, store: Arc<dyn PluginStore>) -> Result<Self, PluginError> {
        let engine = crate::engine::runtime().map_err(|error| HostError::Engine(error.to_string()))?;
        let shared = Shared {
            ticks: crate::engine::start_ticking(&engine).map_err(HostError::thread("the ticker"))?,
            limits: Arc::new(settings.limits),
            events: Arc::new(Events::default()),
            totals: Arc::new(std::array::from_fn(|_| Counters::default())),
        };
        let limits = shared.limits.clone();
        let resolvers = Pool::new("witan-resolver", limits.resolver_threads, limit::RESOLVER_QUEUE)
            .map_err(HostError::thread("resolver threads"))?;
        let changes = Pool::new("witan-plugins", limit::COMPILATIONS, limit::CHANGES_QUEUE)
            .map_err(HostError::thread("plugin threads"))?;
        let compiler = Compiler::new(&settings.data_dir, limits.compile)?;
        let library = Library::open(&settings.data_dir)?;
        let folder = settings.folder.map(Folder::open).transpose()?;
        let published =
            Published { snapshot: Snapshot::new(&[], resolvers), bindings: Vec::new(), artifacts: Arc::default() };
        let inner = Arc::new(Inner {
            engine,
            shared,
            compiler,
            store,
            folder,
            published: ArcSwap::from_pointee(published),
            state: Mutex::new(HostState { library, ..HostState::default() }),
            programs: Mutex::default(),
            changes,
        });
        inner.learn_components()?;
        // The folder is scanned before the bindings are restored, so that each of them can follow what is in it.
        inner.scan_until_quiet();
        inner.restore()?;
        inner.follow();
        crate::folder::start_upkeep(&inner).map_err(HostError::thread("upkeep"))?;
        Ok(Self { inner })
    }

    /// Stages a component: checks and compiles it, and has it describe itself. Idempotent.
    pub async fn stage(&self, bytes: Bytes) -> Result<Artifact, PluginError> {
        self.change(move |inner| inner.stage(&bytes, Source::Upload)).await
    }

    /// Puts a plugin in force: probes it under its configuration, stores the binding, then swaps it in. Binding what is already in
    /// force changes nothing.
    pub async fn bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        self.change(move |inner| inner.bind(request)).await
    }

    /// Goes back to the previous version; each further rollback goes back one more.
    pub async fn rollback(&self, tenant: Option<TenantId>, hook: Hook) -> Result<Binding, PluginError> {
        self.change(move |inner| inner.rollback(tenant, hook)).await
    }

    /// Removes a binding: the default binding, or the native rule, applies again.
    pub async fn unbind(&self, tenant: Option<TenantId>, hook: Hook) -> Result<(), PluginError> {
        self.change(move |inner| inner.unbind(tenant, hook)).await
    }

    /// Removes a component that no binding refers to, now or for a rollback.
    pub async fn remove(&self, plugin: Reference) -> Result<Artifact, PluginError> {
        self.change(move |inner| inner.remove(&plugin)).await
    }

    /// Puts in force what other coordinators have changed: the components, and the bindings of these slots (`None`: all). What cannot
    /// be read from the store stays unchanged.
    pub async fn refresh(&self, slots: Option<Vec<Slot>>) -> Result<(), PluginError> {
        self.change(move |inner| inner.refresh(slots)).await
    }

    /// Scans the watched folder now, until it stops changing.
    pub async fn scan(&self) -> Result<(), PluginError> {
        self.change(|inner| {
            inner.scan_until_quiet();
            Ok(())
        })
        .await
    }

    /// All known components, by name, then newest first. At most [`limit::ARTIFACTS`].
    pub fn artifacts(&self) -> Arc<Vec<Artifact>> {
        self.inner.published.load().artifacts.clone()
    }

    /// The component that a reference means now: of several with the same name, the one in the watched folder, otherwise the newest.
    pub fn artifact(&self, plugin: &Reference) -> Option<Artifact> {
        library::find(&self.inner.published.load().artifacts, plugin, self.inner.folder.as_ref()).cloned()
    }

    /// All bindings in force, the default ones first, then by tenant.
    pub fn bindings(&self) -> Vec<Binding> {
        let published = self.inner.published.load();
        published.bindings.iter().map(|(record, active)| view(record, active)).collect()
    }

    /// The last events, and a receiver for those that follow.
    pub fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.inner.shared.events.watch()
    }

    /// Counts per hook since the process started.
    pub fn counts(&self) -> [(Hook, Counts); 3] {
        Hook::ALL.map(|hook| (hook, self.inner.shared.totals[hook as usize].read()))
    }

    /// Runs a change on one of the host's threads.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Inner) -> Result<T, PluginError> + Send + 'static,
    ) -> Result<T, PluginError> {
        let (answer, answered) = oneshot::channel();
        let inner = self.inner.clone();
        let job = move || {
            // The change is made even if the caller has gone away.
            let _ = answer.send(change(&inner));
        };
        self.inner.changes.submit(job).map_err(|_| PluginError::Busy)?;
        answered.await.unwrap_or_else(|_| Err(HostError::Panicked.into()))
    }
}

impl Plugins for PluginHost {
    fn hooks(&self, tenant: &TenantId) -> Arc<dyn Hooks> {
        self.inner.published.load().snapshot.hooks(tenant)
    }
}

fn view(record: &BindingRecord, active: &ActiveBinding) -> Binding {
    Binding {
        record: record.clone(),
        counts: active.counters.read(),
        gauges: active.counters.gauges(),
        broken: active.primary.as_ref().err().map(ToString::to_string),
    }
}

impl Inner {
    /// Publishes the state: it applies from the next request on.
    fn publish(&self, state: &HostState) {
        let bindings: Vec<_> = state.bindings.values().map(|live| (live.record.clone(), live.active.clone())).collect();
        let actives: Vec<Arc<ActiveBinding>> = bindings.iter().map(|(_, active)| active.clone()).collect();
        let snapshot = self.published.load().snapshot.next(&actives);
        self.published.store(Arc::new(Published { snapshot, bindings, artifacts: state.library.list() }));
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Drops idle instances.
    pub(crate) fn release_idle(&self) {
        self.published.load().snapshot.release_idle();
    }
}
