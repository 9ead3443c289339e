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

/// Tells the coordinator for which share of their time the threads of this runtime have something to do, as long as it exists.
pub(super) async fn follow(coordinator: Weak<Coordinator<Real>>) {
    let metrics = Handle::current().metrics();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut before, mut since, mut mean) = (busy(&metrics), Instant::now(), 0.0);
    loop {
        tick.tick().await;
        let (now, at) = (busy(&metrics), Instant::now());
        let available = (at - since).as_secs_f64() * metrics.num_workers() as f64;
        if available > 0.0 {
            // A thread counts its time when it begins to wait, so an interval may show more than it had.
            let share = (now.saturating_sub(before).as_secs_f64() / available).min(1.0);
            mean += NEWEST * (share - mean);
        }
        (before, since) = (now, at);
        let Some(coordinator) = coordinator.upgrade() else { return };
        coordinator.set_busy(mean);
    }
}

/// For how long the threads have had something to do, together, since the runtime began.
fn busy(metrics: &RuntimeMetrics) -> Duration {
    (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).sum()
}
