use super::{
    Actor, Dot, ENTRY_BYTES, Name, RECENT_BYTES, Refusal, Shown, Siblings, VERSION_BYTES, VersionVector, Write,
    collapse,
};
use crate::fault::{self, Fault};
use crate::limit;
use crate::name::{StoreId, WriteId};
use crate::record::Record;
use bytes::Bytes;

const NOW: u64 = 1_700_000_000_000_000;

fn actor(n: u8) -> Actor {
    Actor { store: StoreId([n; 16]), birth: 1 }
}

fn id(n: u8) -> WriteId {
    WriteId([n; 16])
}

fn write(n: u8, value: &'static str, context: Option<&Siblings>) -> Write {
    let Shown { seen, ids, newest } = context.map(Siblings::context_claims).unwrap_or_default();
    let value = Some(Bytes::from_static(value.as_bytes()));
    Write { write_id: id(n), started: NOW + u64::from(n), again: false, asked: false, seen, ids, newest, value }
}

fn delete(n: u8, context: &Siblings) -> Write {
    Write { value: None, ..write(n, "", Some(context)) }
}

fn merged(a: &Siblings, b: &Siblings) -> Siblings {
    let mut out = a.clone();
    out.merge(b);
    out
}

fn values(record: &Siblings) -> Vec<Bytes> {
    record.live_values_deduplicated().into_iter().map(|sibling| sibling.value).collect()
}

#[test]
fn what_the_context_covers_goes_and_the_rest_stays() {
    let mut record = Siblings::default();
    record.put(&write(1, "a", None), actor(1));
    let read = record.clone();
    let dot = record.put(&write(2, "b", None), actor(1));
    assert_eq!(dot, Dot { actor: actor(1), counter: 2 });
    assert_eq!(values(&record), ["a", "b"]);
    record.put(&write(3, "c", Some(&read)), actor(1));
    assert_eq!(values(&record), ["b", "c"]);
    assert_eq!(record.context_claims().ids, [id(3), id(2)], "newest first");
    assert_eq!(record.knows(&id(1)), Some(NOW + 1), "superseded and still known");
    assert_eq!(record.actor_of(&StoreId([1; 16])), Some(actor(1)));
    assert_eq!(record.actor_of(&StoreId([2; 16])), None);
}

#[test]
fn a_context_of_another_replica_moves_no_counter_of_the_actor() {
    let mut there = Siblings::default();
    for n in 1..=7 {
        there.put(&write(n, "x", None), actor(2));
    }
    let mut here = Siblings::default();
    let dot = here.put(&write(8, "y", Some(&there)), actor(1));
    assert_eq!(dot.counter, 1);
    assert_eq!(values(&merged(&here, &there)), ["y"]);
}

#[test]
fn a_write_minted_twice_is_one_version_and_goes_as_one() {
    let put = write(1, "a", None);
    let (mut first, mut second) = (Siblings::default(), Siblings::default());
    first.put(&put, actor(1));
    let read_at_first = first.clone();
    second.put(&Write { again: true, ..put }, actor(2));
    let both = merged(&first, &second);
    assert_eq!((both.versions.len(), both.versions[0].dots.len()), (1, 2));
    first.put(&delete(2, &read_at_first), actor(1));
    for joined in [merged(&first, &second), merged(&second, &first), merged(&both, &first)] {
        assert!(joined.is_deleted(), "the second dot is the same write: {joined:?}");
    }
}

#[test]
fn values_win_over_tombstones_and_equal_bytes_count_once() {
    let mut record = Siblings::default();
    assert!(record.is_deleted());
    record.put(&write(1, "a", None), actor(1));
    let read = record.clone();
    record.put(&write(2, "b", None), actor(1));
    record.put(&write(3, "b", None), actor(1));
    record.put(&delete(4, &read), actor(1));
    assert_eq!(record.versions.len(), 3);
    assert_eq!(record.live().count(), 2);
    let [only] = record.live_values_deduplicated().try_into().expect("one value");
    assert_eq!((only.value, only.time), (Bytes::from_static(b"b"), NOW + 3));
    let mut emptied = read.clone();
    emptied.put(&delete(5, &read), actor(1));
    assert!(emptied.is_deleted());
    assert_eq!(emptied.live().count(), 1, "the tombstone is left");
}

