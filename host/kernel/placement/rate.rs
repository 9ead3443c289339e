//! How fast records are copied while clients use the nodes: as fast as an operator allows while nodes answer as they usually do, and slower
//! while one of them does not. A disk that gets full stops the copy.

/// Rates are not lowered below this number of bytes per second, unless less is allowed: a copy that never ends helps nobody.
pub const LEAST: u64 = 1 << 20;
/// The rate is looked at this often, in microseconds.
const EVERY: u64 = 1_000_000;
/// A node is slow while its 99th percentile is more than one and a half times what it usually is, and at least this much more: a
/// millisecond is felt by nobody, and percentiles of a few hundred microseconds vary by more than half of that. Microseconds.
const FELT: u32 = 1000;

/// No move begins, and none needs its coming replicas, while the disk of a node that gets records is less than this away from full, in
/// percent.
const BEFORE: f32 = 5.0;

/// Whether the first copy pauses while the disk of a node that gets records is this full, if it pauses from `full_disk` on, both in
/// percent. What is left is for clients, and for the engine, which rewrites its files. 100: it never does.
pub fn is_full(percent: f32, full_disk: u8) -> bool {
    full_disk < 100 && percent >= f32::from(full_disk)
}

/// Whether no move begins because of that disk, and none needs its coming replicas: a little earlier, so that what begins does not pause at
/// once.
pub fn is_too_full(percent: f32, full_disk: u8) -> bool {
    full_disk < 100 && percent >= f32::from(full_disk) - BEFORE
}

/// Whether a node whose 99th percentile is usually `usual` answers slowly at `now`, both in microseconds.
pub fn is_slow(usual: u32, now: u32) -> bool {
    u64::from(now) * 2 > u64::from(usual) * 3 && now > usual.saturating_add(FELT)
}

/// The rate of copies: halved each second while a node is slow, raised by a quarter each second while none is, so that it stays close to
/// what the nodes bear, however much less that is than what is allowed.
#[derive(Debug, Clone, Default)]
pub struct Throttle {
    /// Bytes per second; `None`: as many as are allowed.
    lowered: Option<u64>,
    looked: u64,
}

impl Throttle {
    /// The rate at `now`, in microseconds of any clock that never goes back. `allowed`: bytes per second, 0: unlimited, and then nothing
    /// is lowered. `is_slow` is asked once a second at most.
    pub fn rate(&mut self, now: u64, allowed: u64, is_slow: impl FnOnce() -> bool) -> u64 {
        if allowed == 0 {
            self.lowered = None;
            return 0;
        }
        if now >= self.looked.saturating_add(EVERY) || self.looked == 0 {
            self.looked = now.max(1);
            let rate = self.lowered.map_or(allowed, |rate| rate.min(allowed));
            let next = if is_slow() { (rate / 2).max(LEAST.min(allowed)) } else { rate + rate / 4 };
            self.lowered = (next < allowed).then_some(next);
        }
        self.lowered.map_or(allowed, |rate| rate.min(allowed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_node_is_slow_when_it_takes_half_as_long_again_and_that_is_felt() {
        assert!(!is_slow(10_000, 15_000) && is_slow(10_000, 15_001));
        assert!(!is_slow(300, 1300) && is_slow(300, 1301));
        assert!(!is_slow(u32::MAX, u32::MAX) && !is_slow(0, 1000) && is_slow(0, 1001));
    }

    #[test]
    fn disks_are_full_a_little_before_a_move_to_them_pauses() {
        assert!(!is_full(84.9, 85) && is_full(85.0, 85) && !is_too_full(79.9, 85) && is_too_full(80.0, 85));
        assert!(!is_full(100.0, 100) && !is_too_full(100.0, 100));
    }

    #[test]
    fn the_rate_falls_by_halves_and_rises_by_quarters() {
        let (mut throttle, allowed) = (Throttle::default(), 32 * LEAST);
        let mut rates = Vec::new();
        for second in 1..=24 {
            let rate = throttle.rate(second * SECOND, allowed, || second <= 7);
            assert_eq!(throttle.rate(second * SECOND + SECOND / 2, allowed, || panic!("once a second")), rate);
            rates.push(rate * 10 / LEAST);
        }
        assert_eq!(rates[..7], [160, 80, 40, 20, 10, 10, 10]);
        assert_eq!(rates[7..], [12, 15, 19, 24, 30, 38, 47, 59, 74, 93, 116, 145, 181, 227, 284, 320, 320]);
    }

    #[test]
    fn what_is_allowed_may_change_and_may_be_little_or_everything() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.rate(SECOND, 1000, || true), 1000, "less than what is never gone below");
        assert_eq!(throttle.rate(2 * SECOND, 64 * LEAST, || true), 32 * LEAST);
        assert_eq!(throttle.rate(2 * SECOND + 1, 4 * LEAST, || true), 4 * LEAST);
        assert_eq!(throttle.rate(3 * SECOND, 0, || true), 0);
        assert_eq!(throttle.rate(3 * SECOND + 1, 4 * LEAST, || true), 2 * LEAST);
        // Once all that is allowed is used again, more that is allowed is used at once.
        let mut throttle = Throttle::default();
        let rates: Vec<u64> = (1..=5).map(|n| throttle.rate(n * SECOND, 8 * LEAST, || n == 1) / LEAST).collect();
        assert_eq!(rates, [4, 5, 6, 7, 8]);
        assert_eq!(throttle.rate(5 * SECOND + 1, 16 * LEAST, || true), 16 * LEAST);
    }

    proptest! {
        #[test]
        fn a_rate_is_within_its_bounds(looks in prop::collection::vec((0..3 * SECOND, 1u64..100 * LEAST, any::<bool>()), 1..60)) {
            let (mut throttle, mut now) = (Throttle::default(), 0);
            for (pause, allowed, slow) in looks {
                now += pause;
                let rate = throttle.rate(now, allowed, || slow);
                prop_assert!(rate <= allowed && rate >= LEAST.min(allowed));
            }
        }
    }
}
