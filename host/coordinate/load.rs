//! How many operations may be under way, found from how long they wait until they begin.
//!
//! No number fits every machine: what saturates two cores is nothing for thirty, and operations that wait for a distant replica cost
//! nothing at all. What shows that there are too many is that a new one waits before it begins, because everything that can run is running.
//! A window is narrowed while that wait is long and widened while it is short, as congestion control does with packets (additive increase,
//! multiplicative decrease: Chiu and Jain 1989; a wait instead of a count: CoDel, RFC 8289).
//!
//! A short wait has two meanings. Where threads have time to spare, operations wait because many arrived together, or because many answers
//! did, which costs nobody anything. Where threads have hardly any, each operation more makes all others later. So the wait that the narrow
//! window aims at is a twelfth as long while the threads that serve are busy for more than half of the time.
//!
//! There are two windows. Beyond the narrow one, which keeps the wait so short that nobody notices it, a tenant with clearly more
//! operations than others is refused; tenants that share evenly go on. Beyond the wide one, which bounds the wait for everybody, a tenant
//! is refused that has its share of it. Decision 0032.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// How often a window is changed, in microseconds: several waits long, and short against a client's patience.
const INTERVAL: u64 = 20_000;
/// Operations that begin within this time, microseconds, are never too many: as many are under way where each takes this long, and with
/// fewer there is too little that can be done at a time.
const SHORT: usize = 10_000;
/// Fewer operations that have begun say nothing about a wait.
const SAMPLES: u64 = 8;

/// A window that follows the wait of operations.
#[derive(Debug)]
struct Window {
    /// Fewer operations are never too many: a window is at least this, and at least the second number once the wait has been too long
    /// for [`LASTS`] intervals.
    least: (usize, usize),
    most: usize,
    operations: AtomicUsize,
    /// Intervals with too long a wait, less those without since; at most twice [`LASTS`].
    long: AtomicU32,
}

/// For how many intervals a wait has to be too long to be more than a burst: 200 ms.
const LASTS: u32 = 10;

impl Window {
    fn new(least: (usize, usize), most: usize) -> Self {
        let least = (least.0.min(most), least.1.min(most));
        Self { least, most, operations: AtomicUsize::new(most), long: AtomicU32::new(0) }
    }

    fn get(&self) -> usize {
        self.operations.load(Ordering::Relaxed)
    }

    /// An interval has passed in which operations waited for `wait` microseconds in the mean, of the `target` at most that is aimed
    /// at. In it `began` operations have begun, and `under_way` were under way at its end.
    fn follow(&self, wait: u64, target: u64, began: usize, under_way: usize) {
        let (now, long) = (self.get(), self.long.load(Ordering::Relaxed));
        let next = if wait > target {
            self.long.store((long + 1).min(2 * LASTS), Ordering::Relaxed);
            let least = if long >= LASTS { self.least.1 } else { self.least.0 }
                .max(began * SHORT / INTERVAL as usize)
                .min(self.most);
            // Never from a number that was not in use, and never more than it is.
            (now.min(under_way) / 8 * 7).max(least).min(now)
        } else {
            self.long.store(long.saturating_sub(1), Ordering::Relaxed);
            now.saturating_add((now / 32).max(4)).min(self.most)
        };
        self.operations.store(next, Ordering::Relaxed);
    }
}

/// What the operations of a coordinator wait for, and the windows that follow from it.
#[derive(Debug)]
pub(super) struct Load {
    narrow: Window,
    wide: Window,
    /// Whether the threads that serve have hardly any time to spare.
    busy: AtomicBool,
    /// When the interval began, in monotonic microseconds.
    since: AtomicU64,
    waited: AtomicU64,
    began: AtomicU64,
}

