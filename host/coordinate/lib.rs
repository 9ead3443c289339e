//! Carries out what the kernel decides: sends the messages, waits for the answers, and tells the client.
//!
//! An operation runs in a task of its own to its end, whatever becomes of the client: the response leaves as soon as the
//! requirement is met, and the rest goes on behind it, within the operation's deadline and the coordinator's bounds.
//! Everything it touches comes by type ([`World`]), so that the same code runs over sockets and in the simulation.
//!
//! Reading order: `request` (what is asked and answered), `change` and `read` (an operation from end to end), `plan` (who
//! is asked), `exchange` (one operation's conversation with its replicas), `register`, `siblings`, `repair`, `collapse`,
//! `once` (idempotency), `keys`, `admission`, `metrics`.

mod admission;
mod change;
mod collapse;
mod exchange;
mod idempotency;
mod keys;
mod metrics;

mod plan;
mod read;
mod register;
mod repair;
mod request;
mod siblings;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use witan_kernel::clock::HybridClock;
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::hook::{Operation, Plugins};
use witan_kernel::port::{Clock, IdempotencyStore, Randomness, Replicas, Tenants};
use witan_kernel::ring::Ring;
use witan_kernel::scan::Ranges;

pub use admission::{Hold, Limits};
pub use collapse::{MergedRecord, NoCollapses, WantedCollapses};
pub use keys::{KeysPage, KeysRequest, ListedKey, Resume};
pub use metrics::Metrics;
pub use request::{ReadAnswer, ReadRequest, Rendering, WriteRequest, Written};

use admission::Admission;
use witan_origin as origin;

/// The implementations of the ports that a coordinator runs over.
pub trait World: Send + Sync + 'static {
    /// Wall and monotonic time.
    type Clock: Clock;
    /// Dice.
    type Randomness: Randomness;
    /// The storage nodes.
    type Replicas: Replicas + Ranges;
    /// Where idempotency records are kept.
    type Idempotency: IdempotencyStore;
    /// Where tenants are looked up.
    type Tenants: Tenants;
}

/// One implementation of each port.
pub struct Ports<W: World> {
    /// Wall and monotonic time.
    pub clock: W::Clock,
    /// Dice.
    pub randomness: W::Randomness,
    /// The storage nodes.
    pub replicas: W::Replicas,
    /// Where idempotency records are kept.
    pub idempotency: W::Idempotency,
    /// Where tenants are looked up.
    pub tenants: W::Tenants,
    /// Where hooks come from.
    pub plugins: Arc<dyn Plugins>,
    /// Where records with too many siblings are reported.
    pub collapses: Arc<dyn WantedCollapses>,
}

/// How a coordinator behaves where no tenant, request or plugin says otherwise.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// A change's deadline. Never above [`witan_kernel::limit::LONGEST_DEADLINE`].
    pub write_timeout: Duration,
    /// A read's deadline. Never above [`witan_kernel::limit::LONGEST_DEADLINE`].
    pub read_timeout: Duration,
    /// A spare replica is asked no later than so long after the first ones.
    pub hedge_cap: Duration,
    /// What may be in flight.
    pub limits: Limits,
}

/// Deadlines of operations for which the client sets none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Of reads.
    pub read: Duration,
    /// Of changes.
    pub write: Duration,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            write_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(3),
            hedge_cap: Duration::from_millis(25),
            limits: Limits::default(),
        }
    }
}

/// A coordinator.
pub struct Coordinator<W: World> {
    ports: Ports<W>,
    hybrid: HybridClock,
    ring: ArcSwap<Ring>,
    keys: ArcSwap<ContextKeys>,
    defaults: Defaults,
    timeouts: ArcSwap<Timeouts>,
    admission: Arc<Admission>,
    repairs: repair::Budget,
    late_records: idempotency::LateRecords,
    metrics: Arc<Metrics>,
}

/// Takes an operation's result, once. Must not block.
pub type Respond<T> = Box<dyn FnOnce(Result<T, Failed>) + Send>;

