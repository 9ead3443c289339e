//! A `siblings` record: no concurrent write is dropped.
//!
//! A record keeps three things apart: the events that it has *seen*, the *versions* that are not superseded, and the *names* of writes. An
//! event that was seen and has no version is superseded, here and wherever this record is merged. A name does the same for a write that a
//! repetition has minted twice, under two dots: see [`Name`].

use std::cmp::Ordering;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::fault::Fault;
use crate::hook::Sibling;
use crate::limit;
use crate::name::{StoreId, WriteId};

mod merge;
mod names;
mod vector;

pub use names::{Name, Names};
pub use vector::VersionVector;

/// The minter of dots: a store, in one life of one record. A collected record or a wiped disk cannot reuse an actor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Actor {
    /// The store.
    pub store: StoreId,
    /// A number that the store draws durably, and only once.
    pub birth: u64,
}

/// One event of one actor; counters start at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dot {
    /// The actor.
    pub actor: Actor,
    /// The number of the event, among its actor's.
    pub counter: u64,
}

/// One value, or tombstone, that is not superseded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// Its events that are not superseded, sorted; never empty in a record.
    pub dots: SmallVec<[Dot; 1]>,
    /// For each dot the index in `ids` of the write that it was minted for.
    pub minted_for: SmallVec<[u32; 2]>,
    /// The writes that the value was made of, sorted: one for a client's write, several for a collapsed version. Writes whose dots have
    /// been superseded since are kept.
    pub ids: SmallVec<[WriteId; 1]>,
    /// Hybrid time of the (newest) write, microseconds.
    pub time: u64,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
}

impl Version {
    /// True when the value was made of this write, alone or with others.
    pub fn includes(&self, write_id: &WriteId) -> bool {
        self.ids.binary_search(write_id).is_ok()
    }

    /// Its dots, each with the write that it was minted for.
    pub fn mints(&self) -> impl Iterator<Item = (WriteId, Dot)> {
        self.dots.iter().zip(&self.minted_for).map(|(dot, place)| (self.ids[*place as usize], *dot))
    }

    /// Sets its dots to those of `mints`, which are sorted by write, that were minted for one of its writes. False when there are none.
    fn carry(&mut self, mints: &[(WriteId, Dot)]) -> bool {
        let mut carried: SmallVec<[(Dot, u32); 4]> = SmallVec::new();
        for (place, id) in (0..).zip(&self.ids) {
            let from = mints.partition_point(|(write, _)| write < id);
            carried.extend(mints[from..].iter().take_while(|(write, _)| write == id).map(|(_, dot)| (*dot, place)));
        }
        carried.sort_unstable();
        (self.dots, self.minted_for) = carried.into_iter().unzip();
        !self.dots.is_empty()
    }

    /// The order of versions in a record.
    fn order(&self, other: &Self) -> Ordering {
        self.dots.cmp(&other.dots).then_with(|| self.ids.cmp(&other.ids))
    }
}

/// A client's write to a `siblings` record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its id.
    pub write_id: WriteId,
    /// Hybrid time at which the operation started, microseconds; the same in each of its attempts.
    pub started: u64,
    /// True when another replica may have minted a dot for this write before.
    pub again: bool,
    /// With `again`: a quorum was asked about the write, has pinned its name, and did not know it.
    pub asked: bool,
    /// Events that the client has seen.
    pub seen: VersionVector,
    /// Writes that the client has seen.
    pub ids: Vec<WriteId>,
    /// The greatest time of what the client has seen, microseconds; 0 when that is unknown.
    pub newest: u64,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
}

impl Write {
    /// Its approximate size, in bytes.
    pub fn bytes(&self) -> usize {
        let value = self.value.as_ref().map_or(0, Bytes::len);
        value + self.seen.len() * ENTRY_BYTES + self.ids.len() * size_of::<WriteId>()
    }
}

/// What a client has seen of a record, to be claimed by the context that it is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown {
    /// Events.
    pub seen: VersionVector,
    /// Writes, newest first.
    pub ids: Vec<WriteId>,
    /// The greatest time of a write that was shown, microseconds.
    pub newest: u64,
}

/// Why a record refuses a client's write. Merges are never refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The write may have been applied before, and the record does not remember that far back.
    InDoubt,
    /// The record would have more than [`limit::SIBLINGS`] versions or, by estimate, more than [`limit::RECORD_BYTES`].
    TooLarge,
}

