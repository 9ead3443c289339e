//! An oracle of its own: what replicas have stored, read from the bytes on their disks and compared field by field.
//!
//! Nothing here calls the code under test: neither its decoder, nor its merge, nor what it calls the same state. So a mistake in one of
//! those cannot hide itself from the checks of convergence and contents. The format is that of `host/kernel/record/codec.rs`,
//! `codec2.rs` beside it and `host/node/row.rs`, written down a second time.

mod bytes;

use std::collections::BTreeSet;

use self::bytes::Reader;

/// The content of a replica's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Register {
        stamp: u64,
        write: [u8; 16],
        value: Option<Vec<u8>>,
    },
    /// `seen`: all events of an actor up to a number; `single`: events beyond that.
    Siblings {
        seen: BTreeSet<Event>,
        single: BTreeSet<Event>,
        versions: BTreeSet<Version>,
    },
}

/// An actor, which is a store and a birth, and the number of its events, or of one of them.
type Event = ([u8; 16], u64, u64);

/// A value of a record of siblings, and what it comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// The events under which each write was minted.
    mints: BTreeSet<(Event, [u8; 16])>,
    /// The writes that the value was made of.
    writes: BTreeSet<[u8; 16]>,
    time: u64,
    value: Option<Vec<u8>>,
}

impl Content {
    /// The live values: all that a reader may be shown.
    pub(crate) fn values(&self) -> Vec<&[u8]> {
        match self {
            Self::Register { value, .. } => value.iter().map(Vec::as_slice).collect(),
            Self::Siblings { versions, .. } => versions.iter().filter_map(|version| version.value.as_deref()).collect(),
        }
    }

    /// A flaw that no sequence of writes, merges and collapses explains.
    pub(crate) fn flaw(&self) -> Option<String> {
        let Self::Siblings { seen, single, versions } = self else { return None };
        let counted = |event: &Event| {
            let up_to = |(store, birth, count): &Event| (store, birth) == (&event.0, &event.1) && event.2 <= *count;
            single.contains(event) || seen.iter().any(up_to)
        };
        for version in versions {
            for (event, write) in &version.mints {
                if !counted(event) {
                    return Some(format!("event {event:?} has a version and has not been seen"));
                }
                if !version.writes.contains(write) {
                    return Some(format!("event {event:?} is of a write that its version is not made of"));
                }
            }
        }
        None
    }
}

/// The key of a row.
pub(crate) fn row(token: u64, tenant: &[u8], key: &[u8]) -> Vec<u8> {
    let length = u16::try_from(tenant.len()).expect("tenants have 256 bytes at most");
    [&token.to_be_bytes()[..], &length.to_be_bytes(), tenant, key].concat()
}

/// Reads the value of a row.
///
/// # Errors
/// It does not have the format.
pub(crate) fn read(row: &[u8]) -> Result<Content, String> {
    let mut bytes = Reader::new(row);
    if bytes.byte()? != 1 {
        return Err("an envelope that the oracle does not know".to_owned());
    }
    // The checksum and the birth.
    bytes.skip(4 + 8)?;
    let (codec, kind) = (bytes.byte()?, bytes.byte()?);
    if codec != 1 && (codec, kind) != (2, 2) {
        return Err(format!("a record of codec {codec} and kind {kind}, which the oracle does not know"));
    }
    bytes.skip(4)?;
    let mut content = match kind {
        1 => Content::Register { stamp: bytes.number()?, write: bytes.id()?, value: bytes.value()? },
        2 => siblings(&mut bytes)?,
        kind => return Err(format!("a record of kind {kind}")),
    };
    recent(&mut bytes)?;
    if let (2, Content::Siblings { single, .. }) = (codec, &mut content) {
        pinned(&mut bytes)?;
        *single = events(&mut bytes)?;
    }
    bytes.end()?;
    Ok(content)
}

fn siblings(bytes: &mut Reader<'_>) -> Result<Content, String> {
    let mut actors = Vec::new();
    for _ in 0..bytes.number()? {
        actors.push((bytes.id()?, bytes.number()?, bytes.number()?));
    }
    let mut versions = BTreeSet::new();
    let count = bytes.number()?;
    for _ in 0..count {
        let mut events: Vec<Event> = Vec::new();
        for _ in 0..bytes.number()? {
            let (store, birth) = match bytes.number()? {
                0 => (bytes.id()?, bytes.number()?),
                place => {
                    actors.get(place as usize - 1).map(|(store, birth, _)| (*store, *birth)).ok_or("no such actor")?
                }
            };
            events.push((store, birth, bytes.number()?));
        }
        let mut writes = Vec::new();
        for _ in 0..bytes.number()? {
            writes.push(bytes.id()?);
        }
        let mut mints = BTreeSet::new();
        for event in &events {
            let place = if writes.len() > 1 { bytes.number()? as usize } else { 0 };
            mints.insert((*event, *writes.get(place).ok_or("no such write")?));
        }
        let (time, value) = (bytes.number()?, bytes.value()?);
        versions.insert(Version { mints, writes: writes.into_iter().collect(), time, value });
    }
    if versions.len() as u64 != count {
        return Err("a version is there twice".to_owned());
    }
    Ok(Content::Siblings { seen: actors.into_iter().collect(), single: BTreeSet::new(), versions })
}

