//! The thread that owns the records: takes all waiting steps, applies them, commits once, answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::port::{Durability, StoreError, StoreTime};

use super::records::{Failure, MEMTABLE_BYTES, Records};

/// Most steps in one batch. The cost of a sync is negligible per step long before (80,000 steps a second were measured at 256), and a
/// step never waits for more than this many others.
pub(super) const BATCH: usize = 1024;

/// Expired records that a batch checks, in addition to two for each of its steps, so that sweeping outpaces what is added.
const SWEPT: usize = 64;

/// Expired records that an idle store checks in one batch.
const SWEPT_IDLE: usize = 1024;

/// How long a store without steps waits before it sweeps.
const IDLE: Duration = Duration::from_secs(60);

/// Pause before the next attempt to reopen the store. Milliseconds.
const REOPEN_MS: u64 = 1000;

/// Where a step's answer goes.
pub(super) type AnswerTo = oneshot::Sender<Answer>;

/// A step's answer.
type Answer = Result<Stepped, StoreError>;

/// A request to the thread.
pub(super) enum Task {
    /// One step.
    Step {
        /// The record's name.
        name: Name,
        /// The step.
        step: Step,
        /// Bytes counted against the queue's limit.
        bytes: usize,
        /// Where the answer goes, if the caller still waits.
        answer: AnswerTo,
    },
    /// Finish what was queued before, then end.
    Close,
    /// Lose the open store, as after a failed write.
    #[cfg(test)]
    Break,
    /// Wait until the sender says to continue.
    #[cfg(test)]
    Stall(std::sync::mpsc::Receiver<()>),
    /// Count records and entries.
    #[cfg(test)]
    Count(oneshot::Sender<(usize, usize)>),
}

/// The thread's state.
pub(super) struct Thread {
    folder: PathBuf,
    durability: Durability,
    time: StoreTime,
    tasks: Receiver<Task>,
    queued_bytes: Arc<AtomicUsize>,
    /// Whether the last commit failed for want of room.
    full: Arc<AtomicBool>,
    store: Store,
}

/// Whether the store is open.
enum Store {
    Open(Records),
    /// To be reopened, not before this time.
    Closed {
        until_ms: u64,
    },
    /// Closed until an operator has checked the disk and restarted the program.
    Dead(StoreError),
}

impl Thread {
    /// Opens the store, for a thread to run.
    pub(super) fn new(
        folder: &Path,
        durability: Durability,
        time: StoreTime,
        tasks: Receiver<Task>,
        (queued_bytes, full): (Arc<AtomicUsize>, Arc<AtomicBool>),
    ) -> Result<Self, StoreError> {
        let store = Store::Open(Records::open(folder, durability)?);
        Ok(Self { folder: folder.to_path_buf(), durability, time, tasks, queued_bytes, full, store })
    }

