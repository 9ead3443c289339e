//! Requests of a coordinator to a replica, and the answers. The wire and the storage node use exactly these.

use std::sync::Arc;

use crate::name::{Key, NodeId, TenantId, WriteId};
use crate::record::{Encoded, Fingerprint};
use crate::register::Stamp;
use crate::siblings::{Name, Refusal, Write};
use crate::space::Space;

/// The position of a record: its row on a node is (token, space, key).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Position on the ring.
    pub token: u64,
    /// The tenant that it belongs to, in one of its generations.
    pub space: Space,
    /// Its key.
    pub key: Key,
}

impl Place {
    /// The tenant that it belongs to.
    pub fn tenant(&self) -> TenantId {
        self.space.tenant()
    }
}

/// A request to one replica, about one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The record.
    pub place: Place,
    /// The revision of the metadata store up to which the coordinator followed all changes when the operation began; see
    /// [`crate::fence`].
    pub epoch: u64,
    /// What to do.
    pub ask: Ask,
}

/// What to do with a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Round 1 of a register's write: which stamp is stored, and does `recent` know this write?
    Stamp {
        /// The write.
        write_id: WriteId,
    },
    /// Mint a dot for a client's write to a `siblings` record. The answer contains the whole record.
    Put(Arc<Write>),
    /// Merge a record into what is stored.
    Merge {
        /// The record.
        record: Encoded,
    },
    /// Answer with what is stored.
    Read,
    /// Pin the name of a write that is about to be repeated, and answer with what is stored.
    Names {
        /// The write.
        write_id: WriteId,
        /// Hybrid time at which it started, microseconds.
        started: u64,
    },
    /// Take the pin off a name: the write has one event, or every replica knows of all of them.
    Unpin {
        /// The write.
        write_id: WriteId,
    },
    /// Drop the row, if it still has exactly this record, of a key that was deleted long ago; see [`crate::burial`].
    Collect {
        /// The record.
        expected: Fingerprint,
        /// For how long the key must have been deleted by the node's clock, microseconds.
        grace: u64,
    },
}

/// A replica's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To [`Ask::Stamp`].
    Stamp {
        /// The stored stamp; `None` without a record.
        stands: Option<Stamp>,
        /// The stamp that this write was given before, if `recent` knows it.
        known: Option<Stamp>,
    },
    /// To [`Ask::Put`]: the write has been minted, now or before, and is stored.
    Put {
        /// The whole record.
        record: Encoded,
        /// True when the record knew the write: no dot was minted.
        applied_already: bool,
    },
    /// To [`Ask::Merge`] and [`Ask::Unpin`]: what was sent is stored, or something that supersedes it.
    Merged {
        /// True when what was stored did not change.
        superseded: bool,
        /// Names that are pinned here, superseded by what was sent, and not both in it; usually none.
        told: Vec<Name>,
    },
    /// To [`Ask::Read`] and [`Ask::Names`].
    Record(Option<Encoded>),
    /// To [`Ask::Collect`].
    Collected {
        /// True when the row was dropped; otherwise nothing was done.
        dropped: bool,
    },
}

/// Why a replica did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// The request never left this coordinator.
    #[error("node {0} cannot be reached")]
    NotSent(NodeId),
    /// The node's store is not the one on record, and is not used for such a request: missing data looks like data that was never
    /// written. Not sent.
    #[error("node {0} has another store than before, which is not used until `witan repair` has filled it")]
    Incomplete(NodeId),
    /// The node has stored what it was sent, in a store that a repair is still filling. That counts towards no level.
    #[error("node {0} has another store than before, which is being filled: its acknowledgement does not count")]
    Filling(NodeId),
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
    /// A Put that may have been minted before, and the record does not remember that far back: not minted again.
    #[error("the write may have been applied before")]
    InDoubt,
    /// A request for another kind of record than is stored: not carried out.
    #[error("the record is of another conflict mode")]
    WrongMode,
    /// The replica's [fence](crate::fence) is above the request's epoch, or its store is not on record and the coordinator cannot tell: not
    /// carried out.
    #[error("the request is of before a change that the replica knows of")]
    StaleEpoch,
    /// The answer would have more bytes than the connection takes: nothing was done. Ask over the connection for large values.
    #[error("the answer is too large for this connection")]
    Large,
    /// The replica's engine failed; whether the request was carried out is unknown.
    #[error("the replica failed: {0}")]
    Broken(String),
}

impl ReplicaError {
    /// The failure of a replica whose answer does not fit the request.
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
            | Self::StaleEpoch
            | Self::Large => true,
            Self::Filling(_) | Self::Lost(_) | Self::Late | Self::InDoubt | Self::Broken(_) => false,
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

/// An answer, or the reason why there is none.
pub type Outcome = Result<Answer, ReplicaError>;
