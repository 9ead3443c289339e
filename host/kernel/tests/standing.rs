//! What a record says of its key: whether two replicas agree, whether it is deleted, what a writer's context claims. Each compared with a
//! plain count of its own, since other tests and the simulation judge by these functions.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};
use smallvec::smallvec;
use witan_kernel::digest::Row;
use witan_kernel::limit::{CLOCK_SKEW_MICROS, RECENT_MICROS};
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::recent::Recent;
use witan_kernel::record::{Absorbed, Record, WrongMode};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::siblings::{Actor, Dot, Name, Shown, Siblings, Version, VersionVector, Write};

fn actor(n: u8) -> Actor {
    Actor { store: StoreId([n; 16]), birth: 1 }
}

fn dot(n: u8, counter: u64) -> Dot {
    Dot { actor: actor(n), counter }
}

fn id(n: u8) -> WriteId {
    WriteId([n; 16])
}

fn write(n: u8, value: Option<&'static [u8]>) -> Write {
    Write {
        write_id: id(n),
        started: u64::from(n),
        again: false,
        asked: false,
        seen: VersionVector::default(),
        ids: Vec::new(),
        newest: 0,
        value: value.map(Bytes::from_static),
    }
}

/// A few writes at a few stores, and merges: small, so that two of them are often in the same state.
fn records() -> impl Strategy<Value = Record> {
    let siblings = prop::collection::vec((1..3u8, 1..4u8, any::<bool>()), 0..3).prop_map(|writes| {
        let mut record = Siblings::default();
        for (store, n, live) in writes {
            if record.knows(&id(n)).is_none() {
                record.put(&write(n, live.then_some(b"v")), actor(store));
            }
        }
        Record::Siblings(record)
    });
    let register = (1..3u64, 1..3u8, prop::option::of(1..3u8), 0..2u64).prop_map(|(stamp, n, value, horizon)| {
        let value = value.map(|byte| Bytes::copy_from_slice(&[byte]));
        let mut register = Register::written(Stamp(stamp), id(n), value);
        register.recent.horizon = horizon;
        Record::Register(register)
    });
    prop_oneof![2 => siblings, 1 => register]
}

/// All of a record but what it remembers, in another form.
fn plain(record: &Record) -> (Vec<String>, BTreeMap<Actor, u64>) {
    match record {
        Record::Register(register) => {
            (vec![format!("{:?} {:?} {:?}", register.stamp, register.write_id, register.value)], BTreeMap::new())
        }
        Record::Siblings(siblings) => {
            let version = |version: &Version| {
                let mints: BTreeSet<(WriteId, Dot)> = version.mints().collect();
                format!("siblings {mints:?} {:?} {} {:?}", version.ids, version.time, version.value)
            };
            let versions: BTreeSet<String> = siblings.versions.iter().map(version).collect();
            let kind = std::iter::once("siblings".to_owned());
            (kind.chain(versions).collect(), siblings.seen.entries.iter().copied().collect())
        }
    }
}

proptest! {
    #[test]
    fn replicas_agree_when_everything_but_what_they_remember_is_the_same(one in records(), other in records()) {
        prop_assert_eq!(one.same_state(&other), plain(&one) == plain(&other), "{:?} {:?}", one, other);
    }

    #[test]
    fn digests_agree_exactly_when_states_do(one in records(), other in records()) {
        let hash = |record: &Record| Row::of(7, b"t", b"k", record).hash;
        prop_assert_eq!(hash(&one) == hash(&other), one.same_state(&other), "{:?} {:?}", one, other);
        let (mut copy, read) = (one.clone(), one.encode().decode().unwrap());
        prop_assert_eq!(hash(&read), hash(&one), "whatever it was read from");
        if copy.expire(u64::MAX) {
            prop_assert_eq!(hash(&copy), hash(&one), "what it remembers of writes does not count");
        }
    }

    #[test]
    fn a_record_is_deleted_without_a_value(record in records()) {
        let has_value = match &record {
            Record::Register(register) => register.value.is_some(),
            Record::Siblings(siblings) => siblings.versions.iter().any(|version| version.value.is_some()),
        };
        prop_assert_eq!(record.is_deleted(), !has_value);
    }
}

#[test]
fn each_part_of_the_state_is_compared() {
    let mut stored = Siblings::default();
    stored.put(&write(1, Some(b"a")), actor(1));
    stored.put(&write(2, None), actor(2));
    let state = |siblings: &Siblings| Record::Siblings(siblings.clone());
    let differs = |change: fn(&mut Siblings)| {
        let mut other = stored.clone();
        change(&mut other);
        assert!(!state(&stored).same_state(&state(&other)) && !state(&other).same_state(&state(&stored)), "{other:?}");
    };
    differs(|other| other.seen.advance(&dot(3, 1)));
    differs(|other| other.seen.advance(&dot(1, 2)));
    differs(|other| drop(other.versions.pop()));
    differs(|other| other.versions[0].value = None);
    differs(|other| other.versions[0].time += 1);
    let mut remembers = stored.clone();
    remembers.names.note(Name::dead(id(9), 9));
    assert!(state(&stored).same_state(&state(&remembers)), "what is remembered is no state");

    let register = |stamp, n, value| Record::Register(Register::written(Stamp(stamp), id(n), value));
    let value = || Some(Bytes::from_static(b"a"));
    for other in [register(2, 1, value()), register(1, 2, value()), register(1, 1, None)] {
        assert!(!register(1, 1, value()).same_state(&other));
    }
    assert!(!register(1, 1, value()).same_state(&state(&stored)));
}

