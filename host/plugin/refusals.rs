//! Components that cannot be compiled here, remembered across restarts: a file in the watched folder that takes all the memory or CPU time
//! that a compilation may take must not do so again at every start.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use witan_kernel::sync::lock;

use crate::digest::Digest;
use crate::disk::write_file;
use crate::fault::shorten;
use crate::limit;

/// The file's name, in the host's folder.
const FILE: &str = "refused.json";
/// Largest file that is read, in bytes: each entry has a digest and a sentence.
const FILE_BYTES: u64 = (limit::REFUSALS * (limit::TEXT_BYTES * 6 + 256)) as u64;

/// The file. Another version of this program, or other limits, may lead to another result, so that all of it counts for one of these only.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// The layout's version, 1.
    v: u32,
    /// For which version of this program and which limits.
    under: String,
    /// The oldest first.
    refused: Vec<Refused>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    digest: String,
    why: String,
}

/// Refused components, at most [`limit::REFUSALS`].
pub(crate) struct Refusals {
    path: PathBuf,
    remembered: Mutex<Remembered>,
}

impl Refusals {
    /// Those in this folder that hold under these conditions. A file that cannot be read is started anew.
    pub(crate) fn open(data_dir: &Path, under: String) -> Self {
        let path = data_dir.join(FILE);
        let read = witan_file::read(&path, FILE_BYTES).ok();
        let remembered = read.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
        let remembered = remembered.filter(|it| it.v == 1 && it.under == under);
        let remembered = remembered.unwrap_or(Remembered { v: 1, under, refused: Vec::new() });
        Self { path, remembered: Mutex::new(remembered) }
    }

    /// Why a component was refused.
    pub(crate) fn get(&self, digest: Digest) -> Option<String> {
        let digest = digest.to_string();
        let remembered = lock(&self.remembered);
        remembered.refused.iter().find(|refused| refused.digest == digest).map(|refused| refused.why.clone())
    }

    /// Remembers one.
    pub(crate) fn put(&self, digest: Digest, why: &str) {
        let mut remembered = lock(&self.remembered);
        let refused = Refused { digest: digest.to_string(), why: shorten(why) };
        remembered.refused.retain(|old| old.digest != refused.digest);
        remembered.refused.push(refused);
        let surplus = remembered.refused.len().saturating_sub(limit::REFUSALS);
        remembered.refused.drain(..surplus);
        let written = serde_json::to_vec(&*remembered).map_err(std::io::Error::from);
        // Under the lock, which only threads take that compile.
        if let Err(error) = written.and_then(|json| write_file(&self.path, &[&json])) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a refused plugin cannot be remembered; it will be compiled again after a restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_remembered_for_one_version_and_its_limits() {
        let dir = tempfile::tempdir().unwrap();
        let open = |under: &str| Refusals::open(dir.path(), under.to_owned());
        let digest = Digest::of(b"a");
        open("v1").put(digest, "took too long");
        assert_eq!(open("v1").get(digest).as_deref(), Some("took too long"));
        assert_eq!(open("v1").get(Digest::of(b"b")), None);
        assert_eq!(open("v2").get(digest), None);
        std::fs::write(dir.path().join(FILE), b"{").unwrap();
        assert_eq!(open("v1").get(digest), None);
    }

    #[test]
    fn the_latest_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let refusals = Refusals::open(dir.path(), String::new());
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        let most = |n: usize| Refused { digest: digest(n).to_string(), why: "\u{7}".repeat(limit::TEXT_BYTES) };
        lock(&refusals.remembered).refused = (0..limit::REFUSALS).map(most).collect();
        refusals.put(digest(limit::REFUSALS), "last");
        let again = Refusals::open(dir.path(), String::new());
        assert_eq!(again.get(digest(0)), None);
        assert!(again.get(digest(1)).is_some() && again.get(digest(limit::REFUSALS)).is_some());
    }
}
