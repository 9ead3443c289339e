//! What the latency of a node usually is.

use std::sync::Mutex;
use std::time::Duration;

use witan_kernel::sync::lock;

/// Seconds that are remembered: ten minutes.
const SECONDS: usize = 600;
/// Seconds without which nothing is usual.
const ENOUGH: usize = 60;
/// One second, in microseconds.
const SECOND: u64 = Duration::from_secs(1).as_micros() as u64;

/// The 99th percentile of a node's latencies in each of the last seconds in which it was asked anything: 2.4 kB for a node.
#[derive(Debug, Default)]
pub(super) struct Usual(Mutex<Seconds>);

#[derive(Debug, Default)]
struct Seconds {
    /// Microseconds. Once all places are taken, the oldest is at `next`.
    p99_us: Vec<u32>,
    next: usize,
    /// When the last was noted.
    noted: u64,
}

impl Usual {
    /// The percentile is this at `now`, in microseconds. The first within each second is kept.
    pub(super) fn note(&self, now: u64, p99_us: u32) {
        let mut seconds = lock(&self.0);
        if now < seconds.noted.saturating_add(SECOND) {
            return;
        }
        seconds.noted = now;
        if seconds.p99_us.len() < SECONDS {
            return seconds.p99_us.push(p99_us);
        }
        let oldest = seconds.next;
        seconds.p99_us[oldest] = p99_us;
        seconds.next = (oldest + 1) % SECONDS;
    }

    /// Their median, in microseconds; `None` if the node was asked too seldom.
    pub(super) fn median(&self) -> Option<u32> {
        let mut all = lock(&self.0).p99_us.clone();
        if all.len() < ENOUGH {
            return None;
        }
        let middle = all.len() / 2;
        Some(*all.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_the_last_ten_minutes_is_usual() {
        let usual = Usual::default();
        let note = |second: u64, p99_us| usual.note(second * SECOND, p99_us);
        (1..ENOUGH as u64).for_each(|second| note(second, 100));
        assert_eq!(usual.median(), None, "too few");
        note(ENOUGH as u64 - 1, 7);
        assert_eq!(usual.median(), None, "one in each second");
        note(ENOUGH as u64, 100);
        assert_eq!(usual.median(), Some(100));
        (61..=361).for_each(|second| note(second, 300));
        assert_eq!(usual.median(), Some(300));
        (362..=1000).for_each(|second| note(second, 200));
        assert_eq!(usual.median(), Some(200), "what is older is forgotten");
    }
}
