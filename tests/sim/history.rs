//! The operations of clients and their results, in order: the only input of the checks.

use std::collections::HashMap;
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
    /// Its context may also cover every change that started before this position: what a resolver has hidden from the client.
    pub(crate) may_cover_until: u64,
    /// Number of replicas on which the result of a read, or the acknowledgement of a change, rests.
    pub(crate) needs: u8,
    /// Number of replicas of the key.
    pub(crate) replicas: u8,
    /// A read that shows one value where there may be several.
    pub(crate) partial: bool,
    /// Position of its start in the order of events.
    pub(crate) start: u64,
    /// Position of its end in the order of events; `u64::MAX` until it has ended.
    pub(crate) end: u64,
    pub(crate) outcome: Outcome,
}

impl Operation {
    /// An operation that has not started.
    pub(crate) fn new(client: usize, place: Place, intention: Intention, needs: u8, replicas: u8) -> Self {
        Self {
            client,
            place,
            intention,
            seen: None,
            may_cover_until: 0,
            needs,
            replicas,
            partial: false,
            start: 0,
            end: 0,
            outcome: Outcome::Unknown,
        }
    }

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

    /// True below a quorum: two such operations need not have a replica in common.
    pub(crate) fn is_weak(&self) -> bool {
        2 * self.needs <= self.replicas
    }

    /// True when some replica took part in both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.needs + other.needs > self.replicas
    }
}

/// The number of the client that looks at what is stored, while nothing goes wrong.
pub(crate) const INSPECTOR: usize = usize::MAX;

/// What the operations of a simulation's clients had in common with each other and with faults.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    pub(crate) operations: usize,
    /// Operations during which there was a fault.
    pub(crate) disturbed: usize,
    /// Pairs of operations on the same key at the same time.
    pub(crate) pairs: usize,
}

/// The record of one simulation.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    operations: Vec<Operation>,
    /// For each operation that has not ended: the number of faults that had begun when it started, unless one was going on.
    calm_at_start: HashMap<usize, Option<u64>>,
    happened: u64,
    tags: u32,
    hash: DefaultHasher,
    log: String,
    verbose: bool,
    measured: Measured,
    /// Operations that have not ended, by key.
    open: HashMap<Place, usize>,
    /// Faults that have begun, and faults that go on.
    faults: (u64, usize),
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

    /// The number of events so far.
    pub(crate) fn position(&self) -> u64 {
        lock(&self.0).happened
    }

    /// A fault has begun or ended; `going_on` faults go on now.
    pub(crate) fn disturbed(&self, begins: bool, going_on: usize) {
        let mut recorded = lock(&self.0);
        recorded.faults = (recorded.faults.0 + u64::from(begins), going_on);
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
        let open = recorded.open.entry(operation.place).or_default();
        let others = *open;
        *open += 1;
        if operation.client != INSPECTOR {
            recorded.measured.pairs += others;
            recorded.measured.operations += 1;
        }
        let (begun, going_on) = recorded.faults;
        let index = recorded.operations.len();
        recorded.calm_at_start.insert(index, (going_on == 0).then_some(begun));
        recorded.operations.push(operation);
        index
    }

    /// Records the end of an operation. One with [`Outcome::Unknown`] keeps `u64::MAX` as its end.
    pub(crate) fn end(&self, index: usize, outcome: Outcome) {
        self.end_with(index, outcome, |_| {});
    }

    /// Records the end of an operation, and something else that its result says about it.
    pub(crate) fn end_with(&self, index: usize, outcome: Outcome, adds: impl FnOnce(&mut Operation)) {
        let mut recorded = lock(&self.0);
        recorded.happened += 1;
        let end = recorded.happened;
        let begun = recorded.faults.0;
        // A change that is retried later ends more than once.
        let first_end = recorded.calm_at_start.remove(&index);
        let is_clients = recorded.operations[index].client != INSPECTOR;
        if is_clients && first_end.is_some_and(|calm| calm != Some(begun)) {
            recorded.measured.disturbed += 1;
        }
        let operation = &mut recorded.operations[index];
        if outcome != Outcome::Unknown {
            operation.end = end;
        }
        operation.outcome = outcome;
        adds(operation);
        let hashed = operation.clone();
        if let Some(open) = recorded.open.get_mut(&hashed.place).filter(|_| first_end.is_some()) {
            *open = open.saturating_sub(1);
        }
        hashed.hash(&mut recorded.hash);
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        lock(&self.0).operations.clone()
    }

    pub(crate) fn operation(&self, index: usize) -> Operation {
        lock(&self.0).operations[index].clone()
    }

    pub(crate) fn measured(&self) -> Measured {
        lock(&self.0).measured
    }

    /// Returns a hash of all events, which is equal for identical runs, and the log.
    pub(crate) fn close(&self) -> (u64, String) {
        let mut recorded = lock(&self.0);
        (recorded.hash.finish(), std::mem::take(&mut recorded.log))
    }
}
