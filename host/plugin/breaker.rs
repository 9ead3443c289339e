//! The circuit breaker of a plugin that keeps failing. Pure; time is the host's ticks, in milliseconds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::limit::Limits;
use witan_kernel::sync::lock;

/// Opens after a number of faults within a window; then admits one trial call after every cool-down.
#[derive(Debug)]
pub(crate) struct Breaker {
    open: AtomicBool,
    window: Mutex<Window>,
    faults: u32,
    window_ms: u64,
    cool_down_ms: u64,
}

#[derive(Debug, Default)]
struct Window {
    faults: u32,
    started_at: u64,
    /// When an open breaker admits the next trial call.
    next_trial: u64,
}

impl Breaker {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            open: AtomicBool::new(false),
            window: Mutex::default(),
            faults: limits.faults.max(1),
            window_ms: limits.fault_window.as_millis() as u64,
            cool_down_ms: limits.cool_down.as_millis() as u64,
        }
    }

    /// Whether this call may be made. Takes no lock while the breaker is closed.
    pub(crate) fn admits(&self, now: u64) -> bool {
        if !self.is_open() {
            return true;
        }
        let mut window = lock(&self.window);
        let due = now >= window.next_trial;
        if due {
            window.next_trial = now + self.cool_down_ms;
        }
        due
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// A call was answered. Returns true if that closes the breaker.
    pub(crate) fn answered(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        *lock(&self.window) = Window::default();
        self.open.swap(false, Ordering::Relaxed)
    }

    /// A call has faulted.
    pub(crate) fn faulted(&self, now: u64) -> Faulted {
        let mut window = lock(&self.window);
        if now.saturating_sub(window.started_at) > self.window_ms {
            (window.started_at, window.faults) = (now, 0);
        }
        window.faults += 1;
        if window.faults >= self.faults && !self.open.swap(true, Ordering::Relaxed) {
            window.next_trial = now + self.cool_down_ms;
            return Faulted::Opened;
        }
        if window.faults == 1 { Faulted::First } else { Faulted::Again }
    }
}

/// What a fault means for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Faulted {
    /// The first of its window.
    First,
    /// A later one of its window.
    Again,
    /// The fault that opened the breaker.
    Opened,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn breaker() -> Breaker {
        Breaker::new(&Limits {
            faults: 3,
            fault_window: Duration::from_millis(100),
            cool_down: Duration::from_millis(1000),
            ..Limits::default()
        })
    }

    #[test]
    fn enough_faults_within_a_window_open_the_breaker() {
        let breaker = breaker();
        assert_eq!(breaker.faulted(200), Faulted::First);
        assert_eq!(breaker.faulted(201), Faulted::Again);
        assert_eq!(breaker.faulted(350), Faulted::First, "another window");
        assert_eq!(breaker.faulted(351), Faulted::Again);
        assert!(breaker.admits(351));
        assert_eq!(breaker.faulted(352), Faulted::Opened);
        assert!(!breaker.admits(353));
    }

    #[test]
    fn one_trial_call_is_admitted_after_each_cool_down() {
        let breaker = breaker();
        (0..3).for_each(|_| _ = breaker.faulted(0));
        assert!(!breaker.admits(999));
        assert!(breaker.admits(1000));
        assert!(!breaker.admits(1001), "one at a time");
        assert!(breaker.admits(2000));
        assert!(breaker.answered());
        assert!(breaker.admits(2001));
        assert!(!breaker.answered(), "it was closed already");
    }
}
