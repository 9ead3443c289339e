//! The circuit breaker of a plugin that keeps failing. Pure; time is the host's ticks, in milliseconds.
//!
//! It goes by shares: a plugin that fails for one key in a hundred answers for the other ninety-nine, and one that fails for every second
//! is not asked for a while. After a cool-down a few questions try it, and if they are answered, more, until it gets all of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use witan_kernel::sync::lock;

use crate::limit::Limits;

/// Shares of the questions that try a plugin after a cool-down, one after the other, in thousandths. After the last it gets all.
const STAGES: [u32; 3] = [10, 50, 250];
/// All of the questions, in thousandths.
const ALL: u32 = 1000;
/// Questions whose outcome decides whether the share rises: as few as tell a plugin that fails for half of them from one that works.
const TRIALS: u32 = 5;
/// Parts into which the window is divided. It moves on by one of them at a time.
const SLICES: usize = 10;
/// A trial is made at least this often in a cool-down, whatever the share: where few questions come, a hundredth of them is too few.
const TRIALS_PER_COOL_DOWN: u64 = 30;

/// Opens when too large a share of the calls within a window have faulted.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// What the state says, so that a look takes no lock.
    open: AtomicBool,
    state: Mutex<State>,
}

/// The permission to make a call. Its outcome counts if the breaker is still in the phase in which it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// What the end of a call means for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nothing that anybody has to know.
    Counted,
    /// It has faulted, and no fault was reported within a window.
    FirstFault,
    /// It has opened the breaker.
    Opened,
    /// It has closed the breaker.
    Closed,
}

impl Breaker {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { open: AtomicBool::new(false), state: Mutex::new(State::new(limits)) }
    }

    /// Whether this call may be made.
    pub(crate) fn admits(&self, now: u64) -> Option<Ticket> {
        lock(&self.state).admits(now)
    }

    /// A call has ended, with a fault or not.
    pub(crate) fn ended(&self, ticket: Ticket, now: u64, faulted: bool) -> Ended {
        let mut state = lock(&self.state);
        let ended = state.ended(ticket, now, faulted);
        self.open.store(state.is_open(), Ordering::Relaxed);
        ended
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// The share of the questions that reach the plugin, in thousandths: 1000 while the breaker is closed.
    pub(crate) fn admitted_permille(&self) -> u32 {
        if self.is_open() { lock(&self.state).admitted_permille() } else { ALL }
    }
}

#[derive(Debug, Clone)]
struct State {
    least_calls: u32,
    fault_permille: u32,
    slice_ms: u64,
    cool_down_ms: u64,
    phase: Phase,
    /// Of phases: what was begun in an earlier one does not count in a later one.
    number: u64,
    window: [Slice; SLICES],
    /// When a fault was reported last.
    reported_at: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    /// Open, and nothing is admitted before this moment.
    Cooling(u64),
    /// Open, and a share of the calls is admitted.
    Trying(Trial),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trial {
    stage: usize,
    /// Thousandths of a call that may be admitted.
    credit: u32,
    /// When a call is admitted whatever the credit.
    next: u64,
    ended: u32,
    faulted: u32,
}

/// The calls of a part of the window.
#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    /// Its place in time: milliseconds by the length of a slice.
    at: u64,
    calls: u32,
    faulted: u32,
}

impl State {
    fn new(limits: &Limits) -> Self {
        Self {
            least_calls: limits.breaker_calls.max(1),
            fault_permille: limits.breaker_permille.clamp(1, ALL),
            slice_ms: (limits.fault_window.as_millis() as u64 / SLICES as u64).max(1),
            cool_down_ms: limits.cool_down.as_millis() as u64,
            phase: Phase::Closed,
            number: 0,
            window: [Slice::default(); SLICES],
            reported_at: None,
        }
    }

    fn is_open(&self) -> bool {
        self.phase != Phase::Closed
    }

    fn admitted_permille(&self) -> u32 {
        match self.phase {
            Phase::Closed => ALL,
            Phase::Cooling(_) => 0,
            Phase::Trying(trial) => STAGES[trial.stage],
        }
    }

    /// How long a trial may have to wait for another question.
    fn pause_ms(&self) -> u64 {
        (self.cool_down_ms / TRIALS_PER_COOL_DOWN).max(1)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.number += 1;
        self.window = [Slice::default(); SLICES];
    }

    fn try_stage(&mut self, stage: usize, now: u64) {
        self.enter(Phase::Trying(Trial { stage, credit: 0, next: now, ended: 0, faulted: 0 }));
    }

    fn admits(&mut self, now: u64) -> Option<Ticket> {
        if let Phase::Cooling(until) = self.phase
            && now >= until
        {
            self.try_stage(0, now);
        }
        let pause = self.pause_ms();
        match &mut self.phase {
            Phase::Closed => {}
            Phase::Cooling(_) => return None,
            Phase::Trying(trial) => {
                trial.credit += STAGES[trial.stage];
                if trial.credit < ALL && now < trial.next {
                    return None;
                }
                trial.credit = trial.credit.saturating_sub(ALL);
                trial.next = now + pause;
            }
        }
        Some(Ticket(self.number))
    }