impl<W: World> Coordinator<W> {
    /// A coordinator over `ports`, placing keys on `ring`, sealing contexts with `keys`.
    pub fn new(ports: Ports<W>, ring: Ring, keys: ContextKeys, defaults: Defaults) -> Arc<Self> {
        Arc::new(Self {
            ports,
            hybrid: HybridClock::new(),
            ring: ArcSwap::from_pointee(ring),
            keys: ArcSwap::from_pointee(keys),
            admission: Arc::new(Admission::new(defaults.limits.clone())),
            repairs: repair::Budget::new(defaults.limits.repairs),
            late_records: idempotency::LateRecords::new(),
            timeouts: ArcSwap::from_pointee(Timeouts { read: defaults.read_timeout, write: defaults.write_timeout }),
            defaults,
            metrics: Arc::new(Metrics::default()),
        })
    }

    /// Writes or deletes. `respond` is called once, from another task; dropping whatever waits for it changes nothing.
    pub fn write(self: &Arc<Self>, request: WriteRequest, respond: Respond<Written>) {
        let operation = request.operation();
        let respond = self.measured(operation, respond);
        let admitted = self.admission.admit(&request.tenant, request.value.as_ref().map_or(0, bytes::Bytes::len));
        let Some(permit) = admitted else {
            return respond(Err(self.overloaded().not_applied()));
        };
        let under_way = self.metrics.begin();
        let coordinator = Arc::clone(self);
        // Boxed, so that the runtime moves a pointer and not an operation's whole state, which it does more than once.
        tokio::spawn(Box::pin(origin::carried("write", async move {
            coordinator.run_write(request, respond).await;
            drop((permit, under_way));
        })));
    }

    /// Reads. `respond` is called once, from another task.
    pub fn read(self: &Arc<Self>, request: ReadRequest, respond: Respond<ReadAnswer>) {
        let respond = self.measured(Operation::Read, respond);
        let Some(permit) = self.admission.admit(&request.tenant, 0) else {
            return respond(Err(self.overloaded().of_read()));
        };
        let under_way = self.metrics.begin();
        let coordinator = Arc::clone(self);
        tokio::spawn(Box::pin(origin::carried("read", async move {
            coordinator.run_read(request, respond).await;
            drop((permit, under_way));
        })));
    }

    /// Puts another ring in force. Operations under way keep the one they started with.
    pub fn set_ring(&self, ring: Ring) {
        self.ring.store(Arc::new(ring));
    }

    /// The ring in force.
    pub fn ring(&self) -> Arc<Ring> {
        self.ring.load_full()
    }

    /// Puts other context keys in force.
    pub fn set_context_keys(&self, keys: ContextKeys) {
        self.keys.store(Arc::new(keys));
    }

    /// Puts other deadlines in force. Operations under way keep theirs.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.timeouts.store(Arc::new(timeouts));
    }

    /// The ports.
    pub fn ports(&self) -> &Ports<W> {
        &self.ports
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Operations under way, background work included.
    pub fn in_flight(&self) -> usize {
        self.admission.in_flight()
    }

    /// Waits until nothing is under way. Nothing stops new operations from coming: close the doors first.
    pub async fn drained(&self) {
        self.admission.drained().await;
    }

    /// Keeps operations out (they are refused as overloaded) and waits until those under way have ended. They are let in
    /// again when the answer is dropped.
    pub async fn hold(&self) -> Hold {
        self.admission.hold().await
    }

    fn overloaded(&self) -> Failure {
        Failure::Overloaded { retry_after: Duration::from_millis(50) }
    }

    fn measured<T: 'static>(&self, operation: Operation, respond: Respond<T>) -> Respond<T> {
        let metrics = Arc::clone(&self.metrics);
        let started = self.ports.clock.monotonic_micros();
        let ended = {
            let clock = self.ports.clock.clone();
            move || clock.monotonic_micros().saturating_sub(started)
        };
        Box::new(move |result: Result<T, Failed>| {
            metrics.finished(operation, result.as_ref().err(), ended());
            respond(result);
        })
    }
}
