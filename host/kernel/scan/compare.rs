//! What replicas of one key lack.

use smallvec::SmallVec;

use crate::record::{Damaged, Encoded, Record, WrongMode};

/// The merge of what all replicas have, and who lacks something of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The merge.
    pub record: Encoded,
    /// Who has to be sent it.
    pub lacking: SmallVec<[u8; 5]>,
}

/// Records that nobody can merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmergeable {
    /// One of them is damaged.
    #[error("replica {0}: {1}")]
    Damaged(u8, Damaged),
    /// Records of both conflict modes.
    #[error(transparent)]
    WrongMode(#[from] WrongMode),
}

/// Merges what replicas have; `None` when nobody has anything.
pub fn merged(told: &[(u8, Option<Encoded>)]) -> Result<Option<Record>, Unmergeable> {
    let mut merged: Option<Record> = None;
    let mut last: Option<&Encoded> = None;
    for (replica, encoded) in told {
        let Some(encoded) = encoded else { continue };
        if last.is_some_and(|last| last == encoded) {
            continue;
        }
        let record = encoded.decode().map_err(|damaged| Unmergeable::Damaged(*replica, damaged))?;
        merged = Some(Record::merge(merged, record)?.0);
        last = Some(encoded);
    }
    Ok(merged)
}

/// Who lacks something that another replica has. What they remember of writes is no difference, except to replicas that
/// are `exact`: those are to hold everything that the merge holds.
pub fn difference(
    told: &[(u8, Option<Encoded>)],
    exact: impl Fn(u8) -> bool,
) -> Result<Option<Difference>, Unmergeable> {
    let Some((_, first)) = told.first() else { return Ok(None) };
    if told.iter().all(|(_, encoded)| encoded == first) {
        return Ok(None);
    }
    let Some(merged) = merged(told)? else { return Ok(None) };
    let mut lacking = SmallVec::new();
    for (replica, encoded) in told {
        let lacks = match encoded {
            None => true,
            Some(encoded) => {
                let own = encoded.decode().map_err(|damaged| Unmergeable::Damaged(*replica, damaged))?;
                !own.same_standing(&merged) || (exact(*replica) && Record::merge(Some(own), merged.clone())?.1)
            }
        };
        if lacks {
            lacking.push(*replica);
        }
    }
    Ok((!lacking.is_empty()).then(|| Difference { record: merged.encode(), lacking }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::name::WriteId;
    use crate::register::{Register, Stamp};
    use crate::siblings::Siblings;

    fn register(stamp: u64) -> Register {
        Register::written(Stamp(stamp), WriteId([stamp as u8; 16]), Some(Bytes::from_static(b"v")))
    }

    fn encoded(register: Register) -> Option<Encoded> {
        Some(Record::Register(register).encode())
    }

    fn nobody(_: u8) -> bool {
        false
    }

    #[test]
    fn who_is_behind_gets_the_merge() {
        let told = [(0, encoded(register(5))), (1, encoded(register(7))), (2, None)];
        let found = difference(&told, nobody).unwrap().unwrap();
        assert_eq!(found.lacking.as_slice(), [0, 2]);
        let Record::Register(merged) = found.record.decode().unwrap() else { panic!("a register") };
        assert_eq!(merged.stamp, Stamp(7));
        assert_eq!(merged.recent.entries.len(), 2, "names are kept");
    }

    #[test]
    fn nothing_and_the_same_are_no_difference() {
        assert_eq!(difference(&[], nobody), Ok(None));
        assert_eq!(difference(&[(0, None), (1, None)], nobody), Ok(None));
        assert_eq!(difference(&[(0, encoded(register(5))), (2, encoded(register(5)))], nobody), Ok(None));
    }

    #[test]
    fn a_name_is_a_difference_only_where_everything_is_wanted() {
        let mut remembers = register(7);
        remembers.merge(&register(5));
        let told = [(0, encoded(remembers)), (1, encoded(register(7)))];
        assert_eq!(difference(&told, nobody), Ok(None));
        let found = difference(&told, |replica| replica == 1).unwrap().unwrap();
        assert_eq!(found.lacking.as_slice(), [1]);
        assert_eq!(difference(&told, |replica| replica == 0), Ok(None));
    }

    #[test]
    fn what_cannot_be_merged_is_told() {
        let siblings = Some(Record::Siblings(Siblings::default()).encode());
        let told = [(0, encoded(register(5))), (1, siblings)];
        assert_eq!(difference(&told, nobody), Err(Unmergeable::WrongMode(WrongMode)));
        let told = [(0, encoded(register(5))), (3, Some(Encoded(Bytes::from_static(b"junk"))))];
        assert!(matches!(difference(&told, nobody), Err(Unmergeable::Damaged(3, _))));
    }
}
