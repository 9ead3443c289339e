//! The records on disk: one keyspace by name, one by the time at which a record is first worth a look for having expired.
//!
//! The second is written when a record is created, not with every step: whoever finds a due entry looks at the record, and
//! either forgets both or moves the entry to the time that the record is now kept until. So every record has an entry that
//! is due no later than the record expires, and a step costs one write.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::io;
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use witan_kernel::idempotency::{Change, KEPT_MS, Name, Reservation, Step, Stepped, apply};
use witan_kernel::port::{Durability, StoreError};

/// Blocks kept in memory: records are looked up at random and seldom twice.
const CACHE_BYTES: u64 = 8 << 20;
/// A memtable's size; with the journal that it stands for, what a restart reads.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// The journals' size; the least that the engine takes.
const JOURNAL_BYTES: u64 = 64 << 20;

/// How long sweeping rests after it could not read. Milliseconds.
const RETRY_MS: u64 = 60_000;

/// The open store.
pub(super) struct Records {
    database: Database,
    by_name: Keyspace,
    by_time: Keyspace,
    persist: PersistMode,
    sweep: Sweep,
}

/// How far expired records have been swept.
struct Sweep {
    /// Entries before this are gone.
    from: [u8; 40],
    /// No entry is due before this.
    next_due_ms: u64,
}

impl Records {
    /// Opens or creates the store in a folder.
    pub(super) fn open(folder: &Path, durability: Durability) -> Result<Self, StoreError> {
        clear_unfinished(folder).map_err(|error| failed("open the idempotency store", &error.into()))?;
        let database = Database::builder(folder)
            .worker_threads(1)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .manual_journal_persist(true)
            .open()
            .map_err(|error| failed("open the idempotency store", &error))?;
        let keyspace = |name| {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            database.keyspace(name, options).map_err(|error| failed("open the idempotency store", &error))
        };
        let (by_name, by_time) = (keyspace("reservations")?, keyspace("expiry")?);
        let persist = match durability {
            Durability::Sync => PersistMode::SyncData,
            Durability::Os => PersistMode::Buffer,
        };
        Ok(Self { database, by_name, by_time, persist, sweep: Sweep { from: [0; 40], next_due_ms: 0 } })
    }

    /// Begins a batch of steps, all at the same time.
    pub(super) fn round(&mut self, now_ms: u64) -> Round<'_> {
        Round { records: self, now_ms, touched: HashMap::new(), entries: BTreeMap::new() }
    }

    fn read(&self, name: &Name) -> Result<Option<Reservation>, StoreError> {
        let stored = self.by_name.get(name.0).map_err(|error| failed("read a reservation", &error))?;
        let read = stored.map(|bytes| Reservation::decode(&bytes)).transpose();
        read.map_err(|damaged| StoreError::Damaged(damaged.to_string()))
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        (self.by_name.iter().count(), self.by_time.iter().count())
    }
}

/// Steps that are committed together. Dropped without a commit, none of them has happened.
pub(super) struct Round<'a> {
    records: &'a mut Records,
    now_ms: u64,
    touched: HashMap<Name, Touched>,
    /// Entries by time to write (true) or remove (false).
    entries: BTreeMap<[u8; 40], bool>,
}

/// A record as the steps so far leave it.
struct Touched {
    record: Option<Reservation>,
    changed: bool,
}

