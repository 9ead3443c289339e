//! A `register` record: one value, totally ordered by its stamp.

use bytes::Bytes;
use smallvec::smallvec;

use crate::fault::Fault;
use crate::name::WriteId;
use crate::recent::Recent;

/// A register's place in the total order: hybrid time, microseconds since 1970. Ties: a tombstone beats a value, then the
/// greater write id wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Stamp(pub u64);

/// A `register` record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// Its place in the order.
    pub stamp: Stamp,
    /// The write that the value is from.
    pub write_id: WriteId,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Stamps that recent writes were given. A merge does not depend on them: they let a retry find the stamp it had.
    pub recent: Recent,
}

impl Register {
    /// The record that a client's write creates. It remembers the write under its stamp.
    pub fn written(stamp: Stamp, write_id: WriteId, value: Option<Bytes>) -> Self {
        let recent = Recent { entries: smallvec![(write_id, stamp.0)], horizon: 0 };
        Self { stamp, write_id, value, recent }
    }

    /// True when this one is above `other` in the order (stamp, tombstone above value, write id). Two with the same three are the same
    /// write; if their values differ nevertheless, the greater one wins, the same on every machine.
    pub fn wins_over(&self, other: &Self) -> bool {
        self.rank().cmp(&other.rank()).then_with(|| self.value.cmp(&other.value)).is_gt()
    }

    fn rank(&self) -> (Stamp, bool, WriteId) {
        (self.stamp, self.value.is_none(), self.write_id)
    }

    /// The stamp that a write was given here, as far as it is remembered.
    pub fn knows(&self, write_id: &WriteId) -> Option<Stamp> {
        if Fault::WriteIdForgotten.is_on() {
            return None;
        }
        if self.write_id == *write_id { Some(self.stamp) } else { self.recent.time_of(write_id).map(Stamp) }
    }

    /// Keeps the winner, and the union of what both remember. True when this record changed. Associative, commutative and idempotent.
    pub fn merge(&mut self, other: &Self) -> bool {
        if Fault::OverwriteInsteadOfMerge.is_on() {
            let changed = self != other;
            self.clone_from(other);
            return changed;
        }
        let wins = other.wins_over(self);
        if wins {
            self.stamp = other.stamp;
            self.write_id = other.write_id;
            self.value.clone_from(&other.value);
        }
        self.recent.merge(&other.recent) || wins
    }
}

/// Merges `incoming` into what is stored. Also returns whether the stored record has changed, including what it remembers: then it has to
/// be stored, or a retry would not find the stamp it had.
pub fn apply_merge(stored: Option<Register>, incoming: &Register) -> (Register, bool) {
    match stored {
        None => (incoming.clone(), true),
        Some(mut stored) => {
            let changed = stored.merge(incoming);
            (stored, changed)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

    use super::{Register, Stamp, apply_merge};
    use crate::fault::{self, Fault};
    use crate::name::WriteId;

    fn written(stamp: u64, id: u8, value: Option<&'static str>) -> Register {
        Register::written(Stamp(stamp), WriteId([id; 16]), value.map(|text| Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn stamp_then_tombstone_then_write_id() {
        assert!(written(2, 1, Some("a")).wins_over(&written(1, 9, None)));
        assert!(written(2, 1, None).wins_over(&written(2, 9, Some("z"))));
        assert!(written(2, 2, Some("a")).wins_over(&written(2, 1, Some("z"))));
        assert!(!written(2, 2, Some("a")).wins_over(&written(2, 2, Some("a"))));
    }

    #[test]
    fn a_superseded_write_is_remembered_and_finds_its_stamp_again() {
        let (stored, changed) = apply_merge(None, &written(5, 1, Some("new")));
        assert!(changed);
        let (stored, changed) = apply_merge(Some(stored), &written(3, 2, Some("old")));
        assert!(changed, "what is remembered must be stored");
        assert_eq!((stored.value.as_deref(), stored.stamp), (Some(&b"new"[..]), Stamp(5)));
        assert_eq!(stored.knows(&WriteId([2; 16])), Some(Stamp(3)));
        assert_eq!(stored.knows(&WriteId([3; 16])), None);
        let (again, changed) = apply_merge(Some(stored.clone()), &written(3, 2, Some("old")));
        assert!(!changed);
        assert_eq!(again, stored);
    }

    #[test]
    fn faults_break_it() {
        let stored = written(5, 1, Some("new"));
        fault::set(Some(Fault::OverwriteInsteadOfMerge));
        assert_eq!(apply_merge(Some(stored.clone()), &written(3, 2, None)), (written(3, 2, None), true));
        assert_eq!(apply_merge(Some(stored.clone()), &stored), (stored.clone(), false));
        fault::set(Some(Fault::WriteIdForgotten));
        assert_eq!(stored.knows(&WriteId([1; 16])), None);
        fault::set(None);
    }

    fn registers() -> impl Strategy<Value = Register> {
        let write = (0..20u64, 0..4u8, any::<bool>()).prop_map(|(stamp, id, live)| {
            Register::written(Stamp(stamp), WriteId([id; 16]), live.then(|| Bytes::copy_from_slice(&[id])))
        });
        proptest::collection::vec(write, 1..80).prop_map(|writes| {
            let mut writes = writes.into_iter();
            let first = writes.next().expect("one write at least");
            writes.fold(first, |stored, write| apply_merge(Some(stored), &write).0)
        })
    }

    fn merged(a: &Register, b: &Register) -> Register {
        let (out, changed) = apply_merge(Some(a.clone()), b);
        assert_eq!(changed, out != *a);
        out
    }

    proptest! {
        #[test]
        fn merge_obeys_the_laws(a in registers(), b in registers(), c in registers()) {
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        }
    }
}
