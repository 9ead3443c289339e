//! How fast the first copies of tenants read, which depends on how nodes answer and how full their disks are.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
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
    pace: Mutex<BytePace>,
    /// It waits for room on a disk.
    paused: AtomicBool,
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
        Self { moves, plan, pace: Mutex::new(BytePace::new(0)), paused: AtomicBool::new(false) }
    }

    /// These bytes have been read.
    pub(super) fn charge(&self, bytes: u64) {
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
        pace.limit(per_second);
        pace.charge(bytes);
    }

    /// A node that answers slowly.
    fn slowest(&self, usual: &BTreeMap<NodeId, u32>) -> Option<NodeId> {
        let is = |(node, usual): &(&NodeId, &u32)| is_slow(**usual, self.moves.replicas().state(node).latency_p99_us);
        usual.iter().find(is).map(|(node, _)| node.clone())
    }

    /// The time to wait for before more is read.
    pub(super) fn due(&self) -> Option<Instant> {
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
        lock(&self.pace).due()
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
