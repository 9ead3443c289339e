//! How fast the first copies of tenants read, which depends on how nodes answer and how full their disks are, and in how large pieces: what
//! is read at once makes clients wait, whatever the rate is on average.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use witan_coordinate::World;
use witan_kernel::name::NodeId;
use witan_kernel::placement::leader::Plan;
use witan_kernel::placement::rate::{Throttle, is_full, is_slow};
use witan_kernel::port::{Clock, Replicas};
use witan_kernel::sync::lock;

use super::Moves;
use crate::sweep::pace::BytePace;

/// How often it is looked whether a disk has room again.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of a page of the last copies, and of an unlimited first one: small requests that arrive meanwhile wait for less than a
/// millisecond, and reading it still takes longer than asking for it.
pub(super) const PAGE: u32 = 128 << 10;
/// Bytes of a page at least, some tens of small records: asking for fewer costs more than reading them.
const LEAST_PAGE: u64 = 16 << 10;
/// A page is what is read in a hundredth of a second.
const PAGES_PER_SECOND: u64 = 100;

/// What the latencies of nodes were before anything was copied, and the rate since then: from one tenant to the next.
#[derive(Default)]
pub(super) struct Usual(Mutex<Known>);

#[derive(Default)]
struct Known {
    p99_us: BTreeMap<NodeId, u32>,
    throttle: Throttle,
}

impl Usual {
    /// Nothing is copied: what the nodes do from now on is usual.
    pub(super) fn forget(&self) {
        *lock(&self.0) = Known::default();
    }
}

/// The rate of a tenant's first copy.
pub(super) struct Rate<'a, W: World> {
    moves: &'a Moves<W>,
    plan: &'a Plan,
    pace: Mutex<Pace>,
    /// It waits for room on a disk.
    paused: AtomicBool,
}

/// How much may be read when.
struct Pace {
    bytes: BytePace,
    /// Bytes of a turn, about: the average of those before, of which a later one counts for more.
    turn: u64,
    /// Bytes of a page.
    page: u32,
}

/// A turn at reading, which was paid for in advance.
#[derive(Debug)]
pub(super) struct Turn {
    expected: u64,
    /// Bytes of each page.
    pub(super) page: u32,
}

impl<'a, W: World> Rate<'a, W> {
    pub(super) fn new(moves: &'a Moves<W>, plan: &'a Plan) -> Self {
        let mut known = lock(&moves.usual.0);
        for node in plan.old_nodes().into_iter().chain(plan.new_nodes()) {
            if let Some(usual) = moves.replicas().usual_p99_us(&node) {
                known.p99_us.entry(node).or_insert(usual);
            }
        }
        drop(known);
        let pace = Pace { bytes: BytePace::new(0), turn: 0, page: LEAST_PAGE as u32 };
        Self { moves, plan, pace: Mutex::new(pace), paused: AtomicBool::new(false) }
    }

    /// Waits for a turn at reading pages. What it will read is paid for before: several that wait do not all go on at the same moment.
    pub(super) async fn turn(&self) -> Turn {
        loop {
            let due = match self.full_until() {
                Some(look) => look,
                None => {
                    let Pace { bytes, turn, page } = &mut *lock(&self.pace);
                    let Some(due) = bytes.due() else {
                        bytes.charge(*turn);
                        return Turn { expected: *turn, page: *page };
                    };
                    due
                }
            };
            sleep_until(due).await;
        }
    }

    /// In a turn, these bytes have been read, of this number of replicas.
    pub(super) fn read(&self, turn: &Turn, bytes: u64, replicas: usize) {
        let (allowed, now) = (self.moves.config().bytes_per_second, self.now());
        let mut slow = None;
        let per_second = {
            let Known { p99_us, throttle } = &mut *lock(&self.moves.usual.0);
            throttle.rate(now, allowed, || {
                slow = Some(self.slowest(p99_us));
                slow.as_ref().is_some_and(Option::is_some)
            })
        };
        if let Some(node) = slow {
            self.moves.metrics().copy_rate.set(per_second as f64);
            let why = node.filter(|_| per_second < allowed);
            self.moves.board.slowed(why.map(|node| format!("slowly, since node {node} answers slowly")));
        }
        let mut pace = lock(&self.pace);
        pace.bytes.limit(per_second);
        pace.page = page(per_second, replicas);
        pace.turn = (3 * pace.turn + bytes) / 4;
        match bytes.checked_sub(turn.expected) {
            Some(more) => pace.bytes.charge(more),
            None => pace.bytes.give_back(turn.expected - bytes),
        }
    }

    /// A node that answers slowly.
    fn slowest(&self, usual: &BTreeMap<NodeId, u32>) -> Option<NodeId> {
        let is = |(node, usual): &(&NodeId, &u32)| is_slow(**usual, self.moves.replicas().state(node).latency_p99_us);
        usual.iter().find(is).map(|(node, _)| node.clone())
    }

    /// When to look again, while a disk is full.
    fn full_until(&self) -> Option<Instant> {
        if let Some((node, percent)) = self.full() {
            let why = format!("pauses: the disk of node {node}, which gets records, is {percent:.0} % full");
            self.moves.board.slowed(Some(format!("{why}; make room there, or cancel the change")));
            if !self.paused.swap(true, Ordering::Relaxed) {
                tracing::warn!(%node, "{why}");
            }
            return Some(Instant::now() + LOOK);
        }
        if self.paused.swap(false, Ordering::Relaxed) {
            self.moves.board.slowed(None);
        }
        None
    }

    /// A node that gets records and has no room for them.
    fn full(&self) -> Option<(&NodeId, f32)> {
        let full_disk = self.moves.config().full_disk;
        let percent = |node: &'a NodeId| Some((node, self.moves.replicas().disk_percent(node)?));
        self.plan.entering.keys().filter_map(percent).find(|(_, percent)| is_full(*percent, full_disk))
    }

    fn now(&self) -> u64 {
        self.moves.coordinator().ports().clock.monotonic_micros()
    }
}

/// Bytes of a page at a rate, if there is one of each of these replicas in a turn.
fn page(per_second: u64, replicas: usize) -> u32 {
    match per_second / PAGES_PER_SECOND / replicas.max(1) as u64 {
        _ if per_second == 0 => PAGE,
        bytes => bytes.clamp(LEAST_PAGE, u64::from(PAGE)) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_what_is_read_in_a_hundredth_of_a_second() {
        assert_eq!((page(0, 3), page(u64::MAX, 1)), (PAGE, PAGE));
        assert_eq!(page(12_000_000, 3), 40_000);
        assert_eq!(
            (page(1 << 20, 3), page(1, 3), page(12_000_000, 0)),
            (LEAST_PAGE as u32, LEAST_PAGE as u32, 120_000)
        );
    }
}
