//! What clients did and were told, in the order in which it happened: all that the checks may look at.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use crate::world::{Tags, lock};

/// What a client wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Intention {
    Read,
    /// `carries` is the value: the write's own tag, and those that it repeats.
    Write {
        tag: u32,
        carries: Tags,
    },
    /// Its tag is a name only.
    Delete {
        tag: u32,
    },
}

/// How it ended for the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Not ended, or in doubt: a change may have happened, or may still happen. A read that failed.
    Unknown,
    /// A change that was acknowledged.
    Done,
    /// A change that has not happened and will not.
    NotApplied,
    /// What a read was shown: tags of all live values. Empty: no value.
    Shown(Tags),
}

/// Indices of a tenant and of a key of its.
pub(crate) type Place = (usize, usize);

/// One intention of one client, whatever attempts it took.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) place: Place,
    pub(crate) intention: Intention,
    /// The tags that its context has seen; `None`: it has none.
    pub(crate) seen: Option<Tags>,
    /// At level all.
    pub(crate) level_all: bool,
    /// True at level one: nothing may be concluded before all is settled.
    pub(crate) weak: bool,
    /// Position in the order of everything that happened.
    pub(crate) start: u64,
    /// `u64::MAX` until it has ended.
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

    /// A tag that nobody has.
    pub(crate) fn fresh_tag(&self) -> u32 {
        let mut recorded = lock(&self.0);
        recorded.tags += 1;
        recorded.tags
    }

    /// Notes anything that happened: it counts for the hash, and is shown when a seed is replayed.
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

    /// Records a start; returns its index.
    pub(crate) fn start(&self, mut operation: Operation) -> usize {
        let mut recorded = lock(&self.0);
        recorded.happened += 1;
        operation.start = recorded.happened;
        operation.end = u64::MAX;
        recorded.operations.push(operation);
        recorded.operations.len() - 1
    }

    /// Records an end. [`Outcome::Unknown`] never ends.
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

    /// Says whether two simulations went alike, and all that was noted.
    pub(crate) fn close(&self) -> (u64, String) {
        let mut recorded = lock(&self.0);
        (recorded.hash.finish(), std::mem::take(&mut recorded.log))
    }
}
