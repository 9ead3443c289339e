//! An engine on fjall, a log-structured merge tree: a journal that is synced, and sorted tables written in the background.
//!
//! fjall refuses writes for good ("poisoned") once one of its own writes has failed, which a full disk easily causes. Writes
//! are therefore refused before they reach fjall while less than [`Options::min_free_bytes`] are free. If the disk becomes full
//! nevertheless (other processes fill it, too), the database is reopened once there is room. After a sync has failed for any
//! other reason it is never reopened: data that the operating system considers written may be missing on the disk, so an operator
//! has to check the disk and restart the node.
//!
//! fjall opens a damaged journal without a word, and cuts it at the damage. So what returned syncs have covered is written to a file
//! beside it, the mark, and the folder is checked against it before fjall sees it (docs/decisions/0025). Damaged tables need no mark:
//! each of their blocks has a checksum, and reading a damaged one is an error.
//!
//! Reading order: `journal` reads fjall's journals, `mark` is the file, `check` decides whether a folder may be opened (`holder`
//! finds out who has it open), and `keeper` writes the mark while it is open.

mod check;
mod holder;
mod journal;
mod keeper;
mod mark;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use witan_kernel::sync::lock;

use self::keeper::Keeper;
use super::{Change, Engine, EngineError, Usage};
use crate::priority;

/// Shortest interval between two attempts to reopen the database after the disk was full.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// For how long it is known that there is room, once there was [`PLENTY`]: asking the file system costs as much as writing a small batch.
const ROOM_KNOWN: Duration = Duration::from_millis(10);
/// Free bytes beyond twice [`Options::min_free_bytes`] that no disk can fill within [`ROOM_KNOWN`].
const PLENTY: u64 = 1 << 30;

/// Settings of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Writes are refused while less is free on the file system, in bytes. The rest is for rows that are still in memory, and
    /// for the tables that a compaction writes before it deletes those it has merged.
    pub min_free_bytes: u64,
    /// Memory for table blocks that were read, in bytes.
    pub cache_bytes: u64,
    /// Size at which rows in memory are written to a table, in bytes.
    pub memtable_bytes: u64,
    /// Number of threads that write and merge tables.
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        // With two or more workers fjall reserves the first for writing tables, and lets it spin on the queue while merges
        // wait, which does not pay on a small machine.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            min_free_bytes: 512 << 20,
            cache_bytes: 64 << 20,
            memtable_bytes: 64 << 20,
            workers: if cores < 4 { 1 } else { 2 },
        }
    }
}

impl Options {
    /// The same with somewhat less memory for rows, by a random number. Replicas are written to alike: with equal sizes they would write
    /// their tables at the same moment, when none of them answers as fast as usual, and no quorum could go on without them.
    #[must_use]
    pub fn staggered(mut self, random: u8) -> Self {
        self.memtable_bytes -= self.memtable_bytes / 4 / 256 * u64::from(random);
        self
    }
}

/// The engine in a folder of a real disk.
pub struct Fjall {
    folder: PathBuf,
    options: Options,
    /// `None` while the database is being reopened, and after that has failed.
    open: RwLock<Option<Open>>,
    condition: Mutex<Condition>,
    /// The least free space seen since shortly before the database was opened, in bytes.
    least_free: AtomicU64,
    /// Until when it is known that there is room, in microseconds since `began`.
    room_until: AtomicU64,
    began: Instant,
    /// How many times the database was reopened.
    reopenings: AtomicU64,
}

struct Open {
    /// Dropped first: it marks what was written until then.
    keeper: Keeper,
    database: Database,
    records: Keyspace,
    notes: Keyspace,
}

enum Condition {
    Sound,
    /// The disk was full; the database is to be reopened when there is room.
    WaitsForRoom {
        /// The last attempt to reopen it.
        tried: Option<Instant>,
    },
    /// It failed for this reason, and an operator has to act.
    Dead(String),
}

