//! Why an operation failed, and whether what it wanted has happened.

use std::time::Duration;

use bytes::Bytes;

use crate::hook::Hook;
use crate::name::{Invalid, TenantId};

/// Whether a failed change has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It certainly did not happen, and will not.
    NotApplied,
    /// It may have happened, or may still happen.
    InDoubt,
}

impl Effect {
    /// The spelling of the `outcome` in an error's details.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotApplied => "not-applied",
            Self::InDoubt => "in-doubt",
        }
    }
}

/// A failed operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// For a change: whether it happened. Reads have none.
    pub effect: Option<Effect>,
}

/// Why an operation failed. The edge maps each to one status and one reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The request breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No such tenant.
    #[error("tenant {0} does not exist; create it with CreateTenant")]
    TenantNotFound(TenantId),
    /// No value, or a deleted one. The context lets a writer say that it knew.
    #[error("the key has no value")]
    KeyNotFound {
        /// The token to send with the next write.
        context: Bytes,
    },
    /// Fewer nodes than replicas.
    #[error("the tenant wants {wanted} replicas and the cluster has {nodes} storage nodes; add nodes")]
    TooFewNodes {
        /// Replicas of each key.
        wanted: u8,
        /// Nodes that take part.
        nodes: usize,
    },
    /// Too few replicas answered.
    #[error("{received} of {required} required replicas answered{}", reasons(.causes))]
    QuorumNotReached {
        /// Replicas that had to answer.
        required: u8,
        /// Replicas that did.
        received: u8,
        /// What the others said, once each, for a person.
        causes: Vec<String>,
    },
    /// The deadline passed first.
    #[error("the deadline passed with {received} of {required} required replicas answered")]
    Deadline {
        /// Replicas that had to answer.
        required: u8,
        /// Replicas that did.
        received: u8,
    },
    /// The coordinator has as much in flight as it may.
    #[error("too much is in flight; try again later")]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The record has as many siblings, or bytes, as it may.
    #[error(
        "the key has too many siblings or its record too many bytes; read it, and write with the context that the read returns"
    )]
    SiblingLimit,
    /// The idempotency key was used with another request.
    #[error("the idempotency key was used before with another request; use a new key for a new intention")]
    IdempotencyKeyConflict,
    /// The same request is being carried out elsewhere.
    #[error("a request with this idempotency key is in progress; try again later")]
    InProgress {
        /// When to try again.
        retry_after: Duration,
    },
    /// A plugin failed, and its binding says that the request fails then.
    #[error("the {hook} plugin {by} failed: {reason}")]
    PluginFault {
        /// Where.
        hook: Hook,
        /// Who.
        by: String,
        /// How.
        reason: String,
    },
    /// Disks of replicas are full.
    #[error("{received} of {required} required replicas stored the write; others have no disk space left: free some")]
    StorageFull {
        /// Replicas that had to answer.
        required: u8,
        /// Replicas that did.
        received: u8,
    },
    /// The ring changed under the operation, twice.
    #[error("the key's placement is changing; try again")]
    StaleEpoch,
    /// A store that the request needs cannot be reached.
    #[error("{what} cannot be reached: {reason}")]
    StoreUnavailable {
        /// Which.
        what: &'static str,
        /// Why, for the log.
        reason: String,
    },
    /// The change is stored, and whoever repeats it would not find it done.
    #[error("the change is stored, but not on record under its idempotency key; send it again with the same key")]
    Unrecorded,
    /// A defect of ours, or damaged data.
    #[error("internal error: {0}")]
    Internal(String),
}

fn reasons(causes: &[String]) -> String {
    if causes.is_empty() { String::new() } else { format!(" ({})", causes.join("; ")) }
}

impl Failure {
    /// Fails a change that certainly did not happen.
    pub fn not_applied(self) -> Failed {
        Failed { failure: self, effect: Some(Effect::NotApplied) }
    }

    /// Fails a change that may have happened.
    pub fn in_doubt(self) -> Failed {
        Failed { failure: self, effect: Some(Effect::InDoubt) }
    }

    /// Fails a read.
    pub fn of_read(self) -> Failed {
        Failed { failure: self, effect: None }
    }
}
