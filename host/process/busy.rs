//! Notices how busy the threads are that serve.

use std::sync::Weak;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::time::{Instant, MissedTickBehavior, interval};
use witan_coordinate::Coordinator;

use super::world::Real;

/// How often: a few times within the 200 ms after which a wait is no burst any more.
const EVERY: Duration = Duration::from_millis(50);
/// Weight of the newest share in the mean, so that it is one of about 200 ms.
const NEWEST: f64 = 0.25;

/// Informs the coordinator for which share of their time the threads of this runtime have something to do, as long as it exists.
pub(super) async fn follow(coordinator: Weak<Coordinator<Real>>) {
    let metrics = Handle::current().metrics();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since = Instant::now();
    let mut share = Share::new(busy(&metrics));
    loop {
        tick.tick().await;
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut since, now);
        share.note(busy(&metrics), passed * metrics.num_workers() as u32);
        let Some(coordinator) = coordinator.upgrade() else { return };
        coordinator.set_busy(share.mean);
    }
}

/// For how long the threads have had something to do, together, since the runtime began.
fn busy(metrics: &RuntimeMetrics) -> Duration {
    (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).sum()
}

/// The share of their time for which threads have something to do, in a moving mean.
struct Share {
    /// For how long they had something to do, in all, when it was last looked at.
    before: Duration,
    mean: f64,
}

impl Share {
    fn new(before: Duration) -> Self {
        Self { before, mean: 0.0 }
    }

    /// They have had something to do for `busy` in all; since the last time, `available` has passed for all of them together.
    fn note(&mut self, busy: Duration, available: Duration) {
        let spent = busy.saturating_sub(self.before);
        self.before = busy;
        if !available.is_zero() {
            // A thread counts what it has done when it is done with it, so an interval may show more than it had.
            let share = (spent.as_secs_f64() / available.as_secs_f64()).min(1.0);
            self.mean += NEWEST * (share - self.mean);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_follows_within_a_few_intervals() {
        let mut share = Share::new(Duration::from_secs(5));
        let mut busy = Duration::from_secs(5);
        for _ in 0..6 {
            // Two threads, one of which has been busy.
            busy += EVERY;
            share.note(busy, 2 * EVERY);
        }
        assert!((0.4..0.5).contains(&share.mean), "{}", share.mean);
        busy += 20 * EVERY;
        share.note(busy, 2 * EVERY);
        assert!((0.5..0.7).contains(&share.mean), "an interval has no more than itself: {}", share.mean);
        (0..20).for_each(|_| share.note(busy, 2 * EVERY));
        assert!(share.mean < 0.01, "{}", share.mean);
        share.note(busy, Duration::ZERO);
        assert!(share.mean.is_finite());
    }

    /// What tokio counts is what is meant: a thread that computes is busy, and one that waits is not.
    #[test]
    fn threads_that_compute_are_busy() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let metrics = runtime.metrics();
        let spin = |long: Duration| {
            runtime.block_on(async {
                let spun = tokio::spawn(async move {
                    let began = std::time::Instant::now();
                    while began.elapsed() < long {
                        std::hint::spin_loop();
                    }
                });
                spun.await.unwrap();
                // The thread counts its time once it has nothing to do.
                let parked = metrics.worker_park_count(0);
                while metrics.worker_park_count(0) == parked {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        };
        let before = busy(&metrics);
        spin(Duration::from_millis(50));
        assert!(busy(&metrics) - before >= Duration::from_millis(40), "{:?}", busy(&metrics) - before);
    }
}