impl Fjall {
    /// Opens the store in `folder`, or creates an empty one. Fails while another process has it open.
    pub fn open(folder: impl Into<PathBuf>, options: Options) -> Result<Self, EngineError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|error| describe(&folder, "cannot be created", &error))?;
        let open = Open::new(&folder, &options)?;
        Ok(Self {
            folder,
            options,
            open: RwLock::new(Some(open)),
            condition: Mutex::new(Condition::Sound),
            least_free: AtomicU64::new(u64::MAX),
            room_until: AtomicU64::new(0),
            began: Instant::now(),
            reopenings: AtomicU64::new(0),
        })
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        lock(&self.condition)
    }

    fn reading(&self) -> RwLockReadGuard<'_, Option<Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, job: impl FnOnce(&Open) -> fjall::Result<T>) -> Result<T, EngineError> {
        match &*self.reading() {
            Some(open) => job(open).map_err(|error| EngineError::Broken(error.to_string())),
            None => Err(EngineError::Broken("the store is closed until the disk has room again".to_owned())),
        }
    }

    fn commit(&self, batch: Vec<Change>, note: Option<(&str, Bytes)>) -> Result<(), EngineError> {
        self.ready_to_write()?;
        let written = match &*self.reading() {
            Some(open) => open.commit(batch, note),
            None => return Err(EngineError::Full),
        };
        // The read guard was dropped: whoever reopens the database waits for it while holding the condition's lock.
        let Err(error) = written else { return Ok(()) };
        let reason = self.failed("write", &error);
        let waits = matches!(*self.condition(), Condition::WaitsForRoom { .. });
        // A poisoned database refuses before it has written anything.
        if waits && matches!(error, fjall::Error::Poisoned) { Err(EngineError::Full) } else { Err(reason) }
    }

    /// The bytes that are free for this process.
    fn free(&self) -> Result<u64, EngineError> {
        let stat =
            rustix::fs::statvfs(&self.folder).map_err(|error| describe(&self.folder, "cannot be examined", &error))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        self.least_free.fetch_min(free, Ordering::Relaxed);
        Ok(free)
    }

    /// Whether there is room for further rows.
    fn has_room(&self) -> Result<bool, EngineError> {
        let now = self.began.elapsed().as_micros() as u64;
        if now < self.room_until.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let (free, least) = (self.free()?, self.options.min_free_bytes);
        let is_plenty = free >= least.saturating_mul(2).saturating_add(PLENTY);
        self.room_until.store(if is_plenty { now + ROOM_KNOWN.as_micros() as u64 } else { 0 }, Ordering::Relaxed);
        Ok(free >= least)
    }

    /// An error while the disk is full; reopens the database when it no longer is.
    fn ready_to_write(&self) -> Result<(), EngineError> {
        if !self.has_room()? {
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
                let free = self.free()?;
                // Rows that are read from the journals are written to tables at once. Without room for them the database would be
                // poisoned again by its own threads.
                if free < self.options.min_free_bytes.saturating_add(self.options.memtable_bytes) {
                    return Err(EngineError::Full);
                }
                *condition = self.reopen(free);
                if matches!(*condition, Condition::Sound) { Ok(()) } else { Err(EngineError::Full) }
            }
        }
    }

    /// Reopens the database; `free` bytes were free shortly before. Opening syncs what it finds in the journal, so nothing that is
    /// read afterwards can be lost.
    fn reopen(&self, free: u64) -> Condition {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // The old database must be closed, with its threads and its lock, before it can be opened again.
        drop(open.take());
        self.reopenings.fetch_add(1, Ordering::Release);
        match Open::new(&self.folder, &self.options) {
            Ok(new) => {
                tracing::warn!(folder = %self.folder.display(), "the disk has room again; the store accepts writes");
                self.least_free.store(free, Ordering::Relaxed);
                *open = Some(new);
                Condition::Sound
            }
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "the store cannot be reopened yet");
                Condition::WaitsForRoom { tried: Some(Instant::now()) }
            }
        }
    }

    /// Classifies a failed write or sync, and remembers the condition that it leaves.
    fn failed(&self, doing: &str, error: &fjall::Error) -> EngineError {
        let reason = format!("{doing} in {}: {error}", self.folder.display());
        let mut condition = self.condition();
        if matches!(*condition, Condition::Sound) {
            if self.is_full_disk(error) {
                *condition = Condition::WaitsForRoom { tried: None };
            } else {
                *condition = Condition::Dead(reason.clone());
            }
        }
        EngineError::Broken(reason)
    }

    /// Whether a full disk caused an error. fjall does not report the error of a background thread, only that there was one; a
    /// full disk is then assumed if free space had become scarce.
    fn is_full_disk(&self, error: &fjall::Error) -> bool {
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
        let refused =
            |refused: check::Refused| EngineError::Broken(format!("the store in {} {refused}", folder.display()));
        check::check(folder).map_err(refused)?;
        // fjall asserts some of what it reads from its files: a panic ends the thread, and is an error here.
        let opened = thread::scope(|scope| {
            scope
                .spawn(|| {
                    // Its own threads, which write out and compact, have the same.
                    priority::lower();
                    Self::open(folder, options)
                })
                .join()
        });
        let (database, records, notes) = match opened {
            Ok(opened) => opened.map_err(|error| match error {
                fjall::Error::Locked => refused(check::Refused::in_use(folder)),
                error => describe(folder, "cannot be opened", &error),
            })?,
            Err(_) => {
                let unreadable = io::Error::other("its engine cannot make sense of its files");
                return Err(describe(folder, "cannot be opened", &unreadable));
            }
        };
        let keeper = Keeper::open(folder).map_err(refused)?;
        Ok(Self { keeper, database, records, notes })
    }

    fn open(folder: &Path, options: &Options) -> fjall::Result<(Database, Keyspace, Keyspace)> {
        let database =
            Database::builder(folder).cache_size(options.cache_bytes).worker_threads(options.workers.max(1)).open()?;
        let rows = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes);
        let records = database.keyspace("records", rows)?;
        let notes = database.keyspace("notes", KeyspaceCreateOptions::default)?;
        Ok((database, records, notes))
    }

    fn sync(&self) -> fjall::Result<()> {
        Ok(self.keeper.sync()?)
    }

    fn commit(&self, batch: Vec<Change>, note: Option<(&str, Bytes)>) -> fjall::Result<()> {
        if batch.is_empty() && note.is_none() {
            return Ok(());
        }
        // Without syncs of the node's own (`--durability os`), nobody else would hear of a sync that has failed.
        self.keeper.check()?;
        let length = |change: &Change| change.0.len() + change.1.as_ref().map_or(0, Bytes::len);
        let noted = note.as_ref().map_or(0, |(name, value)| name.len() + value.len());
        let (rows, bytes) =
            (batch.len() + usize::from(note.is_some()), batch.iter().map(length).sum::<usize>() + noted);
        let mut changes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len() + 1);
        if let Some((name, value)) = note {
            changes.insert(&self.notes, name, value);
        }
        for (row, value) in batch {
            match value {
                Some(value) => changes.insert(&self.records, row, value),
                None => changes.remove(&self.records, row),
            }
        }
        changes.durability(Some(PersistMode::Buffer)).commit()?;
        self.keeper.wrote(rows, bytes);
        Ok(())
    }
}

