//! A `register` record: one value, totally ordered by its stamp.

use bytes::Bytes;

use crate::name::WriteId;
use crate::recent::Recent;

/// A register's place in the total order: hybrid time, microseconds since 1970. Ties: a tombstone beats a value, then the
/// greater write id wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Stamp(pub u64);

/// A `register` record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// Its place in the order.
    pub stamp: Stamp,
    /// The write that stands.
    pub write_id: WriteId,
    /// What stands; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Stamps that recent writes were given. No evidence for a merge: it lets a retry find the stamp it had.
    pub recent: Recent,
}
