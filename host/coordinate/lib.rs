//! Carries out operations: sends requests to replicas, waits for the answers, and responds to the client. What to do is decided by the
//! kernel.
//!
//! Each operation runs in its own task until it ends, even if the client disconnects: the response is sent as soon as the requirement is
//! met, and the remaining work continues in the background, within the operation's deadline and the coordinator's limits. All
//! dependencies are type parameters ([`World`]), so that the same code runs over sockets and in the simulation.
//!
//! Reading order: `request` (requests and responses), `change` and `read` (an operation from start to end), `plan` (which replicas are
//! asked), `following` (up to where it knows what it is planned from), `lines` (operations that wait for others on their key), `exchange`
//! and `mailbox` (requests and answers), `missed` (replicas that lack a change), `register`, `siblings`, `repair`, `collapse`,
//! `idempotency`, `keys`, `questions` (what plugins are asked apart from operations), `admission` and `load`, `room` and `answers`,
//! `metrics`.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

mod admission;
mod answers;
mod change;
mod collapse;
mod exchange;
mod following;
mod idempotency;
mod keys;
mod lines;
mod load;
mod mailbox;
mod metrics;
mod missed;
mod plan;
mod questions;
mod read;
mod register;
mod repair;
mod request;
mod room;
mod siblings;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
#[cfg(doc)]
use witan_kernel::capability;
use witan_kernel::clock::HybridClock;
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::fault::Fault;
use witan_kernel::hook::{Operation, Plugins};
use witan_kernel::name::{TenantId, Zone};
use witan_kernel::port::{Clock, IdempotencyStore, Randomness, Replicas, Tenants};
use witan_kernel::ring::{Ring, Rings};
use witan_kernel::scan::Ranges;
use witan_kernel::weight::Weights;

pub use admission::{Hold, Limits};
pub use answers::AnswerLimits;
pub use collapse::{MergedRecord, NoCollapses, WantedCollapses};
pub use keys::{KeysPage, KeysRequest, ListedKey, Resume};
pub use lines::{Line, Lines};
pub use metrics::Metrics;
pub use missed::{MissedChanges, NothingNoted};
pub use plan::{PartitionKey, Places};
pub use questions::Questions;
pub use request::{ReadAnswer, ReadRequest, Rendering, WriteRequest, Written};
pub use room::RoomPermit;

use admission::Admission;
use answers::Answers;
use following::Following;
use room::Room;
use witan_origin as origin;

/// Bytes of requests that may wait before they begin, such as those of a session behind an earlier one on their key: half of what may be
/// under way. One tenant may have three quarters.
const WAITING_BYTES: usize = 256 << 20;

/// Bytes of the records that reads have fetched, and with which they have not answered yet: eight of the largest, or as many small ones as
/// there are reads under way. One tenant may have three quarters.
const FETCHED_BYTES: usize = 256 << 20;

/// The implementations of the ports that a coordinator runs over.
pub trait World: Send + Sync + 'static {
    /// Wall and monotonic time.
    type Clock: Clock;
    /// Random bytes.
    type Randomness: Randomness;
    /// The storage nodes.
    type Replicas: Replicas + Ranges;
    /// The store of idempotency records.
    type Idempotency: IdempotencyStore;
    /// The lookup of tenants.
    type Tenants: Tenants;
}

/// One implementation of each port.
pub struct Ports<W: World> {
    /// Wall and monotonic time.
    pub clock: W::Clock,
    /// Random bytes.
    pub randomness: W::Randomness,
    /// The storage nodes.
    pub replicas: W::Replicas,
    /// The store of idempotency records.
    pub idempotency: W::Idempotency,
    /// The lookup of tenants.
    pub tenants: W::Tenants,
    /// The plugins' hooks.
    pub plugins: Arc<dyn Plugins>,
    /// Receives reports of records with too many siblings.
    pub collapses: Arc<dyn WantedCollapses>,
    /// Receives reports of changes that replicas have missed.
    pub missed: Arc<dyn MissedChanges>,
}

/// Settings of a coordinator, unless a tenant, request or plugin overrides them.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// A change's deadline. Never above [`witan_kernel::limit::LONGEST_DEADLINE`].
    pub write_timeout: Duration,
    /// A read's deadline. Never above [`witan_kernel::limit::LONGEST_DEADLINE`].
    pub read_timeout: Duration,
    /// A read asks a spare replica no later than this after the first ones.
    pub hedge_cap: Duration,
    /// The zone of this coordinator, which consistency policies and routing hooks know.
    pub zone: Option<Zone>,
    /// Limits of what may be in flight.
    pub limits: Limits,
}

