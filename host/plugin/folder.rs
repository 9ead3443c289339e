//! The watched folder. Any notification of a change starts scans that go on until nothing changes. Only the content of the files
//! matters; a file is staged once two scans in a row have found the same, so a half-written file is not.
//!
//! Anything may lie in the folder, and its file system may hang. It is therefore read by one thread that nothing else waits for, through
//! `witan_file`, and no lock is held meanwhile that a change of a binding takes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use notify::Watcher as _;
use tokio::sync::watch;

use crate::digest::Digest;
use crate::error::HostError;
use crate::limit;
use crate::pool::STACK_BYTES;
use crate::registry::Inner;
use crate::signature::SIGNATURE_FILE_BYTES;
use witan_kernel::sync::lock;

/// Time between two scans of a folder that is changing.
const RESCAN: Duration = Duration::from_millis(50);
/// Most scans in a row of a folder that keeps changing; after them it waits for the next notification.
const SCANS: usize = 40;
/// Time between two scans without a notification: network file systems send none.
const POLL: Duration = Duration::from_secs(30);
/// Time between two rounds in which idle instances are dropped.
const RELEASE_IDLE: Duration = Duration::from_secs(10);
/// Most entries of the folder that are read: room for other files beside [`limit::FOLDER_FILES`] plugins.
const ENTRIES: usize = 4 * limit::FOLDER_FILES;

/// The watched folder, and its files at the last scan.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Locked to look and to replace, never while the folder is read.
    files: Mutex<BTreeMap<String, FileState>>,
    /// Files that cannot be read, and why, as it was logged.
    unreadable: Mutex<BTreeMap<String, String>>,
    /// Held during a scan. Nothing but a scan takes it.
    scanning: Mutex<()>,
    /// Whether the first scan has ended, even if it failed.
    scanned: watch::Sender<bool>,
}

/// A file at a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    bytes: u64,
    modified: Option<SystemTime>,
    digest: Digest,
    /// The digest of the signature beside it, if there is one.
    signature: Option<Digest>,
    /// Two scans have found the same, and the file was staged or refused.
    settled: bool,
}

/// A file of which two scans have found the same content.
pub(crate) struct Settled {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    /// What is in the file of this name with `.sig` behind it.
    pub(crate) signature: Option<Vec<u8>>,
}

