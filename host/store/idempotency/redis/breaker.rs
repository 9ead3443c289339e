//! A circuit breaker: after consecutive failures, callers fail at once instead of each waiting for the timeout, and after each pause
//! one of them tries whether the store is back.

use std::time::{Duration, Instant};

/// Consecutive failures after which it opens. One lost connection fails every step on it; this many without a success in between are an
/// outage.
const FAILURES: u32 = 5;

/// How long it stays open before a trial. Short compared with an outage, long compared with the cost of a try.
const PAUSE: Duration = Duration::from_millis(500);

/// Decides which step may be tried. Time is an argument.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// When open: the time of the next trial.
    closed_until: Option<Instant>,
    /// A trial is in flight.
    trying: bool,
}

/// Permission to try, to be returned with the outcome.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// The breaker is closed.
    Ordinary,
    /// The breaker is open; this one tries whether the store is back.
    Trial,
}

impl Breaker {
    /// Admits a step, or not.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Pass> {
        match self.closed_until {
            None => Some(Pass::Ordinary),
            Some(until) if now < until || self.trying => None,
            Some(_) => {
                self.trying = true;
                Some(Pass::Trial)
            }
        }
    }

    /// A step succeeded: the breaker closes.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A step failed. True when that has opened the breaker, or kept it open.
    pub(super) fn failed(&mut self, pass: &Pass, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = match pass {
            Pass::Trial => true,
            // Steps admitted before it opened fail late, and change nothing.
            Pass::Ordinary => self.closed_until.is_none() && self.failures >= FAILURES,
        };
        if opens {
            self.closed_until = Some(now + PAUSE);
            self.trying = false;
        }
        opens
    }

    /// A step's caller stopped waiting before the outcome.
    pub(super) fn dropped(&mut self, pass: &Pass) {
        if *pass == Pass::Trial {
            self.trying = false;
        }
    }

    /// True while the store is considered down.
    pub(super) fn is_open(&self) -> bool {
        self.closed_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Breaker, FAILURES, PAUSE, Pass};

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES {
            let pass = breaker.admit(now).expect("closed");
            breaker.failed(&pass, now);
        }
        assert!(breaker.is_open());
        breaker
    }

    #[test]
    fn consecutive_failures_open_it_and_a_success_between_them_prevents_that() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            for _ in 1..FAILURES {
                assert!(!breaker.failed(&Pass::Ordinary, now));
            }
            assert_eq!(breaker.admit(now), Some(Pass::Ordinary));
            breaker.succeeded();
        }
        assert_eq!(opened(now).admit(now), None);
    }

    #[test]
    fn one_trial_is_admitted_after_each_pause() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for _ in 0..3 {
            now += PAUSE;
            assert_eq!(breaker.admit(now), Some(Pass::Trial));
            assert_eq!(breaker.admit(now), None, "another trial is in flight");
            assert!(breaker.failed(&Pass::Trial, now));
            assert_eq!(breaker.admit(now), None, "it has just failed");
        }
        now += PAUSE;
        assert_eq!(breaker.admit(now), Some(Pass::Trial));
        breaker.succeeded();
        assert_eq!(breaker.admit(now), Some(Pass::Ordinary));
        assert_eq!(breaker.admit(now), Some(Pass::Ordinary));
    }

    #[test]
    fn a_dropped_trial_admits_another() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        now += PAUSE;
        let trial = breaker.admit(now).expect("a trial");
        breaker.dropped(&trial);
        assert_eq!(breaker.admit(now), Some(Pass::Trial));
    }

    #[test]
    fn a_late_failure_changes_nothing() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(!breaker.failed(&Pass::Ordinary, now + PAUSE / 2));
        breaker.dropped(&Pass::Ordinary);
        assert_eq!(breaker.admit(now + PAUSE), Some(Pass::Trial), "the pause was not made longer");
        breaker.succeeded();
        assert!(!breaker.is_open());
    }
}
