//! Limits of plugins. For each there is a test that reaches it.

use std::time::Duration;

use witan_kernel::class::Class;
use witan_kernel::hook::Hook;
use witan_kernel::limit::{COMPONENT_BYTES, RECORD_BYTES};

/// Largest component of class standard by default, in bytes. A Rust plugin has 30 to 250 KB.
pub const STANDARD_BYTES: usize = 1 << 20;
/// Largest component of class interpreted by default, in bytes: Python's has 18.4 MB, JavaScript's 12. Requests and stores carry no larger
/// one.
pub const INTERPRETED_BYTES: usize = COMPONENT_BYTES;
/// Largest consistency policy of class interpreted by default, in bytes. A policy is asked with every operation: Go, of 4.4 MB, answers in
/// 0.15 ms. An interpreter has at least 10 MB, was seen to take 0.8 to 5 ms on a busy machine, and 50 to start.
pub const INTERPRETED_POLICY_BYTES: usize = 8 << 20;
/// Most core functions of a component. A useful component of a megabyte has fewer; this bounds the compiler's memory.
pub const FUNCTIONS: usize = 20_000;
/// The same with an interpreter in it: twice what SpiderMonkey has, 12,600 to 19,900 by how it is built. CPython has 13,500.
pub const INTERPRETED_FUNCTIONS: usize = 40_000;
/// Largest function body, in bytes: the compiler's time and memory grow faster than linearly with it.
pub const FUNCTION_BYTES: usize = 256 << 10;
/// The same in an interpreter, whose loop over its instructions is one function: CPython's has 427 KB.
pub const INTERPRETED_FUNCTION_BYTES: usize = 512 << 10;
/// Values that the operators of a component may take and give, for each byte that it may have. An operator of one byte takes and gives
/// four at most, unless it uses a function type of many parameters or results: so this refuses no code of the ordinary kind, and bounds
/// what such types multiply. It bounds each function too, by the bytes that one may have. The compiler keeps hundreds of bytes for each.
pub const VALUES_PER_BYTE: u64 = 4;
/// Most values of a function (locals, what is on the operand stack, parameters and results of a block) summed over the places in it where
/// control flow splits or joins: the compiler may keep a few words for each pair. A function of 500 locals may have 20,000 such places.
pub const FUNCTION_TANGLE: u64 = 10_000_000;
/// Most core instances, memories and tables of one store, of each: a component with its adapters has three to six.
pub const STORE_ITEMS: usize = 16;
/// The same with a language's libraries: each is a core module, and components of componentize-py 0.25 have 38 instances.
pub const INTERPRETED_STORE_ITEMS: usize = 48;
/// Most elements of all tables together, in either class. A Rust plugin has about a hundred; CPython has 5,800 and SpiderMonkey 7,700, one
/// for each function that they call by its address.
pub const TABLE_ELEMENTS: usize = 20_000;
/// Stack of a guest, in bytes: a quarter of a tokio thread's 2 MiB, which the host's own frames share.
pub const STACK_BYTES: usize = 512 << 10;
/// Longest name and longest version of a plugin, in bytes: they appear in every event and log line of the plugin.
pub const NAME_BYTES: usize = 64;
/// Longest text of a plugin that is kept for a person (a log line, a configuration issue), in bytes: a few lines on a terminal.
pub const TEXT_BYTES: usize = 512;
/// Most configuration issues that are reported: enough to correct a configuration in one go, and a bound on the message.
pub const ISSUES: usize = 16;
/// Log lines per second of one version of a binding, of all its instances together: a plugin must not flood the coordinator's log.
pub const LINES_PER_SECOND: u32 = 10;
/// Lines of a plugin that are kept in memory for those who may see its binding: what a person reads.
pub const LOG_LINES: usize = 200;
/// Most bytes of a binding's lines: a hundred of the longest.
pub const LOG_BYTES: usize = 64 << 10;
/// Most bytes of the lines of all bindings. Above it, a binding that logs another line loses its oldest, until it has only that one.
pub const LOGS_BYTES: usize = 16 << 20;
/// Lines that a reader is handed at once: at most 32 KiB.
pub const LOG_BATCH: usize = 50;
/// Most gauges of one binding: each is kept in memory for as long as its version.
pub const GAUGES: usize = 16;
/// Most questions that may wait for one tenant's resolver: a sixteenth of [`RESOLVER_QUEUE`], so that a slow one leaves room for others.
pub const RESOLVER_WAITING: usize = 64;
/// Most questions that may wait for all resolvers together. Each holds the siblings of a key.
pub const RESOLVER_QUEUE: usize = 1024;
/// Share of one core that one tenant's shadow may use in each second, in thousandths: a tenth, since nobody waits for its answers.
pub const SHADOW_SHARE: u32 = 100;
/// Questions that wait for the thread of shadows: more are not asked.
pub const SHADOW_QUEUE: usize = 64;
/// Most bytes of the siblings in a question that a shadow is asked, so that what waits for its thread, after the reads have been answered
/// and their share of the memory is free again, has 64 MiB at most.
pub const SHADOW_BYTES: usize = 1 << 20;
/// Questions of a policy that are kept for those who try another version: enough for a comparison, and with [`RECENT_KEY_BYTES`] at most 48
/// KiB for each tenant that is kept warm.
pub const RECENT_QUESTIONS: usize = 64;
/// Longest key of a question that is kept, in bytes: nearly all keys are shorter.
pub const RECENT_KEY_BYTES: usize = 256;
/// Most bytes of the siblings in one tenant's questions that wait or are being answered: those of the two largest records.
pub const RESOLVER_TENANT_BYTES: usize = 2 * RECORD_BYTES;
/// The same for all tenants together: four that take all they may leave nothing, and the next question keeps all siblings.
pub const RESOLVER_BYTES: usize = 4 * RESOLVER_TENANT_BYTES;
/// One in this many of a tenant's resolver questions is put to another instance as well, which must answer the same. It costs a
/// sixty-fourth of the time of all calls, and finds what depends on chance or on earlier questions within a few hundred of them.
pub const REPEATED_ONE_IN: u64 = 64;
/// Most concurrent compilations: each may use a whole core, and the memory of its class.
pub const COMPILATIONS: usize = 2;
/// Memory that the process may write to in which a component of class standard is compiled, by default. Rust plugins take 30 MiB, and
/// ordinary code of a megabyte 50.
pub const COMPILE_MEMORY_BYTES: usize = 512 << 20;
/// The same for class interpreted: components of 12 to 18 MB were seen to take 340 MiB.
pub const INTERPRETED_COMPILE_MEMORY_BYTES: usize = 1 << 30;
/// Largest machine code of a component of class standard by default, in bytes. A Rust plugin's has three times the bytes of its component,
/// and is in memory for as long as a binding may use it. A component of 3.6 KB was seen to make 117 MB, by memories that are mostly empty.
pub const IMAGE_BYTES: usize = 32 << 20;
/// The same for class interpreted: four times what a Python plugin has, 33 MB.
pub const INTERPRETED_IMAGE_BYTES: usize = 128 << 20;
/// Most bytes of all cached machine code by default: 4 MiB for each of [`ARTIFACTS`], eight times what a Rust plugin has. What does not
/// fit is compiled again after a restart.
pub const IMAGES_BYTES: u64 = 1 << 30;
/// Components that could not be compiled, as many as are remembered: more than a folder can have, so that all of its files are.
pub const REFUSALS: usize = 4 * FOLDER_FILES;
/// How long an upload, a binding or a file of the watched folder waits for a place to compile in: a few compilations of useful components,
/// which take a second or two each. An upload whose client has a shorter deadline waits only until then.
pub const COMPILER_WAIT: Duration = Duration::from_secs(30);
/// How long a question waits for a plugin that is loaded after the start: a few times what the largest takes. Then its binding says what
/// happens on a fault, so that the client still gets an answer within its own deadline.
pub const LATE_WAIT: Duration = Duration::from_secs(1);
/// Pause after a plugin could not be loaded after the start, before others and then this one are tried.
pub const LATE_RETRY: Duration = Duration::from_secs(1);
/// How long a push that nobody waits for waits for a place to compile in: with the five minutes that a compilation may take on an
/// overloaded machine, it ends before it counts as given up, after [`witan_kernel::port::PUSH_STEP_MS`].
pub const PUSH_WAIT: Duration = Duration::from_secs(240);
/// Pause before it is recorded again how a push has ended, when the store could not be reached: a failover takes a few seconds.
pub const PUSH_RETRY: Duration = Duration::from_secs(1);
/// Most changes (uploads, bindings and the like) that may wait. Each upload holds its component.
pub const CHANGES_QUEUE: usize = 64;
/// Bytes of all uploads that are being received, or wait to be compiled: one of each place in the queue, by default.
pub const UPLOAD_BYTES: usize = 64 << 20;
/// Bytes of uploads beyond those of their places: two components of the largest size at once.
pub const UPLOAD_STOCK_BYTES: usize = 2 * INTERPRETED_BYTES;
/// Time for an upload to arrive: a component of class standard over a line of 200 kbit/s, or of class interpreted over one of 5 Mbit/s.
pub const UPLOAD: Duration = Duration::from_secs(60);
/// How often a change begins again because another coordinator, or another thread, has changed the same binding meanwhile: more often than
/// people change it at once.
pub const CHANGE_ATTEMPTS: usize = 8;
/// Threads for rollbacks and unbinds alone: they only wait for the store, and an incident has more than one tenant.
pub const BACK_THREADS: usize = 4;
/// Most components that are kept. For another one the oldest is evicted that no binding refers to and that is not in the watched folder.
pub const ARTIFACTS: usize = 256;
/// Most bindings of all tenants together: each keeps machine code in memory, and all are copied with every change.
pub const BINDINGS: usize = 4096;
/// Earlier versions of a binding that are kept for rollback: more than anybody goes back in an incident.
pub const HISTORY: usize = 8;
/// Generations of a tenant's rows of which it is known by what their keys are placed: the present one, the one to which records move, the
/// one that is wanted, and one that is being recorded.
pub const PARTITIONS: usize = 4;
/// Most tenants whose instances are kept warm: the instances of each have their own memories.
pub const WARM_TENANTS: usize = 4096;
/// How long a reference by name waits for the first scan of the watched folder, if its client waits as long: a few compilations.
pub const FIRST_SCAN_WAIT: Duration = COMPILER_WAIT;
/// Files of the watched folder that are looked at: as many as components are kept.
pub const FOLDER_FILES: usize = 256;

