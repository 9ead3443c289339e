//! Values made from files, and made again when the contents of the files change. Contents that cannot be used are logged once and
//! the last good value stays in force.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::certificate::{Expiry, now};
use crate::file::FileError;
use crate::watch::{POLL, Snapshot, Watch};

/// A certificate that expires within this many seconds (14 days) is logged, because storage nodes serve no metrics.
const SOON_SECONDS: i64 = 14 * 86_400;
/// How often it is logged.
const WARN_AGAIN: Duration = Duration::from_secs(86_400);

/// A value and the expiries of its certificates.
#[derive(Debug)]
pub struct Made<T> {
    /// The value.
    pub value: T,
    /// The certificates in it.
    pub expiries: Vec<Expiry>,
}

type Make<T> = Box<dyn Fn(&Snapshot) -> Result<Made<T>, FileError> + Send + Sync>;

/// A value made from files, remade when they change.
pub struct Reloaded<T> {
    what: &'static str,
    paths: Vec<PathBuf>,
    make: Make<T>,
    current: ArcSwap<Made<T>>,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("what", &self.what).field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// What metrics need to know about a reloaded value.
pub trait Watched: fmt::Debug + Send + Sync {
    /// When its certificates expire.
    fn expiries(&self) -> Vec<Expiry>;
    /// How many times new contents were put in force, and how many times they could not be used.
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
    /// Makes the value for the first time, and watches the files until the returned handle is dropped. `what` names it in the log.
    /// Blocks: for the start of a process.
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
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        if let Err(error) = follow(&opened, Watch::new(snapshot)) {
            tracing::warn!(%what, %error, "cannot start the thread that watches files: a change takes effect only after a restart");
        }
        Ok(opened)
    }

    /// The newest value that could be made.
    pub fn current(&self) -> Arc<Made<T>> {
        self.current.load_full()
    }

    fn attempt(&self, snapshot: &Snapshot) {
        match (self.make)(snapshot) {
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
    }

    fn warn_of_expiry(&self) {
        let now = now();
        for expiry in self.current.load().expiries.iter().filter(|expiry| expiry.not_after - now < SOON_SECONDS) {
            let days_left = (expiry.not_after - now) / 86_400;
            tracing::warn!(what = self.what, file = %expiry.file.display(), days_left, "a certificate expires soon; renew it");
        }
    }
}

/// A thread, because a value may be opened where there is no async runtime. It ends within [`POLL`] after the value is dropped.
fn follow<T: Send + Sync + 'static>(opened: &Arc<Reloaded<T>>, watch: Watch) -> io::Result<()> {
    let opened = Arc::downgrade(opened);
    thread::Builder::new().name("witan-files".into()).spawn(move || poll(&opened, watch))?;
    Ok(())
}

fn poll<T: Send + Sync + 'static>(opened: &Weak<Reloaded<T>>, mut watch: Watch) {
    let mut warned: Option<Instant> = None;
    while let Some(opened) = opened.upgrade() {
        if warned.is_none_or(|warned| warned.elapsed() >= WARN_AGAIN) {
            opened.warn_of_expiry();
            warned = Some(Instant::now());
        }
        if let Some(snapshot) = watch.look() {
            opened.attempt(snapshot);
        }
        drop(opened);
        thread::sleep(POLL);
    }
}
