//! The rate limit of a sweep, in records per second.

use std::time::Duration;

use tokio::time::Instant;

/// Pauses shorter than this are accumulated: timers are not precise enough for them.
const LEAST: Duration = Duration::from_millis(5);
/// Unused time that is carried over, at most, so that a sweep does not catch up with a burst after a stall.
const SAVED: Duration = Duration::from_millis(100);

/// A rate limiter.
pub(super) struct Pace {
    /// Time per record; zero: unlimited.
    each: Duration,
    /// When the next record is due.
    next: Instant,
}

impl Pace {
    /// A limit of `per_second` records per second; 0: unlimited.
    pub(super) fn new(per_second: u32) -> Self {
        let each = Duration::from_secs(1).checked_div(per_second).unwrap_or(Duration::ZERO);
        Self { each, next: Instant::now() }
    }

    /// Counts one record, and returns the time to wait for before it, if the pause is long enough for a timer.
    pub(super) fn one(&mut self) -> Option<Instant> {
        if self.each.is_zero() {
            return None;
        }
        let now = Instant::now();
        let due = self.next.max(now.checked_sub(SAVED).unwrap_or(now));
        self.next = due + self.each;
        (due > now + LEAST).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last due time among a number of records, since `start`; does not wait.
    fn last(pace: &mut Pace, records: u32, start: Instant) -> Duration {
        let due = (0..records).filter_map(|_| pace.one()).last();
        due.map_or(Duration::ZERO, |due| due - start)
    }

    #[test]
    fn a_pace_is_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(1000);
        // However slow this machine is: 100 seconds' worth of records are due only after almost 100 seconds.
        let took = last(&mut pace, 100_000, start);
        assert!(took >= Duration::from_millis(99_000) && took <= Duration::from_secs(400), "{took:?}");
        assert_eq!(last(&mut Pace::new(0), 10_000, start), Duration::ZERO);
    }

    #[test]
    fn unused_time_is_not_caught_up_with() {
        let mut pace = Pace::new(10);
        pace.next = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap_or_else(Instant::now);
        let start = Instant::now();
        assert!(last(&mut pace, 100, start) >= Duration::from_secs(9));
    }
}