/// The process that has the folder of an engine open, for messages: its number and its name, if they can be found.
pub fn holder(folder: &Path) -> String {
    holder::of(&folder.join(check::LOCK)).unwrap_or_else(|| "another process".to_owned())
}

fn describe(folder: &Path, what: &str, error: &dyn std::error::Error) -> EngineError {
    EngineError::Broken(format!("the store in {} {what}: {error}", folder.display()))
}

impl Engine for Fjall {
    fn condition(&self) -> witan_kernel::condition::Condition {
        use witan_kernel::condition::Condition as Reported;
        match &*self.condition() {
            Condition::Sound => Reported::Serving,
            Condition::WaitsForRoom { .. } => Reported::Full,
            Condition::Dead(reason) => Reported::Failed(reason.clone()),
        }
    }

    fn reopenings(&self) -> u64 {
        self.reopenings.load(Ordering::Acquire)
    }

    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.with(|open| open.records.get(row))?.map(Bytes::from))
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        self.commit(batch, None)
    }

    fn write_noting(&self, batch: Vec<Change>, name: &str, value: Bytes) -> Result<(), EngineError> {
        self.commit(batch, Some((name, value)))
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.ready_to_sync().map_err(|error| EngineError::Broken(error.to_string()))?;
        let synced = match &*self.reading() {
            Some(open) => open.sync(),
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
            rustix::fs::statvfs(&self.folder).map_err(|error| describe(&self.folder, "cannot be examined", &error))?;
        // As `df` computes it: blocks reserved for root are neither used nor free.
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
            let bytes = name.len() + value.len();
            open.notes.insert(name, value)?;
            open.keeper.wrote(1, bytes);
            open.sync()
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
    fn replicas_write_their_tables_at_different_moments() {
        let memory = |random| Options::default().staggered(random).memtable_bytes;
        assert_eq!(memory(0), Options::default().memtable_bytes);
        assert!(memory(255) > Options::default().memtable_bytes / 4 * 3);
        assert!(memory(100) - memory(110) > 512 << 10, "one in 25 has about as much");
    }

    /// Field 19 of a thread's `stat` is its niceness.
    #[cfg(target_os = "linux")]
    #[test]
    fn its_own_threads_have_a_lower_priority() {
        let folder = tempfile::tempdir().unwrap();
        let _open = Fjall::open(folder.path(), Options::default()).unwrap();
        let stats = fs::read_dir("/proc/self/task").unwrap();
        // A thread of another test may have ended meanwhile.
        let stats = stats.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).ok());
        let nice = |stat: String| -> Option<i32> {
            let (_, rest) = stat.split_once("(fjall:worker)")?;
            rest.split_whitespace().nth(16)?.parse().ok()
        };
        let (found, own): (Vec<i32>, _) = (stats.filter_map(nice).collect(), rustix::process::nice(0).unwrap());
        assert!(!found.is_empty() && found.iter().all(|nice| *nice > own || own == 19), "{found:?} and {own}");
    }

    #[test]
    fn one_process_at_a_time_and_the_error_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Fjall::open(folder.path(), Options::default()).unwrap();
        let error = Fjall::open(folder.path(), Options::default()).err().unwrap().to_string();
        let this = format!("in use by process {} ", std::process::id());
        assert!(error.contains(&this) && error.contains("--data-dir"), "{error}");
    }

    #[test]
    fn a_store_whose_creation_was_interrupted_is_created_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("0.jnl"), b"").unwrap();
        fs::write(folder.path().join("lock"), b"").unwrap();
        fs::write(folder.path().join("version"), b"").unwrap();
        fs::create_dir(folder.path().join("keyspaces")).unwrap();
        Fjall::open(folder.path(), Options::default()).unwrap();
    }
}
