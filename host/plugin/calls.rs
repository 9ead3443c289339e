//! Calls of a guest, in the interface of the version that it exports. What it says is converted to the kernel's types and not checked yet.
//!
//! Each released version of the WIT has a module with the same functions, made by `version!`; what the versions differ in is written
//! there by hand. A guest is linked with its own version's host functions only.

mod v0_1;
mod v0_2;

use bytes::Bytes;
use wasmtime::component::Component;
use wasmtime::{Engine, Store};
use witan_kernel::hook::{Hook, PolicyAnswer, PolicyQuestion, ReadReplica, ResolverQuestion};
use witan_kernel::name::Zone;

use crate::fault::Declined;
use crate::guest::Guest;
use crate::version::Version;

/// What a call gives: a fault of the guest, its refusal, or its answer.
pub(crate) type Called<T> = wasmtime::Result<Result<T, Declined>>;

/// What a plugin says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) hook: String,
    pub(crate) deterministic: bool,
}

/// What a guest answers to a conflict.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Pick(u32),
    Merged(Vec<u8>),
    KeepAll,
}

/// The same expression for the bindings of each world.
macro_rules! any_world {
    ($exports:expr, $bindings:ident => $call:expr) => {
        match $exports {
            Exports::Policy($bindings) => $call,
            Exports::Resolver($bindings) => $call,
            Exports::Routing($bindings) => $call,
        }
    };
}
use any_world;

/// A policy's question in the types of a version, with replicas and attributes that are converted already.
macro_rules! policy_question {
    ($question:ident, $replicas:expr, $attributes:expr) => {
        policy_wit::Question {
            operation: operation($question.operation),
            level: level($question.level),
            minimum: level($question.minimum),
            replication_factor: $question.replication_factor,
            deadline_ms: $question.deadline_ms,
            value_bytes: $question.value_bytes,
            replicas: $replicas,
            attributes: $attributes,
        }
    };
}
use policy_question;

/// A severity of a version as the host's.
macro_rules! severity {
    ($severity:expr) => {
        match $severity {
            host_wit::Severity::Debug => Severity::Debug,
            host_wit::Severity::Info => Severity::Info,
            host_wit::Severity::Warn => Severity::Warn,
            host_wit::Severity::Error => Severity::Error,
        }
    };
}
use severity;

