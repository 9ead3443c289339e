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
