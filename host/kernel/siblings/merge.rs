//! The join of two `siblings` records.
//!
//! It consists of two joins that do not depend on each other, which is why it obeys the laws. *Mints*, dots with the write that each was
//! minted for: one is kept if both records hold it, or one does and the other has neither seen the dot nor superseded the write.
//! *Versions*, each the set of writes that its value was made of: the greatest sets are kept. A version then carries the mints of its
//! writes, and one that carries none is superseded.

use std::cmp::Ordering;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::{Dot, Siblings, Version};
use crate::name::WriteId;

/// Mints, sorted.
type Mints = SmallVec<[(WriteId, Dot); 4]>;

/// What one record knows of events and writes, to decide which mints of the other one to keep.
struct Side<'a> {
    record: &'a Siblings,
    mints: Mints,
}

impl<'a> Side<'a> {
    fn new(record: &'a Siblings) -> Self {
        let mut mints: Mints = record.versions.iter().flat_map(Version::mints).collect();
        mints.sort_unstable();
        Self { record, mints }
    }

    fn keeps(&self, mint: &(WriteId, Dot)) -> bool {
        self.mints.binary_search(mint).is_ok() || !(self.record.seen.covers(&mint.1) || self.has_superseded(&mint.0))
    }

    /// A write that is remembered here without a mint here has been superseded, under any dot.
    fn has_superseded(&self, write: &WriteId) -> bool {
        let has_mint = self.mints.binary_search_by(|(id, _)| id.cmp(write)).is_ok();
        !has_mint && self.record.recent.time_of(write).is_some()
    }
}

/// Joins `other` into `into`. True when that changed anything.
pub(super) fn merge(into: &mut Siblings, other: &Siblings) -> bool {
    if into == other {
        return false;
    }
    let (mine, theirs) = (Side::new(into), Side::new(other));
    let mut mints: Mints = mine.mints.iter().filter(|mint| theirs.keeps(mint)).copied().collect();
    mints.extend(theirs.mints.iter().filter(|mint| mine.keeps(mint)).copied());
    mints.sort_unstable();
    mints.dedup();

    let mut versions: Vec<Version> = into.versions.iter().chain(&other.versions).cloned().collect();
    unite_equals(&mut versions);
    drop_contained(&mut versions);
    versions.retain_mut(|version| version.carry(&mints));
    versions.sort_unstable_by(Version::order);

    let changed = versions != into.versions;
    into.versions = versions;
    let seen = into.seen.join(&other.seen);
    into.recent.merge(&other.recent) || seen || changed
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
