//! The thread that owns the records: take what waits, apply, commit once, answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::oneshot;
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::port::StoreError;

use super::records::Records;
use crate::Durability;
use crate::idempotency::StoreTime;

/// Steps in one batch. Above this a sync's cost is spread thin enough (80,000 steps a second were measured at 256), and a
/// step never waits for more than so many others.
pub(super) const BATCH: usize = 1024;

/// Expired records that a batch looks at beside two for each of its steps: sweeping keeps ahead of what is added.
const SWEPT: usize = 64;

/// Expired records that an idle store looks at in one go.
const SWEPT_IDLE: usize = 1024;

/// How long a store without steps waits before it sweeps.
const IDLE: Duration = Duration::from_secs(60);

/// Where a step's answer goes.
pub(super) type Told = oneshot::Sender<Result<Stepped, StoreError>>;

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
    /// `None` after a failure, until it can be opened again.
    records: Option<Records>,
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
        let records = Some(Records::open(folder, durability)?);
        Ok(Self { folder: folder.to_path_buf(), durability, time, tasks, queued_bytes, records })
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
                Task::Break => self.records = None,
                #[cfg(test)]
                Task::Stall(until) => drop(until.recv()),
                #[cfg(test)]
                Task::Count(answer) => drop(answer.send(self.records.as_ref().map_or((0, 0), Records::count))),
            }
            next = if open && steps.len() < BATCH { self.tasks.try_recv().ok() } else { None };
        }
        if !steps.is_empty() {
            self.answer(steps);
        }
        open
    }

    fn answer(&mut self, steps: Vec<(Name, Step, Told)>) {
        let mut waiting = Vec::with_capacity(steps.len());
        let carried_out = self.open_records().and_then(|(records, now_ms)| {
            let mut round = records.round(now_ms);
            round.sweep(SWEPT + 2 * steps.len());
            for (name, step, answer) in &steps {
                // A claim that nobody waits for would only stand in the way of the next; the end of one is worth keeping.
                let unwanted = answer.is_closed() && matches!(step, Step::Reserve { .. });
                waiting.push((!unwanted).then(|| round.step(*name, step)));
            }
            round.commit()
        });
        if let Err(error) = &carried_out {
            // The engine takes nothing more after a failed write. What is in doubt is settled by opening it again.
            tracing::error!(%error, steps = steps.len(), "the idempotency store failed; it will be opened again");
            self.records = None;
        }
        waiting.resize_with(steps.len(), || None);
        for ((_, _, answer), told) in steps.into_iter().zip(waiting) {
            let told = match (&carried_out, told) {
                (Ok(()), Some(told)) => told,
                (Ok(()), None) => continue,
                (Err(error), _) => Err(error.clone()),
            };
            // Whoever no longer listens will see the step's effect when it asks again.
            let _ = answer.send(told);
        }
    }

    fn open_records(&mut self) -> Result<(&mut Records, u64), StoreError> {
        let now_ms = self.time.now_ms();
        let records = match self.records.take() {
            Some(records) => records,
            None => Records::open(&self.folder, self.durability)?,
        };
        Ok((self.records.insert(records), now_ms))
    }

    fn sweep_idle(&mut self) {
        let swept = self.open_records().and_then(|(records, now_ms)| {
            let mut round = records.round(now_ms);
            round.sweep(SWEPT_IDLE);
            round.commit()
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "expired reservations were not swept; the next batch tries again");
            self.records = None;
        }
    }
}
