//! When a plugin that keeps failing is not asked any more. Pure; time is the host's ticks, in milliseconds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::compile::lock;
use crate::limit::Limits;

/// Opens after enough faults in a window; then lets one call try after every cool-down.
#[derive(Debug)]
pub(crate) struct Breaker {
    open: AtomicBool,
    state: Mutex<State>,
    faults: u32,
    window_ms: u64,
    cool_down_ms: u64,
}

#[derive(Debug, Default)]
struct State {
    faults: u32,
    window_from: u64,
    next_try: u64,
}

impl Breaker {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            open: AtomicBool::new(false),
            state: Mutex::default(),
            faults: limits.faults.max(1),
            window_ms: limits.fault_window.as_millis() as u64,
            cool_down_ms: limits.cool_down.as_millis() as u64,
        }
    }

    /// May this call be made? No lock while all is well.
    pub(crate) fn admits(&self, now: u64) -> bool {
        if !self.is_open() {
            return true;
        }
        let mut state = lock(&self.state);
        let due = now >= state.next_try;
        if due {
            state.next_try = now + self.cool_down_ms;
        }
        due
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// A call was answered. True when that closes the breaker.
    pub(crate) fn answered(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        *lock(&self.state) = State::default();
        self.open.swap(false, Ordering::Relaxed)
    }

    /// A call has faulted.
    pub(crate) fn faulted(&self, now: u64) -> Faulted {
        let mut state = lock(&self.state);
        if now.saturating_sub(state.window_from) > self.window_ms {
            (state.window_from, state.faults) = (now, 0);
        }
        state.faults += 1;
        if state.faults >= self.faults && !self.open.swap(true, Ordering::Relaxed) {
            state.next_try = now + self.cool_down_ms;
            return Faulted::Opened;
        }
        if state.faults == 1 { Faulted::First } else { Faulted::Again }
    }
}

/// What a fault means for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Faulted {
    /// The first in this window.
    First,
    /// One of several.
    Again,
    /// The one that opened the breaker.
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
    fn enough_faults_in_a_window_open_it() {
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
    fn one_call_tries_after_each_cool_down() {
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
