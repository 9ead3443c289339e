//! What drives shards: takes requests in, applies whatever waits as one batch, syncs once for everything that was written
//! meanwhile, and lets answers go.
//!
//! [`Threads`] does so on threads of the operating system, [`Inline`] on tasks of the current runtime, with virtual delays,
//! for the deterministic simulation. There is no timer anywhere: an idle node answers at once, a busy one in large batches.

mod inline;
mod queue;
mod threads;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;

use witan_kernel::port::Clock;

pub use self::inline::{Delay, Inline};
pub use self::threads::Threads;

use crate::batch::{Deliver, Durability, Item};
use crate::engine::{EngineError, Usage};
use crate::store::Store;

/// Most requests that a shard applies as one batch, unless one submission brings more.
pub const BATCH_ITEMS: usize = 256;

/// How much may wait for a shard. What comes on top is answered with
/// [`Overloaded`](witan_kernel::replica::ReplicaError::Overloaded) at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests.
    pub items: usize,
    /// Bytes of their records and values, roughly.
    pub bytes: usize,
}

impl Default for QueueLimits {
    /// A tenth of a second's work of a shard, and two of the largest batches.
    fn default() -> Self {
        Self { items: 8192, bytes: 128 << 20 }
    }
}

/// A store at work.
pub trait Driver: Send + Sync + 'static {
    /// Submits requests. Never blocks. Each is answered through `to` exactly once.
    fn submit(&self, items: Vec<Item>, to: Arc<dyn Deliver>);

    /// What the store takes on its disk, without blocking the caller's thread.
    fn usage(&self) -> Pin<Box<dyn Future<Output = Result<Usage, EngineError>> + Send>>;

    /// The store, for what is quick: its id, the estimated number of keys.
    fn store(&self) -> &Arc<Store>;

    /// Does something with the store that may take a while, beside the shards and without blocking the caller's thread. It is
    /// dropped undone when the runtime ends. The caller bounds how much of this is under way.
    fn aside(&self, job: Aside);

    /// Whether answers wait for a sync.
    fn durability(&self) -> Durability;
}

/// What is done beside the shards.
pub type Aside = Box<dyn FnOnce(&Store) + Send>;

/// A clock behind a pointer: drivers are not generic, because a server holds them as one type.
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
    // Below `shards`, which is a usize.
    ((u128::from(token) * shards as u128) >> 64) as usize
}
