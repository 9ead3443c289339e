//! Candidates of bindings: a version of a plugin that is tried beside the version in force, and what becomes of it.
//!
//! A *shadow* is asked about a sample of the questions, and its answers are compared and dropped. A *canary* answers for a part of the
//! keys: by the key's hash, so that every coordinator asks it about the same ones, and a greater part holds all keys of a smaller one.
//! Whatever a candidate fails to answer is answered by the version in force, so that no request fails because of it.
//!
//! Coordinators have no channel to each other. Each counts what it sees ([`Seen`]), stops asking at once when its own count exceeds the
//! [`Bounds`], and publishes its counts. Whoever finds a step due from the sum of all ([`Trial::next`]) makes it, by a compare-and-swap on
//! the binding.

mod latencies;

use xxhash_rust::xxh3::xxh3_64;

use crate::name::Invalid;

pub use latencies::{AtomicLatencies, Latencies};

/// How a candidate is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Beside the version in force. Its answers are compared and dropped.
    Shadow,
    /// Instead of the version in force, for a part of the keys.
    Canary,
}

impl Mode {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
        }
    }

    /// Reads the API's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Shadow, Self::Canary].into_iter().find(|mode| mode.as_str() == text)
    }

    /// The percentage of a candidate for which none is chosen.
    pub fn default_percent(self) -> u8 {
        match self {
            Self::Shadow => 10,
            Self::Canary => 1,
        }
    }
}

/// What a candidate may do without being taken back, over a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Most questions on which it may fail (trap, exceed a limit, give an invalid answer), in thousandths.
    pub fault_permille: u32,
    /// Most questions that it may decline, or that are not put to it because its share of the CPU is used up, its queue full or its breaker
    /// open, in thousandths.
    pub refused_permille: u32,
    /// Longest that the 99th percentile of its calls may take, in microseconds; `None`: not judged.
    pub p99_us: Option<u32>,
    /// Most answers that may differ from those of the version in force, in thousandths. Only shadows are compared.
    pub differing_permille: u32,
    /// The window, in seconds.
    pub window_s: u32,
    /// Questions in a window below which nothing is judged.
    pub least_answers: u32,
    /// Percentages to which a canary rises, each after a window without findings. Ascending, and above its first percentage.
    pub steps: Vec<u8>,
}

/// Longest window, in seconds: reports are kept for a day, and counted in memory for a window.
pub const WINDOW_S: u32 = 600;
/// Shortest window, in seconds: reports are a second apart.
pub const SHORTEST_WINDOW_S: u32 = 5;
/// Most questions that a window may be required to hold.
pub const LEAST_ANSWERS: u32 = 1_000_000;
/// Most steps of a canary.
pub const STEPS: usize = 16;
/// Longest time after which a candidate may be promoted by itself, in seconds: thirty days.
pub const PROMOTE_AFTER_S: u32 = 30 * 24 * 3600;

impl Default for Bounds {
    /// One fault in a hundred and one refusal in ten of at least twenty questions in a minute. Neither latency nor differences are judged:
    /// what another version may cost and decide is for a person to say.
    fn default() -> Self {
        Self {
            fault_permille: 10,
            refused_permille: 100,
            p99_us: None,
            differing_permille: 1000,
            window_s: 60,
            least_answers: 20,
            steps: Vec::new(),
        }
    }
}

/// What a candidate was seen to do, by one coordinator or by all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Questions that it answered.
    pub answered: u64,
    /// Questions on which it failed.
    pub faulted: u64,
    /// Questions that it declined, or that were not put to it.
    pub refused: u64,
    /// Answers that were compared with those of the version in force.
    pub compared: u64,
    /// Of those compared: that differ.
    pub differing: u64,
    /// Equal questions to which it gave different answers.
    pub undetermined: u64,
    /// Duration of its calls.
    pub latencies: Latencies,
}

impl Seen {
    /// All questions.
    pub fn asked(&self) -> u64 {
        self.answered + self.faulted + self.refused
    }

    /// Adds what another has seen, or what was seen at another time.
    pub fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.faulted += other.faulted;
        self.refused += other.refused;
        self.compared += other.compared;
        self.differing += other.differing;
        self.undetermined += other.undetermined;
        self.latencies.add(&other.latencies);
    }
}