/// What a record remembers of writes may differ between replicas.
fn recent(bytes: &mut Reader<'_>) -> Result<(), String> {
    bytes.number()?;
    for _ in 0..bytes.number()? {
        bytes.id()?;
        bytes.number()?;
    }
    Ok(())
}

/// The same for names that are or were pinned.
fn pinned(bytes: &mut Reader<'_>) -> Result<(), String> {
    for _ in 0..bytes.number()? {
        bytes.id()?;
        bytes.number()?;
        bytes.number()?;
    }
    Ok(())
}

fn events(bytes: &mut Reader<'_>) -> Result<BTreeSet<Event>, String> {
    (0..bytes.number()?).map(|_| Ok((bytes.id()?, bytes.number()?, bytes.number()?))).collect()
}

/// Describes how the replicas of a key differ; `None` if they do not.
pub(crate) fn differs(stored: &[(String, Option<Content>)]) -> Option<String> {
    let (_, first) = stored.first()?;
    let other = stored.iter().find(|(_, content)| content != first)?;
    Some(format!("{:?} and {:?}", stored[0], other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::bytes::{Bytes, BytesMut};
    use witan_kernel::name::{StoreId, WriteId};
    use witan_kernel::record::Record;
    use witan_kernel::register::{Register, Stamp};
    use witan_kernel::siblings::{Actor, Siblings, VersionVector, Write, collapse};

    fn stored(record: &Record) -> Content {
        let mut row = BytesMut::new();
        witan_node::row::put_envelope(b"row", 7, &record.encode(), &mut row);
        read(&row).expect("has the format")
    }

    fn write(id: u8) -> Write {
        Write {
            write_id: WriteId([id; 16]),
            started: u64::from(id),
            again: false,
            asked: false,
            newest: 0,
            seen: VersionVector::default(),
            ids: Vec::new(),
            value: Some(Bytes::copy_from_slice(&[id])),
        }
    }

    #[test]
    fn reads_what_replicas_store() {
        let register = Register::written(Stamp(300), WriteId([9; 16]), Some(Bytes::from_static(b"12")));
        let content = Content::Register { stamp: 300, write: [9; 16], value: Some(b"12".to_vec()) };
        assert_eq!(stored(&Record::Register(register)), content);

        let mut siblings = Siblings::default();
        for (id, store) in [(1, 1), (2, 1), (3, 2)] {
            siblings.put(&write(id), Actor { store: StoreId([store; 16]), birth: 5 });
        }
        let content = stored(&Record::Siblings(siblings.clone()));
        assert_eq!(content.values(), [&[1][..], &[2], &[3]]);
        assert_eq!(content.flaw(), None);
        let Content::Siblings { seen, .. } = &content else { panic!("siblings") };
        assert_eq!(seen, &BTreeSet::from([([1; 16], 5, 2), ([2; 16], 5, 1)]));

        let one = stored(&Record::Siblings(collapse(&siblings, Bytes::from_static(b"all"))));
        assert_eq!((one.values(), one.flaw()), (vec![&b"all"[..]], None));
        assert!(differs(&[("a".into(), Some(one.clone())), ("b".into(), Some(one.clone()))]).is_none());
        assert!(differs(&[("a".into(), Some(one.clone())), ("b".into(), Some(content))]).is_some());
        assert!(differs(&[("a".into(), Some(one)), ("b".into(), None)]).is_some());
    }

    #[test]
    fn what_does_not_have_the_format_is_refused() {
        let mut row = BytesMut::new();
        let record = Record::Register(Register::written(Stamp(1), WriteId([1; 16]), None));
        witan_node::row::put_envelope(b"row", 7, &record.encode(), &mut row);
        assert!(read(&row).is_ok());
        for end in 0..row.len() {
            assert!(read(&row[..end]).is_err(), "cut at {end}");
        }
        row.extend_from_slice(b"x");
        assert!(read(&row).is_err());
    }
}
