//! When siblings become one.

use bytes::Bytes;

use crate::hook::Verdict;
use crate::limit;
use crate::siblings::Siblings;

/// What to do about a record's siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collapse {
    /// Few enough.
    No,
    /// A quorum should be read, the resolver asked, and its verdict stored instead of the siblings.
    Wanted,
}

impl Collapse {
    /// Whether a record has enough live siblings to collapse them.
    pub fn of(record: &Siblings) -> Self {
        if record.versions.len() >= limit::COLLAPSE_SIBLINGS { Self::Wanted } else { Self::No }
    }
}

/// The record in which the resolver's verdict replaces all live siblings: it inherits their dots and ids and mints none. `values` are those
/// that the resolver was shown, in that order. `None` when the verdict keeps them all, or picks one that does not exist.
pub fn collapse(record: &Siblings, values: &[Bytes], verdict: &Verdict) -> Option<Siblings> {
    let value = match verdict {
        Verdict::Pick(index) => values.get(*index)?.clone(),
        Verdict::Merged(bytes) => bytes.clone(),
        Verdict::KeepAll => return None,
    };
    Some(crate::siblings::collapse(record, value))
}
