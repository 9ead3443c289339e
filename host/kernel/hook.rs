//! The questions that plugins answer, and the answers that are allowed. Every answer is checked here before it is used.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::name::{Key, NodeId, TenantId, Zone};
use crate::tenant::Level;

/// A place in the coordinator where a plugin decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// How many replicas must answer, until when, when to hedge, and what a shortfall means.
    ConsistencyPolicy,
    /// Which value a reader gets when live siblings differ.
    ConflictResolver,
    /// Which partition a key belongs to, and which replicas are asked first.
    RoutingHook,
}

impl Hook {
    /// Every hook that a plugin can implement; counts per hook are kept in this order.
    pub const ALL: [Self; 3] = [Self::ConsistencyPolicy, Self::ConflictResolver, Self::RoutingHook];

    /// The WIT world's name, which is the API's spelling too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsistencyPolicy => "consistency-policy",
            Self::ConflictResolver => "conflict-resolver",
            Self::RoutingHook => "routing-hook",
        }
    }

    /// Reads the API's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.as_str() == text)
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Read a key.
    Read,
    /// Write a value.
    Write,
    /// Delete a key.
    Delete,
}

impl Operation {
    /// The name in metrics, in the WIT and in fingerprints.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
        }
    }
}

/// One replica of the key, as the coordinator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaState {
    /// False while the coordinator cannot reach it.
    pub reachable: bool,
    /// Median round trip, microseconds; 0 when nothing has been measured.
    pub latency_p50_us: u32,
    /// 99th percentile of round trips, microseconds; 0 when nothing has been measured.
    pub latency_p99_us: u32,
    /// Requests sent and not yet answered.
    pub in_flight: u32,
}

/// What a consistency policy is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyQuestion<'a> {
    /// The kind of operation.
    pub operation: Operation,
    /// The level asked for, or the tenant's default.
    pub level: Level,
    /// The tenant's minimum level.
    pub minimum: Level,
    /// Replicas of the key.
    pub replication_factor: u8,
    /// Milliseconds until the request's deadline.
    pub deadline_ms: u32,
    /// Bytes of the value written; 0 for a read.
    pub value_bytes: u32,
    /// The replicas, in ring order. At most five.
    pub replicas: &'a [ReplicaState],
    /// The zones of the replicas, in the same order; those at the end may be left out if they have none.
    pub zones: &'a [Option<Zone>],
    /// The zone of the coordinator that asks.
    pub zone: Option<&'a Zone>,
}

/// One replica of a key, of which a routing hook says when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadReplica {
    /// The storage node.
    pub node: NodeId,
    /// Its state, as the coordinator sees it.
    pub state: ReplicaState,
    /// The maximum of its requests in flight within the last tenth of a second, rounded down to a power of two.
    pub load: u32,
    /// Its zone.
    pub zone: Option<Zone>,
}

/// Requests in flight as plugins know them, rounded down to a power of two. Finer steps would decide nothing, and with coarse
/// ones most questions repeat, so that cached answers apply.
pub fn coarse(in_flight: u32) -> u32 {
    in_flight.checked_ilog2().map_or(0, |power| 1 << power)
}

/// The same question, for another thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPolicyQuestion {
    rest: PolicyQuestion<'static>,
    replicas: Vec<ReplicaState>,
    zones: Vec<Option<Zone>>,
    zone: Option<Zone>,
}

impl PolicyQuestion<'_> {
    /// A copy that borrows nothing.
    pub fn kept(&self) -> KeptPolicyQuestion {
        KeptPolicyQuestion {
            rest: PolicyQuestion { replicas: &[], zones: &[], zone: None, ..*self },
            replicas: self.replicas.to_vec(),
            zones: self.zones.to_vec(),
            zone: self.zone.cloned(),
        }
    }
}

impl KeptPolicyQuestion {
    /// The question.
    pub fn question(&self) -> PolicyQuestion<'_> {
        PolicyQuestion { replicas: &self.replicas, zones: &self.zones, zone: self.zone.as_ref(), ..self.rest }
    }
}

/// What a shortfall of answers means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortfall {
    /// The operation fails.
    Fail,
    /// The operation succeeds with at least this many answers.
    Accept(u8),
}

/// What a consistency policy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyAnswer {
    /// Replicas that must answer.
    pub required: u8,
    /// Milliseconds until the operation's deadline; never extends the request's own.
    pub deadline_ms: u32,
    /// Microseconds after which a read asks one spare replica; `None`: the native rule.
    pub hedge_after_us: Option<u32>,
    /// What a shortfall means.
    pub shortfall: Shortfall,
}

