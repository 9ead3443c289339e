//! A well-behaved client that runs during the attacks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::harness::{Api, eventually, read, write};

/// Writes and reads on one connection, one after the other, until stopped. None may fail.
pub(super) struct Friend {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    working: JoinHandle<Duration>,
}

impl Friend {
    pub(super) fn start(address: SocketAddr) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&served));
        let working = tokio::spawn(async move {
            let api = Api::new(address);
            let mut slowest = Duration::ZERO;
            while !ends.load(Ordering::Relaxed) {
                let began = Instant::now();
                let number = counts.load(Ordering::Relaxed);
                api.write(write("t", "friend", number.to_string())).await.expect("a friend's write");
                let found = api.read(read("t", "friend")).await.expect("a friend's read");
                assert_eq!(found.value, number.to_string().as_bytes());
                slowest = slowest.max(began.elapsed());
                counts.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            slowest
        });
        Self { address, stop, served, working }
    }

    /// Waits until this many more of its rounds are done.
    pub(super) async fn served(&self, rounds: usize) {
        let enough = self.served.load(Ordering::Relaxed) + rounds;
        eventually("a friend is served", async || {
            assert!(!self.working.is_finished(), "a friend's call failed");
            (self.served.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }

    /// New clients are served, too, after the retries that every client makes.
    pub(super) async fn newcomers(&self, count: usize) {
        for number in 0..count {
            eventually("a newcomer is served", async || {
                Api::new(self.address).write(write("t", "newcomer", number.to_string())).await.ok()
            })
            .await;
        }
    }

    /// Stops it, and prints its results.
    pub(super) async fn end(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let slowest = self.working.await.expect("no call of a friend's failed");
        format!("{} rounds of a friend's, the slowest {slowest:?}", self.served.load(Ordering::Relaxed))
    }
}
