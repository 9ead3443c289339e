//! Keys that were deleted long ago and are still there: how long, and why, for people.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use witan_kernel::burial::micros;
use witan_kernel::sync::lock;

use super::Metrics;
use super::kept::Kept;

/// What the last comparison of each part of the ring here has left, by its first and last token.
#[derive(Debug, Default)]
pub(super) struct Overdue(Mutex<BTreeMap<(u64, u64), Part>>);

/// A part of the ring.
#[derive(Debug)]
struct Part {
    compared: Instant,
    /// For each reason since when the longest deleted key was there, microseconds since 1970.
    kept: BTreeMap<Kept, u64>,
}

impl Overdue {
    pub(super) fn note(&self, part: (u64, u64), kept: BTreeMap<Kept, u64>) {
        lock(&self.0).insert(part, Part { compared: Instant::now(), kept });
    }

    /// Shows for how much longer than the grace the oldest has been there, for each reason. What was not compared here for twice the time
    /// in which it should have been is compared elsewhere.
    pub(super) fn show(&self, metrics: &Metrics, now: u64, grace: Duration, compare_every: Duration) {
        let mut parts = lock(&self.0);
        parts.retain(|_, part| part.compared.elapsed() < compare_every * 2);
        for why in Kept::ALL {
            let oldest = parts.values().filter_map(|part| part.kept.get(&why)).min();
            let overdue = oldest.map_or(0, |since| now.saturating_sub(*since).saturating_sub(micros(grace)));
            metrics.tombstones_overdue(why.as_str()).set(overdue as f64 / 1e6);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_all_parts_is_shown_until_it_is_compared_elsewhere() {
        let (overdue, metrics, hour) = (Overdue::default(), Metrics::default(), Duration::from_secs(3600));
        let shown = |why: Kept| metrics.tombstones_overdue(why.as_str()).get();
        let show = |now| overdue.show(&metrics, micros(hour) * now, hour * 36, hour);
        overdue.note((0, 1), BTreeMap::from([(Kept::Unlevel, micros(hour) * 5), (Kept::Moving, micros(hour))]));
        overdue.note((2, 3), BTreeMap::from([(Kept::Unlevel, micros(hour) * 3)]));
        show(40);
        assert_eq!((shown(Kept::Unlevel), shown(Kept::Moving), shown(Kept::Failed)), (3600.0, 3.0 * 3600.0, 0.0));
        tokio::time::advance(hour).await;
        overdue.note((0, 1), BTreeMap::new());
        show(41);
        assert_eq!((shown(Kept::Unlevel), shown(Kept::Moving)), (2.0 * 3600.0, 0.0));
        tokio::time::advance(hour).await;
        show(42);
        assert_eq!(shown(Kept::Unlevel), 0.0);
    }
}
