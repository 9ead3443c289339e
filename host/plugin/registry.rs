//! [`PluginHost`]: the plugins that are known, the bindings in force, and every change to either.

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
use witan_kernel::port::StoreError;

use crate::binding::{BindingRecord, OnFault, PluginStore, Reference};
use crate::compile::Compiler;
use crate::digest::Digest;
use crate::event::{Event, Events};
use crate::folder::Folder;
use crate::instance::Program;
use crate::limit::{self, Limits};
use crate::metrics::{Counters, Counts};
use crate::pool::Pool;
use crate::slot::{Active, Shared};
use crate::snapshot::Snapshot;

use library::Library;
pub use library::{Artifact, Source};

/// What the host needs to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A folder of the host's own: components, their machine code, the key that authenticates it. Made if need be.
    pub data_dir: PathBuf,
    /// The watched folder, if there is one: `*.wasm` in it are staged as they appear. Made if need be.
    pub folder: Option<PathBuf>,
    /// What plugins may use.
    pub limits: Limits,
}

/// A request to bind.
#[derive(Debug, Clone)]
pub struct BindRequest {
    /// For whom; `None` for every tenant without a binding of its own.
    pub tenant: Option<TenantId>,
    /// Where.
    pub hook: Hook,
    /// What.
    pub plugin: Reference,
    /// What it is configured with; at most 64 KiB.
    pub configuration: Bytes,
    /// What a fault means.
    pub on_fault: OnFault,
}

/// A binding in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// As it is stored.
    pub record: BindingRecord,
    /// What has been counted since this version was put in force (in this process).
    pub counts: Counts,
    /// The plugin's own gauges.
    pub gauges: Vec<(String, f64)>,
    /// Why it cannot answer at all, if it cannot (say, its component is gone): then every question is refused.
    pub broken: Option<String>,
}

/// Why a change was not made. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// The request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The plugin breaks a rule, or does not do in its probe what it must.
    #[error("{0}")]
    Refused(String),
    /// No such plugin, or no such binding.
    #[error("{0}")]
    NotFound(String),
    /// The plugin is bound, or may be rolled back to.
    #[error("{0}")]
    InUse(String),
    /// Too many changes wait; try again.
    #[error("too many plugin changes are waiting; try again")]
    Busy,
    /// The store of plugins and bindings failed. The binding in force is the old one.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host's own disk, threads or memory failed.
    #[error("{0}")]
    Host(String),
}

impl PluginError {
    /// True when the same may succeed later, as it is.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Busy | Self::Store(_) | Self::Host(_))
    }
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
    state: Mutex<State>,
    programs: Mutex<BTreeMap<Digest, std::sync::Weak<Program>>>,
    changes: Pool,
}

/// What readers see: replaced whole, by one swap.
struct Published {
    snapshot: Snapshot,
    bindings: Vec<(Arc<BindingRecord>, Arc<Active>)>,
    artifacts: Arc<Vec<Artifact>>,
}

/// What changes are made to, by one thread at a time, never a serving one.
#[derive(Default)]
struct State {
    library: Library,
    bindings: BTreeMap<(Option<TenantId>, Hook), Bound>,
    /// Plugins that have passed their probe under a configuration.
    probed: BTreeSet<(Digest, Digest)>,
}

/// A binding with all that it keeps alive.
struct Bound {
    record: Arc<BindingRecord>,
    active: Arc<Active>,
    /// Programs of the current and the earlier versions, so that a rollback is instant.
    programs: BTreeMap<Digest, Arc<Program>>,
    /// A component that this binding would not follow to, so that it is not tried again with every look.
    not_followed: Option<Digest>,
}

impl PluginHost {
    /// Starts the host: loads what is known and bound, and looks at the watched folder once. Blocks: call it off the
    /// runtime (in `spawn_blocking`, or before there is one). A binding whose plugin cannot be loaded does not keep the
    /// host from starting: its questions are faults until it is bound again.
    pub fn start(settings: Settings, store: Arc<dyn PluginStore>) -> Result<Self, PluginError> {
        let host = |what: &str, error: &dyn std::fmt::Display| PluginError::Host(format!("{what}: {error}"));
        let engine = crate::engine::runtime().map_err(|error| host("make the engine", &error))?;
        let shared = Shared {
            ticks: crate::engine::start_ticking(&engine).map_err(|error| host("start the ticker", &error))?,
            limits: Arc::new(settings.limits),
            events: Arc::new(Events::default()),
            totals: Arc::new(std::array::from_fn(|_| Counters::default())),
        };
        let limits = shared.limits.clone();
        let resolvers = Pool::new("witan-resolver", limits.resolver_threads, limit::RESOLVER_QUEUE)
            .map_err(|error| host("start resolver threads", &error))?;
        let changes = Pool::new("witan-plugins", limit::COMPILATIONS, limit::CHANGES_QUEUE)
            .map_err(|error| host("start plugin threads", &error))?;
        let compiler = Compiler::new(&settings.data_dir, limits.compile).map_err(PluginError::Host)?;
        let library = Library::open(&settings.data_dir).map_err(PluginError::Host)?;
        let folder = settings.folder.map(Folder::open).transpose().map_err(PluginError::Host)?;
        let published =
            Published { snapshot: Snapshot::new(&[], resolvers), bindings: Vec::new(), artifacts: Arc::default() };
        let inner = Arc::new(Inner {
            engine,
            shared,
            compiler,
            store,
            folder,
            published: ArcSwap::from_pointee(published),
            state: Mutex::new(State { library, ..State::default() }),
            programs: Mutex::default(),
            changes,
        });
        inner.learn_components()?;
        // What the folder holds is known before the bindings are, so that none is taken for having followed it already.
        inner.look_until_quiet();
        inner.restore()?;
        inner.follow();
        crate::folder::start_upkeep(&inner).map_err(|error| host("start upkeep", &error))?;
        Ok(Self { inner })
    }