impl Round<'_> {
    /// Applies one step.
    pub(super) fn step(&mut self, name: Name, step: &Step) -> Result<Stepped, StoreError> {
        let now_ms = self.now_ms;
        let touched = self.touch(name)?;
        let (change, told) = apply(touched.record.as_ref(), step, now_ms);
        let entry = match change {
            Change::Keep => None,
            Change::Put(record) => {
                let entry = touched.record.is_none().then(|| entry(record.kept_until_ms, name));
                *touched = Touched { record: Some(record), changed: true };
                entry
            }
            Change::Delete => {
                // Its entry stays, and finds nothing when it is due.
                *touched = Touched { record: None, changed: true };
                None
            }
        };
        self.entries.extend(entry.map(|entry| (entry, true)));
        Ok(told)
    }

    /// Forgets records that have expired, looking at no more than `most`. What it cannot read it leaves for later: steps
    /// need no sweeping to be right.
    pub(super) fn sweep(&mut self, most: usize) {
        if self.now_ms < self.records.sweep.next_due_ms {
            return;
        }
        self.records.sweep.next_due_ms = self.sweep_some(most).unwrap_or_else(|error| {
            tracing::error!(%error, "expired reservations cannot be read, and stay");
            self.now_ms.saturating_add(RETRY_MS)
        });
    }

    /// When there is more to do.
    fn sweep_some(&mut self, most: usize) -> Result<u64, fjall::Error> {
        let due = self.records.by_time.range(self.records.sweep.from..);
        for (seen, found) in due.enumerate() {
            let key = found.key()?;
            let Some((due_ms, name)) = parse(&key) else {
                tracing::error!(bytes = key.len(), "an entry by expiry time is none of ours; it stays");
                continue;
            };
            if due_ms > self.now_ms || seen >= most {
                return Ok(due_ms);
            }
            self.look_at(due_ms, name);
            self.records.sweep.from = entry(due_ms, name);
        }
        // Whatever is stored from now on is kept so long.
        Ok(self.now_ms.saturating_add(KEPT_MS))
    }

    fn look_at(&mut self, due_ms: u64, name: Name) {
        let now_ms = self.now_ms;
        self.entries.insert(entry(due_ms, name), false);
        let look_again_ms = match self.touch(name) {
            Ok(Touched { record: None, .. }) => None,
            Ok(Touched { record: Some(record), .. }) if record.kept_until_ms > now_ms => Some(record.kept_until_ms),
            Ok(touched) => {
                *touched = Touched { record: None, changed: true };
                None
            }
            Err(error) => {
                tracing::error!(%error, "a reservation that may have expired cannot be read; it is kept for another day");
                Some(now_ms.saturating_add(KEPT_MS))
            }
        };
        self.entries.extend(look_again_ms.map(|at| (entry(at, name), true)));
    }

    fn touch(&mut self, name: Name) -> Result<&mut Touched, StoreError> {
        match self.touched.entry(name) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(vacant) => {
                let record = self.records.read(&name)?;
                Ok(vacant.insert(Touched { record, changed: false }))
            }
        }
    }

    /// Stores all of it, or, when the process ends midway, none. Synced when it returns, if the store syncs.
    ///
    /// Each key is written once: the engine gives no order to two writes of one key in a batch.
    pub(super) fn commit(self) -> Result<(), Failure> {
        let writes = self.touched.len() + self.entries.len();
        let mut batch = OwnedWriteBatch::with_capacity(self.records.database.clone(), writes)
            .durability(Some(self.records.persist));
        for (name, touched) in self.touched.into_iter().filter(|(_, touched)| touched.changed) {
            match touched.record {
                Some(record) => batch.insert(&self.records.by_name, name.0, &record.encode()[..]),
                None => batch.remove(&self.records.by_name, name.0),
            }
        }
        for (entry, write) in self.entries {
            if write {
                batch.insert(&self.records.by_time, entry, []);
            } else {
                batch.remove(&self.records.by_time, entry);
            }
        }
        batch.commit().map_err(|error| {
            let told = failed("store reservations", &error);
            if may_open_again(&error) { Failure::Passing(told) } else { Failure::Lasting(told) }
        })
    }
}

/// Why a commit failed. The engine takes nothing more afterwards, in either case.
pub(super) enum Failure {
    /// Opened again, the store is as good as before. Whether the commit happened shows then.
    Passing(StoreError),
    /// A write or sync of the journal failed: what the system now believes to be on the disk may not be there, and a store
    /// opened again would build on it. Somebody has to look at the disk.
    Lasting(StoreError),
}

/// True for want of room, and when it was not this commit that failed but the engine's work on tables, whose journal is
/// safe.
fn may_open_again(error: &fjall::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        fjall::Error::Io(error) => matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge),
        _ => true,
    }
}

/// Removes what is left of a store whose making was cut short: the engine writes its version mark last, and without it
/// refuses to go on. Nothing was ever acknowledged from such a store.
fn clear_unfinished(folder: &Path) -> io::Result<()> {
    let finished = std::fs::metadata(folder.join("version")).is_ok_and(|mark| mark.len() > 0);
    if finished || !folder.try_exists()? {
        return Ok(());
    }
    for file in ["0.jnl", "version"] {
        unless_missing(std::fs::remove_file(folder.join(file)))?;
    }
    unless_missing(std::fs::remove_dir_all(folder.join("keyspaces")))
}

fn unless_missing(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// A time and a name, ordered by time.
fn entry(due_ms: u64, name: Name) -> [u8; 40] {
    let mut key = [0; 40];
    key[..8].copy_from_slice(&due_ms.to_be_bytes());
    key[8..].copy_from_slice(&name.0);
    key
}

fn parse(key: &[u8]) -> Option<(u64, Name)> {
    let (due_ms, name) = key.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*due_ms), Name(name.try_into().ok()?)))
}

fn failed(what: &str, error: &fjall::Error) -> StoreError {
    let text = format!("{what}: {error}");
    match error {
        fjall::Error::JournalRecovery(_)
        | fjall::Error::InvalidVersion(_)
        | fjall::Error::Decompress(_)
        | fjall::Error::InvalidTrailer
        | fjall::Error::InvalidTag(_)
        | fjall::Error::Unrecoverable => StoreError::Damaged(text),
        _ => StoreError::Unavailable(text),
    }
}
