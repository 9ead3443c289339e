//! Upkeep: long work over the same ports as operations. Repair compares the replicas of every record, removal deletes what deleted
//! tenants have stored.
//!
//! Reading order: `sweep` (all records of a part of the ring, on all of their replicas), `removal`, `metrics`.
//!
//! Upkeep uses `coordinate`, never the reverse, and names no socket, database or plugin engine.

mod metrics;
mod removal;
mod sweep;

use std::sync::Arc;

use witan_coordinate::{Coordinator, World};

pub use metrics::Metrics;
pub use removal::Removed;
pub use sweep::{Stopped, Sweep, Swept};

/// The long work of a coordinator.
pub struct Upkeep<W: World> {
    coordinator: Arc<Coordinator<W>>,
    metrics: Metrics,
}

impl<W: World> Upkeep<W> {
    /// Upkeep of the records that `coordinator` reaches.
    pub fn new(coordinator: Arc<Coordinator<W>>) -> Self {
        Self { coordinator, metrics: Metrics::default() }
    }

    /// Counts of its work.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
