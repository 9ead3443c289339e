//! A well-behaved client that runs during the attacks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::harness::{Api, eventually, read, write};

/// Writes and reads on one connection, one after the other, until stopped. None may fail.
pub(super) struct Friend {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    /// How long each call took since the attack began.
    took: Arc<Mutex<Vec<Duration>>>,
    working: JoinHandle<()>,
}

impl Friend {
    pub(super) fn start(address: SocketAddr) -> Self {
        Self::of("t", address)
    }

    /// One that uses this tenant.
    pub(super) fn of(tenant: &'static str, address: SocketAddr) -> Self {
        let (stop, served, took) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::default());
        let (ends, counts, times) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&took));
        let working = tokio::spawn(async move {
            let api = Api::new(address);
            while !ends.load(Ordering::Relaxed) {
                let number = counts.load(Ordering::Relaxed);
                let began = Instant::now();
                api.write(write(tenant, "friend", number.to_string())).await.expect("a friend's write");
                let written = Instant::now();
                let found = api.read(read(tenant, "friend")).await.expect("a friend's read");
                locked(&times).extend([written - began, written.elapsed()]);
                assert_eq!(found.value, number.to_string().as_bytes());
                counts.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { address, stop, served, took, working }
    }

    /// The attack begins: what was before is no longer of interest.
    pub(super) fn begin(&self) {
        locked(&self.took).clear();
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
        self.working.await.expect("no call of a friend's failed");
        let mut took = std::mem::take(&mut *locked(&self.took));
        took.sort();
        let of_hundred = |at: usize| took.get(took.len() * at / 100).copied().unwrap_or_default();
        let slowest = took.last().copied().unwrap_or_default();
        format!(
            "{} calls of a friend's: median {:.1?}, p99 {:.1?}, slowest {slowest:.1?}",
            took.len(),
            of_hundred(50),
            of_hundred(99)
        )
    }
}

fn locked(took: &Mutex<Vec<Duration>>) -> std::sync::MutexGuard<'_, Vec<Duration>> {
    took.lock().unwrap_or_else(PoisonError::into_inner)
}
