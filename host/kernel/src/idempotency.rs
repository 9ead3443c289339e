//! Exactly one effect per idempotency key: reserve, act, record.
//!
//! The store keeps one [`Reservation`] per [`Name`] for 24 h. Each [`Step`] is a pure function of the reservation and the
//! store's time ([`apply`]); a store makes it atomic and durable. Every change is a compare-and-swap on owner and fence, so
//! that a coordinator that was slow, and has been taken over from, changes nothing any more.

use bytes::Bytes;

use crate::name::WriteId;
use crate::register::Stamp;

/// How long a reservation is kept after its last step. Milliseconds.
pub const KEPT_MS: u64 = 24 * 3600 * 1000;

/// Names a reservation: SHA-256 over tenant, key and idempotency key, each preceded by its length, so that no two triples
/// share a name whatever bytes they hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Name(pub [u8; 32]);

/// One attempt to carry out a request; drawn at random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner(pub [u8; 16]);

/// A step of the protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Claims the name for a request. The write id is the request's fingerprint: the same request has the same.
    Reserve {
        /// Who claims.
        owner: Owner,
        /// The request's fingerprint.
        write_id: WriteId,
        /// Hybrid time at which the operation starts, microseconds; kept from the first reservation on.
        started: u64,
        /// How long the claim stands without being recorded as done, milliseconds: the operation's deadline.
        lease_ms: u64,
    },
    /// Stores the register stamp, once, before anything is sent to a replica.
    Stamp {
        /// Who claimed.
        owner: Owner,
        /// The fence told with the claim.
        fence: u64,
        /// The stamp.
        stamp: Stamp,
    },
    /// Records the response.
    Done {
        /// Who claimed.
        owner: Owner,
        /// The fence told with the claim.
        fence: u64,
        /// What a duplicate is answered with, encoded by the edge.
        response: Bytes,
    },
    /// Gives the claim up: nothing was sent to any replica (or it is certain that none applied it).
    Release {
        /// Who claimed.
        owner: Owner,
        /// The fence told with the claim.
        fence: u64,
    },
    /// Ends the lease at once and keeps the reservation: the outcome is in doubt, and a retry may take over now.
    Abandon {
        /// Who claimed.
        owner: Owner,
        /// The fence told with the claim.
        fence: u64,
    },
}

/// What came of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stepped {
    /// The name is the caller's.
    Reserved {
        /// To be told with every later step.
        fence: u64,
        /// True when an earlier attempt's lease had expired: some of its work may have been done.
        took_over: bool,
        /// The stamp an earlier attempt has stored. It must be used.
        stamp: Option<Stamp>,
        /// When the first attempt started.
        started: u64,
    },
    /// The request was carried out before.
    Done {
        /// The recorded response.
        response: Bytes,
    },
    /// Another attempt holds the name.
    InProgress {
        /// Milliseconds until its lease expires.
        left_ms: u64,
    },
    /// The name was used with another request.
    Conflict,
    /// The step is stored.
    Stored,
    /// The claim is no longer the caller's; nothing was changed.
    Lost,
}
