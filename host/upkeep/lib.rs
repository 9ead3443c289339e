//! Upkeep: long work over the same ports as operations. Repair compares the replicas of every record, removal deletes what deleted
//! tenants have stored.
//!
//! Reading order: [`runner`] (turns, and what is running), `repair` (a sweep, and which new stores are read after it), `sweep` (all
//! records of a part of the ring, on all of their replicas), `removal`, `collapse` (many siblings become one), `metrics`.
//!
//! Upkeep uses `coordinate`, never the reverse, and names no socket, database or plugin engine.

mod collapse;
mod metrics;
mod removal;
mod repair;
pub mod runner;
mod sweep;

use std::sync::Arc;

use runner::{Kind, Report, Runner};
use witan_coordinate::{Coordinator, World};
use witan_kernel::port::Metadata;

pub use collapse::{Reported, Reports, reports};
pub use metrics::Metrics;
pub use repair::{NotBegun, Repair, Repaired};
pub use sweep::{Stopped, Sweep, Swept};

/// The long work of a coordinator.
pub struct Upkeep<W: World> {
    coordinator: Arc<Coordinator<W>>,
    metadata: Arc<dyn Metadata>,
    runner: Runner,
    metrics: Metrics,
}

impl<W: World> Upkeep<W> {
    /// Upkeep of the records that `coordinator` reaches, with tenants and stores on record in `metadata`.
    pub fn new(coordinator: Arc<Coordinator<W>>, metadata: Arc<dyn Metadata>) -> Self {
        Self { coordinator, metadata, runner: Runner::default(), metrics: Metrics::default() }
    }

    /// What is running, how far it is, and what failed last.
    pub fn tasks(&self) -> Vec<(Kind, Report)> {
        self.runner.list()
    }

    /// Counts of its work.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
