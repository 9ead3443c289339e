//! The operations of clients and their results, in order: the only input of the checks.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use crate::world::{Tags, lock};

/// What a client wants to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Intention {
    Read,
    /// `carries` is the value: the write's own tag, and the tags that it repeats.
    Write {
        tag: u32,
        carries: Tags,
    },
    /// The tag only names the delete.
    Delete {
        tag: u32,
    },
}

/// How an operation ended for its client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Not ended, or in doubt: a change may have been applied, or may still be. Also a read that failed.
    Unknown,
    /// An acknowledged change.
    Done,
    /// A change that was not applied and will not be.
    NotApplied,
    /// The tags of all live values that a read returned. Empty: no value.
    Shown(Tags),
}

/// Indices of a tenant and of one of its keys.
pub(crate) type Place = (usize, usize);

/// One intention of one client, whatever number of attempts it took.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) place: Place,
    pub(crate) intention: Intention,
    /// The tags covered by its context; `None`: it has no context.
    pub(crate) seen: Option<Tags>,
    /// True at level all.
    pub(crate) level_all: bool,
    /// True at level one: nothing may be concluded from it before the final reads.
    pub(crate) weak: bool,
    /// Position of its start in the order of events.
    pub(crate) start: u64,
    /// Position of its end in the order of events; `u64::MAX` until it has ended.
    pub(crate) end: u64,
    pub(crate) outcome: Outcome,
}

impl Operation {
    /// Its tag, if it is a change.
    pub(crate) fn tag(&self) -> Option<u32> {
        match &self.intention {
            Intention::Read => None,
            Intention::Write { tag, .. } | Intention::Delete { tag } => Some(*tag),
        }
    }

    pub(crate) fn carries(&self, tag: u32) -> bool {
        matches!(&self.intention, Intention::Write { carries, .. } if carries.contains(&tag))
    }

    pub(crate) fn has_seen(&self, tag: u32) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.contains(&tag))
    }

    pub(crate) fn is_acknowledged(&self) -> bool {
        self.outcome == Outcome::Done
    }

    pub(crate) fn may_be_applied(&self) -> bool {
        self.tag().is_some() && self.outcome != Outcome::NotApplied
    }

    pub(crate) fn is_delete(&self) -> bool {
        matches!(self.intention, Intention::Delete { .. })
    }
}

/// The record of one simulation.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    operations: Vec<Operation>,
    happened: u64,
    tags: u32,
    hash: DefaultHasher,
    log: String,
    verbose: bool,
}

impl History {
    pub(crate) fn new(verbose: bool) -> Self {
        Self(Mutex::new(Recorded { verbose, ..Recorded::default() }))
    }

    /// An unused tag.
    pub(crate) fn fresh_tag(&self) -> u32 {
        let mut recorded = lock(&self.0);
        recorded.tags += 1;
        recorded.tags
    }

    /// Logs an event: it is added to the hash, and printed when a single seed is replayed.
    pub(crate) fn note(&self, at_micros: u64, what: impl FnOnce() -> String) {
        let mut recorded = lock(&self.0);
        recorded.happened += 1;
        let what = what();
        (at_micros, &what).hash(&mut recorded.hash);
        if recorded.verbose {
            println!("{:>10.3} ms  {what}", at_micros as f64 / 1000.0);
        } else {
            let _ = writeln!(recorded.log, "{:>10.3} ms  {what}", at_micros as f64 / 1000.0);
        }
    }

    /// Records the start of an operation; returns its index.
    pub(crate) fn start(&self, mut operation: Operation) -> usize {
        let mut recorded = lock(&self.0);
        recorded.happened += 1;
        operation.start = recorded.happened;
        operation.end = u64::MAX;
        recorded.operations.push(operation);
        recorded.operations.len() - 1
    }

    /// Records the end of an operation. One with [`Outcome::Unknown`] keeps `u64::MAX` as its end.
    pub(crate) fn end(&self, index: usize, outcome: Outcome) {
        let mut recorded = lock(&self.0);
        recorded.happened += 1;
        let end = recorded.happened;
        let operation = &mut recorded.operations[index];
        if outcome != Outcome::Unknown {
            operation.end = end;
        }
        operation.outcome = outcome;
        let hashed = operation.clone();
        hashed.hash(&mut recorded.hash);
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        lock(&self.0).operations.clone()
    }

    /// Returns a hash of all events, which is equal for identical runs, and the log.
    pub(crate) fn close(&self) -> (u64, String) {
        let mut recorded = lock(&self.0);
        (recorded.hash.finish(), std::mem::take(&mut recorded.log))
    }
}
