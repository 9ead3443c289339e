//! How long to wait between attempts that fail: the first pause, doubled after each further failure up to the longest. Only the
//! arithmetic; whoever retries does the waiting.

use std::time::Duration;

/// Pauses between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// No attempt has failed yet; the pause after the first failure is `first`, and none is longer than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// An attempt has failed. Returns the pause before the next one.
    pub fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.pause()
    }

    /// An attempt has succeeded: the next failure is a first one again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The pause before the next attempt: zero unless one has failed since the last success.
    pub fn pause(&self) -> Duration {
        match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => {
                let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
                self.first.saturating_mul(factor).min(self.longest)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(100));
        assert_eq!(backoff.pause(), Duration::ZERO);
        let pauses: Vec<u128> = (0..4).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 100]);
        assert_eq!(backoff.pause(), Duration::from_millis(100));
        (0..100).for_each(|_| _ = backoff.failed());
        assert_eq!(backoff.pause(), Duration::from_millis(100), "however many have failed");
        backoff.succeeded();
        assert_eq!((backoff.pause(), backoff.failed()), (Duration::ZERO, Duration::from_millis(20)));
    }
}