/// What the calls of all versions have in common, as `Linked` and `Exports` of a version. `None` represents a call of another hook.
macro_rules! version {
    ($version:ident) => {
        use crate::bindings::$version::policy::exports::witan::plugin::policy as policy_wit;
        use crate::bindings::$version::policy::witan::plugin::{host as host_wit, types};
        use crate::bindings::$version::policy::{ConsistencyPolicy, ConsistencyPolicyPre};
        use crate::bindings::$version::resolver::exports::witan::plugin::resolver as resolver_wit;
        use crate::bindings::$version::resolver::{ConflictResolver, ConflictResolverPre};
        use crate::bindings::$version::routing::exports::witan::plugin::routing as routing_wit;
        use crate::bindings::$version::routing::{RoutingHook, RoutingHookPre};

        /// A component that is linked.
        pub(crate) enum Linked {
            Policy(ConsistencyPolicyPre<Guest>),
            Resolver(ConflictResolverPre<Guest>),
            Routing(RoutingHookPre<Guest>),
        }

        /// The functions of an instance.
        pub(crate) enum Exports {
            Policy(ConsistencyPolicy),
            Resolver(ConflictResolver),
            Routing(RoutingHook),
        }

        impl Linked {
            pub(crate) fn new(engine: &Engine, component: &Component, hook: Hook) -> wasmtime::Result<Self> {
                let mut linker = Linker::new(engine);
                host_wit::add_to_linker::<Guest, HasSelf<Guest>>(&mut linker, |guest| guest)?;
                let pre = linker.instantiate_pre(component)?;
                Ok(match hook {
                    Hook::ConsistencyPolicy => Self::Policy(ConsistencyPolicyPre::new(pre)?),
                    Hook::ConflictResolver => Self::Resolver(ConflictResolverPre::new(pre)?),
                    Hook::RoutingHook => Self::Routing(RoutingHookPre::new(pre)?),
                })
            }

            pub(crate) fn instantiate(&self, store: &mut Store<Guest>) -> wasmtime::Result<Exports> {
                match self {
                    Self::Policy(pre) => pre.instantiate(store).map(Exports::Policy),
                    Self::Resolver(pre) => pre.instantiate(store).map(Exports::Resolver),
                    Self::Routing(pre) => pre.instantiate(store).map(Exports::Routing),
                }
            }
        }

        impl Exports {
            pub(crate) fn describe(&self, store: &mut Store<Guest>) -> wasmtime::Result<Manifest> {
                any_world!(self, bindings => bindings.witan_plugin_plugin().call_describe(store).map(|it| Manifest {
                    name: it.name,
                    version: it.version,
                    hook: it.hook,
                    deterministic: it.deterministic,
                }))
            }

            pub(crate) fn configure(&self, store: &mut Store<Guest>, configuration: &[u8]) -> Called<()> {
                any_world!(self, bindings => {
                    let configured = bindings.witan_plugin_plugin().call_configure(store, configuration)?;
                    Ok(configured.map_err(|issues| {
                        Declined::of_configuration(issues.iter().map(|issue| (&*issue.at, &*issue.problem)))
                    }))
                })
            }

            pub(crate) fn resolve(
                &self,
                store: &mut Store<Guest>,
                question: &ResolverQuestion,
            ) -> Option<Called<Said>> {
                let Self::Resolver(bindings) = self else { return None };
                let siblings = siblings(question);
                let asked = resolver_question(question, &siblings);
                let said = bindings.witan_plugin_resolver().call_resolve(store, asked);
                Some(said.map(|said| said.map(verdict).map_err(declined)))
            }

            pub(crate) fn samples(&self, store: &mut Store<Guest>) -> Option<wasmtime::Result<Vec<Bytes>>> {
                let Self::Resolver(bindings) = self else { return None };
                let samples = bindings.witan_plugin_resolver().call_samples(store);
                Some(samples.map(|samples| samples.into_iter().map(Bytes::from).collect()))
            }

            pub(crate) fn partition_key(&self, store: &mut Store<Guest>, key: &[u8]) -> Option<Called<Vec<u8>>> {
                let Self::Routing(bindings) = self else { return None };
                let partition = bindings.witan_plugin_routing().call_partition_key(store, key);
                Some(partition.map(|partition| partition.map_err(declined)))
            }
        }

        fn siblings(question: &ResolverQuestion) -> Vec<resolver_wit::Sibling<'_>> {
            question.siblings.iter().map(|s| resolver_wit::Sibling { value: &s.value, time: s.time }).collect()
        }

        fn resolver_question<'a>(
            question: &'a ResolverQuestion,
            siblings: &'a [resolver_wit::Sibling<'a>],
        ) -> resolver_wit::Question<'a> {
            resolver_wit::Question { key: question.key.bytes(), siblings, attributes: &[] }
        }

        fn verdict(verdict: resolver_wit::Verdict) -> Said {
            match verdict {
                resolver_wit::Verdict::Pick(index) => Said::Pick(index),
                resolver_wit::Verdict::Merged(bytes) => Said::Merged(bytes),
                resolver_wit::Verdict::KeepAll => Said::KeepAll,
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

        fn policy_answer(answer: policy_wit::Answer) -> PolicyAnswer {
            PolicyAnswer {
                required: answer.required,
                deadline_ms: answer.deadline_ms,
                hedge_after_us: answer.hedge_after_us,
                shortfall: match answer.shortfall {
                    policy_wit::Shortfall::Fail => Shortfall::Fail,
                    policy_wit::Shortfall::Accept(answers) => Shortfall::Accept(answers),
                },
            }
        }

        fn declined(error: types::Error) -> Declined {
            match error {
                types::Error::InvalidInput => Declined::InvalidInput,
                types::Error::Unsupported => Declined::Unsupported,
                types::Error::Internal => Declined::Internal,
            }
        }
    };
}
use version;

