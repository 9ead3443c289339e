//! A thread for work that goes on for long and for which nobody waits: placement changes, comparing and filling replicas.
//!
//! It decodes, compares and merges the records of whole nodes. On the threads that serve, clients would wait for each page of that.

use std::{io, thread};

use anyhow::Context;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use witan_node::priority;

/// Runs `work`, and the tasks that it starts, on a thread of their own, of a lower priority than those that serve. The handle is that of
/// its end.
///
/// # Errors
/// The thread, or its runtime, could not be started.
pub(super) fn run(work: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let (ended, end) = oneshot::channel();
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime of background work")?;
    let started: io::Result<_> = thread::Builder::new().name("upkeep".to_owned()).spawn(move || {
        priority::lower();
        runtime.block_on(async {
            work.await;
            // An error means that nobody waits for the end.
            let _ = ended.send(());
            // Connections that were opened here are used by those that serve, too, until the process ends.
            std::future::pending::<()>().await;
        });
    });
    started.context("start the thread of background work")?;
    Ok(tokio::spawn(async move {
        let _ = end.await;
    }))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The name and the priority of this thread, as /proc shows them: field 19 of `stat` is its niceness.
    fn this_thread() -> (String, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("procfs");
        let (name, rest) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).expect("a name");
        (name.to_owned(), rest.split_whitespace().nth(16).expect("a niceness").parse().expect("a number"))
    }

    #[tokio::test]
    async fn work_and_its_tasks_run_on_a_thread_of_a_lower_priority() {
        let (_, serving) = this_thread();
        let (send, seen) = oneshot::channel();
        let ended = run(async move {
            let of_task = tokio::spawn(async { this_thread() }).await.expect("it runs");
            send.send((this_thread(), of_task)).expect("it is awaited");
        });
        ended.expect("started").await.expect("it ends");
        let (own, of_task) = seen.await.expect("seen");
        assert_eq!(own.0, "upkeep");
        assert!(own.1 > serving || serving == 19, "{} and {serving}", own.1);
        assert_eq!(own, of_task);
    }
}
