//! The join of two `siblings` records.
//!
//! What a record knows are three sets that only grow: the events that it has *seen*, the *mints* (dots with the write that each was
//! minted for) that were ever in it, and the names of *dead* writes. A mint that one side holds and the other has seen without holding it
//! is gone, and then the write is dead: one superseded event supersedes the write, under whatever other events it has. The mints that stay
//! are those of writes that are not dead, which is a function of the three sets, so records may meet in any order.
//!
//! *Versions*, each the set of writes that its value was made of: the greatest sets are kept. A version then carries the mints of its
//! writes, and one that carries none is superseded.

use std::cmp::Ordering;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::{Dot, Name, Siblings, Version};
use crate::fault::Fault;
use crate::name::WriteId;

/// Mints, sorted.
type Mints = SmallVec<[(WriteId, Dot); 4]>;

fn mints_of(record: &Siblings) -> Mints {
    let mut mints: Mints = record.versions.iter().flat_map(Version::mints).collect();
    mints.sort_unstable();
    mints
}

/// The writes of `of` that have a mint which the other record has seen without holding it.
fn superseded<'a>(of: &'a Siblings, by: &'a Siblings, held: &'a Mints) -> impl Iterator<Item = Name> + 'a {
    let gone = move |mint: &(WriteId, Dot)| is_gone(mint, by, held);
    let goes = move |version: &&Version| !Fault::EventsGoAlone.is_on() || version.mints().all(|mint| gone(&mint));
    of.versions
        .iter()
        .filter(goes)
        .flat_map(move |version| version.mints().filter(gone).map(|(id, _)| Name::dead(id, version.time)))
}

/// Whether a record that holds these mints has seen this one without holding it.
fn is_gone(mint: &(WriteId, Dot), by: &Siblings, held: &Mints) -> bool {
    by.seen.covers(&mint.1) && held.binary_search(mint).is_err()
}

/// What a join has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changed {
    /// Events or versions.
    pub(super) state: bool,
    /// Names.
    pub(super) names: bool,
}

/// Joins `other` into `into`, and forgets nothing.
pub(super) fn merge(into: &mut Siblings, other: &Siblings) -> Changed {
    if into == other {
        return Changed { state: false, names: false };
    }
    let (mut mints, theirs) = (mints_of(into), mints_of(other));
    let mut dead: SmallVec<[Name; 4]> = superseded(into, other, &theirs).collect();
    dead.extend(superseded(other, into, &mints));
    let mut gone = Mints::new();
    if Fault::EventsGoAlone.is_on() {
        gone.extend(mints.iter().filter(|mint| is_gone(mint, other, &theirs)).copied());
        gone.extend(theirs.iter().filter(|mint| is_gone(mint, into, &mints)).copied());
    }
    let mut names = into.names.join(&other.names);
    for name in dead {
        names |= into.names.note(name);
    }
    for version in into.versions.iter().chain(&other.versions) {
        names |= into.names.date(version);
    }
    mints.extend(theirs);
    mints.sort_unstable();
    mints.dedup();
    mints.retain(|mint| !into.names.is_dead(&mint.0) && !gone.contains(mint));

    let mut versions: Vec<Version> = into.versions.iter().chain(&other.versions).cloned().collect();
    unite_equals(&mut versions);
    drop_contained(&mut versions);
    versions.retain_mut(|version| version.carry(&mints));
    versions.sort_unstable_by(Version::order);

    let mut state = versions != into.versions;
    into.versions = versions;
    state |= into.seen.join(&other.seen);
    Changed { state, names }
}

/// Unites versions made of the same writes: one version in two records, a write that was minted twice, or two verdicts on the same
/// siblings.
fn unite_equals(versions: &mut Vec<Version>) {
    versions.sort_by(|a, b| a.ids.cmp(&b.ids));
    versions.dedup_by(|later, kept| {
        let same = later.ids == kept.ids;
        if same {
            kept.time = kept.time.max(later.time);
            if outranks(later.value.as_ref(), kept.value.as_ref()) {
                kept.value = later.value.take();
            }
        }
        same
    });
}

/// Drops versions whose writes are a proper subset of another version's.
fn drop_contained(versions: &mut Vec<Version>) {
    let large: Vec<SmallVec<[WriteId; 1]>> =
        versions.iter().filter(|version| version.ids.len() > 1).map(|version| version.ids.clone()).collect();
    versions.retain(|version| !large.iter().any(|of| of.len() > version.ids.len() && is_subset(&version.ids, of)));
}

/// Both slices are sorted.
fn is_subset(part: &[WriteId], whole: &[WriteId]) -> bool {
    part.iter().all(|id| whole.binary_search(id).is_ok())
}

/// A value outranks a tombstone, then the greater SHA-256 wins: an order that favours no writer and is the same everywhere.
fn outranks(a: Option<&Bytes>, b: Option<&Bytes>) -> bool {
    let order = match (a, b) {
        (Some(a), Some(b)) if a != b => Sha256::digest(a).cmp(&Sha256::digest(b)),
        (Some(_), Some(_)) => Ordering::Equal,
        (a, b) => a.is_some().cmp(&b.is_some()),
    };
    order.is_gt()
}