/// When a client may try again that was refused because of too much work.
pub const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Deadlines of operations for which the client sets none. Never above [`witan_kernel::limit::LONGEST_DEADLINE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// The deadline of reads.
    pub read: Duration,
    /// The deadline of changes.
    pub write: Duration,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            write_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(3),
            hedge_cap: Duration::from_millis(25),
            zone: None,
            limits: Limits::default(),
        }
    }
}

/// A coordinator.
pub struct Coordinator<W: World> {
    ports: Ports<W>,
    hybrid: HybridClock,
    rings: ArcSwap<Rings>,
    following: Following,
    keys: ArcSwap<ContextKeys>,
    /// Every coordinator names [`capability::NAMES`], so that records and contexts may use what goes with it.
    names: AtomicBool,
    /// Every coordinator names [`capability::FENCES`], and so do all that may come.
    fences: AtomicBool,
    /// No coordinator of the previous version reads what is recorded under idempotency keys.
    small_responses: AtomicBool,
    defaults: Defaults,
    timeouts: ArcSwap<Timeouts>,
    admission: Arc<Admission>,
    answers: Answers,
    /// Requests that wait for their turn.
    waiting: Arc<Room>,
    /// Records that reads have fetched and not answered with yet.
    fetched: Arc<Room>,
    /// Pages of keys that are being read.
    scans: Arc<Room>,
    repairs: repair::Budget,
    late_records: Arc<Room>,
    metrics: Arc<Metrics>,
}

/// What is kept for clients, each in bytes but the last two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Answers that their clients have not taken yet.
    pub waiting_answers: usize,
    /// Requests that wait before they begin.
    pub waiting_requests: usize,
    /// Records that reads have fetched and not answered with yet.
    pub fetched_records: usize,
    /// Values being written.
    pub values_being_written: usize,
    /// Pages of keys that are being read.
    pub scans: usize,
    /// Operations beyond which a tenant that has more under way than others is refused: the narrow window of `load`.
    pub window: usize,
}

/// What operations hold of a coordinator's limits: all zero when nothing is under way, or something was not given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// Operations of all tenants.
    pub operations: usize,
    /// The same, counted by tenant.
    pub of_tenants: usize,
    /// Bytes of values being written.
    pub bytes: usize,
    /// Repairs in the background.
    pub repairs: usize,
    /// Results that are being recorded after the response.
    pub late_records: usize,
}

/// Takes an operation's result, once. Must not block.
pub type Respond<T> = Box<dyn FnOnce(Result<T, Failed>) + Send>;

impl<W: World> Coordinator<W> {
    /// A coordinator over `ports`, placing keys on `rings`, sealing contexts with `keys`.
    pub fn new(ports: Ports<W>, rings: Rings, keys: ContextKeys, defaults: Defaults) -> Arc<Self> {
        Arc::new(Self {
            ports,
            hybrid: HybridClock::new(),
            rings: ArcSwap::from_pointee(rings),
            following: Following::default(),
            keys: ArcSwap::from_pointee(keys),
            names: AtomicBool::new(false),
            fences: AtomicBool::new(false),
            small_responses: AtomicBool::new(false),
            admission: Arc::new(Admission::new(defaults.limits.clone())),
            answers: Answers::new(AnswerLimits::default()),
            waiting: Room::new(WAITING_BYTES),
            fetched: Room::new(FETCHED_BYTES),
            scans: Room::of(defaults.limits.scans, defaults.limits.scans_per_tenant),
            repairs: repair::Budget::new(defaults.limits.repairs),
            late_records: idempotency::late_records(),
            timeouts: ArcSwap::from_pointee(Timeouts { read: defaults.read_timeout, write: defaults.write_timeout }),
            defaults,
            metrics: Arc::new(Metrics::default()),
        })
    }

    /// Writes or deletes. `respond` is called once, from another task. The operation continues even if the client disconnects.
    pub fn write(self: &Arc<Self>, request: WriteRequest, respond: Respond<Written>) {
        let operation = request.operation();
        let arrived = self.arrival(request.arrived);
        let now = self.ports.clock.monotonic_micros();
        let respond = self.measured(operation, now, respond);
        let bytes = request.value.as_ref().map_or(0, bytes::Bytes::len);
        let Some(permit) = self.admission.admit(&request.tenant, bytes, now) else {
            return respond(Err(self.overloaded().not_applied()));
        };
        let under_way = self.metrics.begin();
        let coordinator = Arc::clone(self);
        // Boxed, because the runtime moves the future more than once, and an operation's state is large.
        tokio::spawn(Box::pin(origin::carried("write", async move {
            permit.begins(now, coordinator.ports.clock.monotonic_micros());
            coordinator.run_write(request, arrived, respond).await;
            drop((permit, under_way));
        })));
    }

    /// Reads. `respond` is called once, from another task.
    pub fn read(self: &Arc<Self>, request: ReadRequest, respond: Respond<ReadAnswer>) {
        let arrived = self.arrival(request.arrived);
        let now = self.ports.clock.monotonic_micros();
        let respond = self.measured(Operation::Read, now, respond);
        let Some(permit) = self.admission.admit(&request.tenant, 0, now) else {
            return respond(Err(self.overloaded().of_read()));
        };
        let under_way = self.metrics.begin();
        let coordinator = Arc::clone(self);
        tokio::spawn(Box::pin(origin::carried("read", async move {
            permit.begins(now, coordinator.ports.clock.monotonic_micros());
            coordinator.run_read(request, arrived, respond).await;
            drop((permit, under_way));
        })));
    }

    /// The refusal of an operation that has arrived at `arrived` (monotonic microseconds), if its tenant has to give way to others at this
    /// moment: for who has many to refuse, cheaper than to ask for each and be refused.
    pub fn turned_away(&self, tenant: &TenantId, operation: Operation, arrived: u64) -> Option<Failed> {
        self.admission.turns_away(tenant, arrived).then(|| {
            let failed = match operation {
                Operation::Read => self.overloaded().of_read(),
                Operation::Write | Operation::Delete => self.overloaded().not_applied(),
            };
            self.metrics.finished(operation, Some(&failed), 0);
            failed
        })
    }

    /// Replaces the weights of tenants, by which they share while operations have to wait.
    pub fn set_weights(&self, weights: Weights) {
        self.admission.set_weights(weights);
    }

    /// The threads that serve had something to do for this share of their time lately, 0 to 1. While that is at least a half, tenants that
    /// have more under way than others give way to them after a shorter wait.
    pub fn set_busy(&self, share: f64) {
        self.admission.set_busy(share);
    }

    /// Replaces the versions of the ring. Operations under way keep those they started with.
    pub fn set_rings(&self, rings: Rings) {
        self.rings.store(Arc::new(rings));
    }

    /// The versions of the ring.
    pub fn rings(&self) -> Arc<Rings> {
        self.rings.load_full()
    }

    /// The newest version of the ring.
    pub fn ring(&self) -> Arc<Ring> {
        Arc::clone(self.rings.load().newest())
    }

    /// Replaces the context keys, and begins their era. Operations under way go on with those that they began with.
    pub fn set_context_keys(&self, keys: ContextKeys) {
        if Fault::EraIgnored.is_on() {
            return;
        }
        self.keys.store(Arc::new(keys));
    }

    /// Whether every coordinator of the cluster names [`capability::NAMES`]. Until this is set, writes are repeated and contexts issued
    /// as by the previous version.
    pub fn set_names(&self, all: bool) {
        self.names.store(all, Ordering::Relaxed);
    }

    /// Whether changes are fenced at the storage nodes: every coordinator of the cluster names [`capability::FENCES`].
    pub fn set_fences(&self, all: bool) {
        self.fences.store(all, Ordering::Relaxed);
    }

    /// Whether changes are fenced at the storage nodes.
    pub fn fences(&self) -> bool {
        self.fences.load(Ordering::Relaxed)
    }

    /// Whether results are recorded in a form that the previous version cannot read.
    pub fn set_small_responses(&self, small: bool) {
        self.small_responses.store(small, Ordering::Relaxed);
    }

    fn small_responses(&self) -> bool {
        self.small_responses.load(Ordering::Relaxed)
    }

    /// Room for a request of this size that has to wait before it begins; `None` if too many bytes of requests wait already. Once it has
    /// begun, it counts among the operations under way.
    pub fn admit_waiting(&self, tenant: &TenantId, bytes: usize) -> Option<RoomPermit> {
        self.waiting.admit(tenant, bytes)
    }

    /// Room for an answer of this size until its client has taken it; `None` if too many bytes of answers wait already.
    pub fn admit_answer(&self, tenant: &TenantId, bytes: usize) -> Option<RoomPermit> {
        self.answers.admit(tenant, bytes)
    }

    /// What is kept for clients at this moment.
    pub fn kept(&self) -> Kept {
        Kept {
            waiting_answers: self.answers.bytes(),
            waiting_requests: self.waiting.bytes(),
            fetched_records: self.fetched.bytes(),
            values_being_written: self.admission.held().2,
            scans: self.scans.bytes(),
            window: self.admission.window(),
        }
    }

    /// Registers the metrics of the coordinator.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        self.metrics.register(registry);
        registry.register_collector(Box::new(metrics::KeptNow(Arc::clone(self))));
    }

    /// Replaces the default deadlines. Operations under way keep theirs.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.timeouts.store(Arc::new(timeouts));
    }

    /// The ports.
    pub fn ports(&self) -> &Ports<W> {
        &self.ports
    }

    /// Counters of operations.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Operations under way, background work included.
    pub fn in_flight(&self) -> usize {
        self.admission.in_flight()
    }

    /// What operations hold of the coordinator's limits.
    pub fn under_way(&self) -> UnderWay {
        let (operations, of_tenants, bytes) = self.admission.held();
        UnderWay {
            operations,
            of_tenants,
            bytes,
            repairs: self.repairs.taken(),
            late_records: self.late_records.bytes(),
        }
    }

    /// Waits until no operation is under way. New operations are still admitted: stop accepting requests first.
    pub async fn drained(&self) {
        self.admission.drained().await;
    }

    /// Refuses new operations (as overloaded) and waits until those under way have ended. Operations are admitted again when the returned
    /// value is dropped.
    pub async fn hold(&self) -> Hold {
        self.admission.hold().await
    }

    fn overloaded(&self) -> Failure {
        Failure::Overloaded { retry_after: RETRY_AFTER }
    }

    /// `started`: when the operation was asked for, in monotonic microseconds.
    fn measured<T: 'static>(&self, operation: Operation, started: u64, respond: Respond<T>) -> Respond<T> {
        let metrics = Arc::clone(&self.metrics);
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
