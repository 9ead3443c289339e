//! Bytes as a record: what can be read has no other encoding, and everything that is done with a record works.

use bytes::Bytes;
use witan_kernel::record::{Encoded, Record};
use witan_kernel::siblings::{Shown, Siblings};

use crate::Seen;

/// Ids that the corpus uses, so that an id appears twice.
pub(super) const WORDS: &[&[u8]] = &[&[1; 16], &[2; 16], &[3; 16], &[0x51; 16], &[0, 0, 0], &[1, 1], &[0x80, 0]];

const SIBLINGS: u8 = 2;
/// Codec version, kind, checksum.
const HEADER: usize = 6;
/// Upper bounds of what the codec needs besides values: those by which a store estimates the size of a record before it accepts a write.
const VERSION_BYTES: usize = 128;
const ENTRY_BYTES: usize = 36;
const RECENT_BYTES: usize = 26;

/// A kind and a body under a valid header: a checksum protects from accidents, and chance does not find it.
pub(super) fn signed(kind_and_body: &[u8]) -> Encoded {
    let (kind, body) = kind_and_body.split_first().map_or((SIBLINGS, &[][..]), |(kind, body)| (*kind, body));
    let mut hash = crc32fast::Hasher::new();
    hash.update(&[1, kind]);
    hash.update(body);
    let mut bytes = vec![1, kind];
    bytes.extend_from_slice(&hash.finalize().to_le_bytes());
    bytes.extend_from_slice(body);
    Encoded(bytes.into())
}

/// An input is a kind and a body.
pub(super) fn run(input: &[u8]) -> Seen {
    let _ = Encoded(Bytes::copy_from_slice(input)).decode();
    let encoded = signed(input);
    match encoded.decode() {
        Err(why) => Seen::of(why.to_string()),
        Ok(record) => {
            // V1 may name writes that have versions, which says nothing; they are not kept.
            if matches!(record, Record::Register(_)) {
                assert_eq!(record.encode(), encoded, "the record has another encoding");
            }
            assert_eq!(encoded.check(), Ok(()));
            sound(&record);
            shape(&record)
        }
    }
}

/// Checks what holds of every record that can be read.
pub(super) fn sound(record: &Record) {
    let encoded = record.encode();
    assert_eq!(encoded.decode().as_ref(), Ok(record), "what was written is not what is read");
    assert!(record.same_state(record));
    let abridged = record.clone().abridged();
    assert_eq!(abridged.encode().decode(), Ok(abridged.clone()));
    assert_eq!(abridged.is_deleted(), record.is_deleted());
    let mut expired = record.clone();
    let changed = expired.expire(1 << 50);
    assert_eq!(changed, expired != *record);
    assert!(!expired.expire(1 << 50));
    assert_eq!(expired.encode().decode(), Ok(expired));
    if let Record::Siblings(record) = record {
        assert!(encoded.0.len() <= estimate(record), "{} bytes, and {} estimated", encoded.0.len(), estimate(record));
        context(record);
    }
}

fn estimate(record: &Siblings) -> usize {
    let version = |version: &witan_kernel::siblings::Version| {
        let ids = version.ids.len() * 16;
        VERSION_BYTES + version.dots.len() * ENTRY_BYTES + ids + version.value.as_ref().map_or(0, Bytes::len)
    };
    let lists = record.seen.entries.len() * ENTRY_BYTES
        + (record.names.entries.len() + 2 * record.seen.cloud.len()) * RECENT_BYTES;
    // Header, three counts and the horizon.
    HEADER + 4 * 10 + lists + record.versions.iter().map(version).sum::<usize>()
}

/// A reader is shown what is live, and its context claims all of it.
fn context(record: &Siblings) {
    let Shown { seen, ids, newest: _ } = record.context_claims();
    assert_eq!(seen, record.seen);
    for version in &record.versions {
        assert!(version.mints().all(|(id, dot)| ids.contains(&id) && seen.covers(&dot)));
    }
    let values = record.live_values_deduplicated();
    assert_eq!(values.is_empty(), record.is_deleted());
    assert!(values.iter().enumerate().all(|(at, one)| values[..at].iter().all(|other| other.value != one.value)));
    assert_eq!(record.live().count() == 0, record.versions.is_empty());
}

/// What a record looks like, roughly.
pub(super) fn shape(record: &Record) -> Seen {
    match record {
        Record::Register(register) => {
            let recent = &register.recent;
            Seen::of((
                1,
                register.value.as_ref().map(|value| value.len().min(2)),
                recent.entries.len().min(4),
                recent.horizon > 0,
            ))
        }
        Record::Siblings(siblings) => {
            let most = |of: fn(&witan_kernel::siblings::Version) -> usize| {
                siblings.versions.iter().map(of).max().unwrap_or(0).min(3)
            };
            let values = siblings.versions.iter().filter(|version| version.value.is_some()).count().min(3);
            let recent = (siblings.names.entries.len().min(3), siblings.seen.cloud.len().min(2));
            let lists = (siblings.seen.entries.len().min(4), siblings.versions.len().min(4), values, recent);
            Seen::of((2, lists, most(|version| version.dots.len()), most(|version| version.ids.len())))
        }
    }
}
