//! Idempotency records in memory: no thread, no disk, the same steps in the same order every time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use witan_kernel::idempotency::{Change, Name, Reservation, Step, Stepped, apply};
use witan_kernel::port::{Clock, IdempotencyStore, StoreError, StoreTime, rules};
use witan_kernel::sync::lock;

/// Records in memory. Clones share them, so that a coordinator's simulated crash loses none.
#[derive(Clone)]
pub struct MemoryIdempotency {
    time: Arc<StoreTime>,
    /// By how much its time is ahead of the clock's, milliseconds.
    ahead_ms: Arc<AtomicU64>,
    shared: Arc<Mutex<Shared>>,
}

/// A copy of everything that a store holds.
#[derive(Debug, Clone, Default)]
pub struct IdempotencyRecords(BTreeMap<Name, Bytes>);

#[derive(Default)]
struct Shared {
    down: bool,
    /// In their stored form, so that the simulation runs through the codec.
    records: BTreeMap<Name, Bytes>,
    /// When each record may have expired.
    expiry: BTreeSet<(u64, Name)>,
}

/// Records checked for expiry per step: more than one step can add.
const SWEPT: usize = 4;

impl MemoryIdempotency {
    /// An empty store whose time is `clock`'s.
    pub fn new(clock: impl Clock) -> Self {
        let time = Arc::new(StoreTime::starting_now(clock));
        Self { time, ahead_ms: Arc::default(), shared: Arc::default() }
    }

    /// While `false`, every step fails with [`StoreError::Unavailable`] and does nothing.
    pub fn set_available(&self, available: bool) {
        lock(&self.shared).down = !available;
    }

    /// Lets time pass for the store alone: a simulation cannot play a day.
    pub fn pass_ms(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// A copy of the records.
    pub fn records(&self) -> IdempotencyRecords {
        IdempotencyRecords(lock(&self.shared).records.clone())
    }

    /// Goes back to a copy of the records, as a replica does that takes over and lacks the last steps. Of records that come back, none is
    /// swept: they are kept until they are used again.
    pub fn restore(&self, records: &IdempotencyRecords) {
        lock(&self.shared).records = records.0.clone();
    }

    /// Records stored, including expired ones that were not swept yet.
    pub fn len(&self) -> usize {
        lock(&self.shared).records.len()
    }

    /// True when no record is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shared {
    fn step(&mut self, name: Name, step: &Step, now_ms: u64) -> Result<Stepped, StoreError> {
        if self.down {
            return Err(StoreError::Unavailable("the idempotency store is down".into()));
        }
        rules::response_bytes(step)?;
        self.sweep(now_ms)?;
        let existing = self.read(&name)?;
        let (change, stepped) = apply(existing.as_ref(), step, now_ms);
        match change {
            Change::Keep => {}
            Change::Put(record) => {
                if existing.is_none() {
                    self.expiry.insert((record.kept_until_ms, name));
                }
                self.records.insert(name, record.encode());
            }
            Change::Delete => {
                self.records.remove(&name);
            }
        }
        Ok(stepped)
    }

    fn read(&self, name: &Name) -> Result<Option<Reservation>, StoreError> {
        let read = self.records.get(name).map(|bytes| Reservation::decode(bytes)).transpose();
        read.map_err(|damaged| StoreError::Damaged(damaged.to_string()))
    }

    fn sweep(&mut self, now_ms: u64) -> Result<(), StoreError> {
        for _ in 0..SWEPT {
            let Some((due, name)) = self.expiry.first().copied().filter(|(due, _)| *due <= now_ms) else { break };
            self.expiry.remove(&(due, name));
            match self.read(&name)? {
                Some(record) if record.remembered_until_ms() > now_ms => {
                    self.expiry.insert((record.remembered_until_ms(), name));
                }
                Some(_) => {
                    self.records.remove(&name);
                }
                None => {}
            }
        }
        Ok(())
    }
}

impl IdempotencyStore for MemoryIdempotency {
    async fn step(&self, name: Name, step: Step) -> Result<Stepped, StoreError> {
        let now_ms = self.time.now_ms().saturating_add(self.ahead_ms.load(Ordering::Relaxed));
        lock(&self.shared).step(name, &step, now_ms)
    }
}

impl std::fmt::Debug for MemoryIdempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryIdempotency").field("records", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::idempotency::{DOUBTED_MS, KEPT_MS};

    use super::MemoryIdempotency;
    use crate::contract::{ManualClock, idempotency as contract};

    #[tokio::test]
    async fn keeps_the_contract() {
        let clock = ManualClock::new();
        let store = MemoryIdempotency::new(clock.clone());
        contract::all(&store, &clock).await;
    }

    #[tokio::test]
    async fn outlives_a_coordinator_and_can_be_down() {
        let clock = ManualClock::new();
        let store = MemoryIdempotency::new(clock.clone());
        contract::reserve_one(&store.clone(), 1).await;
        store.set_available(false);
        contract::is_down(&store).await;
        store.set_available(true);
        contract::finds_one(&store, 1).await;
    }

    #[tokio::test]
    async fn goes_back_to_a_copy() {
        let clock = ManualClock::new();
        let store = MemoryIdempotency::new(clock.clone());
        let nothing = store.records();
        contract::reserve_one(&store, 1).await;
        let one = store.records();
        store.restore(&nothing);
        assert!(store.is_empty());
        store.restore(&one);
        contract::finds_one(&store, 1).await;
    }

    #[tokio::test]
    async fn forgets_what_has_expired() {
        let clock = ManualClock::new();
        let store = MemoryIdempotency::new(clock.clone());
        for _ in 0..3 {
            contract::reserve_many(&store, 500).await;
            assert!(store.len() <= 500 + super::SWEPT, "{}", store.len());
            clock.pass_ms(KEPT_MS + DOUBTED_MS);
        }
    }
}
