//! What the tests of this crate share: a clock that stands until it is moved, and a way to kill a copy of the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use witan_kernel::port::Clock;

/// Moves only when told to.
#[derive(Debug, Clone)]
pub(crate) struct StandingClock {
    wall: Arc<AtomicU64>,
    monotonic: Arc<AtomicU64>,
}

impl StandingClock {
    pub(crate) fn new() -> Self {
        let at = |micros| Arc::new(AtomicU64::new(micros));
        Self { wall: at(1_800_000_000_000_000), monotonic: at(5_000_000) }
    }

    pub(crate) fn pass_ms(&self, ms: u64) {
        self.wall.fetch_add(ms * 1000, Ordering::SeqCst);
        self.monotonic.fetch_add(ms * 1000, Ordering::SeqCst);
    }

    /// The wall clock alone is set to another time.
    pub(crate) fn jump_to(&self, wall: u64) {
        self.wall.store(wall, Ordering::SeqCst);
    }
}

impl Clock for StandingClock {
    fn wall_micros(&self) -> u64 {
        self.wall.load(Ordering::SeqCst)
    }

    fn monotonic_micros(&self) -> u64 {
        self.monotonic.load(Ordering::SeqCst)
    }
}

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
    assert!(killed, "the copy ended by itself after {} acknowledgements", acknowledged.len());
    acknowledged
}

/// Runs all at once, and waits for all.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, output) in &mut waiting {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(ready) => *output = Some(ready),
                    std::task::Poll::Pending => all = false,
                }
            }
        }
        if all { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

/// Looks at a future once.
pub(crate) async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(ready) => Some(ready),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