    /// Takes a component in: checks, compiles and asks who it is. Idempotent.
    pub async fn stage(&self, bytes: Bytes) -> Result<Artifact, PluginError> {
        self.change(move |inner| inner.stage(&bytes, Source::Upload)).await
    }

    /// Puts a plugin in force: probes it under its configuration, stores the binding, then swaps. Binding what is in
    /// force already changes nothing.
    pub async fn bind(&self, request: BindRequest) -> Result<Binding, PluginError> {
        self.change(move |inner| inner.bind(request)).await
    }

    /// Goes one version back. Several rollbacks go further back each.
    pub async fn rollback(&self, tenant: Option<TenantId>, hook: Hook) -> Result<Binding, PluginError> {
        self.change(move |inner| inner.rollback(tenant, hook)).await
    }

    /// Takes a binding away: the default binding, or the native rule, holds again.
    pub async fn unbind(&self, tenant: Option<TenantId>, hook: Hook) -> Result<(), PluginError> {
        self.change(move |inner| inner.unbind(tenant, hook)).await
    }

    /// Removes a component that no binding refers to, now or for a rollback.
    pub async fn remove(&self, plugin: Reference) -> Result<Artifact, PluginError> {
        self.change(move |inner| inner.remove(&plugin)).await
    }

    /// Puts in force what other coordinators have changed: the components that are known, and the bindings of `slots`
    /// (`None`: of all). What could not be read stays as it is.
    pub async fn refresh(&self, slots: Option<Vec<(Option<TenantId>, Hook)>>) -> Result<(), PluginError> {
        self.change(move |inner| inner.refresh(slots)).await
    }

    /// Looks at the watched folder now, until it is quiet.
    pub async fn scan(&self) -> Result<(), PluginError> {
        self.change(|inner| {
            inner.look_until_quiet();
            Ok(())
        })
        .await
    }

    /// Every component known, by name, then the newest first. At most [`limit::ARTIFACTS`].
    pub fn artifacts(&self) -> Arc<Vec<Artifact>> {
        self.inner.published.load().artifacts.clone()
    }

    /// The component that a reference means now: of several of a name, the watched folder's, else the newest.
    pub fn artifact(&self, plugin: &Reference) -> Option<Artifact> {
        library::find(&self.inner.published.load().artifacts, plugin, self.inner.folder.as_ref()).cloned()
    }

    /// Every binding in force, the default ones first, then by tenant.
    pub fn bindings(&self) -> Vec<Binding> {
        let published = self.inner.published.load();
        published.bindings.iter().map(|(record, active)| view(record, active)).collect()
    }

    /// The last events, and a receiver of those that follow.
    pub fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.inner.shared.events.watch()
    }

    /// What has been counted per hook since the process started.
    pub fn counts(&self) -> [(Hook, Counts); 3] {
        Hook::ALL.map(|hook| (hook, self.inner.shared.totals[hook as usize].read()))
    }

    /// Runs a change on a thread of the host's own.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Inner) -> Result<T, PluginError> + Send + 'static,
    ) -> Result<T, PluginError> {
        let (answer, answered) = oneshot::channel();
        let inner = self.inner.clone();
        let job = move || {
            // A caller that has gone away does not undo the change.
            let _ = answer.send(change(&inner));
        };
        self.inner.changes.submit(job).map_err(|_| PluginError::Busy)?;
        answered.await.unwrap_or_else(|_| Err(PluginError::Host("the change panicked; please report it".into())))
    }
}

impl Plugins for PluginHost {
    fn hooks(&self, tenant: &TenantId) -> Arc<dyn Hooks> {
        self.inner.published.load().snapshot.hooks(tenant)
    }
}

fn view(record: &BindingRecord, active: &Active) -> Binding {
    Binding {
        record: record.clone(),
        counts: active.counters.read(),
        gauges: active.counters.gauges(),
        broken: active.primary.as_ref().err().cloned(),
    }
}

impl Inner {
    /// Publishes the state: from the next request on, this holds.
    fn publish(&self, state: &State) {
        let bindings: Vec<_> =
            state.bindings.values().map(|bound| (bound.record.clone(), bound.active.clone())).collect();
        let actives: Vec<Arc<Active>> = bindings.iter().map(|(_, active)| active.clone()).collect();
        let snapshot = self.published.load().snapshot.next(&actives);
        self.published.store(Arc::new(Published { snapshot, bindings, artifacts: state.library.list() }));
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Lets idle instances go.
    pub(crate) fn rest(&self) {
        self.published.load().snapshot.rest();
    }
}
