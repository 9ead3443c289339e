//! The threads that call resolvers, and what waits for them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use witan_kernel::name::TenantId;
use witan_kernel::sync::lock;

use crate::fair::{Bounds, Fair, Full, Next};
use crate::guest::thread_cpu;
use crate::limit;
use crate::pool::STACK_BYTES;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that take the tenants' questions in turn. They end when the last handle has been dropped and nothing waits.
#[derive(Clone)]
pub(crate) struct Resolvers(Arc<Handle>);

struct Handle(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    fair: Fair<TenantId, Job>,
    /// Nobody has a handle any longer.
    closed: bool,
}

impl Resolvers {
    /// Starts the threads. One of them, if there is more than one, is never busy with the tenant that another is busy with: whatever one
    /// tenant's resolver does, its neighbours' questions find a thread.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let bounds = Bounds {
            tenant_jobs: limit::RESOLVER_WAITING,
            jobs: limit::RESOLVER_QUEUE,
            tenant_bytes: limit::RESOLVER_TENANT_BYTES,
            bytes: limit::RESOLVER_BYTES,
            at_once: (threads.saturating_sub(1)).max(1),
        };
        let queue = Mutex::new(Queue { fair: Fair::new(bounds), closed: false });
        let shared = Arc::new(Shared { queue, changed: Condvar::new() });
        for _ in 0..threads.max(1) {
            let shared = shared.clone();
            let thread = thread::Builder::new().name("witan-resolver".into()).stack_size(STACK_BYTES);
            thread.spawn(move || shared.work())?;
        }
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Queues a question that holds this many bytes. Never blocks.
    pub(crate) fn submit(
        &self,
        tenant: &TenantId,
        bytes: usize,
        job: impl FnOnce() + Send + 'static,
    ) -> Result<(), Full> {
        let shared = &self.0.0;
        lock(&shared.queue).fair.push(tenant, bytes, Box::new(job))?;
        shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        while let Some(Next { tenant, bytes, job }) = self.next() {
            let before = thread_cpu();
            // A job that panics drops its answer's sender, so that its caller does not wait for ever.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a question to a resolver panicked; this is a defect, please report it");
            }
            let used = thread_cpu().saturating_sub(before);
            lock(&self.queue).fair.ended(&tenant, bytes, used);
            // Its tenant's next question may be run now, by this thread or by one that found nothing that it may run.
            self.changed.notify_one();
        }
    }

    fn next(&self) -> Option<Next<TenantId, Job>> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(next) = queue.fair.pop() {
                return Some(next);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    #[test]
    fn a_neighbour_is_served_while_a_tenant_keeps_a_thread_busy_and_others_of_its_jobs_wait() {
        let resolvers = Resolvers::start(2).unwrap();
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let begun = started.clone();
        let block = move || {
            begun.send("busy").unwrap();
            gate.recv().unwrap();
        };
        resolvers.submit(&tenant("busy"), 0, block).unwrap();
        assert_eq!(starts.recv(), Ok("busy"));
        for _ in 0..limit::RESOLVER_WAITING {
            let started = started.clone();
            resolvers.submit(&tenant("busy"), 0, move || started.send("next").unwrap()).unwrap();
        }
        assert_eq!(resolvers.submit(&tenant("busy"), 0, || {}), Err(Full::Jobs));
        let of_quiet = started.clone();
        resolvers.submit(&tenant("quiet"), 0, move || of_quiet.send("quiet").unwrap()).unwrap();
        assert_eq!(starts.recv(), Ok("quiet"));
        release.send(()).unwrap();
        drop((resolvers, started));
        // What waits is carried out before the threads end.
        assert_eq!(starts.iter().filter(|it| *it == "next").count(), limit::RESOLVER_WAITING);
    }

    #[test]
    fn a_panic_ends_no_thread() {
        let resolvers = Resolvers::start(1).unwrap();
        let (done, answer) = mpsc::channel();
        resolvers.submit(&tenant("a"), 1, || panic!("on purpose")).unwrap();
        resolvers.submit(&tenant("a"), 1, move || done.send(7).unwrap()).unwrap();
        assert_eq!(answer.recv(), Ok(7));
    }
}
