//! A candidate in memory: what this coordinator has seen of it, and whether it is still asked here.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use witan_kernel::candidate::{Bounds, Finding, Latencies, Seen};
use witan_kernel::hook::Asked;
use witan_kernel::name::Key;
use witan_kernel::sync::lock;

use crate::binding::CandidateRecord;
use crate::fault::shorten;
use crate::limit;
use crate::metrics::Unanswered;
use crate::tenant::ActiveBinding;

/// Examples of differing answers that are kept for each candidate.
pub const EXAMPLES: usize = 16;
/// Most bytes of a candidate's examples together.
pub const EXAMPLES_BYTES: usize = 64 << 10;
/// Of this many questions that a shadow is asked, one is put to it twice.
const TWICE: u64 = 8;

/// A question on which a candidate has answered differently, or not at all. It may hold values of the tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The key.
    pub key: Key,
    /// What the version in force has answered, shortened.
    pub in_force: String,
    /// What the candidate has answered, shortened, or why it did not.
    pub candidate: String,
}

/// A candidate of a slot, as this coordinator asks it. Immutable: a step makes another one, which shares what was seen.
pub(crate) struct Candidate {
    pub(crate) record: CandidateRecord,
    /// The version. It has no fallback: what it does not answer, the version in force does.
    pub(crate) active: Arc<ActiveBinding>,
    pub(crate) watch: Arc<Watch>,
}

/// What a question has come to.
pub(crate) enum Outcome {
    Answered,
    Faulted,
    /// Declined, or not put to it.
    Refused,
}

impl Outcome {
    pub(crate) fn of<T>(asked: &Asked<T>) -> Self {
        match asked {
            Asked::Answered { .. } => Self::Answered,
            Asked::Unbound => Self::Refused,
            Asked::Faulted { kind, .. } => match Unanswered::of(*kind) {
                Unanswered::Failed => Self::Faulted,
                Unanswered::Declined | Unanswered::NotAsked => Self::Refused,
            },
        }
    }
}

/// What this coordinator has seen of a candidate.
#[derive(Default)]
pub(crate) struct Watch {
    /// What was seen exceeds the bounds: it is not asked here.
    tripped: AtomicBool,
    /// Questions that a shadow might have been asked.
    questions: AtomicU64,
    /// Those that it was asked.
    asked: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Since the last tick.
    since: Seen,
    /// What is not on record yet.
    unreported: Seen,
    /// Whether anything is on record yet.
    is_reported: bool,
    /// Of each report within the window, and when it was made.
    window: VecDeque<(u64, Seen)>,
    /// Of both together.
    recent: Seen,
    /// Since the trial began here.
    total: Seen,
    examples: Vec<Example>,
    example_bytes: usize,
}

impl Watch {
    pub(crate) fn is_tripped(&self) -> bool {
        self.tripped.load(Relaxed)
    }

    /// A number for each question.
    pub(crate) fn question(&self) -> u64 {
        self.questions.fetch_add(1, Relaxed)
    }

    /// Whether the next question to a shadow is put twice.
    pub(crate) fn is_put_twice(&self) -> bool {
        self.asked.fetch_add(1, Relaxed).is_multiple_of(TWICE)
    }

    /// Counts a question. What is seen to exceed the bounds is not asked here any longer.
    pub(crate) fn asked(&self, bounds: &Bounds, outcome: Outcome, took: Duration) -> Option<Finding> {
        let mut one = Seen::default();
        match outcome {
            Outcome::Answered => one.answered = 1,
            Outcome::Faulted => one.faulted = 1,
            Outcome::Refused => one.refused = 1,
        }
        if !matches!(outcome, Outcome::Refused) {
            one.latencies.record(took.as_micros() as u64);
        }
        let found = !matches!(outcome, Outcome::Answered);
        self.add(bounds, &one, found)
    }

    /// Counts a comparison with the version in force.
    pub(crate) fn compared(&self, bounds: &Bounds, example: Option<Example>) -> Option<Finding> {
        let one = Seen { compared: 1, differing: u64::from(example.is_some()), ..Seen::default() };
        let differs = example.is_some();
        if let Some(example) = example {
            self.keep(example);
        }
        self.add(bounds, &one, differs)
    }