#[test]
fn a_collapsed_version_inherits_and_mints_nothing() {
    let mut record = Siblings::default();
    for n in 1..=3 {
        record.put(&write(n, ["a", "b", "c"][usize::from(n) - 1], None), actor(1));
    }
    let collapsed = collapse(&record, Bytes::from_static(b"abc"));
    assert_eq!(collapsed.seen, record.seen);
    assert_eq!(
        (collapsed.versions[0].dots.len(), collapsed.versions[0].ids.len(), collapsed.versions[0].time),
        (3, 3, NOW + 3)
    );
    assert_eq!(merged(&record, &collapsed), collapsed);
    assert_eq!(collapse(&collapsed, Bytes::from_static(b"other")), collapsed, "nothing left to collapse");
    // A client that had read the siblings has seen all of it.
    let mut written = collapsed.clone();
    written.put(&write(4, "d", Some(&record)), actor(1));
    assert_eq!(values(&merged(&written, &collapsed)), ["d"]);
    // A client that had read a part of it has not.
    let mut part = Siblings::default();
    part.put(&write(1, "a", None), actor(1));
    let mut late = collapsed.clone();
    late.put(&write(5, "e", Some(&part)), actor(1));
    assert_eq!(values(&late), ["abc", "e"]);
    assert_eq!(late.versions[0].dots.len(), 2);
}

#[test]
fn verdicts_over_the_same_writes_agree_everywhere() {
    let mut record = Siblings::default();
    record.put(&write(1, "a", None), actor(1));
    record.put(&write(2, "b", None), actor(1));
    let (one, other) = (collapse(&record, Bytes::from_static(b"ab")), collapse(&record, Bytes::from_static(b"ba")));
    assert_eq!(merged(&one, &other), merged(&other, &one));
    assert_eq!(merged(&one, &other).versions.len(), 1);
}

#[test]
fn doubtful_and_oversized_puts_are_refused() {
    let again = |n| Write { again: true, ..write(n, "a", None) };
    let mut record = Siblings::default();
    assert_eq!(record.refuse(&again(1), NOW + 2), Ok(()));
    assert_eq!(record.refuse(&again(1), NOW + 1 + limit::PUT_RETRY_MICROS), Err(Refusal::InDoubt));
    record.names.horizon = NOW + 1;
    assert_eq!(record.refuse(&again(1), NOW + 2), Err(Refusal::InDoubt));
    assert_eq!(record.refuse(&again(2), NOW + 2), Ok(()));
    assert_eq!(record.refuse(&write(1, "a", None), NOW + 2), Ok(()), "a first attempt is in no doubt");

    for n in 0..limit::SIBLINGS as u8 {
        assert_eq!(record.refuse(&write(n, "a", None), NOW), Ok(()), "so far there are {n}");
        record.put(&write(n, "a", None), actor(1));
    }
    assert_eq!(record.refuse(&write(200, "b", None), NOW), Err(Refusal::TooLarge));
    assert_eq!(record.refuse(&write(200, "b", Some(&record)), NOW), Ok(()), "it covers them");

    let mut large = Siblings::default();
    let value = Some(Bytes::from(vec![0; limit::VALUE_BYTES]));
    for n in 1..=3 {
        let put = Write { value: value.clone(), ..write(n, "", None) };
        assert_eq!(large.refuse(&put, NOW), Ok(()));
        large.put(&put, actor(1));
    }
    let fourth = Write { value, ..write(4, "", None) };
    assert_eq!(large.refuse(&fourth, NOW), Err(Refusal::TooLarge));
}

/// The longest value with which a record accepts a write.
fn room(record: &Siblings, of: &Write) -> usize {
    let bytes = Bytes::from(vec![0; limit::RECORD_BYTES + 1]);
    let refuses = |length: usize| {
        let value = Some(bytes.slice(..length));
        record.refuse(&Write { value, ..of.clone() }, NOW) == Err(Refusal::TooLarge)
    };
    let (mut accepted, mut refused) = (0, bytes.len());
    assert!(refuses(refused) && !refuses(accepted));
    while accepted + 1 < refused {
        let middle = (accepted + refused) / 2;
        if refuses(middle) {
            refused = middle;
        } else {
            accepted = middle;
        }
    }
    accepted
}

