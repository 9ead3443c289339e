//! Contract tests: what every implementation of a store's port must do, run by each implementation's own tests; and the clock
//! and helpers that such tests share.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use witan_kernel::port::Clock;

pub mod idempotency;
pub mod metadata;
pub mod plugins;

/// A clock that advances only when it is moved.
#[derive(Debug, Clone)]
pub struct ManualClock {
    wall: Arc<AtomicU64>,
    monotonic: Arc<AtomicU64>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl ManualClock {
    /// A clock at some moment of the year 2027.
    pub fn new() -> Self {
        let at = |micros| Arc::new(AtomicU64::new(micros));
        Self { wall: at(1_800_000_000_000_000), monotonic: at(5_000_000) }
    }

    /// Advances both the wall clock and the monotonic clock.
    pub fn pass_ms(&self, ms: u64) {
        self.wall.fetch_add(ms * 1000, Ordering::SeqCst);
        self.monotonic.fetch_add(ms * 1000, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, to `wall` microseconds.
    pub fn jump_to(&self, wall: u64) {
        self.wall.store(wall, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall_micros(&self) -> u64 {
        self.wall.load(Ordering::SeqCst)
    }

    fn monotonic_micros(&self) -> u64 {
        self.monotonic.load(Ordering::SeqCst)
    }
}

/// Polls all futures concurrently and returns their outputs in order.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, output) in &mut waiting {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(ready) => *output = Some(ready),
                    Poll::Pending => all = false,
                }
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

/// Polls a future once.
pub async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        Poll::Ready(match Pin::new(&mut *future).poll(context) {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => None,
        })
    })
    .await
}
