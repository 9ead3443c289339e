//! Two records that can be read, of one key: merging them obeys the laws, and everything that comes of it can be read again.

use bytes::Bytes;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::siblings::{Actor, Shown, Siblings, Write, collapse};

use super::record::{shape, signed, sound};
use crate::Seen;

/// An input is the length of the first one (2 bytes, little endian), then a kind and a body twice.
pub(super) fn run(input: &[u8]) -> Seen {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return Seen(0) };
    let (one, other) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    match (signed(one).decode(), signed(other).decode()) {
        (Ok(one), Ok(other)) => pair(&one, &other),
        (one, other) => Seen::of((one.is_ok(), one.err().map(|why| why.0), other.err().map(|why| why.0))),
    }
}

/// The merge of both; `None` for records of different conflict modes.
fn merged(one: &Record, other: &Record) -> Option<Record> {
    let (merged, changed) = Record::merge(Some(one.clone()), other.clone()).ok()?;
    assert_eq!(changed, merged != *one, "it is said wrongly whether {one:?} has changed by {other:?}");
    Some(merged)
}

fn pair(one: &Record, other: &Record) -> Seen {
    let Some(both) = merged(one, other) else {
        assert!(merged(other, one).is_none() && !one.same_state(other));
        return Seen(1);
    };
    sound(&both);
    assert_eq!(merged(other, one).as_ref(), Some(&both), "not commutative: {one:?} {other:?}");
    assert_eq!(merged(one, one).as_ref(), Some(one), "not idempotent");
    for part in [one, other, &both] {
        assert_eq!(merged(&both, part).as_ref(), Some(&both), "not absorbing: {part:?}");
        assert_eq!(merged(part, &both).as_ref(), Some(&both), "not absorbing: {part:?}");
    }
    assert_eq!(one.same_state(other), other.same_state(one));
    if let (Record::Siblings(one), Record::Siblings(other), Record::Siblings(both)) = (one, other, &both) {
        assert!(both.seen.dominates(&one.seen) && both.seen.dominates(&other.seen));
        verdict(both);
        write(one, both);
    }
    Seen::of((shape(one), shape(other), shape(&both)))
}

/// A collapse can be read, has one value, and replaces what it was made of wherever it is merged.
fn verdict(record: &Siblings) {
    let collapsed = collapse(record, Bytes::from_static(b"verdict"));
    readable(&collapsed);
    let values = |record: &Siblings| record.versions.iter().filter(|version| version.value.is_some()).count();
    assert_eq!(values(&collapsed), values(record).min(1));
    assert_eq!(collapsed.seen, record.seen);
    let mut replaced = record.clone();
    replaced.merge(&collapsed);
    assert_eq!(replaced, collapsed, "a verdict does not replace {record:?}");
}

/// A client that has read `shown` writes where `stored` is: what it has read is superseded, and its write is not.
fn write(shown: &Siblings, stored: &Siblings) {
    let store = StoreId([0xee; 16]);
    // The corpus has no such id; an input that was given one is skipped.
    let id = WriteId([0xdd; 16]);
    if stored.knows(&id).is_some() || stored.actor_of(&store).is_some() {
        return;
    }
    let Shown { seen, ids, newest } = shown.context_claims();
    let put = Write { write_id: id, started: 5, again: false, asked: false, seen, ids, newest, value: None };
    let mut written = stored.clone();
    let dot = written.put(&put, Actor { store, birth: 1 });
    readable(&written);
    let gone = |id: &WriteId| !put.ids.contains(id);
    assert!(written.versions.iter().flat_map(|version| version.mints()).all(|(id, _)| gone(&id)));
    assert!(written.versions.iter().any(|version| version.dots.contains(&dot) && version.ids[..] == [id]));
    let mut later = shown.clone();
    later.merge(&written);
    assert!(later.versions.iter().any(|version| version.dots.contains(&dot)));
    readable(&later);
}

fn readable(record: &Siblings) {
    let record = Record::Siblings(record.clone());
    let Encoded(bytes) = record.encode();
    assert_eq!(Encoded(bytes).decode(), Ok(record));
}
