//! The runner of background tasks: limits how many of each kind run at a time, and lists running tasks, progress and last failures.
//!
//! A task takes a slot before it does anything, reports its progress while it works, and releases the slot when it is dropped,
//! however it ends.
//!
//! Slots are shared: a tenant has few of a kind's, and the repairs that tenants ask for leave slots for operators. Whoever has held a
//! tenant's slot for repairs long enough hands it on when another tenant asks for one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use witan_kernel::name::TenantId;

/// The time for which a tenant's repair has its slot for certain: a thousand times what a repair of a small tenant takes, and short enough
/// to wait for. A repair that had to hand its slot on can be resumed.
const CERTAIN: Duration = Duration::from_secs(60);

/// A kind of background task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Compares the replicas of every record, and sends them what they lack.
    Repair,
    /// Replaces many siblings of one record by the value that a resolver has merged them into.
    Collapse,
    /// Removes the records of a deleted tenant.
    Removal,
    /// What a cluster does by itself: the same as a repair, for stores that differ and stores that are new.
    Healing,
}

impl Kind {
    /// Every kind, in the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::Repair, Self::Collapse, Self::Removal, Self::Healing];

    /// The kind's name in lists and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Collapse => "collapse",
            Self::Removal => "removal",
            Self::Healing => "healing",
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
            // One of each kind of duty: a day's comparison and a filled store must not wait for each other.
            Self::Healing => 4,
        }
    }

    /// Limit on concurrent tasks of this kind for one tenant, so that there are slots for others.
    pub const fn of_tenant(self) -> usize {
        match self {
            // A second one would read the same records.
            Self::Repair | Self::Healing => 1,
            // Three quarters, as of everything that is plentiful.
            Self::Collapse => 48,
            // One that hangs on a node, and one that tries again.
            Self::Removal => 2,
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
#[derive(Debug, Clone)]
pub struct Runner {
    accounts: Arc<Mutex<Accounts>>,
    /// Slots for repairs that tenants may have together.
    repairs_of_tenants: usize,
}

impl Default for Runner {
    fn default() -> Self {
        Self::new(Kind::Repair.at_most() - 1)
    }
}

#[derive(Debug, Default)]
struct Accounts {
    last_id: u64,
    kinds: BTreeMap<Kind, Report>,
    holders: Vec<Holder>,
}

/// A slot that is held.
#[derive(Debug)]
struct Holder {
    id: u64,
    kind: Kind,
    /// The tenant for which the task works; `None`: an operator.
    tenant: Option<TenantId>,
    since: Instant,
    /// Turns true when the slot is wanted by another tenant. From then on it does not count: the task is about to end.
    handed_on: watch::Sender<bool>,
}

impl Holder {
    fn counts(&self) -> bool {
        !*self.handed_on.borrow()
    }
}

impl Runner {
    /// A runner that grants tenants, together, this number of slots for repairs.
    pub fn new(repairs_of_tenants: usize) -> Self {
        Self { accounts: Arc::default(), repairs_of_tenants }
    }

    /// Takes a slot for a task that works for `tenant`; `None`: for an operator. `None` when the limit on running tasks of the kind, or
    /// the tenant's share of them, is reached.
    pub fn begin(&self, kind: Kind, tenant: Option<&TenantId>, what: impl FnOnce() -> String) -> Option<Task> {
        let mut accounts = self.accounts();
        let id = accounts.last_id + 1;
        if !accounts.has_room(kind, tenant, self.repairs_of_tenants) {
            accounts.kinds.entry(kind).or_default().turned_away += 1;
            return None;
        }
        let running = Running { id, what: what(), progress: Progress::default() };
        accounts.kinds.entry(kind).or_default().running.push(running);
        let (sender, handed_on) = watch::channel(false);
        let since = Instant::now();
        accounts.holders.push(Holder { id, kind, tenant: tenant.cloned(), since, handed_on: sender });
        accounts.last_id = id;
        drop(accounts);
        Some(Task { runner: self.clone(), kind, id, handed_on })
    }

    /// The present state of every kind.
    pub fn list(&self) -> Vec<(Kind, Report)> {
        let accounts = self.accounts();
        Kind::ALL.into_iter().map(|kind| (kind, accounts.kinds.get(&kind).cloned().unwrap_or_default())).collect()
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    /// Whether there is a slot, after another tenant's has been handed on if that is needed and allowed.
    fn has_room(&mut self, kind: Kind, tenant: Option<&TenantId>, repairs_of_tenants: usize) -> bool {
        let held = |of: &Self, by: &dyn Fn(&Holder) -> bool| {
            of.holders.iter().filter(|holder| holder.kind == kind && holder.counts() && by(holder)).count()
        };
        let all = held(self, &|_| true) < kind.at_most();
        let Some(tenant) = tenant else { return all };
        let own = held(self, &|holder| holder.tenant.as_ref() == Some(tenant)) < kind.of_tenant();
        let tenants = kind != Kind::Repair || held(self, &|holder| holder.tenant.is_some()) < repairs_of_tenants;
        own && if kind == Kind::Repair && !(all && tenants) { self.hand_on(tenant) } else { all && tenants }
    }

    /// Takes the slot of the repair of another tenant that has had it longest, if that is long enough.
    fn hand_on(&mut self, to: &TenantId) -> bool {
        let others = self.holders.iter().filter(|holder| {
            holder.kind == Kind::Repair
                && holder.counts()
                && holder.tenant.as_ref().is_some_and(|tenant| tenant != to)
                && holder.since.elapsed() >= CERTAIN
        });
        // Those that hold one longest come first.
        let longest = others.map(|holder| &holder.handed_on).next();
        longest.is_some_and(|handed_on| !handed_on.send_replace(true))
    }
}

/// A slot held by a task. Dropping it ends the task.
#[derive(Debug)]
pub struct Task {
    runner: Runner,
    kind: Kind,
    id: u64,
    handed_on: watch::Receiver<bool>,
}

impl Task {
    /// What waits until the slot is wanted by another tenant: the task should then end soon. For ever, if that does not happen.
    pub fn handed_on(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut handed_on = self.handed_on.clone();
        async move {
            if handed_on.wait_for(|handed_on| *handed_on).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

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
        self.runner.accounts().holders.retain(|holder| holder.id != self.id);
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
        let mut tasks: Vec<Task> = (0..Kind::Repair.at_most())
            .map(|_| runner.begin(Kind::Repair, None, String::new).expect("a slot"))
            .collect();
        assert!(runner.begin(Kind::Repair, None, String::new).is_none());
        assert!(runner.begin(Kind::Removal, None, String::new).is_some(), "kinds do not take each other's slots");
        drop(tasks.pop());
        assert!(runner.begin(Kind::Repair, None, String::new).is_some());
        assert_eq!(repairs(&runner).turned_away, 1);
    }

    #[test]
    fn tenants_leave_slots_for_operators_and_for_each_other() {
        let runner = Runner::default();
        let tenant = |id: &str| TenantId::new(id).expect("an id");
        let (a, b) = (tenant("a"), tenant("b"));
        let begin = |kind, of: Option<&TenantId>| runner.begin(kind, of, String::new);
        let repair = begin(Kind::Repair, Some(&a)).expect("a slot");
        assert!(begin(Kind::Repair, Some(&a)).is_none() && begin(Kind::Repair, Some(&b)).is_none());
        let operators = begin(Kind::Repair, None).expect("one is kept for operators");
        assert!(begin(Kind::Repair, None).is_none(), "two in all");
        drop((repair, operators));
        assert!(begin(Kind::Repair, Some(&b)).is_some());
        for kind in [Kind::Collapse, Kind::Removal] {
            let own: Vec<Task> = std::iter::from_fn(|| begin(kind, Some(&a))).take(100).collect();
            assert_eq!(own.len(), kind.of_tenant(), "{kind:?}");
            assert!(begin(kind, Some(&b)).is_some());
        }
        assert!(runner.accounts().holders.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_has_had_its_turn_hands_it_on() {
        let runner = Runner::default();
        let tenant = |id: &str| TenantId::new(id).expect("an id");
        let begin = |id: &str| runner.begin(Kind::Repair, Some(&tenant(id)), String::new);
        let first = begin("a").expect("a slot");
        tokio::time::advance(CERTAIN - Duration::from_secs(1)).await;
        assert!(begin("b").is_none(), "not yet");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(begin("a").is_none(), "not to itself");
        let second = begin("b").expect("handed on");
        first.handed_on().await;
        assert!(begin("c").is_none(), "it has its own time");
        assert!(runner.begin(Kind::Repair, None, String::new).is_some(), "the first no longer counts");
        drop(first);
        let waits = tokio::time::timeout(10 * CERTAIN, second.handed_on()).await;
        assert!(waits.is_err(), "nobody wants it");
    }

    #[test]
    fn the_list_shows_running_tasks_progress_and_the_last_failure() {
        let runner = Runner::default();
        let first = runner.begin(Kind::Repair, None, || "repair all ranges".to_owned()).expect("a slot");
        let second = runner.begin(Kind::Repair, None, || "repair part of the ring".to_owned()).expect("a slot");
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
