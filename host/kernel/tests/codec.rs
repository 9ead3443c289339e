//! The record's encoding: bytes of V1, which must always stay readable, and bytes that are not a record.

#[path = "codec/canonical.rs"]
mod canonical;

use bytes::Bytes;
use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::Index;
use smallvec::smallvec;
use witan_kernel::name::{StoreId, WriteId};
use witan_kernel::recent::Recent;
use witan_kernel::record::{Encoded, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::siblings::{Actor, Dot, Name, Names, Siblings, Version, VersionVector};

const TIME: u64 = 1_700_000_000_000_000;

/// Written by hand from the format's description, not by the code under test.
const REGISTER_V1: &str = "01012ca5fbba8080f9c0c1c48203a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a10676616c7565f7fff8c0c1c4820302a1a1a1a1a1a1a1\
    a1a1a1a1a1a1a1a1a18080f9c0c1c48203b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b207";
const TOMBSTONE_V1: &str = "0101791f8dc0ac020303030303030303030303030303030300000103030303030303030303030303030303ac02";
const SIBLINGS_V1: &str = "0102bee9495602515151515151515151515151515151510103525252525252525252525252525252\
    52ac020102020102020102010101010101010101010101010101010202020202020202020202020202020201008080f9c0c1c482030101\
    010301030303030303030303030303030303038580f9c0c1c48203000003030303030303030303030303030303038580f9c0c1c4820302\
    020202020202020202020202020202050101010101010101010101010101010100";
/// The same, and one write that it supersedes.
const SUPERSEDED_V1: &str = "0102dcacdc170251515151515151515151515151515151010352525252525252525252525252525252ac0201020201020201\
    02010101010101010101010101010101010202020202020202020202020202020201008080f9c0c1c4820301010103010303\
    03030303030303030303030303038580f9c0c1c482030007010909090909090909090909090909090905";
/// V2: the first, a superseded write, two pinned ones, and an event beyond the vector.
const SIBLINGS_V2: &str = "02029faab1ad0251515151515151515151515151515151010352525252525252525252525252525252ac0201020201020201\
    02010101010101010101010101010101010202020202020202020202020202020201008080f9c0c1c4820301010103010303\
    03030303030303030303030303038580f9c0c1c4820300010109090909090909090909090909090909050208080808080808\
    080808080808080808090007070707070707070707070707070707020101515151515151515151515151515151510109";

fn unhex(text: &str) -> Encoded {
    let digits: Vec<u8> = text.bytes().map(|digit| (digit as char).to_digit(16).expect("a hex digit") as u8).collect();
    Encoded(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>().into())
}

fn id(n: u8) -> WriteId {
    WriteId([n; 16])
}

fn register() -> Record {
    Record::Register(Register {
        stamp: Stamp(TIME),
        write_id: id(0xa1),
        value: Some(Bytes::from_static(b"value")),
        recent: Recent { entries: smallvec![(id(0xa1), TIME), (id(0xb2), TIME - 7)], horizon: TIME - 9 },
    })
}

fn siblings() -> Record {
    let actor = |store: u8, birth: u64| Actor { store: StoreId([store; 16]), birth };
    let dot = |store: u8, birth: u64, counter: u64| Dot { actor: actor(store, birth), counter };
    Record::Siblings(Siblings {
        seen: VersionVector {
            entries: smallvec![(actor(0x51, 1), 3), (actor(0x52, 300), 1)],
            ..VersionVector::default()
        },
        versions: vec![
            Version {
                dots: smallvec![dot(0x51, 1, 2), dot(0x52, 300, 1)],
                minted_for: smallvec![1, 0],
                ids: smallvec![id(1), id(2)],
                time: TIME,
                value: Some(Bytes::new()),
            },
            Version {
                dots: smallvec![dot(0x51, 1, 3)],
                minted_for: smallvec![0],
                ids: smallvec![id(3)],
                time: TIME + 5,
                value: None,
            },
        ],
        // V1 remembers writes that have a version, too; they are not superseded.
        names: Names::default(),
    })
}

#[test]
fn bytes_of_v1_are_read_for_ever() {
    let tombstone = Record::Register(Register::written(Stamp(300), id(3), None));
    for (bytes, record) in [(REGISTER_V1, register()), (TOMBSTONE_V1, tombstone), (SIBLINGS_V1, siblings())] {
        assert_eq!(unhex(bytes).decode().as_ref(), Ok(&record));
        assert_eq!(unhex(bytes).check(), Ok(()));
    }
    // V1 is written where it has room.
    for bytes in [REGISTER_V1, TOMBSTONE_V1, SUPERSEDED_V1] {
        assert_eq!(unhex(bytes).decode().expect("V1").encode(), unhex(bytes));
    }
}

#[test]
fn bytes_of_v2_are_read_for_ever() {
    let Record::Siblings(mut record) = siblings() else { panic!("siblings") };
    let actor = Actor { store: StoreId([0x51; 16]), birth: 1 };
    record.names.horizon = 1;
    for name in [Name::dead(id(9), 5), Name::pinned(id(8), 9), Name { pinned: true, ..Name::dead(id(7), 7) }] {
        record.names.note(name);
    }
    record.seen.add(&Dot { actor, counter: 9 });
    let record = Record::Siblings(record);
    assert_eq!(unhex(SIBLINGS_V2).decode().as_ref(), Ok(&record));
    assert_eq!(record.encode(), unhex(SIBLINGS_V2));
}

/// Kinds and bodies that replicas, and coordinators that collapse, have stored: from random histories, one of each shape.
#[test]
fn what_replicas_have_stored_is_read_for_ever() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/corpus/record");
    let files = std::fs::read_dir(folder).expect("the corpus of records").map(|file| file.expect("a file").path());
    let stored: Vec<_> = files
        .filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("stored-")))
        .collect();
    for file in &stored {
        let bytes = std::fs::read(file).expect("a file of the corpus");
        let encoded = signed(bytes[0], &bytes[1..]);
        let record = encoded.decode().unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        match &record {
            Record::Register(_) => assert_eq!(record.encode(), encoded, "{}", file.display()),
            // A name whose write has a version is not kept: the version says the same.
            Record::Siblings(_) => assert_eq!(record.encode().decode(), Ok(record), "{}", file.display()),
        }
    }
    assert!(stored.len() > 100, "{} files in {folder}", stored.len());
}