/// A `siblings` record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Siblings {
    /// Every event that this record has seen, superseded or not.
    pub seen: VersionVector,
    /// The versions that are not superseded, sorted by first dot.
    pub versions: Vec<Version>,
    /// Writes that are superseded, or may have been minted more than once.
    pub names: Names,
}

impl Siblings {
    /// The time under which a write is known here: because it is superseded, or because a version includes it.
    pub fn knows(&self, write_id: &WriteId) -> Option<u64> {
        if Fault::WriteIdForgotten.is_on() {
            return None;
        }
        self.names
            .get(write_id)
            .filter(|name| name.dead)
            .map(|name| name.time)
            .or_else(|| self.time_of_version(write_id))
    }

    fn time_of_version(&self, write_id: &WriteId) -> Option<u64> {
        self.versions.iter().filter(|version| version.includes(write_id)).map(|version| version.time).max()
    }

    /// The newest actor under which a store has minted in this record.
    ///
    /// The store may use it again only if it has not collected the record since: otherwise a stale copy may have brought back an actor
    /// whose later dots are forgotten. A store that collects keeps the record's birth beside it.
    pub fn actor_of(&self, store: &StoreId) -> Option<Actor> {
        self.seen.entries.iter().rev().map(|(actor, _)| *actor).find(|actor| actor.store == *store)
    }

    /// The number of births under which a store has minted in this record.
    pub fn births_of(&self, store: &StoreId) -> usize {
        self.seen.entries.iter().filter(|(actor, _)| actor.store == *store).count()
    }

    /// Checks that a client's write may be minted here. `now_micros` is the replica's time, microseconds since 1970. To be called after
    /// [`Self::knows`] has answered `None`.
    pub fn refuse(&self, write: &Write, now_micros: u64) -> Result<(), Refusal> {
        if write.again && self.doubts(write, now_micros) {
            return Err(Refusal::InDoubt);
        }
        let mut versions = 1;
        let mut bytes = write.value.as_ref().map_or(0, Bytes::len) + VERSION_BYTES;
        bytes += (self.seen.len() + write.seen.len()) * ENTRY_BYTES;
        bytes += limit::RECENT_ENTRIES.max(self.names.entries.len()) * RECENT_BYTES;
        for version in self.versions.iter().filter(|version| !write.supersedes(version)) {
            versions += 1;
            bytes += version.value.as_ref().map_or(0, Bytes::len) + VERSION_BYTES;
            bytes += version.dots.len() * ENTRY_BYTES + version.ids.len() * size_of::<WriteId>();
        }
        if versions > limit::SIBLINGS || bytes > limit::RECORD_BYTES {
            return Err(Refusal::TooLarge);
        }
        Ok(())
    }

    /// True when a repetition may have been applied and forgotten here. If a quorum was asked about it, only the horizon says so: no clock
    /// is compared.
    fn doubts(&self, write: &Write, now_micros: u64) -> bool {
        let forgotten = self.names.horizon >= write.started;
        if write.asked {
            return !self.names.is_pinned(&write.write_id) && (forgotten || !self.may_pin(&write.write_id));
        }
        forgotten || now_micros.saturating_sub(write.started) >= limit::PUT_RETRY_MICROS
    }

    fn may_pin(&self, write_id: &WriteId) -> bool {
        self.names.is_pinned(write_id) || self.names.pins() < limit::PINNED_NAMES
    }

    /// Pins the name of a write that is about to be repeated, so that it is not forgotten once it is superseded. True when the record
    /// changed.
    ///
    /// # Errors
    /// [`Refusal::InDoubt`]: [`limit::PINNED_NAMES`] are pinned already.
    pub fn pin(&mut self, write_id: &WriteId, started: u64) -> Result<bool, Refusal> {
        if Fault::AskedWithoutPin.is_on() {
            return Ok(false);
        }
        if !self.may_pin(write_id) {
            return Err(Refusal::InDoubt);
        }
        Ok(self.names.note(Name::pinned(*write_id, started)))
    }

