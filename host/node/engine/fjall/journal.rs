//! Reads the engine's journals: where each batch ends, and whether it is whole.
//!
//! A journal is a file of batches, written in order and followed by zeros, because space is reserved in advance. A batch is a start
//! (number of items, sequence number), its items, and an end with a checksum of the items. This is fjall's third format; a folder
//! with another one is refused by fjall, by its file `version`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Length of the start of a batch: tag, number of items, sequence number.
const START: usize = 1 + 4 + 8;
/// Length of an item before its key: tag, type of value, compression, keyspace, lengths of key and value, stored length of the value.
const ITEM: usize = 1 + 1 + 1 + 8 + 2 + 4 + 4;
/// Length of an item that clears a keyspace: tag, keyspace.
const CLEAR: usize = 1 + 8;
/// Length of the end of a batch: tag, checksum, magic bytes.
const END: usize = 1 + 8 + 4;
const MAGIC: [u8; 4] = *b"FJL\x03";

/// Bytes that are read at once at first, unless it is known what to expect: few, since there may be only reserved zeros.
const FIRST_READ: usize = 4 << 10;
/// Most bytes that are read at once, unless one batch is larger.
const LARGEST_READ: usize = 1 << 20;

/// The ids of the journals in a folder, oldest first.
pub(super) fn ids(folder: &Path) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_suffix(".jnl")).and_then(|id| id.parse::<u64>().ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}

pub(super) fn path(folder: &Path, id: u64) -> PathBuf {
    folder.join(format!("{id}.jnl"))
}

/// What a part of a journal's beginning contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Covered {
    /// The journal.
    pub(super) id: u64,
    /// Length of the part, in bytes. A batch ends there.
    pub(super) end: u64,
    /// Checksum of its batches.
    pub(super) check: u64,
}

/// A journal that is read batch by batch.
pub(super) struct Journal {
    file: File,
    /// The whole batches that were read.
    pub(super) covered: Covered,
    /// How many they are.
    pub(super) batches: u64,
    buffer: Vec<u8>,
    /// How many bytes have probably been written behind those batches.
    expected: usize,
}

/// The length of a batch of rows, whose keys and values have this length together.
pub(super) fn batch_length(rows: usize, bytes: usize) -> usize {
    START + rows * ITEM + bytes + END
}

impl Journal {
    pub(super) fn open(folder: &Path, id: u64) -> io::Result<Self> {
        let file = File::open(path(folder, id))?;
        Ok(Self { file, covered: Covered { id, end: 0, check: 0 }, batches: 0, buffer: Vec::new(), expected: 0 })
    }

    /// Says how many bytes have probably been written: reading them at once is cheaper.
    pub(super) fn expect(&mut self, bytes: usize) {
        self.expected = bytes;
    }

    /// Reads on to the first place where no whole batch begins: the end of what was written, a batch that is being written, or
    /// damage.
    pub(super) fn read_on(&mut self) -> io::Result<()> {
        self.read_to(u64::MAX)
    }

