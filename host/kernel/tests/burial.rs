//! When deleted keys leave nothing behind: since when a record is buried, what may be collected, and what is sent to whom.

use bytes::Bytes;
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};
use witan_kernel::burial::{buried, drops, is_due, micros};
use witan_kernel::fault::{self, Fault};
use witan_kernel::limit::{CLOCK_SKEW_MICROS, GRACE, LEAST_GRACE, LONGEST_DEADLINE, LONGEST_RETENTION_MS, LOOKS_AGAIN};
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::recent::Recent;
use witan_kernel::record::{Encoded, Fingerprint, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::scan::{difference, difference_routine};
use witan_kernel::siblings::{Actor, Name, Shown, Siblings, VersionVector, Write};

const HOUR: u64 = 3_600_000_000;

fn id(n: u8) -> WriteId {
    WriteId([n; 16])
}

fn register(stamp: u64, n: u8, value: Option<&'static [u8]>) -> Register {
    Register::written(Stamp(stamp), id(n), value.map(Bytes::from_static))
}

fn registers() -> impl Strategy<Value = Record> {
    let write = (1..30u64, 0..6u8, prop::bool::weighted(0.3), 0..40u64);
    prop::collection::vec(write, 1..6).prop_map(|writes| {
        let mut merged: Option<Record> = None;
        for (stamp, n, live, horizon) in writes {
            let recent = Recent { horizon: horizon / 4, ..register(stamp, n, None).recent };
            let written = Register { recent, ..register(stamp, n, live.then_some(b"v")) };
            merged = Some(Record::merge(merged, Record::Register(written)).unwrap().0);
        }
        merged.unwrap()
    })
}

/// What a client does that knows one of two replicas: the store, whether it has read before, the value, and whether it is merged then.
type Did = (usize, bool, bool, bool);

/// Two replicas of a `siblings` record, with a history of writes whose times rise.
fn siblings() -> impl Strategy<Value = (Record, Record)> {
    prop::collection::vec((0..2usize, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2)), 1..12)
        .prop_map(|did: Vec<Did>| {
            let mut stored = [Siblings::default(), Siblings::default()];
            for (n, (at, has_read, live, is_merged)) in (1..).zip(did) {
                let Shown { seen, ids, newest } = if has_read { stored[at].context_claims() } else { Shown::default() };
                let value = live.then(|| Bytes::from_static(b"v"));
                let started = 100 * u64::from(n);
                let write = Write { write_id: id(n), started, again: false, asked: false, seen, ids, newest, value };
                stored[at].put(&write, Actor { store: StoreId([at as u8; 16]), birth: 1 });
                if is_merged {
                    let sent = stored[at].clone();
                    stored[1 - at].absorb(&sent, 0);
                }
            }
            let [one, other] = stored;
            (Record::Siblings(one), Record::Siblings(other))
        })
}

fn pairs() -> impl Strategy<Value = (Record, Record)> {
    prop_oneof![(registers(), registers()), siblings()]
}

proptest! {
    /// Two buried records of the same key are buried together, since the later time. A live one never is.
    #[test]
    fn merges_of_buried_records_are_buried((one, other) in pairs()) {
        for record in [&one, &other] {
            prop_assert_eq!(record.buried_since().is_some(), record.is_deleted());
        }
        let merged = Record::merge(Some(one.clone()), other.clone()).unwrap().0;
        if let (Some(one), Some(other)) = (one.buried_since(), other.buried_since()) {
            prop_assert_eq!(merged.buried_since(), Some(one.max(other)));
        }
    }

    /// What is forgotten is no younger than what it leaves behind.
    #[test]
    fn forgetting_makes_no_record_older((one, other) in pairs(), now in 0..200 * CLOCK_SKEW_MICROS) {
        for record in [one, other] {
            let mut forgot = record.clone();
            forgot.expire(now);
            prop_assert_eq!(forgot.buried_since(), record.buried_since());
        }
    }
}

#[test]
fn every_time_in_a_record_counts() {
    let plain = register(50, 1, None);
    let since = |register: Register| Record::Register(register).buried_since();
    assert_eq!(since(plain.clone()), Some(50));
    assert_eq!(since(register(50, 1, Some(b""))), None, "an empty value is a value");
    let mut remembers = plain.clone();
    remembers.recent.remember(id(2), 60);
    assert_eq!(since(remembers.clone()), Some(60));
    remembers.recent.horizon = 70;
    assert_eq!(since(remembers), Some(70));

    let mut siblings = Siblings::default();
    let since = |siblings: &Siblings| Record::Siblings(siblings.clone()).buried_since();
    assert_eq!(since(&siblings), Some(0), "nothing at all");
    siblings.names.note(Name::pinned(id(3), 20));
    assert_eq!(since(&siblings), Some(20), "a pin that was never superseded");
    let write = |n: u8, value: Option<&'static [u8]>| Write {
        write_id: id(n),
        started: 10 * u64::from(n),
        again: false,
        asked: false,
        seen: VersionVector::default(),
        ids: Vec::new(),
        newest: 0,
        value: value.map(Bytes::from_static),
    };
    let actor = Actor { store: StoreId([1; 16]), birth: 1 };
    siblings.put(&write(4, None), actor);
    assert_eq!(since(&siblings), Some(40));
    siblings.names.horizon = 90;
    assert_eq!(since(&siblings), Some(90));
    siblings.put(&write(5, Some(b"")), actor);
    assert_eq!(since(&siblings), None, "a value beside tombstones");
}