#[test]
fn values_share_the_record_s_bytes() {
    let encoded = register().encode();
    let Ok(Record::Register(Register { value: Some(value), .. })) = encoded.decode() else { panic!("a register") };
    assert!(encoded.0.as_ptr_range().contains(&value.as_ptr()));
}

#[test]
fn what_is_unknown_says_so() {
    let says = |bytes: Vec<u8>| Encoded(bytes.into()).decode().unwrap_err().to_string();
    assert!(says(vec![]).contains("header"));
    assert!(says(vec![3; 40]).contains("version"));
    assert!(says(vec![1, 9, 0, 0, 0, 0]).contains("kind"));
    assert!(says(vec![1, 1, 0, 0, 0, 0, 7]).contains("checksum"));
}

#[test]
fn an_event_that_was_not_seen_is_refused() {
    let Record::Siblings(mut record) = siblings() else { panic!("siblings") };
    record.seen = VersionVector::default();
    let refused = Record::Siblings(record).encode().decode().unwrap_err().to_string();
    assert!(refused.contains("not seen"), "{refused}");
}

/// `body` under a valid header: the checksum protects from accidents, not from a hostile writer.
fn signed(kind: u8, body: &[u8]) -> Encoded {
    signed_as(1, kind, body)
}

fn signed_as(version: u8, kind: u8, body: &[u8]) -> Encoded {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&[version, kind]);
    hash.update(body);
    let mut bytes = vec![version, kind];
    bytes.extend_from_slice(&hash.finalize().to_le_bytes());
    bytes.extend_from_slice(body);
    Encoded(bytes.into())
}

