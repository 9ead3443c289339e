//! So many records in a second, and no more.

use std::time::Duration;

use tokio::time::Instant;

/// Pauses shorter than this are saved up: a timer is no finer.
const LEAST: Duration = Duration::from_millis(5);
/// Time that was not used is forgotten beyond this, so that nothing makes up for a stop with a rush.
const SAVED: Duration = Duration::from_millis(100);

/// Keeps to a pace.
pub(super) struct Pace {
    /// What one record takes.
    each: Duration,
    /// When the next one may be looked at.
    next: Instant,
}

impl Pace {
    /// So many in a second; 0: as many as come.
    pub(super) fn new(per_second: u32) -> Self {
        let each = Duration::from_secs(1).checked_div(per_second).unwrap_or(Duration::ZERO);
        Self { each, next: Instant::now() }
    }

    /// Counts one more record, and answers until when to wait first, if that is worth a timer.
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

    /// The last due time of so many records, after `start`; nothing waits for it.
    fn last(pace: &mut Pace, records: u32, start: Instant) -> Duration {
        let due = (0..records).filter_map(|_| pace.one()).last();
        due.map_or(Duration::ZERO, |due| due - start)
    }

    #[test]
    fn a_pace_is_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(1000);
        // However slow this machine is: 100 seconds' worth of records are not due before almost all of them have passed.
        let took = last(&mut pace, 100_000, start);
        assert!(took >= Duration::from_millis(99_000) && took <= Duration::from_secs(400), "{took:?}");
        assert_eq!(last(&mut Pace::new(0), 10_000, start), Duration::ZERO);
    }

    #[test]
    fn rests_are_not_made_up_for() {
        let mut pace = Pace::new(10);
        pace.next = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap_or_else(Instant::now);
        let start = Instant::now();
        assert!(last(&mut pace, 100, start) >= Duration::from_secs(9));
    }
}