    /// Counts a question to which it has given two answers.
    pub(crate) fn undetermined(&self, bounds: &Bounds, example: Example) -> Option<Finding> {
        self.keep(example);
        self.add(bounds, &Seen { undetermined: 1, ..Seen::default() }, true)
    }

    fn add(&self, bounds: &Bounds, one: &Seen, look: bool) -> Option<Finding> {
        let mut state = lock(&self.state);
        state.since.add(one);
        state.recent.add(one);
        state.total.add(one);
        // Only what is not as it should be can exceed a bound; the rest is looked at with each report.
        let finding = look.then(|| bounds.finding(&state.recent)).flatten()?;
        (!self.tripped.swap(true, Relaxed)).then_some(finding)
    }

    fn keep(&self, example: Example) {
        let mut state = lock(&self.state);
        let bytes = example.key.bytes().len() + example.in_force.len() + example.candidate.len();
        if state.examples.len() < EXAMPLES && state.example_bytes + bytes <= EXAMPLES_BYTES {
            state.example_bytes += bytes;
            state.examples.push(example);
        }
    }

    /// Ends a second: returns what is not on record yet, if there is anything to report, and what is found within the window if that is
    /// new.
    pub(crate) fn tick(&self, bounds: &Bounds, now_ms: u64) -> (Option<Seen>, Option<Finding>) {
        let mut state = lock(&self.state);
        let since = std::mem::take(&mut state.since);
        state.unreported.add(&since);
        let unreported = state.unreported.clone();
        let due = !state.is_reported || unreported != Seen::default();
        let old = now_ms.saturating_sub(u64::from(bounds.window_s) * 1000);
        if since != Seen::default() {
            state.window.push_back((now_ms, since));
        }
        state.window.retain(|(at_ms, _)| *at_ms > old);
        let mut recent = Seen::default();
        state.window.iter().for_each(|(_, seen)| recent.add(seen));
        let finding = bounds.finding(&recent);
        state.recent = recent;
        // Once the window has passed without questions, it is asked again, unless it was taken back by then.
        let was = self.tripped.swap(finding.is_some(), Relaxed);
        (due.then_some(unreported), finding.filter(|_| !was))
    }

    /// What the last tick returned is on record.
    pub(crate) fn reported(&self) {
        let mut state = lock(&self.state);
        (state.unreported, state.is_reported) = (Seen::default(), true);
    }

    /// What was seen since the trial began here, and the examples.
    pub(crate) fn total(&self) -> (Seen, Vec<Example>) {
        let state = lock(&self.state);
        (state.total.clone(), state.examples.clone())
    }
}

/// Measures a call.
pub(crate) fn timed<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let done = call();
    (done, began.elapsed())
}

/// An answer for an example.
pub(crate) fn shown<T: std::fmt::Debug>(asked: &Asked<T>) -> String {
    match asked {
        Asked::Unbound => "native".to_owned(),
        Asked::Answered { answer, .. } => {
            let mut short = Short(String::new());
            // It fails once there is enough of it.
            _ = write!(short, "{answer:?}");
            shorten(&short.0)
        }
        Asked::Faulted { reason, .. } => shorten(reason),
    }
}

/// The beginning of a text: an answer may be ten megabytes long, and only a few hundred bytes of it are shown.
struct Short(String);

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_str(text);
        if self.0.len() > limit::TEXT_BYTES { Err(fmt::Error) } else { Ok(()) }
    }
}

/// What a coordinator reports of a candidate, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Why it cannot be asked on this coordinator; "": it can.
    pub(crate) missing: String,
    pub(crate) answered: u64,
    pub(crate) faulted: u64,
    pub(crate) refused: u64,
    pub(crate) compared: u64,
    pub(crate) differing: u64,
    pub(crate) undetermined: u64,
    pub(crate) latencies: Vec<(u8, u32)>,
}