/// The writer has seen `before` and its own write, and nothing else of the record that answers it.
#[test]
fn a_writer_claims_its_write_and_nothing_else() {
    let mut record = Siblings::default();
    record.put(&write(1, Some(b"a")), actor(1));
    record.put(&write(2, Some(b"b")), actor(1));
    record.put(&write(3, Some(b"c")), actor(2));
    let shown = |vector: &[(u8, u64)], cloud: &[Dot], ids: &[u8], newest| {
        let entries = vector.iter().map(|(n, at)| (actor(*n), *at)).collect();
        let seen = VersionVector { entries, cloud: cloud.iter().copied().collect() };
        Shown { seen, ids: ids.iter().map(|n| id(*n)).collect(), newest }
    };
    let claims = |before: &Shown, n: u8| record.claims_after(before.clone(), &id(n), u64::from(n));
    let nothing = Shown::default();

    assert_eq!(claims(&nothing, 1), shown(&[(1, 1)], &[], &[1], 1), "its event follows on nothing");
    assert_eq!(claims(&nothing, 2), shown(&[], &[dot(1, 2)], &[2], 2), "its event alone, without the one before");
    let before = shown(&[(1, 1)], &[], &[1], 1);
    assert_eq!(claims(&before, 2), shown(&[(1, 2)], &[], &[2, 1], 2));
    assert_eq!(claims(&before, 3), shown(&[(1, 1), (2, 1)], &[], &[3, 1], 3));
    assert_eq!(claims(&before, 1), before, "claimed once");
    assert_eq!(claims(&shown(&[(1, 5)], &[], &[], 9), 2), shown(&[(1, 5)], &[], &[2], 9), "nothing is taken back");
    let at_the_end = shown(&[(1, u64::MAX)], &[], &[], 0);
    assert_eq!(claims(&at_the_end, 1), shown(&[(1, u64::MAX)], &[], &[1], 1));
    assert_eq!(claims(&nothing, 7), shown(&[], &[], &[7], 7), "it is not in the record");
}

#[test]
fn both_kinds_of_records_forget_what_is_old() {
    let old = CLOCK_SKEW_MICROS + RECENT_MICROS;
    let recent = || Recent { entries: smallvec![(id(2), 8), (id(1), 7)], horizon: 0 };
    let register = Record::Register(Register { recent: recent(), ..Register::written(Stamp(8), id(2), None) });
    let mut siblings = Siblings::default();
    for (id, time) in recent().entries {
        siblings.names.note(Name::dead(id, time));
    }
    let siblings = Record::Siblings(siblings);
    for mut record in [register, siblings] {
        assert!(!record.expire(old + 7), "exactly as old as they may be");
        let before = record.clone();
        assert!(record.expire(old + 8));
        assert!(record != before && record.same_state(&before));
        assert!(!record.expire(old + 8));
    }
}

/// A replica stores what has changed, and the bytes that it was sent if they are what is stored now.
#[test]
fn what_is_absorbed_says_what_has_to_be_stored() {
    let old = CLOCK_SKEW_MICROS + RECENT_MICROS;
    let register = |time| Record::Register(Register::written(Stamp(time), id(time as u8), None));
    let siblings = |n: u8| {
        let mut record = Siblings::default();
        record.put(&write(n, Some(b"v")), actor(n));
        Record::Siblings(record)
    };
    for [stored, other] in [[register(8), register(5)], [siblings(8), siblings(5)]] {
        let absorb = |stored: Option<&Record>, sent: &Record, now| Record::absorb(stored.cloned(), sent, now).unwrap();
        assert_eq!(absorb(None, &other, 0), (other.clone(), Absorbed::AsSent));
        assert_eq!(absorb(Some(&stored), &stored, 0), (stored.clone(), Absorbed::Nothing));
        let (both, absorbed) = absorb(Some(&stored), &other, 0);
        assert!(absorbed == Absorbed::Changed && both != stored);
        assert_eq!(absorb(Some(&both), &other, 0), (both, Absorbed::Nothing));
    }
    // Too old to be remembered: it is not stored as it was sent, and brings nothing.
    let (without, absorbed) = Record::absorb(None, &register(5), old + 6).unwrap();
    assert!(absorbed == Absorbed::Changed && without.same_state(&register(5)) && without != register(5));
    assert_eq!(Record::absorb(Some(without.clone()), &register(5), old + 6), Ok((without, Absorbed::Nothing)));
    assert_eq!(Record::absorb(Some(register(1)), &siblings(1), 0), Err(WrongMode));
}
