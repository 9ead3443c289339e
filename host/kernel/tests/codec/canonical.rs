//! One encoding per record: what the encoder would not have written is refused, and says why. Whatever a replica may store is accepted.

use bytes::Bytes;
use witan_kernel::limit::RECENT_ENTRIES;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::record::Record;
use witan_kernel::siblings::{Actor, Siblings, VersionVector, Write, collapse};

use super::{signed, signed_as};

/// A number as bytes of a body.
fn number(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A list of parts after its length.
fn list(parts: &[Vec<u8>]) -> Vec<u8> {
    [number(parts.len() as u64), parts.concat()].concat()
}

fn id(n: u8) -> Vec<u8> {
    vec![n; 16]
}

/// An entry of `seen`: the actor of store `n` with birth 1, and its counter.
fn seen(n: u8, counter: u64) -> Vec<u8> {
    [id(n), number(1), number(counter)].concat()
}

/// A dot by its actor's place in `seen`, counted from 1.
fn dot(place: u64, counter: u64) -> Vec<u8> {
    [number(place), number(counter)].concat()
}

/// A version at time 7 with an empty value.
fn version(dots: &[Vec<u8>], ids: &[Vec<u8>], minted_for: &[u64]) -> Vec<u8> {
    [list(dots), list(ids), minted_for.iter().flat_map(|place| number(*place)).collect(), number(7), number(1)].concat()
}

/// One write, one dot.
fn single(place: u64, counter: u64, write: u8) -> Vec<u8> {
    version(&[dot(place, counter)], &[id(write)], &[])
}

fn siblings(seen: &[Vec<u8>], versions: &[Vec<u8>]) -> Vec<u8> {
    [list(seen), list(versions), recent(&[])].concat()
}

/// `recent` with horizon 0: ids, each with the difference of its time to the one before it.
fn recent(entries: &[(u8, u64)]) -> Vec<u8> {
    let entries: Vec<Vec<u8>> = entries.iter().map(|(write, time)| [id(*write), number(*time)].concat()).collect();
    [number(0), list(&entries)].concat()
}

/// A register at stamp 7 without a value.
fn register(recent: &[u8]) -> Vec<u8> {
    [&number(7), &id(1), &number(0), recent].concat()
}

fn hostile_registers() -> Vec<(&'static str, Vec<u8>)> {
    let entries: Vec<(u8, u64)> = (0..=RECENT_ENTRIES as u8).map(|n| (n, u64::from(n == 0) * 99)).collect();
    let many: Vec<(u8, u64)> = entries.iter().rev().map(|(n, _)| (*n, u64::from(*n == 64) * 99)).collect();
    vec![
        ("a number in more bytes than it needs", [&[0x87, 0][..], &register(&recent(&[]))[1..]].concat()),
        ("a number in more bytes than it needs", [&register(&[])[..], &[0x80, 0, 0]].concat()),
        ("a number in more bytes than it needs", [&number(7)[..], &id(1), &[0x80, 0], &recent(&[])].concat()),
        ("bytes after its end", [register(&recent(&[])), vec![0]].concat()),
        ("a write is remembered twice", register(&recent(&[(1, 9), (2, 1), (1, 1)]))),
        ("a write is remembered twice", register(&recent(&[(1, 9), (1, 1)]))),
        ("out of order", register(&recent(&[(1, 9), (2, 0)]))),
        ("out of order", register(&recent(&[(1, 9), (1, 0)]))),
        ("a time below zero", register(&recent(&[(1, 9), (2, 10)]))),
        ("too many remembered writes", register(&recent(&many))),
    ]
}

/// A sibling of what a list of dots, ids, versions or actors may look like.
fn hostile_siblings() -> Vec<(&'static str, Vec<u8>)> {
    let one = &[seen(1, 9)][..];
    let two = &[seen(1, 9), seen(2, 9)][..];
    let inline = [number(0), id(1), number(1), number(5)].concat();
    let unseen = [number(0), id(3), number(1), number(5)].concat();
    vec![
        ("an actor without events", siblings(&[seen(1, 0)], &[])),
        ("an actor without events", siblings(&[seen(1, 9), seen(2, 0)], &[single(1, 5, 1)])),
        ("out of order", siblings(&[seen(1, 9), seen(1, 9)], &[])),
        ("out of order", siblings(&[seen(2, 9), seen(1, 9)], &[])),
        ("out of order", siblings(one, &[version(&[dot(1, 5), dot(1, 5)], &[id(1)], &[])])),
        ("out of order", siblings(two, &[version(&[dot(2, 5), dot(1, 5)], &[id(1)], &[])])),
        ("out of order", siblings(one, &[version(&[dot(1, 5)], &[id(1), id(1)], &[0])])),
        ("out of order", siblings(one, &[version(&[dot(1, 5)], &[id(2), id(1)], &[0])])),
        ("out of order", siblings(one, &[single(1, 5, 1), single(1, 5, 1)])),
        ("out of order", siblings(one, &[single(1, 6, 1), single(1, 5, 2)])),
        ("event 0", siblings(one, &[single(1, 0, 1)])),
        ("an event that was not seen", siblings(one, &[single(1, 10, 1)])),
        ("an event that was not seen", siblings(one, &[version(&[unseen], &[id(1)], &[])])),
        ("an actor that is not there", siblings(one, &[single(2, 5, 1)])),
        ("an actor that has a place", siblings(one, &[version(&[inline], &[id(1)], &[])])),
        ("a write that is not there", siblings(one, &[version(&[dot(1, 5)], &[id(1), id(2)], &[2])])),
        ("a version without events or writes", siblings(one, &[version(&[], &[id(1)], &[])])),
        ("a write that is not there", siblings(one, &[version(&[dot(1, 5)], &[], &[0; 17])])),
        (
            "a deletion of several writes",
            siblings(one, &[[list(&[dot(1, 5)]), list(&[id(1), id(2)]), vec![0, 7, 0]].concat()]),
        ),
        ("an event of two writes", siblings(one, &[single(1, 5, 1), single(1, 5, 2)])),
        (
            "an event of two writes",
            siblings(two, &[single(1, 5, 1), version(&[dot(1, 5), dot(2, 4)], &[id(2), id(3)], &[0, 1])]),
        ),
        ("two versions of the same writes", siblings(one, &[single(1, 5, 1), single(1, 6, 1)])),
        (
            "two versions of the same writes",
            siblings(one, &[single(1, 4, 1), single(1, 5, 2), single(1, 6, 2), single(1, 7, 3)]),
        ),
        (
            "a version within another one",
            siblings(
                one,
                &[single(1, 4, 1), single(1, 5, 2), version(&[dot(1, 5), dot(1, 6)], &[id(2), id(3)], &[0, 1])],
            ),
        ),
        (
            "a version within another one",
            siblings(one, &[single(1, 5, 1), version(&[dot(1, 5), dot(1, 6)], &[id(1), id(2)], &[0, 1])]),
        ),
        (
            "a version without an event of its writes",
            siblings(
                one,
                &[
                    version(&[dot(1, 5)], &[id(1), id(2)], &[0]),
                    version(&[dot(1, 6), dot(1, 7)], &[id(2), id(3)], &[0, 1]),
                ],
            ),
        ),
        ("a number in more bytes than it needs", [&[0x80, 0, 0][..], &recent(&[])].concat()),
        ("bytes after its end", [siblings(&[], &[]), vec![0]].concat()),
    ]
}

/// A body of V2: a vector, versions, superseded names as in `recent`, pinned names with differences of times and marks, single events.
fn second(
    actors: &[Vec<u8>],
    versions: &[Vec<u8>],
    loose: &[(u8, u64)],
    pinned: &[(u8, u64, u64)],
    cloud: &[(u8, u64)],
) -> Vec<u8> {
    let pinned: Vec<_> =
        pinned.iter().map(|(n, time, marks)| [id(*n), number(*time), number(*marks)].concat()).collect();
    let cloud: Vec<_> = cloud.iter().map(|(n, counter)| seen(*n, *counter)).collect();
    [list(actors), list(versions), recent(loose), list(&pinned), list(&cloud)].concat()
}

fn hostile_second_versions() -> Vec<(&'static str, Vec<u8>)> {
    let one = &[seen(1, 9)][..];
    vec![
        ("has nothing that its codec version is for", second(one, &[], &[(1, 9)], &[], &[])),
        ("an event that belongs into the vector", second(one, &[], &[], &[], &[(1, 9)])),
        ("an event that belongs into the vector", second(one, &[], &[], &[], &[(1, 10)])),
        ("an event that belongs into the vector", second(one, &[], &[], &[], &[(2, 1)])),
        ("out of order", second(one, &[], &[], &[], &[(1, 11), (1, 11)])),
        ("out of order", second(one, &[], &[], &[], &[(2, 5), (1, 11)])),
        ("out of order", second(one, &[], &[], &[(1, 9, 0), (1, 0, 0)], &[])),
        ("out of order", second(one, &[], &[], &[(1, 9, 0), (2, 0, 0)], &[])),
        ("a time below zero", second(one, &[], &[], &[(1, 9, 0), (2, 10, 0)], &[])),
        ("an unknown mark of a name", second(one, &[], &[], &[(1, 9, 4)], &[])),
        ("a write has two names", second(one, &[], &[], &[(1, 9, 0), (1, 1, 0)], &[])),
        ("a write has two names", second(one, &[], &[(1, 9)], &[(1, 9, 1)], &[])),
        ("a superseded write has a version", second(one, &[single(1, 5, 1)], &[], &[(1, 9, 1)], &[])),
        ("a superseded write has a version", second(one, &[single(1, 5, 1)], &[(1, 9)], &[(2, 9, 0)], &[])),
        ("bytes after its end", [second(one, &[], &[], &[(1, 9, 0)], &[]), vec![0]].concat()),
    ]
}

#[test]
fn what_the_second_version_is_for_is_accepted() {
    let one = &[seen(1, 9)][..];
    for body in [
        second(one, &[], &[], &[], &[(1, 11), (1, 13), (2, 2)]),
        second(one, &[single(1, 5, 1)], &[(3, 9)], &[(1, 9, 0)], &[]),
        second(one, &[], &[(3, 9), (2, 0)], &[(4, 9, 1), (1, 0, 2)], &[(2, 2)]),
    ] {
        let encoded = signed_as(2, 2, &body);
        assert_eq!(encoded.decode().map(|record| record.encode()), Ok(encoded));
    }
}

#[test]
fn what_is_not_canonical_is_refused_and_says_why() {
    let mut wrong = Vec::new();
    let registers = hostile_registers().into_iter().map(|it| (1, 1, it));
    let siblings = hostile_siblings().into_iter().map(|it| (1, 2, it));
    let second = hostile_second_versions().into_iter().map(|it| (2, 2, it));
    for (at, (version, kind, (why, body))) in registers.chain(siblings).chain(second).enumerate() {
        match signed_as(version, kind, &body).decode() {
            Ok(record) => wrong.push(format!("{at} ({why}): accepted as {record:?}")),
            Err(error) if !error.to_string().contains(why) => wrong.push(format!("{at} ({why}): {error}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ids_may_begin_alike() {
    let mut entries = recent(&[(1, 9), (1, 1)]);
    *entries.last_mut().expect("a time") = 1;
    let last = entries.len() - 2;
    entries[last] = 0;
    let record = signed(1, &register(&entries)).decode().expect("two ids that differ in their last byte");
    let Record::Register(register) = record else { panic!("a register") };
    assert_eq!(register.recent.entries.len(), 2);
}

/// A record with one sibling for each of these writes, each minted at a store of its own.
fn written(writes: &[u8]) -> Siblings {
    let mut record = Siblings::default();
    for n in writes {
        let put = Write {
            asked: false,
            newest: 0,
            write_id: WriteId([*n; 16]),
            started: u64::from(*n),
            again: false,
            seen: VersionVector::default(),
            ids: Vec::new(),
            value: Some(Bytes::copy_from_slice(&[*n])),
        };
        record.put(&put, Actor { store: StoreId([*n; 16]), birth: 1 });
    }
    record
}

/// Two coordinators collapse different siblings: both verdicts contain the second write, and its event. Replicas have stored such records
/// since there are collapses.
#[test]
fn verdicts_that_share_a_write_are_canonical() {
    let verdict = |writes, value| collapse(&written(writes), Bytes::from_static(value));
    let mut both = verdict(&[1, 2], b"first");
    both.merge(&verdict(&[2, 3], b"second"));
    assert_eq!(both.versions.len(), 2);
    assert!(both.versions.iter().all(|version| version.dots.len() == 2));
    let both = Record::Siblings(both);
    assert_eq!(both.encode().decode(), Ok(both));
}
