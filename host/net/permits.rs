//! Permits for connections, which bound how many a listener has. When all are taken, the connection whose peer has been silent
//! longest is evicted, so that clients which only hold connections open do not keep others out.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

/// How many connections are considered for an eviction: few enough to be cheap for each connection of a flood.
const SAMPLE: usize = 64;
/// A connection whose peer sent something more recently is not evicted. Most requests are answered much faster.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Permits {
    most: usize,
    silent_for: Duration,
    since: Instant,
    open: Mutex<Open>,
    pub(crate) counts: Counts,
}

/// Counters of connections.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: AtomicU64,
    /// Closed at once: no permit was free.
    pub(crate) full: AtomicU64,
    /// Evicted to make room.
    pub(crate) made_room: AtomicU64,
    /// The handshake failed or timed out.
    pub(crate) handshake: AtomicU64,
    /// Closed because the client sent too little in time.
    pub(crate) silent: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    entries: Vec<Arc<Entry>>,
    next: usize,
}

#[derive(Debug)]
struct Entry {
    /// Its position in [`Open::entries`]; changed only while [`Permits::open`] is locked.
    index: AtomicUsize,
    /// When its peer last sent something, in milliseconds since the listener started.
    heard_ms: AtomicU64,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

/// A connection's permit; returned when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
    entry: Arc<Entry>,
}

impl Permits {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, silent_for: SILENT_FOR, since: Instant::now(), open: Mutex::default(), counts: Counts::default() }
    }

    /// A permit, unless all are taken by connections that are in use.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Permit> {
        let mut open = self.open();
        if open.entries.len() >= self.most && !self.make_room(&mut open) {
            self.counts.full.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let entry = Arc::new(Entry {
            index: AtomicUsize::new(open.entries.len()),
            heard_ms: AtomicU64::new(self.now_ms()),
            evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        open.entries.push(Arc::clone(&entry));
        drop(open);
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Permit { permits: Arc::clone(self), entry })
    }

    /// How many connections are open.
    pub(crate) fn open_now(&self) -> usize {
        self.open().entries.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    fn make_room(&self, open: &mut Open) -> bool {
        let (count, first) = (open.entries.len(), open.next);
        open.next = first.wrapping_add(SAMPLE);
        let sample = (0..SAMPLE.min(count)).filter_map(|step| open.entries.get(first.wrapping_add(step) % count));
        let longest = sample.min_by_key(|entry| entry.heard_ms.load(Ordering::Relaxed)).cloned();
        let Some(entry) = longest else { return false };
        let silent_ms = self.now_ms().saturating_sub(entry.heard_ms.load(Ordering::Relaxed));
        if silent_ms < self.silent_for.as_millis() as u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(most: usize, silent_for: Duration) -> Arc<Permits> {
        Arc::new(Permits { silent_for, ..Permits::new(most) })
    }

    #[test]
    fn permits_are_returned_in_any_order() {
        let permits = of(3, SILENT_FOR);
        let (a, b, c) = (permits.take().unwrap(), permits.take().unwrap(), permits.take().unwrap());
        assert!(permits.take().is_none());
        drop(a);
        drop(c);
        assert_eq!(permits.open_now(), 1);
        let (d, e) = (permits.take().unwrap(), permits.take().unwrap());
        assert!(permits.take().is_none());
        drop((b, d, e));
        assert_eq!(permits.open_now(), 0);
        assert_eq!(permits.counts.full.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_one_that_was_silent_longest_makes_room() {
        let permits = of(100, Duration::ZERO);
        let taken: Vec<Permit> = (0..100).map(|_| permits.take().unwrap()).collect();
        for (index, permit) in taken.iter().enumerate() {
            permit.entry.heard_ms.store(if index == 40 { 0 } else { 1 }, Ordering::Relaxed);
        }
        let cx = Context::from_waker(std::task::Waker::noop());
        let newest = permits.take().expect("one makes room");
        let gone: Vec<usize> = (0..100).filter(|index| taken[*index].is_evicted(&cx)).collect();
        assert_eq!(gone, [40]);
        assert_eq!(permits.open_now(), 100);
        drop(taken);
        assert_eq!(permits.open_now(), 1);
        assert!(!newest.is_evicted(&cx));
    }
}
