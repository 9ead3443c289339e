//! Asking a plugin: one instance, one call, everything limited and every answer checked.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store, Trap};
use witan_kernel::hook::{
    Hook, Operation, PolicyAnswer, PolicyQuestion, ReplicaState, ResolverQuestion, Shortfall, Verdict,
};
use witan_kernel::limit::{KEY_BYTES, VALUE_BYTES};
use witan_kernel::name::NodeId;
use witan_kernel::tenant::Level;

use crate::bindings::v0_1::policy::exports::witan::plugin::policy as policy_wit;
use crate::bindings::v0_1::policy::witan::plugin::types;
use crate::bindings::v0_1::policy::{ConsistencyPolicy, ConsistencyPolicyPre};
use crate::bindings::v0_1::resolver::exports::witan::plugin::resolver as resolver_wit;
use crate::bindings::v0_1::resolver::{ConflictResolver, ConflictResolverPre};
use crate::bindings::v0_1::routing::exports::witan::plugin::routing as routing_wit;
use crate::bindings::v0_1::routing::{RoutingHook, RoutingHookPre};
use crate::engine::Ticks;
use crate::guest::{FIRST_LOOK, Guest, OutOfTime};
use crate::limit::{self, Budget};
use crate::metrics::Counters;

/// Why there is no answer, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The plugin says that it does not answer such a question. Its instance is well.
    Declined(String),
    /// The plugin broke a rule or a limit. Its instance is gone.
    Broken(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declined(reason) | Self::Broken(reason) => f.write_str(reason),
        }
    }
}

/// Text of a plugin's, cut to what is kept, on one line.
pub(crate) fn shorten(text: &str) -> String {
    let end = text.floor_char_boundary(limit::TEXT_BYTES);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a plugin says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) hook: String,
    pub(crate) deterministic: bool,
}

enum Linked {
    Policy(ConsistencyPolicyPre<Guest>),
    Resolver(ConflictResolverPre<Guest>),
    Routing(RoutingHookPre<Guest>),
}

enum Exports {
    Policy(ConsistencyPolicy),
    Resolver(ConflictResolver),
    Routing(RoutingHook),
}

/// A component, compiled and linked, and the budget of its hook.
pub(crate) struct Program {
    engine: Engine,
    linked: Linked,
    ticks: Ticks,
    budget: Budget,
}

impl Program {
    /// Links a component. `Err` says what it wants that there is not.
    pub(crate) fn link(
        engine: &Engine,
        component: &Component,
        hook: Hook,
        ticks: Ticks,
        budget: Budget,
    ) -> Result<Self, String> {
        let linked = link(engine, component, hook).map_err(|error| format!("cannot be linked: {error:#}"))?;
        Ok(Self { engine: engine.clone(), linked, ticks, budget })
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Starts an instance; its deadline runs from before the first of its instructions.
    pub(crate) fn start(&self, by: Arc<str>, counters: Arc<Counters>) -> Result<Instance, Fault> {
        counters.started();
        let mut store = Store::new(&self.engine, Guest::new(&self.budget, self.ticks.clone(), by, counters));
        store.limiter(|guest| &mut guest.memory);
        store.set_hostcall_fuel(self.budget.result);
        store.epoch_deadline_callback(|mut context| context.data_mut().deadline.look());
        store.set_epoch_deadline(FIRST_LOOK);
        let exports = match &self.linked {
            Linked::Policy(pre) => pre.instantiate(&mut store).map(Exports::Policy),
            Linked::Resolver(pre) => pre.instantiate(&mut store).map(Exports::Resolver),
            Linked::Routing(pre) => pre.instantiate(&mut store).map(Exports::Routing),
        };
        match exports {
            Ok(exports) => Ok(Instance { store, exports, calls: 0, first_bytes: 0 }),
            Err(error) => Err(explain(&error, store.data())),
        }
    }
}

fn link(engine: &Engine, component: &Component, hook: Hook) -> wasmtime::Result<Linked> {
    let mut linker = Linker::new(engine);
    crate::bindings::v0_1::policy::witan::plugin::host::add_to_linker::<Guest, HasSelf<Guest>>(&mut linker, |guest| {
        guest
    })?;
    let pre = linker.instantiate_pre(component)?;
    Ok(match hook {
        Hook::ConsistencyPolicy => Linked::Policy(ConsistencyPolicyPre::new(pre)?),
        Hook::ConflictResolver => Linked::Resolver(ConflictResolverPre::new(pre)?),
        Hook::RoutingHook => Linked::Routing(RoutingHookPre::new(pre)?),
    })
}

/// One instance, of one tenant and one binding.
pub(crate) struct Instance {
    store: Store<Guest>,
    exports: Exports,
    calls: u32,
    first_bytes: usize,
}

impl Instance {
    /// True while the instance may be asked again.
    pub(crate) fn is_fresh(&mut self, budget: &Budget) -> bool {
        // Also one that has declined its first question.
        self.end();
        self.calls < budget.calls && self.bytes().saturating_sub(self.first_bytes) <= budget.growth
    }

    fn bytes(&self) -> usize {
        self.store.data().memory.bytes
    }

