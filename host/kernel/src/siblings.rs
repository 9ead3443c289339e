//! A `siblings` record: no concurrent write is dropped.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::name::{StoreId, WriteId};
use crate::recent::Recent;

/// Who mints dots: a store, in one life of one record. Neither a collected record nor a wiped disk can reuse one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Actor {
    /// The store.
    pub store: StoreId,
    /// A number that the store has drawn durably and never draws again.
    pub birth: u64,
}

/// One event of one actor; counters start at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dot {
    /// Who.
    pub actor: Actor,
    /// Which of its events.
    pub counter: u64,
}

/// Every event up to a counter, per actor. Sorted by actor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VersionVector {
    /// (actor, counter), sorted, one per actor.
    pub entries: SmallVec<[(Actor, u64); 3]>,
}

/// One value, or a tombstone, that stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// The events it stands for, sorted; never empty in a record.
    pub dots: SmallVec<[Dot; 1]>,
    /// The writes it stands for, sorted: one for a client's write, several for a collapsed version.
    pub ids: SmallVec<[WriteId; 1]>,
    /// Hybrid time of the (newest) write, microseconds.
    pub time: u64,
    /// What it says; `None` is a tombstone.
    pub value: Option<Bytes>,
}

/// A `siblings` record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Siblings {
    /// Every event this record has seen, living or not.
    pub seen: VersionVector,
    /// What stands, sorted by first dot.
    pub versions: Vec<Version>,
    /// The writes it has seen lately, with their hybrid time: living or not.
    pub recent: Recent,
}