    fn ended(&mut self, ticket: Ticket, now: u64, faulted: bool) -> Ended {
        let told = if faulted && self.is_news(now) { Ended::FirstFault } else { Ended::Counted };
        if ticket != Ticket(self.number) {
            return told;
        }
        match self.phase {
            Phase::Closed => {
                let (calls, faults) = self.count(now, faulted);
                if calls < self.least_calls || !self.is_too_much(calls, faults) {
                    return told;
                }
                self.enter(Phase::Cooling(now + self.cool_down_ms));
                Ended::Opened
            }
            // Nothing is admitted in this phase.
            Phase::Cooling(_) => told,
            Phase::Trying(mut trial) => {
                trial.ended += 1;
                trial.faulted += u32::from(faulted);
                self.phase = Phase::Trying(trial);
                if trial.ended < TRIALS {
                    return told;
                }
                if self.is_too_much(trial.ended, trial.faulted) {
                    self.enter(Phase::Cooling(now + self.cool_down_ms));
                    return told;
                }
                if trial.stage + 1 < STAGES.len() {
                    self.try_stage(trial.stage + 1, now);
                    return told;
                }
                self.enter(Phase::Closed);
                Ended::Closed
            }
        }
    }

    fn is_too_much(&self, calls: u32, faults: u32) -> bool {
        u64::from(faults) * u64::from(ALL) >= u64::from(self.fault_permille) * u64::from(calls)
    }

    /// Whether a fault is reported: at most one within a window.
    fn is_news(&mut self, now: u64) -> bool {
        let window = self.slice_ms * SLICES as u64;
        let news = self.reported_at.is_none_or(|told| now.saturating_sub(told) > window);
        if news {
            self.reported_at = Some(now);
        }
        news
    }