/// Instances of one version of a binding that one tenant keeps warm, in class standard: when more threads than this ask one tenant's
/// plugin at once, the rest start new instances.
pub const WARM_INSTANCES: usize = 16;
/// The same in class interpreted: each has ten megabytes or more, and two threads ask resolvers by default.
pub const INTERPRETED_WARM_INSTANCES: usize = 4;
/// Most bytes of one tenant's warm instances by default, their memories and tables together: twenty of Python's, which
/// have 13 MB each, or a hundred and more of Rust's.
pub const WARM_TENANT_BYTES: usize = 256 << 20;
/// Most bytes of the warm instances of all tenants together by default: four tenants that keep all they may, or a thousand with a Rust
/// plugin for each hook.
pub const WARM_BYTES: usize = 1 << 30;

/// Limits of the plugins of one hook, in one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Largest component, in bytes; 0: the class is not for this hook.
    pub component: usize,
    /// CPU time of one call. Enforced with a delay of one or two ticks (1 ms each).
    pub cpu: Duration,
    /// CPU time of starting an instance, before its first call. Enforced in the same way.
    pub start: Duration,
    /// Wall time of one call, whether or not its thread was scheduled. A guest cannot wait for anything, so this is only reached on
    /// an overloaded machine; on a busy one, 5 ms of CPU time were seen to take 100 ms.
    pub wall: Duration,
    /// Share of one core that one tenant's plugin may use in each second, in thousandths.
    pub share: u32,
    /// All memories of an instance together, in bytes.
    pub memory: usize,
    /// Growth of a warm instance's memory since its first call after which it is replaced, in bytes.
    pub growth: usize,
    /// Most that one call may hand to the host, in bytes.
    pub result: usize,
    /// Number of calls after which an instance is replaced.
    pub calls: u32,
    /// Most core instances, memories and tables of an instance, of each.
    pub items: usize,
    /// Most elements of all tables of an instance together.
    pub elements: usize,
    /// Most warm instances of one tenant and version of a binding.
    pub warm: usize,
}

