//! Version vectors: every event up to a counter, per actor, and single events beyond.

use smallvec::SmallVec;

use super::{Actor, Dot};

/// Every event up to a counter, per actor, and single events beyond that. The same events have one form only.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VersionVector {
    /// (actor, counter), sorted, one per actor.
    pub entries: SmallVec<[(Actor, u64); 3]>,
    /// Events that do not follow on those of `entries`, sorted; usually none.
    pub cloud: SmallVec<[Dot; 0]>,
}

impl VersionVector {
    /// Number of entries and single events.
    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.cloud.len()
    }

    fn find(&self, actor: &Actor) -> Result<usize, usize> {
        self.entries.binary_search_by(|(entry, _)| entry.cmp(actor))
    }

    /// The event of an actor up to which all are seen; 0 without any.
    pub fn get(&self, actor: &Actor) -> u64 {
        self.find(actor).map_or(0, |at| self.entries[at].1)
    }

    /// The last event of an actor that is seen; 0 without any.
    pub fn last(&self, actor: &Actor) -> u64 {
        let beyond = self.cloud.iter().filter(|dot| dot.actor == *actor).map(|dot| dot.counter).max();
        self.get(actor).max(beyond.unwrap_or(0))
    }

    /// True when the event is among those seen.
    pub fn covers(&self, dot: &Dot) -> bool {
        self.get(&dot.actor) >= dot.counter || self.cloud.binary_search(dot).is_ok()
    }

    /// Counts an event as seen, with all before it.
    pub fn advance(&mut self, dot: &Dot) {
        self.raise(dot);
        self.compact();
    }

    /// Counts a single event as seen. True when it was not before.
    pub fn add(&mut self, dot: &Dot) -> bool {
        if self.covers(dot) {
            return false;
        }
        if let Err(at) = self.cloud.binary_search(dot) {
            self.cloud.insert(at, *dot);
        }
        self.compact();
        true
    }

    /// Counts as seen what the other one has seen. True when that was anything new.
    pub fn join(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (actor, counter) in &other.entries {
            if self.get(actor) < *counter {
                self.raise(&Dot { actor: *actor, counter: *counter });
                changed = true;
            }
        }
        self.compact();
        for dot in &other.cloud {
            changed |= self.add(dot);
        }
        changed
    }

    /// True when it has seen everything that the other one has.
    pub fn dominates(&self, other: &Self) -> bool {
        other.entries.iter().all(|(actor, counter)| self.get(actor) >= *counter)
            && other.cloud.iter().all(|dot| self.covers(dot))
    }

    /// True when no event of `cloud` is covered by `entries`, or follows on them.
    pub(crate) fn is_compact(&self) -> bool {
        self.cloud.iter().all(|dot| dot.counter > self.get(&dot.actor).saturating_add(1))
    }

    fn raise(&mut self, dot: &Dot) {
        match self.find(&dot.actor) {
            Ok(at) => self.entries[at].1 = self.entries[at].1.max(dot.counter),
            Err(at) => self.entries.insert(at, (dot.actor, dot.counter)),
        }
    }

    /// Moves the events of the cloud that follow on the entries into them.
    fn compact(&mut self) {
        if self.cloud.is_empty() {
            return;
        }
        for dot in std::mem::take(&mut self.cloud) {
            let counter = self.get(&dot.actor);
            if counter.checked_add(1) == Some(dot.counter) {
                self.raise(&dot);
            } else if counter < dot.counter {
                self.cloud.push(dot);
            }
        }
    }
}
