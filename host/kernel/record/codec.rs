//! The record's byte format, and the chain of its versions.
//!
//! V1: `version: u8 = 1`, `kind: u8`, `checksum: u32 LE` (CRC-32 of version, kind and body), body. Integers in a body are
//! LEB128 varints, ids sixteen raw bytes, lists preceded by their length. A value or tombstone is `0`, or its length + 1
//! and its bytes. A newer version gets its own reader and every older reader stays, so that old disks stay readable.
//!
//! V2 (`codec2`) is V1 with pinned names and single events. A record that has neither is written as V1, bit for bit.

use bytes::Bytes;
use smallvec::SmallVec;

use super::codec2::{self, V2};
use super::raw::{ID, Raw, VARINT_BYTES, put_actor, put_seen, put_varint};
use super::{Damaged, Encoded, Record, canonical};
use crate::limit::RECENT_ENTRIES;
use crate::name::WriteId;
use crate::recent::Recent;
use crate::register::{Register, Stamp};
use crate::siblings::{Dot, Name, Names, Siblings, Version, VersionVector};

const V1: u8 = 1;
const REGISTER: u8 = 1;
const SIBLINGS: u8 = 2;
/// Version, kind, checksum.
const HEADER: usize = 6;

pub(super) fn encode(record: &Record) -> Encoded {
    let (kind, bound) = match record {
        Record::Register(register) => (REGISTER, register_bound(register)),
        Record::Siblings(siblings) => (SIBLINGS, siblings_bound(siblings)),
    };
    let version = match record {
        Record::Siblings(siblings) if codec2::is_needed(siblings) => V2,
        _ => V1,
    };
    let mut out = Vec::with_capacity(HEADER + bound);
    out.extend_from_slice(&[version, kind, 0, 0, 0, 0]);
    match record {
        Record::Register(register) => put_register(&mut out, register),
        Record::Siblings(siblings) => put_siblings(&mut out, siblings),
    }
    if let (V2, Record::Siblings(siblings)) = (version, record) {
        codec2::put(&mut out, siblings);
    }
    let checksum = checksum(&out);
    out[2..HEADER].copy_from_slice(&checksum.to_le_bytes());
    Encoded(Bytes::from(out))
}

/// `whole` has at least a header.
fn checksum(whole: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&whole[..2]);
    hasher.update(&whole[HEADER..]);
    hasher.finalize()
}

/// Checks header and checksum; returns the kind.
pub(super) fn check(bytes: &[u8]) -> Result<u8, Damaged> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Damaged("shorter than its header"))?;
    let [version, kind, stored @ ..] = *header;
    if version != V1 && version != V2 {
        return Err(Damaged("unknown codec version"));
    }
    if kind != SIBLINGS && (kind != REGISTER || version != V1) {
        return Err(Damaged("unknown kind"));
    }
    if checksum(bytes) != u32::from_le_bytes(stored) {
        return Err(Damaged("checksum does not match"));
    }
    Ok(kind)
}

pub(super) fn decode(bytes: &Bytes) -> Result<Record, Damaged> {
    let kind = check(bytes)?;
    let mut body = Body { bytes, raw: Raw::new(bytes, HEADER) };
    let record = match kind {
        REGISTER => Record::Register(body.register()?),
        _ => {
            let (mut siblings, recent) = body.siblings()?;
            if bytes[0] == V1 {
                siblings.names = names_of_v1(&siblings, recent);
            } else {
                codec2::read(&mut body.raw, &mut siblings, recent)?;
            }
            canonical::siblings(&siblings)?;
            Record::Siblings(siblings)
        }
    };
    if body.raw.left() > 0 {
        return Err(Damaged("bytes after its end"));
    }
    Ok(record)
}

