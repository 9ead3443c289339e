//! A shard's cache of rows, so that a write does not look up in the engine what the write before has just stored.
//!
//! All writes of a row go through its shard, so the cache holds what the engine would return; after a failed write it is
//! cleared. A lookup in the engine's tables costs several times as much as the rest of a small write.

use bytes::Bytes;
use quick_cache::unsync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use witan_kernel::record::Encoded;

/// Largest record that is cached, in bytes: for larger ones the lookup is a small part of the cost.
const RECORD_BYTES: usize = 16 << 10;
/// Approximate memory of a cached row besides its key and record, in bytes.
const OVERHEAD: usize = 128;
/// Approximate memory of an average row, in bytes. It sizes the cache's memory of evicted rows.
const USUAL: usize = 512;

/// The content of a row: its birth and record, or that there is none.
#[derive(Debug, Clone)]
struct Cached {
    birth: u64,
    record: Option<Encoded>,
}

#[derive(Debug, Clone, Copy)]
struct ByBytes;

impl Weighter<Box<[u8]>, Cached> for ByBytes {
    fn weight(&self, row: &Box<[u8]>, cached: &Cached) -> u64 {
        (row.len() + cached.record.as_ref().map_or(0, |record| record.0.len()) + OVERHEAD) as u64
    }
}

/// Cached rows, the most useful ones within a bound of bytes.
#[derive(Debug)]
pub(super) struct RowCache(Cache<Box<[u8]>, Cached, ByBytes>);

impl RowCache {
    /// An empty cache for at most `bytes` of rows.
    pub(super) fn new(bytes: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / USUAL).max(1))
            .weight_capacity(bytes as u64)
            .build()
            .expect("both capacities are given");
        Self(Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), Default::default()))
    }

    /// The content of a row, if it is cached: its birth and record, or that there is none.
    pub(super) fn get(&self, row: &[u8]) -> Option<Option<(u64, Encoded)>> {
        let cached = self.0.get(row)?;
        Some(cached.record.as_ref().map(|record| (cached.birth, record.clone())))
    }

    /// Caches the content of a row. The bytes are copied, so that a record does not keep the frame in memory that it arrived in.
    pub(super) fn keep(&mut self, row: &[u8], birth: u64, record: Option<&Encoded>) {
        if record.is_some_and(|record| record.0.len() > RECORD_BYTES) {
            self.0.remove(row);
            return;
        }
        let record = record.map(|record| Encoded(Bytes::copy_from_slice(&record.0)));
        let content = Cached { birth, record };
        if let Some(mut cached) = self.0.get_mut(row) {
            *cached = content;
            return;
        }
        self.0.insert(row.into(), content);
    }

    /// Removes all rows.
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
    fn the_newest_content_is_cached() {
        let mut rows = RowCache::new(1 << 20);
        assert_eq!(rows.get(b"a"), None);
        rows.keep(b"a", 7, Some(&record(*b"first")));
        rows.keep(b"b", 0, None);
        assert_eq!(rows.get(b"a"), Some(Some((7, record(*b"first")))));
        assert_eq!(rows.get(b"b"), Some(None));
        rows.keep(b"a", 8, Some(&record(*b"second")));
        rows.keep(b"b", 9, Some(&record(*b"born")));
        assert_eq!(rows.get(b"a"), Some(Some((8, record(*b"second")))));
        assert_eq!(rows.get(b"b"), Some(Some((9, record(*b"born")))));

        // A record that has grown too large is removed, so that the old one is not returned.
        rows.keep(b"a", 8, Some(&record(vec![0; RECORD_BYTES + 1])));
        assert_eq!(rows.get(b"a"), None);
        rows.clear();
        assert_eq!(rows.get(b"b"), None);
    }

    #[test]
    fn the_cache_is_bounded_by_bytes() {
        let mut rows = RowCache::new(64 << 10);
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
