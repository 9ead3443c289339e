//! The one runner of long work: how much of each kind runs at a time, and what is running, how far it is and what failed last.
//!
//! A task takes its turn before it does anything, reports its progress while it works, and gives its turn back when it is dropped,
//! however it ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kind of long work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The replicas of every record are compared, and those that lack something get it.
    Repair,
    /// Many siblings of one record become the one value that a resolver made of them.
    Collapse,
    /// The records of a deleted tenant are removed.
    Removal,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Repair, Self::Collapse, Self::Removal];

    /// The kind's name in lists and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Collapse => "collapse",
            Self::Removal => "removal",
        }
    }

    /// Tasks of this kind that may run at a time.
    pub const fn at_most(self) -> usize {
        match self {
            // One for a schedule, one for an operator who cannot wait for it. Each reads whole nodes.
            Self::Repair => 2,
            // More would only crowd out clients.
            Self::Collapse => 64,
            // Tenants that are deleted at the same time. One works on up to sixteen nodes at once.
            Self::Removal => 16,
        }
    }
}

/// How far a task is. In ranges of the ring, nodes, or whatever its kind counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Parts that are done.
    pub done: u64,
    /// Parts in all, once that is known.
    pub of: Option<u64>,
}

/// A running task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Tells tasks of this process apart; later ones have higher numbers.
    pub id: u64,
    /// What it does, for people.
    pub what: String,
    /// How far it is.
    pub progress: Progress,
}

/// One kind of work, as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Running tasks, oldest first.
    pub running: Vec<Running>,
    /// Tasks that have ended, failed ones included.
    pub ended: u64,
    /// Tasks that have failed, wholly or in part.
    pub failed: u64,
    /// Tasks that got no turn.
    pub turned_away: u64,
    /// The task that failed last, and why.
    pub last_failure: Option<(String, String)>,
}

/// Hands out turns, and keeps account.
#[derive(Debug, Clone, Default)]
pub struct Runner(Arc<Mutex<Accounts>>);

#[derive(Debug, Default)]
struct Accounts {
    last_id: u64,
    kinds: BTreeMap<Kind, Report>,
}

impl Runner {
    /// Takes a turn. `None` when as many tasks of the kind are running as may.
    pub fn begin(&self, kind: Kind, what: impl FnOnce() -> String) -> Option<Task> {
        let mut accounts = self.accounts();
        let id = accounts.last_id + 1;
        let report = accounts.kinds.entry(kind).or_default();
        if report.running.len() >= kind.at_most() {
            report.turned_away += 1;
            return None;
        }
        report.running.push(Running { id, what: what(), progress: Progress::default() });
        accounts.last_id = id;
        drop(accounts);
        Some(Task { runner: self.clone(), kind, id })
    }

    /// All kinds of work, as they are now.
    pub fn list(&self) -> Vec<(Kind, Report)> {
        let accounts = self.accounts();
        Kind::ALL.into_iter().map(|kind| (kind, accounts.kinds.get(&kind).cloned().unwrap_or_default())).collect()
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn. Dropping it ends the task.
#[derive(Debug)]
pub struct Task {
    runner: Runner,
    kind: Kind,
    id: u64,
}

impl Task {
    /// Reports how far it is.
    pub fn progress(&self, progress: Progress) {
        self.with(|report, at| report.running[at].progress = progress);
    }

    /// Reports that it failed, wholly or in part.
    pub fn failed(&self, why: String) {
        self.with(|report, at| {
            report.failed += 1;
            report.last_failure = Some((report.running[at].what.clone(), why));
        });
    }

    fn with(&self, change: impl FnOnce(&mut Report, usize)) {
        let mut accounts = self.runner.accounts();
        let Some(report) = accounts.kinds.get_mut(&self.kind) else { return };
        if let Some(at) = report.running.iter().position(|running| running.id == self.id) {
            change(report, at);
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.with(|report, at| {
            report.running.remove(at);
            report.ended += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repairs(runner: &Runner) -> Report {
        runner.list().into_iter().find(|(kind, _)| *kind == Kind::Repair).expect("every kind is listed").1
    }

    #[test]
    fn a_kind_has_as_many_turns_as_it_may_and_gives_them_back() {
        let runner = Runner::default();
        let mut tasks: Vec<Task> =
            (0..Kind::Repair.at_most()).map(|_| runner.begin(Kind::Repair, String::new).expect("a turn")).collect();
        assert!(runner.begin(Kind::Repair, String::new).is_none());
        assert!(runner.begin(Kind::Removal, String::new).is_some(), "kinds do not take each other's turns");
        drop(tasks.pop());
        assert!(runner.begin(Kind::Repair, String::new).is_some());
        assert_eq!(repairs(&runner).turned_away, 1);
    }

    #[test]
    fn a_list_says_what_runs_how_far_it_is_and_what_failed_last() {
        let runner = Runner::default();
        let first = runner.begin(Kind::Repair, || "repair all ranges".to_owned()).expect("a turn");
        let second = runner.begin(Kind::Repair, || "repair part of the ring".to_owned()).expect("a turn");
        first.progress(Progress { done: 3, of: Some(8) });
        second.failed("node-1: cannot be reached".to_owned());
        let report = repairs(&runner);
        assert_eq!(report.running[0].what, "repair all ranges");
        assert_eq!(report.running[0].progress, Progress { done: 3, of: Some(8) });
        assert!(report.running[0].id < report.running[1].id);
        drop((first, second));
        let report = repairs(&runner);
        assert!(report.running.is_empty());
        assert_eq!((report.ended, report.failed), (2, 1));
        let (what, why) = report.last_failure.expect("the failure is kept");
        assert_eq!((what.as_str(), why.as_str()), ("repair part of the ring", "node-1: cannot be reached"));
    }
}
