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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{StoreId, WriteId};
    use crate::siblings::{Actor, VersionVector, Write};

    fn siblings(count: u8) -> Siblings {
        let mut record = Siblings::default();
        for n in 0..count {
            let write = Write {
                write_id: WriteId([n; 16]),
                started: 1,
                again: false,
                asked: false,
                seen: VersionVector::default(),
                ids: Vec::new(),
                newest: 0,
                value: Some(Bytes::copy_from_slice(&[n])),
            };
            record.put(&write, Actor { store: StoreId([1; 16]), birth: 1 });
        }
        record
    }

    #[test]
    fn a_resolver_is_asked_from_25_siblings_on() {
        assert_eq!(
            [1, 24, 25, 26].map(|count| Collapse::of(&siblings(count)) == Collapse::Wanted),
            [false, false, true, true]
        );
    }

    #[test]
    fn a_verdict_is_one_of_the_values_shown_or_another_and_may_be_none() {
        let (record, values) = (siblings(3), [Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
        let value = |verdict: &Verdict| {
            let collapsed = collapse(&record, &values, verdict)?;
            assert_eq!((collapsed.versions.len(), collapsed.versions[0].ids.len()), (1, 3));
            collapsed.versions[0].value.clone()
        };
        assert_eq!([0, 1, 2].map(|index| value(&Verdict::Pick(index))), [Some("a".into()), Some("b".into()), None]);
        assert_eq!(value(&Verdict::Merged("c".into())), Some("c".into()));
        assert_eq!(value(&Verdict::KeepAll), None);
    }
}