/// V1 remembers every recent write: one without an event in a version is superseded, and one that has such an event is known by that.
fn names_of_v1(siblings: &Siblings, recent: Recent) -> Names {
    let mut minted: Vec<WriteId> = siblings.versions.iter().flat_map(Version::mints).map(|(id, _)| id).collect();
    minted.sort_unstable();
    let superseded = |(id, _): &(WriteId, u64)| minted.binary_search(id).is_err();
    let entries = recent.entries.into_iter().filter(superseded).map(|(id, time)| Name::dead(id, time)).collect();
    Names { entries, horizon: recent.horizon }
}

fn value_bound(value: Option<&Bytes>) -> usize {
    VARINT_BYTES + value.map_or(0, Bytes::len)
}

fn recent_bound(recent: &Recent) -> usize {
    2 * VARINT_BYTES + recent.entries.len() * (ID + VARINT_BYTES)
}

fn register_bound(register: &Register) -> usize {
    VARINT_BYTES + ID + value_bound(register.value.as_ref()) + recent_bound(&register.recent)
}

fn siblings_bound(siblings: &Siblings) -> usize {
    let entry = ID + 2 * VARINT_BYTES;
    let version = |version: &Version| {
        version.dots.len() * (entry + 2 * VARINT_BYTES)
            + version.ids.len() * ID
            + 3 * VARINT_BYTES
            + value_bound(version.value.as_ref())
    };
    2 * VARINT_BYTES
        + siblings.seen.entries.len() * entry
        + siblings.versions.iter().map(version).sum::<usize>()
        + 4 * VARINT_BYTES
        + siblings.names.entries.len() * (ID + VARINT_BYTES + 1)
        + siblings.seen.cloud.len() * entry
}

fn put_value(out: &mut Vec<u8>, value: Option<&Bytes>) {
    match value {
        None => put_varint(out, 0),
        Some(value) => {
            put_varint(out, value.len() as u64 + 1);
            out.extend_from_slice(value);
        }
    }
}

/// Times are stored as differences: newest first, so each is at most its predecessor.
fn put_recent(out: &mut Vec<u8>, recent: &Recent) {
    put_varint(out, recent.horizon);
    put_varint(out, recent.entries.len() as u64);
    let mut newer = None;
    for (id, time) in &recent.entries {
        out.extend_from_slice(&id.0);
        put_varint(out, newer.map_or(*time, |newer: u64| newer.wrapping_sub(*time)));
        newer = Some(*time);
    }
}

fn put_register(out: &mut Vec<u8>, register: &Register) {
    put_varint(out, register.stamp.0);
    out.extend_from_slice(&register.write_id.0);
    put_value(out, register.value.as_ref());
    put_recent(out, &register.recent);
}

fn put_siblings(out: &mut Vec<u8>, siblings: &Siblings) {
    put_seen(out, &siblings.seen.entries);
    put_varint(out, siblings.versions.len() as u64);
    for version in &siblings.versions {
        put_varint(out, version.dots.len() as u64);
        for dot in &version.dots {
            put_dot(out, &siblings.seen, dot);
        }
        put_varint(out, version.ids.len() as u64);
        for id in &version.ids {
            out.extend_from_slice(&id.0);
        }
        // With one write there is no choice.
        if version.ids.len() > 1 {
            version.minted_for.iter().for_each(|place| put_varint(out, u64::from(*place)));
        }
        put_varint(out, version.time);
        put_value(out, version.value.as_ref());
    }
    put_names(out, &siblings.names);
}

/// The names that are not pinned, as V1 has them: all of them superseded.
fn put_names(out: &mut Vec<u8>, names: &Names) {
    let loose = || names.entries.iter().filter(|name| !codec2::is_special(name));
    put_varint(out, names.horizon);
    put_varint(out, loose().count() as u64);
    codec2::put_times(out, loose(), |_, _| {});
}

/// A dot's actor is an index into `seen`, counted from 1; an actor that is not in `seen` follows a 0.
fn put_dot(out: &mut Vec<u8>, seen: &VersionVector, dot: &Dot) {
    match seen.entries.iter().position(|(actor, _)| *actor == dot.actor) {
        Some(at) => put_varint(out, at as u64 + 1),
        None => {
            put_varint(out, 0);
            put_actor(out, &dot.actor);
        }
    }
    put_varint(out, dot.counter);
}