/// Why a candidate is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It fails too often.
    Faults {
        /// Questions on which it failed.
        faulted: u64,
        /// Of this many.
        asked: u64,
        /// The bound, in thousandths.
        bound: u32,
    },
    /// It is not asked, or declines, too often.
    Refused {
        /// Such questions.
        refused: u64,
        /// Of this many.
        asked: u64,
        /// The bound, in thousandths.
        bound: u32,
    },
    /// It is too slow.
    Slow {
        /// The 99th percentile of its calls, in microseconds.
        p99_us: u64,
        /// The bound, in microseconds.
        bound: u32,
    },
    /// It answers differently from the version in force too often.
    Differing {
        /// Answers that differ.
        differing: u64,
        /// Of this many.
        compared: u64,
        /// The bound, in thousandths.
        bound: u32,
    },
    /// It gives different answers to equal questions.
    Undetermined,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Faults { faulted, asked, bound } => {
                write!(f, "it failed on {faulted} of {asked} questions; {bound} of 1,000 are allowed")
            }
            Self::Refused { refused, asked, bound } => {
                write!(f, "it did not answer {refused} of {asked} questions; {bound} of 1,000 are allowed")
            }
            Self::Slow { p99_us, bound } => {
                write!(f, "the 99th percentile of its calls is {p99_us} us; {bound} us are allowed")
            }
            Self::Differing { differing, compared, bound } => {
                let allowed = format!("{bound} of 1,000 are allowed");
                write!(f, "{differing} of {compared} answers differ from the version in force; {allowed}")
            }
            Self::Undetermined => f.write_str("it gave different answers to equal questions"),
        }
    }
}

impl Bounds {
    /// What is wrong with a candidate that was seen to do this within a window; `None`: nothing, or there are too few answers to say.
    pub fn finding(&self, seen: &Seen) -> Option<Finding> {
        if seen.undetermined > 0 {
            return Some(Finding::Undetermined);
        }
        let asked = seen.asked();
        if asked < u64::from(self.least_answers) {
            return None;
        }
        let exceeds = |part: u64, of: u64, bound: u32| part.saturating_mul(1000) > of.saturating_mul(u64::from(bound));
        if exceeds(seen.faulted, asked, self.fault_permille) {
            return Some(Finding::Faults { faulted: seen.faulted, asked, bound: self.fault_permille });
        }
        if exceeds(seen.refused, asked, self.refused_permille) {
            return Some(Finding::Refused { refused: seen.refused, asked, bound: self.refused_permille });
        }
        if seen.compared >= u64::from(self.least_answers)
            && exceeds(seen.differing, seen.compared, self.differing_permille)
        {
            let (differing, compared) = (seen.differing, seen.compared);
            return Some(Finding::Differing { differing, compared, bound: self.differing_permille });
        }
        let p99_us = seen.latencies.at_permille(990);
        self.p99_us
            .filter(|bound| seen.latencies.count() >= u64::from(self.least_answers) && p99_us > u64::from(*bound))
            .map(|bound| Finding::Slow { p99_us, bound })
    }
}

/// How a candidate is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// How it is asked.
    pub mode: Mode,
    /// Of a shadow: of how many questions in a hundred (1 to 100). Of a canary: for how many keys in a hundred (1 to 99).
    pub percent: u8,
    /// Beyond them it is taken back.
    pub bounds: Bounds,
    /// Seconds after which it is promoted, unless something was found; `None`: by hand alone.
    pub promote_after_s: Option<u32>,
    /// When it began: Unix time, milliseconds.
    pub began_ms: u64,
    /// Since when it has this percentage: Unix time, milliseconds.
    pub step_ms: u64,
}

/// What is due for a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing yet.
    Wait,
    /// It is taken back.
    TakeBack(Finding),
    /// A canary rises to this percentage.
    Step(u8),
    /// It is put in force.
    Promote,
}

