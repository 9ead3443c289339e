//! Exactly one effect per idempotency key: reserve, act, record.
//!
//! The store keeps one [`Reservation`] per [`Name`] for its tenant's retention after its first claim, 24 h by default. Each [`Step`] is a
//! pure function of the reservation and the store's time ([`apply`]); a store makes it atomic and durable. Every change is a
//! compare-and-swap on owner and fence, so that a slow coordinator whose claim has been taken over cannot change the record.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::fault::Fault;
use crate::hook::Operation;
use crate::limit;
use crate::name::{Era, Key, TenantId, WriteId};
use crate::register::Stamp;

#[cfg(test)]
mod model;
mod reservation;

pub use reservation::{Damaged, Reservation, State};

/// The longest and the default retention, and the longest lease: how long after its first claim a reservation may be claimed by
/// repetitions, and how long a recorded response is kept. Milliseconds: 24 h, the time for which an idempotency key is promised to have
/// one effect, unless its tenant has chosen a shorter one.
pub const KEPT_MS: u64 = limit::LONGEST_RETENTION_MS;

/// The shortest retention, milliseconds.
pub const SHORTEST_KEPT_MS: u64 = limit::SHORTEST_RETENTION_MS;

/// For how long after that a reservation without a recorded response is remembered: its outcome is unknown, and a repetition
/// gets that answer instead of being carried out as if it were new. Milliseconds. As long again, so that a client that repeats once
/// a day gets it.
pub const DOUBTED_MS: u64 = KEPT_MS;

/// Longest response that a store records, in bytes: many times what a key, a context token and a rendered vector clock need.
pub const RESPONSE_BYTES: usize = 64 << 10;

/// Names a reservation: SHA-256 over tenant, key and idempotency key, each preceded by its length, so that no two triples
/// share a name whatever bytes they hold. After a restore the era comes first, so that no reservation of before is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Name(pub [u8; 32]);

impl Name {
    /// The name of an idempotency key, as used on one key of one tenant in an era.
    pub fn new(era: Era, tenant: &TenantId, key: &Key, idempotency_key: &[u8]) -> Self {
        let parts = [&era.0[..], tenant.bytes(), key.bytes(), idempotency_key];
        // Until a restore is declared, names are those of the version that knew no eras.
        Self(hash_parts(if era == Era::default() { &parts[1..] } else { &parts }))
    }
}

/// The id of a client's intention: the first 16 bytes of SHA-256 over tenant, key, idempotency key, operation, the hash of the
/// value (or that there is none) and the hash of the context, each preceded by its length. The same request has the same
/// id and a different request a different one, so that it is the request's fingerprint too.
pub fn write_id(
    tenant: &TenantId,
    key: &Key,
    idempotency_key: &[u8],
    operation: Operation,
    value: Option<&[u8]>,
    context: &[u8],
) -> WriteId {
    let value: Option<[u8; 32]> = value.map(|value| Sha256::digest(value).into());
    let context: [u8; 32] = Sha256::digest(context).into();
    let value = value.as_ref().map_or(&[][..], |hash| &hash[..]);
    let whole =
        hash_parts(&[tenant.bytes(), key.bytes(), idempotency_key, operation.as_str().as_bytes(), value, &context]);
    let mut id = [0; 16];
    id.copy_from_slice(&whole[..16]);
    WriteId(id)
}

fn hash_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The id of one attempt to carry out a request, drawn at random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner(pub [u8; 16]);

/// A step of the protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Claims the name for a request.
    Reserve {
        /// The attempt.
        owner: Owner,
        /// The request's fingerprint.
        write_id: WriteId,
        /// Hybrid time at which the operation starts, microseconds; kept from the first reservation on.
        started: u64,
        /// How long the claim is valid unless it is recorded as done, milliseconds: until after the operation's deadline.
        lease_ms: u64,
        /// The tenant's retention, milliseconds; at most [`KEPT_MS`] counts. The record of a first claim ends so long after it.
        kept_ms: u64,
    },
    /// Stores the register stamp, once, before anything is sent to a replica.
    Stamp {
        /// The attempt that holds the claim.
        owner: Owner,
        /// The fence returned with the claim.
        fence: u64,
        /// The stamp.
        stamp: Stamp,
    },
    /// Records the response.
    Done {
        /// The attempt that holds the claim.
        owner: Owner,
        /// The fence returned with the claim.
        fence: u64,
        /// The answer for duplicates, encoded by the coordinator.
        response: Bytes,
        /// The retention that the claim was made with: the response is kept so long from now on, and not shorter than the claim would
        /// have been.
        kept_ms: u64,
    },
    /// Gives up the claim: nothing was sent to any replica, or certainly none has applied it.
    Release {
        /// The attempt that holds the claim.
        owner: Owner,
        /// The fence returned with the claim.
        fence: u64,
    },
    /// Ends the lease at once and keeps the reservation: the outcome is in doubt, and a retry may take over now.
    Abandon {
        /// The attempt that holds the claim.
        owner: Owner,
        /// The fence returned with the claim.
        fence: u64,
    },
}