fn recents() -> impl Strategy<Value = Recent> {
    (prop::collection::vec(any::<([u8; 16], u64)>(), 0..70), any::<u64>()).prop_map(|(entries, horizon)| {
        let mut recent = Recent { horizon, ..Recent::default() };
        for (id, time) in entries {
            recent.remember(WriteId(id), time);
        }
        recent
    })
}

fn values() -> impl Strategy<Value = Option<Bytes>> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from))
}

fn versions() -> impl Strategy<Value = Version> {
    let dots = prop::collection::btree_set((0..4u8, 0..3u64, any::<u64>()), 1..4);
    let ids = prop::collection::btree_set(any::<[u8; 16]>(), 1..4);
    (dots, ids, any::<u64>(), values()).prop_map(|(dots, ids, time, value)| Version {
        minted_for: (0..dots.len()).map(|place| (place % ids.len()) as u32).collect(),
        dots: dots
            .into_iter()
            .map(|(store, birth, counter)| Dot { actor: Actor { store: StoreId([store; 16]), birth }, counter })
            .collect(),
        // A deletion is of one write.
        value: if ids.len() > 1 { value.or(Some(Bytes::new())) } else { value },
        ids: ids.into_iter().map(WriteId).collect(),
        time,
    })
}

fn names() -> impl Strategy<Value = Names> {
    let name = (any::<[u8; 16]>(), any::<u64>(), any::<bool>(), 0..3u8).prop_map(|(id, time, dead, pin)| {
        let (pinned, released) = (pin == 1, pin == 2);
        Name { id: WriteId(id), time, dead: dead || pin == 0, pinned, released }
    });
    (prop::collection::vec(name, 0..70), any::<u64>()).prop_map(|(names, horizon)| {
        let mut out = Names { horizon, ..Names::default() };
        for name in names {
            out.note(name);
        }
        out
    })
}

fn records() -> impl Strategy<Value = Record> {
    let registers = (any::<u64>(), any::<[u8; 16]>(), values(), recents()).prop_map(|(stamp, id, value, recent)| {
        Record::Register(Register { stamp: Stamp(stamp), write_id: WriteId(id), value, recent })
    });
    let siblings = (prop::collection::vec(versions(), 0..6), names()).prop_map(|(versions, names)| {
        let mut record = Siblings { versions, names, ..Siblings::default() };
        record.versions.sort_by(|a, b| (&a.dots, &a.ids).cmp(&(&b.dots, &b.ids)));
        for dot in record.versions.iter().flat_map(|version| &version.dots) {
            if dot.counter % 3 == 0 {
                record.seen.advance(dot);
            } else {
                record.seen.add(dot);
            }
        }
        Record::Siblings(record)
    });
    prop_oneof![registers, siblings]
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in records()) {
        let encoded = record.encode();
        prop_assert_eq!(encoded.check(), Ok(()));
        prop_assert_eq!(encoded.decode(), Ok(record));
    }

    #[test]
    fn damage_is_noticed(record in records(), at: Index, bit in 0..8u8) {
        let encoded = record.encode();
        let at = at.index(encoded.0.len());
        let mut altered = encoded.0.to_vec();
        altered[at] ^= 1 << bit;
        prop_assert!(Encoded(altered.into()).check().is_err());
        prop_assert!(Encoded(encoded.0.slice(..at)).check().is_err());
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4u8) {
        let _ = Encoded(bytes.clone().into()).decode();
        // What can be read has no other encoding, and can be merged and written again.
        if let Ok(record) = signed(kind, &bytes).decode() {
            prop_assert_eq!(record.encode(), signed(kind, &bytes));
            let (merged, _) = Record::merge(Some(record.clone()), record).expect("one mode");
            prop_assert!(merged.encode().decode().is_ok());
        }
    }

    #[test]
    fn altered_bodies_never_panic(record in records(), changes in prop::collection::vec(any::<(Index, u8)>(), 1..4), other in records()) {
        let encoded = record.encode();
        let mut body = encoded.0[6..].to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let altered = signed(encoded.0[1], &body);
        if let Ok(hostile) = altered.decode() {
            prop_assert_eq!(hostile.encode(), altered);
            if let Ok((merged, _)) = Record::merge(Some(other), hostile) {
                prop_assert_eq!(merged.encode().decode(), Ok(merged));
            }
        }
    }
}