impl Trial {
    /// The trial, if it can be made.
    ///
    /// # Errors
    /// The field that cannot be, and what it may be.
    pub fn checked(self) -> Result<Self, Invalid> {
        let wrong =
            |field: &'static str, problem: String, remedy: &'static str| Err(Invalid::new(field, problem, remedy));
        let Self { mode, percent, bounds, .. } = &self;
        let (most, allowed) = match mode {
            Mode::Shadow => (100, "use 1 to 100 for a shadow"),
            Mode::Canary => (99, "use 1 to 99 for a canary; to answer for all keys, promote it"),
        };
        if !(1..=most).contains(percent) {
            return wrong("percent", format!("{percent} is out of range"), allowed);
        }
        for (field, value) in [
            ("bounds.fault_permille", bounds.fault_permille),
            ("bounds.refused_permille", bounds.refused_permille),
            ("bounds.differing_permille", bounds.differing_permille),
        ] {
            if value > 1000 {
                return wrong(field, format!("{value} is out of range"), "use thousandths, 0 to 1000");
            }
        }
        if bounds.p99_us == Some(0) {
            return wrong(
                "bounds.p99_us",
                "0 cannot be kept by any plugin".into(),
                "use 1 us or more, or leave it out",
            );
        }
        if !(SHORTEST_WINDOW_S..=WINDOW_S).contains(&bounds.window_s) {
            return wrong(
                "bounds.window_seconds",
                format!("{} is out of range", bounds.window_s),
                "use 5 to 600 seconds",
            );
        }
        if !(1..=LEAST_ANSWERS).contains(&bounds.least_answers) {
            let problem = format!("{} is out of range", bounds.least_answers);
            return wrong("bounds.least_answers", problem, "use 1 to 1,000,000 answers");
        }
        if mode == &Mode::Shadow && !bounds.steps.is_empty() {
            return wrong("bounds.steps", "a shadow has none".into(), "leave them out, or bind a canary");
        }
        // A canary that has climbed is at one of its steps.
        let begins = bounds.steps.first().is_none_or(|first| percent <= first) || bounds.steps.contains(percent);
        let ascends = begins && bounds.steps.is_sorted_by(|before, step| before < step);
        if bounds.steps.len() > STEPS || !ascends || bounds.steps.iter().any(|step| *step > 99) {
            let remedy = "use at most 16 percentages up to 99, each above the one before and none below `percent`";
            return wrong("bounds.steps", format!("{:?} cannot be climbed from {percent}", bounds.steps), remedy);
        }
        if self.promote_after_s.is_some_and(|after| !(1..=PROMOTE_AFTER_S).contains(&after)) {
            let problem = format!("{} is out of range", self.promote_after_s.unwrap_or_default());
            return wrong("promote_after_seconds", problem, "use 1 second to 30 days, or leave it out");
        }
        Ok(self)
    }

    /// Whether a canary answers for a key: by its hash (XXH3), the same at every coordinator and in every version.
    pub fn answers_for(&self, key: &[u8]) -> bool {
        self.mode == Mode::Canary && xxh3_64(key) % 100 < u64::from(self.percent)
    }

    /// Whether a shadow is asked the question with this number. Hashed, so that questions which are sampled have nothing in common.
    pub fn is_sampled(&self, number: u64) -> bool {
        self.mode == Mode::Shadow && xxh3_64(&number.to_le_bytes()) % 100 < u64::from(self.percent)
    }

    /// What is due at `now_ms`, when all coordinators together have seen this within the last window.
    pub fn next(&self, window: &Seen, now_ms: u64) -> Next {
        if let Some(finding) = self.bounds.finding(window) {
            return Next::TakeBack(finding);
        }
        let passed = |since_ms: u64, seconds: u32| now_ms.saturating_sub(since_ms) >= u64::from(seconds) * 1000;
        // Without enough answers nothing was found because nothing was looked at.
        if window.asked() < u64::from(self.bounds.least_answers) || !passed(self.step_ms, self.bounds.window_s) {
            return Next::Wait;
        }
        match self.bounds.steps.iter().find(|step| **step > self.percent) {
            Some(step) => Next::Step(*step),
            None if self.promote_after_s.is_some_and(|after| passed(self.began_ms, after)) => Next::Promote,
            None => Next::Wait,
        }
    }

    /// The trial after a step.
    #[must_use]
    pub fn at(self, percent: u8, now_ms: u64) -> Self {
        Self { percent, step_ms: now_ms, ..self }
    }
}

#[cfg(test)]
mod tests;
