//! Keeps the mark while the engine is open: follows the journals as they are written, and writes a mark after each sync.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use witan_kernel::sync::lock;

use super::check::{self, Refused, ignore_missing};
use super::journal::{self, Covered, Journal};
use super::mark::{Mark, MarkFile};

/// Shortest time between two syncs of the mark. A mark is written before its sync is acknowledged and so survives the process; after
/// a power failure it may be this much older than the last acknowledgement.
const MARK_SYNC: Duration = Duration::from_millis(20);
/// The time between two syncs of the mark, as a multiple of what one takes: they use a fortieth of the disk's time.
const MARK_SHARE: u32 = 40;
/// Longest such time: a mark that is older says little.
const LONGEST_MARK_SYNC: Duration = Duration::from_secs(1);
/// How often the keeper looks whether the engine has removed journals.
const LOOK: Duration = Duration::from_secs(1);
/// Longest time that written batches stay without a sync. Only with `--durability os` nothing else syncs them.
const LONGEST_UNSYNCED: Duration = Duration::from_secs(5);
/// Most bytes of batches that stay without a sync, about. Before the engine begins another journal it syncs this one, and keeps everybody
/// from writing for as long as that takes: with 64 MiB that are not on the disk, a tenth of a second.
const MOST_UNSYNCED: usize = 4 << 20;

/// Writes the mark of an open store.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    folder: PathBuf,
    file: MarkFile,
    state: Mutex<State>,
    /// Number of batches whose write has returned.
    written: AtomicU64,
    /// Their length in the journals since the last sync, in bytes.
    unsynced: AtomicUsize,
    /// Whether a mark was written that is not durable yet.
    is_dirty: AtomicBool,
    /// The kind of the error after which the mark must not be moved any more, as it is unknown what is on the disk.
    frozen: OnceLock<io::ErrorKind>,
    stopping: Mutex<bool>,
    wake: Condvar,
}

struct State {
    /// The journal that is being written.
    journal: Journal,
    /// Batches that were read from earlier journals.
    earlier: u64,
    /// What the last mark shows of earlier journals, and of trees.
    sealed: Vec<Covered>,
    trees: Vec<(u64, u64)>,
    number: u64,
    /// What the last mark shows of the journal that is being written, and when it was written.
    marked: (Covered, Instant),
}

impl State {
    fn mark(&mut self) -> Mark {
        self.number += 1;
        self.marked = (self.journal.covered, Instant::now());
        let journals = self.sealed.iter().copied().chain([self.journal.covered]).collect();
        Mark { number: self.number, journals, trees: self.trees.clone() }
    }

    fn batches(&self) -> u64 {
        self.earlier + self.journal.batches
    }

    /// Reads what was written to the journals.
    fn follow(&mut self, folder: &Path) -> io::Result<()> {
        self.journal.read_on()?;
        while self.turn_to(folder, self.journal.covered.id + 1)? {}
        Ok(())
    }

    /// Continues with a later journal; false if there is none of this id.
    fn turn_to(&mut self, folder: &Path, id: u64) -> io::Result<bool> {
        let next = match Journal::open(folder, id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            next => next?,
        };
        // The engine synced the previous journal before it created this one, and has not written to it since.
        self.journal.read_on()?;
        link(folder, id)?;
        self.earlier += self.journal.batches;
        self.sealed.push(self.journal.covered);
        self.journal = next;
        self.journal.read_on()?;
        Ok(true)
    }
}