/// A component of any version that is linked.
pub(crate) enum Linked {
    V0_1(v0_1::Linked),
    V0_2(v0_2::Linked),
}

impl Linked {
    /// Links a component of a version.
    pub(crate) fn new(engine: &Engine, component: &Component, hook: Hook, version: Version) -> wasmtime::Result<Self> {
        match version {
            Version::V0_1 => v0_1::Linked::new(engine, component, hook).map(Self::V0_1),
            Version::V0_2 => v0_2::Linked::new(engine, component, hook).map(Self::V0_2),
        }
    }

    pub(crate) fn instantiate(&self, store: &mut Store<Guest>) -> wasmtime::Result<Exports> {
        match self {
            Self::V0_1(linked) => linked.instantiate(store).map(Exports::V0_1),
            Self::V0_2(linked) => linked.instantiate(store).map(Exports::V0_2),
        }
    }

    /// False for a policy that is not shown the zones of replicas: they make no difference to it.
    pub(crate) fn sees_zones(&self) -> bool {
        match self {
            Self::V0_1(_) => false,
            Self::V0_2(_) => true,
        }
    }
}

/// The functions of an instance of any version. `None` represents a call of another hook than the instance's.
pub(crate) enum Exports {
    V0_1(v0_1::Exports),
    V0_2(v0_2::Exports),
}

/// The same call in either version.
macro_rules! either {
    ($self:expr, $exports:ident => $call:expr) => {
        match $self {
            Exports::V0_1($exports) => $call,
            Exports::V0_2($exports) => $call,
        }
    };
}

impl Exports {
    pub(crate) fn describe(&self, store: &mut Store<Guest>) -> wasmtime::Result<Manifest> {
        either!(self, exports => exports.describe(store))
    }

    pub(crate) fn configure(&self, store: &mut Store<Guest>, configuration: &[u8]) -> Called<()> {
        either!(self, exports => exports.configure(store, configuration))
    }

    pub(crate) fn decide(
        &self,
        store: &mut Store<Guest>,
        question: &PolicyQuestion<'_>,
    ) -> Option<Called<PolicyAnswer>> {
        either!(self, exports => exports.decide(store, question))
    }

    pub(crate) fn resolve(&self, store: &mut Store<Guest>, question: &ResolverQuestion) -> Option<Called<Said>> {
        either!(self, exports => exports.resolve(store, question))
    }

    /// All questions in one call; `None`, too, for a version that has no such call.
    pub(crate) fn resolve_many(
        &self,
        store: &mut Store<Guest>,
        questions: &[ResolverQuestion],
    ) -> Option<wasmtime::Result<Vec<Result<Said, Declined>>>> {
        match self {
            Self::V0_1(_) => None,
            Self::V0_2(exports) => exports.resolve_many(store, questions),
        }
    }

    pub(crate) fn samples(&self, store: &mut Store<Guest>) -> Option<wasmtime::Result<Vec<Bytes>>> {
        either!(self, exports => exports.samples(store))
    }

    pub(crate) fn partition_key(&self, store: &mut Store<Guest>, key: &[u8]) -> Option<Called<Vec<u8>>> {
        either!(self, exports => exports.partition_key(store, key))
    }

    pub(crate) fn prefer(
        &self,
        store: &mut Store<Guest>,
        key: &[u8],
        candidates: &[ReadReplica],
        zone: Option<&Zone>,
    ) -> Option<Called<Vec<u8>>> {
        match self {
            Self::V0_1(exports) => exports.prefer(store, key, candidates),
            Self::V0_2(exports) => exports.prefer(store, key, candidates, zone),
        }
    }
}
