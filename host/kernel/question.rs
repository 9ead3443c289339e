//! Questions that a plugin is asked apart from any operation: to see how it would answer before it is bound.

use bytes::Bytes;

use crate::hook::{KeptPolicyQuestion, ReadReplica, ResolverQuestion};
use crate::name::{Key, Zone};

/// A question to a plugin, with what the answer of the native rule depends on. It borrows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// To a consistency policy.
    Policy {
        /// The key of the operation. No policy is shown it.
        key: Key,
        /// What it is asked.
        question: KeptPolicyQuestion,
    },
    /// To a conflict resolver.
    Resolver(ResolverQuestion),
    /// To a routing hook: where a key belongs. One question, although it has two answers.
    Routing(RoutingQuestion),
}

impl Question {
    /// The key that it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Policy { key, .. } => key,
            Self::Resolver(question) => &question.key,
            Self::Routing(question) => &question.key,
        }
    }
}

/// What a routing hook is asked about a key, and what holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingQuestion {
    /// The key.
    pub key: Key,
    /// The key of the partition in which it is now: the key itself, unless a routing hook has said otherwise.
    pub partition: Bytes,
    /// The key's replicas, in ring order.
    pub replicas: Vec<ReadReplica>,
    /// The zone of the coordinator.
    pub zone: Option<Zone>,
    /// The order in which the replicas are read when no routing hook prefers another one.
    pub native: Vec<u8>,
}

impl RoutingQuestion {
    /// The order in which the replicas are read if a routing hook prefers this one, which may name only the first of them.
    pub fn completed(&self, preferred: &[u8]) -> Vec<u8> {
        let mut order: Vec<u8> = Vec::with_capacity(self.native.len());
        for replica in preferred.iter().chain(&self.native) {
            if usize::from(*replica) < self.replicas.len() && !order.contains(replica) {
                order.push(*replica);
            }
        }
        order
    }
}

/// What is found while questions are looked for among the keys of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This many more keys were looked at.
    Keys(usize),
    /// A question.
    Question(Box<Question>),
    /// A key could not be looked at, for this reason.
    Unread(String),
    /// The search ends before the last key.
    Enough,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::ReplicaState;
    use crate::name::NodeId;

    #[test]
    fn an_order_is_completed_as_reads_complete_it() {
        let state = ReplicaState { reachable: true, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };
        let replica = |node: &str| ReadReplica { node: NodeId::new(node).unwrap(), state, load: 0, zone: None };
        let question = RoutingQuestion {
            key: Key::new("k").unwrap(),
            partition: Bytes::from_static(b"k"),
            replicas: ["a", "b", "c"].map(replica).into(),
            zone: None,
            native: vec![1, 0, 2],
        };
        assert_eq!(question.completed(&[]), [1, 0, 2]);
        assert_eq!(question.completed(&[2]), [2, 1, 0]);
        assert_eq!(question.completed(&[3, 2, 2, 255]), [2, 1, 0], "there are three");
        assert_eq!(question.completed(&[0, 1, 2]), [0, 1, 2]);
    }
}