/// The result of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stepped {
    /// The caller holds the claim.
    Reserved {
        /// To be passed with every later step.
        fence: u64,
        /// True when an earlier attempt's lease had expired: some of its work may have been done.
        took_over: bool,
        /// The stamp that an earlier attempt has stored. It must be used.
        stamp: Option<Stamp>,
        /// When the first attempt started.
        started: u64,
    },
    /// The request was carried out before.
    Done {
        /// The recorded response.
        response: Bytes,
    },
    /// Another attempt holds the claim.
    InProgress {
        /// Milliseconds until its lease expires.
        left_ms: u64,
    },
    /// The name was used with another request.
    Conflict,
    /// The first attempt at this request is longer ago than the retention that its claim had, and its outcome is unknown: it is not
    /// carried out again.
    Expired,
    /// The step is stored.
    Stored,
    /// The claim is no longer the caller's; nothing was changed.
    Lost,
}

/// The change that a step makes to the record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// None.
    Keep,
    /// It is replaced by this one.
    Put(Reservation),
    /// It is deleted.
    Delete,
}

/// Decides a step: the change of the record, and the result for the caller. `now_ms` is the store's time.
///
/// A record without a response ends its retention after its first claim, however often it is repeated: its stamp is as old as that claim,
/// and what has been deleted since may be forgotten. Then no attempt is granted a claim or may store a stamp, and for [`DOUBTED_MS`] a
/// repetition gets [`Stepped::Expired`]. After that, and its retention after a response was recorded, the record counts as absent.
///
/// Leases keep attempts apart, but no promise depends on them: an attempt that outlives its lease uses the same write id and the same
/// stamp as the one that takes over, so that both together have one effect. Its later steps fail on the fence. The stamp is stored
/// before anything is sent, so an attempt that is taken over before that sends nothing.
pub fn apply(existing: Option<&Reservation>, step: &Step, now_ms: u64) -> (Change, Stepped) {
    let existing = existing.filter(|reservation| reservation.remembered_until_ms() > now_ms);
    match step {
        Step::Reserve { owner, write_id, started, lease_ms, kept_ms } => {
            let kept_ms = (*kept_ms).min(KEPT_MS);
            let lease_ms = (*lease_ms).min(kept_ms);
            let claim = Claim { owner: *owner, write_id: *write_id, started: *started, lease_ms, kept_ms };
            reserve(existing, &claim, now_ms)
        }
        Step::Stamp { owner, fence, stamp } => match held(existing, *owner, *fence) {
            Some(held) if !held.has_expired(now_ms) => store_stamp(held, *stamp, now_ms),
            _ => LOST,
        },
        Step::Done { owner, fence, response, kept_ms } => match existing {
            Some(held) if held.owner == *owner && held.fence == *fence => {
                record(held, response, (*kept_ms).min(KEPT_MS), now_ms)
            }
            _ => LOST,
        },
        Step::Release { owner, fence } => match held(existing, *owner, *fence) {
            Some(held) => release(held, now_ms),
            None => LOST,
        },
        Step::Abandon { owner, fence } => match held(existing, *owner, *fence) {
            Some(held) => abandon(held, now_ms),
            None => LOST,
        },
    }
}

const LOST: (Change, Stepped) = (Change::Keep, Stepped::Lost);

/// The fields of [`Step::Reserve`].
struct Claim {
    owner: Owner,
    write_id: WriteId,
    started: u64,
    lease_ms: u64,
    kept_ms: u64,
}

/// The record, if it is in progress under this owner and fence. An expired lease does not matter until another attempt takes over.
fn held(existing: Option<&Reservation>, owner: Owner, fence: u64) -> Option<&Reservation> {
    existing.filter(|held| held.owner == owner && held.fence == fence && held.state == State::InProgress)
}

