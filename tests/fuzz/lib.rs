//! Fuzz targets: functions that take any bytes, and panic when a rule is broken.
//!
//! Reading order: [`targets`] (what is fuzzed), [`mutate`] (how inputs are made from those of the corpora), [`run`] (replays a corpus, then
//! tries mutated inputs until its time is up, and writes an input that fails to a file). `cargo xtask fuzz` starts it; the corpora are in
//! `corpus/`, one folder for each target.
//!
//! There is no instrumentation, so that the compiler of every other test will do. Instead, a target says what it has seen ([`Seen`]): an
//! input with a new outcome joins those that are mutated.

use std::hash::{DefaultHasher, Hash, Hasher};

pub mod mutate;
pub mod run;
pub mod targets;

/// The kind of outcome that an input had: which error, or which shape. Few distinct ones, or the pool of inputs would fill with equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seen(pub u64);

impl Seen {
    /// The same for equal arguments, in every run.
    pub fn of(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A function that is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its corpus.
    pub name: &'static str,
    /// Takes any bytes; panics when a rule is broken.
    pub run: fn(&[u8]) -> Seen,
    /// Bytes that are put into inputs as they are: what chance would not spell.
    pub words: &'static [&'static [u8]],
}