/// The wait at which tenants that have more than others give way, microseconds. An operation waits several times: until it begins, and for
/// each answer.
const NARROW: u64 = 5_000;
/// The same while threads have hardly any time to spare: on one core, which a coordinator and three nodes share, that is the wait with some
/// 180 operations under way, each of which takes some 8 ms. With the 900 at which they wait for 3 ms, each takes 40. Decision 0055.
const NARROW_BUSY: u64 = 400;
/// The share of their time for which threads have something to do, from which on they count as busy. What holds operations back can thus
/// never be what leaves half of the machine idle.
const BUSY: f64 = 0.5;
/// A burst of the first number is nobody's fault, even where everything waits because other processes use the machine. The second is what
/// keeps a few cores busy: with more, each only waits longer.
const NARROW_LEAST: (usize, usize) = (512, 128);
/// The wait that is too long for everybody, microseconds.
const WIDE: u64 = 100_000;
/// What a process of any size carries.
const WIDE_LEAST: (usize, usize) = (1024, 1024);

impl Load {
    /// With windows of at most `most` operations, which they begin with.
    pub(super) fn new(most: usize) -> Self {
        Self {
            narrow: Window::new(NARROW_LEAST, most),
            wide: Window::new(WIDE_LEAST, most),
            busy: AtomicBool::new(false),
            since: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            began: AtomicU64::new(0),
        }
    }