fn reserve(existing: Option<&Reservation>, claim: &Claim, now_ms: u64) -> (Change, Stepped) {
    let Some(existing) = existing else { return claim_first(claim, now_ms) };
    let expired = existing.has_expired(now_ms);
    if existing.write_id != claim.write_id {
        return if expired { claim_first(claim, now_ms) } else { (Change::Keep, Stepped::Conflict) };
    }
    if let State::Done { response } = &existing.state {
        return (Change::Keep, Stepped::Done { response: response.clone() });
    }
    if expired {
        return (Change::Keep, Stepped::Expired);
    }
    match existing.lease_left_ms(now_ms) {
        0 => take_over(existing, claim, now_ms),
        _ if existing.owner == claim.owner => reserve_again(existing, claim, now_ms),
        left_ms => (Change::Keep, Stepped::InProgress { left_ms }),
    }
}

fn claim_first(claim: &Claim, now_ms: u64) -> (Change, Stepped) {
    let reservation = Reservation {
        state: State::InProgress,
        write_id: claim.write_id,
        owner: claim.owner,
        fence: FIRST_FENCE,
        started: claim.started,
        stamp: None,
        lease_from_ms: now_ms,
        lease_until_ms: now_ms,
        kept_until_ms: 0,
    }
    .kept(claim.kept_ms, now_ms)
    .leased(claim.lease_ms, now_ms);
    grant(reservation)
}

/// The fence of a record's first claim; each takeover raises it.
const FIRST_FENCE: u64 = 1;

fn take_over(existing: &Reservation, claim: &Claim, now_ms: u64) -> (Change, Stepped) {
    let mut taken = existing.clone();
    taken.owner = claim.owner;
    taken.fence = existing.fence.saturating_add(1);
    if Fault::StoredStampIgnored.is_on() {
        taken.stamp = None;
    }
    grant(taken.leased(claim.lease_ms, now_ms))
}

/// The same attempt asks again because it did not receive the answer: its claim is kept and its lease extended.
fn reserve_again(existing: &Reservation, claim: &Claim, now_ms: u64) -> (Change, Stepped) {
    let longer = claim.lease_ms.max(existing.lease_left_ms(now_ms)).min(claim.kept_ms);
    grant(existing.clone().leased(longer, now_ms))
}

fn grant(reservation: Reservation) -> (Change, Stepped) {
    let result = Stepped::Reserved {
        fence: reservation.fence,
        took_over: reservation.fence > FIRST_FENCE,
        stamp: reservation.stamp,
        started: reservation.started,
    };
    (Change::Put(reservation), result)
}

/// A stamp is stored once. An equal one is the same step repeated; a different one would give the write two places in the order.
fn store_stamp(held: &Reservation, stamp: Stamp, now_ms: u64) -> (Change, Stepped) {
    match held.stamp {
        None => (Change::Put(Reservation { stamp: Some(stamp), ..held.clone() }.touched(now_ms)), Stepped::Stored),
        Some(stored) if stored == stamp => (Change::Keep, Stepped::Stored),
        Some(_) => LOST,
    }
}

/// A recorded response is final: the first one is kept.
fn record(held: &Reservation, response: &Bytes, kept_ms: u64, now_ms: u64) -> (Change, Stepped) {
    match &held.state {
        State::InProgress => {
            let done = Reservation { state: State::Done { response: response.clone() }, ..held.clone() };
            (Change::Put(done.kept(kept_ms, now_ms)), Stepped::Stored)
        }
        State::Done { response: recorded } if recorded == response => (Change::Keep, Stepped::Stored),
        State::Done { .. } => LOST,
    }
}

/// The caller knows only its own attempt. After a takeover, an earlier attempt may have sent something; and a stored stamp is cheap to
/// keep and costly to lose. In both cases the record is kept and the next attempt may take over at once, with the same write id and
/// stamp. Only a first attempt that has stored no stamp deletes the record.
fn release(held: &Reservation, now_ms: u64) -> (Change, Stepped) {
    if held.fence > FIRST_FENCE || held.stamp.is_some() {
        return abandon(held, now_ms);
    }
    (Change::Delete, Stepped::Stored)
}

/// The owner is kept: if its operation succeeds after all and no other attempt has taken over, it can still record that.
fn abandon(held: &Reservation, now_ms: u64) -> (Change, Stepped) {
    (Change::Put(held.clone().leased(0, now_ms)), Stepped::Stored)
}