impl Keeper {
    /// Syncs everything in a folder that the engine has just opened, and writes its mark.
    pub(super) fn open(folder: &Path) -> Result<Self, Refused> {
        let mut journals = Vec::new();
        for id in journal::ids(folder)? {
            let mut journal = match Journal::open(folder, id) {
                // The engine has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                journal => journal?,
            };
            journal.read_on()?;
            journal.sync()?;
            if link(folder, id)? {
                journals.push(journal);
            }
        }
        let Some(mut journal) = journals.pop() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no journal").into());
        };
        // Batches are counted from here on.
        journal.batches = 0;
        let marked = (journal.covered, Instant::now());
        let sealed = journals.iter().map(|journal| journal.covered).collect();
        let mut state = State { journal, earlier: 0, sealed, trees: check::versions(folder)?, number: 0, marked };
        let file = MarkFile::create(folder, &state.mark())?;
        remove_kept(folder, &state)?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            file,
            state: Mutex::new(state),
            written: AtomicU64::new(0),
            unsynced: AtomicUsize::new(0),
            is_dirty: AtomicBool::new(false),
            frozen: OnceLock::new(),
            stopping: Mutex::new(false),
            wake: Condvar::new(),
        });
        let kept = shared.clone();
        let thread = thread::Builder::new().name("mark".to_owned()).spawn(move || kept.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Counts a batch of rows of this length, with their keys, whose write has returned.
    pub(super) fn wrote(&self, rows: usize, bytes: usize) {
        let length = journal::batch_length(rows, bytes);
        self.shared.written.fetch_add(1, Ordering::Relaxed);
        let before = self.shared.unsynced.fetch_add(length, Ordering::Relaxed);
        if before < MOST_UNSYNCED && before + length >= MOST_UNSYNCED {
            self.shared.notify();
        }
    }

    /// Makes every batch durable whose write has returned, and marks it. The journal is synced here and not by the engine, which
    /// would keep everybody from writing meanwhile.
    pub(super) fn sync(&self) -> io::Result<()> {
        let shared = &*self.shared;
        let written = shared.written.load(Ordering::Relaxed);
        let mut state = shared.state();
        self.check()?;
        state.journal.expect(shared.unsynced.swap(0, Ordering::Relaxed));
        // Also if the batches were read and marked before: who has asked for a sync gets one that began after it asked.
        let synced = shared.follow_to(&mut state, written).and_then(|()| shared.sync_now(&mut state));
        synced.inspect_err(|error| shared.freeze(error))
    }

    /// An error if the mark cannot be kept any more, of the kind that was met: a full disk is waited for, whoever met it.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.shared.frozen.get() {
            None => Ok(()),
            Some(kind) => Err(io::Error::new(*kind, "an earlier sync has failed")),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        *lock(&self.shared.stopping) = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the panic hook already.
            let _ = thread.join();
        }
        let last = || {
            let mut state = self.shared.state();
            self.shared.catch_up(&mut state)?;
            self.shared.follow_removals(&mut state)?;
            self.shared.file.sync()
        };
        if self.shared.frozen.get().is_some() {
            return;
        }
        if let Err(error) = last() {
            tracing::error!(folder = %self.shared.folder.display(), %error, "the last mark of the store was not written");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Leaves the mark as it is from now on.
    fn freeze(&self, error: &io::Error) {
        let _ = self.frozen.set(error.kind());
    }

    /// Reads at least the first `written` batches. Looks for a later journal only if this one has fewer: a file that is not there costs a
    /// sync as much as a small write.
    fn follow_to(&self, state: &mut State, written: u64) -> io::Result<()> {
        state.journal.read_on()?;
        if state.batches() >= written { Ok(()) } else { self.follow(state, written) }
    }

    /// Reads what was written to the journals, at least the first `written` batches.
    fn follow(&self, state: &mut State, written: u64) -> io::Result<()> {
        state.follow(&self.folder)?;
        if state.batches() >= written {
            return Ok(());
        }
        // Without syncs, the engine may have removed journals already, with batches that are in tables now.
        let mut skipped = false;
        while let Some(id) = journal::ids(&self.folder)?.into_iter().find(|id| *id > state.journal.covered.id) {
            skipped |= id > state.journal.covered.id + 1;
            // One that was removed meanwhile is not found again.
            skipped |= !state.turn_to(&self.folder, id)?;
        }
        if skipped {
            // How many they had is unknown. Counted after the journal was read, so that none of its batches is expected twice.
            let all = self.written.load(Ordering::Relaxed);
            state.earlier = state.earlier.max(all.saturating_sub(state.journal.batches));
        }
        if state.batches() >= written {
            return Ok(());
        }
        let read = state.batches();
        Err(io::Error::other(format!("{written} batches were written, but the journal has {read} whole ones")))
    }

    /// Syncs and marks what was read from the journals, if it is not marked yet.
    fn sync_and_mark(&self, state: &mut State) -> io::Result<()> {
        if state.journal.covered == state.marked.0 { Ok(()) } else { self.sync_now(state) }
    }

    /// Syncs and marks what was read from the journals.
    fn sync_now(&self, state: &mut State) -> io::Result<()> {
        state.journal.sync()?;
        if state.journal.covered == state.marked.0 {
            return Ok(());
        }
        self.file.write(&state.mark())?;
        if !self.is_dirty.swap(true, Ordering::Relaxed) {
            self.notify();
        }
        Ok(())
    }

    /// Wakes the thread: there is something to do.
    fn notify(&self) {
        // Once this has had the lock, the thread either waits or will see that there is something to do.
        drop(lock(&self.stopping));
        self.wake.notify_one();
    }

    /// Whether there is much to sync. Once nothing is synced any more, there never is: the thread would not come to rest.
    fn has_much_unsynced(&self) -> bool {
        self.unsynced.load(Ordering::Relaxed) >= MOST_UNSYNCED && self.frozen.get().is_none()
    }

    /// Syncs and marks what was written.
    fn catch_up(&self, state: &mut State) -> io::Result<()> {
        let written = self.written.load(Ordering::Relaxed);
        state.journal.expect(self.unsynced.swap(0, Ordering::Relaxed));
        self.follow(state, written)?;
        self.sync_and_mark(state)
    }

    fn run(&self) {
        let mut pause = MARK_SYNC;
        let mut looked = Instant::now();
        while self.wait(LOOK, || self.is_dirty.load(Ordering::Relaxed) || self.has_much_unsynced()) {
            let worked = self.sync_much().and_then(|()| self.sync_mark(&mut pause)).and_then(|()| {
                if looked.elapsed() < LOOK {
                    return Ok(());
                }
                looked = Instant::now();
                self.look()
            });
            if let Err(error) = worked {
                tracing::error!(folder = %self.folder.display(), %error, "the mark of the store cannot be kept: syncs fail from now on");
                self.freeze(&error);
                return;
            }
        }
    }

    /// Waits until there is something to do, and at most this long; false once the keeper stops.
    fn wait(&self, longest: Duration, is_due: impl Fn() -> bool) -> bool {
        let stopping = lock(&self.stopping);
        let due = |stopping: &mut bool| !*stopping && !is_due();
        let (stopping, _) =
            self.wake.wait_timeout_while(stopping, longest, due).unwrap_or_else(PoisonError::into_inner);
        !*stopping
    }

    /// Syncs what nobody has asked to sync, if it is much.
    fn sync_much(&self) -> io::Result<()> {
        if !self.has_much_unsynced() {
            return Ok(());
        }
        let mut state = self.state();
        // Who had the state meanwhile may have synced it all.
        if self.has_much_unsynced() { self.catch_up(&mut state) } else { Ok(()) }
    }

    /// Makes the mark durable, after a pause in which more marks may be written.
    fn sync_mark(&self, pause: &mut Duration) -> io::Result<()> {
        if !self.is_dirty.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.wait(*pause, || self.has_much_unsynced());
        self.is_dirty.store(false, Ordering::Relaxed);
        let begun = Instant::now();
        self.file.sync()?;
        *pause = (begun.elapsed() * MARK_SHARE).clamp(MARK_SYNC, LONGEST_MARK_SYNC);
        Ok(())
    }

    /// Follows the engine when it has removed journals, and syncs what nobody has asked to sync.
    fn look(&self) -> io::Result<()> {
        if self.frozen.get().is_some() {
            return Ok(());
        }
        let mut state = self.state();
        if state.marked.1.elapsed() >= LONGEST_UNSYNCED {
            self.catch_up(&mut state)?;
        }
        self.follow_removals(&mut state)
    }

    /// Marks which journals the engine has removed.
    fn follow_removals(&self, state: &mut State) -> io::Result<()> {
        let before = state.sealed.len();
        state.sealed.retain(|covered| journal::path(&self.folder, covered.id).exists());
        if state.sealed.len() == before {
            return Ok(());
        }
        // What those journals contained is only in tables now, and these only in the versions of today.
        state.trees = check::versions(&self.folder)?;
        state.number += 1;
        let journals = state.sealed.iter().copied().chain([state.marked.0]).collect();
        self.file.write_both(&Mark { number: state.number, journals, trees: state.trees.clone() })?;
        remove_kept(&self.folder, state)
    }
}