/// Limits of the plugins of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassLimits {
    /// Most core functions of a component.
    pub functions: usize,
    /// Largest function body, in bytes.
    pub function_bytes: usize,
    /// CPU time of a compilation, in whole seconds. What exceeds it is refused.
    pub compile: Duration,
    /// Memory that a compilation may write to, in bytes. What exceeds it is refused.
    pub compile_memory: usize,
    /// Largest machine code of a component, in bytes.
    pub image: usize,
    /// Of consistency policies, which are asked with every operation: on a serving thread, unless they are slow.
    pub policy: Budget,
    /// Of conflict resolvers, which are asked rarely, on separate threads, and get whole values.
    pub resolver: Budget,
    /// Of routing hooks, which are asked on a serving thread with every operation.
    pub routing: Budget,
}

/// Limits of all plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Of components of compiled languages.
    pub standard: ClassLimits,
    /// Of components with an interpreter, or a language's runtime, in them.
    pub interpreted: ClassLimits,
    /// Most bytes of all cached machine code. The least recently used is evicted, unless a binding refers to it.
    pub images: u64,
    /// Wall time of a compilation, whatever CPU time it was given: after it the machine counts as overloaded, and the component may be
    /// tried again.
    pub compile_wall: Duration,
    /// Most bytes of the warm instances of one tenant. The least recently used are dropped first.
    pub warm_tenant: usize,
    /// Most bytes of the warm instances of all tenants together. The least recently used are dropped first.
    pub warm: usize,
    /// Number of threads that call resolvers.
    pub resolver_threads: usize,
    /// Least calls within [`Limits::fault_window`] that can open a binding's breaker.
    pub breaker_calls: u32,
    /// Share of these calls that must have faulted for that, in thousandths.
    pub breaker_permille: u32,
    /// Window in which [`Limits::breaker_calls`] are counted.
    pub fault_window: Duration,
    /// Time after which an open breaker admits trial calls.
    pub cool_down: Duration,
    /// How long a version waits for coordinators that have not loaded it, before it is put in force: for a compilation of a large
    /// component, beside others.
    pub ready: Duration,
}