impl Folder {
    /// The folder, which is created if it is missing. One that does not answer is no error: it may do so later.
    pub(crate) fn open(path: PathBuf) -> Result<Self, HostError> {
        let folder = path.clone();
        match witan_file::in_time(&path, move || fs::create_dir_all(folder)) {
            Err(error) if error.kind() != io::ErrorKind::TimedOut => {
                return Err(HostError::file("create", &path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let scanned = watch::Sender::new(false);
        let (files, unreadable, scanning) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { path, files, unreadable, scanning, scanned })
    }

    /// Turns true when the first scan has ended.
    pub(crate) fn scanned(&self) -> watch::Receiver<bool> {
        self.scanned.subscribe()
    }

    /// Whether a file has this content.
    pub(crate) fn has(&self, digest: Digest) -> bool {
        lock(&self.files).values().any(|file| file.digest == digest)
    }

    /// Has the next scan return the files with this content again.
    pub(crate) fn stage_again(&self, digest: Digest) {
        lock(&self.files).values_mut().filter(|file| file.digest == digest).for_each(|file| file.settled = false);
    }

    /// The digest of the most recently modified file among those that have settled and that `wanted` accepts.
    pub(crate) fn newest(&self, wanted: impl Fn(Digest) -> bool) -> Option<Digest> {
        let files = lock(&self.files);
        let settled = files.iter().filter(|(_, file)| file.settled && wanted(file.digest));
        settled.max_by_key(|(name, file)| (file.modified, (*name).clone())).map(|(_, file)| file.digest)
    }

    /// Scans once. Returns the files that have settled, and whether another scan is needed. For one thread at a time.
    pub(crate) fn scan(&self, most_bytes: usize) -> io::Result<(Vec<Settled>, bool)> {
        let before = lock(&self.files).clone();
        let mut now = BTreeMap::new();
        let mut unreadable = BTreeMap::new();
        let (mut settled, mut again) = (Vec::new(), false);
        for name in self.names()? {
            let last = before.get(&name);
            let (mut file, read) = match read(&self.path.join(&name), most_bytes) {
                Ok(found) => found,
                // A file may vanish before it is read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    // It may be as it was: no binding goes back to another file because this one cannot be read for a while.
                    let kept = last.filter(|_| error.kind() != io::ErrorKind::InvalidInput);
                    now.extend(kept.map(|last| (name.clone(), last.clone())));
                    unreadable.insert(name, error.to_string());
                    continue;
                }
            };
            match last {
                Some(last) if FileState { settled: false, ..last.clone() } == file => {
                    if !last.settled {
                        settled.push(Settled { name: name.clone(), content: read.content, signature: read.signature });
                    }
                    file.settled = true;
                }
                _ => again = true,
            }
            now.insert(name, file);
        }
        *lock(&self.files) = now;
        self.warn_of(unreadable);
        Ok((settled, again))
    }

    /// Logs each file that cannot be read once for each reason.
    fn warn_of(&self, unreadable: BTreeMap<String, String>) {
        let mut warned = lock(&self.unreadable);
        for (name, why) in unreadable.iter().filter(|(name, why)| warned.get(*name) != Some(why)) {
            tracing::warn!(file = %self.path.join(name).display(), %why, "a file in the plugin folder cannot be read");
        }
        *warned = unreadable;
    }

    /// Has the next scan return the file again.
    fn unsettle(&self, name: &str) {
        if let Some(file) = lock(&self.files).get_mut(name) {
            file.settled = false;
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = witan_file::list(&self.path, ENTRIES)?;
        let is_cut = entries.len() == ENTRIES;
        let mut names: Vec<String> = entries
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.ends_with(".wasm") && !name.starts_with('.'))
            .collect();
        names.sort();
        if is_cut || names.len() > limit::FOLDER_FILES {
            tracing::warn!(
                folder = %self.path.display(),
                files = names.len(),
                most = limit::FOLDER_FILES,
                "the plugin folder has too many files; some of them are ignored"
            );
            names.truncate(limit::FOLDER_FILES);
        }
        Ok(names)
    }
}

/// What was read of a file, and of the signature beside it.
struct Read {
    content: Vec<u8>,
    signature: Option<Vec<u8>>,
}

/// A file's state and content. Of a file that is too large, one byte more than allowed is read, so that it is refused for its size.
fn read(path: &Path, most_bytes: usize) -> io::Result<(FileState, Read)> {
    let (metadata, content) = witan_file::read_prefix(path, most_bytes as u64 + 1)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".sig");
    let signature = match witan_file::read_prefix(Path::new(&beside), SIGNATURE_FILE_BYTES as u64 + 1) {
        Ok((_, signature)) => Some(signature),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let state = FileState {
        bytes: metadata.len(),
        modified: metadata.modified().ok(),
        digest: Digest::of(&content),
        signature: signature.as_deref().map(Digest::of),
        settled: false,
    };
    Ok((state, Read { content, signature }))
}

impl Inner {
    /// Scans the watched folder until it stops changing, stages new components, and lets bindings by name follow.
    pub(crate) fn scan_until_quiet(&self) {
        let Some(folder) = &self.folder else { return };
        let _scanning = lock(&folder.scanning);
        self.stage_until_quiet(folder, || self.follow());
    }

    /// The first scan. Only after it is known which of its files are older than what the cluster has in force.
    fn scan_first(&self) {
        let Some(folder) = &self.folder else { return };
        let _scanning = lock(&folder.scanning);
        self.stage_until_quiet(folder, || {});
        self.find_superseded();
        self.follow();
        folder.scanned.send_replace(true);
    }

    fn stage_until_quiet(&self, folder: &Folder, after_each: impl Fn()) {
        for _ in 0..SCANS {
            let (settled, again) = match folder.scan(self.limits().largest_component()) {
                Ok(scanned) => scanned,
                Err(error) => {
                    tracing::warn!(folder = %folder.path.display(), %error, "the plugin folder cannot be read");
                    return;
                }
            };
            for file in settled {
                let name = file.name.clone();
                // A refusal is final, and an event. Other failures are retried with the next scan.
                if let Err(error) = self.stage_file(file)
                    && error.is_transient()
                {
                    tracing::warn!(file = name, %error, "a plugin file cannot be staged yet; it will be retried");
                    folder.unsettle(&name);
                }
            }
            after_each();
            if !again {
                return;
            }
            thread::sleep(RESCAN);
        }
    }
}

/// Starts the thread that drops idle instances. It ends when the host has been dropped.
pub(crate) fn start_upkeep(inner: &Arc<Inner>) -> io::Result<()> {
    let idle = Arc::downgrade(inner);
    thread::Builder::new().name("witan-plugin-upkeep".into()).spawn(move || release_idle(&idle)).map(|_| ())
}

/// Starts the thread that watches the folder. It ends when the host has been dropped.
pub(crate) fn start(inner: &Arc<Inner>) -> io::Result<()> {
    let Some(folder) = &inner.folder else { return Ok(()) };
    let (watching, path) = (Arc::downgrade(inner), folder.path.clone());
    let work = move || {
        let (notify, notifications) = sync_channel(1);
        // Before the first scan, so that no change is missed. The sender is kept, so that without a watcher the channel times out
        // instead of closing.
        let _kept = (begin_watching(&path, notify.clone()), notify);
        if let Some(inner) = watching.upgrade() {
            inner.scan_first();
        }
        follow_changes(&watching, &notifications);
    };
    thread::Builder::new().name("witan-plugin-folder".into()).stack_size(STACK_BYTES).spawn(work).map(|_| ())
}

/// Watches the folder rather than its files: files are replaced, and in a mounted volume a link beside them is swapped.
fn begin_watching(path: &Path, notification: SyncSender<()>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        if event.as_ref().is_ok_and(|event| is_read(event.kind)) {
            return;
        }
        // One pending notification is enough.
        let _ = notification.try_send(());
    };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(path, notify::RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            let folder = path.display();
            tracing::warn!(%folder, %error, "the plugin folder cannot be watched; it is scanned every {} s", POLL.as_secs());
        })
        .ok()
}

