//! How long to wait between attempts that fail: the first pause, doubled after each further failure up to the longest, and shortened by up
//! to half of it, so that those who lost the same server do not come back in step. Only the arithmetic; whoever retries does the waiting.

use std::time::Duration;

/// Pauses between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    seed: u64,
}

impl Backoff {
    /// No attempt has failed yet; the pause after the first failure is at most `first`, and none is longer than `longest`. Pauses of the
    /// same seed are the same; see [`seed`].
    pub const fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { first, longest, failures: 0, seed }
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
                let pause = self.first.saturating_mul(factor).min(self.longest);
                let spread = mixed(self.seed ^ u64::from(self.failures)) >> 32;
                pause - (pause / 2).mul_f64(spread as f64 / f64::from(u32::MAX))
            }
        }
    }
}

/// A seed for who retries: its parts, such as the ids of both sides, must differ from those of others. FNV-1a.
pub fn seed(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().copied().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): any two seeds give unrelated numbers.
fn mixed(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(100), 7);
        assert_eq!(backoff.pause(), Duration::ZERO);
        for longest in [20, 40, 80, 100, 100] {
            let pause = backoff.failed();
            assert!(
                pause >= Duration::from_millis(longest / 2) && pause <= Duration::from_millis(longest),
                "{pause:?}"
            );
            assert_eq!(pause, backoff.pause());
        }
        (0..100).for_each(|_| _ = backoff.failed());
        assert!(backoff.pause() >= Duration::from_millis(50), "however many have failed");
        backoff.succeeded();
        assert_eq!(backoff.pause(), Duration::ZERO);
        assert!(backoff.failed() <= Duration::from_millis(20));
    }

    #[test]
    fn pauses_of_different_seeds_are_spread_over_half() {
        let second = Duration::from_secs(1);
        let mut pauses: Vec<Duration> = (0..1000_u32)
            .map(|who| Backoff::new(second, second, seed(&[b"node-1", &who.to_be_bytes()])).failed())
            .collect();
        pauses.sort_unstable();
        let tenth = |of: usize| pauses[of * 100].as_millis();
        for of in 0..10 {
            assert!(tenth(of).abs_diff(500 + of as u128 * 50) < 50, "{of}: {}", tenth(of));
        }
        assert_ne!(seed(&[b"ab", b"c"]), seed(&[b"a", b"bc"]));
    }

    #[test]
    fn pauses_of_one_seed_are_spread_too() {
        for seed in [0, u64::MAX] {
            let second = Duration::from_secs(1);
            let mut backoff = Backoff::new(second, second, seed);
            let pauses: std::collections::BTreeSet<Duration> = (0..100).map(|_| backoff.failed()).collect();
            assert_eq!(pauses.len(), 100, "{seed:x}");
        }
    }

    /// The first numbers of SplitMix64, whose state begins with 0 and grows by the constant.
    #[test]
    fn numbers_are_those_of_split_mix() {
        const GROWS: u64 = 0x9e37_79b9_7f4a_7c15;
        let first = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        assert_eq!([0, 1, 2].map(|turn: u64| mixed(GROWS.wrapping_mul(turn))), first);
    }
}
