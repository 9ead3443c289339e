//! The rows that a shard has touched lately, so that the second round of a write does not search the engine again.
//!
//! All writes of a row pass through its shard, so what is kept here is what the engine would answer; after a failed write
//! everything is dropped. Buffers are used again: in the long run nothing is allocated.

use bytes::Bytes;
use witan_kernel::record::Encoded;

/// Rows that are kept at most, each at the place that its hash gives it. A power of two.
const ROWS: usize = 4096;
/// Largest record that is kept: all of them together stay below ten megabytes, and larger ones cost more elsewhere.
const RECORD_BYTES: usize = 1024;

/// Rows touched lately.
#[derive(Debug, Default)]
pub(super) struct Lately {
    /// Empty until the first row is kept.
    rows: Vec<Kept>,
}

#[derive(Debug, Default, Clone)]
struct Kept {
    /// The row's key, then its record.
    bytes: Vec<u8>,
    /// Length of the key; 0: nothing is kept here.
    key: usize,
    birth: u64,
    exists: bool,
}

fn place(row: &[u8]) -> usize {
    crc32fast::hash(row) as usize % ROWS
}

impl Lately {
    /// What a row holds, if that is known: its birth and record, or that there is none. It is no longer kept then.
    pub(super) fn take(&mut self, row: &[u8]) -> Option<Option<(u64, Encoded)>> {
        let kept = self.rows.get_mut(place(row))?;
        if kept.key == 0 || kept.bytes.get(..kept.key) != Some(row) {
            return None;
        }
        let record = kept.exists.then(|| (kept.birth, Encoded(Bytes::copy_from_slice(&kept.bytes[kept.key..]))));
        kept.key = 0;
        Some(record)
    }

    /// Keeps what a row holds, in the place of another if need be.
    pub(super) fn keep(&mut self, row: &[u8], birth: u64, record: Option<&Encoded>) {
        let bytes = record.map_or(&[][..], |record| &record.0[..]);
        if bytes.len() > RECORD_BYTES {
            return;
        }
        if self.rows.is_empty() {
            self.rows.resize(ROWS, Kept::default());
        }
        let kept = &mut self.rows[place(row)];
        kept.bytes.clear();
        kept.bytes.extend_from_slice(row);
        kept.bytes.extend_from_slice(bytes);
        kept.key = row.len();
        kept.birth = birth;
        kept.exists = record.is_some();
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.rows.iter_mut().for_each(|kept| kept.key = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_taken_once() {
        let mut lately = Lately::default();
        let record = Encoded(Bytes::from_static(b"record"));
        assert_eq!(lately.take(b"a"), None);
        lately.keep(b"a", 7, Some(&record));
        lately.keep(b"b", 0, None);
        assert_eq!(lately.take(b"a"), Some(Some((7, record.clone()))));
        assert_eq!(lately.take(b"a"), None);
        assert_eq!(lately.take(b"b"), Some(None));

        let large = Encoded(Bytes::from(vec![0; RECORD_BYTES + 1]));
        lately.keep(b"a", 7, Some(&large));
        assert_eq!(lately.take(b"a"), None);
        lately.keep(b"a", 7, Some(&record));
        lately.clear();
        assert_eq!(lately.take(b"a"), None);
    }

    #[test]
    fn rows_of_one_place_do_not_pass_for_each_other() {
        let mut lately = Lately::default();
        for n in 0..3 * ROWS as u32 {
            let row = n.to_be_bytes();
            lately.keep(&row, u64::from(n), Some(&Encoded(Bytes::copy_from_slice(&row))));
        }
        let found = (0..3 * ROWS as u32).filter_map(|n| lately.take(&n.to_be_bytes()).map(|kept| (n, kept)));
        let found: Vec<_> = found.collect();
        assert!(found.len() <= ROWS && found.len() > ROWS / 2);
        for (n, kept) in found {
            assert_eq!(kept, Some((u64::from(n), Encoded(Bytes::copy_from_slice(&n.to_be_bytes())))));
        }
    }
}
