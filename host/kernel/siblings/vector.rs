//! Version vectors: every event up to a counter, per actor.

use smallvec::SmallVec;

use super::{Actor, Dot};

/// Every event up to a counter, per actor. Sorted by actor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VersionVector {
    /// (actor, counter), sorted, one per actor.
    pub entries: SmallVec<[(Actor, u64); 3]>,
}

impl VersionVector {
    fn find(&self, actor: &Actor) -> Result<usize, usize> {
        self.entries.binary_search_by(|(entry, _)| entry.cmp(actor))
    }

    /// The last event of an actor; 0 without any.
    pub fn get(&self, actor: &Actor) -> u64 {
        self.find(actor).map_or(0, |at| self.entries[at].1)
    }

    /// True when the event is among those seen.
    pub fn covers(&self, dot: &Dot) -> bool {
        self.get(&dot.actor) >= dot.counter
    }

    /// Counts an event as seen, with all before it.
    pub fn advance(&mut self, dot: &Dot) {
        match self.find(&dot.actor) {
            Ok(at) => self.entries[at].1 = self.entries[at].1.max(dot.counter),
            Err(at) => self.entries.insert(at, (dot.actor, dot.counter)),
        }
    }

    /// Counts as seen what the other one has seen. True when that was anything new.
    pub fn join(&mut self, other: &Self) -> bool {
        let mut changed = false;
        for (actor, counter) in &other.entries {
            if self.get(actor) < *counter {
                self.advance(&Dot { actor: *actor, counter: *counter });
                changed = true;
            }
        }
        changed
    }

    /// True when it has seen everything that the other one has.
    pub fn dominates(&self, other: &Self) -> bool {
        other.entries.iter().all(|(actor, counter)| self.get(actor) >= *counter)
    }
}
