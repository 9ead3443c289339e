//! The simulated environment of coordinators and nodes: every port over virtual time, seeded randomness and turmoil's network.
//! Nothing here replaces production code; it is only what that code depends on.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tonic::transport::Uri;
use tonic::transport::server::Connected;
use turmoil::net::TcpStream;
use witan_control::stores;
use witan_kernel::hook::Pending;
use witan_kernel::name::{Key, NodeId, StoreId};
use witan_kernel::port::{Clock, Metadata, Randomness, StorageNode, StoreError};
use witan_peer::{Connect, Connecting, Credential, Met, endpoint};

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

/// A machine's clock: true time plus an error, which jumps and drifts.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimClock(Arc<ClockError>);

#[derive(Debug, Default)]
struct ClockError {
    /// Microseconds.
    offset: AtomicI64,
    /// Parts per million.
    drift: AtomicI64,
    /// What its monotonic time shows at the start of the simulation, microseconds: each machine counts from a moment of its own.
    began: u64,
}

impl SimClock {
    /// A clock whose monotonic time began this long before the simulation.
    pub(crate) fn running_for(began: u64) -> Self {
        Self(Arc::new(ClockError { began, ..ClockError::default() }))
    }

    pub(crate) fn jump_by(&self, micros: i64) {
        self.0.offset.fetch_add(micros, Ordering::Relaxed);
    }

    /// From the beginning of the simulation on, the clock is too fast by this much, in parts per million.
    pub(crate) fn drift_by(&self, ppm: i64) {
        self.0.drift.store(ppm, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn wall_micros(&self) -> u64 {
        let passed = now_micros() as i64;
        let drifted = passed / 1000 * self.0.drift.load(Ordering::Relaxed) / 1000;
        (EPOCH_MICROS + passed + drifted + self.0.offset.load(Ordering::Relaxed)) as u64
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.began + now_micros()
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
    /// Whether the metadata store cannot be reached.
    pub(crate) away: Arc<AtomicBool>,
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
        if self.away.load(Ordering::Relaxed) {
            return Box::pin(std::future::ready(Err(StoreError::Unavailable("an outage".to_owned()))));
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

/// The key with this index.
pub(crate) fn key(index: usize) -> Key {
    Key::from_trusted(Bytes::from(format!("key-{index}")))
}

/// The tags in a value.
pub(crate) type Tags = BTreeSet<u32>;

/// A value that holds these tags and, if it is to be longer, bytes that follow from them.
pub(crate) fn to_value(tags: &Tags, bytes: usize) -> Bytes {
    let text: Vec<String> = tags.iter().map(u32::to_string).collect();
    let mut value = text.join(",").into_bytes();
    if value.len() < bytes {
        value.push(FILLED);
        let filler = filler(tags);
        value.resize(bytes.max(value.len()), filler);
    }
    Bytes::from(value)
}

/// Separates the tags of a value from the bytes that make it long.
const FILLED: u8 = b';';

fn filler(tags: &Tags) -> u8 {
    b'a' + (tags.iter().sum::<u32>() % 26) as u8
}

/// `None` for a value that no client of the simulation can have written.
pub(crate) fn from_value(value: &[u8]) -> Option<Tags> {
    let text = value.iter().position(|byte| *byte == FILLED).unwrap_or(value.len());
    let (text, rest) = value.split_at(text);
    let tags: Tags = std::str::from_utf8(text).ok()?.split(',').map(|tag| tag.parse().ok()).collect::<Option<_>>()?;
    let filler = filler(&tags);
    rest.iter().skip(1).all(|byte| *byte == filler).then_some(tags)
}

/// Closed while a machine's process is stopped: nothing that it has asked for, and nothing that it has answered, passes.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(true)))
    }
}

impl Gate {
    pub(crate) fn set_open(&self, open: bool) {
        self.0.send_replace(open);
    }

    pub(crate) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn opened(&self) {
        // This cannot fail, because the sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}