impl PolicyAnswer {
    /// The native answer: the level asked for, the request's own deadline, and a shortfall fails.
    pub fn native(question: &PolicyQuestion<'_>) -> Self {
        let level = question.level.max(question.minimum);
        Self {
            required: level.required(question.replication_factor),
            deadline_ms: question.deadline_ms,
            hedge_after_us: None,
            shortfall: Shortfall::Fail,
        }
    }

    /// Clamps an answer to what the tenant and the request allow: never below the minimum level, never above the
    /// replication factor, never past the request's deadline.
    pub fn within(self, question: &PolicyQuestion<'_>) -> Self {
        let floor = question.minimum.required(question.replication_factor);
        let required = self.required.clamp(floor, question.replication_factor);
        Self {
            required,
            deadline_ms: self.deadline_ms.clamp(1, question.deadline_ms.max(1)),
            hedge_after_us: self.hedge_after_us,
            shortfall: match self.shortfall {
                Shortfall::Fail => Shortfall::Fail,
                Shortfall::Accept(n) => Shortfall::Accept(n.clamp(floor, required)),
            },
        }
    }
}

/// One live value that a resolver is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The value.
    pub value: Bytes,
    /// When it was written: hybrid time, microseconds since 1970.
    pub time: u64,
}

/// What a conflict resolver is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverQuestion {
    /// The key.
    pub key: Key,
    /// The live values, at least two, in an order that is the same at every coordinator.
    pub siblings: Vec<Sibling>,
}

/// What a conflict resolver decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The sibling with this index replaces all.
    Pick(usize),
    /// These bytes replace all.
    Merged(Bytes),
    /// Keep all; the client decides.
    KeepAll,
}

/// Who answered: `name@digest` for a plugin.
pub type AnsweredBy = Arc<str>;

/// Most bytes of the reason why a plugin has not answered: what is kept of a plugin's own text, and a sentence around it.
pub const REASON_BYTES: usize = 1024;

/// What kept a plugin from answering, as far as callers branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// The plugin says that it does not answer this question.
    Declined,
    /// It ran longer than it may.
    Time,
    /// It wanted more memory, tables or stack than it may have.
    Memory,
    /// It trapped, or failed in another way.
    Trap,
    /// Its answer is none that is allowed, or is too large.
    Answer,
    /// Asked the same question again, it answered differently.
    Undetermined,
    /// It does not accept its configuration.
    Configuration,
    /// It was not asked: its component cannot be loaded.
    NotLoaded,
    /// It was not asked: it has failed too often.
    Breaker,
    /// It was not asked: too many questions wait for it.
    Queue,
    /// It was not asked: it has used up its share of the CPU.
    Share,
}

impl FaultKind {
    /// Every kind; counts per kind are kept in this order.
    pub const ALL: [Self; 11] = [
        Self::Declined,
        Self::Time,
        Self::Memory,
        Self::Trap,
        Self::Answer,
        Self::Undetermined,
        Self::Configuration,
        Self::NotLoaded,
        Self::Breaker,
        Self::Queue,
        Self::Share,
    ];

    /// The spelling in the API and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Declined => "declined",
            Self::Time => "time",
            Self::Memory => "memory",
            Self::Trap => "trap",
            Self::Answer => "answer",
            Self::Undetermined => "undetermined",
            Self::Configuration => "configuration",
            Self::NotLoaded => "not_loaded",
            Self::Breaker => "breaker",
            Self::Queue => "queue",
            Self::Share => "share",
        }
    }
}

/// Why a plugin that is bound has not answered, for the client whose operation it was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginFault {
    /// The plugin.
    pub by: AnsweredBy,
    /// What kept it from answering.
    pub kind: FaultKind,
    /// The same for people: a sentence that begins with the plugin's name, of at most [`REASON_BYTES`].
    pub reason: String,
}

impl PluginFault {
    /// The bytes that it takes in a response.
    pub fn bytes(&self) -> usize {
        self.by.len() + self.reason.len() + 32
    }
}

