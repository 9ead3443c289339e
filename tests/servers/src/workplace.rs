//! A folder whose processes end with it: for programs that start processes, such as a script with servers in the background.

use std::path::Path;

use tempfile::TempDir;

use crate::{eventually, process, reaper};

/// A temporary folder. When it is dropped, every process that works in it (whose current folder is in it) is killed, and it is
/// removed; the same happens when this process ends, however that happens.
#[derive(Debug)]
pub struct Workplace(TempDir);

impl Workplace {
    /// An empty one.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(prefix: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir().expect("make a temporary folder");
        reaper::watch(folder.path());
        Self(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // Without /proc, they cannot be found and must end on their own.
        let _ = eventually(|| {
            let left = process::working_in(self.path()).unwrap_or_default();
            process::signal("KILL", &left);
            left.is_empty().then_some(())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_works_in_it_ends_with_it() {
        let workplace = Workplace::new("witan-workplace-");
        let script = "sleep 600 & mkdir deeper; cd deeper; sleep 600 & echo started; wait";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).current_dir(workplace.path()).stdout(Stdio::piped());
        let mut shell = shell.spawn().expect("run sh");
        let mut said = [0; 8];
        std::io::Read::read_exact(&mut shell.stdout.take().expect("a pipe"), &mut said).expect("it speaks");
        let path = workplace.path().to_path_buf();
        if let Some(working) = process::working_in(&path) {
            assert!(working.len() >= 2, "{working:?}");
            drop(workplace);
            assert_eq!(process::working_in(&path), Some(Vec::new()));
            assert!(!path.exists());
        } else {
            process::signal("KILL", &[shell.id()]);
        }
        shell.wait().expect("it ends");
    }
}
