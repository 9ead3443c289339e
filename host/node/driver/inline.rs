//! A shard on tasks of the current runtime, for the deterministic simulation: no threads, and only virtual time.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use witan_kernel::port::Clock;
use witan_kernel::replica::ReplicaError;
use witan_kernel::sync::lock;

use super::queue::Queue;
use super::{Driver, GATED_BATCHES, Job, QueueLimits, Time, deliver, fail};
use crate::batch::{Applied, Deliver, Durability, Group, Item, Parcel, Shard};
use crate::engine::{EngineError, Usage};
use crate::store::Store;

/// Returns how long the next sync takes.
pub type Delay = Box<dyn FnMut() -> Duration + Send>;

/// Size of the cache of rows, in bytes: small, so that the simulation reads the engine, too.
const ROW_CACHE: usize = 16 << 10;

/// Runs a single shard on two tasks: one applies batches, one syncs. They end when this is dropped.
pub struct Inline {
    store: Arc<Store>,
    queue: Arc<Queue>,
    filled: Arc<Notify>,
    durability: Durability,
    tasks: [AbortHandle; 2],
}

impl Inline {
    /// Starts the tasks. Must be called within a tokio runtime.
    pub fn start(
        store: Arc<Store>,
        durability: Durability,
        limits: QueueLimits,
        clock: impl Clock,
        sync_takes: Delay,
    ) -> Self {
        let queue = Arc::new(Queue::new(limits));
        let filled = Arc::new(Notify::new());
        let shard = Arc::new(Mutex::new(Shard::new(0, ROW_CACHE)));
        let (gate, gated) = mpsc::channel(GATED_BATCHES);
        let clock = Arc::new(clock);
        let apply = Apply { store: store.clone(), queue: queue.clone(), shard: shard.clone(), durability, clock, gate };
        let apply = tokio::spawn(apply.run(filled.clone())).abort_handle();
        let sync = tokio::spawn(sync(store.clone(), shard, gated, sync_takes)).abort_handle();
        Self { store, queue, filled, durability, tasks: [apply, sync] }
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        self.queue.close();
        self.tasks.iter().for_each(AbortHandle::abort);
        while !self.queue.take().is_empty() {}
    }
}

impl Driver for Inline {
    fn submit(&self, items: Vec<Item>, to: Arc<dyn Deliver>) {
        match self.queue.push(Group::new(items, to)) {
            Ok(()) => self.filled.notify_one(),
            Err(group) => group.refuse(&ReplicaError::Overloaded),
        }
    }

    fn usage(&self) -> Pin<Box<dyn Future<Output = Result<Usage, EngineError>> + Send>> {
        self.store.look_for_room();
        Box::pin(std::future::ready(self.store.engine().usage()))
    }

    fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn spawn(&self, job: Job) {
        job(&self.store);
    }

    fn spawn_patient(&self, job: Job) {
        self.spawn(job);
    }

    /// A job takes no time here.
    fn rest(&self, _: Duration) {}

    fn durability(&self) -> Durability {
        self.durability
    }
}

type Gated = (u64, Vec<Parcel>);

struct Apply {
    store: Arc<Store>,
    queue: Arc<Queue>,
    shard: Arc<Mutex<Shard>>,
    durability: Durability,
    clock: Arc<dyn Time>,
    gate: mpsc::Sender<Gated>,
}

impl Apply {
    async fn run(self, filled: Arc<Notify>) {
        loop {
            let groups = self.queue.take();
            if groups.is_empty() {
                filled.notified().await;
                continue;
            }
            let Applied { ready, gated, generation } = self.apply(groups);
            deliver(ready);
            if !gated.is_empty() && self.gate.send((generation, gated)).await.is_err() {
                return;
            }
        }
    }

    fn apply(&self, groups: Vec<Group>) -> Applied {
        let (wall, monotonic) = (self.clock.wall(), self.clock.monotonic());
        lock(&self.shard).apply(&self.store, self.durability, groups, wall, monotonic)
    }
}

async fn sync(store: Arc<Store>, shard: Arc<Mutex<Shard>>, mut gated: mpsc::Receiver<Gated>, mut sync_takes: Delay) {
    let (mut batches, mut synced) = (Vec::new(), 0);
    while gated.recv_many(&mut batches, GATED_BATCHES).await > 0 {
        // Batches written while the disk works wait for the next sync, as they do on threads.
        tokio::time::sleep(sync_takes()).await;
        let failed = store.sync().err();
        for (generation, parcels) in batches.drain(..) {
            match &failed {
                None => {
                    lock(&shard).synced(generation);
                    store.committed(generation.saturating_sub(synced));
                    synced = synced.max(generation);
                    deliver(parcels);
                }
                Some(error) => deliver(fail(parcels, error)),
            }
        }
    }
}
