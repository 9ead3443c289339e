//! Calls into a plugin: one instance, one call at a time, with every limit enforced and every answer checked.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store};
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
use crate::fault::{Broken, Declined, Fault, explain, shorten};
use crate::guest::{FIRST_CHECK, Guest};
use crate::limit::{self, Budget};
use crate::metrics::Counters;

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

/// The imports of a component that the host does not offer, or the exports that it lacks; in wasmtime's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be linked: {0}")]
pub(crate) struct LinkError(String);

/// A component, compiled and linked, and the budget of its hook.
pub(crate) struct Program {
    engine: Engine,
    linked: Linked,
    ticks: Ticks,
    budget: Budget,
}

impl Program {
    /// Links a component.
    pub(crate) fn link(
        engine: &Engine,
        component: &Component,
        hook: Hook,
        ticks: Ticks,
        budget: Budget,
    ) -> Result<Self, LinkError> {
        let linked = link(engine, component, hook).map_err(|error| LinkError(format!("{error:#}")))?;
        Ok(Self { engine: engine.clone(), linked, ticks, budget })
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Starts an instance. Its deadline covers its start function too.
    pub(crate) fn start(&self, by: Arc<str>, counters: Arc<Counters>) -> Result<Instance, Fault> {
        counters.started();
        let mut store = Store::new(&self.engine, Guest::new(&self.budget, self.ticks.clone(), by, counters));
        enforce_limits(&mut store, &self.budget);
        store.set_epoch_deadline(FIRST_CHECK);
        let exports = match &self.linked {
            Linked::Policy(pre) => pre.instantiate(&mut store).map(Exports::Policy),
            Linked::Resolver(pre) => pre.instantiate(&mut store).map(Exports::Resolver),
            Linked::Routing(pre) => pre.instantiate(&mut store).map(Exports::Routing),
        };
        match exports {
            Ok(exports) => Ok(Instance { store, exports, calls: 0, first_bytes: 0 }),
            Err(error) => Err(explain(&error, store.data()).into()),
        }
    }
}

/// Makes a store enforce its guest's limits.
pub(crate) fn enforce_limits(store: &mut Store<Guest>, budget: &Budget) {
    store.limiter(|guest| &mut guest.memory);
    store.set_hostcall_fuel(budget.result);
    store.epoch_deadline_callback(|mut context| context.data_mut().deadline.check());
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
    /// Bytes of its memories after the first call; 0 before.
    first_bytes: usize,
}

impl Instance {
    /// True while the instance may be used for another call.
    pub(crate) fn is_reusable(&mut self, budget: &Budget) -> bool {
        // An instance that declined its first question has not come to `end` yet.
        self.end();
        self.calls < budget.calls && self.bytes().saturating_sub(self.first_bytes) <= budget.growth
    }

    /// Bytes of all its memories.
    pub(crate) fn bytes(&self) -> usize {
        self.store.data().memory.bytes
    }

    fn begin(&mut self) {
        self.store.data_mut().deadline.start();
        self.store.set_epoch_deadline(FIRST_CHECK);
        self.calls += 1;
    }

    /// Remembers the size of the memory after the first call, when the guest has allocated what it works with.
    fn end(&mut self) {
        if self.first_bytes == 0 {
            self.first_bytes = self.bytes();
        }
    }

    fn broken(&self, error: &wasmtime::Error) -> Fault {
        explain(error, self.store.data()).into()
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

    /// Passes the binding's configuration to the plugin.
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
        Ok(configured.map_err(|error| self.broken(&error))??)
    }

    /// Asks a consistency policy.
    pub(crate) fn decide(&mut self, question: &PolicyQuestion<'_>) -> Result<PolicyAnswer, Fault> {
        self.begin();
        let Exports::Policy(bindings) = &self.exports else { return Err(Broken::WrongHook.into()) };
        let mut replicas = [replica(&UNUSED); 8];
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
        let Exports::Resolver(bindings) = &self.exports else { return Err(Broken::WrongHook.into()) };
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
            resolver_wit::Verdict::Pick(index) => Err(Broken::Pick { index, siblings: question.siblings.len() }.into()),
            resolver_wit::Verdict::Merged(bytes) if bytes.len() <= VALUE_BYTES => {
                Ok(Verdict::Merged(Bytes::from(bytes)))
            }
            resolver_wit::Verdict::Merged(bytes) => Err(Broken::MergedBytes(bytes.len()).into()),
            resolver_wit::Verdict::KeepAll => Ok(Verdict::KeepAll),
        }
    }

