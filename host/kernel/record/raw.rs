//! Reading and writing the parts that records and contexts have in common: varints, ids, version vectors.

use std::ops::Range;

use smallvec::SmallVec;

use super::Damaged;
use super::canonical::sorted;
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
                if *byte == 0 && index > 0 {
                    return Err(Damaged("a number in more bytes than it needs"));
                }
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
        // A join would never take such an entry over, and two vectors that differ in it would never become equal.
        if entries.iter().any(|(_, counter)| *counter == 0) {
            return Err(Damaged("an actor without events"));
        }
        Ok(VersionVector { entries, ..VersionVector::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::{Raw, put_varint};
    use crate::record::Damaged;

    #[test]
    fn nothing_is_read_past_the_end() {
        let bytes = [7; 20];
        let mut raw = Raw::new(&bytes, 1);
        assert_eq!((raw.take(0), raw.left()), (Ok(1..1), 19));
        assert_eq!((raw.take(20), raw.left()), (Err(Damaged("cut off")), 19), "nothing was taken");
        assert_eq!((raw.take(3), raw.left()), (Ok(1..4), 16));
        assert_eq!(
            (Raw::new(&bytes, 18).take(2), Raw::new(&bytes, 20).take(0)),
            (Ok(18..20), Ok(20..20)),
            "to the end"
        );
        assert_eq!((raw.sixteen(), raw.left()), (Ok([7; 16]), 0));
        assert_eq!((raw.sixteen(), raw.take(1)), (Err(Damaged("cut off")), Err(Damaged("cut off"))));
        assert_eq!(raw.varint(), Err(Damaged("a number is cut off")));
        assert_eq!(Raw::new(&bytes, 21).left(), 0);
    }

    #[test]
    fn a_list_may_fill_what_is_left_and_no_more() {
        let count = |bytes: &[u8], least| Raw::new(bytes, 0).count(least);
        assert_eq!(count(&[2, 0, 0, 0, 0], 2), Ok(2));
        assert_eq!(count(&[2, 0, 0, 0], 2), Err(Damaged("a list is cut off")));
        assert_eq!(count(&[3, 0, 0, 0, 0, 0], 2), Err(Damaged("a list is cut off")));
        assert_eq!((count(&[0], 2), count(&[1], 2)), (Ok(0), Err(Damaged("a list is cut off"))));
    }

    #[test]
    fn a_vector_of_the_shortest_entries_fills_its_bytes() {
        let mut bytes = vec![2];
        for store in [1, 2] {
            bytes.extend([store; 16]);
            bytes.extend([9, 1]);
        }
        let mut raw = Raw::new(&bytes, 0);
        assert_eq!((raw.seen().map(|seen| seen.entries.len()), raw.left()), (Ok(2), 0));
        assert_eq!(Raw::new(&bytes[..bytes.len() - 1], 0).seen(), Err(Damaged("a list is cut off")));
    }

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
