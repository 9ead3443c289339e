//! Shards on threads of the operating system, and one thread that syncs for all of them.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use witan_kernel::port::Clock;
use witan_kernel::replica::ReplicaError;
use witan_kernel::sync::lock;

use super::queue::Queue;
use super::{Driver, GATED_BATCHES, Job, QueueLimits, Time, deliver, fail, shard_of};
use crate::batch::{Applied, Deliver, Durability, Group, Item, Parcel, Shard};
use crate::engine::{EngineError, Usage};
use crate::priority;
use crate::store::{SHARDS, Store};

/// Runs a store on threads: one per shard, and one that syncs.
pub struct Threads {
    store: Arc<Store>,
    queues: Vec<Arc<Queue>>,
    gate: Arc<Gate>,
    durability: Durability,
    shards: Mutex<Vec<JoinHandle<()>>>,
    syncer: Mutex<Option<JoinHandle<()>>>,
    /// Jobs for [`PATIENT`] threads of a lower priority, until the store is closed.
    patient: Mutex<Option<mpsc::Sender<Job>>>,
    patient_threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Threads for jobs for which no client waits: two pages of a scan, and a drop of rows.
const PATIENT: usize = 3;

/// Runs jobs until there will be no others.
fn run_jobs(store: &Store, jobs: &Mutex<mpsc::Receiver<Job>>) {
    priority::lower();
    loop {
        let next = lock(jobs).recv();
        let Ok(job) = next else { return };
        job(store);
    }
}

/// A batch whose answers wait for a sync.
struct Gated {
    shard: usize,
    generation: u64,
    parcels: Vec<Parcel>,
}

/// The queue from the shards to the syncer.
struct Gate {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    drained: Condvar,
    /// For each shard, the generation up to which all batches are durable.
    synced: Vec<AtomicU64>,
}

#[derive(Default)]
struct Waiting {
    batches: Vec<Gated>,
    closed: bool,
}

impl Threads {
    /// Starts `shards` threads (at least 1), among which the `row_cache` bytes of cached rows are divided, and a syncer.
    pub fn start(
        store: Arc<Store>,
        durability: Durability,
        shards: usize,
        limits: QueueLimits,
        row_cache: usize,
        clock: impl Clock,
    ) -> io::Result<Self> {
        let shards = shards.clamp(1, SHARDS);
        let clock: Arc<dyn Time> = Arc::new(clock);
        let gate = Arc::new(Gate {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            synced: (0..shards).map(|_| AtomicU64::new(0)).collect(),
        });
        let this = Self {
            queues: (0..shards).map(|_| Arc::new(Queue::new(limits))).collect(),
            gate: gate.clone(),
            durability,
            shards: Mutex::default(),
            syncer: Mutex::default(),
            patient: Mutex::default(),
            patient_threads: Mutex::default(),
            store,
        };
        let (patient, jobs) = mpsc::channel();
        *lock(&this.patient) = Some(patient);
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..PATIENT {
            let (store, jobs) = (this.store.clone(), jobs.clone());
            let handle =
                thread::Builder::new().name(format!("patient-{number}")).spawn(move || run_jobs(&store, &jobs))?;
            lock(&this.patient_threads).push(handle);
        }
        for (number, queue) in this.queues.iter().enumerate() {
            let mut work = ShardThread {
                number,
                shard: Shard::new(number, row_cache / shards),
                store: this.store.clone(),
                queue: queue.clone(),
                gate: gate.clone(),
                durability,
                clock: clock.clone(),
            };
            let handle = thread::Builder::new().name(format!("shard-{number}")).spawn(move || work.run())?;
            lock(&this.shards).push(handle);
        }
        if durability == Durability::Sync {
            let (gate, store) = (this.gate.clone(), this.store.clone());
            let handle = thread::Builder::new().name("syncer".to_owned()).spawn(move || gate.sync(&store))?;
            *lock(&this.syncer) = Some(handle);
        }
        Ok(this)
    }

