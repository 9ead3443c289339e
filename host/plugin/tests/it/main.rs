//! The plugin host as its users see it: guests from source (WebAssembly text, or the first-party plugins), real folders,
//! real threads.

mod bounds;
mod candidates;
mod classes;
mod dry_run;
mod faulty;
mod first_party;
mod folder;
mod full;
mod generations;
mod guest;
mod hostile;
mod lanes;
mod life;
mod lines;
mod owners;
mod push;
mod restart;
mod share;
mod signed;
mod swap;
mod trial;
mod turns;
mod versions;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::broadcast;
use witan_kernel::hook::{Asked, Hook, Hooks, Operation, Plugins, PolicyAnswer, PolicyQuestion, ReplicaState};
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::tenant::Level;
use witan_memory::MemoryPlugins;
use witan_plugin::event::{Event, EventKind};
use witan_plugin::history::Author;
use witan_plugin::registry::Binding;
use witan_plugin::signature::Signatures;
use witan_plugin::{BindRequest, Digest, Limits, OnFault, PluginError, PluginHost, Reference, Settings};

/// A host with a data folder, a watched folder and a binding store that outlive it.
struct World {
    dir: TempDir,
    store: Arc<MemoryPlugins>,
    host: PluginHost,
}

impl World {
    fn new() -> Self {
        Self::with(ample())
    }

    fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryPlugins::default());
        let host = start(&dir, &store, limits);
        Self { dir, store, host }
    }

    /// A host of a cluster: all share a store, and each has its own folders.
    fn of_cluster(store: &MemoryPlugins) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(store.seat());
        let host = start(&dir, &store, ample());
        Self { dir, store, host }
    }

    /// Waits until all plugins are loaded that a start has left for later.
    async fn loaded(&self) {
        let all = async {
            while self.host.late().left > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, all).await.expect("large plugins are loaded after the start");
    }

    /// A new host on the same folders and bindings, as after a restart of the process.
    fn restart(self) -> Self {
        let Self { dir, store, host } = self;
        drop(host);
        let host = start(&dir, &store, ample());
        Self { dir, store, host }
    }

    /// Waits for the first scan of the folder.
    async fn scanned(&self) {
        self.host.is_known(None, &name("any"), None).await.unwrap();
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }

    async fn stage(&self, component: &[u8]) -> Result<Digest, PluginError> {
        Ok(self.host.stage(Bytes::copy_from_slice(component), None).await?.digest)
    }

    async fn bind(&self, tenant: &str, hook: Hook, plugin: Reference) -> Result<Binding, PluginError> {
        self.bind_with(tenant, hook, plugin, b"", OnFault::Native).await
    }

    async fn bind_with(
        &self,
        tenant: &str,
        hook: Hook,
        plugin: Reference,
        configuration: &'static [u8],
        on_fault: OnFault,
    ) -> Result<Binding, PluginError> {
        let tenant = (!tenant.is_empty()).then(|| self::tenant(tenant));
        let configuration = Bytes::from_static(configuration);
        self.host.is_known(None, &plugin, None).await?;
        self.host.bind(BindRequest { tenant, hook, plugin, configuration, on_fault, author: Author::default() }).await
    }

    /// Stages a component and binds it by digest.
    async fn put(&self, tenant: &str, hook: Hook, component: &[u8]) -> Result<Binding, PluginError> {
        let digest = self.stage(component).await?;
        self.bind(tenant, hook, Reference::Digest(digest)).await
    }

    fn hooks(&self, tenant: &str) -> Arc<dyn Hooks> {
        self.host.hooks(&self::tenant(tenant))
    }
}

/// The default limits with ample CPU and wall time, so that a slow or busy machine does not fail tests about other things.
fn ample() -> Limits {
    let mut limits = brief();
    for budget in limits.budgets_mut() {
        (budget.cpu, budget.start) = (LONG, LONG);
    }
    limits
}