    /// Runs until the store is closed or all handles are dropped.
    pub(super) fn run(mut self) {
        let mut open = true;
        while open {
            match self.tasks.recv_timeout(IDLE) {
                Ok(first) => open = self.work(first),
                Err(RecvTimeoutError::Timeout) => self.sweep_idle(),
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
    }

    /// One batch: `first` and all other waiting requests. False when the store was closed.
    fn work(&mut self, first: Task) -> bool {
        let mut steps = Vec::new();
        let mut next = Some(first);
        let mut open = true;
        while let Some(task) = next {
            match task {
                Task::Step { name, step, bytes, answer } => {
                    self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    steps.push((name, step, answer));
                }
                Task::Close => open = false,
                #[cfg(test)]
                Task::Break => self.store = Store::Closed { until_ms: 0 },
                #[cfg(test)]
                Task::Stall(until) => drop(until.recv()),
                #[cfg(test)]
                Task::Count(answer) => {
                    if let Store::Open(records) = &self.store {
                        let _ = answer.send(records.count());
                    }
                }
            }
            next = if open && steps.len() < BATCH { self.tasks.try_recv().ok() } else { None };
        }
        if !steps.is_empty() {
            self.answer(steps);
        }
        open
    }

    fn answer(&mut self, steps: Vec<(Name, Step, AnswerTo)>) {
        match self.carry_out(&steps) {
            Ok(results) => {
                for ((_, _, answer), result) in steps.into_iter().zip(results) {
                    // A caller that stopped waiting sees the step's effect when it retries.
                    let _ = result.map(|result| answer.send(result));
                }
            }
            Err(error) => {
                for (_, _, answer) in steps {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Applies and commits all steps, and returns each one's answer; `None` for a step that was skipped.
    fn carry_out(&mut self, steps: &[(Name, Step, AnswerTo)]) -> Result<Vec<Option<Answer>>, StoreError> {
        let now_ms = self.time.now_ms();
        let mut round = self.records(now_ms)?.round(now_ms);
        round.sweep(SWEPT + 2 * steps.len());
        let mut results = Vec::with_capacity(steps.len());
        for (name, step, answer) in steps {
            // A claim whose caller is gone would only block the next one; the end of a request is worth recording.
            let unwanted = answer.is_closed() && matches!(step, Step::Reserve { .. });
            results.push((!unwanted).then(|| round.step(*name, step)));
        }
        let committed = round.commit();
        self.noted(committed).map(|()| results)
    }

    fn records(&mut self, now_ms: u64) -> Result<&mut Records, StoreError> {
        match &self.store {
            Store::Open(_) => {}
            Store::Closed { until_ms } if now_ms < *until_ms => return Err(self.waiting()),
            Store::Closed { .. } => match Records::open(&self.folder, self.durability) {
                Ok(records) => {
                    tracing::warn!(folder = %self.folder.display(), "the idempotency store is open again");
                    self.store = Store::Open(records);
                }
                Err(error) => {
                    let error = self.blame(error);
                    self.full.store(matches!(error, StoreError::Full(_)), Ordering::Relaxed);
                    tracing::warn!(folder = %self.folder.display(), %error, "the idempotency store cannot be reopened yet");
                    self.store = Store::Closed { until_ms: now_ms.saturating_add(REOPEN_MS) };
                }
            },
            Store::Dead(error) => return Err(error.clone()),
        }
        let waiting = self.waiting();
        if let Store::Open(records) = &mut self.store { Ok(records) } else { Err(waiting) }
    }

    /// Closes the store after a failed commit.
    fn noted(&mut self, committed: Result<(), Failure>) -> Result<(), StoreError> {
        let committed = committed.map_err(|failure| match failure {
            Failure::Passing(error) => Failure::Passing(self.blame(error)),
            lasting @ Failure::Lasting(_) => lasting,
        });
        let is_full = matches!(&committed, Err(Failure::Passing(StoreError::Full(_))));
        self.full.store(is_full, Ordering::Relaxed);
        let (store, error) = match committed {
            Ok(()) => return Ok(()),
            Err(Failure::Passing(error)) => {
                tracing::error!(folder = %self.folder.display(), %error, "the idempotency store failed; it will be reopened");
                (Store::Closed { until_ms: 0 }, error)
            }
            Err(Failure::Lasting(error)) => {
                tracing::error!(folder = %self.folder.display(), %error, "the idempotency store failed: check the disk, then restart");
                (Store::Dead(error.clone()), error)
            }
        };
        self.store = store;
        Err(error)
    }

    /// The engine does not say why its background work has failed: if the disk has no room for a table, that is why.
    fn blame(&self, error: StoreError) -> StoreError {
        let StoreError::Unavailable(what) = error else { return error };
        let room = rustix::fs::statvfs(&self.folder).map(|system| system.f_bavail.saturating_mul(system.f_frsize));
        match room {
            Ok(room) if room < MEMTABLE_BYTES => StoreError::Full(what),
            _ => StoreError::Unavailable(what),
        }
    }

    fn waiting(&self) -> StoreError {
        match self.full.load(Ordering::Relaxed) {
            true => StoreError::Full("the disk under the idempotency store has no space left; free some".into()),
            false => StoreError::Unavailable("the idempotency store has failed, and cannot be reopened yet".into()),
        }
    }

    fn sweep_idle(&mut self) {
        let now_ms = self.time.now_ms();
        if let Ok(records) = self.records(now_ms) {
            let mut round = records.round(now_ms);
            round.sweep(SWEPT_IDLE);
            let committed = round.commit();
            // It is logged, and returned to the next caller.
            let _ = self.noted(committed);
        }
    }
}
