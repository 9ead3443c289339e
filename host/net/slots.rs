//! How many connections a listener has. When all places are taken, the one whose peer has been silent longest makes room,
//! so that a crowd that only holds connections open does not keep others out.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;

/// Connections that are looked at to find one that makes room: few enough to be cheap for each connection of a flood.
const SAMPLE: usize = 64;
/// A connection that has said something more recently does not make room. Most requests are answered much faster.
const SILENT_FOR: Duration = Duration::from_secs(5);

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Slots {
    most: usize,
    silent_for: Duration,
    since: Instant,
    open: Mutex<Open>,
    pub(crate) counts: Counts,
}

/// What has happened to connections. All only grow.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: AtomicU64,
    /// Closed at once: no place was free.
    pub(crate) full: AtomicU64,
    /// Closed to make room.
    pub(crate) made_room: AtomicU64,
    /// The handshake failed, or took too long.
    pub(crate) handshake: AtomicU64,
    /// Closed because nothing came.
    pub(crate) silent: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    entries: Vec<Arc<Entry>>,
    next: usize,
}

#[derive(Debug)]
struct Entry {
    /// Where it stands; changed under the lock only.
    index: AtomicUsize,
    /// When its peer last said something, in milliseconds of the listener's time.
    heard_ms: AtomicU64,
    must_go: AtomicBool,
    waker: AtomicWaker,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    entry: Arc<Entry>,
}

impl Slots {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, silent_for: SILENT_FOR, since: Instant::now(), open: Mutex::default(), counts: Counts::default() }
    }

    /// A place, unless all are taken by connections that are in use.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Slot> {
        let mut open = self.open();
        if open.entries.len() >= self.most && !self.make_room(&mut open) {
            self.counts.full.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let entry = Arc::new(Entry {
            index: AtomicUsize::new(open.entries.len()),
            heard_ms: AtomicU64::new(self.now_ms()),
            must_go: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        open.entries.push(Arc::clone(&entry));
        drop(open);
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        Some(Slot { slots: Arc::clone(self), entry })
    }

    /// Connections now.
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
        let looked_at = (0..SAMPLE.min(count)).filter_map(|step| open.entries.get(first.wrapping_add(step) % count));
        let longest = looked_at.min_by_key(|entry| entry.heard_ms.load(Ordering::Relaxed)).cloned();
        let Some(entry) = longest else { return false };
        let silent_ms = self.now_ms().saturating_sub(entry.heard_ms.load(Ordering::Relaxed));
        if silent_ms < self.silent_for.as_millis() as u64 {
            return false;
        }
        open.remove(&entry);
        entry.must_go.store(true, Ordering::Release);
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

impl Slot {
    /// The peer has said something.
    pub(crate) fn heard(&self) {
        self.entry.heard_ms.store(self.slots.now_ms(), Ordering::Relaxed);
    }

    /// True when the connection must make room; otherwise the task is woken when it must.
    pub(crate) fn must_go(&self, cx: &Context<'_>) -> bool {
        self.entry.waker.register(cx.waker());
        self.entry.must_go.load(Ordering::Acquire)
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.slots.counts
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.slots.open();
        // One that made room has left already.
        if !self.entry.must_go.load(Ordering::Acquire) {
            open.remove(&self.entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(most: usize, silent_for: Duration) -> Arc<Slots> {
        Arc::new(Slots { silent_for, ..Slots::new(most) })
    }

    #[test]
    fn places_are_given_back_in_any_order() {
        let slots = of(3, SILENT_FOR);
        let (a, b, c) = (slots.take().unwrap(), slots.take().unwrap(), slots.take().unwrap());
        assert!(slots.take().is_none());
        drop(a);
        drop(c);
        assert_eq!(slots.open_now(), 1);
        let (d, e) = (slots.take().unwrap(), slots.take().unwrap());
        assert!(slots.take().is_none());
        drop((b, d, e));
        assert_eq!(slots.open_now(), 0);
        assert_eq!(slots.counts.full.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_one_that_was_silent_longest_makes_room() {
        let slots = of(100, Duration::ZERO);
        let taken: Vec<Slot> = (0..100).map(|_| slots.take().unwrap()).collect();
        for (index, slot) in taken.iter().enumerate() {
            slot.entry.heard_ms.store(if index == 40 { 0 } else { 1 }, Ordering::Relaxed);
        }
        let cx = Context::from_waker(std::task::Waker::noop());
        let newest = slots.take().expect("one makes room");
        let gone: Vec<usize> = (0..100).filter(|index| taken[*index].must_go(&cx)).collect();
        assert_eq!(gone, [40]);
        assert_eq!(slots.open_now(), 100);
        drop(taken);
        assert_eq!(slots.open_now(), 1);
        assert!(!newest.must_go(&cx));
    }
}
