//! Files that are polled for changes: certificates, keys, secrets and the configuration.
//!
//! Their contents are compared once a second instead of subscribing to events of the file system. That works on every file system
//! (network file systems send no events) and for every way to replace a file (Kubernetes renames a symbolic link that may be any number
//! of folders above), and reading a few small files costs microseconds. New contents are reported once two looks in a row have
//! found them, so that neither a half-written file nor a certificate beside the key of its predecessor is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Interval between two looks. A change is therefore reported within two seconds.
pub const POLL: Duration = Duration::from_secs(1);
/// Largest file that is read, in bytes: four times a bundle of every public certificate authority.
const FILE_BYTES: u64 = 1 << 20;
/// Why there is no content of a file that was not looked at.
const UNREAD: &str = "was not read";

/// The contents of some files at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot(Vec<(PathBuf, Result<Vec<u8>, String>)>);

/// Names the files only: their contents may be secret.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(path, _)| path)).finish()
    }
}

impl Snapshot {
    /// Reads the files. Blocks.
    pub fn take(paths: &[PathBuf]) -> Self {
        Self(paths.iter().map(|path| (path.clone(), read(path))).collect())
    }

    /// The content of one of the files, or why it could not be read.
    pub fn get(&self, path: &Path) -> Result<&[u8], &str> {
        match self.0.iter().find(|(found, _)| found == path) {
            Some((_, content)) => content.as_deref().map_err(String::as_str),
            None => Err(UNREAD),
        }
    }

    fn again(&self) -> Self {
        Self(self.0.iter().map(|(path, _)| (path.clone(), read(path))).collect())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    witan_file::read(path, FILE_BYTES).map_err(|error| error.to_string())
}

/// Some files, and which of their contents were reported.
#[derive(Debug)]
pub struct Watch {
    reported: Snapshot,
    last: Snapshot,
}

impl Watch {
    /// Watches the files of a snapshot that the caller has used already: only different contents will be reported.
    pub fn new(used: Snapshot) -> Self {
        Self { last: used.clone(), reported: used }
    }

    /// Watches files of which nothing is known yet: their present contents are reported first.
    pub fn unread(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let unread = |path| (path, Err(UNREAD.to_owned()));
        Self::new(Snapshot(paths.into_iter().map(unread).collect()))
    }

    /// Reads the files once; answers with contents that are new and were the same in the look before. For a caller on a thread of
    /// its own, which calls it every [`POLL`]. Blocks.
    pub fn look(&mut self) -> Option<&Snapshot> {
        let now = self.last.again();
        self.is_new(now).then_some(&self.reported)
    }

    /// Waits for new contents; for ever, if there are no files. May be dropped while it waits: what it would have reported is reported
    /// by the next call.
    pub async fn changed(&mut self) -> &Snapshot {
        if self.last.0.is_empty() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(POLL).await;
            if let Some(now) = self.read_aside().await
                && self.is_new(now)
            {
                return &self.reported;
            }
        }
    }

    /// Takes the present contents as reported: the caller is about to read the files for a reason other than a change.
    pub async fn skip(&mut self) {
        if let Some(now) = self.read_aside().await {
            self.last = now.clone();
            self.reported = now;
        }
    }

    /// Reads on a thread that may block; `None` while the runtime shuts down.
    async fn read_aside(&self) -> Option<Snapshot> {
        let last = self.last.clone();
        tokio::task::spawn_blocking(move || last.again()).await.ok()
    }

    fn is_new(&mut self, now: Snapshot) -> bool {
        let is_new = now == self.last && now != self.reported;
        self.last = now;
        if is_new {
            self.reported = self.last.clone();
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn watch(paths: &[PathBuf]) -> Watch {
        Watch::new(Snapshot::take(paths))
    }

    #[test]
    fn contents_are_reported_once_two_looks_agree() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("cert"), folder.path().join("key")];
        fs::write(&paths[0], "cert 1").unwrap();
        fs::write(&paths[1], "key 1").unwrap();
        let mut watch = watch(&paths);
        assert!(watch.look().is_none() && watch.look().is_none(), "nothing has changed");

        fs::write(&paths[0], "cert 2").unwrap();
        assert!(watch.look().is_none(), "seen once");
        fs::write(&paths[1], "key 2").unwrap();
        assert!(watch.look().is_none(), "changed since the last look");
        let found = watch.look().expect("seen twice");
        assert_eq!(found.get(&paths[0]), Ok(&b"cert 2"[..]));
        assert_eq!(found.get(&paths[1]), Ok(&b"key 2"[..]));
        assert!(watch.look().is_none(), "reported already");

        fs::write(&paths[0], "cert 3").unwrap();
        assert!(watch.look().is_none());
        fs::write(&paths[0], "cert 2").unwrap();
        assert!(watch.look().is_none() && watch.look().is_none(), "as before");

        fs::remove_file(&paths[0]).unwrap();
        assert!(watch.look().is_none());
        assert!(watch.look().expect("a file that is gone is a change").get(&paths[0]).is_err());
        assert!(!format!("{watch:?}").contains("key 2"), "{watch:?}");
    }

    /// Whoever opens a FIFO without a writer waits for ever, and so would everything that comes after it.
    #[test]
    fn a_fifo_in_place_of_a_file_is_an_error_and_holds_up_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (key, other) = (folder.path().join("key"), folder.path().join("other"));
        fs::write(&key, "key").unwrap();
        let mut watch = watch(&[key.clone(), other.clone()]);
        fs::remove_file(&key).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&key).status().unwrap().success());
        fs::write(&other, "other").unwrap();
        let (looked, looks) = std::sync::mpsc::channel();
        std::thread::spawn(move || looked.send((watch.look().is_some(), watch.look().cloned())));
        let (at_first, found) = looks.recv_timeout(Duration::from_secs(60)).expect("it does not wait for a writer");
        let found = found.expect("seen twice");
        assert!(!at_first && found.get(&key).unwrap_err().contains("is a FIFO"), "{:?}", found.get(&key));
        assert_eq!(found.get(&other), Ok(&b"other"[..]));
    }

    /// As Kubernetes does it: the link that is replaced is not in the folder that the path names.
    #[test]
    fn a_link_that_is_replaced_above_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir_all(folder.path().join(version).join("deep")).unwrap();
            fs::write(folder.path().join(version).join("deep/file"), version).unwrap();
        }
        let link = |to: &str| {
            symlink(folder.path().join(to), folder.path().join("..tmp")).unwrap();
            fs::rename(folder.path().join("..tmp"), folder.path().join("..data")).unwrap();
        };
        link("v1");
        let path = folder.path().join("..data/deep/file");
        let mut watch = watch(std::slice::from_ref(&path));
        link("v2");
        assert!(watch.look().is_none());
        assert_eq!(watch.look().expect("a change").get(&path), Ok(&b"v2"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_skipped_is_not_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "1").unwrap();
        let mut watch = watch(std::slice::from_ref(&path));
        fs::write(&path, "2").unwrap();
        watch.skip().await;
        assert!(tokio::time::timeout(POLL * 4, watch.changed()).await.is_err());
        fs::write(&path, "3").unwrap();
        assert_eq!(watch.changed().await.get(&path), Ok(&b"3"[..]));
    }
}
