//! Why a plugin gave no answer: it declined, or it broke a rule or a limit. Errors of wasmtime become faults here, by their types.

use std::time::Duration;

use wasmtime::Trap;
use witan_kernel::hook::FaultKind;
use witan_kernel::limit::{KEY_BYTES, VALUE_BYTES};

use crate::guest::Guest;
use crate::limit;

/// Why there is no answer. The sentence continues the plugin's name: "trapped: ...".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The plugin does not answer this question. Its instance stays usable.
    #[error(transparent)]
    Declined(#[from] Declined),
    /// The plugin broke a rule or a limit. Its instance is dropped.
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl Fault {
    /// What callers branch on.
    pub(crate) fn kind(&self) -> FaultKind {
        match self {
            Self::Declined(_) => FaultKind::Declined,
            Self::Broken(broken) => broken.kind(),
        }
    }
}

/// What a plugin says when it does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Declined {
    #[error("says that the question makes no sense to it (invalid-input)")]
    InvalidInput,
    #[error("says that it does not answer such questions (unsupported)")]
    Unsupported,
    #[error("says that it failed (internal)")]
    Internal,
    /// With the issues that it reported, on one line.
    #[error("refuses its configuration: {0}")]
    Configuration(String),
}

impl Declined {
    /// The first issues that a plugin has with its configuration, each a place and a problem.
    pub(crate) fn of_configuration<'a>(issues: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let lines = issues.take(limit::ISSUES).map(|(at, problem)| match at {
            "" => shorten(problem),
            at => format!("{}: {}", shorten(at), shorten(problem)),
        });
        Self::Configuration(lines.collect::<Vec<_>>().join("; "))
    }
}

/// The rule or limit that a plugin broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// More than [`limit::Budget::result`].
    #[error("handed over more bytes than one call may")]
    ResultBytes,
    #[error("needed more than {} bytes of stack", limit::STACK_BYTES)]
    Stack,
    /// Growth was refused, and then the guest stopped for this reason: nearly always a consequence.
    #[error("{limit}, then stopped ({cause})")]
    Growth { limit: GrowthLimit, cause: String },
    #[error("trapped: {0}")]
    Trap(Trap),
    /// Anything else, such as a pointer out of bounds in a result; in wasmtime's words.
    #[error("failed: {0}")]
    Failed(String),
    /// A new instance did not accept the configuration that its binding carries.
    #[error(transparent)]
    Configuration(Declined),
    #[error("was asked for another hook than it implements")]
    WrongHook,
    #[error("picked sibling {index} of {siblings}, counted from 0")]
    Pick { index: u32, siblings: usize },
    #[error("gave {answers} answers to {questions} questions")]
    Answers { answers: usize, questions: usize },
    #[error("merged to {0} bytes; a value has at most {VALUE_BYTES}")]
    MergedBytes(usize),
    #[error("answered a partition key of {0} bytes; 1 to {KEY_BYTES} are allowed")]
    PartitionKeyBytes(usize),
    /// The order as it was answered, shortened.
    #[error("answered the order {order}, which is none of {replicas} replicas")]
    Order { order: String, replicas: usize },
    /// What it answered, without the values.
    #[error("answered differently when it was asked again: it {first}, then it {then}")]
    Undetermined { first: String, then: String },
}

impl Broken {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Timeout(_) => FaultKind::Time,
            Self::Stack | Self::Growth { .. } => FaultKind::Memory,
            Self::Trap(_) | Self::Failed(_) | Self::WrongHook => FaultKind::Trap,
            Self::Configuration(_) => FaultKind::Configuration,
            Self::ResultBytes
            | Self::Pick { .. }
            | Self::Answers { .. }
            | Self::MergedBytes(_)
            | Self::PartitionKeyBytes(_)
            | Self::Order { .. } => FaultKind::Answer,
            Self::Undetermined { .. } => FaultKind::Undetermined,
        }
    }
}

/// The time limit at which a call was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Timeout {
    #[error("ran longer than {} ms of CPU time", .0.as_millis())]
    Cpu(Duration),
    #[error("did not end within {} ms", .0.as_millis())]
    Wall(Duration),
}

