//! The stores that coordinators share, behind a network: steps take time and fail, views differ, and acknowledged steps get lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::name::TenantId;
use witan_kernel::port::{IdempotencyStore, StoreError, Tenants};
use witan_kernel::tenant::{Level, Tenant};
use witan_memory::{IdempotencyRecords, MemoryIdempotency};

use crate::world::{Dice, Gate, SimClock, lock};

/// The idempotency store behind a network: steps take time, and in an outage some or all of them fail; a failed step may have been
/// carried out, may never be, or may be later.
#[derive(Debug, Clone)]
pub(crate) struct Idempotency {
    store: MemoryIdempotency,
    reserving: Arc<AtomicU64>,
    settling: Arc<AtomicU64>,
    /// What the store goes back to when it forgets.
    kept: Arc<Mutex<Option<IdempotencyRecords>>>,
    /// Of the coordinator that uses it.
    gate: Gate,
    dice: Dice,
}

impl Idempotency {
    pub(crate) fn new(dice: Dice) -> Self {
        let store = MemoryIdempotency::new(SimClock::default());
        let (reserving, settling) = (Arc::default(), Arc::default());
        Self { store, reserving, settling, kept: Arc::default(), gate: Gate::default(), dice }
    }

    /// The same store, as a coordinator with this gate reaches it.
    pub(crate) fn behind(&self, gate: &Gate) -> Self {
        Self { gate: gate.clone(), ..self.clone() }
    }

    /// Lets time pass for the store alone.
    pub(crate) fn pass_ms(&self, ms: u64) {
        self.store.pass_ms(ms);
    }

    /// Sets how many steps fail from now on, per mille: of those that begin an operation, and of those that end one.
    pub(crate) fn set_failing(&self, reserving: u64, settling: u64) {
        self.reserving.store(reserving, Ordering::Relaxed);
        self.settling.store(settling, Ordering::Relaxed);
    }

    /// Notes what is stored, for [`Self::fail_over`].
    pub(crate) fn replicate(&self) {
        *lock(&self.kept) = Some(self.store.records());
    }

    /// A replica takes over that has only what was there at the last [`Self::replicate`]: acknowledged steps are lost.
    pub(crate) fn fail_over(&self) {
        if let Some(kept) = lock(&self.kept).as_ref() {
            self.store.restore(kept);
        }
    }

    fn fails(&self, step: &Step) -> bool {
        let (reserving, settling) = (self.reserving.load(Ordering::Relaxed), self.settling.load(Ordering::Relaxed));
        let failing = match step {
            Step::Reserve { .. } => reserving,
            Step::Stamp { .. } => reserving.min(settling),
            Step::Done { .. } | Step::Release { .. } | Step::Abandon { .. } => settling,
        };
        failing > 0 && self.dice.between(0, 999) < failing
    }

    async fn fail(&self, name: Name, step: Step) {
        match self.dice.between(0, 3) {
            0 | 1 => {}
            2 => drop(self.store.step(name, step).await),
            _ => {
                let (store, wait) = (self.store.clone(), self.dice.millis(20, 1500));
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    store.step(name, step).await
                });
            }
        }
    }
}

impl IdempotencyStore for Idempotency {
    async fn step(&self, name: Name, step: Step) -> Result<Stepped, StoreError> {
        self.gate.opened().await;
        tokio::time::sleep(self.dice.millis(1, 5)).await;
        if self.fails(&step) {
            self.fail(name, step).await;
            return Err(StoreError::Unavailable("an outage".to_owned()));
        }
        let result = self.store.step(name, step).await;
        tokio::time::sleep(self.dice.millis(1, 5)).await;
        self.gate.opened().await;
        result
    }
}

type ById = HashMap<TenantId, Arc<Tenant>>;

/// The tenants that exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<Mutex<ById>>);

impl Known {
    pub(crate) fn add(&self, tenant: Tenant) {
        lock(&self.0).insert(tenant.id.clone(), Arc::new(tenant));
    }

    fn get(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        lock(&self.0).get(id).cloned()
    }
}

/// The tenants as one coordinator sees them: from its cache, or from the metadata store, which may be late or away.
#[derive(Debug, Clone)]
pub(crate) struct View {
    known: Known,
    /// Lookups that miss the cache, per mille.
    missing: Arc<AtomicU64>,
    /// Whether the metadata store cannot be reached.
    pub(crate) away: Arc<AtomicBool>,
    /// Whether this coordinator has heard of a change of the tenants' default level that others have not heard of.
    ahead: Arc<AtomicBool>,
    /// Whether a consistency policy is in force here that is content with one answer.
    pub(crate) lenient: Arc<AtomicBool>,
    /// The tenants as they were when this coordinator was cut off from changes; `None`: it is not.
    frozen: Arc<Mutex<Option<ById>>>,
    dice: Dice,
}

impl View {
    pub(crate) fn new(known: Known, dice: Dice) -> Self {
        Self {
            known,
            missing: Arc::default(),
            away: Arc::default(),
            ahead: Arc::default(),
            lenient: Arc::default(),
            frozen: Arc::default(),
            dice,
        }
    }

    /// It has read a tenant.
    pub(crate) fn learn(&self, tenant: Tenant) {
        let mut known = lock(&self.known.0);
        if known.get(&tenant.id).is_none_or(|known| known.version < tenant.version) {
            known.insert(tenant.id.clone(), Arc::new(tenant));
        }
    }

    /// Sets how many lookups miss the cache, per mille, and whether the metadata store can be reached then.
    pub(crate) fn set_missing(&self, per_mille: u64, away: bool) {
        self.missing.store(per_mille, Ordering::Relaxed);
        self.away.store(away, Ordering::Relaxed);
    }

    pub(crate) fn set_ahead(&self, ahead: bool) {
        self.ahead.store(ahead, Ordering::Relaxed);
    }

    /// From now on it hears of no change.
    pub(crate) fn freeze(&self) {
        *lock(&self.frozen) = Some(lock(&self.known.0).clone());
    }

    /// It hears of all changes again.
    pub(crate) fn thaw(&self) {
        *lock(&self.frozen) = None;
    }

    fn look(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        let tenant = match &*lock(&self.frozen) {
            Some(frozen) => frozen.get(id).cloned(),
            None => self.known.get(id),
        }?;
        if self.ahead.load(Ordering::Relaxed) && tenant.default_level == Level::Quorum {
            return Some(Arc::new(Tenant {
                default_level: Level::All,
                version: tenant.version + 1,
                ..(*tenant).clone()
            }));
        }
        Some(tenant)
    }
}

impl Tenants for View {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        let missing = self.missing.load(Ordering::Relaxed);
        if missing > 0 && self.dice.between(0, 999) < missing {
            return None;
        }
        self.look(id)
    }

    async fn tenant(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        tokio::time::sleep(self.dice.millis(1, 60)).await;
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("an outage".to_owned()));
        }
        Ok(self.look(id))
    }
}
