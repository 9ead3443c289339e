//! Rows in fjall's log-structured merge tree: a journal that is synced, and sorted tables written in the background.
//!
//! fjall stops accepting writes for good ("poisoned") when one of its own has failed, which a full disk causes easily. So
//! writes are refused while less than [`Options::min_free_bytes`] are free, before fjall hears of them; and should the disk
//! be full nevertheless (others fill it too), the database is opened anew once there is room. It never is after a sync has
//! failed for another reason: what the system then believes to be on the disk may not be there, so that only a restart by
//! somebody who has looked at the disk may go on.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Change, Engine, EngineError, Usage};

/// How often an engine that waits for room tries to open its database again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// How a store is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Writes are refused while less is free on the file system. What is in memory must still find room, and so must the
    /// tables that a compaction writes before it drops those it has merged.
    pub min_free_bytes: u64,
    /// Memory for blocks of tables that were read.
    pub cache_bytes: u64,
    /// Rows gather in memory up to so many bytes before they are written to a table.
    pub memtable_bytes: u64,
    /// Threads that write and merge tables.
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        // With two or more workers fjall reserves the first for writing tables, and lets it spin on the queue while merges
        // wait: on a small machine that costs more than it brings.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            min_free_bytes: 512 << 20,
            cache_bytes: 64 << 20,
            memtable_bytes: 64 << 20,
            workers: if cores < 4 { 1 } else { 2 },
        }
    }
}

/// The engine on a folder of a real disk.
pub struct Fjall {
    folder: PathBuf,
    options: Options,
    /// Nothing only while, or after, opening it again has failed.
    open: RwLock<Option<Open>>,
    condition: Mutex<Condition>,
    /// The least room seen since the database was opened, in bytes.
    least_free: AtomicU64,
}

struct Open {
    database: Database,
    records: Keyspace,
    notes: Keyspace,
}

enum Condition {
    Sound,
    /// To be opened again when there is room.
    WaitsForRoom {
        tried: Option<Instant>,
    },
    /// To be looked at by a person.
    Dead(String),
}

impl Fjall {
    /// Opens the store in `folder`, or makes an empty one. Fails while another process has it open.
    pub fn open(folder: impl Into<PathBuf>, options: Options) -> Result<Self, EngineError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|error| describe(&folder, "cannot be made", &error))?;
        clear_unfinished(&folder).map_err(|error| describe(&folder, "cannot be cleared", &error))?;
        let open = Open::new(&folder, &options)?;
        Ok(Self {
            folder,
            options,
            open: RwLock::new(Some(open)),
            condition: Mutex::new(Condition::Sound),
            least_free: AtomicU64::new(u64::MAX),
        })
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        // It is replaced as a whole: a panic elsewhere leaves it meaningful.
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> RwLockReadGuard<'_, Option<Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, job: impl FnOnce(&Open) -> fjall::Result<T>) -> Result<T, EngineError> {
        match &*self.reading() {
            Some(open) => job(open).map_err(|error| EngineError::Broken(error.to_string())),
            None => Err(EngineError::Broken("the store waits for disk space to be opened again".to_owned())),
        }
    }

    /// Bytes free for this process.
    fn free(&self) -> Result<u64, EngineError> {
        let stat =
            rustix::fs::statvfs(&self.folder).map_err(|error| describe(&self.folder, "cannot be seen", &error))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        self.least_free.fetch_min(free, Ordering::Relaxed);
        Ok(free)
    }

    /// Refuses while the disk is full, and opens the database again when it no longer is.
    fn ready_to_write(&self) -> Result<(), EngineError> {
        if self.free()? < self.options.min_free_bytes {
            return Err(EngineError::Full);
        }
        self.ready_to_sync()
    }

    fn ready_to_sync(&self) -> Result<(), EngineError> {
        let mut condition = self.condition();
        match &*condition {
            Condition::Sound => Ok(()),
            Condition::Dead(reason) => Err(EngineError::Broken(reason.clone())),
            Condition::WaitsForRoom { tried } if tried.is_some_and(|tried| tried.elapsed() < REOPEN_EVERY) => {
                Err(EngineError::Full)
            }
            Condition::WaitsForRoom { .. } => {
                *condition = self.reopen();
                if matches!(*condition, Condition::Sound) { Ok(()) } else { Err(EngineError::Full) }
            }
        }
    }

    /// Opens the database again. What it then finds in its journal it has synced, so that nothing that is read afterwards
    /// can be lost.
    fn reopen(&self) -> Condition {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // The old one must be gone, with its threads and its lock, before the new one can be.
        drop(open.take());
        match Open::new(&self.folder, &self.options) {
            Ok(new) => {
                tracing::warn!(folder = %self.folder.display(), "the disk has room again; the store accepts writes");
                self.least_free.store(u64::MAX, Ordering::Relaxed);
                *open = Some(new);
                Condition::Sound
            }
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "the store cannot be opened again yet");
                Condition::WaitsForRoom { tried: Some(Instant::now()) }
            }
        }
    }

    /// Says what a failed write or sync means, and remembers it.
    fn failed(&self, doing: &str, error: &fjall::Error) -> EngineError {
        let reason = format!("{doing} in {}: {error}", self.folder.display());
        let mut condition = self.condition();
        if matches!(*condition, Condition::Sound) {
            if self.is_for_want_of_room(error) {
                tracing::error!(folder = %self.folder.display(), %error, "the disk is full: writes are refused until it is not");
                *condition = Condition::WaitsForRoom { tried: None };
            } else {
                tracing::error!(folder = %self.folder.display(), %error, "the store has failed: look at the disk, then restart the node");
                *condition = Condition::Dead(reason.clone());
            }
        }
        EngineError::Broken(reason)
    }

    /// A background thread's error is not told, only that there was one: then room that had become scarce is taken for the
    /// cause.
    fn is_for_want_of_room(&self, error: &fjall::Error) -> bool {
        match error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            ),
            fjall::Error::Poisoned => {
                let scarce = self.options.min_free_bytes.saturating_mul(2).max(self.options.memtable_bytes * 4);
                let _ = self.free();
                self.least_free.load(Ordering::Relaxed) < scarce
            }
            _ => false,
        }
    }
}