    /// Counts a call, and returns those of the window that ends now, and how many of them have faulted.
    fn count(&mut self, now: u64, faulted: bool) -> (u32, u32) {
        let at = now / self.slice_ms;
        let slice = &mut self.window[at as usize % SLICES];
        if slice.at != at {
            *slice = Slice { at, ..Slice::default() };
        }
        slice.calls = slice.calls.saturating_add(1);
        slice.faulted = slice.faulted.saturating_add(u32::from(faulted));
        let within = self.window.iter().filter(|slice| at.saturating_sub(slice.at) < SLICES as u64);
        within.fold((0, 0), |(calls, faults), it| (calls.saturating_add(it.calls), faults.saturating_add(it.faulted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const COOL_DOWN: u64 = 30_000;

    fn state() -> State {
        State::new(&Limits::default())
    }

    /// Puts a question, and says how its call ended if it was admitted.
    fn ask(state: &mut State, now: u64, faults: bool) -> Option<Ended> {
        let ticket = state.admits(now)?;
        Some(state.ended(ticket, now, faults))
    }

    fn opened() -> State {
        let mut state = state();
        let last = (0..20).map(|_| ask(&mut state, 0, true)).last().unwrap();
        assert_eq!(last, Some(Ended::Opened));
        state
    }

    #[test]
    fn one_fault_in_a_hundred_never_opens_it() {
        let mut state = state();
        for call in 0..100_000 {
            let ended = ask(&mut state, call, call % 100 == 7);
            assert!(matches!(ended, Some(Ended::Counted | Ended::FirstFault)), "{call}: {ended:?}");
        }
    }

    #[test]
    fn half_of_twenty_calls_within_the_window_open_it() {
        let mut state = state();
        for call in 0..19 {
            let ended = ask(&mut state, call, call < 10);
            assert!(matches!(ended, Some(Ended::Counted | Ended::FirstFault)), "{call}: {ended:?}");
        }
        // The twentieth is answered: it makes the share known.
        assert_eq!(ask(&mut state, 19, false), Some(Ended::Opened));
        assert_eq!((ask(&mut state, 20, false), state.admitted_permille()), (None, 0));
        // Spread over more than a window, they are not enough.
        let mut slow = self::state();
        assert!((0..200).all(|call| ask(&mut slow, call * 600, true) != Some(Ended::Opened)));
    }

    #[test]
    fn a_fault_is_told_of_once_in_a_window() {
        let mut state = state();
        let told = (0..30_000).filter(|at| ask(&mut state, *at, at % 10 == 0) == Some(Ended::FirstFault));
        assert_eq!(told.collect::<Vec<_>>(), [0, 10_010, 20_020]);
    }

    #[test]
    fn the_share_rises_after_each_five_trials_that_are_answered() {
        let mut state = opened();
        for (now, share) in (COOL_DOWN..).zip(STAGES) {
            let mut asked = 0;
            for trial in 0..TRIALS {
                loop {
                    asked += 1;
                    if let Some(ended) = ask(&mut state, now, false) {
                        let last = share == 250 && trial + 1 == TRIALS;
                        assert_eq!(ended, if last { Ended::Closed } else { Ended::Counted });
                        break;
                    }
                }
            }
            // The first of each stage is admitted at once.
            assert!(asked > (TRIALS - 1) * (ALL / share) - 1, "{share}: {asked}");
        }
        assert!(!state.is_open());
    }

    #[test]
    fn where_few_questions_come_each_is_a_trial() {
        let mut state = opened();
        let outcomes: Vec<_> = (0..15).map(|n| ask(&mut state, COOL_DOWN + n * 1000, false)).collect();
        assert!(outcomes.iter().all(Option::is_some), "{outcomes:?}");
        assert_eq!(outcomes.last(), Some(&Some(Ended::Closed)));
    }

    #[test]
    fn trials_that_fault_begin_another_cool_down() {
        let mut state = opened();
        let trials = (0..5).filter(|n| ask(&mut state, COOL_DOWN + n * 1000, *n < 3).is_some()).count();
        assert_eq!((trials, state.phase), (5, Phase::Cooling(COOL_DOWN + 4000 + COOL_DOWN)));
    }

    #[test]
    fn what_began_in_another_phase_does_not_count() {
        let mut state = state();
        let early: Vec<Ticket> = (0..5).filter_map(|_| state.admits(0)).collect();
        (0..20).for_each(|_| _ = ask(&mut state, 0, true));
        assert!(state.admits(COOL_DOWN).is_some());
        let trying = state.phase;
        assert!(early.iter().all(|ticket| state.ended(*ticket, COOL_DOWN, false) == Ended::Counted));
        assert_eq!(state.phase, trying);
    }

    #[test]
    fn a_look_at_the_breaker_says_what_its_state_is() {
        let breaker = Breaker::new(&Limits { breaker_calls: 1, cool_down: Duration::ZERO, ..Limits::default() });
        assert!(!breaker.is_open());
        assert_eq!(breaker.ended(breaker.admits(0).unwrap(), 0, true), Ended::Opened);
        assert_eq!((breaker.is_open(), breaker.admitted_permille()), (true, 0));
        let closed = (1..16).map(|now| breaker.ended(breaker.admits(now).unwrap(), now, false)).last();
        assert_eq!((closed, breaker.is_open(), breaker.admitted_permille()), (Some(Ended::Closed), false, 1000));
    }

    proptest! {
        /// Whatever happens: it opens only if half of at least 20 calls of a window have faulted, admits nothing during a cool-down
        /// and never more than its share and the trials that time allows, and a plugin that works again gets all questions in the end.
        #[test]
        fn it_keeps_its_rules(
            steps in prop::collection::vec((0_u64..2000, any::<bool>(), 0_usize..3), 1..400),
        ) {
            let mut state = state();
            let (mut now, mut calls) = (0_u64, Vec::<(u64, bool)>::new());
            let mut waiting: Vec<(Ticket, bool)> = Vec::new();
            let (mut asked, mut admitted, mut since) = (0_u64, 0_u64, 0);
            let mut phase = state.number;
            for (later, faults, late) in steps {
                now += later;
                let was = state.phase;
                let ticket = state.admits(now);
                if let Phase::Cooling(until) = was {
                    prop_assert_eq!(ticket.is_some(), now >= until);
                }
                if state.number != phase {
                    (phase, asked, admitted, since) = (state.number, 0, 0, now);
                }
                asked += 1;
                admitted += u64::from(ticket.is_some());
                if let Phase::Trying(trial) = state.phase {
                    let by_share = asked * u64::from(STAGES[trial.stage]) / 1000;
                    prop_assert!(admitted <= by_share + 1 + (now - since) / 1000, "{admitted} of {asked}");
                }
                waiting.extend(ticket.map(|ticket| (ticket, faults)));
                while waiting.len() > late {
                    let (ticket, faulted) = waiting.remove(0);
                    let counts = ticket == Ticket(state.number) && state.phase == Phase::Closed;
                    let ended = state.ended(ticket, now, faulted);
                    if counts {
                        calls.push((now, faulted));
                    }
                    let within = || calls.iter().filter(|(at, _)| now / 1000 - at / 1000 < 10);
                    let (all, bad) = (within().count(), within().filter(|(_, faulted)| *faulted).count());
                    prop_assert_eq!(ended == Ended::Opened, counts && all >= 20 && 2 * bad >= all);
                    if ended == Ended::Opened {
                        calls.clear();
                    }
                }
            }
            // Somebody asks now and then, and is answered.
            let closes = (0..60).any(|_| {
                now += 1000;
                ask(&mut state, now, false);
                !state.is_open()
            });
            prop_assert!(closes);
        }
    }
}