    /// Carries out a client's write under the key's lock and returns its dot.
    ///
    /// What the write's context covers is dropped; the rest stays beside the new version. To be called only by the store that holds this
    /// record, with one of its actors, after [`Self::knows`] and [`Self::refuse`].
    pub fn put(&mut self, write: &Write, actor: Actor) -> Dot {
        // A write that this replica has not heard of is remembered under a time that is not before its start.
        let unknown = if Fault::NewestIgnored.is_on() { write.started } else { write.started.max(write.newest) };
        for id in write.ids.iter().filter(|id| **id != write.write_id) {
            let time = self.time_of_version(id).unwrap_or(unknown);
            self.names.note(Name::dead(*id, time));
        }
        for version in &self.versions {
            for (id, _) in version.mints().filter(|(_, dot)| write.seen.covers(dot)) {
                self.names.note(Name::dead(id, version.time));
            }
        }
        if write.asked && !Fault::AskedWithoutPin.is_on() {
            self.names.note(Name::pinned(write.write_id, write.started));
        }
        self.seen.join(&write.seen);
        self.drop_dead();
        let dot = Dot { actor, counter: self.seen.last(&actor).saturating_add(1) };
        self.seen.advance(&dot);
        self.versions.push(Version {
            dots: smallvec![dot],
            minted_for: smallvec![0],
            ids: smallvec![write.write_id],
            time: write.started,
            value: write.value.clone(),
        });
        self.sort();
        dot
    }

    /// Drops what the names say is superseded.
    fn drop_dead(&mut self) {
        let names = &mut self.names;
        self.versions.retain_mut(|version| {
            names.date(version);
            let mut left: SmallVec<[_; 2]> = version.mints().filter(|(id, _)| !names.is_dead(id)).collect();
            left.sort_unstable();
            version.carry(&left)
        });
        self.sort();
    }

    /// Joins two records, and forgets nothing. True when this one changed. Associative, commutative and idempotent over the records that
    /// puts, merges and collapses create.
    pub fn merge(&mut self, other: &Self) -> bool {
        if Fault::OverwriteInsteadOfMerge.is_on() {
            let changed = self != other;
            self.clone_from(other);
            return changed;
        }
        let changed = merge::merge(self, other);
        changed.state || changed.names
    }

    /// Merges a record that was sent into this stored one, and forgets what a stored record need not remember ([`Names::trim`]). True when
    /// this one changed, what it remembers of writes included.
    pub fn absorb(&mut self, sent: &Self, now_micros: u64) -> bool {
        if Fault::OverwriteInsteadOfMerge.is_on() {
            return self.merge(sent);
        }
        // Only after the join: what is forgotten before says nothing of names that are pinned here. A name that is forgotten once more is
        // no change, or it would return from the other side for ever.
        let names = self.names.clone();
        let changed = merge::merge(self, sent);
        if !changed.state && !changed.names {
            return false;
        }
        self.names.trim(now_micros);
        changed.state || self.names != names
    }

    /// Marks writes as superseded and pinned, as other replicas have reported them. True when this record changed.
    pub fn learn(&mut self, told: &[Name]) -> bool {
        let mut changed = false;
        for name in told {
            changed |= self.names.note(*name);
        }
        if changed {
            self.drop_dead();
        }
        changed
    }

    /// The writes whose names are pinned and that nothing has superseded here.
    pub fn open_pins(&self) -> Vec<WriteId> {
        self.names.entries.iter().filter(|name| name.pinned && !name.dead).map(|name| name.id).collect()
    }

    /// The names that are pinned here, superseded by what `sent` has, and not both in `sent`: whoever has merged `sent` elsewhere has to
    /// learn them before the write that `sent` carries is acknowledged. `open_before` is what [`Self::open_pins`] said before `sent` was
    /// merged into this record.
    ///
    /// A write that only something else has superseded here is not among them: whoever learned that, without what supersedes the write,
    /// would drop an acknowledged value and have nothing in its place.
    pub fn lacking_in(&self, sent: &Self, open_before: &[WriteId]) -> Vec<Name> {
        let lacks = |name: &&Name| match sent.names.get(&name.id) {
            Some(sent) if sent.dead => !sent.pinned,
            _ => open_before.contains(&name.id),
        };
        self.names.entries.iter().filter(|name| name.pinned && name.dead).filter(lacks).copied().collect()
    }

    /// The live versions: those with a value if there are any, else the tombstones.
    pub fn live(&self) -> impl Iterator<Item = &Version> {
        let deleted = self.is_deleted();
        self.versions.iter().filter(move |version| version.value.is_none() == deleted)
    }

    /// True when no version has a value.
    pub fn is_deleted(&self) -> bool {
        self.versions.iter().all(|version| version.value.is_none())
    }