    /// An operation that was admitted at `admitted` has begun at `now`, both monotonic microseconds, with `under_way` operations in all.
    pub(super) fn began(&self, admitted: u64, now: u64, under_way: usize) {
        self.waited.fetch_add(now.saturating_sub(admitted), Ordering::Relaxed);
        let began = self.began.fetch_add(1, Ordering::Relaxed) + 1;
        let since = self.since.load(Ordering::Relaxed);
        if now.saturating_sub(since) < INTERVAL || began < SAMPLES {
            return;
        }
        // Whoever ends the interval changes the windows; the operations that others add meanwhile count for the next one.
        if self.since.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let began = self.began.swap(0, Ordering::Relaxed).max(1);
            let wait = self.waited.swap(0, Ordering::Relaxed) / began;
            let began = began as usize;
            let narrow = if self.busy.load(Ordering::Relaxed) { NARROW_BUSY } else { NARROW };
            self.narrow.follow(wait, narrow, began, under_way);
            self.wide.follow(wait, WIDE, began, under_way);
        }
    }

    /// The threads that serve had something to do for this share of their time lately, 0 to 1.
    pub(super) fn set_busy(&self, share: f64) {
        self.busy.store(share >= BUSY, Ordering::Relaxed);
    }

    /// The narrow window.
    pub(super) fn window(&self) -> usize {
        self.narrow.get()
    }

    /// Whether a tenant of this weight may begin one more operation beside its own `own`, of `under_way` in all, of tenants whose weights
    /// are `all` together.
    pub(super) fn admits(&self, own: usize, under_way: usize, weight: usize, all: usize) -> bool {
        let all = all.max(weight);
        let (narrow, wide) = (self.narrow.get(), self.wide.get());
        // Half as much again as its share: tenants that have theirs differ by chance.
        let clearly_more = 2 * own * all > 3 * under_way * weight;
        let gives_way = under_way >= narrow && all > weight && clearly_more;
        let beyond = under_way >= wide && own >= wide * weight / all;
        !gives_way && !beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations that wait for `wait` microseconds, for this many intervals.
    fn waits(load: &Load, wait: u64, under_way: usize, intervals: u64) {
        let from = load.since.load(Ordering::Relaxed).max(1_000_000);
        for interval in 1..=intervals {
            (0..SAMPLES)
                .for_each(|_| load.began(from + interval * INTERVAL - wait, from + interval * INTERVAL, under_way));
        }
    }

    #[test]
    fn windows_follow_the_wait() {
        let load = Load::new(10_000);
        waits(&load, 100, 5000, 3);
        assert_eq!((load.narrow.get(), load.wide.get()), (10_000, 10_000));
        waits(&load, NARROW + 1, 5000, 1);
        assert_eq!((load.narrow.get(), load.wide.get()), (4375, 10_000), "from what is in use");
        waits(&load, NARROW + 1, 5000, 100);
        assert_eq!((load.narrow.get(), load.wide.get()), (NARROW_LEAST.1, 10_000));
        waits(&load, 2 * WIDE, 5000, 100);
        assert_eq!(load.wide.get(), WIDE_LEAST.0);
        waits(&load, 100, 0, 300);
        assert_eq!((load.narrow.get(), load.wide.get()), (10_000, 10_000), "within six seconds");
        waits(&Load::new(3), 2 * WIDE, 3, 9);
    }

    #[test]
    fn a_burst_finds_a_wide_window_and_a_long_wait_a_narrow_one() {
        let load = Load::new(10_000);
        waits(&load, NARROW + 1, 600, u64::from(LASTS));
        assert_eq!(load.narrow.get(), NARROW_LEAST.0, "for a fifth of a second");
        waits(&load, NARROW + 1, 600, 1);
        assert!(load.narrow.get() < NARROW_LEAST.0, "longer than a burst");
        waits(&load, NARROW + 1, 600, 100);
        assert_eq!(load.narrow.get(), NARROW_LEAST.1);
        waits(&load, 100, 64, 3);
        waits(&load, NARROW + 1, 600, 3);
        assert!(load.narrow.get() < NARROW_LEAST.1 + 12, "a short break is no end of it: {}", load.narrow.get());
        waits(&load, 100, 64, u64::from(2 * LASTS));
        let grown = load.narrow.get();
        waits(&load, NARROW + 1, 600, 5);
        assert_eq!(load.narrow.get(), grown.min(NARROW_LEAST.0), "the next one may be a burst again");
    }

    #[test]
    fn a_short_wait_counts_only_where_threads_are_busy() {
        let load = Load::new(10_000);
        waits(&load, NARROW_BUSY + 1, 5000, 100);
        assert_eq!(load.narrow.get(), 10_000, "many arrive together");
        load.set_busy(BUSY);
        waits(&load, NARROW_BUSY, 5000, 100);
        assert_eq!(load.narrow.get(), 10_000);
        waits(&load, NARROW_BUSY + 1, 5000, 100);
        assert_eq!((load.narrow.get(), load.wide.get()), (NARROW_LEAST.1, 10_000));
        load.set_busy(BUSY - 0.01);
        waits(&load, NARROW_BUSY + 1, 64, 300);
        assert_eq!(load.narrow.get(), 10_000, "it leaves half of the time unused, so more may begin");
    }

    /// So nobody gives way below the narrow one, which is looked at first.
    #[test]
    fn the_narrow_window_is_never_the_wider_one() {
        let load = Load::new(10_000);
        for step in 0..2000_u64 {
            let wait = [100, NARROW + 1, 2 * WIDE][(step.wrapping_mul(0x9e37_79b9) >> 7) as usize % 3];
            waits(&load, wait, step as usize * 37 % 9000, 1);
            assert!(load.narrow.get() <= load.wide.get(), "after {step}");
        }
    }

    #[test]
    fn few_operations_say_nothing() {
        let load = Load::new(1000);
        (1..SAMPLES).for_each(|_| load.began(0, 10 * INTERVAL, 900));
        assert_eq!(load.narrow.get(), 1000);
        load.began(0, 10 * INTERVAL, 900);
        assert_eq!(load.narrow.get(), 784);
    }

    #[test]
    fn who_has_clearly_more_gives_way_first() {
        let load = Load::new(10_000);
        waits(&load, NARROW + 1, 1000, 1);
        let narrow = load.narrow.get();
        assert_eq!(narrow, 875);
        assert!(load.admits(870, 874, 1, 2), "within the narrow window");
        assert!(!load.admits(870, 875, 1, 2) && load.admits(4, 875, 1, 2), "beyond it");
        assert!(load.admits(875, 875, 1, 1) && load.admits(875, 875, 4, 4), "nobody else is there");
        assert!(load.admits(870, 875, 2, 3) && !load.admits(876, 875, 2, 3), "two thirds are its share");
        assert!(load.admits(90, 900, 1, 10) && load.admits(110, 900, 1, 10), "they share evenly");
        waits(&load, 2 * WIDE, 2000, 1);
        assert_eq!(load.wide.get(), 1750);
        assert!(
            !load.admits(175, 1750, 1, 10) && load.admits(174, 1750, 1, 10),
            "beyond the wide one, up to a share of it"
        );
        assert!(!load.admits(1750, 1750, 1, 1));
    }
}
