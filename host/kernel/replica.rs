//! What a coordinator says to a replica, and what it hears back. The wire and the storage node speak exactly this.

use std::sync::Arc;

use crate::name::{Key, NodeId, TenantId, WriteId};
use crate::record::Encoded;
use crate::register::Stamp;
use crate::siblings::{Refusal, Write};

/// Where a record lies: its row on a node is (token, tenant, key).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Position on the ring.
    pub token: u64,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its key.
    pub key: Key,
}

/// A request to one replica, about one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The record.
    pub place: Place,
    /// The placement epoch under which the coordinator chose this replica.
    pub epoch: u64,
    /// What to do.
    pub ask: Ask,
}

/// What to do with a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Round 1 of a register's write: which stamp stands, and does `recent` know this write?
    Stamp {
        /// The write.
        write_id: WriteId,
    },
    /// Mint a dot for a client's write of a `siblings` record. Answered with the whole record.
    Put(Arc<Write>),
    /// Merge a record into what is stored.
    Merge {
        /// The record.
        record: Encoded,
    },
    /// Answer with what is stored.
    Read,
}

/// What a replica answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To [`Ask::Stamp`].
    Stamp {
        /// The stamp that stands; `None` without a record.
        stands: Option<Stamp>,
        /// The stamp that this write was given before, if `recent` knows it.
        known: Option<Stamp>,
    },
    /// To [`Ask::Put`]: minted, or known already, and stored.
    Put {
        /// The whole record.
        record: Encoded,
        /// True when `recent` knew the write: nothing was minted.
        applied_already: bool,
    },
    /// To [`Ask::Merge`]: what was sent is stored, or something that stands above it.
    Merged {
        /// True when what was stored did not change.
        superseded: bool,
    },
    /// To [`Ask::Read`].
    Record(Option<Encoded>),
}

/// Why a replica did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// The request never left this coordinator.
    #[error("node {0} cannot be reached")]
    NotSent(NodeId),
    /// The node's store is not the one on record: what it lacks cannot be told from what was never written, so it is
    /// written to and not asked. Not sent.
    #[error("node {0} has another store than before, and is written to only")]
    Incomplete(NodeId),
    /// The request was sent, and the answer was lost with the connection.
    #[error("the connection to node {0} broke")]
    Lost(NodeId),
    /// No answer before the deadline. The request may still be carried out.
    #[error("no answer in time")]
    Late,
    /// The replica's queue is full: certainly not carried out.
    #[error("the replica is overloaded")]
    Overloaded,
    /// The replica's disk is full: certainly not carried out.
    #[error("the replica's disk is full")]
    StorageFull,
    /// A client's write that would exceed [`crate::limit::RECORD_BYTES`] or [`crate::limit::SIBLINGS`]: not carried out.
    #[error("the record has too many siblings or too many bytes")]
    SiblingLimit,
    /// A Put that may have been minted before, where `recent` no longer tells: not minted again.
    #[error("the write may have been applied before")]
    InDoubt,
    /// A request under another kind of record than is stored: not carried out.
    #[error("the record is of another conflict mode")]
    WrongMode,
    /// The replica no longer owns the range under the request's epoch: not carried out.
    #[error("the request's placement epoch is stale")]
    StaleEpoch,
    /// The replica's engine failed; whether it happened is not known.
    #[error("the replica failed: {0}")]
    Broken(String),
}

impl ReplicaError {
    /// A replica that answers something else than it was asked is broken.
    pub fn misfit() -> Self {
        Self::Broken("the answer does not fit the request".to_owned())
    }

    /// True when the replica has certainly not carried out the request, and will not.
    pub fn certainly_not_done(&self) -> bool {
        match self {
            Self::NotSent(_)
            | Self::Incomplete(_)
            | Self::Overloaded
            | Self::StorageFull
            | Self::SiblingLimit
            | Self::WrongMode
            | Self::StaleEpoch => true,
            Self::Lost(_) | Self::Late | Self::InDoubt | Self::Broken(_) => false,
        }
    }
}

impl From<Refusal> for ReplicaError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::InDoubt => Self::InDoubt,
            Refusal::TooLarge => Self::SiblingLimit,
        }
    }
}

/// An answer or the reason there is none.
pub type Outcome = Result<Answer, ReplicaError>;