    fn begin(&mut self) {
        self.store.data_mut().deadline.start();
        self.store.set_epoch_deadline(FIRST_LOOK);
        self.calls += 1;
    }

    /// After the first call, a guest has the memory that it works with.
    fn end(&mut self) {
        if self.first_bytes == 0 {
            self.first_bytes = self.bytes();
        }
    }

    fn broken(&self, error: &wasmtime::Error) -> Fault {
        explain(error, self.store.data())
    }

    /// What the plugin says about itself.
    pub(crate) fn describe(&mut self) -> Result<Manifest, Fault> {
        self.begin();
        macro_rules! describe {
            ($bindings:expr) => {
                $bindings.witan_plugin_plugin().call_describe(&mut self.store).map(|it| Manifest {
                    name: it.name,
                    version: it.version,
                    hook: it.hook,
                    deterministic: it.deterministic,
                })
            };
        }
        let described = match &self.exports {
            Exports::Policy(bindings) => describe!(bindings),
            Exports::Resolver(bindings) => describe!(bindings),
            Exports::Routing(bindings) => describe!(bindings),
        };
        described.map_err(|error| self.broken(&error))
    }

    /// Hands the binding's configuration over.
    pub(crate) fn configure(&mut self, configuration: &[u8]) -> Result<(), Fault> {
        self.begin();
        macro_rules! configure {
            ($bindings:expr) => {
                $bindings.witan_plugin_plugin().call_configure(&mut self.store, configuration).map(|result| {
                    result.map_err(|issues| list(issues.iter().map(|i| (i.at.as_str(), i.problem.as_str()))))
                })
            };
        }
        let configured = match &self.exports {
            Exports::Policy(bindings) => configure!(bindings),
            Exports::Resolver(bindings) => configure!(bindings),
            Exports::Routing(bindings) => configure!(bindings),
        };
        configured.map_err(|error| self.broken(&error))?.map_err(Fault::Declined)
    }

    /// Asks a consistency policy.
    pub(crate) fn decide(&mut self, question: &PolicyQuestion<'_>) -> Result<PolicyAnswer, Fault> {
        self.begin();
        let Exports::Policy(bindings) = &self.exports else { return Err(wrong_hook()) };
        let mut replicas = [replica(&NOBODY); 8];
        let known = question.replicas.len().min(replicas.len());
        replicas.iter_mut().zip(question.replicas).for_each(|(wit, state)| *wit = replica(state));
        let asked = policy_wit::Question {
            operation: operation(question.operation),
            level: level(question.level),
            minimum: level(question.minimum),
            replication_factor: question.replication_factor,
            deadline_ms: question.deadline_ms,
            value_bytes: question.value_bytes,
            replicas: &replicas[..known],
            attributes: &[],
        };
        let answer = bindings.witan_plugin_policy().call_decide(&mut self.store, asked);
        let answer = answer.map_err(|error| self.broken(&error))?.map_err(declined)?;
        self.end();
        let answer = PolicyAnswer {
            required: answer.required,
            deadline_ms: answer.deadline_ms,
            hedge_after_us: answer.hedge_after_us,
            shortfall: match answer.shortfall {
                policy_wit::Shortfall::Fail => Shortfall::Fail,
                policy_wit::Shortfall::Accept(answers) => Shortfall::Accept(answers),
            },
        };
        Ok(answer.within(question))
    }

    /// Asks a conflict resolver.
    pub(crate) fn resolve(&mut self, question: &ResolverQuestion) -> Result<Verdict, Fault> {
        self.begin();
        let Exports::Resolver(bindings) = &self.exports else { return Err(wrong_hook()) };
        let siblings: Vec<resolver_wit::Sibling<'_>> =
            question.siblings.iter().map(|s| resolver_wit::Sibling { value: &s.value, time: s.time }).collect();
        let asked = resolver_wit::Question { key: question.key.bytes(), siblings: &siblings, attributes: &[] };
        let verdict = bindings.witan_plugin_resolver().call_resolve(&mut self.store, asked);
        let verdict = verdict.map_err(|error| self.broken(&error))?.map_err(declined)?;
        self.end();
        match verdict {
            resolver_wit::Verdict::Pick(index) if (index as usize) < question.siblings.len() => {
                Ok(Verdict::Pick(index as usize))
            }
            resolver_wit::Verdict::Pick(index) => {
                Err(Fault::Broken(format!("picked sibling {index} of {}, counted from 0", question.siblings.len())))
            }
            resolver_wit::Verdict::Merged(bytes) if bytes.len() <= VALUE_BYTES => {
                Ok(Verdict::Merged(Bytes::from(bytes)))
            }
            resolver_wit::Verdict::Merged(bytes) => {
                Err(Fault::Broken(format!("merged to {} bytes; a value has at most {VALUE_BYTES}", bytes.len())))
            }
            resolver_wit::Verdict::KeepAll => Ok(Verdict::KeepAll),
        }
    }

    /// Values that a conflict resolver is made for.
    pub(crate) fn samples(&mut self) -> Result<Vec<Bytes>, Fault> {
        self.begin();
        let Exports::Resolver(bindings) = &self.exports else { return Ok(Vec::new()) };
        let samples = bindings.witan_plugin_resolver().call_samples(&mut self.store);
        Ok(samples.map_err(|error| self.broken(&error))?.into_iter().map(Bytes::from).collect())
    }

