//! Permits for connections, which bound how many a listener has, in all and of one peer address. When all are taken, a connection makes
//! room: the one that has been without a call longest, so that clients which only hold connections open do not keep others out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

use crate::bounds::Bounds;
use crate::untaken::{ANSWERED_WITHIN_MS, Large, TAKEN_WITHIN_MS};
use crate::window;

/// How many connections are considered for an eviction: few enough to be cheap for each connection of a flood.
const SAMPLE: usize = 64;
/// A connection that had a call, or whose peer sent something, more recently than this is not evicted. Most requests are answered much
/// faster.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// An address that has fewer connections than this may take a reserved place.
const FEW: usize = 3;
/// Most streams of all connections together that no credential is needed for, and of one peer address half of that: each takes some
/// 10 KiB.
const WATCHES: usize = 1000;

/// Most calls of all connections that are under way, or answered and not taken: each takes some 10 KiB. Of one peer address half of that.
/// More than there may be operations, sessions and incomplete requests.
const CALLS: usize = 1 << 16;
/// The last quarter of them is for connections that have at most this many: whoever has thousands leaves room for others, also where one
/// address may have all.
const FEW_CALLS: u32 = 16;
/// The same for calls that need no credential.
const OPEN_CALLS: usize = 1 << 12;

/// Most bytes of answers of one connection that its client has not taken: more than the largest answer.
const ANSWER_BYTES: usize = 64 << 20;
/// Most bytes of requests of one connection that wait for their turn: six of the largest, so that one client does not take what all share.
const WAITING_BYTES: usize = 64 << 20;
/// An answer that is larger, in bytes, has to be taken in time. Smaller ones fit into the buffers of any connection.
const LARGE_ANSWER: usize = 64 << 10;

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Permits {
    bounds: Bounds,
    silent_for: Duration,
    since: Instant,
    open: Mutex<Open>,
    calls: Calls,
    pub(crate) counts: Counts,
}

/// Calls under way, of all connections or of one address.
#[derive(Debug, Default)]
struct Calls {
    with_credential: AtomicUsize,
    without: AtomicUsize,
}

impl Calls {
    fn of(&self, open: bool) -> &AtomicUsize {
        if open { &self.without } else { &self.with_credential }
    }
}

/// Counters of connections.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: AtomicU64,
    /// Closed at once: no permit was free.
    pub(crate) full: AtomicU64,
    /// Closed at once: its address has as many connections as one may have.
    pub(crate) address: AtomicU64,
    /// Evicted to make room.
    pub(crate) made_room: AtomicU64,
    /// The handshake failed or timed out.
    pub(crate) handshake: AtomicU64,
    /// Closed because the client sent too little in time.
    pub(crate) silent: AtomicU64,
    /// Closed after it had been without a call for too long.
    pub(crate) idle: AtomicU64,
    /// Closed because the client did not read its answers.
    pub(crate) stalled: AtomicU64,
    /// Streams refused that need no credential: there were too many.
    pub(crate) watches: AtomicU64,
    /// Calls refused because too many were under way.
    pub(crate) calls: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    entries: Vec<Arc<Entry>>,
    next: usize,
    /// What each peer address has.
    by_address: BTreeMap<IpAddr, OfAddress>,
    /// Streams that need no credential, of all addresses.
    watches: usize,
    /// Receive windows.
    windows: usize,
    /// Their bytes beyond the least, of all addresses.
    beyond_least: usize,
}

/// What one peer address has open.
#[derive(Debug, Default)]
struct OfAddress {
    connections: usize,
    watches: usize,
    beyond_least: usize,
    calls: Arc<Calls>,
}

#[derive(Debug)]
struct Entry {
    /// Its position in [`Open::entries`]; changed only while [`Permits::open`] is locked.
    index: AtomicUsize,
    /// The address that it counts for.
    address: IpAddr,
    /// That address may have any number of connections.
    exempt: bool,
    /// The calls of that address.
    of_address: Arc<Calls>,
    /// When its peer last sent something, in milliseconds since the listener started.
    heard_ms: AtomicU64,
    /// Calls under way.
    calls: AtomicU32,
    /// When its last call ended, or it was accepted, in milliseconds since the listener started.
    used_ms: AtomicU64,
    /// It has had a call.
    called: AtomicBool,
    /// Its streams that need no credential.
    watches: AtomicUsize,
    /// Bytes of answers that its client has not taken.
    answers: AtomicUsize,
    /// The large ones, and the small ones that are the whole answer of a call, oldest first.
    large: Mutex<Large>,
    /// Bytes of its requests that wait for their turn.
    waiting: AtomicUsize,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

/// A connection's permit; returned when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
    entry: Arc<Entry>,
}

