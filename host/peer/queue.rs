//! What waits for a lane, one line for each tenant, served in turn: whoever sends much does not make others wait, and is the first to be
//! refused when there is not enough room. Deficit round robin: Shreedhar and Varghese 1995.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use smallvec::{SmallVec, smallvec};
use tokio::sync::Notify;
use witan_kernel::name::TenantId;
use witan_kernel::port::Reply;
use witan_kernel::replica::Request;
use witan_kernel::sync::lock;
use witan_origin::Traced;

/// Most requests waiting to be sent.
const ITEMS: usize = 8192;
/// Most bytes of requests waiting to be sent.
const BYTES: usize = 64 << 20;
/// Bytes that a tenant may send in its turn: some tens of small requests. A larger request takes several turns.
const QUANTUM: usize = 16 << 10;

/// Most spare lines, and the most requests that one has room for.
const SPARE: usize = 64;

/// A request to be sent over a lane.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) request: Request,
    pub(super) deadline: u64,
    pub(super) bytes: usize,
    pub(super) reply: Reply,
    /// The span that waits for its answer, if the operation is traced.
    pub(super) traced: Option<Traced>,
}

/// The sending end. The queue closes when it is dropped.
#[derive(Debug)]
pub(super) struct Sender(Arc<Queue>);

/// The receiving end: what is left in the queue is dropped with it.
#[derive(Debug)]
pub(super) struct Receiver(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    lines: Mutex<Lines>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    of: HashMap<TenantId, Line>,
    /// The tenants that have a line, in the order of their turns.
    turns: VecDeque<TenantId>,
    items: usize,
    bytes: usize,
    closed: bool,
    /// Empty lines, which save allocations: in a lane that keeps up, lines come and go all the time.
    spare: Vec<VecDeque<Outgoing>>,
}

#[derive(Debug, Default)]
struct Line {
    items: VecDeque<Outgoing>,
    bytes: usize,
    /// Bytes that it may send before the next tenant has its turn.
    credit: usize,
}

/// Why a request was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no room.
    Full,
    /// The receiving end is gone.
    Closed,
}

