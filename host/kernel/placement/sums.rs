//! What a copy to another generation has achieved: which records all coming replicas have acknowledged.
//!
//! A move to rows of another generation copies everything, and while its last copy runs, operations need both placements. Reading is fast,
//! and sending is not. So the leader remembers, for each [slice](crate::slice) of the tokens of before, a sum of the hashes of what was
//! acknowledged, and the next pass sends only slices of which it reads something else. A slice in which anything was not acknowledged has
//! no sum.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::Xxh3;

use crate::record::Encoded;
use crate::replica::Place;
use crate::slice::{Slice, Slices};

/// The records of a slice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    hashes: u128,
    /// Some record was not acknowledged by all.
    lacks: bool,
}

/// Records by slice: some megabytes at most, whatever a tenant has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums(BTreeMap<u16, Sum>);

impl Sums {
    /// A record of this place. All of its bytes count, also what it remembers of writes.
    pub fn add(&mut self, place: &Place, record: &Encoded) {
        let mut hash = Xxh3::new();
        let key = place.key.bytes();
        hash.update(&place.token.to_le_bytes());
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(&record.0);
        let sum = self.0.entry(Slice::of(place.token).0).or_default();
        sum.hashes = sum.hashes.wrapping_add(hash.digest128());
    }

    /// A record of this token was not acknowledged by all.
    pub fn lacks(&mut self, token: u64) {
        self.0.entry(Slice::of(token).0).or_default().lacks = true;
    }

    /// True if it knows of no record.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slices of which `read` has something that is not acknowledged here.
    pub fn differing(&self, read: &Self) -> Slices {
        let mut differ = Slices::default();
        let is_new = |(slice, sum): &(&u16, &Sum)| sum.lacks || self.0.get(slice) != Some(sum);
        read.0.iter().filter(is_new).for_each(|(slice, _)| differ.insert(Slice(*slice)));
        differ
    }

    /// Nothing is known of these slices any longer.
    pub fn forget(&mut self, slices: &Slices) {
        self.0.retain(|slice, _| !slices.contains(Slice(*slice)));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::name::{Key, TenantId};

    fn place(slice: u16, key: &'static str) -> Place {
        let tenant = TenantId::new("t").unwrap();
        Place { token: Slice(slice).tokens().0, space: tenant.into(), key: Key::new(key).unwrap() }
    }

    fn sums(records: &[(u16, &'static str, &'static str)]) -> Sums {
        let mut sums = Sums::default();
        for (slice, key, record) in records {
            sums.add(&place(*slice, key), &Encoded(Bytes::from_static(record.as_bytes())));
        }
        sums
    }

    #[test]
    fn a_slice_differs_if_anything_in_it_does() {
        let known = sums(&[(1, "a", "x"), (1, "b", "y"), (2, "a", "x"), (9, "a", "x")]);
        let differing = |read: &[_]| {
            let differ = known.differing(&sums(read));
            (0..=u16::MAX).filter(|slice| differ.contains(Slice(*slice))).collect::<Vec<_>>()
        };
        assert_eq!(differing(&[(1, "b", "y"), (1, "a", "x"), (2, "a", "x")]), [], "in any order");
        assert_eq!(differing(&[(1, "a", "x"), (1, "b", "z"), (2, "a", "x")]), [1]);
        assert_eq!(differing(&[(1, "a", "x"), (2, "a", "x"), (3, "a", "x")]), [1, 3]);
        assert_eq!(differing(&[(1, "a", "y"), (1, "b", "x")]), [1]);
    }

    #[test]
    fn what_was_not_acknowledged_is_not_known() {
        let records = [(1, "a", "x"), (2, "a", "x")];
        let (mut known, read) = (sums(&records), sums(&records));
        assert!(known.differing(&read).is_empty());
        known.lacks(place(2, "a").token);
        let differ = known.differing(&read);
        assert_eq!((differ.count(), differ.contains(Slice(2))), (1, true));
        let mut first = Slices::default();
        first.insert(Slice(1));
        known.forget(&first);
        assert!(!known.is_empty() && known.differing(&read).contains(Slice(1)));
        known.forget(&Slices::all());
        assert!(known.is_empty() && known.differing(&read).count() == 2);
    }
}
