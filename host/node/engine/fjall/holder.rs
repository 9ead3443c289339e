//! Which process has a folder open, as the kernel knows it: for whoever wants to stop it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};

/// The process that holds the lock on `file`: its number, and its name where it can be seen. `None` if the kernel does not say, as for a
/// process of another container.
pub(super) fn of(file: &Path) -> Option<String> {
    let found = fs::metadata(file).ok()?;
    let id = holder(&fs::read_to_string("/proc/locks").ok()?, found.dev(), found.ino())?;
    let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("process {id}"),
        name => format!("process {id} ({})", name.escape_debug()),
    })
}

/// The process in a line such as `1: FLOCK  ADVISORY  WRITE 20371 fe:00:5709890 0 EOF`.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let mut lines = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // A line with an arrow is of a process that waits.
    lines.find_map(|words| match words[..] {
        [_, "FLOCK", _, _, id, at, ..] if at == file => id.parse().ok().filter(|id| *id > 0),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let locks = "1: FLOCK  ADVISORY  WRITE 20371 fe:01:570 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 7 fe:01:571 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 8 fe:01:571 0 EOF\n3: FLOCK  ADVISORY  WRITE 0 fe:01:572 0 EOF\n";
        let device = rustix::fs::makedev(0xfe, 1);
        assert_eq!(holder(locks, device, 570), Some(20371));
        for other in [571, 572, 573] {
            assert_eq!(holder(locks, device, other), None, "{other}");
        }
        assert_eq!(holder(locks, rustix::fs::makedev(0xfe, 2), 570), None);
    }
}