/// An empty queue.
pub(super) fn queue() -> (Sender, Receiver) {
    let queue = Arc::new(Queue::default());
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl Sender {
    /// Queues a request. Returns those that have no room, and why: the newest ones of tenants that have more waiting, or this one.
    pub(super) fn send(&self, outgoing: Outgoing) -> (SmallVec<[Outgoing; 0]>, Refused) {
        let mut lines = lock(&self.0.lines);
        if lines.closed {
            return (smallvec![outgoing], Refused::Closed);
        }
        let first = lines.items == 0;
        let mut refused = SmallVec::new();
        while !lines.has_room(&outgoing) {
            match lines.make_room(&outgoing) {
                Some(newest) => refused.push(newest),
                None => {
                    refused.push(outgoing);
                    return (refused, Refused::Full);
                }
            }
        }
        lines.push(outgoing);
        drop(lines);
        if first {
            self.0.arrived.notify_one();
        }
        (refused, Refused::Full)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        lock(&self.0.lines).closed = true;
        self.0.arrived.notify_one();
    }
}

impl Receiver {
    /// Waits for requests, and appends at most `most` of them, or as many as there are. Returns how many; 0 once the queue is
    /// closed and empty. Nothing is lost if the future is dropped.
    pub(super) async fn recv_many(&mut self, into: &mut Vec<Outgoing>, most: usize) -> usize {
        loop {
            {
                let mut lines = lock(&self.0.lines);
                let received = lines.take(into, most);
                if received > 0 || lines.closed {
                    return received;
                }
            }
            self.0.arrived.notified().await;
        }
    }

    /// The same for one; `None` once the queue is closed and empty.
    pub(super) async fn recv(&mut self) -> Option<Outgoing> {
        let mut one = Vec::new();
        self.recv_many(&mut one, 1).await;
        one.pop()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let left = {
            let mut lines = lock(&self.0.lines);
            lines.closed = true;
            std::mem::take(&mut lines.of)
        };
        // Each is answered as it is dropped, which may run anybody's code.
        drop(left);
    }
}

impl Lines {
    fn push(&mut self, outgoing: Outgoing) {
        self.items += 1;
        self.bytes += outgoing.bytes;
        let tenant = outgoing.request.place.tenant();
        let turns = &mut self.turns;
        let line = self.of.entry(tenant).or_insert_with_key(|tenant| {
            turns.push_back(tenant.clone());
            Line { credit: QUANTUM, items: self.spare.pop().unwrap_or_default(), bytes: 0 }
        });
        line.bytes += outgoing.bytes;
        line.items.push_back(outgoing);
    }

    fn has_room(&self, incoming: &Outgoing) -> bool {
        // A request that is larger than the bound is sent alone.
        self.items < ITEMS && (self.items == 0 || self.bytes + incoming.bytes <= BYTES)
    }

    /// Removes the newest request of the tenant with most bytes waiting, if it has more than the tenant of `incoming` would have.
    fn make_room(&mut self, incoming: &Outgoing) -> Option<Outgoing> {
        let own = self.of.get(&incoming.request.place.tenant()).map_or(0, |line| line.bytes) + incoming.bytes;
        // Whoever has clearly more than others cannot make them give way: there is no need to look for the longest line.
        if own * self.turns.len() > 2 * self.bytes {
            return None;
        }
        let longest = self.turns.iter().max_by_key(|tenant| self.of.get(*tenant).map_or(0, |line| line.bytes))?.clone();
        let line = self.of.get_mut(&longest).filter(|line| line.bytes > own)?;
        let newest = line.items.pop_back()?;
        line.bytes -= newest.bytes;
        if line.items.is_empty() {
            self.of.remove(&longest);
            self.turns.retain(|tenant| *tenant != longest);
        }
        self.items -= 1;
        self.bytes -= newest.bytes;
        Some(newest)
    }

    fn take(&mut self, into: &mut Vec<Outgoing>, most: usize) -> usize {
        let mut taken = 0;
        while taken < most
            && let Some(tenant) = self.turns.front()
        {
            // Every tenant in `turns` has a line with something in it.
            let Some(line) = self.of.get_mut(tenant) else { break };
            while taken < most
                && let Some(next) = line.items.pop_front_if(|next| next.bytes <= line.credit)
            {
                line.credit -= next.bytes;
                line.bytes -= next.bytes;
                self.items -= 1;
                self.bytes -= next.bytes;
                into.push(next);
                taken += 1;
            }
            if line.items.is_empty() {
                if let Some(line) = self.turns.pop_front().and_then(|tenant| self.of.remove(&tenant))
                    && self.spare.len() < SPARE
                    && line.items.capacity() <= SPARE
                {
                    self.spare.push(line.items);
                }
            } else if taken < most {
                // Its turn has ended. Alone, it has the next one at once.
                line.credit += QUANTUM;
                self.turns.rotate_left(1);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use witan_kernel::name::{Key, NodeId};
    use witan_kernel::port::Collect;
    use witan_kernel::replica::{Ask, Outcome, Place};

    use super::*;

    struct Unheard;

    impl Collect for Unheard {
        fn collect(&self, _: u32, _: Outcome) {}
    }

    fn of(tenant: &str, bytes: usize) -> Outgoing {
        let place = Place { token: 0, space: TenantId::new(tenant).unwrap().into(), key: Key::new("k").unwrap() };
        let reply = Reply::new(Arc::new(Unheard), 0, NodeId::new("n").unwrap());
        Outgoing { request: Request { place, epoch: 0, ask: Ask::Read }, deadline: 0, bytes, reply, traced: None }
    }

    fn names(of: &[Outgoing]) -> String {
        of.iter().map(|outgoing| outgoing.request.place.space.as_str()).collect()
    }

    /// How many of a tenant are among these.
    fn count(taken: &[Outgoing], tenant: &str) -> usize {
        taken.iter().filter(|outgoing| outgoing.request.place.space.as_str() == tenant).count()
    }

    #[tokio::test]
    async fn tenants_have_their_turns() {
        let (sender, mut receiver) = queue();
        (0..5).for_each(|_| assert!(sender.send(of("a", QUANTUM / 2)).0.is_empty()));
        (0..2).for_each(|_| assert!(sender.send(of("b", 100)).0.is_empty()));
        assert!(sender.send(of("c", 2 * QUANTUM + 1)).0.is_empty());
        let mut taken = Vec::new();
        assert_eq!(receiver.recv_many(&mut taken, 3).await, 3);
        assert_eq!(names(&taken), "aab", "two of a's use up its turn");
        assert_eq!(receiver.recv_many(&mut taken, 100).await, 5);
        assert_eq!(names(&taken), "aabbaaac", "a large one waits until its tenant has saved enough turns");
        assert!(sender.send(of("a", 1)).0.is_empty());
        drop(sender);
        assert_eq!(receiver.recv().await.map(|left| left.bytes), Some(1));
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn the_longest_line_gives_way() {
        let (sender, mut receiver) = queue();
        for _ in 0..ITEMS {
            assert!(sender.send(of("busy", 100)).0.is_empty());
        }
        let (refused, why) = sender.send(of("busy", 100));
        assert_eq!((names(&refused).as_str(), why), ("busy", Refused::Full));
        let (refused, why) = sender.send(of("quiet", 100));
        assert_eq!((names(&refused).as_str(), why), ("busy", Refused::Full));
        assert!(names(&sender.send(of("quiet", 100 * ITEMS)).0) == "quiet", "it would have more than the other");
        let mut taken = Vec::new();
        receiver.recv_many(&mut taken, ITEMS).await;
        assert_eq!((taken.len(), count(&taken, "quiet")), (ITEMS, 1));
    }

    #[tokio::test]
    async fn bytes_are_bounded_too() {
        const LARGE: usize = 8 << 20;
        let (sender, mut receiver) = queue();
        assert!(sender.send(of("a", 2 * BYTES)).0.is_empty(), "alone, any size");
        assert_eq!(receiver.recv().await.map(|sent| sent.bytes), Some(2 * BYTES));
        (0..BYTES / LARGE).for_each(|_| assert!(sender.send(of("busy", LARGE)).0.is_empty()));
        assert_eq!(names(&sender.send(of("quiet", LARGE + 1)).0), "busybusy");
        assert_eq!(names(&sender.send(of("busy", LARGE)).0), "busy");
        let lines = lock(&sender.0.lines);
        assert!(lines.bytes <= BYTES && lines.turns.len() == 2);
        drop(lines);
        drop(receiver);
        assert_eq!(sender.send(of("a", 1)).1, Refused::Closed);
    }
}
