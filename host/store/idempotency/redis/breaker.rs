//! When not to ask: after failures in a row, callers are told at once that the store is down, instead of each waiting for
//! the timeout, and one of them after each pause finds out whether that is still so.

use std::time::{Duration, Instant};

/// Failures in a row after which it opens. One lost connection fails whatever was under way on it; this many, without one
/// success between them, are an outage.
const FAILURES: u32 = 5;

/// How long nobody is let through. Short against what an outage lasts, long against what a try costs.
const PAUSE: Duration = Duration::from_millis(500);

/// Decides who may try. Time is an argument.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Open; the next try is let through then.
    closed_until: Option<Instant>,
    /// A try is under way although it is open.
    trying: bool,
}

/// Permission to try, to be handed back with what came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Nothing is wrong.
    Ordinary,
    /// The one that finds out.
    Trial,
}

impl Breaker {
    /// May one try now?
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

    /// It answers: whoever has found out, everybody may try.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// It failed. True when that has opened the breaker, or kept it open.
    pub(super) fn failed(&mut self, pass: &Pass, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = match pass {
            Pass::Trial => true,
            // Those that were let through before it opened come late.
            Pass::Ordinary => self.closed_until.is_none() && self.failures >= FAILURES,
        };
        if opens {
            self.closed_until = Some(now + PAUSE);
            self.trying = false;
        }
        opens
    }

    /// Nobody waited for the outcome.
    pub(super) fn dropped(&mut self, pass: &Pass) {
        if *pass == Pass::Trial {
            self.trying = false;
        }
    }

    /// True while callers are told that the store is down.
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
    fn failures_in_a_row_open_it_and_one_success_between_them_does_not_let_them() {
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
    fn one_at_a_time_finds_out_after_each_pause() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for _ in 0..3 {
            now += PAUSE;
            assert_eq!(breaker.admit(now), Some(Pass::Trial));
            assert_eq!(breaker.admit(now), None, "another is finding out");
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
    fn a_trial_that_nobody_waits_for_makes_room_for_another() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        now += PAUSE;
        let trial = breaker.admit(now).expect("a trial");
        breaker.dropped(&trial);
        assert_eq!(breaker.admit(now), Some(Pass::Trial));
    }

    #[test]
    fn whoever_comes_late_changes_nothing() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(!breaker.failed(&Pass::Ordinary, now + PAUSE / 2));
        breaker.dropped(&Pass::Ordinary);
        assert_eq!(breaker.admit(now + PAUSE), Some(Pass::Trial), "the pause was not made longer");
        breaker.succeeded();
        assert!(!breaker.is_open());
    }
}
