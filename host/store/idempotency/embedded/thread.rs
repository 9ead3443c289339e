//! The thread that owns the records: take what waits, apply, commit once, answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::port::{Durability, StoreError, StoreTime};

use super::records::{Failure, Records};

/// Steps in one batch. Above this a sync's cost is spread thin enough (80,000 steps a second were measured at 256), and a
/// step never waits for more than so many others.
pub(super) const BATCH: usize = 1024;

/// Expired records that a batch looks at beside two for each of its steps: sweeping keeps ahead of what is added.
const SWEPT: usize = 64;

/// Expired records that an idle store looks at in one go.
const SWEPT_IDLE: usize = 1024;

/// How long a store without steps waits before it sweeps.
const IDLE: Duration = Duration::from_secs(60);

/// How long a store that could not be opened again is left alone. Milliseconds.
const REOPEN_MS: u64 = 1000;

/// Where a step's answer goes.
pub(super) type Told = oneshot::Sender<Answer>;

/// A step's answer.
type Answer = Result<Stepped, StoreError>;

/// What the thread is asked.
pub(super) enum Task {
    /// One step.
    Step {
        /// On this record.
        name: Name,
        /// This step.
        step: Step,
        /// Bytes counted against the queue's bound.
        bytes: usize,
        /// Who waits, if anybody still does.
        answer: Told,
    },
    /// Finish what was queued before, and end.
    Close,
    /// Lose the open store, as after a failed write.
    #[cfg(test)]
    Break,
    /// Wait until told to go on.
    #[cfg(test)]
    Stall(std::sync::mpsc::Receiver<()>),
    /// Count records and entries.
    #[cfg(test)]
    Count(oneshot::Sender<(usize, usize)>),
}

/// What the thread owns.
pub(super) struct Thread {
    folder: PathBuf,
    durability: Durability,
    time: StoreTime,
    tasks: Receiver<Task>,
    queued_bytes: Arc<AtomicUsize>,
    store: Store,
}

/// The store, as far as it is there.
enum Store {
    Open(Records),
    /// To be opened again, not before this time.
    Closed {
        until_ms: u64,
    },
    /// Until somebody has looked at the disk and started the program again.
    Dead(StoreError),
}

impl Thread {
    /// Opens the store, for a thread to run.
    pub(super) fn new(
        folder: &Path,
        durability: Durability,
        time: StoreTime,
        tasks: Receiver<Task>,
        queued_bytes: Arc<AtomicUsize>,
    ) -> Result<Self, StoreError> {
        let store = Store::Open(Records::open(folder, durability)?);
        Ok(Self { folder: folder.to_path_buf(), durability, time, tasks, queued_bytes, store })
    }

    /// Works until it is closed or nobody can ask any more.
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

    /// One batch: `first` and whatever else waits. False when the store was closed.
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

    fn answer(&mut self, steps: Vec<(Name, Step, Told)>) {
        let told = self.carry_out(&steps);
        match told {
            Ok(told) => {
                for ((_, _, answer), told) in steps.into_iter().zip(told) {
                    // Whoever no longer listens will see the step's effect when it asks again.
                    let _ = told.map(|told| answer.send(told));
                }
            }
            Err(error) => {
                for (_, _, answer) in steps {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// What each step is answered with, once all of them are stored.
    fn carry_out(&mut self, steps: &[(Name, Step, Told)]) -> Result<Vec<Option<Answer>>, StoreError> {
        let now_ms = self.time.now_ms();
        let mut round = self.records(now_ms)?.round(now_ms);
        round.sweep(SWEPT + 2 * steps.len());
        let mut told = Vec::with_capacity(steps.len());
        for (name, step, answer) in steps {
            // A claim that nobody waits for would only stand in the way of the next; the end of one is worth keeping.
            let unwanted = answer.is_closed() && matches!(step, Step::Reserve { .. });
            told.push((!unwanted).then(|| round.step(*name, step)));
        }
        let committed = round.commit();
        self.noted(committed).map(|()| told)
    }

    fn records(&mut self, now_ms: u64) -> Result<&mut Records, StoreError> {
        match &self.store {
            Store::Open(_) => {}
            Store::Closed { until_ms } if now_ms < *until_ms => return Err(waiting()),
            Store::Closed { .. } => match Records::open(&self.folder, self.durability) {
                Ok(records) => {
                    tracing::warn!(folder = %self.folder.display(), "the idempotency store is open again");
                    self.store = Store::Open(records);
                }
                Err(error) => {
                    tracing::warn!(folder = %self.folder.display(), %error, "the idempotency store cannot be opened again yet");
                    self.store = Store::Closed { until_ms: now_ms.saturating_add(REOPEN_MS) };
                }
            },
            Store::Dead(error) => return Err(error.clone()),
        }
        if let Store::Open(records) = &mut self.store { Ok(records) } else { Err(waiting()) }
    }

    /// Remembers what a failed commit means for those to come.
    fn noted(&mut self, committed: Result<(), Failure>) -> Result<(), StoreError> {
        let (store, error) = match committed {
            Ok(()) => return Ok(()),
            Err(Failure::Passing(error)) => {
                tracing::error!(folder = %self.folder.display(), %error, "the idempotency store failed; it will be opened again");
                (Store::Closed { until_ms: 0 }, error)
            }
            Err(Failure::Lasting(error)) => {
                tracing::error!(folder = %self.folder.display(), %error, "the idempotency store failed: look at the disk, then start again");
                (Store::Dead(error.clone()), error)
            }
        };
        self.store = store;
        Err(error)
    }

    fn sweep_idle(&mut self) {
        let now_ms = self.time.now_ms();
        if let Ok(records) = self.records(now_ms) {
            let mut round = records.round(now_ms);
            round.sweep(SWEPT_IDLE);
            let committed = round.commit();
            // Told in the log, and to whoever asks next.
            let _ = self.noted(committed);
        }
    }
}

fn waiting() -> StoreError {
    StoreError::Unavailable("the idempotency store has failed, and cannot be opened again yet".into())
}