/// Reads a body from its start to its end; values share its bytes.
struct Body<'a> {
    bytes: &'a Bytes,
    raw: Raw<'a>,
}

impl Body<'_> {
    fn value(&mut self) -> Result<Option<Bytes>, Damaged> {
        match self.raw.varint()? {
            0 => Ok(None),
            length => {
                let length = usize::try_from(length - 1).map_err(|_| Damaged("a value is too long"))?;
                let range = self.raw.take(length)?;
                Ok(Some(self.bytes.slice(range)))
            }
        }
    }

    /// At most `most` writes.
    fn recent(&mut self, most: usize) -> Result<Recent, Damaged> {
        let horizon = self.raw.varint()?;
        let count = self.raw.count(ID + 1)?;
        let mut entries: SmallVec<[(WriteId, u64); 2]> = SmallVec::with_capacity(count);
        for _ in 0..count {
            let id = self.raw.write_id()?;
            let number = self.raw.varint()?;
            let time = match entries.last() {
                None => number,
                Some((_, newer)) => newer.checked_sub(number).ok_or(Damaged("a time below zero"))?,
            };
            entries.push((id, time));
        }
        let recent = Recent { entries, horizon };
        canonical::recent(&recent, most)?;
        Ok(recent)
    }

    fn register(&mut self) -> Result<Register, Damaged> {
        Ok(Register {
            stamp: Stamp(self.raw.varint()?),
            write_id: self.raw.write_id()?,
            value: self.value()?,
            recent: self.recent(RECENT_ENTRIES)?,
        })
    }

    fn dot(&mut self, seen: &VersionVector) -> Result<Dot, Damaged> {
        let actor = match self.raw.varint()? {
            0 => {
                let actor = self.raw.actor()?;
                if seen.get(&actor) > 0 {
                    return Err(Damaged("an actor that has a place"));
                }
                actor
            }
            place => {
                let place = usize::try_from(place - 1).map_err(|_| Damaged("an actor that is not there"))?;
                seen.entries.get(place).ok_or(Damaged("an actor that is not there"))?.0
            }
        };
        Ok(Dot { actor, counter: self.raw.varint()? })
    }

    fn version(&mut self, seen: &VersionVector) -> Result<Version, Damaged> {
        let count = self.raw.count(2)?;
        let mut dots = SmallVec::with_capacity(count);
        for _ in 0..count {
            dots.push(self.dot(seen)?);
        }
        let count = self.raw.count(ID)?;
        let mut ids = SmallVec::with_capacity(count);
        for _ in 0..count {
            ids.push(self.raw.write_id()?);
        }
        let minted_for = self.minted_for(dots.len(), ids.len())?;
        Ok(Version { dots, minted_for, ids, time: self.raw.varint()?, value: self.value()? })
    }

    fn minted_for(&mut self, dots: usize, ids: usize) -> Result<SmallVec<[u32; 2]>, Damaged> {
        if ids == 1 {
            return Ok(SmallVec::from_elem(0, dots));
        }
        let place = |_| match self.raw.varint()? {
            place if place < ids as u64 => Ok(place as u32),
            _ => Err(Damaged("a write that is not there")),
        };
        (0..dots).map(place).collect()
    }

    /// A record without its names, and what it remembers of recent writes.
    fn siblings(&mut self) -> Result<(Siblings, Recent), Damaged> {
        let seen = self.raw.seen()?;
        // Two counts, a dot of two bytes, an id, a time, a value.
        let count = self.raw.count(4 + ID + 2)?;
        let mut versions = Vec::with_capacity(count);
        for _ in 0..count {
            versions.push(self.version(&seen)?);
        }
        let siblings = Siblings { seen, versions, names: Names::default() };
        // Answers to Puts name everything that they have superseded: there is no bound but that of a record.
        Ok((siblings, self.recent(usize::MAX)?))
    }
}
