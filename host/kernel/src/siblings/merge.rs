//! The join of two `siblings` records.

use std::cmp::Ordering;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::{Dot, Siblings, Version};
use crate::name::WriteId;

/// What one record knows of events and writes, asked while the versions of the other are judged.
struct Side<'a> {
    record: &'a Siblings,
    dots: Vec<Dot>,
    ids: Vec<WriteId>,
}

impl<'a> Side<'a> {
    fn new(record: &'a Siblings) -> Self {
        let mut dots: Vec<Dot> = record.versions.iter().flat_map(|version| version.dots.iter().copied()).collect();
        let mut ids: Vec<WriteId> = record.versions.iter().flat_map(|version| version.ids.iter().copied()).collect();
        dots.sort_unstable();
        ids.sort_unstable();
        Self { record, dots, ids }
    }

    /// An event of the other record stays if it stands here too, or was never seen here.
    fn lets_stay(&self, dot: &Dot) -> bool {
        self.dots.binary_search(dot).is_ok() || !self.record.seen.covers(dot)
    }

    /// A write that is remembered here while nothing here stands for it has been superseded, under whichever dot.
    fn has_superseded(&self, id: &WriteId) -> bool {
        self.ids.binary_search(id).is_err() && self.record.recent.time_of(id).is_some()
    }

    /// What of the other record's version survives this one.
    fn judge(&self, version: &Version) -> Option<Version> {
        if version.ids.iter().all(|id| self.has_superseded(id)) {
            return None;
        }
        let dots: SmallVec<[Dot; 1]> = version.dots.iter().filter(|dot| self.lets_stay(dot)).copied().collect();
        if dots.is_empty() {
            return None;
        }
        Some(Version { dots, ids: version.ids.clone(), time: version.time, value: version.value.clone() })
    }
}

pub(super) fn merge(into: &mut Siblings, other: &Siblings) -> bool {
    if into == other {
        return false;
    }
    let mut versions = Vec::with_capacity(into.versions.len() + other.versions.len());
    let (mine, theirs) = (Side::new(into), Side::new(other));
    versions.extend(into.versions.iter().filter_map(|version| theirs.judge(version)));
    versions.extend(other.versions.iter().filter_map(|version| mine.judge(version)));
    unite_equals(&mut versions);
    drop_contained(&mut versions);
    versions.sort_unstable_by(Version::order);
    let changed = versions != into.versions;
    into.versions = versions;
    let seen = into.seen.join(&other.seen);
    into.recent.merge(&other.recent) || seen || changed
}

/// Versions that stand for the same writes are one: a write that was minted twice, one version in two records, or two
/// verdicts over the same siblings.
fn unite_equals(versions: &mut Vec<Version>) {
    versions.sort_by(|a, b| a.ids.cmp(&b.ids));
    versions.dedup_by(|later, kept| {
        let same = later.ids == kept.ids;
        if same {
            kept.dots.extend_from_slice(&later.dots);
            sort_and_deduplicate(&mut kept.dots);
            kept.time = kept.time.max(later.time);
            if outranks(later.value.as_ref(), kept.value.as_ref()) {
                kept.value = later.value.take();
            }
        }
        same
    });
}

/// A version that stands for some of another's writes and for none besides is contained in it.
fn drop_contained(versions: &mut Vec<Version>) {
    if versions.iter().all(|version| version.ids.len() == 1) {
        return;
    }
    let ids: Vec<SmallVec<[WriteId; 1]>> =
        versions.iter().map(|version| version.ids.clone()).filter(|ids| ids.len() > 1).collect();
    versions.retain(|version| !ids.iter().any(|of| of.len() > version.ids.len() && is_subset(&version.ids, of)));
}

/// Both sorted.
fn is_subset(part: &[WriteId], whole: &[WriteId]) -> bool {
    part.iter().all(|id| whole.binary_search(id).is_ok())
}

/// A value before a tombstone, then the greater SHA-256: an order that favours no writer and is the same everywhere.
fn outranks(a: Option<&Bytes>, b: Option<&Bytes>) -> bool {
    let order = match (a, b) {
        (Some(a), Some(b)) if a != b => Sha256::digest(a).cmp(&Sha256::digest(b)),
        (Some(_), Some(_)) => Ordering::Equal,
        (a, b) => a.is_some().cmp(&b.is_some()),
    };
    order.is_gt()
}

pub(super) fn sort_and_deduplicate<T: Ord>(items: &mut SmallVec<[T; 1]>) {
    items.sort_unstable();
    items.dedup();
}
