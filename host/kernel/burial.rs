//! Collecting tombstones: when the rows of a deleted key may be dropped, so that nothing of it is left.
//!
//! What a tombstone is for is to win over values that are older than it. So it may go once no older value is anywhere and none can come:
//!
//! - All replicas have the tombstone, or nothing: of a quorum alone, a replica that was away has an older value still.
//! - It is older than the grace. Until then, a repetition of a write may come with a time of before ([`limit::LEAST_GRACE`]).
//! - They have exactly the same [`limit::LOOKS_AGAIN`] later. A merge may have been made of what a replica had before the tombstone reached
//!   it, and be under way to one that has nothing; nothing is under way for longer than [`limit::LONGEST_DEADLINE`].
//! - The tenant does not move, and no node has rows of it to hand over: there may be older values on nodes that are no replicas. Everything
//!   is asked for under an epoch that was determined before the first look. Before a move copies anything, it fences the replicas.
//! - Each replica then drops its row only if it has that record still, under the lock of the row, and finds it old by its own clock.
//!
//! A replica that has nothing is not sent an old tombstone by routine comparisons ([`crate::scan::difference_routine`]): otherwise one that
//! has kept its row, because it could not be reached, would give it back to the others each time.

use std::time::Duration;

use crate::fault::Fault;
use crate::limit::{self, PerReplica};
use crate::record::{Encoded, Fingerprint, Record};
use crate::scan::merged;
use crate::tenant::Level;

/// Whether what has been deleted and quiet `since` may be collected. Microseconds: since 1970, by some clock's `now`.
pub fn is_due(since: u64, grace: u64, now: u64) -> bool {
    now.saturating_sub(since) > grace || Fault::CollectWithoutGrace.is_on()
}

/// A grace as requests carry it.
pub fn micros(grace: Duration) -> u64 {
    u64::try_from(grace.as_micros()).unwrap_or(u64::MAX)
}

/// What a look at the replicas of a key has found: for each its record's fingerprint, or nothing.
pub type Looked = PerReplica<(u8, Option<Fingerprint>)>;

/// A key whose rows may be dropped if the replicas have the same [`limit::LOOKS_AGAIN`] later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buried {
    /// What the replicas have.
    pub looked: Looked,
    /// Since when.
    pub since: u64,
}

/// Judges what the replicas of a key hold, of which there are to be `replicas`. `None`: nothing may be dropped.
pub fn buried(held: &[(u8, Option<Encoded>)], replicas: u8, grace: u64, now: u64) -> Option<Buried> {
    let is_enough = |have: usize| match Fault::CollectByQuorum.is_on() {
        false => have == usize::from(replicas),
        true => have >= usize::from(Level::Quorum.required(replicas)),
    };
    if !is_enough(held.len()) {
        return None;
    }
    let first = held.iter().find_map(|(_, held)| held.as_ref())?.decode().ok()?;
    // Most records are live: no other one need be read.
    let since = first.buried_since().filter(|since| is_due(*since, grace, now))?;
    let is_same = |encoded: &Encoded| match encoded.decode() {
        Ok(record) => record.same_state(&first),
        Err(_) => false,
    };
    if !held.iter().filter_map(|(_, held)| held.as_ref()).all(is_same) {
        return None;
    }
    // They may remember different writes.
    let since = merged(held).ok()??.buried_since()?.max(since);
    let looked = held.iter().map(|(replica, held)| (*replica, held.as_ref().map(Encoded::fingerprint))).collect();
    is_due(since, grace, now).then_some(Buried { looked, since })
}

/// Whether a node drops the row of this record when it is asked to.
pub fn drops(stored: &Encoded, record: &Record, expected: Fingerprint, grace: u64, now: u64) -> bool {
    if Fault::CollectUnconditional.is_on() {
        return true;
    }
    // Whatever a coordinator is configured to.
    let grace = grace.max(micros(limit::LEAST_GRACE));
    let is_old = record.buried_since().is_some_and(|since| is_due(since, grace, now));
    is_old && stored.fingerprint() == expected
}