/// The result of asking a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked<T> {
    /// No plugin is bound: the native rule applies.
    Unbound,
    /// The plugin's answer.
    Answered {
        /// The answer.
        answer: T,
        /// The plugin.
        by: AnsweredBy,
    },
    /// The plugin failed. The failure has been counted already.
    Faulted {
        /// What kept it from answering.
        kind: FaultKind,
        /// What happened, for the people of the tenant: it says nothing that only an operator may know.
        reason: String,
        /// True when the binding says that the request fails too; else the native rule applies.
        fail: bool,
        /// The plugin.
        by: AnsweredBy,
    },
}

impl<T> Asked<T> {
    /// What the client learns if the plugin that is bound has not answered.
    pub fn fault(&self) -> Option<Box<PluginFault>> {
        let Self::Faulted { kind, reason, by, .. } = self else { return None };
        let end = reason.floor_char_boundary(REASON_BYTES);
        Some(Box::new(PluginFault { by: by.clone(), kind: *kind, reason: reason[..end].to_owned() }))
    }
}

/// To which partition a key belongs, by the routing hook of one generation of its tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partition {
    /// No hook is bound in this generation: each key is a partition of its own.
    Native,
    /// The hook's answer.
    By {
        /// The partition's key.
        key: Bytes,
        /// The plugin.
        by: AnsweredBy,
    },
    /// It is not known here (yet) which hook this generation has. Never the native rule instead: the data is elsewhere.
    Unknown,
    /// The plugin failed. The failure has been counted already.
    Faulted {
        /// What happened, for people.
        reason: String,
        /// The plugin.
        by: AnsweredBy,
    },
}

impl From<Asked<Bytes>> for Partition {
    /// Of a hook that is bound in the generation that was asked about.
    fn from(asked: Asked<Bytes>) -> Self {
        match asked {
            Asked::Unbound => Self::Native,
            Asked::Answered { answer, by } => Self::By { key: answer, by },
            Asked::Faulted { reason, by, .. } => Self::Faulted { reason, by },
        }
    }
}

/// An answer that is being computed. Resolvers do not run on the serving threads.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The hooks of one tenant: an immutable snapshot. A request takes one when it starts and keeps it until it ends.
pub trait Hooks: Send + Sync + 'static {
    /// False when no consistency policy is bound, so that its question need not be prepared.
    fn has_policy(&self) -> bool {
        true
    }

    /// Asks the consistency policy. Synchronous and bounded in time: called on the serving threads.
    fn policy(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer>;

    /// The answer of what is tried beside the version in force, if that answers for this key. `None`: the version in force is asked.
    fn policy_tried(&self, _: &Key, _: &PolicyQuestion<'_>) -> Option<Asked<PolicyAnswer>> {
        None
    }

    /// Hears what the version in force has answered: what is tried beside it may be asked the same, off this thread.
    fn policy_answered(&self, _: &Key, _: &PolicyQuestion<'_>, _: &Asked<PolicyAnswer>) {}

    /// Asks the consistency policy elsewhere, if it takes too long for a thread that serves others. `None`: ask it with [`Self::policy`].
    fn policy_apart(&self, _: &PolicyQuestion<'_>) -> Option<Pending<Asked<PolicyAnswer>>> {
        None
    }

    /// True when a resolver is bound.
    fn has_resolver(&self) -> bool;

    /// Asks the conflict resolver, or what is tried beside it. For reads: nothing of the answer is stored.
    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>>;

    /// Asks the version of the conflict resolver that is in force. For a verdict that is stored, which no rollback takes back.
    fn resolve_in_force(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        self.resolve(question)
    }

    /// Asks the routing hook that the tenant has in a generation for the key's partition key. Synchronous and bounded in time. The same
    /// generation and key always have the same answer.
    fn partition_key(&self, generation: u32, key: &Key) -> Partition;

    /// The same, for a purpose other than serving a client, say about each key of the tenant: whatever part of its share of the CPU that
    /// takes, and also while the hook has failed too often for clients.
    fn partition_key_apart(&self, generation: u32, key: &Key) -> Partition {
        self.partition_key(generation, key)
    }

    /// False when no routing hook is bound, so that candidates need not be prepared for it.
    fn has_routing(&self) -> bool {
        true
    }

    /// Asks the routing hook for the order in which replicas are read: a permutation of indices into `candidates`, or a
    /// prefix of one. `zone`: the coordinator's. Synchronous and bounded in time.
    fn prefer(&self, key: &Key, candidates: &[ReadReplica], zone: Option<&Zone>) -> Asked<Vec<u8>>;
}

/// Where hooks come from.
pub trait Plugins: Send + Sync + 'static {
    /// The snapshot now in force for a tenant. Cheap: called once per request.
    fn hooks(&self, tenant: &TenantId) -> Arc<dyn Hooks>;
}

