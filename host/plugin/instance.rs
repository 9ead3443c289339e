//! Calls into a plugin: one instance, one call at a time, with every limit enforced and every answer checked.

use bytes::Bytes;
use wasmtime::component::Component;
use wasmtime::{Engine, Store};
use witan_kernel::hook::{Hook, PolicyAnswer, PolicyQuestion, ReadReplica, ResolverQuestion, Verdict};
use witan_kernel::limit::{KEY_BYTES, VALUE_BYTES};
use witan_kernel::name::Zone;

use crate::calls::{Called, Exports, Linked, Manifest, Said};
use crate::engine::Ticks;
use crate::fault::{Broken, Declined, Fault, explain, shorten};
use crate::guest::{FIRST_CHECK, Guest, Serves};
use crate::limit::Budget;
use crate::version::Version;

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
        let linked = Linked::new(engine, component, hook, version(component));
        let linked = linked.map_err(|error| LinkError(format!("{error:#}")))?;
        Ok(Self { engine: engine.clone(), linked, ticks, budget })
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// False for a policy whose answers do not depend on the zones of replicas, since it is not shown them.
    pub(crate) fn sees_zones(&self) -> bool {
        self.linked.sees_zones()
    }

    /// Starts an instance. Its deadline covers its start function too.
    pub(crate) fn start(&self, serves: Serves) -> Result<Instance, Fault> {
        serves.counters.started();
        let mut store = Store::new(&self.engine, Guest::new(&self.budget, self.ticks.clone(), serves));
        enforce_limits(&mut store, &self.budget);
        store.set_epoch_deadline(FIRST_CHECK);
        match self.linked.instantiate(&mut store) {
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

/// The version whose interface every plugin exports; the newest, if it exports none, so that what it lacks is named.
fn version(component: &Component) -> Version {
    let exports = |version: &Version| component.get_export_index(None, version.plugin()).is_some();
    Version::ALL.into_iter().find(exports).unwrap_or(Version::NEWEST)
}

/// What a resolver says to several questions, in their order.
pub(crate) type Verdicts = Vec<Result<Verdict, Declined>>;

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

    /// Bytes that it keeps while it waits: its memories, and its tables.
    pub(crate) fn kept_bytes(&self) -> usize {
        let memory = &self.store.data().memory;
        memory.bytes.saturating_add(memory.elements.saturating_mul(size_of::<usize>()))
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

    /// What a call has given, `None` if the instance is of another hook.
    fn answered<T>(&mut self, called: Option<Called<T>>) -> Result<T, Fault> {
        let answer = called.ok_or(Broken::WrongHook)?;
        let answer = answer.map_err(|error| explain(&error, self.store.data()))?.map_err(Fault::Declined)?;
        self.end();
        Ok(answer)
    }

    /// What the plugin says about itself.
    pub(crate) fn describe(&mut self) -> Result<Manifest, Fault> {
        self.begin();
        let described = self.exports.describe(&mut self.store);
        Ok(described.map_err(|error| explain(&error, self.store.data()))?)
    }

    /// Passes the binding's configuration to the plugin.
    pub(crate) fn configure(&mut self, configuration: &[u8]) -> Result<(), Fault> {
        self.begin();
        let configured = self.exports.configure(&mut self.store, configuration);
        Ok(configured.map_err(|error| explain(&error, self.store.data()))??)
    }

    /// Asks a consistency policy.
    pub(crate) fn decide(&mut self, question: &PolicyQuestion<'_>) -> Result<PolicyAnswer, Fault> {
        self.begin();
        let called = self.exports.decide(&mut self.store, question);
        Ok(self.answered(called)?.within(question))
    }

    /// Asks a conflict resolver.
    pub(crate) fn resolve(&mut self, question: &ResolverQuestion) -> Result<Verdict, Fault> {
        self.begin();
        let called = self.exports.resolve(&mut self.store, question);
        Ok(checked(self.answered(called)?, question)?)
    }

    /// Asks a conflict resolver several questions in one call, which has the time and the memory of one. `None` if its version of the
    /// interface has no such call.
    pub(crate) fn resolve_many(&mut self, questions: &[ResolverQuestion]) -> Result<Option<Verdicts>, Fault> {
        self.begin();
        let Some(called) = self.exports.resolve_many(&mut self.store, questions) else { return Ok(None) };
        let said = self.answered(Some(called.map(Ok)))?;
        if said.len() != questions.len() {
            return Err(Broken::Answers { answers: said.len(), questions: questions.len() }.into());
        }
        let one = |(said, question): (Result<Said, Declined>, &ResolverQuestion)| match said {
            Ok(said) => checked(said, question).map(Ok),
            Err(declined) => Ok(Err(declined)),
        };
        let verdicts: Result<Verdicts, Broken> = said.into_iter().zip(questions).map(one).collect();
        Ok(Some(verdicts?))
    }

    /// Sample values of the kind that a conflict resolver merges.
    pub(crate) fn samples(&mut self) -> Result<Vec<Bytes>, Fault> {
        self.begin();
        let Some(samples) = self.exports.samples(&mut self.store) else { return Ok(Vec::new()) };
        Ok(samples.map_err(|error| explain(&error, self.store.data()))?)
    }

    /// Asks a routing hook for a partition key.
    pub(crate) fn partition_key(&mut self, key: &[u8]) -> Result<Bytes, Fault> {
        self.begin();
        let called = self.exports.partition_key(&mut self.store, key);
        let partition = self.answered(called)?;
        if partition.is_empty() || partition.len() > KEY_BYTES {
            return Err(Broken::PartitionKeyBytes(partition.len()).into());
        }
        Ok(Bytes::from(partition))
    }

    /// Asks a routing hook for the order in which replicas are read. `zone`: the coordinator's.
    pub(crate) fn prefer(
        &mut self,
        key: &[u8],
        candidates: &[ReadReplica],
        zone: Option<&Zone>,
    ) -> Result<Vec<u8>, Fault> {
        self.begin();
        let called = self.exports.prefer(&mut self.store, key, candidates, zone);
        let order = self.answered(called)?;
        check_order(&order, candidates.len())?;
        Ok(order)
    }
}

/// A verdict, if it is one on this question.
fn checked(said: Said, question: &ResolverQuestion) -> Result<Verdict, Broken> {
    match said {
        Said::Pick(index) if (index as usize) < question.siblings.len() => Ok(Verdict::Pick(index as usize)),
        Said::Pick(index) => Err(Broken::Pick { index, siblings: question.siblings.len() }),
        Said::Merged(bytes) if bytes.len() <= VALUE_BYTES => Ok(Verdict::Merged(Bytes::from(bytes))),
        Said::Merged(bytes) => Err(Broken::MergedBytes(bytes.len())),
        Said::KeepAll => Ok(Verdict::KeepAll),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn link_error(component: &str) -> LinkError {
        let engine = crate::engine::compiler().unwrap();
        let component = Component::new(&engine, wat::parse_str(component).unwrap()).unwrap();
        let budget = crate::Limits::default().standard.policy;
        let linked = Program::link(&engine, &component, Hook::ConsistencyPolicy, Ticks::default(), budget);
        linked.err().unwrap()
    }

    #[test]
    fn a_component_that_lacks_an_export_or_wants_an_unknown_import_is_not_linked() {
        let LinkError(reason) = link_error("(component)");
        assert!(reason.contains("witan:plugin/plugin@0.2.0"), "{reason}");
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
