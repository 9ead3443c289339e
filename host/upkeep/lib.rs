//! Upkeep: background tasks over the same ports as operations. Repair compares the replicas of every record, removal deletes the
//! records of deleted tenants, collapse replaces many siblings by one value. Healing does what a repair does without being asked. Moves
//! take the records of tenants to where a placement change wants them.
//!
//! Reading order: [`runner`] (limits, and what is running), `repair` (a sweep, and which new stores are read after it), `sweep`
//! (all records of a part of the ring, on all of their replicas), `heal`, `moves`, `removal`, `collapse`, `metrics`.
//!
//! Upkeep uses `coordinate`, never the reverse, and names no socket, database or plugin engine.

// The simulation runs this room, in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

mod ask;
mod collapse;
mod drained;
mod heal;
mod kept;
mod locate;
mod metrics;
mod moves;
mod overdue;
mod removal;
mod repair;
pub mod runner;
mod sweep;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kept::Kept;
use overdue::Overdue;
use runner::{Kind, Report, Runner};
use witan_coordinate::{Coordinator, World};
use witan_kernel::name::NodeId;
use witan_kernel::port::Metadata;
use witan_kernel::sync::lock;

pub use collapse::{Reported, Reports, reports};
pub use heal::missed::Missed;
pub use heal::{BEGINS_AFTER, Healing, HealingConfig, is_wanted};
pub use locate::{Has, Located, Replica};
pub use metrics::Metrics;
pub use moves::{Moves, MovesConfig};
pub use repair::{NotBegun, Repair, Repaired};
pub use sweep::{Admitted, RECORD_BYTES, Routine, Stopped, Sweep, Swept};

/// The background tasks of a coordinator.
pub struct Upkeep<W: World> {
    coordinator: Arc<Coordinator<W>>,
    metadata: Arc<dyn Metadata>,
    runner: Runner,
    metrics: Metrics,
    /// What nodes have missed of the coordinator's changes.
    missed: Arc<Missed>,
    /// For each node with a new store, what healing makes of it.
    new_stores: Mutex<BTreeMap<NodeId, String>>,
    /// Every live coordinator does what the collection of tombstones rests on.
    collects: AtomicBool,
    overdue: Overdue,
    /// Bytes per second that healing reads; 0: unlimited.
    healing_rate: AtomicU64,
}

impl<W: World> Upkeep<W> {
    /// Upkeep of the records that `coordinator` reaches, with tenants and stores on record in `metadata`.
    pub fn new(coordinator: Arc<Coordinator<W>>, metadata: Arc<dyn Metadata>) -> Self {
        let (runner, metrics) = (Runner::default(), Metrics::default());
        let (new_stores, collects, overdue) = (Mutex::default(), AtomicBool::new(false), Overdue::default());
        let (missed, healing_rate) = (Arc::default(), AtomicU64::new(0));
        Self { coordinator, metadata, runner, metrics, missed, new_stores, collects, overdue, healing_rate }
    }

    /// The same, which makes good what the coordinator reports to `missed`.
    #[must_use]
    pub fn with_missed(self, missed: Arc<Missed>) -> Self {
        Self { missed, ..self }
    }

    /// The same, in which the administrators of tenants may run this number of repairs at a time, all together.
    #[must_use]
    pub fn with_repairs_of_tenants(self, repairs: usize) -> Self {
        Self { runner: Runner::new(repairs), ..self }
    }

    /// From now on the rows of keys that were deleted long ago may be dropped, or no longer. They may if every live coordinator names
    /// [`AGES`](witan_kernel::capability::AGES) and [`COLLECT`](witan_kernel::capability::COLLECT), and changes are fenced where there can
    /// be several.
    pub fn set_collects(&self, all: bool) {
        self.collects.store(all, Ordering::Relaxed);
    }

    fn may_collect(&self) -> bool {
        self.collects.load(Ordering::Relaxed)
    }

    /// What a comparison of a part of the ring has left of keys that were deleted long ago.
    fn note_overdue(&self, part: (u64, u64), kept: BTreeMap<Kept, u64>) {
        self.overdue.note(part, kept);
    }

    /// Bytes per second that a pass of healing reads at most, each record counting as [`RECORD_BYTES`] more than it has; 0: unlimited.
    pub fn healing_rate(&self) -> u64 {
        self.healing_rate.load(Ordering::Relaxed)
    }

    /// Running tasks with their progress, and the last failure, by kind.
    pub fn tasks(&self) -> Vec<(Kind, Report)> {
        self.runner.list()
    }

    /// What becomes of the new store of a node, for people; `None` if it has none that healing knows of.
    pub fn new_store(&self, node: &NodeId) -> Option<String> {
        lock(&self.new_stores).get(node).cloned()
    }

    /// In how many slices a node has missed changes of this coordinator.
    pub fn missed_slices(&self, node: &NodeId) -> usize {
        self.missed.of_node(node).count()
    }

    fn note_new_stores(&self, notes: BTreeMap<NodeId, String>) {
        let mut known = lock(&self.new_stores);
        for (node, note) in notes.iter().filter(|(node, _)| !known.contains_key(*node)) {
            tracing::warn!(%node, "the node has another store than before: {note}");
        }
        *known = notes;
    }

    /// Metrics of background tasks.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