/// Gives a journal its second name, where the file system has them; false if the journal is gone.
fn link(folder: &Path, id: u64) -> io::Result<bool> {
    let (path, kept) = (journal::path(folder, id), check::kept(folder, id));
    let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino()).ok();
    let Some(file) = inode(&path) else { return Ok(false) };
    if inode(&kept) == Some(file) {
        return Ok(true);
    }
    ignore_missing(fs::remove_file(&kept))?;
    match fs::hard_link(&path, &kept) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            tracing::debug!(journal = %path.display(), %error, "the file system has no second names for files");
            Ok(true)
        }
        Ok(()) => Ok(true),
    }
}

/// Removes the second names of journals that the mark does not show, and so their content.
fn remove_kept(folder: &Path, state: &State) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(".jnl.kept")).and_then(|id| id.parse::<u64>().ok());
        let shown = |id| id == state.journal.covered.id || state.sealed.iter().any(|covered| covered.id == id);
        if id.is_some_and(|id| !shown(id)) {
            fs::remove_file(folder.join(name))?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use witan_kernel::condition::Condition;

    use super::*;
    use crate::engine::fjall::{Fjall, Options};
    use crate::engine::{Engine, EngineError};

    /// The keeper's thread meets an error in the background, as it does with `--durability os`; nobody asks for a sync.
    #[test]
    fn what_the_keeper_meets_by_itself_counts_like_a_failed_sync() {
        let put = |engine: &Fjall| engine.write(vec![(Bytes::from_static(b"row"), Some(Bytes::from_static(b"value")))]);
        let condition = |engine: &Fjall| Engine::condition(engine);
        let met = |kind: io::ErrorKind| {
            let folder = tempfile::tempdir().unwrap();
            let engine = Fjall::open(folder.path(), Options { min_free_bytes: 0, ..Options::default() }).unwrap();
            put(&engine).unwrap();
            engine.reading().as_ref().unwrap().keeper.shared.freeze(&kind.into());
            assert!(matches!(put(&engine), Err(EngineError::Broken(_))), "{kind}");
            (folder, engine)
        };
        let (_folder, engine) = met(io::ErrorKind::PermissionDenied);
        assert!(matches!(condition(&engine), Condition::Failed(_)), "{:?}", condition(&engine));
        assert!(put(&engine).is_err(), "it is not believed again before it is opened again");

        let (_folder, engine) = met(io::ErrorKind::StorageFull);
        assert_eq!(condition(&engine), Condition::Full);
        put(&engine).expect("there is room");
        assert_eq!(condition(&engine), Condition::Serving);
    }

    /// Nobody syncs for a while, and the engine removes several journals that were never read.
    #[test]
    fn batches_of_journals_that_were_removed_unread_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { min_free_bytes: 0, memtable_bytes: 1 << 20, ..Options::default() };
        let engine = Fjall::open(folder.path(), options).unwrap();
        let filler = Bytes::from(vec![7; 256 << 10]);
        let put =
            |n: u32| engine.write(vec![(Bytes::copy_from_slice(&n.to_be_bytes()), Some(filler.clone()))]).unwrap();
        let open = engine.reading();
        let shared = &open.as_ref().unwrap().keeper.shared;
        let mut rows = (0..16).cycle().take(8000);
        {
            // As if the keeper's thread had not had its turn.
            let read = shared.state().journal.covered.id;
            let _state = shared.state();
            let is_removed = |folder: &Path| {
                journal::ids(folder).unwrap().into_iter().find(|id| *id > read).is_some_and(|id| id > read + 1)
            };
            while !is_removed(folder.path()) {
                put(rows.next().expect("the engine removes journals"));
            }
        }
        for n in rows.by_ref().take(20) {
            engine.sync().unwrap();
            assert_eq!(shared.state().batches(), shared.written.load(Ordering::Relaxed));
            put(n);
        }
    }

    /// What is not on the disk when the engine turns to another journal, it syncs while nobody can write.
    #[test]
    fn much_is_synced_before_anybody_asks() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Fjall::open(folder.path(), Options { min_free_bytes: 0, ..Options::default() }).unwrap();
        let open = engine.reading();
        let shared = &open.as_ref().unwrap().keeper.shared;
        let filler = Bytes::from(vec![7; MOST_UNSYNCED / 8]);
        let put =
            |n: u32| engine.write(vec![(Bytes::copy_from_slice(&n.to_be_bytes()), Some(filler.clone()))]).unwrap();
        put(0);
        assert!(!shared.has_much_unsynced());
        let marked = shared.state().marked.0;
        (1..9).for_each(put);
        let deadline = Instant::now() + LONGEST_UNSYNCED;
        while shared.has_much_unsynced() || shared.state().marked.0 == marked {
            assert!(Instant::now() < deadline, "it waits for the time after which everything is synced");
            thread::sleep(Duration::from_millis(1));
        }
        shared.freeze(&io::ErrorKind::Other.into());
        shared.unsynced.store(MOST_UNSYNCED, Ordering::Relaxed);
        assert!(!shared.has_much_unsynced(), "after a failed sync the thread rests");
    }
}
