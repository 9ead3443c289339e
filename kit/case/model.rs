//! What a case is, however it is spelled.

use bytes::Bytes;
use witan_kernel::hook::{Operation, PolicyQuestion, ReplicaState, ResolverQuestion, Shortfall};
use witan_kernel::name::NodeId;
use witan_kernel::tenant::Level;

/// One case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its name, which is that of its file.
    pub name: String,
    /// The configuration of the binding.
    pub configuration: Bytes,
    /// What happens, and what has to come of it.
    pub expects: Expects,
}

/// What has to come of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expects {
    /// The plugin refuses the configuration with an issue that contains this text.
    Refused(String),
    /// A resolver is asked.
    Verdict(ResolverQuestion, Expected<Outcome>),
    /// A policy is asked.
    Decision(Box<Asked>, Expected<Decision>),
    /// A routing hook is asked for a partition key.
    Partition(Bytes, Expected<Bytes>),
    /// A routing hook is asked for an order, of these replicas.
    Order(Bytes, Vec<(NodeId, ReplicaState)>, Expected<Vec<u8>>),
}

/// What a plugin has to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected<T> {
    /// This.
    Answer(T),
    /// That it does not answer, with this error of the WIT.
    Error(&'static str),
}

/// What has to come of a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Readers get this value.
    Value(Bytes),
    /// All siblings are kept.
    KeepAll,
}

/// What a policy is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The kind of operation.
    pub operation: Operation,
    /// The level asked for.
    pub level: Level,
    /// The tenant's minimum level.
    pub minimum: Level,
    /// Replicas of the key.
    pub replication_factor: u8,
    /// Milliseconds until the request's deadline.
    pub deadline_ms: u32,
    /// Bytes of the value written.
    pub value_bytes: u32,
    /// The replicas, in ring order.
    pub replicas: Vec<ReplicaState>,
}

impl Asked {
    /// The question as the plugin host takes it.
    pub fn question(&self) -> PolicyQuestion<'_> {
        PolicyQuestion {
            operation: self.operation,
            level: self.level,
            minimum: self.minimum,
            replication_factor: self.replication_factor,
            deadline_ms: self.deadline_ms,
            value_bytes: self.value_bytes,
            replicas: &self.replicas,
            zones: &[],
            zone: None,
        }
    }
}

/// What a policy has to answer; what is absent may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Replicas that must answer.
    pub required: Option<u8>,
    /// Milliseconds until the deadline.
    pub deadline_ms: Option<u32>,
    /// Microseconds after which a read asks a spare replica; the inner `None` is the native rule.
    pub hedge_after_us: Option<Option<u32>>,
    /// What a shortfall means.
    pub shortfall: Option<Shortfall>,
}

impl Case {
    /// Values that a resolver's laws are to be tried on.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        let siblings = match &self.expects {
            Expects::Verdict(question, _) => question.siblings.as_slice(),
            _ => &[],
        };
        siblings.iter().map(|sibling| &sibling.value)
    }
}
