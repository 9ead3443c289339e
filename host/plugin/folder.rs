//! The watched folder. Any sign of change means: look again, until it is quiet. What counts is the content of the files;
//! a file is taken once two looks in a row have found the same, so a half-written one is not.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use notify::Watcher as _;

use crate::compile::lock;
use crate::digest::Digest;
use crate::limit;
use crate::registry::{Inner, Source};

/// Between two looks at a folder that is changing.
const QUIET: Duration = Duration::from_millis(50);
/// Looks in a row at a folder that does not come to rest, before it is left for the next sign.
const LOOKS: usize = 40;
/// Between two looks at a folder that gives no sign: network file systems give none.
const SLOW: Duration = Duration::from_secs(30);
/// Between two rounds in which idle instances are let go.
const REST: Duration = Duration::from_secs(10);

/// The watched folder and what was last seen in it.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    files: Mutex<BTreeMap<String, Seen>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    bytes: u64,
    modified: Option<SystemTime>,
    digest: Digest,
    /// Seen twice alike, and staged (or refused).
    settled: bool,
}

/// A file that two looks have found alike.
pub(crate) struct Settled {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

impl Folder {
    pub(crate) fn open(path: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&path).map_err(|error| format!("create {}: {error}", path.display()))?;
        Ok(Self { path, files: Mutex::default() })
    }

    /// The digest of the file written last, of those that settled and that `wanted` admits.
    pub(crate) fn newest(&self, wanted: impl Fn(Digest) -> bool) -> Option<Digest> {
        let files = lock(&self.files);
        let settled = files.iter().filter(|(_, seen)| seen.settled && wanted(seen.digest));
        settled.max_by_key(|(name, seen)| (seen.modified, (*name).clone())).map(|(_, seen)| seen.digest)
    }

    /// Looks once. Returns files that have come to rest, and whether another look is needed.
    pub(crate) fn look(&self, most_bytes: usize) -> io::Result<(Vec<Settled>, bool)> {
        let mut files = lock(&self.files);
        let mut now = BTreeMap::new();
        let (mut settled, mut again) = (Vec::new(), false);
        for name in self.names()? {
            // A file that vanishes between two steps is not there.
            let Ok((mut seen, content)) = read(&self.path.join(&name), most_bytes) else { continue };
            match files.get(&name) {
                Some(last)
                    if last.digest == seen.digest && last.bytes == seen.bytes && last.modified == seen.modified =>
                {
                    if !last.settled {
                        settled.push(Settled { name: name.clone(), content });
                    }
                    seen.settled = true;
                }
                _ => again = true,
            }
            now.insert(name, seen);
        }
        *files = now;
        Ok((settled, again))
    }

    /// The next look finds the file come to rest once more.
    fn unsettle(&self, name: &str) {
        if let Some(seen) = lock(&self.files).get_mut(name) {
            seen.settled = false;
        }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(&self.path)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".wasm") && !name.starts_with('.'))
            .collect();
        names.sort();
        if names.len() > limit::FOLDER_FILES {
            tracing::warn!(folder = %self.path.display(), files = names.len(), most = limit::FOLDER_FILES, "the plugin folder has too many files; the last ones are ignored");
            names.truncate(limit::FOLDER_FILES);
        }
        Ok(names)
    }
}

/// A file's state and content; of one that is too large, one byte more than is allowed, so that it is refused as such.
fn read(path: &Path, most_bytes: usize) -> io::Result<(Seen, Vec<u8>)> {
    let file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut content = Vec::new();
    file.take(most_bytes as u64 + 1).read_to_end(&mut content)?;
    let digest = Digest::of(&content);
    Ok((Seen { bytes: metadata.len(), modified: metadata.modified().ok(), digest, settled: false }, content))
}

impl Inner {
    /// Looks at the watched folder until it is quiet, stages what is new, and lets bindings by name follow.
    pub(crate) fn look_until_quiet(&self) {
        let Some(folder) = &self.folder else { return };
        for _ in 0..LOOKS {
            let (settled, again) = match folder.look(self.limits().artifact) {
                Ok(looked) => looked,
                Err(error) => {
                    tracing::warn!(folder = %folder.path.display(), %error, "the plugin folder cannot be read");
                    return;
                }
            };
            for Settled { name, content } in settled {
                // Refusals are events, and final. What has failed otherwise is tried again with the next look.
                if let Err(error) = self.stage(&content, Source::File(name.clone()))
                    && error.passes()
                {
                    tracing::warn!(file = name, %error, "a plugin file cannot be taken yet");
                    folder.unsettle(&name);
                }
            }
            self.follow();
            if !again {
                return;
            }
            thread::sleep(QUIET);
        }
    }
}

