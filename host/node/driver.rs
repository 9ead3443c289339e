//! Drivers of shards: they queue requests, apply all that are waiting as one batch, sync once for everything that was written
//! meanwhile, and release the answers.
//!
//! [`Threads`] uses threads of the operating system; [`Inline`] uses tasks of the current runtime, with virtual delays, for the
//! deterministic simulation. There are no timers: an idle node answers at once, a busy one in large batches.

mod inline;
mod queue;
mod threads;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use witan_kernel::fault::Fault;
use witan_kernel::port::Clock;
use witan_kernel::replica::ReplicaError;

pub use self::inline::{Delay, Inline};
pub use self::threads::Threads;

use crate::batch::{Answers, Deliver, Durability, Item, Parcel, refusal};
use crate::engine::{EngineError, Usage};
use crate::store::Store;

/// Most requests that a shard applies as one batch, unless one submission has more: as many as a full frame of a lane.
pub const BATCH_ITEMS: usize = witan_wire::frame::BATCH_ITEMS;

/// Most batches that may wait for a sync before shards wait, too: bounds the answers that a slow disk holds back.
const GATED_BATCHES: usize = 64;

/// How much may wait for a shard. Requests beyond that are refused at once with
/// [`Overloaded`](witan_kernel::replica::ReplicaError::Overloaded).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most requests.
    pub items: usize,
    /// Most bytes of their records and values, approximately.
    pub bytes: usize,
}

impl Default for QueueLimits {
    /// About a tenth of a second of work for a shard, and two of the largest batches.
    fn default() -> Self {
        Self { items: 8192, bytes: 128 << 20 }
    }
}

/// Runs the shards of a store.
pub trait Driver: Send + Sync + 'static {
    /// Submits requests without blocking. Each is answered through `to` exactly once.
    fn submit(&self, items: Vec<Item>, to: Arc<dyn Deliver>);

    /// The disk usage of the store, without blocking the caller's thread.
    fn usage(&self) -> Pin<Box<dyn Future<Output = Result<Usage, EngineError>> + Send>>;

    /// The store, for quick calls: its id, the estimated number of keys.
    fn store(&self) -> &Arc<Store>;

    /// Runs a job that may take a while outside the shards, without blocking the caller's thread. It is dropped unrun when the
    /// runtime ends. The caller bounds the number of concurrent jobs.
    fn spawn(&self, job: Job);

    /// The same for a job for which no client waits. Where there are threads, those that serve go before it.
    fn spawn_patient(&self, job: Job);

    /// Lets a job leave the processor to others for a while.
    fn rest(&self, long: Duration);

    /// Whether answers wait for a sync.
    fn durability(&self) -> Durability;
}

/// Work on a store outside its shards.
pub type Job = Box<dyn FnOnce(&Store) + Send>;

/// A clock as a trait object, because drivers are not generic: a server holds them as one type.
pub(crate) trait Time: Send + Sync {
    /// Microseconds since 1970.
    fn wall(&self) -> u64;
    /// Microseconds since some fixed moment.
    fn monotonic(&self) -> u64;
}

impl<C: Clock> Time for C {
    fn wall(&self) -> u64 {
        self.wall_micros()
    }

    fn monotonic(&self) -> u64 {
        self.monotonic_micros()
    }
}

/// The shard of a token: shards divide the ring evenly.
fn shard_of(token: u64, shards: usize) -> usize {
    // The result is less than `shards`, so it fits.
    ((u128::from(token) * shards as u128) >> 64) as usize
}

fn deliver(parcels: Vec<Parcel>) {
    for (to, answers) in parcels {
        to.deliver(answers);
    }
}

/// Replaces answers that waited for a sync by the error of that sync: what they say may not be durable.
fn fail(parcels: Vec<Parcel>, error: &EngineError) -> Vec<Parcel> {
    if Fault::FailedSyncAnswered.is_on() {
        return parcels;
    }
    // `StorageFull` would promise that nothing was written; here it was.
    let error = match refusal(error) {
        ReplicaError::Broken(reason) => ReplicaError::Broken(reason),
        other => ReplicaError::Broken(format!("the sync failed: {other}")),
    };
    let fail = |answers: Answers| answers.into_iter().map(|(tag, _)| (tag, Err(error.clone()))).collect();
    parcels.into_iter().map(|(to, answers)| (to, fail(answers))).collect()
}
