//! What a plugin may use. Every number is a bound that a test runs into.

use std::time::Duration;

use witan_kernel::hook::Hook;

/// Largest component, in bytes. A Rust plugin has 30 to 250 KB.
pub const ARTIFACT_BYTES: usize = 1 << 20;
/// Largest configuration of a binding, in bytes.
pub const CONFIGURATION_BYTES: usize = 64 << 10;
/// Core functions of one component. A megabyte holds no more of any use; this bounds what the compiler keeps.
pub const FUNCTIONS: usize = 20_000;
/// Largest body of a function, in bytes: the compiler's time and memory grow faster than the body.
pub const FUNCTION_BYTES: usize = 256 << 10;
/// Locals of a function times the places in it where control goes apart or meets: the compiler may keep a few words for each pair. A
/// function of 500 locals may have 20,000 such places.
pub const FUNCTION_TANGLE: u64 = 10_000_000;
/// Instances, memories and tables of one store: a component with its adapters has three to six.
pub const STORE_ITEMS: usize = 16;
/// Elements of all tables together. A Rust plugin has a hundred or so.
pub const TABLE_ELEMENTS: usize = 20_000;
/// Bytes of a guest's stack. Tokio's threads have 2 MiB.
pub const STACK_BYTES: usize = 512 << 10;
/// Longest name and version of a plugin, in bytes.
pub const NAME_BYTES: usize = 64;
/// Longest text that a plugin may have us keep for a person (a log line, a config issue), in bytes.
pub const TEXT_BYTES: usize = 512;
/// Config issues that are kept.
pub const ISSUES: usize = 16;
/// Log lines of one version of a binding in a second, of all its instances together.
pub const LINES_PER_SECOND: u32 = 10;
/// Gauges of one binding.
pub const GAUGES: usize = 16;
/// Questions to one tenant's resolver that may wait.
pub const RESOLVER_WAITING: usize = 64;
/// Questions to all resolvers that may wait.
pub const RESOLVER_QUEUE: usize = 1024;
/// Compilations at once, those that have outlived their bound included.
pub const COMPILATIONS: usize = 2;
/// Staging, binding and such that may wait.
pub const CHANGES_QUEUE: usize = 64;
/// Artifacts kept; beyond, the oldest that nothing refers to goes.
pub const ARTIFACTS: usize = 256;
/// Bindings of all tenants.
pub const BINDINGS: usize = 4096;
/// Earlier versions of a binding that are kept for rollback.
pub const HISTORY: usize = 8;
/// Tenants whose instances are kept warm.
pub const WARM_TENANTS: usize = 4096;
/// Files that the watched folder may hold.
pub const FOLDER_FILES: usize = 256;

/// What one hook's plugins may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// CPU time of one call; also of starting an instance. A tick (1 ms) or two more may pass before it is noticed.
    pub cpu: Duration,
    /// Wall time of one call, however little of it the thread was let run. A guest cannot wait for anything, so this is
    /// only reached when the machine is overloaded; on a busy one, 5 ms of CPU have been seen to take 100 ms.
    pub wall: Duration,
    /// Share of one core, in thousandths, that one tenant's plugin may use over a second.
    pub share: u32,
    /// Bytes of all its memories together.
    pub memory: usize,
    /// Bytes by which a warm instance's memory may have grown since its first call; beyond, it is replaced.
    pub growth: usize,
    /// Bytes that one call may hand to the host.
    pub result: usize,
    /// Calls after which an instance is replaced.
    pub calls: u32,
}

/// What plugins may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest component, in bytes.
    pub artifact: usize,
    /// Wall time of a compilation.
    pub compile: Duration,
    /// Consistency policies: on every operation, on a serving thread.
    pub policy: Budget,
    /// Conflict resolvers: rare, on threads of their own, with whole values.
    pub resolver: Budget,
    /// Routing hooks: on every operation, on a serving thread.
    pub routing: Budget,
    /// Threads that ask resolvers.
    pub resolver_threads: usize,
    /// Faults within [`Limits::fault_window`] that open a binding's breaker.
    pub faults: u32,
    /// See [`Limits::faults`].
    pub fault_window: Duration,
    /// How long an open breaker waits before it lets one call try.
    pub cool_down: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let serving = Budget {
            cpu: Duration::from_millis(5),
            wall: Duration::from_secs(1),
            share: 750,
            memory: 16 << 20,
            growth: 1 << 20,
            result: 16 << 10,
            calls: 100_000,
        };
        let resolver = Budget {
            cpu: Duration::from_millis(50),
            wall: Duration::from_secs(5),
            share: 750,
            memory: 128 << 20,
            growth: 8 << 20,
            result: witan_kernel::limit::VALUE_BYTES + (64 << 10),
            calls: 10_000,
        };
        Self {
            artifact: ARTIFACT_BYTES,
            compile: Duration::from_secs(20),
            policy: serving.clone(),
            resolver,
            routing: serving,
            resolver_threads: 2,
            faults: 5,
            fault_window: Duration::from_secs(10),
            cool_down: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// The budget of a hook.
    pub fn budget(&self, hook: Hook) -> &Budget {
        match hook {
            Hook::ConsistencyPolicy => &self.policy,
            Hook::ConflictResolver => &self.resolver,
            Hook::RoutingHook => &self.routing,
        }
    }
}
