//! The simulated environment of coordinators and nodes: every port over virtual time, seeded randomness and turmoil's network.
//! Nothing here replaces production code; it is only what that code depends on.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::Uri;
use tonic::transport::server::Connected;
use turmoil::net::TcpStream;
use witan_control::stores;
use witan_coordinate::World;
use witan_kernel::hook::{
    Asked, Hooks, Native, Pending, Plugins, PolicyAnswer, PolicyQuestion, ReplicaState, ResolverQuestion, Verdict,
};
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::name::{Key, NodeId, StoreId, TenantId};
use witan_kernel::port::{Clock, IdempotencyStore, Metadata, Randomness, StorageNode, StoreError, Tenants};
use witan_kernel::tenant::Tenant;
use witan_memory::MemoryIdempotency;
use witan_peer::{Connect, Connecting, Credential, Lanes, Met, endpoint};

/// Locks a mutex even if it is poisoned: a panic is reported as a violation anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Virtual time since the simulation began, microseconds; 0 outside of a host.
pub(crate) fn now_micros() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_micros() as u64)
}

/// Wall time at the start of every simulation, Unix microseconds.
const EPOCH_MICROS: i64 = 1_900_000_000_000_000;

/// A machine's clock: true time plus an error, microseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimClock(Arc<AtomicI64>);

impl SimClock {
    pub(crate) fn jump_by(&self, micros: i64) {
        self.0.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn wall_micros(&self) -> u64 {
        (EPOCH_MICROS + now_micros() as i64 + self.0.load(Ordering::Relaxed)) as u64
    }

    fn monotonic_micros(&self) -> u64 {
        now_micros()
    }
}

/// The random numbers of one simulation, shared by all of it: they depend on the seed and on the order of use, which is the same in
/// every run of a seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(Arc<Mutex<StdRng>>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        lock(&self.0).random_range(low..=high)
    }

    pub(crate) fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }
}

impl Randomness for Dice {
    fn sixteen(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        lock(&self.0).fill_bytes(&mut bytes);
        bytes
    }
}

/// Connects to storage nodes over turmoil's network.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) metadata: Arc<dyn Metadata>,
    /// Whether stores are compared with those on record.
    pub(crate) strict: bool,
}

impl Connect for Dial {
    fn connect(&self, node: &StorageNode) -> Connecting {
        // A cut connection is detected within one second instead of five, so that a simulation has more of them per second.
        let endpoint = endpoint(node).map(|endpoint| {
            endpoint
                .http2_keep_alive_interval(Duration::from_millis(400))
                .keep_alive_timeout(Duration::from_millis(500))
        });
        Box::pin(async move { Ok(Credential::default().over(endpoint?.connect_with_connector(Dialler).await?)) })
    }

    fn meet(&self, node: &NodeId, store: StoreId, commit: u64, before: u64) -> Pending<Result<Met, StoreError>> {
        if !self.strict {
            return Box::pin(std::future::ready(Ok(Met::whole(store))));
        }
        let (metadata, node) = (Arc::clone(&self.metadata), node.clone());
        Box::pin(async move { stores::meet(metadata.as_ref(), &node, store, commit, before).await })
    }
}

/// The connector that tonic calls.
#[derive(Debug, Clone, Copy)]
struct Dialler;

impl tower::Service<Uri> for Dialler {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().to_owned();
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// A connection that a node has accepted.
#[derive(Debug)]
pub(crate) struct Accepted(pub(crate) TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The idempotency store behind a network: steps take time, and in an outage some or all of them fail; a failed step may have been
/// carried out, may never be, or may be later.
#[derive(Debug, Clone)]
pub(crate) struct Idempotency {
    store: MemoryIdempotency,
    reserving: Arc<AtomicU64>,
    settling: Arc<AtomicU64>,
    dice: Dice,
}

impl Idempotency {
    pub(crate) fn new(dice: Dice) -> Self {
        let store = MemoryIdempotency::new(SimClock::default());
        Self { store, reserving: Arc::default(), settling: Arc::default(), dice }
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
        tokio::time::sleep(self.dice.millis(1, 5)).await;
        if self.fails(&step) {
            self.fail(name, step).await;
            return Err(StoreError::Unavailable("an outage".to_owned()));
        }
        let result = self.store.step(name, step).await;
        tokio::time::sleep(self.dice.millis(1, 5)).await;
        result
    }
}

/// The tenants that exist. Each is visible everywhere as soon as it is created, and never changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<Mutex<HashMap<TenantId, Arc<Tenant>>>>);

impl Known {
    pub(crate) fn add(&self, tenant: Tenant) {
        lock(&self.0).insert(tenant.id.clone(), Arc::new(tenant));
    }
}

impl Tenants for Known {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        lock(&self.0).get(id).cloned()
    }

    async fn tenant(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        Ok(self.cached(id))
    }
}

/// The tags in a value.
pub(crate) type Tags = BTreeSet<u32>;

pub(crate) fn to_value(tags: &Tags) -> Bytes {
    let tags: Vec<String> = tags.iter().map(u32::to_string).collect();
    Bytes::from(tags.join(","))
}

/// `None` for a value that no client of the simulation can have written.
pub(crate) fn from_value(value: &[u8]) -> Option<Tags> {
    std::str::from_utf8(value).ok()?.split(',').map(|tag| tag.parse().ok()).collect()
}

/// Hooks whose resolver returns the union of sets of tags.
#[derive(Debug, Clone, Copy)]
struct Union;

impl Hooks for Union {
    fn has_policy(&self) -> bool {
        false
    }

    fn policy(&self, _: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        Asked::Unbound
    }

    fn has_resolver(&self) -> bool {
        true
    }

    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        let united: Option<Vec<Tags>> = question.siblings.iter().map(|sibling| from_value(&sibling.value)).collect();
        let asked = match united {
            Some(sets) => Asked::Answered {
                answer: Verdict::Merged(to_value(&sets.into_iter().flatten().collect())),
                by: "union@native".into(),
            },
            None => Asked::Faulted { reason: "not a set of tags".into(), fail: false, by: "union@native".into() },
        };
        Box::pin(std::future::ready(asked))
    }

    fn partition_key(&self, _: &Key) -> Asked<Bytes> {
        Asked::Unbound
    }

    fn prefer(&self, _: &Key, _: &[(NodeId, ReplicaState)]) -> Asked<Vec<u8>> {
        Asked::Unbound
    }
}

/// Binds [`Union`] to some tenants.
#[derive(Debug, Clone)]
pub(crate) struct Bound(pub(crate) Vec<TenantId>);

impl Plugins for Bound {
    fn hooks(&self, tenant: &TenantId) -> Arc<dyn Hooks> {
        if self.0.contains(tenant) { Arc::new(Union) } else { Arc::new(Native) }
    }
}

/// The ports of the simulation.
pub(crate) struct Simulated;

impl World for Simulated {
    type Clock = SimClock;
    type Randomness = Dice;
    type Replicas = Arc<Lanes<SimClock, Dial>>;
    type Idempotency = Idempotency;
    type Tenants = Known;
}