#[test]
fn the_grace_covers_what_may_come_late() {
    let most = LONGEST_RETENTION_MS * 1000 + micros(LONGEST_DEADLINE) + CLOCK_SKEW_MICROS;
    assert!(micros(LEAST_GRACE) > most && GRACE > LEAST_GRACE && LOOKS_AGAIN > LONGEST_DEADLINE);
    assert!(!is_due(10, 5, 15) && is_due(10, 5, 16) && !is_due(10, 0, 9));
}

const DELETED: u64 = 100 * HOUR;
const LATER: u64 = DELETED + 37 * HOUR;

fn tombstone() -> Option<Encoded> {
    Some(Record::Register(register(DELETED, 1, None)).encode())
}

fn judged(held: &[Option<Encoded>], replicas: u8, now: u64) -> Option<Vec<Option<Fingerprint>>> {
    let held: Vec<(u8, Option<Encoded>)> = (0..).zip(held.iter().cloned()).collect();
    let buried = buried(&held, replicas, micros(GRACE), now)?;
    Some(buried.looked.into_iter().map(|(_, held)| held).collect())
}

#[test]
fn all_replicas_must_have_the_same_or_nothing() {
    let print = tombstone().map(|encoded| encoded.fingerprint());
    assert_eq!(judged(&[tombstone(), tombstone(), tombstone()], 3, LATER), Some(vec![print; 3]));
    assert_eq!(judged(&[None, tombstone(), None], 3, LATER), Some(vec![None, print, None]));
    assert_eq!(judged(&[tombstone()], 1, LATER), Some(vec![print]));
    assert_eq!(judged(&[None, None, None], 3, LATER), None, "there is nothing to drop");
    assert_eq!(judged(&[tombstone(), tombstone()], 3, LATER), None, "one could not be read");
    assert_eq!(judged(&[tombstone(), tombstone(), tombstone()], 3, DELETED + micros(GRACE)), None, "it is too young");
    for other in [register(DELETED, 2, None), register(DELETED - 1, 1, None), register(DELETED - 1, 1, Some(b"v"))] {
        let other = Some(Record::Register(other).encode());
        assert_eq!(judged(&[tombstone(), other.clone(), tombstone()], 3, LATER), None, "another record");
        assert_eq!(judged(&[other, tombstone(), tombstone()], 3, LATER), None, "another record");
    }
    let damaged = Some(Encoded(Bytes::from_static(b"junk")));
    assert_eq!(judged(&[tombstone(), damaged.clone(), tombstone()], 3, LATER), None);
    assert_eq!(judged(&[damaged, tombstone(), tombstone()], 3, LATER), None);
    let siblings = Some(Record::Siblings(Siblings::default()).encode());
    assert_eq!(judged(&[tombstone(), siblings], 2, LATER), None);
}

#[test]
fn replicas_may_remember_different_writes_that_are_old_as_well() {
    let remembers = |time| {
        let mut remembers = register(DELETED, 1, None);
        remembers.recent.remember(id(9), time);
        Some(Record::Register(remembers).encode())
    };
    let old = judged(&[tombstone(), remembers(DELETED - 5), None], 3, LATER).expect("it is old");
    assert_eq!(old, [tombstone(), remembers(DELETED - 5), None].map(|held| held.map(|held| held.fingerprint())));
    assert_eq!(judged(&[tombstone(), remembers(LATER - HOUR)], 2, LATER), None);
    assert_eq!(judged(&[remembers(LATER - HOUR), tombstone()], 2, LATER), None);
}

#[test]
fn a_node_judges_for_itself() {
    let Some(stored) = tombstone() else { panic!("there is one") };
    let record = stored.decode().unwrap();
    let dropped = |expected, grace, now| drops(&stored, &record, expected, grace, now);
    assert!(dropped(stored.fingerprint(), micros(GRACE), LATER));
    assert!(!dropped(Fingerprint([0; 16]), micros(GRACE), LATER));
    assert!(!dropped(stored.fingerprint(), micros(GRACE), DELETED + micros(GRACE)));
    assert!(!dropped(stored.fingerprint(), 0, DELETED + micros(LEAST_GRACE)), "less is not accepted");
    assert!(dropped(stored.fingerprint(), 0, DELETED + micros(LEAST_GRACE) + 1));
    let live = Record::Register(register(1, 1, Some(b"v")));
    assert!(!drops(&live.encode(), &live, live.encode().fingerprint(), 0, LATER));
}

#[test]
fn an_old_tombstone_is_sent_to_who_has_something_else_and_not_to_who_has_nothing() {
    let value = || Some(Record::Register(register(DELETED - HOUR, 2, Some(b"v"))).encode());
    let is_old = |record: &Record| record.buried_since().is_some_and(|since| is_due(since, micros(GRACE), LATER));
    let lacking = |held: &[(u8, Option<Encoded>)], exact: u8| {
        let found = difference_routine(held, |replica| replica == exact, is_old).unwrap();
        found.map(|found| found.lacking.to_vec()).unwrap_or_default()
    };
    let held = [(0, tombstone()), (1, None), (2, None)];
    assert!(lacking(&held, 9).is_empty(), "they may have collected it");
    assert_eq!(lacking(&held, 2), [2], "a new store holds everything");
    assert_eq!(difference(&held, |_| false).unwrap().unwrap().lacking.as_slice(), [1, 2], "as a repair does");
    assert_eq!(lacking(&[(0, tombstone()), (1, value()), (2, None)], 9), [1]);
    let young = Some(Record::Register(register(LATER, 2, None)).encode());
    assert_eq!(lacking(&[(0, young), (1, None)], 9), [1]);
    assert_eq!(lacking(&[(0, value()), (1, None)], 9), [1], "values go everywhere");
    fault::set(Some(Fault::TombstonesBounce));
    let bounced = lacking(&held, 9);
    fault::set(None);
    assert_eq!(bounced, [1, 2]);
}