/// True for events that reading the folder causes: a scan must not trigger the next one.
fn is_read(kind: notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    match kind {
        notify::EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        notify::EventKind::Access(_) => true,
        _ => false,
    }
}

fn follow_changes(inner: &Weak<Inner>, notifications: &Receiver<()>) {
    let mut scanned_at = Instant::now();
    loop {
        // Short enough that the thread ends soon after the host.
        let notification = notifications.recv_timeout(Duration::from_secs(1));
        let Some(inner) = inner.upgrade() else { return };
        let notified = match notification {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if notified || scanned_at.elapsed() >= POLL {
            inner.scan_until_quiet();
            scanned_at = Instant::now();
        }
    }
}

fn release_idle(inner: &Weak<Inner>) {
    let mut released_at = Instant::now();
    loop {
        // Short enough that the thread ends soon after the host.
        thread::sleep(Duration::from_secs(1));
        let Some(inner) = inner.upgrade() else { return };
        if released_at.elapsed() >= RELEASE_IDLE {
            inner.release_idle();
            released_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_settles_when_two_scans_find_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("plugins")).unwrap();
        let path = folder.path.join("a.wasm");
        fs::write(&path, b"half").unwrap();
        fs::write(folder.path.join("notes.txt"), b"x").unwrap();
        let scan = || {
            let (settled, again) = folder.scan(100).unwrap();
            (settled.into_iter().map(|file| file.content).collect::<Vec<_>>(), again)
        };
        assert_eq!(scan(), (vec![], true));
        fs::write(&path, b"half and half").unwrap();
        assert_eq!(scan(), (vec![], true), "it has grown");
        assert_eq!(scan(), (vec![b"half and half".to_vec()], false));
        assert_eq!(scan(), (vec![], false));
        assert_eq!(folder.newest(|_| true), Some(Digest::of(b"half and half")));
        folder.unsettle("a.wasm");
        assert_eq!(scan(), (vec![b"half and half".to_vec()], false), "it could not be staged, and is returned again");
        fs::remove_file(&path).unwrap();
        assert_eq!(scan(), (vec![], false));
        assert_eq!(folder.newest(|_| true), None);
    }

    #[test]
    fn writing_a_file_notifies() {
        let dir = tempfile::tempdir().unwrap();
        let (notify, notifications) = sync_channel(1);
        let _watcher = begin_watching(dir.path(), notify).unwrap();
        fs::write(dir.path().join("a.wasm"), b"x").unwrap();
        notifications.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_scan_does_not_notify() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.wasm"), b"x").unwrap();
        let (sender, events) = std::sync::mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // The test may have ended.
            let _ = sender.send(event);
        })
        .unwrap();
        watcher.watch(dir.path(), notify::RecursiveMode::NonRecursive).unwrap();
        let folder = Folder::open(dir.path().to_path_buf()).unwrap();
        (0..20).for_each(|_| _ = folder.scan(100).unwrap());
        // The watcher reports events in order: those that the scans caused come before this one.
        fs::write(dir.path().join("last"), b"x").unwrap();
        loop {
            let event = events.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
            if event.paths.iter().any(|path| path.ends_with("last")) {
                break;
            }
            assert!(is_read(event.kind), "{event:?}");
        }
    }

    #[test]
    fn a_link_that_is_swapped_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("plugins")).unwrap();
        for (version, content) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("a.wasm"), content).unwrap();
        }
        let link = |to: &str| {
            let beside = folder.path.join("..tmp");
            std::os::unix::fs::symlink(dir.path().join(to), &beside).unwrap();
            fs::rename(beside, folder.path.join("..data")).unwrap();
        };
        link("v1");
        std::os::unix::fs::symlink("..data/a.wasm", folder.path.join("a.wasm")).unwrap();
        (0..2).for_each(|_| _ = folder.scan(100).unwrap());
        link("v2");
        assert!(folder.scan(100).unwrap().1);
        assert_eq!(folder.scan(100).unwrap().0.remove(0).content, b"two");
    }
}