/// Each list's length is held against the least that its items need, before they are read: what is one item too long is refused as such.
#[test]
fn a_length_is_held_against_what_is_left() {
    let says = |kind: u8, body: &[u8]| signed(kind, body).decode().unwrap_err().to_string();
    let register = [&[7][..], &[1; 16], &[0, 0]].concat();
    // `recent`: an id and a time, 17 bytes.
    assert!(signed(1, &[&register[..], &[1], &[1; 16], &[5]].concat()).decode().is_ok());
    assert!(says(1, &[&register[..], &[2], &[1; 16], &[5; 17]].concat()).contains("a list is cut off"));
    let seen = [&[1][..], &[1; 16], &[1, 9]].concat();
    // A version: one dot, one id, a time, no value, 22 bytes; then an empty `recent`.
    let version = [&[1, 1, 5, 1][..], &[1; 16], &[7, 0]].concat();
    assert!(signed(2, &[&seen[..], &[1], &version, &[0, 0]].concat()).decode().is_ok());
    assert!(says(2, &[&seen[..], &[2], &version, &[0; 21]].concat()).contains("a list is cut off"));
    // Dots of two bytes, ids of sixteen.
    assert!(says(2, &[&seen[..], &[1, 12], &version[1..], &[0, 0]].concat()).contains("a list is cut off"));
    assert!(says(2, &[&seen[..], &[1, 1, 1, 5, 2], &[1; 16], &[0; 15]].concat()).contains("a list is cut off"));
    // V2: a pinned name takes an id, a time and marks, 18 bytes; a single event a store, a birth and a counter, as many.
    let v2 = |rest: &[u8]| signed_as(2, 2, &[&[0; 4][..], rest].concat()).decode();
    let (name, event) = ([&[9; 16][..], &[5, 0]].concat(), [&[9; 16][..], &[1, 5]].concat());
    assert!(v2(&[&[1][..], &name, &[0]].concat()).is_ok() && v2(&[&[0, 1][..], &event].concat()).is_ok());
    for rest in [[&[2][..], &name, &[0; 17]].concat(), [&[0, 2][..], &event, &[0; 17]].concat()] {
        assert!(v2(&rest).unwrap_err().to_string().contains("a list is cut off"));
    }
    // A value as long as what is left, less `recent`; and one byte longer than all of it.
    assert!(signed(1, &[&[7][..], &[1; 16], &[4], b"abc", &[0, 0]].concat()).decode().is_ok());
    assert!(says(1, &[&[7][..], &[1; 16], &[7], b"abc", &[0, 0]].concat()).contains("cut off"));
}

/// Lengths that the bytes cannot hold must be refused before allocating: these would allocate gigabytes.
#[test]
fn promised_lengths_are_not_believed() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0x7f];
    let mut register = vec![7];
    register.extend_from_slice(&[0; 16]);
    for body in [[&register[..], &huge].concat(), [&register[..], &[0, 0], &huge].concat()] {
        assert!(signed(1, &body).decode().is_err());
    }
    for prefix in [&[][..], &[0], &[0, 1], &[0, 1, 1, 1, 1]] {
        assert!(signed(2, &[prefix, &huge, &[0; 64]].concat()).decode().is_err());
    }
}