impl Report {
    pub(crate) fn of(seen: &Seen, missing: String) -> Self {
        Self {
            missing,
            answered: seen.answered,
            faulted: seen.faulted,
            refused: seen.refused,
            compared: seen.compared,
            differing: seen.differing,
            undetermined: seen.undetermined,
            latencies: seen.latencies.counted().collect(),
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen {
            answered: self.answered,
            faulted: self.faulted,
            refused: self.refused,
            compared: self.compared,
            differing: self.differing,
            undetermined: self.undetermined,
            latencies: Latencies::of(self.latencies.iter().copied()),
        }
    }

    pub(crate) fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What cannot be read was written by a newer program, and says nothing here.
    pub(crate) fn decode(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds { least_answers: 4, window_s: 5, fault_permille: 250, p99_us: Some(100), ..Bounds::default() }
    }

    fn example(text: &str) -> Example {
        Example { key: Key::new("k").unwrap(), in_force: text.into(), candidate: String::new() }
    }

    const QUICK: Duration = Duration::from_micros(10);

    #[test]
    fn it_is_not_asked_here_from_the_fault_on_that_exceeds_a_bound_until_the_window_has_passed() {
        let watch = Watch::default();
        for _ in 0..3 {
            assert_eq!(watch.asked(&bounds(), Outcome::Answered, QUICK), None);
        }
        assert_eq!(watch.asked(&bounds(), Outcome::Faulted, QUICK), None, "one in four is allowed");
        let found = watch.asked(&bounds(), Outcome::Faulted, QUICK);
        assert_eq!(found, Some(Finding::Faults { faulted: 2, asked: 5, bound: 250 }));
        assert!(watch.is_tripped());
        assert_eq!(watch.asked(&bounds(), Outcome::Faulted, QUICK), None, "said once");
        let (seen, found) = watch.tick(&bounds(), 1_000);
        let seen = seen.unwrap();
        assert_eq!((seen.faulted, seen.answered, found), (3, 3, None));
        assert_eq!(watch.tick(&bounds(), 2_000).0, Some(seen), "it could not be reported");
        watch.reported();
        assert_eq!(watch.tick(&bounds(), 5_999).0, None);
        assert!(watch.is_tripped());
        watch.tick(&bounds(), 6_000);
        assert!(!watch.is_tripped());
        assert_eq!(watch.total().0.asked(), 6);
    }

    #[test]
    fn what_only_a_report_can_find_is_found_with_the_next_one() {
        let watch = Watch::default();
        for _ in 0..4 {
            assert_eq!(watch.asked(&bounds(), Outcome::Answered, Duration::from_millis(1)), None);
        }
        assert!(matches!(watch.tick(&bounds(), 1_000).1, Some(Finding::Slow { bound: 100, .. })));
        assert!(watch.is_tripped());
    }

    #[test]
    fn two_answers_to_one_question_are_enough() {
        let watch = Watch::default();
        assert_eq!(watch.undetermined(&bounds(), example("a")), Some(Finding::Undetermined));
        assert_eq!(watch.total().1, [example("a")]);
    }

    #[test]
    fn only_the_beginning_of_a_long_answer_is_written_down() {
        /// Counts the pieces that are asked of it.
        struct Long<'a>(&'a AtomicU64);
        impl fmt::Debug for Long<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (0..1 << 20).try_for_each(|_| {
                    self.0.fetch_add(1, Relaxed);
                    f.write_str("x")
                })
            }
        }
        let pieces = AtomicU64::new(0);
        let asked = Asked::Answered { answer: Long(&pieces), by: "a plugin".into() };
        assert_eq!(shown(&asked), "x".repeat(limit::TEXT_BYTES));
        assert_eq!(pieces.load(Relaxed), limit::TEXT_BYTES as u64 + 1);
    }

    #[test]
    fn examples_are_few_and_small() {
        let watch = Watch::default();
        watch.compared(&bounds(), Some(example(&"x".repeat(EXAMPLES_BYTES))));
        assert_eq!(watch.total().1, [], "too long");
        for _ in 0..2 * EXAMPLES {
            watch.compared(&bounds(), Some(example("y")));
        }
        let (seen, examples) = watch.total();
        assert_eq!((seen.differing, examples.len()), (2 * EXAMPLES as u64 + 1, EXAMPLES));
    }

    #[test]
    fn a_report_is_read_as_it_is_written() {
        let watch = Watch::default();
        watch.asked(&bounds(), Outcome::Refused, QUICK);
        watch.asked(&bounds(), Outcome::Answered, QUICK);
        let seen = watch.tick(&bounds(), 1).0.unwrap();
        let report = Report::of(&seen, String::new());
        assert_eq!(Report::decode(&report.encode()).seen(), seen);
        assert_eq!(Report::decode("of a newer program"), Report::default());
    }
}