/// The use that is made of a connection. Clones are of the same connection.
#[derive(Debug, Clone, Default)]
pub struct Usage(Option<(Arc<Permits>, Arc<Entry>)>);

/// A call under way on a connection.
#[derive(Debug)]
pub struct Call(Usage);

/// A call that is counted among those of all connections, and of its address.
#[derive(Debug)]
pub struct CountedCall {
    call: Call,
    /// It needs no credential.
    open: bool,
    /// It counts for as many.
    weight: usize,
}

/// The answer of a call, which its client has to take in time.
#[derive(Debug)]
pub struct Answering {
    usage: Usage,
    number: u64,
}

/// Bytes of an answer that the client of a connection has not taken yet.
#[derive(Debug)]
pub struct Untaken {
    usage: Usage,
    bytes: usize,
    /// Its number among the large ones, if it is large.
    large: Option<u64>,
}

/// Bytes of a request of a connection that waits for its turn.
#[derive(Debug)]
pub struct Waits {
    usage: Usage,
    bytes: usize,
}

/// The receive window of a connection.
#[derive(Debug)]
pub struct Window {
    usage: Usage,
    /// Its bytes beyond the least.
    beyond: usize,
}

/// A stream under way on a connection that needs no credential.
#[derive(Debug)]
pub struct WatchCall(Usage);

