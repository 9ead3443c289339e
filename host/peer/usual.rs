//! What the latency of a node usually is, which copies are measured against.

use std::sync::Mutex;
use std::time::Duration;

use witan_kernel::sync::lock;

/// Seconds that are remembered: ten minutes.
const SECONDS: usize = 600;
/// The last of them, in which a load may have ended that is not usual any longer.
const LAST: usize = 60;
/// Seconds without which nothing is usual.
const ENOUGH: usize = 20;
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

    /// Their median, or that of the last minute if it is less, in microseconds; `None` if the node was asked too seldom. What clients have
    /// had for a minute is what they notice the loss of, also after busier minutes.
    pub(super) fn median(&self) -> Option<u32> {
        let seconds = lock(&self.0);
        let mut all = seconds.p99_us.clone();
        all.rotate_left(seconds.next);
        drop(seconds);
        if all.len() < ENOUGH {
            return None;
        }
        let last = median(&mut all[all.len().saturating_sub(LAST)..].to_vec());
        Some(last.min(median(&mut all)))
    }
}

fn median(of: &mut [u32]) -> u32 {
    let middle = of.len() / 2;
    *of.select_nth_unstable(middle).1
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
        (21..=361).for_each(|second| note(second, 300));
        assert_eq!(usual.median(), Some(300));
        (362..=390).for_each(|second| note(second, 200));
        assert_eq!(usual.median(), Some(300), "half a minute is not usual");
        (391..=394).for_each(|second| note(second, 200));
        assert_eq!(usual.median(), Some(200), "more than half of the last minute is");
        (395..=480).for_each(|second| note(second, 900));
        assert_eq!(usual.median(), Some(300), "a minute that was slower is not");
        (481..=1200).for_each(|second| note(second, 200));
        assert_eq!(usual.median(), Some(200), "what is older is forgotten");
    }
}
