//! Where the relative paths of a configuration file lead: to its folder, so that the same file means the same wherever the process was
//! started. Earlier versions looked in the working directory, and what is found only there is still used.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The folders that a relative path of a file may begin in.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// The folder of the file.
    folder: PathBuf,
    /// The working directory, if it is known.
    here: Option<PathBuf>,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The whole path.
    pub(super) path: PathBuf,
    /// Where it was expected, if it is elsewhere.
    pub(super) instead_of: Option<PathBuf>,
}

impl Places {
    /// Those of the configuration in `file`; `None` if it has no folder, since it comes from a pipe or a device.
    ///
    /// Symbolic links are not followed: Kubernetes replaces the target of such a link when the configuration changes.
    pub(super) fn of(file: &Path) -> Option<Self> {
        if !std::fs::metadata(file).is_ok_and(|about| about.is_file()) {
            return None;
        }
        let folder = std::path::absolute(file).ok()?.parent()?.to_owned();
        Some(Self { folder, here: std::env::current_dir().ok() })
    }

    /// Where a path leads that the file contains.
    pub(super) fn find(&self, written: &Path) -> Found {
        let expected = self.folder.join(written);
        let elsewhere = self.here.as_ref().filter(|here| **here != self.folder).map(|here| here.join(written));
        match elsewhere.filter(|elsewhere| written.is_relative() && !may_exist(&expected) && may_exist(elsewhere)) {
            Some(path) => Found { path, instead_of: Some(expected) },
            None => Found { path: expected, instead_of: None },
        }
    }
}

/// Whether there is something at this path, or nobody can say: what must not be examined is not replaced by something else.
fn may_exist(path: &Path) -> bool {
    let absent = [ErrorKind::NotFound, ErrorKind::NotADirectory];
    path.symlink_metadata().map_err(|error| error.kind()).err().is_none_or(|kind| !absent.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_the_file_comes_before_the_working_directory() {
        let whole = tempfile::tempdir().unwrap();
        let (folder, here) = (whole.path().join("etc"), whole.path().join("here"));
        for (parent, name) in [(&folder, "both"), (&here, "both"), (&here, "old")] {
            std::fs::create_dir_all(parent).unwrap();
            std::fs::write(parent.join(name), "").unwrap();
        }
        let places = Places { folder: folder.clone(), here: Some(here.clone()) };
        let found = |written: &str| places.find(Path::new(written));
        assert_eq!(found("both"), Found { path: folder.join("both"), instead_of: None });
        assert_eq!(found("new"), Found { path: folder.join("new"), instead_of: None }, "it is created there");
        assert_eq!(found("old"), Found { path: here.join("old"), instead_of: Some(folder.join("old")) });
        assert_eq!(found("/old"), Found { path: "/old".into(), instead_of: None });
        let unknown = Places { folder: folder.clone(), here: None };
        assert_eq!(unknown.find(Path::new("old")).path, folder.join("old"));
    }

    #[test]
    fn what_comes_from_a_device_has_no_folder() {
        assert!(Places::of(Path::new("/dev/null")).is_none());
    }
}
