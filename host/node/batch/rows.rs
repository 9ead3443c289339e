//! The rows that a shard has at hand, so that a write does not search the engine for what the one before has just stored.
//!
//! All writes of a row pass through its shard, so what is kept here is what the engine would answer; after a failed write
//! everything is dropped. Searching the engine's tables costs several times what everything else about a small write does.

use bytes::Bytes;
use quick_cache::unsync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use witan_kernel::record::Encoded;

/// Largest record that is kept; larger ones cost more elsewhere.
const RECORD_BYTES: usize = 16 << 10;
/// What a row takes beside its key and its record, about.
const OVERHEAD: usize = 128;
/// What a row takes on the average, about: how far the cache looks back at what it has dropped.
const USUAL: usize = 512;

/// What a row holds: its birth and record, or that there is none.
#[derive(Debug, Clone)]
struct Kept {
    birth: u64,
    record: Option<Encoded>,
}

#[derive(Debug, Clone, Copy)]
struct ByBytes;

impl Weighter<Box<[u8]>, Kept> for ByBytes {
    fn weight(&self, row: &Box<[u8]>, kept: &Kept) -> u64 {
        (row.len() + kept.record.as_ref().map_or(0, |record| record.0.len()) + OVERHEAD) as u64
    }
}

/// Rows at hand, the most useful ones within a bound of bytes.
#[derive(Debug)]
pub(super) struct Rows(Cache<Box<[u8]>, Kept, ByBytes>);

impl Rows {
    /// Keeps so many bytes of rows at most.
    pub(super) fn new(bytes: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / USUAL).max(1))
            .weight_capacity(bytes as u64)
            .build()
            .expect("both capacities are given");
        Self(Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), Default::default()))
    }

    /// What a row holds, if that is known: its birth and record, or that there is none.
    pub(super) fn get(&self, row: &[u8]) -> Option<Option<(u64, Encoded)>> {
        let kept = self.0.get(row)?;
        Some(kept.record.as_ref().map(|record| (kept.birth, record.clone())))
    }

    /// Keeps what a row holds. The bytes are copied: a record that came in a large frame must not keep it.
    pub(super) fn keep(&mut self, row: &[u8], birth: u64, record: Option<&Encoded>) {
        if record.is_some_and(|record| record.0.len() > RECORD_BYTES) {
            self.0.remove(row);
            return;
        }
        let record = record.map(|record| Encoded(Bytes::copy_from_slice(&record.0)));
        let kept = Kept { birth, record };
        if let Some(mut known) = self.0.get_mut(row) {
            *known = kept;
            return;
        }
        self.0.insert(row.into(), kept);
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: impl Into<Vec<u8>>) -> Encoded {
        Encoded(Bytes::from(bytes.into()))
    }

    #[test]
    fn what_is_kept_is_what_was_kept_last() {
        let mut rows = Rows::new(1 << 20);
        assert_eq!(rows.get(b"a"), None);
        rows.keep(b"a", 7, Some(&record(*b"first")));
        rows.keep(b"b", 0, None);
        assert_eq!(rows.get(b"a"), Some(Some((7, record(*b"first")))));
        assert_eq!(rows.get(b"b"), Some(None));
        rows.keep(b"a", 8, Some(&record(*b"second")));
        rows.keep(b"b", 9, Some(&record(*b"born")));
        assert_eq!(rows.get(b"a"), Some(Some((8, record(*b"second")))));
        assert_eq!(rows.get(b"b"), Some(Some((9, record(*b"born")))));

        // One that has grown too large is not kept as it was before.
        rows.keep(b"a", 8, Some(&record(vec![0; RECORD_BYTES + 1])));
        assert_eq!(rows.get(b"a"), None);
        rows.clear();
        assert_eq!(rows.get(b"b"), None);
    }

    #[test]
    fn what_is_kept_is_bounded_by_bytes() {
        let mut rows = Rows::new(64 << 10);
        for n in 0..10_000_u32 {
            rows.keep(&n.to_be_bytes(), u64::from(n), Some(&record(n.to_be_bytes())));
            assert!(rows.0.weight() <= 64 << 10);
        }
        let found: Vec<u32> = (0..10_000).filter(|n| rows.get(&u32::to_be_bytes(*n)).is_some()).collect();
        assert!(!found.is_empty() && found.len() < 1000, "{}", found.len());
        for n in found {
            assert_eq!(rows.get(&n.to_be_bytes()), Some(Some((u64::from(n), record(n.to_be_bytes())))));
        }
    }
}
