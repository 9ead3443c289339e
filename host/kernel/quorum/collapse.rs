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
    /// A quorum should be read, the resolver asked, and its verdict stored.
    Wanted,
}

impl Collapse {
    /// Whether a record has so many live siblings that they should become one.
    pub fn of(record: &Siblings) -> Self {
        if record.versions.len() >= limit::COLLAPSE_SIBLINGS { Self::Wanted } else { Self::No }
    }
}

/// The record in which the resolver's verdict stands for all live siblings: it inherits their dots and ids and mints none.
/// `values` are those the resolver was shown, in its order. `None` when the verdict keeps them all, or picks one that is not
/// there.
pub fn collapse(record: &Siblings, values: &[Bytes], verdict: &Verdict) -> Option<Siblings> {
    let value = match verdict {
        Verdict::Pick(index) => values.get(*index)?.clone(),
        Verdict::Merged(bytes) => bytes.clone(),
        Verdict::KeepAll => return None,
    };
    Some(crate::siblings::collapse(record, value))
}
