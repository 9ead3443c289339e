//! The runner of background tasks: limits how many of each kind run at a time, and lists running tasks, progress and last failures.
//!
//! A task takes a slot before it does anything, reports its progress while it works, and releases the slot when it is dropped,
//! however it ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kind of background task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Compares the replicas of every record, and sends them what they lack.
    Repair,
    /// Replaces many siblings of one record by the value that a resolver has merged them into.
    Collapse,
    /// Removes the records of a deleted tenant.
    Removal,
}

impl Kind {
    /// Every kind, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Repair, Self::Collapse, Self::Removal];

    /// The kind's name in lists and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Collapse => "collapse",
            Self::Removal => "removal",
        }
    }

    /// Limit on concurrent tasks of this kind.
    pub const fn at_most(self) -> usize {
        match self {
            // One for a scheduled job, one for an operator who cannot wait for it. Each reads whole nodes.
            Self::Repair => 2,
            // More would only crowd out clients.
            Self::Collapse => 64,
            // Tenants that are deleted at the same time. Each task works on up to sixteen nodes at once.
            Self::Removal => 16,
        }
    }
}

/// A task's progress, in units of its kind: ranges of the ring, or nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in total, once known.
    pub of: Option<u64>,
}

/// A running task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Unique within this process; later tasks have higher ids.
    pub id: u64,
    /// What it does, for people to read.
    pub what: String,
    /// Its last reported progress.
    pub progress: Progress,
}

/// The present state of one kind of task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Running tasks, oldest first.
    pub running: Vec<Running>,
    /// Number of tasks that have ended, failed ones included.
    pub ended: u64,
    /// Number of failures reported by tasks, total and partial ones.
    pub failed: u64,
    /// Number of tasks refused because of the limit.
    pub turned_away: u64,
    /// The task that failed last, and the reason.
    pub last_failure: Option<(String, String)>,
}

/// Grants slots, and tracks the tasks that hold them.
#[derive(Debug, Clone, Default)]
pub struct Runner(Arc<Mutex<Accounts>>);

#[derive(Debug, Default)]
struct Accounts {
    last_id: u64,
    kinds: BTreeMap<Kind, Report>,
}

impl Runner {
    /// Takes a slot. `None` when the limit on running tasks of the kind is reached.
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

    /// The present state of every kind.
    pub fn list(&self) -> Vec<(Kind, Report)> {
        let accounts = self.accounts();
        Kind::ALL.into_iter().map(|kind| (kind, accounts.kinds.get(&kind).cloned().unwrap_or_default())).collect()
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot held by a task. Dropping it ends the task.
#[derive(Debug)]
pub struct Task {
    runner: Runner,
    kind: Kind,
    id: u64,
}

impl Task {
    /// Reports progress.
    pub fn progress(&self, progress: Progress) {
        self.with(|report, at| report.running[at].progress = progress);
    }

    /// Reports a failure, total or partial.
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
    fn a_kind_has_a_limited_number_of_slots_and_releases_them() {
        let runner = Runner::default();
        let mut tasks: Vec<Task> =
            (0..Kind::Repair.at_most()).map(|_| runner.begin(Kind::Repair, String::new).expect("a slot")).collect();
        assert!(runner.begin(Kind::Repair, String::new).is_none());
        assert!(runner.begin(Kind::Removal, String::new).is_some(), "kinds do not take each other's slots");
        drop(tasks.pop());
        assert!(runner.begin(Kind::Repair, String::new).is_some());
        assert_eq!(repairs(&runner).turned_away, 1);
    }

    #[test]
    fn the_list_shows_running_tasks_progress_and_the_last_failure() {
        let runner = Runner::default();
        let first = runner.begin(Kind::Repair, || "repair all ranges".to_owned()).expect("a slot");
        let second = runner.begin(Kind::Repair, || "repair part of the ring".to_owned()).expect("a slot");
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