impl Open {
    fn new(folder: &Path, options: &Options) -> Result<Self, EngineError> {
        Self::try_new(folder, options).map_err(|error| match error {
            fjall::Error::Locked => {
                EngineError::Broken(format!("the store in {} is in use by another process", folder.display()))
            }
            error => describe(folder, "cannot be opened", &error),
        })
    }

    fn try_new(folder: &Path, options: &Options) -> fjall::Result<Self> {
        let database =
            Database::builder(folder).cache_size(options.cache_bytes).worker_threads(options.workers.max(1)).open()?;
        let rows = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes);
        let records = database.keyspace("records", rows)?;
        let notes = database.keyspace("notes", KeyspaceCreateOptions::default)?;
        Ok(Self { database, records, notes })
    }

    fn commit(&self, batch: Vec<Change>) -> fjall::Result<()> {
        let mut changes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        for (row, value) in batch {
            match value {
                Some(value) => changes.insert(&self.records, row, value),
                None => changes.remove(&self.records, row),
            }
        }
        changes.durability(Some(PersistMode::Buffer)).commit()
    }
}

fn describe(folder: &Path, what: &str, error: &dyn std::error::Error) -> EngineError {
    EngineError::Broken(format!("the store in {} {what}: {error}", folder.display()))
}

/// Removes what is left of a store whose making was interrupted: fjall writes its version last, and without that refuses to
/// go on where it stopped. Nothing was ever stored in it.
fn clear_unfinished(folder: &Path) -> io::Result<()> {
    if fs::metadata(folder.join("version")).is_ok_and(|version| version.len() > 0) {
        return Ok(());
    }
    for name in ["0.jnl", "version"] {
        ignore_missing(fs::remove_file(folder.join(name)))?;
    }
    ignore_missing(fs::remove_dir_all(folder.join("keyspaces")))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Engine for Fjall {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.with(|open| open.records.get(row))?.map(Bytes::from))
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        self.ready_to_write()?;
        let written = match &*self.reading() {
            Some(open) => open.commit(batch),
            None => return Err(EngineError::Full),
        };
        // The guard is gone: whoever opens the database again waits for it with the condition locked.
        let Err(error) = written else { return Ok(()) };
        let reason = self.failed("write", &error);
        let waits = matches!(*self.condition(), Condition::WaitsForRoom { .. });
        // A poisoned database refuses before it has written anything.
        if waits && matches!(error, fjall::Error::Poisoned) { Err(EngineError::Full) } else { Err(reason) }
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.ready_to_sync().map_err(|error| EngineError::Broken(error.to_string()))?;
        let synced = match &*self.reading() {
            Some(open) => open.database.persist(PersistMode::SyncData),
            None => return Err(EngineError::Broken("the store is not open".to_owned())),
        };
        synced.map_err(|error| self.failed("sync", &error))
    }

    fn scan(&self, range: Range<Bytes>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.with(|open| {
            let row = |guard: fjall::Guard| guard.into_inner().map(|(row, value)| (row.into(), value.into()));
            open.records.range(range).take(limit).map(row).collect()
        })
    }

    fn walk(&self, range: Range<Bytes>, each: &mut dyn FnMut(Bytes, Bytes) -> bool) -> Result<(), EngineError> {
        if range.is_empty() {
            return Ok(());
        }
        self.with(|open| {
            for guard in open.records.range(range) {
                let (row, value) = guard.into_inner()?;
                if !each(row.into(), value.into()) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn usage(&self) -> Result<Usage, EngineError> {
        let bytes = self.with(|open| open.database.disk_space())?;
        let stat =
            rustix::fs::statvfs(&self.folder).map_err(|error| describe(&self.folder, "cannot be seen", &error))?;
        // As df counts: what is reserved for root is neither used nor free.
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let all = used + stat.f_bavail;
        let percent = if all == 0 { 0.0 } else { used as f32 * 100.0 / all as f32 };
        Ok(Usage { bytes, percent })
    }

    fn approximate_keys(&self) -> u64 {
        self.with(|open| Ok(open.records.approximate_len() as u64)).unwrap_or(0)
    }

    fn note(&self, name: &str) -> Result<Option<Bytes>, EngineError> {
        Ok(self.with(|open| open.notes.get(name))?.map(Bytes::from))
    }

    fn set_note(&self, name: &str, value: Bytes) -> Result<(), EngineError> {
        self.with(|open| {
            open.notes.insert(name, value)?;
            open.database.persist(PersistMode::SyncAll)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::contract;

    #[test]
    fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        contract::check(&mut || Box::new(Fjall::open(folder.path(), Options::default()).unwrap()));
    }

    #[test]
    fn one_process_at_a_time_and_the_error_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Fjall::open(folder.path(), Options::default()).unwrap();
        let error = Fjall::open(folder.path(), Options::default()).err().unwrap().to_string();
        assert!(error.contains("another process"), "{error}");
    }

    #[test]
    fn a_store_whose_making_was_interrupted_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("0.jnl"), b"").unwrap();
        fs::write(folder.path().join("lock"), b"").unwrap();
        fs::write(folder.path().join("version"), b"").unwrap();
        fs::create_dir(folder.path().join("keyspaces")).unwrap();
        Fjall::open(folder.path(), Options::default()).unwrap();
    }
}
