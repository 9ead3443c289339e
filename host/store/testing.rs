//! What this crate's tests share: a way to kill a copy of the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CHILD: &str = "WITAN_STORE_TEST_CHILD";

/// In a copy of this test that [`kill_midway`] has started: the folder to work in.
pub(crate) fn as_child() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Starts a copy of the named test in `folder`, lets it acknowledge at least `lines` lines (those that start with "ack "),
/// kills it without warning, and returns all that it has acknowledged.
pub(crate) fn kill_midway(test: &str, folder: &Path, lines: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().expect("this test's path"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts a copy of this test");
    let mut acknowledged = Vec::new();
    let mut killed = false;
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let Ok(line) = line else { break };
        acknowledged.extend(line.strip_prefix("ack ").map(str::to_owned));
        if acknowledged.len() >= lines && !killed {
            child.kill().expect("kills the copy");
            killed = true;
        }
    }
    child.wait().expect("the copy ends");
    assert!(killed, "the copy ended on its own after {} acknowledgements", acknowledged.len());
    acknowledged
}