/// No plugin is bound anywhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Native;

impl Hooks for Native {
    fn has_policy(&self) -> bool {
        false
    }

    fn policy(&self, _: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        Asked::Unbound
    }

    fn has_resolver(&self) -> bool {
        false
    }

    fn resolve(&self, _: ResolverQuestion) -> Pending<Asked<Verdict>> {
        Box::pin(std::future::ready(Asked::Unbound))
    }

    fn partition_key(&self, _: u32, _: &Key) -> Partition {
        Partition::Native
    }

    fn has_routing(&self) -> bool {
        false
    }

    fn prefer(&self, _: &Key, _: &[ReadReplica], _: Option<&Zone>) -> Asked<Vec<u8>> {
        Asked::Unbound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(level: Level, minimum: Level) -> PolicyQuestion<'static> {
        PolicyQuestion {
            operation: Operation::Write,
            level,
            minimum,
            replication_factor: 3,
            deadline_ms: 1000,
            value_bytes: 0,
            replicas: &[],
            zones: &[],
            zone: None,
        }
    }

    #[test]
    fn no_answer_goes_below_the_minimum_or_past_the_deadline() {
        let wild = PolicyAnswer { required: 0, deadline_ms: 0, hedge_after_us: None, shortfall: Shortfall::Accept(0) };
        let held = wild.within(&question(Level::One, Level::Quorum));
        assert_eq!((held.required, held.deadline_ms, held.shortfall), (2, 1, Shortfall::Accept(2)));
        let wild = PolicyAnswer {
            required: 200,
            deadline_ms: u32::MAX,
            hedge_after_us: None,
            shortfall: Shortfall::Accept(9),
        };
        let held = wild.within(&question(Level::One, Level::One));
        assert_eq!((held.required, held.deadline_ms, held.shortfall), (3, 1000, Shortfall::Accept(3)));
    }

    /// Binds something, and does not say whether it is a policy.
    struct Silent;

    impl Hooks for Silent {
        fn policy(&self, _: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
            Asked::Unbound
        }

        fn has_resolver(&self) -> bool {
            true
        }

        fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
            Native.resolve(question)
        }

        fn partition_key(&self, _: u32, _: &Key) -> Partition {
            Partition::Native
        }

        fn prefer(&self, _: &Key, _: &[ReadReplica], _: Option<&Zone>) -> Asked<Vec<u8>> {
            Asked::Unbound
        }
    }

    #[test]
    fn a_question_is_prepared_unless_it_is_known_that_nobody_answers() {
        assert!(Silent.has_policy(), "it is asked unless it says otherwise");
        assert!(Silent.has_routing(), "the same");
        assert!(!Native.has_policy() && !Native.has_resolver() && !Native.has_routing());
    }

    #[test]
    fn requests_in_flight_are_told_in_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 1000, u32::MAX].map(coarse), [0, 1, 2, 2, 4, 512, 1 << 31]);
    }

    #[test]
    fn a_client_is_told_a_reason_of_bounded_length() {
        let faulted = |reason: String| Asked::<()>::Faulted {
            kind: FaultKind::Configuration,
            reason,
            fail: false,
            by: "cart@0".into(),
        };
        let told = faulted("é".repeat(REASON_BYTES)).fault().unwrap();
        assert_eq!((told.reason.len(), &*told.by, told.kind), (REASON_BYTES, "cart@0", FaultKind::Configuration));
        assert_eq!(told.bytes(), "cart@0".len() + REASON_BYTES + 32, "its texts, and what surrounds them");
        assert_eq!(faulted("short".into()).fault().unwrap().reason, "short");
        let answered = Asked::Answered { answer: (), by: "cart@0".into() };
        assert_eq!((answered.fault(), Asked::<()>::Unbound.fault()), (None, None));
    }

    #[test]
    fn each_kind_of_fault_has_a_spelling_of_its_own() {
        let spelt: std::collections::BTreeSet<&str> = FaultKind::ALL.map(FaultKind::as_str).into();
        assert_eq!(spelt.len(), FaultKind::ALL.len());
        assert!(
            FaultKind::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at),
            "counts are kept in this order"
        );
    }

    #[test]
    fn the_native_answer_respects_the_minimum() {
        assert_eq!(PolicyAnswer::native(&question(Level::One, Level::Quorum)).required, 2);
    }
}
