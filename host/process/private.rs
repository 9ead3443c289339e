//! What this process keeps from everybody else on its machine: its files, and its memory.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getuid, setrlimit, umask};

/// Permissions of anybody but the owner.
const OTHERS: u32 = 0o077;
/// Permissions of anybody who is neither the owner nor in the group.
const STRANGERS: u32 = 0o007;

/// Makes files that this process creates from now on its owner's only, whatever the umask was: the storage engine, for one, leaves that to
/// the umask. And no core file is written when it crashes, which would contain keys, tokens and records.
///
/// It stays dumpable, so that its owner can attach a debugger or strace to it.
///
/// # Errors
/// When the limit on core files cannot be lowered, which everybody may do, unless a sandbox forbids the call.
pub fn keep() -> io::Result<()> {
    umask(Mode::from_raw_mode(OTHERS));
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Creates a folder that only its owner may enter, or warns once if it exists and others may.
///
/// # Errors
/// When it cannot be created or examined.
pub fn folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = fs::metadata(path)?;
    // A group that the owner did not choose (a volume of Kubernetes) cannot be taken away by this process's user.
    let matters = if found.uid() == getuid().as_raw() { OTHERS } else { STRANGERS };
    if found.mode() & matters != 0 {
        let mode = format!("{:04o}", found.mode() & 0o7777);
        let folder = path.display();
        tracing::warn!(%folder, mode, "other users of this machine may read the data in this folder; to forbid it: chmod 700 {folder}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_folder_is_its_owners_and_an_old_one_stays_as_it_is() {
        let parent = tempfile::tempdir().unwrap();
        let new = parent.path().join("a/b");
        folder(&new).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(parent.path().join("a")).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        folder(&new).unwrap();
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o755, "that is for the operator to decide");
    }
}
