//! Things made from files, and made again when the files change. What counts is what the files hold: any sign of change,
//! and none for a while, means to look. A state of the files is tried once two looks in a row have found it, so that a
//! certificate is not tried with the key of its predecessor; one that is of no use is said so once, and the last good one stays.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use notify::Watcher as _;

use crate::certificate::{Expiry, now};
use crate::file::{FileError, Snapshot};

/// Between two looks at files that are changing.
const QUIET: Duration = Duration::from_millis(100);
/// Looks in a row at files that do not come to rest, before they are left for the next sign.
const LOOKS: usize = 50;
/// Between two looks at files that give no sign: network file systems give none.
const SLOW: Duration = Duration::from_secs(10);
/// How long before its end a certificate is spoken of, and how often: storage nodes show no metrics.
const SOON_SECONDS: i64 = 14 * 86_400;
const SPEAK_AGAIN: Duration = Duration::from_secs(86_400);
/// How soon the thread ends after its owner.
const TICK: Duration = Duration::from_secs(1);

/// What was made, and when it ends.
#[derive(Debug)]
pub struct Made<T> {
    /// It.
    pub value: T,
    /// The certificates in it.
    pub expiries: Vec<Expiry>,
}

type Make<T> = Box<dyn Fn(&Snapshot) -> Result<Made<T>, FileError> + Send + Sync>;

/// Something made from files.
pub struct Reloaded<T> {
    what: &'static str,
    paths: Vec<PathBuf>,
    make: Make<T>,
    current: ArcSwap<Made<T>>,
    tried: Mutex<Snapshot>,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("what", &self.what).field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// What metrics and checks ask of something that is reloaded.
pub trait Watched: fmt::Debug + Send + Sync {
    /// When its certificates end.
    fn expiries(&self) -> Vec<Expiry>;
    /// How often new ones were put in force, and how often they were of no use.
    fn reloads(&self) -> (u64, u64);
}

impl<T: Send + Sync + 'static> Watched for Reloaded<T> {
    fn expiries(&self) -> Vec<Expiry> {
        self.current.load().expiries.clone()
    }

    fn reloads(&self) -> (u64, u64) {
        (self.succeeded.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Makes it for the first time, and watches the files for as long as somebody holds the answer. `what` names it in
    /// the log. Blocks: for the start of a process.
    pub fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        make: impl Fn(&Snapshot) -> Result<Made<T>, FileError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, FileError> {
        let snapshot = Snapshot::take(&paths);
        let made = make(&snapshot)?;
        let opened = Arc::new(Self {
            what,
            paths,
            make: Box::new(make),
            current: ArcSwap::from_pointee(made),
            tried: Mutex::new(snapshot),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        if let Err(error) = watch(&opened) {
            tracing::warn!(%what, %error, "no thread for watching files: what was read stays until a restart");
        }
        Ok(opened)
    }

    /// The newest that is of use.
    pub fn current(&self) -> Arc<Made<T>> {
        self.current.load_full()
    }

    /// Looks until the files are at rest; then tries what they hold, if that is new. Blocks.
    pub fn look_until_quiet(&self) {
        let mut last = Snapshot::take(&self.paths);
        for _ in 0..LOOKS {
            if *self.tried() == last {
                return;
            }
            thread::sleep(QUIET);
            let now = Snapshot::take(&self.paths);
            if now == last {
                return self.attempt(now);
            }
            last = now;
        }
    }

    fn attempt(&self, snapshot: Snapshot) {
        match (self.make)(&snapshot) {
            Ok(made) => {
                self.current.store(Arc::new(made));
                self.succeeded.fetch_add(1, Ordering::Relaxed);
                tracing::info!(what = self.what, "files have changed: new connections use the new ones");
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(what = self.what, %error, "files have changed and cannot be used: the last good ones stay in force");
            }
        }
        *self.tried() = snapshot;
    }

    fn warn_of_ends(&self) {
        let now = now();
        for end in self.current.load().expiries.iter().filter(|end| end.not_after - now < SOON_SECONDS) {
            let days_left = (end.not_after - now) / 86_400;
            tracing::warn!(what = self.what, file = %end.file.display(), days_left, "a certificate expires soon; renew it");
        }
    }

    fn tried(&self) -> std::sync::MutexGuard<'_, Snapshot> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watch<T: Send + Sync + 'static>(opened: &Arc<Reloaded<T>>) -> io::Result<()> {
    let (sign, signs) = sync_channel(1);
    let watcher = watcher(&opened.paths, sign.clone());
    let opened = Arc::downgrade(opened);
    thread::Builder::new().name("witan-files".into()).spawn(move || {
        // The sender stays, so that without a watcher the channel only times out.
        let _kept = (watcher, sign);
        upkeep(&opened, &signs);
    })?;
    Ok(())
}

fn upkeep<T: Send + Sync + 'static>(opened: &Weak<Reloaded<T>>, signs: &Receiver<()>) {
    let (mut looked, mut spoken) = (Instant::now(), Instant::now());
    // What came in between the first look and the watcher gave no sign.
    if let Some(opened) = opened.upgrade() {
        opened.look_until_quiet();
        opened.warn_of_ends();
    }
    loop {
        let sign = signs.recv_timeout(TICK);
        let Some(opened) = opened.upgrade() else { return };
        let signed = match sign {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if signed || looked.elapsed() >= SLOW {
            opened.look_until_quiet();
            looked = Instant::now();
        }
        if spoken.elapsed() >= SPEAK_AGAIN {
            opened.warn_of_ends();
            spoken = Instant::now();
        }
    }
}

/// A watcher of the folders, not of the files: those are replaced, and a mounted volume swaps a link beside them.
fn watcher(paths: &[PathBuf], sign: SyncSender<()>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        if event.as_ref().is_ok_and(|event| is_only_reading(event.kind)) {
            return;
        }
        // One sign that waits is as good as many.
        let _ = sign.try_send(());
    };
    let mut folders: Vec<&Path> = paths.iter().filter_map(|path| path.parent()).collect();
    folders.sort_unstable();
    folders.dedup();
    let watched = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        for folder in folders {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            watcher.watch(folder, notify::RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    watched
        .inspect_err(|error| {
            tracing::warn!(%error, "certificates cannot be watched; they are looked at every {} s", SLOW.as_secs());
        })
        .ok()
}

/// Looking at the files is an event too; it must not be taken for a sign.
fn is_only_reading(kind: notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    match kind {
        notify::EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        notify::EventKind::Access(_) => true,
        _ => false,
    }
}