/// Events, versions that stay, their writes, and names beyond those that every record may have: each takes its part of the limit, and
/// what the write supersedes takes none.
#[test]
fn all_that_a_record_would_hold_counts_towards_its_limit() {
    const ID: usize = size_of::<WriteId>();
    let first = write(1, "", None);
    let empty = room(&Siblings::default(), &first);
    assert_eq!(empty, limit::RECORD_BYTES - VERSION_BYTES - limit::RECENT_ENTRIES * RECENT_BYTES);

    let mut has_seen = VersionVector::default();
    has_seen.advance(&Dot { actor: actor(1), counter: 3 });
    has_seen.add(&Dot { actor: actor(1), counter: 5 });
    let record = Siblings { seen: has_seen.clone(), ..Siblings::default() };
    assert_eq!(room(&record, &first), empty - 2 * ENTRY_BYTES, "events of the record");
    let claims = Write { seen: has_seen, ..first.clone() };
    assert_eq!(room(&record, &claims), empty - 4 * ENTRY_BYTES, "events of the context");

    // One version of three writes and as many events.
    let mut record = Siblings::default();
    for n in 2..=4 {
        record.put(&write(n, ["five", "fives", "sevens"][usize::from(n) - 2], None), actor(n));
    }
    let collapsed = collapse(&record, Bytes::from_static(b"verdict"));
    let seen = 3 * ENTRY_BYTES;
    let version = 7 + VERSION_BYTES + 3 * ENTRY_BYTES + 3 * ID;
    assert_eq!(room(&collapsed, &first), empty - seen - version);
    let (lengths, each) = (4 + 5 + 6, VERSION_BYTES + ENTRY_BYTES + ID);
    assert_eq!(room(&record, &first), empty - seen - lengths - 3 * each);
    assert_eq!(room(&collapsed, &write(5, "", Some(&collapsed))), empty - 2 * seen, "it is superseded");

    let mut named = Siblings::default();
    for n in 0..=limit::RECENT_ENTRIES as u8 + 1 {
        assert_eq!(room(&named, &first), empty - usize::from(n.saturating_sub(64)) * RECENT_BYTES, "{n} names");
        named.names.note(Name::dead(id(n), NOW));
    }
    for record in [record, collapsed, named] {
        let estimated = limit::RECORD_BYTES - room(&record, &first);
        assert!(Record::Siblings(record).encode().0.len() <= estimated, "an estimate is never too low");
    }
}

#[test]
fn faults_break_it() {
    let (mut stored, mut sent) = (Siblings::default(), Siblings::default());
    stored.put(&write(1, "a", None), actor(1));
    sent.put(&write(2, "b", None), actor(2));
    fault::set(Some(Fault::OverwriteInsteadOfMerge));
    assert_eq!(merged(&stored, &sent), sent);
    fault::set(Some(Fault::WriteIdForgotten));
    assert_eq!(stored.knows(&id(1)), None);
    fault::set(None);
    assert_eq!(stored.knows(&id(1)), Some(NOW + 1));
}

#[test]
fn vectors_join_and_dominate() {
    let mut a = VersionVector::default();
    a.advance(&Dot { actor: actor(2), counter: 5 });
    a.advance(&Dot { actor: actor(1), counter: 1 });
    a.advance(&Dot { actor: actor(2), counter: 3 });
    assert_eq!((a.get(&actor(1)), a.get(&actor(2)), a.get(&actor(3))), (1, 5, 0));
    assert!(a.covers(&Dot { actor: actor(2), counter: 5 }) && !a.covers(&Dot { actor: actor(2), counter: 6 }));
    let mut b = VersionVector::default();
    b.advance(&Dot { actor: actor(3), counter: 1 });
    assert!(!a.dominates(&b) && !b.dominates(&a));
    assert!(b.join(&a) && !b.join(&a));
    assert!(b.dominates(&a) && !a.dominates(&b));
    assert!(b.entries.is_sorted());
}
