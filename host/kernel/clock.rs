//! The hybrid clock: wall time that never repeats and never goes back, so that the stamps of one coordinator are distinct.

use std::sync::atomic::{AtomicU64, Ordering};

/// A hybrid clock. Stamps reported by replicas affect the stamp of one write, never this clock: one stamp from the far future must not
/// move all later writes of a coordinator there.
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
}

impl HybridClock {
    /// A clock that has not ticked.
    pub fn new() -> Self {
        Self::default()
    }

    /// The greater of `wall_micros` (microseconds since 1970) and one more than the last tick. Lock-free; two ticks are
    /// never equal, whichever threads call. At the end of the range (`u64::MAX`) it stops instead of wrapping.
    pub fn tick(&self, wall_micros: u64) -> u64 {
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let next = wall_micros.max(last.saturating_add(1));
            match self.last.compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return next,
                Err(seen) => last = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HybridClock;

    #[test]
    fn follows_the_wall_and_never_goes_back() {
        let clock = HybridClock::new();
        assert_eq!(clock.tick(100), 100);
        assert_eq!(clock.tick(100), 101);
        assert_eq!(clock.tick(40), 102);
        assert_eq!(clock.tick(200), 200);
        assert_eq!(clock.tick(u64::MAX), u64::MAX);
        assert_eq!(clock.tick(0), u64::MAX);
    }

    #[test]
    fn ticks_of_many_threads_are_distinct() {
        let clock = HybridClock::new();
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..5000).map(|wall| clock.tick(wall)).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a thread that only ticks")).collect()
        });
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