    /// Sample values of the kind that a conflict resolver merges.
    pub(crate) fn samples(&mut self) -> Result<Vec<Bytes>, Fault> {
        self.begin();
        let Exports::Resolver(bindings) = &self.exports else { return Ok(Vec::new()) };
        let samples = bindings.witan_plugin_resolver().call_samples(&mut self.store);
        Ok(samples.map_err(|error| self.broken(&error))?.into_iter().map(Bytes::from).collect())
    }

    /// Asks a routing hook for a partition key.
    pub(crate) fn partition_key(&mut self, key: &[u8]) -> Result<Bytes, Fault> {
        self.begin();
        let Exports::Routing(bindings) = &self.exports else { return Err(Broken::WrongHook.into()) };
        let partition = bindings.witan_plugin_routing().call_partition_key(&mut self.store, key);
        let partition = partition.map_err(|error| self.broken(&error))?.map_err(declined)?;
        self.end();
        if partition.is_empty() || partition.len() > KEY_BYTES {
            return Err(Broken::PartitionKeyBytes(partition.len()).into());
        }
        Ok(Bytes::from(partition))
    }

    /// Asks a routing hook for the order in which replicas are read.
    pub(crate) fn prefer(&mut self, key: &[u8], replicas: &[(NodeId, ReplicaState)]) -> Result<Vec<u8>, Fault> {
        self.begin();
        let Exports::Routing(bindings) = &self.exports else { return Err(Broken::WrongHook.into()) };
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

/// Checks that every index names an existing replica, and none twice.
fn check_order(order: &[u8], replicas: usize) -> Result<(), Broken> {
    let mut seen = [false; 256];
    for index in order {
        if usize::from(*index) >= replicas || std::mem::replace(&mut seen[usize::from(*index)], true) {
            let order = shorten(&format!("{order:?}"));
            return Err(Broken::Order { order, replicas });
        }
    }
    Ok(())
}

fn declined(error: types::Error) -> Fault {
    Fault::Declined(match error {
        types::Error::InvalidInput => Declined::InvalidInput,
        types::Error::Unsupported => Declined::Unsupported,
        types::Error::Internal => Declined::Internal,
    })
}

/// A plugin's configuration issues on one line.
fn list<'a>(issues: impl Iterator<Item = (&'a str, &'a str)>) -> Declined {
    let lines = issues.take(limit::ISSUES).map(|(at, problem)| match at {
        "" => shorten(problem),
        at => format!("{}: {}", shorten(at), shorten(problem)),
    });
    Declined::Configuration(lines.collect::<Vec<_>>().join("; "))
}

const UNUSED: ReplicaState = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };

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

    fn link_error(component: &str) -> LinkError {
        let engine = crate::engine::compiler().unwrap();
        let component = Component::new(&engine, wat::parse_str(component).unwrap()).unwrap();
        let budget = crate::Limits::default().policy;
        let linked = Program::link(&engine, &component, Hook::ConsistencyPolicy, Ticks::default(), budget);
        linked.err().unwrap()
    }

    #[test]
    fn a_component_that_lacks_an_export_or_wants_an_unknown_import_is_not_linked() {
        let LinkError(reason) = link_error("(component)");
        assert!(reason.contains("witan:plugin/plugin@0.1.0"), "{reason}");
        let unknown = link_error(r#"(component (import "acme:db/query" (func)))"#).to_string();
        assert!(unknown.starts_with("cannot be linked: ") && unknown.contains("acme:db/query"), "{unknown}");
    }

    #[test]
    fn an_order_names_replicas_once() {
        assert!(check_order(&[2, 0], 3).is_ok());
        assert!(check_order(&[], 3).is_ok());
        for wrong in [&[3][..], &[0, 0], &[255]] {
            assert!(check_order(wrong, 3).is_err());
        }
    }
}