/// The limit at which a memory or table was not allowed to grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrowthLimit {
    #[error("wanted more than {0} bytes of memory")]
    Memory(usize),
    #[error("wanted more than {0} elements in tables")]
    Table(usize),
}

/// Text from a plugin, cut to [`limit::TEXT_BYTES`] and put on one line.
pub(crate) fn shorten(text: &str) -> String {
    let end = text.floor_char_boundary(limit::TEXT_BYTES);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What stopped a guest.
pub(crate) fn explain(error: &wasmtime::Error, guest: &Guest) -> Broken {
    if let Some(timeout) = error.downcast_ref::<Timeout>() {
        return Broken::Timeout(*timeout);
    }
    if has_handed_over_too_much(error) {
        return Broken::ResultBytes;
    }
    let cause = || shorten(&error.root_cause().to_string());
    match (error.downcast_ref::<Trap>(), guest.memory.refused) {
        (Some(Trap::StackOverflow), _) => Broken::Stack,
        (_, Some(limit)) => Broken::Growth { limit, cause: cause() },
        (Some(trap), None) => Broken::Trap(*trap),
        (None, None) => Broken::Failed(cause()),
    }
}

/// True when the bytes that one call may hand to the host ([`limit::Budget::result`]) ran out. Wasmtime's error type for this is
/// private and cannot be downcast to, so it is known by its name; a test below fails when that changes.
fn has_handed_over_too_much(error: &wasmtime::Error) -> bool {
    format!("{:?}", error.root_cause()) == "HostcallFuelExhausted"
}

#[cfg(test)]
mod tests {
    use wasmtime::component::{Component, Linker};
    use wasmtime::{Engine, Instance, Module, Store};

    use super::*;
    use crate::engine;
    use crate::guest::{FIRST_CHECK, Serves};
    use crate::limit::{Budget, Limits};

    fn budget() -> Budget {
        // Time enough for a test that is about something else.
        let ample = Duration::from_secs(60);
        Budget { cpu: ample, start: ample, wall: ample, ..Limits::default().standard.policy }
    }

    /// A store such as plugins run in.
    fn store(engine: &Engine, budget: &Budget) -> Store<Guest> {
        let ticks = engine::start_ticking(engine).unwrap();
        let mut store = Store::new(engine, Guest::new(budget, ticks, Serves::default()));
        crate::instance::enforce_limits(&mut store, budget);
        store.data_mut().deadline.start();
        store.set_epoch_deadline(FIRST_CHECK);
        store
    }

    /// Calls `run` of a core module with these fields.
    fn stopped_by(budget: &Budget, fields: &str) -> Broken {
        let engine = engine::compiler().unwrap();
        let mut store = store(&engine, budget);
        let module = Module::new(&engine, wat::parse_str(format!("(module {fields})")).unwrap()).unwrap();
        let instance = Instance::new(&mut store, &module, &[]);
        let called = instance.and_then(|it| it.get_typed_func::<(), ()>(&mut store, "run")?.call(&mut store, ()));
        explain(&called.unwrap_err(), store.data())
    }

    fn run(body: &str) -> String {
        format!(r#"(func (export "run") {body})"#)
    }

    #[test]
    fn traps_keep_their_kind() {
        let trap = |body| stopped_by(&budget(), &format!("(memory 1) {}", run(body)));
        assert_eq!(trap("unreachable"), Broken::Trap(Trap::UnreachableCodeReached));
        assert_eq!(trap("(drop (i32.load (i32.const -4)))"), Broken::Trap(Trap::MemoryOutOfBounds));
        assert_eq!(trap("(drop (i32.div_u (i32.const 1) (i32.const 0)))"), Broken::Trap(Trap::IntegerDivisionByZero));
        assert_eq!(trap("unreachable").to_string(), "trapped: wasm trap: wasm `unreachable` instruction executed");
    }

    #[test]
    fn running_out_of_time_is_a_timeout() {
        let endless = run("(loop $again (br $again))");
        let cpu = Duration::from_millis(3);
        assert_eq!(stopped_by(&Budget { cpu, ..budget() }, &endless), Broken::Timeout(Timeout::Cpu(cpu)));
        let wall = Duration::from_millis(3);
        assert_eq!(stopped_by(&Budget { wall, ..budget() }, &endless), Broken::Timeout(Timeout::Wall(wall)));
        let starting = "(func $main (loop $again (br $again))) (start $main)";
        assert_eq!(stopped_by(&Budget { cpu, ..budget() }, starting), Broken::Timeout(Timeout::Cpu(cpu)));
    }

    #[test]
    fn refused_growth_is_named_with_what_followed() {
        let budget = Budget { memory: 65536, ..budget() };
        let memory = "(drop (memory.grow (i32.const 1))) unreachable";
        let broken = stopped_by(&budget, &format!("(memory 1) {}", run(memory)));
        assert!(matches!(&broken, Broken::Growth { limit: GrowthLimit::Memory(65536), .. }), "{broken:?}");
        assert!(broken.to_string().starts_with("wanted more than 65536 bytes of memory, then stopped ("), "{broken}");
        let table = "(drop (table.grow (ref.null func) (i32.const 20000))) unreachable";
        let broken = stopped_by(&budget, &format!("(table 1 funcref) {}", run(table)));
        let limit = GrowthLimit::Table(budget.elements);
        assert!(matches!(&broken, Broken::Growth { limit: found, .. } if *found == limit), "{broken:?}");
    }

    #[test]
    fn a_memory_that_is_too_large_from_the_start_is_growth_too() {
        let broken = stopped_by(&Budget { memory: 65536, ..budget() }, &format!("(memory 2) {}", run("")));
        assert!(matches!(&broken, Broken::Growth { limit: GrowthLimit::Memory(65536), .. }), "{broken:?}");
    }

    #[test]
    fn endless_recursion_is_a_stack_overflow() {
        let deeper = "(func $deeper (param i64) (result i64) (i64.add (call $deeper (local.get 0)) (local.get 0)))";
        let broken = stopped_by(&budget(), &format!("{deeper} {}", run("(drop (call $deeper (i64.const 1)))")));
        assert_eq!(broken, Broken::Stack);
    }

    #[test]
    fn anything_else_is_a_failure_in_the_words_of_wasmtime() {
        let broken = stopped_by(&budget(), "(memory 1)");
        assert!(matches!(&broken, Broken::Failed(cause) if cause.contains("run")), "a missing export: {broken:?}");
    }

    /// A component whose `list` is at address 8 and this many bytes long.
    fn list_of(bytes: u32) -> Broken {
        let text = format!(
            r#"(component
                 (core module $m
                   (memory (export "memory") 2)
                   (func (export "list") (result i32) (i32.store offset=4 (i32.const 0) (i32.const {bytes})) (i32.const 0)))
                 (core instance $i (instantiate $m))
                 (func (export "list") (result (list u8)) (canon lift (core func $i "list") (memory $i "memory"))))"#
        );
        let engine = engine::compiler().unwrap();
        let mut store = store(&engine, &budget());
        let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let instance = Linker::new(&engine).instantiate(&mut store, &component).unwrap();
        let list = instance.get_typed_func::<(), (Vec<u8>,)>(&mut store, "list").unwrap();
        explain(&list.call(&mut store, ()).unwrap_err(), store.data())
    }

    #[test]
    fn too_many_bytes_of_a_result_are_known_from_bytes_that_are_not_there() {
        assert_eq!(list_of(budget().result as u32 + 1), Broken::ResultBytes);
        assert!(matches!(list_of(1 << 30), Broken::Failed(_)), "beyond the guest's memory");
    }

    #[test]
    fn text_of_a_plugin_is_cut_between_characters() {
        assert_eq!(shorten("a\nb"), "a b");
        let long = "é".repeat(1000);
        assert!(shorten(&long).len() <= limit::TEXT_BYTES);
    }
}
