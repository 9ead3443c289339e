//! When operations start: as soon as another has ended (closed loop), or on a fixed schedule whatever the system does (open loop).

use std::time::{Duration, Instant};

/// When operations start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// When another has ended.
    Closed,
    /// At this rate, in operations per second.
    Open(f64),
}

/// When the measured part of a load ends, after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After this number of operations.
    Operations(u64),
}

/// Largest delay that counts as the load generator's own and not as the system's: a timer of the runtime fires up to a
/// millisecond late, and then the thread must be scheduled.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// One thread's schedule.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    start: Instant,
    measured_from: Instant,
    until: Until,
    rate: Rate,
    /// Operations started, including the warm-up.
    started: u64,
    /// Operations started in the measured part.
    counted: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Start an operation at this time, which has passed unless the loop is open.
    At(Instant),
    /// Start no further operation.
    Done,
}

impl Pace {
    /// A schedule that starts at `start`.
    pub(super) fn new(start: Instant, warm_up: Duration, until: Until, rate: Rate) -> Self {
        Self { start, measured_from: start + warm_up, until, rate, started: 0, counted: 0 }
    }

    /// Start of the measured part.
    pub(super) fn measured_from(&self) -> Instant {
        self.measured_from
    }

    /// End of the measured part, if a time decides it.
    pub(super) fn end(&self) -> Option<Instant> {
        match self.until {
            Until::Elapsed(elapsed) => Some(self.measured_from + elapsed),
            Until::Operations(_) => None,
        }
    }

    /// Claims the next operation; `now` is the time.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let at = match self.rate {
            Rate::Closed => now,
            Rate::Open(rate) => {
                // A rate of almost nothing starts the next operation at a time that no clock can hold: not within this load.
                let after = Duration::try_from_secs_f64(self.started as f64 / rate).ok();
                match after.and_then(|after| self.start.checked_add(after)) {
                    Some(at) => at,
                    None => return Next::Done,
                }
            }
        };
        let done = match self.until {
            Until::Elapsed(elapsed) => at >= self.measured_from + elapsed,
            Until::Operations(operations) => self.counted >= operations,
        };
        if done {
            return Next::Done;
        }
        self.started += 1;
        self.counted += u64::from(at >= self.measured_from);
        Next::At(at)
    }
}

/// The time from which an operation's latency counts: its scheduled start, so that waiting before a stalled system is part of
/// the latency. `idle` says that only the timer has delayed it.
pub(super) fn counts_from(intended: Instant, now: Instant, idle: bool) -> Instant {
    if idle && now.saturating_duration_since(intended) <= TIMER_SLACK { now } else { intended }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Next, Pace, Rate, Until, counts_from};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_rate_of_almost_nothing_ends_the_load() {
        let start = Instant::now();
        for rate in [1e-300, 1e-19] {
            let mut pace = Pace::new(start, SECOND, Until::Operations(5), Rate::Open(rate));
            assert_eq!((pace.next(start), pace.next(start)), (Next::At(start), Next::Done), "{rate}");
        }
    }

    #[test]
    fn an_open_loop_keeps_its_rate_whatever_the_time_is() {
        let start = Instant::now();
        let mut pace = Pace::new(start, SECOND, Until::Elapsed(SECOND), Rate::Open(4.0));
        let late = start + 100 * SECOND;
        let all: Vec<Next> =
            std::iter::repeat_with(|| pace.next(late)).take_while(|next| *next != Next::Done).collect();
        let expected: Vec<Next> = (0..8).map(|n| Next::At(start + n * SECOND / 4)).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_closed_loop_ends_by_time() {
        let start = Instant::now();
        let mut pace = Pace::new(start, Duration::ZERO, Until::Elapsed(SECOND), Rate::Closed);
        assert_eq!(pace.next(start), Next::At(start));
        assert_eq!(pace.next(start + SECOND), Next::Done);
    }

    #[test]
    fn operations_count_after_the_warm_up() {
        let start = Instant::now();
        let mut pace = Pace::new(start, SECOND, Until::Operations(1), Rate::Closed);
        assert_eq!(pace.next(start), Next::At(start));
        assert_eq!(pace.next(start + SECOND), Next::At(start + SECOND));
        assert_eq!(pace.next(start + SECOND), Next::Done);
    }

    #[test]
    fn only_the_timers_own_lateness_is_forgiven() {
        let intended = Instant::now();
        let now = intended + Duration::from_millis(1);
        assert_eq!(counts_from(intended, now, true), now);
        assert_eq!(counts_from(intended, now, false), intended);
        assert_eq!(counts_from(intended, intended + SECOND, true), intended);
    }
}
