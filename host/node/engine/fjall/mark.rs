//! The mark: a file that says what returned syncs have covered.
//!
//! The engine itself cannot tell acknowledged data that was damaged from the torn end of a journal after a power failure: it cuts
//! off either. The mark says up to where each journal was durable, with a checksum, and which versions of the trees of tables were
//! current. It is written after the sync of the journal has returned, so it never covers what is not on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::journal::Covered;

/// The name of the file.
const NAME: &str = "mark";
const MAGIC: [u8; 4] = *b"WMRK";
/// The version of the encoding.
const CODEC: u8 = 1;
/// Two slots are written in turn, so that one of them is whole whenever the power fails. A slot has room for the 2,700 journals
/// that fill 170 GB, far more than the engine lets wait; only the first page of it is usually written.
const SLOT: u64 = 64 << 10;
/// Magic, codec, length, number, numbers of journals and trees.
const HEAD: usize = 4 + 1 + 4 + 8 + 4 + 4;

/// What was durable when a sync returned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Counts the marks of this file.
    pub(super) number: u64,
    /// The journals that had not been removed, oldest first.
    pub(super) journals: Vec<Covered>,
    /// The trees of tables: id, and a version that was current. Older ones lack rows that are in no journal any longer.
    pub(super) trees: Vec<(u64, u64)>,
}

/// What a folder has as its mark.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No mark: the folder was written by a version that knew none, or is new.
    None,
    /// A file that cannot be used, for this reason.
    Unusable(&'static str),
    Mark(Mark),
}

impl Mark {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(MAGIC);
        bytes.push(CODEC);
        bytes.extend([0; 4]);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend((self.journals.len() as u32).to_le_bytes());
        bytes.extend((self.trees.len() as u32).to_le_bytes());
        for Covered { id, end, check } in &self.journals {
            bytes.extend([*id, *end, *check].map(u64::to_le_bytes).as_flattened());
        }
        for (id, version) in &self.trees {
            bytes.extend([*id, *version].map(u64::to_le_bytes).as_flattened());
        }
        let length = (bytes.len() + 8) as u32;
        bytes[5..9].copy_from_slice(&length.to_le_bytes());
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    fn decode(slot: &[u8]) -> Result<Self, &'static str> {
        const DAMAGED: &str = "both its copies are damaged";
        let head = slot.get(..HEAD).ok_or(DAMAGED)?;
        let length = u32_at(head, 5) as usize;
        let (content, check) = slot.get(..length).and_then(|mark| mark.split_last_chunk::<8>()).ok_or(DAMAGED)?;
        if head[..4] != MAGIC || xxh3_64(content).to_le_bytes() != *check {
            return Err(DAMAGED);
        }
        if head[4] != CODEC {
            return Err("it was written by a newer version");
        }
        let mut numbers = content[HEAD..].as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || numbers.next().ok_or(DAMAGED);
        let journals = (0..u32_at(head, 17)).map(|_| Ok(Covered { id: next()?, end: next()?, check: next()? }));
        let journals = journals.collect::<Result<_, &'static str>>()?;
        let trees = (0..u32_at(head, 21)).map(|_| Ok((next()?, next()?))).collect::<Result<_, &'static str>>()?;
        let mut number = [0; 8];
        number.copy_from_slice(&head[9..17]);
        Ok(Self { number: u64::from_le_bytes(number), journals, trees })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// The newer of a folder's two marks that is whole.
pub(super) fn read(folder: &Path) -> io::Result<Found> {
    let bytes = match fs::read(path(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::None),
        bytes => bytes?,
    };
    let (first, second) = bytes.split_at(bytes.len().min(SLOT as usize));
    Ok(match (Mark::decode(first), Mark::decode(second)) {
        (Ok(first), Ok(second)) => Found::Mark(if first.number > second.number { first } else { second }),
        (Ok(mark), Err(_)) | (Err(_), Ok(mark)) => Found::Mark(mark),
        (Err(reason), Err(_)) => Found::Unusable(reason),
    })
}

/// The file, open for writing.
pub(super) struct MarkFile(File);

impl MarkFile {
    /// Replaces a folder's mark, durably and as a whole.
    pub(super) fn create(folder: &Path, mark: &Mark) -> io::Result<Self> {
        let new = folder.join("mark.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
        // Space is allocated once: a mark can be written on a full disk, and writing it changes no metadata.
        file.write_all(&vec![0; 2 * SLOT as usize])?;
        let this = Self(file);
        this.write_both(mark)?;
        fs::rename(&new, path(folder))?;
        File::open(folder)?.sync_all()?;
        Ok(this)
    }

    /// Writes a mark over the older one. It survives the end of the process, and a power failure after [`MarkFile::sync`].
    pub(super) fn write(&self, mark: &Mark) -> io::Result<()> {
        self.write_slot(mark.number % 2, &mark.encode())
    }

    /// Writes a mark over both, durably: afterwards no older one will be read.
    pub(super) fn write_both(&self, mark: &Mark) -> io::Result<()> {
        let bytes = mark.encode();
        for slot in [mark.number % 2, 1 - mark.number % 2] {
            self.write_slot(slot, &bytes)?;
            self.sync()?;
        }
        Ok(())
    }

    fn write_slot(&self, slot: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > SLOT {
            return Err(io::Error::other("the engine keeps more journals than the mark has room for"));
        }
        self.0.write_all_at(bytes, slot * SLOT)
    }

    /// Makes the marks that were written durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u64) -> Mark {
        let journal = |id| Covered { id, end: 100 * number, check: id ^ number };
        Mark { number, journals: vec![journal(3), journal(4)], trees: vec![(0, 2), (1, number)] }
    }

    fn damage(folder: &Path, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(path(folder)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }

    #[test]
    fn one_of_two_marks_is_whole_whatever_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), Found::None);
        let file = MarkFile::create(folder.path(), &mark(1)).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Found::Mark(mark(1)));
        file.write(&mark(2)).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Found::Mark(mark(2)));
        for at in 0..mark(2).encode().len() as u64 {
            damage(folder.path(), at);
            assert_eq!(read(folder.path()).unwrap(), Found::Mark(mark(1)), "{at}");
            damage(folder.path(), at);
        }
        damage(folder.path(), 20);
        damage(folder.path(), SLOT + 20);
        assert!(matches!(read(folder.path()).unwrap(), Found::Unusable(_)));
        file.write_both(&mark(3)).unwrap();
        damage(folder.path(), SLOT + 20);
        assert_eq!(read(folder.path()).unwrap(), Found::Mark(mark(3)));
        fs::write(path(folder.path()), b"").unwrap();
        assert!(matches!(read(folder.path()).unwrap(), Found::Unusable(_)));
    }

    #[test]
    fn a_mark_of_a_newer_version_is_not_taken_for_damage() {
        let mut bytes = mark(1).encode();
        bytes[4] = 2;
        let content = bytes.len() - 8;
        let check = xxh3_64(&bytes[..content]).to_le_bytes();
        bytes[content..].copy_from_slice(&check);
        assert!(Mark::decode(&bytes).unwrap_err().contains("newer"));
    }
}