/// The default limits with ample wall time: for tests of the CPU time.
fn brief() -> Limits {
    let mut limits = Limits { fault_window: LONG, ..Limits::default() };
    (limits.standard.compile, limits.interpreted.compile) = (LONG, LONG);
    for budget in limits.budgets_mut() {
        budget.wall = LONG;
        // Unlimited: a thousand cores.
        budget.share = 1_000_000;
    }
    limits
}

/// Longer than anything takes on any machine.
const LONG: Duration = Duration::from_secs(60);

fn start(dir: &TempDir, store: &Arc<MemoryPlugins>, limits: Limits) -> PluginHost {
    start_with(dir, store, limits, COMPILER)
}

/// The program that compiles in these tests.
const COMPILER: &str = env!("CARGO_BIN_EXE_witan-compile-plugin");

fn start_with(dir: &TempDir, store: &Arc<MemoryPlugins>, limits: Limits, compiler: impl Into<PathBuf>) -> PluginHost {
    let host = PluginHost::start(settings(dir, limits, compiler), store.clone()).unwrap();
    host.watch_folder().unwrap();
    host
}

fn settings(dir: &TempDir, limits: Limits, compiler: impl Into<PathBuf>) -> Settings {
    let (data_dir, folder) = (dir.path().join("data"), Some(dir.path().join("plugins")));
    let (coordinator, signatures) = (coordinator(dir), Signatures::default());
    Settings { data_dir, folder, limits, coordinator, compiler: compiler.into(), signatures }
}

/// The name of the coordinator whose folder this is.
fn coordinator(dir: &TempDir) -> NodeId {
    let name = dir.path().file_name().unwrap().to_string_lossy();
    NodeId::new(format!("c{}", name.trim_start_matches('.')).to_lowercase()).unwrap()
}

fn tenant(id: &str) -> TenantId {
    TenantId::new(id).unwrap()
}

fn name(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// A question about a value of this size, which triggers test guests.
fn question(value_bytes: u32) -> PolicyQuestion<'static> {
    const HEALTHY: ReplicaState =
        ReplicaState { reachable: true, latency_p50_us: 300, latency_p99_us: 900, in_flight: 1 };
    PolicyQuestion {
        operation: Operation::Write,
        level: Level::Quorum,
        minimum: Level::One,
        replication_factor: 3,
        deadline_ms: 1000,
        value_bytes,
        replicas: &[HEALTHY; 3],
        zones: &[],
        zone: None,
    }
}

/// How many replicas the policy requires.
fn required(asked: &Asked<PolicyAnswer>) -> u8 {
    match asked {
        Asked::Answered { answer, .. } => answer.required,
        other => panic!("no answer: {other:?}"),
    }
}

/// Why there was no answer.
fn reason<T: std::fmt::Debug>(asked: Asked<T>) -> String {
    match asked {
        Asked::Faulted { reason, .. } => reason,
        other => panic!("no fault: {other:?}"),
    }
}

/// Waits for an event.
async fn wait_for(events: &mut broadcast::Receiver<Event>, wanted: impl Fn(&Event) -> bool) -> Event {
    let next = async {
        loop {
            let event = events.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(LONG, next).await.expect("an event in time")
}

async fn wait_for_kind(events: &mut broadcast::Receiver<Event>, kind: EventKind) -> Event {
    wait_for(events, |event| event.kind == kind).await
}

/// Puts a file into a watched folder atomically: on a busy machine two scans may find the same half of a file that is being written.
fn place(file: &Path, content: &[u8]) {
    let temporary = file.with_extension("part");
    std::fs::write(&temporary, content).unwrap();
    std::fs::rename(temporary, file).unwrap();
}

/// A first-party plugin, as `cargo xtask plugins` builds it.
fn built(name: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = std::env::var_os("WITAN_PLUGINS").map_or_else(|| root.join("target/plugins"), PathBuf::from);
    let path = folder.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; build the plugins first: cargo xtask plugins", path.display());
    })
}
