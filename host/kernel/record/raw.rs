//! Reading and writing the parts that records and contexts have in common: varints, ids, version vectors.

use std::ops::Range;

use smallvec::SmallVec;

use super::Damaged;
use crate::name::{StoreId, WriteId};
use crate::siblings::{Actor, VersionVector};

/// Longest LEB128 form of a `u64`.
pub(crate) const VARINT_BYTES: usize = 10;
/// Bytes of an id.
pub(crate) const ID: usize = 16;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_actor(out: &mut Vec<u8>, actor: &Actor) {
    out.extend_from_slice(&actor.store.0);
    put_varint(out, actor.birth);
}

pub(crate) fn put_seen(out: &mut Vec<u8>, entries: &[(Actor, u64)]) {
    put_varint(out, entries.len() as u64);
    for (actor, counter) in entries {
        put_actor(out, actor);
        put_varint(out, *counter);
    }
}

/// Reads from front to back, and never past the end.
pub(crate) struct Raw<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Raw<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<Range<usize>, Damaged> {
        if length > self.left() {
            return Err(Damaged("cut off"));
        }
        let from = self.at;
        self.at += length;
        Ok(from..self.at)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, Damaged> {
        let mut value = 0;
        for (index, byte) in self.bytes[self.at..].iter().take(VARINT_BYTES).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index as u32;
            if bits << shift >> shift != bits {
                return Err(Damaged("a number is too large"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                self.at += index + 1;
                return Ok(value);
            }
        }
        Err(Damaged("a number is cut off"))
    }

    /// A list's length. Each item takes at least `least` bytes, so a length that the bytes cannot hold is refused before allocating.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, Damaged> {
        let count = self.varint()?;
        if count > (self.left() / least) as u64 {
            return Err(Damaged("a list is cut off"));
        }
        Ok(count as usize)
    }

    pub(crate) fn sixteen(&mut self) -> Result<[u8; ID], Damaged> {
        let sixteen = self.bytes[self.at..].first_chunk().ok_or(Damaged("cut off"))?;
        self.at += ID;
        Ok(*sixteen)
    }

    pub(crate) fn write_id(&mut self) -> Result<WriteId, Damaged> {
        self.sixteen().map(WriteId)
    }

    pub(crate) fn actor(&mut self) -> Result<Actor, Damaged> {
        Ok(Actor { store: StoreId(self.sixteen()?), birth: self.varint()? })
    }

    pub(crate) fn seen(&mut self) -> Result<VersionVector, Damaged> {
        let count = self.count(ID + 2)?;
        let mut entries = SmallVec::with_capacity(count);
        for _ in 0..count {
            entries.push((self.actor()?, self.varint()?));
        }
        sorted(&entries, |a: &(Actor, u64), b| a.0 < b.0)?;
        Ok(VersionVector { entries, ..VersionVector::default() })
    }
}

/// Lookups and merges depend on the order, so a list that is out of order counts as damaged.
pub(crate) fn sorted<T>(items: &[T], precedes: impl Fn(&T, &T) -> bool) -> Result<(), Damaged> {
    if items.windows(2).all(|pair| precedes(&pair[0], &pair[1])) { Ok(()) } else { Err(Damaged("out of order")) }
}

#[cfg(test)]
mod tests {
    use super::{Raw, put_varint};

    #[test]
    fn varints_of_every_length_and_none_that_is_too_large() {
        let edges = (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) - 1]).chain([u64::MAX]);
        for value in edges {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut raw = Raw::new(&bytes, 0);
            assert_eq!(raw.varint(), Ok(value));
            assert_eq!(raw.left(), 0);
            assert!(Raw::new(&bytes[..bytes.len() - 1], 0).varint().is_err());
        }
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert!(Raw::new(&too_large, 0).varint().is_err());
        assert!(Raw::new(&[0x80; 11], 0).varint().is_err());
    }
}
