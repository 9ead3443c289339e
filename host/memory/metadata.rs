//! Metadata in memory: the state, and how an operation runs on it. Each subject's operations are in a module of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use witan_kernel::class::Class;
use witan_kernel::name::{Era, NodeId, StoreId, TenantId};
use witan_kernel::port::{
    Answer, AnyClock, BindingOnRecord, CandidateReport, Changed, Clock, Component, CoordinatorOnRecord, Digest, Duty,
    DutyOnRecord, Fencing, HistoryEntry, Leftover, Migration, NodeOnRecord, PushTable, RecordText, Secret, SigningKey,
    StoreError, StoreFacts, StoreOnRecord, Token, rules,
};
use witan_kernel::ring::Member;
use witan_kernel::sync::lock;
use witan_kernel::tenant::{Level, Tenant};

mod artifacts;
mod bindings;
mod changes;
mod classes;
mod fences;
mod leases;
mod migrations;
mod placement;
mod pushes;
mod secrets;
mod signing;
mod tenants;
mod tokens;
mod upkeep;

use crate::slot::SlotKey;

/// The newest migration of the real stores, which this one reports too.
const SCHEMA: u64 = 16;

/// Metadata in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryMetadata {
    clock: AnyClock,
    state: Arc<Mutex<State>>,
    hint: Arc<watch::Sender<u64>>,
    /// Whether it cannot be reached through this handle.
    away: Arc<AtomicBool>,
}

#[derive(Clone, Default)]
struct State {
    down: bool,
    revision: u64,
    changes: BTreeMap<u64, Changed>,
    fence: u64,
    /// Programs that know only an earlier schema refuse to start on the real stores.
    needs_schema: u64,
    tenants: BTreeMap<TenantId, Tenant>,
    nodes: BTreeMap<NodeId, NodeOnRecord>,
    placement_epoch: u64,
    stores: BTreeMap<StoreId, StoreOnRecord>,
    /// The ring's versions and their members; empty until a placement change makes one.
    rings: BTreeMap<u64, BTreeMap<NodeId, Member>>,
    migrations: BTreeMap<u64, Migration>,
    leftovers: BTreeMap<(TenantId, NodeId, u64), Leftover>,
    owed: BTreeMap<Fencing, (u64, Level)>,
    owed_removals: BTreeSet<(TenantId, NodeId)>,
    coordinators: BTreeMap<NodeId, CoordinatorOnRecord>,
    /// By digest and owner.
    artifacts: BTreeMap<(Digest, Option<TenantId>), Component>,
    bindings: BTreeMap<SlotKey, BindingOnRecord>,
    /// Of each slot, the newest entry first.
    histories: BTreeMap<SlotKey, Vec<HistoryEntry>>,
    reports: BTreeMap<(SlotKey, u64, NodeId, u64), CandidateReport>,
    preparations: BTreeMap<SlotKey, RecordText>,
    tokens: BTreeMap<String, Token>,
    secrets: Vec<Secret>,
    /// By owner and id.
    signing_keys: BTreeMap<(Option<TenantId>, String), SigningKey>,
    class_grants: BTreeMap<(TenantId, Class), u64>,
    /// When the last compilations that count have begun.
    compilations: BTreeMap<TenantId, Vec<u64>>,
    pushes: PushTable,
    era: Era,
    duties: BTreeMap<Duty, DutyOnRecord>,
}

impl MemoryMetadata {
    /// An empty store whose time is `clock`'s.
    pub fn new(clock: impl Clock) -> Self {
        let hint = Arc::new(watch::Sender::new(0));
        Self { clock: AnyClock::new(clock), state: Arc::default(), hint, away: Arc::default() }
    }

    /// Another store, with what this one has now.
    pub fn copy(&self) -> Self {
        let (state, hint) = (lock(&self.state).clone(), watch::Sender::new(*self.hint.borrow()));
        let (state, hint) = (Arc::new(Mutex::new(state)), Arc::new(hint));
        Self { clock: self.clock.clone(), state, hint, away: Arc::default() }
    }

    /// The same store, which cannot be reached through the returned handle and its clones while `away` is set.
    pub fn behind(&self, away: Arc<AtomicBool>) -> Self {
        Self { away, ..self.clone() }
    }

    /// Goes back to what a copy has, as a database that is restored from a backup.
    pub fn restore(&self, copy: &Self) {
        let state = lock(&copy.state).clone();
        *lock(&self.state) = state;
    }

    /// While `false`, every operation fails with [`StoreError::Unavailable`] and does nothing.
    pub fn set_available(&self, available: bool) {
        lock(&self.state).down = !available;
    }

    /// Runs `work` when the answer is first polled.
    fn answer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let (state, hint, away) = (self.state.clone(), self.hint.clone(), Arc::clone(&self.away));
        Box::pin(async move {
            let mut state = lock(&state);
            if state.down || away.load(Ordering::Relaxed) {
                return Err(StoreError::Unavailable("the metadata store is down".into()));
            }
            let before = state.revision;
            let done = work(&mut state);
            if state.revision != before {
                hint.send_modify(|hints| *hints += 1);
            }
            done
        })
    }
}

impl State {
    /// Logs a change and returns its revision.
    fn changed(&mut self, what: Changed) -> u64 {
        self.revision += 1;
        self.changes.insert(self.revision, what);
        let forgotten = rules::remembered_from(self.revision);
        self.changes.remove(&forgotten);
        self.revision
    }
}

/// The range of a page that begins after `key`.
fn after<K>(key: Option<K>) -> (Bound<K>, Bound<K>) {
    (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

impl StoreFacts for MemoryMetadata {
    fn now_ms(&self) -> Answer<u64> {
        let clock = self.clock.clone();
        self.answer(move |_| Ok(clock.wall_ms()))
    }

    fn schema_version(&self) -> Answer<u64> {
        self.answer(|_| Ok(SCHEMA))
    }
}

impl std::fmt::Debug for MemoryMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryMetadata").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::port::{PlacementStore, StoreError};

    use super::MemoryMetadata;
    use crate::contract::{ManualClock, metadata as contract};

    #[tokio::test]
    async fn keeps_the_contract() {
        let clock = ManualClock::new();
        let metadata = MemoryMetadata::new(clock.clone());
        contract::all(&metadata, &|ms| {
            clock.pass_ms(ms);
            Box::pin(std::future::ready(()))
        })
        .await;
        contract::placement_changes_are_bounded(&metadata).await;
        contract::duties_are_bounded(&metadata).await;
    }

    #[tokio::test]
    async fn can_be_down() {
        let metadata = MemoryMetadata::new(ManualClock::new());
        metadata.set_available(false);
        assert!(matches!(metadata.nodes().await, Err(StoreError::Unavailable(_))));
    }
}