    /// Asks a routing hook for a partition key.
    pub(crate) fn partition_key(&mut self, key: &[u8]) -> Result<Bytes, Fault> {
        self.begin();
        let Exports::Routing(bindings) = &self.exports else { return Err(wrong_hook()) };
        let partition = bindings.witan_plugin_routing().call_partition_key(&mut self.store, key);
        let partition = partition.map_err(|error| self.broken(&error))?.map_err(declined)?;
        self.end();
        if partition.is_empty() || partition.len() > KEY_BYTES {
            return Err(Fault::Broken(format!(
                "answered a partition key of {} bytes; 1 to {KEY_BYTES} are allowed",
                partition.len()
            )));
        }
        Ok(Bytes::from(partition))
    }

    /// Asks a routing hook for the order in which replicas are read.
    pub(crate) fn prefer(&mut self, key: &[u8], replicas: &[(NodeId, ReplicaState)]) -> Result<Vec<u8>, Fault> {
        self.begin();
        let Exports::Routing(bindings) = &self.exports else { return Err(wrong_hook()) };
        let candidates: Vec<routing_wit::Candidate<'_>> = replicas
            .iter()
            .map(|(node, state)| routing_wit::Candidate { node: node.as_str(), state: replica(state), attributes: &[] })
            .collect();
        let order = bindings.witan_plugin_routing().call_prefer_replicas(&mut self.store, key, &candidates);
        let order = order.map_err(|error| self.broken(&error))?.map_err(declined)?;
        self.end();
        check_order(&order, replicas.len())?;
        Ok(order)
    }
}

/// Each index at most once, and of a replica that there is.
fn check_order(order: &[u8], replicas: usize) -> Result<(), Fault> {
    let mut seen = [false; 256];
    for index in order {
        if usize::from(*index) >= replicas || std::mem::replace(&mut seen[usize::from(*index)], true) {
            let order = shorten(&format!("{order:?}"));
            return Err(Fault::Broken(format!("answered the order {order}, which is none of {replicas} replicas")));
        }
    }
    Ok(())
}

fn wrong_hook() -> Fault {
    Fault::Broken("was asked for another hook than it implements".into())
}

fn declined(error: types::Error) -> Fault {
    Fault::Declined(match error {
        types::Error::InvalidInput => "says that the question makes no sense to it (invalid-input)".into(),
        types::Error::Unsupported => "says that it does not answer such questions (unsupported)".into(),
        types::Error::Internal => "says that it failed (internal)".into(),
    })
}

/// A few issues on one line.
fn list<'a>(issues: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let lines = issues.take(limit::ISSUES).map(|(at, problem)| match at {
        "" => shorten(problem),
        at => format!("{}: {}", shorten(at), shorten(problem)),
    });
    format!("refuses its configuration: {}", lines.collect::<Vec<_>>().join("; "))
}

/// A person's words for what stopped a guest.
fn explain(error: &wasmtime::Error, guest: &Guest) -> Fault {
    let text = error.root_cause().to_string();
    let reason = if let Some(time) = error.downcast_ref::<OutOfTime>() {
        time.to_string()
    } else if text.contains("fuel allocated for hostcalls") {
        "handed over more bytes than one call may".into()
    } else if matches!(error.downcast_ref(), Some(Trap::StackOverflow)) {
        format!("needed more than {} bytes of stack", limit::STACK_BYTES)
    } else if let Some(refused) = guest.memory.refused {
        format!("{refused}, then stopped ({})", shorten(&text))
    } else if error.downcast_ref::<Trap>().is_some() {
        format!("trapped: {}", shorten(&text))
    } else {
        format!("failed: {}", shorten(&text))
    };
    Fault::Broken(reason)
}

const NOBODY: ReplicaState = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };

fn replica(state: &ReplicaState) -> types::Replica {
    types::Replica {
        reachable: state.reachable,
        latency_p50_us: state.latency_p50_us,
        latency_p99_us: state.latency_p99_us,
        in_flight: state.in_flight,
    }
}

fn operation(operation: Operation) -> types::Operation {
    match operation {
        Operation::Read => types::Operation::Read,
        Operation::Write => types::Operation::Write,
        Operation::Delete => types::Operation::Delete,
    }
}

fn level(level: Level) -> types::Level {
    match level {
        Level::One => types::Level::One,
        Level::Quorum => types::Level::Quorum,
        Level::All => types::Level::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_replicas_once() {
        assert!(check_order(&[2, 0], 3).is_ok());
        assert!(check_order(&[], 3).is_ok());
        for wrong in [&[3][..], &[0, 0], &[255]] {
            assert!(check_order(wrong, 3).is_err());
        }
    }

    #[test]
    fn text_of_a_plugin_is_cut_between_characters() {
        assert_eq!(shorten("a\nb"), "a b");
        let long = "é".repeat(1000);
        assert!(shorten(&long).len() <= limit::TEXT_BYTES);
    }
}