    /// The live values, equal ones once (with the newest time), oldest first; with equal times by their bytes. The same versions give the
    /// same list at every coordinator.
    pub fn live_values_deduplicated(&self) -> Vec<Sibling> {
        let mut values: Vec<Sibling> = Vec::with_capacity(self.versions.len());
        for version in &self.versions {
            let Some(value) = &version.value else { continue };
            match values.iter_mut().find(|sibling| sibling.value == *value) {
                Some(sibling) => sibling.time = sibling.time.max(version.time),
                None => values.push(Sibling { value: value.clone(), time: version.time }),
            }
        }
        values.sort_unstable_by(|a, b| a.time.cmp(&b.time).then_with(|| a.value.cmp(&b.value)));
        values
    }

    /// What a reader's context claims: every event seen, and the writes that are not superseded, newest first.
    pub fn context_claims(&self) -> Shown {
        let mut newest_first: Vec<&Version> = self.versions.iter().collect();
        newest_first.sort_by_key(|version| std::cmp::Reverse(version.time));
        let mut ids: Vec<WriteId> = Vec::with_capacity(newest_first.len());
        for (id, _) in newest_first.iter().flat_map(|version| version.mints()) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let newest = newest_first.first().map_or(0, |version| version.time);
        Shown { seen: self.seen.clone(), ids, newest }
    }

    /// What a writer's context claims after its write, from what it claimed before and the record that the write was answered with: the
    /// write itself, and nothing else of the record. The write's id is always claimed, and comes first. Its dots cover it for longer than
    /// ids are remembered. A dot that does not follow on what was seen is claimed alone: a vector that jumps ahead would claim events
    /// that the client has not seen.
    pub fn claims_after(&self, before: Shown, write_id: &WriteId, started: u64) -> Shown {
        let Shown { mut seen, mut ids, newest } = before;
        for (_, dot) in self.versions.iter().flat_map(Version::mints).filter(|(id, _)| id == write_id) {
            if !Fault::OwnDotLeftOut.is_on() || seen.last(&dot.actor).checked_add(1) == Some(dot.counter) {
                seen.add(&dot);
            }
        }
        if !ids.contains(write_id) {
            ids.insert(0, *write_id);
        }
        Shown { seen, ids, newest: newest.max(started) }
    }

    /// True when both have the same versions and have seen the same events, whatever writes they remember.
    pub fn same_state(&self, other: &Self) -> bool {
        self.seen == other.seen && self.versions == other.versions
    }

    fn sort(&mut self) {
        self.versions.sort_unstable_by(Version::order);
    }
}

/// Replaces all live values by one version, the resolver's verdict. It inherits their events and writes and mints none: merging it adds no
/// event, and a client that has seen one of them has seen its part. Tombstones are kept. A record with fewer than two live values is
/// returned unchanged.
pub fn collapse(record: &Siblings, verdict_value: Bytes) -> Siblings {
    let mut out = record.clone();
    if record.versions.iter().filter(|version| version.value.is_some()).count() < 2 {
        return out;
    }
    let (values, tombstones): (Vec<Version>, _) = out.versions.into_iter().partition(|version| version.value.is_some());
    out.versions = tombstones;
    let mut mints: Vec<(WriteId, Dot)> = values.iter().flat_map(Version::mints).collect();
    mints.sort_unstable();
    mints.dedup();
    let mut ids: Vec<WriteId> = values.iter().flat_map(|version| version.ids.iter().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut one = Version {
        dots: SmallVec::new(),
        minted_for: SmallVec::new(),
        ids: ids.into(),
        time: values.iter().map(|version| version.time).max().unwrap_or_default(),
        value: Some(verdict_value),
    };
    one.carry(&mints);
    out.versions.push(one);
    out.sort();
    out
}

impl Write {
    /// True when the client has seen every write that a version has events of: each by its id, or by one of its events.
    fn supersedes(&self, version: &Version) -> bool {
        let seen = |id: &WriteId| version.mints().any(|(of, dot)| of == *id && self.seen.covers(&dot));
        version.mints().all(|(id, _)| self.ids.contains(&id) || seen(&id))
    }
}

/// Upper bounds of the bytes that the codec needs besides values, for the estimate of a record's size.
const VERSION_BYTES: usize = 128;
const ENTRY_BYTES: usize = 36;
const RECENT_BYTES: usize = 26;

#[cfg(test)]
mod tests;
