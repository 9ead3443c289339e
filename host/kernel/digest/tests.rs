use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use smallvec::smallvec;

use super::*;
use crate::name::TenantId;
use crate::name::WriteId;
use crate::register::{Register, Stamp};

fn tenant(name: &'static str) -> TenantId {
    TenantId::from_trusted(Bytes::from_static(name.as_bytes()))
}

/// The row of a register.
fn row(key: u8, stamp: u64, value: Option<&'static [u8]>) -> Row {
    let register = Register::written(Stamp(stamp), WriteId([1; 16]), value.map(Bytes::from_static));
    Row::of(7, b"t", &[key], &Record::Register(register))
}

fn leaf(rows: &[Row]) -> Leaf {
    let mut leaf = Leaf::default();
    rows.iter().for_each(|row| leaf.add(row));
    leaf
}

fn answer(to: u64, leaves: Vec<(u16, &'static str, Leaf)>, unknown: Vec<u16>) -> Digests {
    let known = |(slice, name, leaf)| TenantLeaf { slice: Slice(slice), space: tenant(name).into(), leaf };
    Digests {
        store: StoreId([1; 16]),
        to,
        leaves: leaves.into_iter().map(known).collect(),
        unknown: unknown.into_iter().map(Slice).collect(),
        read_rows: 0,
        read_bytes: 0,
    }
}

#[test]
fn a_place_is_part_of_its_row() {
    let record = Record::Register(Register::written(Stamp(1), WriteId([1; 16]), None));
    let of = |token, tenant: &[u8], key: &[u8]| Row::of(token, tenant, key, &record).hash;
    let all = [of(1, b"t", b"k"), of(2, b"t", b"k"), of(1, b"tk", b""), of(1, b"", b"tk"), of(1, b"t", b"l")];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[..at].contains(one), "{at}");
    }
}

#[test]
fn a_row_without_a_value_is_known_by_its_newest_write() {
    assert_eq!((row(1, 9, None).buried, row(1, 9, Some(b"v")).buried), (Some(9), None));
    let mut siblings = crate::siblings::Siblings::default();
    assert_eq!(Row::of(1, b"t", b"k", &Record::Siblings(siblings.clone())).buried, Some(0), "nothing is known of it");
    let version = |time, value| crate::siblings::Version {
        dots: smallvec![],
        minted_for: smallvec![],
        ids: smallvec![],
        time,
        value,
    };
    siblings.versions = vec![version(3, None), version(8, None)];
    assert_eq!(Row::of(1, b"t", b"k", &Record::Siblings(siblings.clone())).buried, Some(8));
    siblings.versions.push(version(9, Some(Bytes::new())));
    assert_eq!(Row::of(1, b"t", b"k", &Record::Siblings(siblings)).buried, None);
}

#[test]
fn the_oldest_tombstone_is_never_later_than_it_is() {
    let (old, new, live) = (row(1, 10, None), row(2, 20, None), row(3, 5, Some(b"v")));
    let mut leaf = leaf(&[live]);
    assert!(!leaf.may_have_tombstones_before(u64::MAX));
    leaf.add(&new);
    leaf.add(&old);
    assert!(leaf.may_have_tombstones_before(11) && !leaf.may_have_tombstones_before(10));
    leaf.subtract(&old);
    assert!(leaf.may_have_tombstones_before(21), "the other one");
    leaf.subtract(&new);
    assert_eq!((leaf, leaf.may_have_tombstones_before(u64::MAX)), (super::tests::leaf(&[live]), false));
}

#[test]
fn equal_rows_are_counted() {
    // Of an exclusive or alone, both would be nothing.
    let one = row(1, 1, None);
    assert!(!leaf(&[one, one]).is_level_with(&Leaf::default()));
    assert!(!leaf(&[one]).is_level_with(&leaf(&[one, one, one])));
}

#[test]
fn only_replicas_of_a_tenant_are_compared_for_it() {
    let (a, b) = (leaf(&[row(1, 1, None)]), leaf(&[row(2, 1, None)]));
    let all = (0, u64::MAX);
    let answers = [
        (0, answer(u64::MAX, vec![(4, "t", a), (9, "u", b)], vec![])),
        (1, answer(u64::MAX, vec![(4, "t", a), (9, "u", b)], vec![])),
        (2, answer(u64::MAX, vec![(9, "u", b)], vec![])),
    ];
    let spans = |of: Among| {
        differing(&answers, all, 0, |name| if *name == tenant("t").into() { of.clone() } else { Among::Nobody })
    };
    assert_eq!(spans(Among::Replicas(smallvec![0, 1])), (vec![], 65536));
    assert_eq!(spans(Among::Replicas(smallvec![0, 1, 2])), (vec![Slice(4).tokens()], 65535), "nothing is a difference");
    assert_eq!(spans(Among::Replicas(smallvec![1, 2])).0, [Slice(4).tokens()]);
    assert_eq!(spans(Among::Replicas(smallvec![1, 4])).0, [], "one that has not answered is left out");
    assert_eq!(spans(Among::Replicas(smallvec![2])).0, [], "one alone is level");
    assert_eq!(spans(Among::Unclear).0, [Slice(4).tokens()]);
    assert_eq!(spans(Among::Nobody), (vec![], 65536));
}

#[test]
fn what_a_replica_does_not_know_is_read_and_neighbours_are_one_part() {
    let (first, last) = (Slice(2).tokens().0 + 5, Slice(5).tokens().1 - 7);
    let answers = [(0, answer(last, vec![], vec![2, 3])), (1, answer(last, vec![], vec![5, 9]))];
    let (spans, level) = differing(&answers, (first, last), 0, |_| Among::Nobody);
    assert_eq!(spans, [(first, Slice(3).tokens().1), (Slice(5).tokens().0, last)]);
    assert_eq!(level, 1, "the fourth; the ninth is not asked about");
    let end = [(0, answer(u64::MAX, vec![], vec![u16::MAX]))];
    assert_eq!(differing(&end, (u64::MAX, u64::MAX), 0, |_| Among::Nobody), (vec![(u64::MAX, u64::MAX)], 0));
}

proptest! {
    /// Whatever order rows change in, a leaf is that of the rows that are there.
    #[test]
    fn a_leaf_is_that_of_its_rows(changes in prop::collection::vec((0..5u8, prop::option::of((0..4u64, any::<bool>()))), 0..40)) {
        let mut rows: BTreeMap<u8, Row> = BTreeMap::new();
        let mut kept = Leaf::default();
        for (key, now) in changes {
            if let Some(before) = rows.remove(&key) {
                kept.subtract(&before);
            }
            if let Some((stamp, live)) = now {
                let now = row(key, stamp, live.then_some(b"v"));
                kept.add(&now);
                rows.insert(key, now);
            }
        }
        let all: Vec<Row> = rows.into_values().collect();
        let counted = leaf(&all);
        prop_assert!(kept.is_level_with(&counted));
        prop_assert_eq!((kept.count, kept.buried), (counted.count, counted.buried));
        prop_assert!(kept.oldest_buried <= counted.oldest_buried);
        let (some, others) = all.split_at(all.len() / 2);
        let mut both = leaf(some);
        both.combine(&leaf(others));
        prop_assert_eq!(both, counted);
    }
}
