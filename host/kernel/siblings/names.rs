//! The names of writes that a `siblings` record keeps beside its versions: those that are superseded, and those that may have been minted
//! more than once.

use smallvec::SmallVec;

use super::Version;
use crate::fault::{self, Fault};
use crate::limit::{CLOCK_SKEW_MICROS, RECENT_MICROS};
use crate::name::WriteId;

/// What a record remembers of a write by its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    /// The write.
    pub id: WriteId,
    /// A hybrid time, microseconds: not before the one at which the write started.
    pub time: u64,
    /// Superseded: no event of the write counts any longer, here and wherever this record is merged.
    pub dead: bool,
    /// A repetition has asked about it, so it may have several events. It is not forgotten until it is unpinned. A name that is pinned and
    /// not dead does not say whether the write was applied.
    pub pinned: bool,
    /// It was pinned, and need not be any more. Excludes `pinned`, here and wherever this record is merged: otherwise a merge that is under
    /// way while a name is unpinned would bring the pin back.
    pub released: bool,
}

impl Name {
    /// A superseded write.
    pub fn dead(id: WriteId, time: u64) -> Self {
        Self { id, time, dead: true, pinned: false, released: false }
    }

    /// A write about which a repetition has asked.
    pub fn pinned(id: WriteId, time: u64) -> Self {
        Self { id, time, dead: false, pinned: true, released: false }
    }

    fn unite(&mut self, other: &Self) -> bool {
        let before = *self;
        self.time = self.time.max(other.time);
        self.dead |= other.dead;
        self.released |= other.released;
        self.pinned = (self.pinned || other.pinned) && !self.released;
        *self != before
    }

    /// Newest first.
    fn rank(&self) -> (u64, WriteId) {
        (self.time, self.id)
    }
}

/// Names of writes, with the time up to which names have been forgotten.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// Newest first; equal times: greater write id first. One per write.
    pub entries: SmallVec<[Name; 2]>,
    /// The greatest time of a superseded write whose name was forgotten; 0 when none was. Of a write that is not here and started no
    /// later than this, it is unknown whether it was superseded.
    pub horizon: u64,
}

impl Names {
    /// What is remembered of a write.
    pub fn get(&self, id: &WriteId) -> Option<&Name> {
        self.entries.iter().find(|name| name.id == *id)
    }

    /// True when the write is superseded.
    pub fn is_dead(&self, id: &WriteId) -> bool {
        self.get(id).is_some_and(|name| name.dead)
    }

    /// True when a repetition has asked about the write.
    pub fn is_pinned(&self, id: &WriteId) -> bool {
        self.get(id).is_some_and(|name| name.pinned)
    }

    /// Number of pinned names.
    pub fn pins(&self) -> usize {
        self.entries.iter().filter(|name| name.pinned).count()
    }

    /// Adds a name; one that is there already takes the greater time and both marks. True when that changed anything.
    pub fn note(&mut self, name: Name) -> bool {
        let mut noted = name;
        if let Some(at) = self.entries.iter().position(|known| known.id == name.id) {
            if !self.entries[at].unite(&name) {
                return false;
            }
            noted = self.entries.remove(at);
        }
        let at = self.entries.partition_point(|other| other.rank() > noted.rank());
        self.entries.insert(at, noted);
        true
    }

    /// Gives the superseded writes that a version has events of no lesser time than the version's. Without this the time would depend on
    /// whether a write was found superseded before or after it was collapsed. True when that changed anything.
    pub(super) fn date(&mut self, version: &Version) -> bool {
        let mut changed = false;
        for (id, _) in version.mints() {
            if self.is_dead(&id) {
                changed |= self.note(Name::dead(id, version.time));
            }
        }
        changed
    }

    /// Takes the union of both; forgets nothing. True when this one changed. Associative, commutative and idempotent.
    pub fn join(&mut self, other: &Self) -> bool {
        let raised = other.horizon > self.horizon;
        self.horizon = self.horizon.max(other.horizon);
        if self.entries == other.entries || other.entries.is_empty() {
            return raised;
        }
        let mut entries = self.entries.clone();
        entries.extend_from_slice(&other.entries);
        entries.sort_unstable_by_key(|name| name.id);
        entries.dedup_by(|later, kept| {
            let same = later.id == kept.id;
            if same {
                kept.unite(later);
            }
            same
        });
        entries.sort_unstable_by_key(|name| std::cmp::Reverse(name.rank()));
        let changed = entries != self.entries;
        self.entries = entries;
        raised || changed
    }

    /// True when `other` says something of a write, or of what was forgotten, that these do not, other than names that these may have
    /// forgotten.
    pub fn lack(&self, other: &Self) -> bool {
        let lacks = |name: &Name| match self.get(&name.id) {
            Some(known) => {
                let mut united = *known;
                united.unite(name)
            }
            None => name.pinned || name.dead && name.time > self.horizon,
        };
        other.horizon > self.horizon || other.entries.iter().any(lacks)
    }

    /// Forgets names that are not pinned: all but the newest [`crate::limit::RECENT_ENTRIES`], and those older than [`RECENT_MICROS`] at
    /// `now_micros` (microseconds since 1970), allowing for clock skew. Raises the horizon accordingly. True when anything was forgotten.
    pub fn trim(&mut self, now_micros: u64) -> bool {
        // A coordinator's clock may be behind by the skew: what it has just written already looks that old.
        let oldest = now_micros.saturating_sub(RECENT_MICROS + CLOCK_SKEW_MICROS);
        let (most, mut loose, before, mut horizon) = (fault::names_kept(), 0, self.entries.len(), self.horizon);
        self.entries.retain(|name| {
            loose += usize::from(!name.pinned);
            let kept = name.pinned || loose <= most && name.time >= oldest;
            if !kept && name.dead {
                horizon = horizon.max(name.time);
            }
            kept
        });
        if !Fault::HorizonIgnored.is_on() {
            self.horizon = horizon;
        }
        self.entries.len() != before
    }

    /// Takes the pin off a write. From now on the name may be forgotten. True when that changed anything.
    pub fn unpin(&mut self, id: &WriteId) -> bool {
        let Some(name) = self.entries.iter_mut().find(|name| name.id == *id && name.pinned) else { return false };
        (name.pinned, name.released) = (false, true);
        true
    }
}
