//! How much of the CPU one tenant's plugin has used, and may use.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::engine::TICK;
use crate::limit::Budget;

/// Mean duration of calls from which on a policy is asked on a thread for that: a hundred times what a policy in Rust takes. Below it, the
/// way to another thread and back would cost as much as it spares.
const SLOW: Duration = Duration::from_micros(100);

/// An upper bound on the CPU time of one question: of the call itself, and of starting and configuring an instance for it. Elapsed
/// time is charged up to this bound, because reading the thread's CPU time would cost a system call with every question, and a
/// thread that is descheduled on a busy machine takes longer without using more CPU.
pub(crate) fn max_cpu(budget: &Budget) -> Duration {
    budget.start + 2 * budget.cpu + 6 * TICK
}

/// How long a plugin's calls take of late.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU64);

impl Pace {
    /// Takes note of a call: each counts for an eighth of the mean.
    pub(crate) fn took(&self, took: Duration) {
        // Two threads at once may lose one of two calls, which does not matter.
        let (mean, took) = (self.0.load(Relaxed), u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        self.0.store(mean - mean / 8 + took / 8, Relaxed);
    }

    /// Whether its calls take too long for a thread that serves others meanwhile.
    pub(crate) fn is_slow(&self) -> bool {
        self.0.load(Relaxed) > SLOW.as_nanos() as u64
    }
}

/// The CPU time that one tenant's plugin has used in the current second, and its limit.
#[derive(Debug)]
pub(crate) struct CpuShare {
    second: AtomicU64,
    nanos: AtomicU64,
    limit_nanos: u64,
}

impl CpuShare {
    /// A limit in thousandths of one core.
    pub(crate) fn new(thousandths: u32) -> Self {
        Self { second: AtomicU64::new(0), nanos: AtomicU64::new(0), limit_nanos: u64::from(thousandths) * 1_000_000 }
    }

    pub(crate) fn admits(&self, now_ms: u64) -> bool {
        self.nanos.load(Relaxed) < self.limit_nanos || self.second.load(Relaxed) != now_ms / 1000
    }

    pub(crate) fn add(&self, now_ms: u64, took: Duration) {
        let second = now_ms / 1000;
        if self.second.swap(second, Relaxed) != second {
            self.nanos.store(0, Relaxed);
        }
        self.nanos.fetch_add(took.as_nanos() as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_slow_while_its_calls_take_long() {
        let pace = Pace::default();
        (0..1000).for_each(|_| pace.took(Duration::from_micros(90)));
        assert!(!pace.is_slow());
        pace.took(Duration::from_millis(5));
        assert!(pace.is_slow());
        (0..100).for_each(|_| pace.took(Duration::from_micros(2)));
        assert!(!pace.is_slow());
    }

    #[test]
    fn a_share_is_renewed_every_second() {
        let share = CpuShare::new(500);
        assert!(share.admits(10));
        share.add(10, Duration::from_millis(499));
        assert!(share.admits(20));
        share.add(20, Duration::from_millis(1));
        assert!(!share.admits(999));
        assert!(share.admits(1000));
        share.add(1000, Duration::from_millis(1));
        assert!(share.admits(1001));
    }
}
