//! Stores that were written, what they have acknowledged, and copies of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;
use witan_node::engine::Engine;
use witan_node::engine::fjall::{Fjall, Options};

/// A sequence of numbers that is the same in every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

/// A store as it was left by a clean stop, an older copy of it, and what it has acknowledged.
pub(super) struct Written {
    pub(super) now: TempDir,
    pub(super) older: TempDir,
    pub(super) acknowledged: BTreeMap<Bytes, Bytes>,
    pub(super) identity: Option<Bytes>,
}

pub(super) fn options(memtable_bytes: u64) -> Options {
    Options { min_free_bytes: 0, cache_bytes: 1 << 20, memtable_bytes, workers: 1 }
}

pub(super) fn row(n: u64) -> Bytes {
    Bytes::from(format!("row-{n:05}"))
}

pub(super) fn value(n: u64, length: usize) -> Bytes {
    let mut dice = Dice(n);
    Bytes::from((0..length).map(|_| dice.below(256) as u8).collect::<Vec<u8>>())
}

impl Written {
    pub(super) fn put(&mut self, engine: &Fjall, rows: impl Iterator<Item = (Bytes, Bytes)>) {
        let batch: Vec<_> = rows.map(|(row, value)| (row, Some(value))).collect();
        engine.write(batch.clone()).unwrap();
        engine.sync().unwrap();
        self.acknowledged.extend(batch.into_iter().filter_map(|(row, value)| Some((row, value?))));
    }

    pub(super) fn new() -> Self {
        let folder = || tempfile::tempdir().unwrap();
        Self { now: folder(), older: folder(), acknowledged: BTreeMap::new(), identity: None }
    }

    /// The first journal is full and complete, and not removed, because a note is in no table yet.
    pub(super) fn sealed() -> Self {
        let mut this = Self::new();
        let engine = Fjall::open(this.path(), options(8 << 20)).unwrap();
        let identity = value(1, 29);
        engine.set_note("identity", identity.clone()).unwrap();
        this.identity = Some(identity);
        let mut n = 0;
        while !this.path().join("1.jnl").exists() {
            this.put(
                &engine,
                [(Bytes::from_static(b"filler"), value(n, 1 << 20)), (row(n), value(n, 300))].into_iter(),
            );
            n += 1;
        }
        this.put(&engine, (n..n + 3).map(|n| (row(n), value(n, 300))));
        drop(engine);
        this
    }

    /// The engine, opened a second time: from then on no space is reserved behind its journal, which makes copies small.
    pub(super) fn reopened(&self) -> Fjall {
        drop(Fjall::open(self.path(), options(8 << 20)).unwrap());
        Fjall::open(self.path(), options(8 << 20)).unwrap()
    }

    /// Writes what was acknowledged to a file.
    pub(super) fn list(&self) -> PathBuf {
        let path = self.now.path().join("acknowledged");
        let mut bytes = Vec::new();
        let rows = self.acknowledged.iter().map(|(row, value)| [row, value]).collect::<Vec<_>>();
        for part in self.identity.iter().chain(rows.into_iter().flatten()) {
            bytes.extend((part.len() as u32).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes.push(u8::from(self.identity.is_some()));
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(super) fn listed(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let (has_identity, mut rest) = bytes.split_last().unwrap();
        let mut parts = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (part, after) = after.split_at(u32::from_le_bytes(*length) as usize);
            parts.push(Bytes::copy_from_slice(part));
            rest = after;
        }
        let identity = (*has_identity == 1).then(|| parts.remove(0));
        let acknowledged = parts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        Self { acknowledged, identity, ..Self::new() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.now.path().join("store")
    }

    pub(super) fn take_older(&self) {
        copy(&self.path(), &self.older.path().join("store"), None);
    }

    /// Everything is still in the first journal, and some of it in tables, too.
    pub(super) fn young() -> Self {
        let mut this = Self::new();
        for half in 0..2 {
            let engine = Fjall::open(this.path(), options(32 << 10)).unwrap();
            let identity = value(half, 29);
            engine.set_note("identity", identity.clone()).unwrap();
            this.identity = Some(identity);
            for batch in 0..40 {
                let first = half * 120 + batch * 3;
                this.put(&engine, (first..first + 3).map(|n| (row(n), value(n, 300))));
            }
            drop(engine);
            if half == 0 {
                this.take_older();
            }
        }
        this
    }

    /// The first journal is gone: what it contained is only in tables.
    pub(super) fn grown() -> Self {
        let mut this = Self::new();
        let engine = Fjall::open(this.path(), options(8 << 20)).unwrap();
        for batch in 0..30 {
            this.put(&engine, (batch * 3..batch * 3 + 3).map(|n| (row(n), value(n, 300))));
        }
        drop(engine);
        this.take_older();
        let engine = Fjall::open(this.path(), options(8 << 20)).unwrap();
        let gone = this.path().join("0.jnl");
        let until = Instant::now() + Duration::from_secs(30);
        let mut fill = 0;
        while gone.exists() {
            this.put(&engine, std::iter::once((Bytes::from_static(b"filler"), value(fill, 1 << 20))));
            fill += 1;
            assert!(Instant::now() < until, "the first journal is never removed");
        }
        for n in 90..120 {
            this.put(&engine, std::iter::once((row(n), value(n, 300))));
        }
        drop(engine);
        drop(this.reopened());
        this
    }
}

/// Copies a folder. Tables are linked, since they are only ever read or removed; `but` is copied in any case.
pub(super) fn copy(from: &Path, to: &Path, but: Option<&Path>) {
    fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        let target = to.join(entry.file_name().unwrap());
        let kept = entry.with_extension("");
        if entry.is_dir() {
            copy(&entry, &target, but);
        } else if from.ends_with("tables") && but != Some(&entry) {
            fs::hard_link(&entry, &target).unwrap();
        } else if entry.extension().is_some_and(|extension| extension == "kept") && is_same(&entry, &kept) {
            fs::hard_link(to.join(kept.file_name().unwrap()), &target).unwrap();
        } else {
            write_sparse(&target, &fs::read(&entry).unwrap());
        }
    }
}

pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path| fs::metadata(path).map(|metadata| metadata.ino()).ok();
    inode(one).is_some() && inode(one) == inode(other)
}

pub(super) fn write_sparse(path: &Path, content: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&content[..used(content)]).unwrap();
    file.set_len(content.len() as u64).unwrap();
}

/// Length without the zeros at the end.
pub(super) fn used(content: &[u8]) -> usize {
    content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}