/// Starts the thread that watches the folder and lets idle instances go, until the host is gone.
pub(crate) fn start_upkeep(inner: &Arc<Inner>) -> io::Result<()> {
    let (sign, signs) = sync_channel(1);
    let watcher = inner.folder.as_ref().and_then(|folder| watch(&folder.path, sign.clone()));
    let inner = Arc::downgrade(inner);
    thread::Builder::new().name("witan-plugin-upkeep".into()).spawn(move || {
        // The sender stays, so that without a watcher the channel only times out.
        let _kept = (watcher, sign);
        upkeep(&inner, &signs);
    })?;
    Ok(())
}

/// A watcher of the folder itself, not of its files: those are replaced, and a mounted volume swaps a link beside them.
fn watch(path: &Path, sign: SyncSender<()>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        if event.as_ref().is_ok_and(|event| is_only_reading(event.kind)) {
            return;
        }
        // One sign that waits is as good as many.
        let _ = sign.try_send(());
    };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(path, notify::RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            tracing::warn!(folder = %path.display(), %error, "the plugin folder cannot be watched; it is looked at every {} s", SLOW.as_secs());
        })
        .ok()
}

/// Looking at the folder is an event in it too; it must not be taken for a sign.
fn is_only_reading(kind: notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    match kind {
        notify::EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        notify::EventKind::Access(_) => true,
        _ => false,
    }
}

fn upkeep(inner: &Weak<Inner>, signs: &Receiver<()>) {
    let (mut looked, mut rested) = (Instant::now(), Instant::now());
    // What came in between the first look and the watcher gave no sign.
    if let Some(inner) = inner.upgrade() {
        inner.look_until_quiet();
    }
    loop {
        // Short enough that the thread ends soon after the host.
        let sign = signs.recv_timeout(Duration::from_secs(1));
        let Some(inner) = inner.upgrade() else { return };
        let signed = match sign {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if signed || looked.elapsed() >= SLOW {
            inner.look_until_quiet();
            looked = Instant::now();
        }
        if rested.elapsed() >= REST {
            inner.rest();
            rested = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_settles_when_two_looks_find_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("plugins")).unwrap();
        let path = folder.path.join("a.wasm");
        fs::write(&path, b"half").unwrap();
        fs::write(folder.path.join("notes.txt"), b"x").unwrap();
        let look = || {
            let (settled, again) = folder.look(100).unwrap();
            (settled.into_iter().map(|file| file.content).collect::<Vec<_>>(), again)
        };
        assert_eq!(look(), (vec![], true));
        fs::write(&path, b"half and half").unwrap();
        assert_eq!(look(), (vec![], true), "it has grown");
        assert_eq!(look(), (vec![b"half and half".to_vec()], false));
        assert_eq!(look(), (vec![], false));
        assert_eq!(folder.newest(|_| true), Some(Digest::of(b"half and half")));
        folder.unsettle("a.wasm");
        assert_eq!(look(), (vec![b"half and half".to_vec()], false), "it could not be taken, and is offered again");
        fs::remove_file(&path).unwrap();
        assert_eq!(look(), (vec![], false));
        assert_eq!(folder.newest(|_| true), None);
    }

    #[test]
    fn a_written_file_is_a_sign() {
        let dir = tempfile::tempdir().unwrap();
        let (sign, signs) = sync_channel(1);
        let _watcher = watch(dir.path(), sign).unwrap();
        fs::write(dir.path().join("a.wasm"), b"x").unwrap();
        signs.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_look_is_no_sign() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.wasm"), b"x").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // The test may have seen enough.
            let _ = tell.send(event);
        })
        .unwrap();
        watcher.watch(dir.path(), notify::RecursiveMode::NonRecursive).unwrap();
        let folder = Folder::open(dir.path().to_path_buf()).unwrap();
        (0..20).for_each(|_| _ = folder.look(100).unwrap());
        // The watcher tells in order: whatever the looks have caused comes before this.
        fs::write(dir.path().join("last"), b"x").unwrap();
        loop {
            let event = told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
            if event.paths.iter().any(|path| path.ends_with("last")) {
                break;
            }
            assert!(is_only_reading(event.kind), "{event:?}");
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
        (0..2).for_each(|_| _ = folder.look(100).unwrap());
        link("v2");
        assert!(folder.look(100).unwrap().1);
        assert_eq!(folder.look(100).unwrap().0.remove(0).content, b"two");
    }
}
