//! Why an operation failed, and whether the change has been applied.

use std::time::Duration;

use bytes::Bytes;

use crate::hook::Hook;
use crate::name::{Invalid, TenantId};

/// Whether a failed change has been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It certainly has not been applied, and will not be.
    NotApplied,
    /// It may have been applied, or may still be.
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
    /// The cause.
    pub failure: Failure,
    /// For a change: whether it has been applied. `None` for a read.
    pub effect: Option<Effect>,
}

/// Why an operation failed. The gRPC edge maps each to one status and one reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The request breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No such tenant.
    #[error("tenant {0} does not exist; create it with CreateTenant")]
    TenantNotFound(TenantId),
    /// No value, or a deleted one.
    #[error("the key has no value")]
    KeyNotFound {
        /// The token to send with the next write, which says that the client knows of the deletion.
        context: Bytes,
    },
    /// Fewer nodes than replicas.
    #[error("the tenant wants {wanted} replicas and the cluster has {nodes} storage nodes; add nodes")]
    TooFewNodes {
        /// Replicas of each key.
        wanted: u8,
        /// Active nodes.
        nodes: usize,
    },
    /// Too few replicas answered.
    #[error("{received} of {required} required replicas answered{}", reasons(.causes))]
    QuorumNotReached {
        /// Replicas that had to answer.
        required: u8,
        /// Replicas that did.
        received: u8,
        /// The failures that the others reported, each text once, for people.
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
    /// The deadline passed before anything was sent to a replica.
    #[error("the deadline passed before the operation began")]
    NotBegun,
    /// As many operations are in flight as the coordinator's limits allow.
    #[error("too much is in flight; try again later")]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The record has reached its limit of siblings or bytes.
    #[error(
        "the key has too many siblings or its record too many bytes; read it, and write with the context that the read returns"
    )]
    SiblingLimit,
    /// The idempotency key was used with another request.
    #[error("the idempotency key was used before with another request; use a new key for a new intention")]
    IdempotencyKeyConflict,
    /// The first attempt under this idempotency key is too long ago to be repeated, and its outcome is unknown.
    #[error(
        "the first attempt with this idempotency key is longer ago than its tenant's idempotency retention (24 hours, unless it was \
         changed), and it is unknown whether it was applied; it is not \
         repeated: read the key, and use a new idempotency key for a new attempt"
    )]
    ReservationExpired,
    /// The context is of before a restore of the cluster, or older than its keys.
    #[error(
        "the context was returned before an earlier copy of the cluster was restored, or its key was replaced; nothing was changed: read \
         the key again, and decide again"
    )]
    ContextOutdated,
    /// The same request is being carried out elsewhere.
    #[error("a request with this idempotency key is in progress; try again later")]
    InProgress {
        /// When to try again.
        retry_after: Duration,
    },
    /// A plugin failed, and its binding says that the request fails too.
    #[error("the {hook} plugin {by} failed: {reason}")]
    PluginFault {
        /// The hook that was asked.
        hook: Hook,
        /// The plugin, as `name@digest`.
        by: String,
        /// What happened, for people.
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
    /// The operation rests on what a later change has replaced, and the coordinator does not know of that change yet.
    #[error(
        "the tenant or the placement of its keys was changed, and this coordinator does not know of it yet; try again, or at another \
         coordinator: this one may have lost its connection to the metadata store"
    )]
    StaleEpoch,
    /// A store that the request needs cannot be reached.
    #[error("{what} cannot be reached: {reason}")]
    StoreUnavailable {
        /// The store's name.
        what: &'static str,
        /// The cause, for the log.
        reason: String,
    },
    /// A store that the request needs has no room for another record.
    #[error(
        "{0} is full, so that nothing can be recorded there: its operator has to give it more room, or wait until records expire; a \
         request without an idempotency key needs none"
    )]
    StoreFull(&'static str),
    /// The change is stored, but its idempotency record does not say so: a repetition would not find it done.
    #[error("the change is stored, but not on record under its idempotency key; send it again with the same key")]
    Unrecorded,
    /// Nobody can say any more whether an earlier attempt of this change was applied.
    #[error(
        "it is not known whether an earlier attempt was applied: too much time has passed since, or \
         the key has had too many other changes; read it, and if the change is missing, send it with a new idempotency key"
    )]
    Forgotten,
    /// A defect of this program, or damaged data.
    #[error("internal error: {0}")]
    Internal(String),
}

fn reasons(causes: &[String]) -> String {
    if causes.is_empty() { String::new() } else { format!(" ({})", causes.join("; ")) }
}

impl Failure {
    /// Fails a change that certainly has not been applied.
    pub fn not_applied(self) -> Failed {
        Failed { failure: self, effect: Some(Effect::NotApplied) }
    }

    /// Fails a change that may have been applied.
    pub fn in_doubt(self) -> Failed {
        Failed { failure: self, effect: Some(Effect::InDoubt) }
    }

    /// Fails a read.
    pub fn of_read(self) -> Failed {
        Failed { failure: self, effect: None }
    }
}