    /// Reads on until `end` is reached or passed, or to the first place where no whole batch begins.
    pub(super) fn read_to(&mut self, end: u64) -> io::Result<()> {
        let (mut at, mut step) = match std::mem::take(&mut self.expected) {
            0 => (0, FIRST_READ),
            // And enough to see that nothing follows.
            bytes => (0, bytes + START),
        };
        self.buffer.clear();
        while self.covered.end < end {
            match parse(&self.buffer[at..]) {
                Parsed::Batch { length, seal } => {
                    at += length;
                    self.covered.end += length as u64;
                    self.covered.check = xxh3_64_with_seed(&seal, self.covered.check);
                    self.batches += 1;
                }
                Parsed::Unfinished { needs } => {
                    self.buffer.drain(..at);
                    at = 0;
                    let missing = needs.saturating_sub(self.buffer.len());
                    if !self.fill(missing.max(step))? {
                        break;
                    }
                    step = (step * 2).min(LARGEST_READ);
                }
                Parsed::Invalid => break,
            }
        }
        if self.buffer.capacity() > LARGEST_READ {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Appends bytes of the file to the buffer; false at its end.
    fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        let before = self.buffer.len();
        let bytes = match bytes {
            // The usual case asks for nothing else.
            ..=LARGEST_READ => bytes,
            // Lengths in a damaged batch are arbitrary, but a buffer need not exceed the file.
            _ => {
                let left = self.file.metadata()?.len().saturating_sub(self.covered.end + before as u64);
                bytes.min(usize::try_from(left).unwrap_or(usize::MAX))
            }
        };
        self.buffer.resize(before + bytes, 0);
        let read = self.file.read_at(&mut self.buffer[before..], self.covered.end + before as u64)?;
        self.buffer.truncate(before + read);
        Ok(read > 0)
    }

    /// Whether there is anything but zeros behind the batches that were read.
    pub(super) fn has_tail(&self) -> io::Result<bool> {
        let (mut at, mut chunk) = (self.covered.end, vec![0; LARGEST_READ]);
        loop {
            let read = self.file.read_at(&mut chunk, at)?;
            if chunk[..read].iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            if read == 0 {
                return Ok(false);
            }
            at += read as u64;
        }
    }

    /// Makes the file's content durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// A whole batch: its length, and its start and its checksum, which stand for all of it.
    Batch { length: usize, seal: [u8; START + 8] },
    /// At least this many bytes are needed to know more.
    Unfinished { needs: usize },
    /// No batch, or a damaged one.
    Invalid,
}

fn parse(bytes: &[u8]) -> Parsed {
    let Some(start) = bytes.get(..START) else {
        return if bytes.first().is_none_or(|tag| *tag == 1) {
            Parsed::Unfinished { needs: START }
        } else {
            Parsed::Invalid
        };
    };
    if start[0] != 1 {
        return Parsed::Invalid;
    }
    let (mut at, mut items) = (START, number(&start[1..5]));
    loop {
        let Some(tag) = bytes.get(at) else { return Parsed::Unfinished { needs: at + END } };
        let length = match tag {
            2 if items > 0 => ITEM,
            3 if items == 0 => END,
            4 if items > 0 => CLEAR,
            _ => return Parsed::Invalid,
        };
        let Some(head) = bytes.get(at..at + length) else { return Parsed::Unfinished { needs: at + length } };
        match tag {
            2 => {
                let (key, value) = (number(&head[11..13]), number(&head[17..21]));
                let known = matches!(head[1], 0..=2) && head[2] == 0 && number(&head[13..17]) == value;
                if !known {
                    return Parsed::Invalid;
                }
                at += ITEM + key + value;
            }
            4 => at += CLEAR,
            _ => {
                let check = &head[1..9];
                if head[9..] != MAGIC || xxh3_64(&bytes[START..at]).to_le_bytes() != check {
                    return Parsed::Invalid;
                }
                let mut seal = [0; START + 8];
                seal[..START].copy_from_slice(start);
                seal[START..].copy_from_slice(check);
                return Parsed::Batch { length: at + END, seal };
            }
        }
        items -= 1;
    }
}

/// A number of up to four bytes, the least significant first.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(values: &[&[u8]]) -> Vec<u8> {
        let mut items = Vec::new();
        for value in values {
            items.extend([2, 0, 0]);
            items.extend(1u64.to_le_bytes());
            items.extend(3u16.to_le_bytes());
            items.extend((value.len() as u32).to_le_bytes());
            items.extend((value.len() as u32).to_le_bytes());
            items.extend(b"key");
            items.extend(*value);
        }
        let mut bytes = vec![1];
        bytes.extend((values.len() as u32).to_le_bytes());
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(&items);
        bytes.push(3);
        bytes.extend(xxh3_64(&items).to_le_bytes());
        bytes.extend(MAGIC);
        bytes
    }

    #[test]
    fn a_batch_is_whole_or_not() {
        let whole = batch(&[b"value", b""]);
        assert!(matches!(parse(&whole), Parsed::Batch { length, .. } if length == whole.len()));
        for length in 0..whole.len() {
            assert!(matches!(parse(&whole[..length]), Parsed::Unfinished { needs } if needs > length), "{length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            // The sequence number is covered by the seal.
            let sequence = (5..START).contains(&at);
            let parsed = parse(&damaged);
            assert_eq!(sequence, matches!(parsed, Parsed::Batch { .. }), "{at}: {parsed:?}");
            assert_ne!(parsed, parse(&whole), "{at}");
        }
        assert_eq!(parse(&[0; 64]), Parsed::Invalid);
    }

    #[test]
    fn reads_on_as_the_file_grows() {
        let folder = tempfile::tempdir().unwrap();
        let large = vec![5; 3 << 20];
        let batches = [batch(&[b"one"]), batch(&[&large]), batch(&[b"two", b"three"])];
        let mut content = Vec::new();
        fs::write(path(folder.path(), 4), &content).unwrap();
        let mut journal = Journal::open(folder.path(), 4).unwrap();
        let mut checks = vec![0];
        for (number, batch) in batches.iter().enumerate() {
            content.extend(batch);
            let mut reserved = content.clone();
            reserved.resize(content.len() + 100_000, 0);
            fs::write(path(folder.path(), 4), &reserved).unwrap();
            journal.read_on().unwrap();
            assert_eq!((journal.covered.end, journal.batches), (content.len() as u64, number as u64 + 1));
            assert!(!checks.contains(&journal.covered.check));
            assert!(!journal.has_tail().unwrap());
            checks.push(journal.covered.check);
        }
        let mut again = Journal::open(folder.path(), 4).unwrap();
        again.read_to(batches[0].len() as u64).unwrap();
        assert_eq!(again.covered.check, checks[1]);
        assert!(again.has_tail().unwrap());
        again.read_on().unwrap();
        assert_eq!(again.covered, journal.covered);
        assert_eq!(ids(folder.path()).unwrap(), [4]);
    }
}