impl Permits {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let (open, calls, counts) = (Mutex::default(), Calls::default(), Counts::default());
        Self { bounds, silent_for: SILENT_FOR, since: Instant::now(), open, calls, counts }
    }

    /// A permit for a connection from `address`, unless it has as many as one address may have, or all are taken by connections that are
    /// in use.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Permit> {
        let (address, exempt) = (unit(address), self.bounds.exempts(address));
        let mut open = self.open();
        let own = open.by_address.get(&address).map_or(0, |own| own.connections);
        if !exempt && self.bounds.of_address > 0 && own >= self.bounds.of_address {
            self.counts.address.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        // The last places are for addresses that have few. One would be too few: a probe connects again before its last connection has
        // been seen to end.
        let most = if own < FEW { self.bounds.connections } else { self.bounds.connections - self.bounds.reserved() };
        if open.entries.len() >= most && !self.make_room(&mut open) {
            self.counts.full.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let entry = Arc::new(Entry {
            index: AtomicUsize::new(open.entries.len()),
            address,
            exempt,
            of_address: open.by_address.get(&address).map_or_else(Arc::default, |own| Arc::clone(&own.calls)),
            heard_ms: AtomicU64::new(self.now_ms()),
            calls: AtomicU32::new(0),
            used_ms: AtomicU64::new(self.now_ms()),
            called: AtomicBool::new(false),
            watches: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            large: Mutex::default(),
            waiting: AtomicUsize::new(0),
            evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        open.entries.push(Arc::clone(&entry));
        open.count(address, |of| {
            of.connections += 1;
            of.calls = Arc::clone(&entry.of_address);
        });
        drop(open);
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Permit { permits: Arc::clone(self), entry })
    }

    /// How many connections are open.
    pub(crate) fn open_now(&self) -> usize {
        self.open().entries.len()
    }

    /// Bytes that the clients of all connections may send before anybody reads them.
    pub(crate) fn windows(&self) -> usize {
        let open = self.open();
        open.windows * window::LEAST + open.beyond_least
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    /// Evicts one of a sample: the one that has been without a call longest, or else, if all have calls, the one whose peer has been silent
    /// longest.
    fn make_room(&self, open: &mut Open) -> bool {
        let (count, first, now) = (open.entries.len(), open.next, self.now_ms());
        open.next = first.wrapping_add(SAMPLE);
        let sample = (0..SAMPLE.min(count)).filter_map(|step| open.entries.get(first.wrapping_add(step) % count));
        let unused = sample.map(|entry| (entry.unused_since(), entry));
        let longest = unused.min_by_key(|((in_use, since), _)| (*in_use, *since));
        let Some(((_, since), entry)) = longest.map(|(unused, entry)| (unused, Arc::clone(entry))) else {
            return false;
        };
        if now.saturating_sub(since) < self.silent_for.as_millis() as u64 {
            return false;
        }
        open.remove(&entry);
        entry.evicted.store(true, Ordering::Release);
        entry.waker.wake();
        self.counts.made_room.fetch_add(1, Ordering::Relaxed);
        true
    }
}

impl Open {
    fn remove(&mut self, entry: &Entry) {
        let index = entry.index.load(Ordering::Relaxed);
        self.entries.swap_remove(index);
        if let Some(moved) = self.entries.get(index) {
            moved.index.store(index, Ordering::Relaxed);
        }
        self.count(entry.address, |of| of.connections -= 1);
    }

    fn count(&mut self, address: IpAddr, change: impl FnOnce(&mut OfAddress)) {
        let of = self.by_address.entry(address).or_default();
        change(of);
        if (of.connections, of.watches, of.beyond_least) == (0, 0, 0) {
            self.by_address.remove(&address);
        }
    }
}

impl Entry {
    fn large(&self) -> MutexGuard<'_, Large> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has a call, and since when it has been without one, or else since when its peer has been silent.
    fn unused_since(&self) -> (bool, u64) {
        match self.calls.load(Ordering::Relaxed) {
            0 => (false, self.used_ms.load(Ordering::Relaxed)),
            _ => (true, self.heard_ms.load(Ordering::Relaxed)),
        }
    }
}

/// The unit in which peer addresses are counted: an IPv4 address, or the network of 64 bits that one site has of IPv6.
pub fn unit(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

impl Permit {
    /// The peer has sent something.
    pub(crate) fn heard(&self) {
        self.entry.heard_ms.store(self.permits.now_ms(), Ordering::Relaxed);
    }

    /// Whether the connection was evicted; if not, the task is woken when it is.
    pub(crate) fn is_evicted(&self, cx: &Context<'_>) -> bool {
        self.entry.waker.register(cx.waker());
        self.entry.evicted.load(Ordering::Acquire)
    }

    /// How long it has been without a call; zero while it has one.
    pub(crate) fn idle_for(&self) -> Duration {
        match self.entry.unused_since() {
            (true, _) => Duration::ZERO,
            (false, since) => Duration::from_millis(self.permits.now_ms().saturating_sub(since)),
        }
    }

    /// Whether its client has not taken a large answer in time.
    pub(crate) fn is_stalled(&self) -> bool {
        self.entry.large().is_stalled(self.permits.now_ms())
    }

    /// Whether it has had a call.
    pub(crate) fn was_called(&self) -> bool {
        self.entry.called.load(Ordering::Relaxed)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage(Some((Arc::clone(&self.permits), Arc::clone(&self.entry))))
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.permits.counts
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.permits.open();
        // An evicted one was removed already.
        if !self.entry.evicted.load(Ordering::Acquire) {
            open.remove(&self.entry);
        }
    }
}

impl Usage {
    /// A call begins. The connection is in use until the returned value is dropped.
    pub fn call(&self) -> Call {
        if let Some((_, entry)) = &self.0 {
            entry.calls.fetch_add(1, Ordering::Relaxed);
            entry.called.store(true, Ordering::Relaxed);
        }
        Call(self.clone())
    }

    /// A call begins, as in [`Self::call`], that is counted until its answer has been taken. `open`: it needs no credential. One that
    /// takes more than others counts for `weight` calls. `None` if there are too many: of its address, or of all.
    pub fn counted_call(&self, open: bool, weight: usize) -> Option<CountedCall> {
        let counted = CountedCall { call: self.call(), open, weight };
        let Some((permits, entry)) = &self.0 else { return Some(counted) };
        let most = if open { OPEN_CALLS } else { CALLS };
        let own = entry.of_address.of(open).fetch_add(weight, Ordering::AcqRel) + weight;
        let all = permits.calls.of(open).fetch_add(weight, Ordering::AcqRel) + weight;
        // If refused, it is dropped here and the counts are undone.
        let few = entry.calls.load(Ordering::Relaxed) <= FEW_CALLS;
        let fits = all <= if few { most } else { most / 4 * 3 } && (entry.exempt || own <= most / 2);
        permits.counts.calls.fetch_add(u64::from(!fits), Ordering::Relaxed);
        fits.then_some(counted)
    }

    /// The whole answer of a call waits for the client until the returned value is dropped.
    pub fn answering(&self) -> Option<Answering> {
        let (permits, entry) = self.0.as_ref()?;
        let number = entry.large().enter(0, ANSWERED_WITHIN_MS, permits.now_ms());
        Some(Answering { usage: self.clone(), number })
    }

    /// An answer of this size waits for the client until the returned value is dropped. `None` if too many bytes wait already.
    pub fn answer(&self, bytes: usize) -> Option<Untaken> {
        let Some((permits, entry)) = &self.0 else {
            return Some(Untaken { usage: self.clone(), bytes, large: None });
        };
        let waiting = entry.answers.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if waiting > ANSWER_BYTES {
            entry.answers.fetch_sub(bytes, Ordering::AcqRel);
            return None;
        }
        let large =
            (bytes > LARGE_ANSWER).then(|| entry.large().enter(bytes as u64, TAKEN_WITHIN_MS, permits.now_ms()));
        Some(Untaken { usage: self.clone(), bytes, large })
    }

    /// A request of this size waits for its turn until the returned value is dropped. `None` if too many bytes wait already.
    pub fn waiting(&self, bytes: usize) -> Option<Waits> {
        let waits = Waits { usage: self.clone(), bytes };
        // If refused, it is dropped here and the count is undone.
        let before = self.0.as_ref().map_or(0, |(_, entry)| entry.waiting.fetch_add(bytes, Ordering::AcqRel));
        (before + bytes <= WAITING_BYTES).then_some(waits)
    }

    /// A receive window for the connection, until the returned value is dropped.
    pub fn window(&self) -> Window {
        let Some((permits, entry)) = &self.0 else { return Window { usage: self.clone(), beyond: 0 } };
        let mut open = permits.open();
        let own = open.by_address.get(&entry.address).map_or(0, |own| own.beyond_least);
        let beyond = window::beyond_least(open.beyond_least, (!entry.exempt).then_some(own));
        open.windows += 1;
        open.beyond_least += beyond;
        open.count(entry.address, |of| of.beyond_least += beyond);
        Window { usage: self.clone(), beyond }
    }

    /// A stream begins that needs no credential. `None` if there are too many: of this connection, of its address, or of all.
    pub fn watch(&self) -> Option<WatchCall> {
        if let Some((permits, entry)) = &self.0 {
            let mut open = permits.open();
            let own = open.by_address.get(&entry.address).map_or(0, |own| own.watches);
            let of_address = if entry.exempt { WATCHES } else { WATCHES / 2 };
            let of_connection = entry.watches.load(Ordering::Relaxed);
            if of_connection >= permits.bounds.watches || own >= of_address || open.watches >= WATCHES {
                permits.counts.watches.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            open.watches += 1;
            entry.watches.fetch_add(1, Ordering::Relaxed);
            open.count(entry.address, |of| of.watches += 1);
        }
        Some(WatchCall(self.clone()))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some((permits, entry)) = &self.0.0 {
            entry.used_ms.store(permits.now_ms(), Ordering::Relaxed);
            entry.calls.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl CountedCall {
    /// The use that is made of its connection.
    pub fn usage(&self) -> &Usage {
        &self.call.0
    }
}

impl Drop for CountedCall {
    fn drop(&mut self) {
        if let Some((permits, entry)) = &self.call.0.0 {
            entry.of_address.of(self.open).fetch_sub(self.weight, Ordering::AcqRel);
            permits.calls.of(self.open).fetch_sub(self.weight, Ordering::AcqRel);
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some((_, entry)) = &self.usage.0 {
            entry.large().leave(self.number);
        }
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        let Some((_, entry)) = &self.usage.0 else { return };
        entry.answers.fetch_sub(self.bytes, Ordering::AcqRel);
        if let Some(large) = self.large {
            entry.large().leave(large);
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some((_, entry)) = &self.usage.0 {
            entry.waiting.fetch_sub(self.bytes, Ordering::AcqRel);
        }
    }
}

impl Window {
    /// Its bytes.
    pub fn bytes(&self) -> usize {
        window::LEAST + self.beyond
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some((permits, entry)) = &self.usage.0 {
            let mut open = permits.open();
            open.windows -= 1;
            open.beyond_least -= self.beyond;
            open.count(entry.address, |of| of.beyond_least -= self.beyond);
        }
    }
}

impl Drop for WatchCall {
    fn drop(&mut self) {
        if let Some((permits, entry)) = &self.0.0 {
            let mut open = permits.open();
            open.watches -= 1;
            entry.watches.fetch_sub(1, Ordering::Relaxed);
            open.count(entry.address, |of| of.watches -= 1);
        }
    }
}

#[cfg(test)]
mod tests;