impl Budget {
    /// Of what is asked with every operation, in class standard.
    fn serving() -> Self {
        Self {
            component: STANDARD_BYTES,
            cpu: Duration::from_millis(5),
            start: Duration::from_millis(5),
            wall: Duration::from_secs(1),
            share: 750,
            memory: 16 << 20,
            growth: 1 << 20,
            result: 16 << 10,
            calls: 100_000,
            items: STORE_ITEMS,
            elements: TABLE_ELEMENTS,
            warm: WARM_INSTANCES,
        }
    }

    /// Of conflict resolvers, in class standard.
    fn resolving() -> Self {
        Self {
            cpu: Duration::from_millis(50),
            start: Duration::from_millis(50),
            wall: Duration::from_secs(5),
            memory: 128 << 20,
            growth: 8 << 20,
            result: witan_kernel::limit::VALUE_BYTES + (64 << 10),
            calls: 10_000,
            ..Self::serving()
        }
    }

    /// The same for components with an interpreter.
    fn interpreted(self) -> Self {
        Self { items: INTERPRETED_STORE_ITEMS, warm: INTERPRETED_WARM_INSTANCES, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let standard = ClassLimits {
            functions: FUNCTIONS,
            function_bytes: FUNCTION_BYTES,
            compile: Duration::from_secs(20),
            compile_memory: COMPILE_MEMORY_BYTES,
            image: IMAGE_BYTES,
            policy: Budget::serving(),
            resolver: Budget::resolving(),
            routing: Budget::serving(),
        };
        // A collector of garbage lets its heap grow to a few times what is alive before it looks.
        let policy = Budget {
            component: INTERPRETED_POLICY_BYTES,
            start: Duration::from_millis(50),
            memory: 64 << 20,
            growth: 16 << 20,
            ..Budget::serving().interpreted()
        };
        let resolver = Budget {
            component: INTERPRETED_BYTES,
            cpu: Duration::from_millis(250),
            start: Duration::from_millis(500),
            memory: 256 << 20,
            growth: 32 << 20,
            ..Budget::resolving().interpreted()
        };
        let interpreted = ClassLimits {
            functions: INTERPRETED_FUNCTIONS,
            function_bytes: INTERPRETED_FUNCTION_BYTES,
            compile: Duration::from_secs(60),
            compile_memory: INTERPRETED_COMPILE_MEMORY_BYTES,
            image: INTERPRETED_IMAGE_BYTES,
            policy,
            resolver,
            // An answer is awaited on a serving thread, and none is remembered: at 0.15 ms each, a core places 6,000 keys a second.
            routing: Budget { component: 0, ..Budget::serving() },
        };
        Self {
            standard,
            interpreted,
            images: IMAGES_BYTES,
            compile_wall: Duration::from_secs(300),
            warm_tenant: WARM_TENANT_BYTES,
            warm: WARM_BYTES,
            resolver_threads: 2,
            breaker_calls: 20,
            breaker_permille: 500,
            fault_window: Duration::from_secs(10),
            cool_down: Duration::from_secs(30),
            ready: Duration::from_secs(20),
        }
    }
}

impl Limits {
    /// The limits of a class.
    pub fn of(&self, class: Class) -> &ClassLimits {
        match class {
            Class::Standard => &self.standard,
            Class::Interpreted => &self.interpreted,
        }
    }

    /// The most bytes that a component of any class may have.
    pub fn largest_component(&self) -> usize {
        Class::ALL.into_iter().map(|class| self.of(class).component()).max().unwrap_or_default()
    }

    /// Every budget: of each hook in each class.
    pub fn budgets_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        [&mut self.standard, &mut self.interpreted]
            .into_iter()
            .flat_map(|class| [&mut class.policy, &mut class.resolver, &mut class.routing])
    }
}

impl ClassLimits {
    /// The limits of a hook's plugins.
    pub fn budget(&self, hook: Hook) -> &Budget {
        match hook {
            Hook::ConsistencyPolicy => &self.policy,
            Hook::ConflictResolver => &self.resolver,
            Hook::RoutingHook => &self.routing,
        }
    }

    /// The most bytes that a component of any hook may have.
    pub fn component(&self) -> usize {
        Hook::ALL.into_iter().map(|hook| self.budget(hook).component).max().unwrap_or_default()
    }

    /// The most values that the operators of one function may take and give.
    pub(crate) fn function_values(&self) -> u64 {
        VALUES_PER_BYTE * self.function_bytes as u64
    }
}
