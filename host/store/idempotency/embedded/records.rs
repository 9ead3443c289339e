//! Records on disk: one keyspace by name, and one by the time at which a record may have expired.
//!
//! The second is written when a record is created, not with every step: the sweep checks the record of each due entry, and either
//! removes both or moves the entry to the record's current expiry. So every record has an entry that is due no later than the record
//! expires, and a step costs one write.

use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::io;
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use witan_kernel::idempotency::{Change, KEPT_MS, Name, Reservation, Step, Stepped, apply};
use witan_kernel::port::{Durability, StoreError};

/// Block cache, in bytes: small, since records are looked up at random and seldom twice.
const CACHE_BYTES: u64 = 8 << 20;
/// Size of a memtable, in bytes; a restart reads the journal behind it.
pub(super) const MEMTABLE_BYTES: u64 = 16 << 20;
/// Size of the journals, in bytes: the engine's minimum.
const JOURNAL_BYTES: u64 = 64 << 20;

/// Pause of the sweep after a read error. Milliseconds.
const RETRY_MS: u64 = 60_000;

/// The open store.
pub(super) struct Records {
    database: Database,
    by_name: Keyspace,
    by_time: Keyspace,
    persist: PersistMode,
    sweep: Sweep,
}

/// Progress of the sweep of expired records.
struct Sweep {
    /// Entries before this were swept.
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
            .map_err(|error| match error {
                fjall::Error::Locked => StoreError::Conflict("it is in use by another process".to_owned()),
                error => failed("open the idempotency store", &error),
            })?;
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

    /// Begins a batch of steps, all applied at the same time.
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

/// Steps that are committed together. Dropping it without a commit discards them all.
pub(super) struct Round<'a> {
    records: &'a mut Records,
    now_ms: u64,
    touched: HashMap<Name, Touched>,
    /// Entries by expiry to write (true) or remove (false).
    entries: BTreeMap<[u8; 40], bool>,
}

/// A record after the steps applied so far.
struct Touched {
    record: Option<Reservation>,
    changed: bool,
}

impl Round<'_> {
    /// Applies one step.
    pub(super) fn step(&mut self, name: Name, step: &Step) -> Result<Stepped, StoreError> {
        let now_ms = self.now_ms;
        let touched = self.touch(name)?;
        let (change, stepped) = apply(touched.record.as_ref(), step, now_ms);
        let entry = match change {
            Change::Keep => None,
            Change::Put(record) => {
                let entry = touched.record.is_none().then_some((record.kept_until_ms, name));
                *touched = Touched { record: Some(record), changed: true };
                entry
            }
            Change::Delete => {
                // Its entry stays, and leads to no record when it is due.
                *touched = Touched { record: None, changed: true };
                None
            }
        };
        if let Some((due_ms, name)) = entry {
            // A record with a short retention may be due before those that the sweep knows of.
            let sweep = &mut self.records.sweep;
            sweep.next_due_ms = sweep.next_due_ms.min(due_ms);
            self.entries.insert(self::entry(due_ms, name), true);
        }
        Ok(stepped)
    }

    /// Removes expired records, checking at most `most`. Records that cannot be read are left for later: steps do not depend on the
    /// sweep.
    pub(super) fn sweep(&mut self, most: usize) {
        if self.now_ms < self.records.sweep.next_due_ms {
            return;
        }
        self.records.sweep.next_due_ms = self.sweep_some(most).unwrap_or_else(|error| {
            tracing::error!(%error, "expired reservations cannot be read; they stay");
            self.now_ms.saturating_add(RETRY_MS)
        });
    }

    /// Sweeps, and returns when the next entry is due.
    fn sweep_some(&mut self, most: usize) -> Result<u64, fjall::Error> {
        let due = self.records.by_time.range(self.records.sweep.from..);
        for (seen, found) in due.enumerate() {
            let key = found.key()?;
            let Some((due_ms, name)) = parse(&key) else {
                tracing::error!(bytes = key.len(), "an entry by expiry time has an unknown format; it stays");
                continue;
            };
            if due_ms > self.now_ms || seen >= most {
                return Ok(due_ms);
            }
            self.check(due_ms, name);
            self.records.sweep.from = entry(due_ms, name);
        }
        // An earlier one is noted when it is stored.
        Ok(self.now_ms.saturating_add(KEPT_MS))
    }

    fn check(&mut self, due_ms: u64, name: Name) {
        let now_ms = self.now_ms;
        self.entries.insert(entry(due_ms, name), false);
        let check_again_ms = match self.touch(name) {
            Ok(Touched { record: None, .. }) => None,
            Ok(Touched { record: Some(record), .. }) if record.remembered_until_ms() > now_ms => {
                Some(record.remembered_until_ms())
            }
            Ok(touched) => {
                *touched = Touched { record: None, changed: true };
                None
            }
            Err(error) => {
                tracing::error!(%error, "a reservation that may have expired cannot be read; it is kept for another day");
                Some(now_ms.saturating_add(KEPT_MS))
            }
        };
        self.entries.extend(check_again_ms.map(|at| (entry(at, name), true)));
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

    /// Stores all of it or, when the process ends midway, none. Synced when it returns, if the store syncs.
    ///
    /// Each key is written once: the engine does not order two writes of one key within a batch.
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
            let failure = failed("store reservations", &error);
            if may_reopen(&error) { Failure::Passing(failure) } else { Failure::Lasting(failure) }
        })
    }
}

/// Why a commit failed. In either case the engine accepts no further writes.
pub(super) enum Failure {
    /// The store can be reopened, which shows whether the commit happened.
    Passing(StoreError),
    /// A write or sync of the journal failed: what the operating system reports as written may not be on disk, and a reopened store
    /// would build on it. An operator has to check the disk.
    Lasting(StoreError),
}

/// True when the disk is full, and when the engine's background work on tables failed rather than this commit: the journal is intact.
fn may_reopen(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Io(error) => is_full(error),
        _ => true,
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Removes the files of a store whose creation was interrupted: the engine writes its version file last, and refuses to open the
/// folder without it. Nothing was ever acknowledged from such a store.
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

/// The key of an entry by expiry: time, then name.
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
        fjall::Error::Io(error) if is_full(error) => StoreError::Full(text),
        fjall::Error::JournalRecovery(_)
        | fjall::Error::InvalidVersion(_)
        | fjall::Error::Decompress(_)
        | fjall::Error::InvalidTrailer
        | fjall::Error::InvalidTag(_)
        | fjall::Error::Unrecoverable => StoreError::Damaged(text),
        _ => StoreError::Unavailable(text),
    }
}
