//! The rate limits of a sweep, in records and in bytes per second.

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

/// A limit of bytes per second. Bytes are paid for after they have been read, or before, as far as it can be guessed how many there will
/// be.
pub(crate) struct BytePace {
    /// 0: unlimited.
    per_second: u64,
    /// When everything read by now is paid for.
    paid: Instant,
}

impl BytePace {
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_second, paid: Instant::now() }
    }

    /// Changes the limit for what is read from now on.
    pub(crate) fn limit(&mut self, per_second: u64) {
        self.per_second = per_second;
        if per_second == 0 {
            self.paid = Instant::now();
        }
    }

    /// These bytes have been read, or will be.
    pub(crate) fn charge(&mut self, bytes: u64) {
        if self.per_second > 0 {
            self.paid = self.paid.max(Instant::now()) + self.takes(bytes);
        }
    }

    /// Of the bytes that were paid for, these were not there.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        if self.per_second > 0 {
            let now = Instant::now();
            self.paid = self.paid.checked_sub(self.takes(bytes)).unwrap_or(now);
        }
    }

    fn takes(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.per_second as f64)
    }

    /// The time to wait for before more is read, if the pause is long enough for a timer.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.paid > Instant::now() + LEAST).then_some(self.paid)
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

    #[tokio::test(start_paused = true)]
    async fn bytes_are_paid_for_after_they_were_read() {
        let (mut pace, start) = (BytePace::new(1000), Instant::now());
        assert_eq!(pace.due(), None);
        pace.charge(2500);
        assert_eq!(pace.due().map(|due| due - start), Some(Duration::from_millis(2500)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(pace.due(), None);
        pace.charge(1000);
        assert_eq!(pace.due().map(|due| due - start), Some(Duration::from_secs(11)), "idle time is not caught up with");
        pace.charge(500);
        pace.give_back(500);
        assert_eq!(
            pace.due().map(|due| due - start),
            Some(Duration::from_secs(11)),
            "what was not there costs nothing"
        );
        let mut unlimited = BytePace::new(0);
        unlimited.charge(u64::MAX);
        unlimited.give_back(u64::MAX);
        assert_eq!(unlimited.due(), None);
    }

    #[test]
    fn unused_time_is_not_caught_up_with() {
        let mut pace = Pace::new(10);
        pace.next = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap_or_else(Instant::now);
        let start = Instant::now();
        assert!(last(&mut pace, 100, start) >= Duration::from_secs(9));
    }
}
