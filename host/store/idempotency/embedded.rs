//! Idempotency records of a single coordinator: a log-structured store in a folder, used by one thread.
//!
//! Group commit without a timer: the thread takes all waiting steps, applies them in order, commits them as one batch with one sync,
//! and answers. While it syncs, the next batch accumulates. Steps reach the thread through a bounded queue, so that a caller that
//! stops waiting leaves its step done or not done, and does not affect the thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use tokio::sync::{oneshot, watch};
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::port::{Clock, Durability, IdempotencyStore, StoreError, StoreTime, rules};

use thread::{Task, Thread};

mod records;
mod thread;

/// Most steps that may wait for the thread. At 1-3 ms a sync and batches of [`thread::BATCH`], about ten milliseconds of work.
const QUEUE: usize = 4096;

/// Most bytes of responses that may wait for the thread.
const QUEUED_BYTES: usize = 16 << 20;

/// A handle to the store; clones share it. The thread ends when the last is dropped, or by [`Self::close`].
#[derive(Clone)]
pub struct EmbeddedIdempotency {
    queue: SyncSender<Task>,
    queued_bytes: Arc<AtomicUsize>,
    full: Arc<AtomicBool>,
    ended: watch::Receiver<bool>,
}

impl EmbeddedIdempotency {
    /// Opens or creates the store in `folder`, which no other process may have open, and starts its thread. Blocks while an
    /// interrupted run is recovered: call it at the program's start, not on a busy runtime thread.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the folder cannot be used, or is in use; [`StoreError::Damaged`] when its contents cannot be
    /// read.
    pub fn open(folder: impl AsRef<Path>, clock: impl Clock, durability: Durability) -> Result<Self, StoreError> {
        let (queue, tasks) = sync_channel(QUEUE);
        let (ending, ended) = watch::channel(false);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let time = StoreTime::starting_now(clock);
        let full = Arc::new(AtomicBool::new(false));
        let shared = (queued_bytes.clone(), full.clone());
        let thread = Thread::new(folder.as_ref(), durability, time, tasks, shared)?;
        let run = move || {
            thread.run();
            // Only now is the folder free for another store.
            ending.send_replace(true);
        };
        match std::thread::Builder::new().name("witan-idempotency".into()).spawn(run) {
            Ok(_detached) => Ok(Self { queue, queued_bytes, full, ended }),
            Err(error) => Err(StoreError::Unavailable(format!("start the idempotency store's thread: {error}"))),
        }
    }

    /// Whether the last steps were refused because the disk is full.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Closes the store after the steps already queued, and waits until its folder is free. Later steps fail with
    /// [`StoreError::Unavailable`].
    pub async fn close(&self) {
        while let Err(TrySendError::Full(_)) = self.queue.try_send(Task::Close) {
            tokio::task::yield_now().await;
        }
        let mut ended = self.ended.clone();
        // An error means that the thread has ended already.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    fn enqueue(&self, name: Name, step: Step) -> Result<oneshot::Receiver<Result<Stepped, StoreError>>, StoreError> {
        let bytes = rules::response_bytes(&step)?;
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUED_BYTES {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(full());
        }
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Task::Step { name, step, bytes, answer }).map_err(|refused| {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match refused {
                TrySendError::Full(_) => full(),
                TrySendError::Disconnected(_) => closed(),
            }
        })?;
        Ok(answered)
    }
}

fn full() -> StoreError {
    StoreError::Unavailable("the idempotency store's queue is full".into())
}

fn closed() -> StoreError {
    StoreError::Unavailable("the idempotency store is closed".into())
}

impl IdempotencyStore for EmbeddedIdempotency {
    async fn step(&self, name: Name, step: Step) -> Result<Stepped, StoreError> {
        // A thread that has ended, for whatever reason, drops its end of the channel, so that no caller waits in vain.
        self.enqueue(name, step)?.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl std::fmt::Debug for EmbeddedIdempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedIdempotency").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
