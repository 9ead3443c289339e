//! Stale replicas get what they lack, by merge.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use witan_kernel::failure::Failed;
use witan_kernel::quorum::{Round, Tally};
use witan_kernel::record::Encoded;
use witan_kernel::replica::{Answer, Ask};

use super::World;
use super::exchange::{Event, Exchange, Phase};

/// Repairs that may run behind responses.
pub(super) struct Slots(Arc<Semaphore>);

impl Slots {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    pub(super) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

impl<W: World> Exchange<W> {
    /// Stores `record` at every replica that is not known to have it, until as many have it as the read asked for: what
    /// such a read returns cannot be missed by a later one.
    pub(super) async fn repair_before_answer(&mut self, record: &Encoded, level: &[u8]) -> Result<(), Failed> {
        let replicas = self.plan.replication_factor();
        let mut round = Round::new(replicas, self.plan.policy.required, self.plan.policy.shortfall);
        for replica in 0..replicas {
            if level.contains(&replica) {
                round.acked(replica);
            } else {
                self.send(Phase::Merge, replica, Ask::Merge { record: record.clone() });
            }
        }
        self.coordinator.metrics.repairs_triggered.inc();
        let met = self.until_met(&mut round).await;
        met.map_err(|failed| failed.failure.of_read())
    }

    /// Sends `record` to stale replicas and hears them out; gives up at once when too many repairs run already.
    pub(super) async fn repair_behind(&mut self, record: &Encoded, stale: &[u8]) {
        if stale.is_empty() {
            return;
        }
        let Some(_slot) = self.coordinator.repairs.take() else {
            self.coordinator.metrics.repairs_dropped.inc();
            return;
        };
        self.coordinator.metrics.repairs_triggered.inc();
        self.plan.deadline = self.now() + REPAIR_MICROS;
        let mut tally = Tally::new(stale.len() as u8, stale.len() as u8);
        for replica in stale {
            self.send(Phase::Repair, *replica, Ask::Merge { record: record.clone() });
        }
        while tally.open() > 0 {
            match self.answer(tally.open()).await {
                Event::Answer { phase: Phase::Repair, replica, outcome } => {
                    let index = stale.iter().position(|r| *r == replica).unwrap_or(usize::MAX) as u8;
                    match outcome {
                        Ok(Answer::Merged { .. }) => tally.ack(index),
                        _ => tally.fail(index, false),
                    }
                }
                Event::Answer { .. } => {}
                Event::Elapsed => return,
            }
        }
    }
}

/// A repair's own time: the read's has mostly passed when it starts.
const REPAIR_MICROS: u64 = 5_000_000;
