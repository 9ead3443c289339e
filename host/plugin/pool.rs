//! A few threads with a bounded queue, for work that must not run on a serving thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use witan_kernel::sync::lock;

/// Stack of a thread, in bytes: as large as tokio's, since a guest's stack is part of it.
pub(crate) const STACK_BYTES: usize = 2 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that take jobs in order. They end when the pool has been dropped and its queue is empty.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    jobs: SyncSender<Job>,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl Pool {
    pub(crate) fn new(name: &str, threads: usize, queue: usize) -> io::Result<Self> {
        let (jobs, receiver) = sync_channel(queue);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads.max(1) {
            let receiver = receiver.clone();
            thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(move || work(&receiver))?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job. Never blocks.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Full> {
        self.jobs.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Full,
        })
    }
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = lock(receiver).recv();
        let Ok(job) = job else { return };
        // A job that panics drops its answer's sender, so that its caller does not wait for ever.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job of the plugin host panicked; this is a defect, please report it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_full_queue_refuses_jobs_and_a_panic_ends_no_thread() {
        let pool = Pool::new("test", 1, 1).unwrap();
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        pool.submit(move || {
            started.send(()).unwrap();
            gate.recv().unwrap();
            panic!("on purpose");
        })
        .unwrap();
        starts.recv().unwrap();
        let (done, answer) = mpsc::channel();
        pool.submit(move || done.send(7).unwrap()).unwrap();
        assert_eq!(pool.submit(|| {}), Err(Full));
        release.send(()).unwrap();
        assert_eq!(answer.recv(), Ok(7));
    }
}