    /// Refuses new requests, answers the queued ones, and ends the threads. Blocks until they have ended.
    pub fn close(&self) {
        drop(lock(&self.patient).take());
        self.queues.iter().for_each(|queue| queue.close());
        // They have done all jobs by then, of which there are few, and each is bounded.
        for patient in std::mem::take(&mut *lock(&self.patient_threads)) {
            let _ = patient.join();
        }
        for shard in std::mem::take(&mut *lock(&self.shards)) {
            // A panic was reported by the panic hook already.
            let _ = shard.join();
        }
        lock(&self.gate.waiting).closed = true;
        self.gate.filled.notify_all();
        if let Some(syncer) = lock(&self.syncer).take() {
            let _ = syncer.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.close();
    }
}

impl Driver for Threads {
    fn submit(&self, items: Vec<Item>, to: Arc<dyn Deliver>) {
        let shards = self.queues.len();
        if let [queue] = &self.queues[..] {
            return push(queue, Group::new(items, to));
        }
        let mut parts: Vec<Vec<Item>> = (0..shards).map(|_| Vec::new()).collect();
        for item in items {
            parts[shard_of(item.request.place.token, shards)].push(item);
        }
        for (queue, items) in self.queues.iter().zip(parts).filter(|(_, items)| !items.is_empty()) {
            push(queue, Group::new(items, to.clone()));
        }
    }

    fn usage(&self) -> Pin<Box<dyn Future<Output = Result<Usage, EngineError>> + Send>> {
        let store = self.store.clone();
        Box::pin(async move {
            let measured = tokio::task::spawn_blocking(move || {
                store.look_for_room();
                store.engine().usage()
            });
            let measured = measured.await;
            measured.unwrap_or_else(|error| Err(EngineError::Broken(error.to_string())))
        })
    }

    fn store(&self) -> &Arc<Store> {
        &self.store
    }

    fn spawn(&self, job: Job) {
        let store = self.store.clone();
        drop(tokio::task::spawn_blocking(move || job(&store)));
    }

    fn spawn_patient(&self, job: Job) {
        if let Some(patient) = &*lock(&self.patient) {
            // They receive as long as there is a sender.
            let _ = patient.send(job);
        }
    }

    fn rest(&self, long: Duration) {
        thread::sleep(long);
    }

    fn durability(&self) -> Durability {
        self.durability
    }
}

fn push(queue: &Queue, group: Group) {
    if let Err(group) = queue.push(group) {
        group.refuse(&ReplicaError::Overloaded);
    }
}

struct ShardThread {
    number: usize,
    shard: Shard,
    store: Arc<Store>,
    queue: Arc<Queue>,
    gate: Arc<Gate>,
    durability: Durability,
    clock: Arc<dyn Time>,
}

impl ShardThread {
    fn run(&mut self) {
        // However this thread ends, its queue must not keep anybody waiting.
        let queue = CloseOnDrop(self.queue.clone());
        while let Some(groups) = queue.0.wait() {
            self.shard.synced(self.gate.synced[self.number].load(Ordering::Acquire));
            let (wall, monotonic) = (self.clock.wall(), self.clock.monotonic());
            let Applied { ready, gated, generation } =
                self.shard.apply(&self.store, self.durability, groups, wall, monotonic);
            if !gated.is_empty() {
                self.gate.push(Gated { shard: self.number, generation, parcels: gated });
            }
            deliver(ready);
        }
    }
}

struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
        // A dropped group answers its requests with an error.
        while !self.0.take().is_empty() {}
    }
}

impl Gate {
    fn push(&self, gated: Gated) {
        let mut waiting = lock(&self.waiting);
        while waiting.batches.len() >= GATED_BATCHES && !waiting.closed {
            waiting = self.drained.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.batches.push(gated);
        drop(waiting);
        self.filled.notify_one();
    }

    fn wait(&self) -> Option<Vec<Gated>> {
        let mut waiting = lock(&self.waiting);
        while waiting.batches.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let batches = std::mem::take(&mut waiting.batches);
        drop(waiting);
        self.drained.notify_all();
        Some(batches)
    }

    /// Syncs, each time once for all batches that have gathered meanwhile, until the gate is closed.
    fn sync(&self, store: &Store) {
        while let Some(batches) = self.wait() {
            let failed = store.sync().err();
            for Gated { shard, generation, parcels } in batches {
                let Some(error) = &failed else {
                    let before = self.synced[shard].fetch_max(generation, Ordering::Release);
                    store.committed(generation.saturating_sub(before));
                    deliver(parcels);
                    continue;
                };
                deliver(fail(parcels, error));
            }
        }
    }
}
