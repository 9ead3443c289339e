//! Repair of the stale replicas that a read has found: they are sent the merge of what all replicas have.

use std::sync::Arc;

use witan_kernel::age;
use witan_kernel::failure::Failed;
use witan_kernel::fault::Fault;
use witan_kernel::hook::Shortfall;
use witan_kernel::name::TenantId;
use witan_kernel::quorum::{MergeRound, Quorum, Tally};
use witan_kernel::record::Encoded;

use super::World;
use super::exchange::{Exchange, Phase};
use super::room::{Room, RoomPermit};

/// The repairs that may run in the background at a time, three quarters of them for one tenant.
pub(super) struct Budget(Arc<Room>);

impl Budget {
    pub(super) fn new(most: usize) -> Self {
        Self(Room::new(most))
    }

    pub(super) fn take(&self, tenant: &TenantId) -> Option<RoomPermit> {
        self.0.admit(tenant, 1)
    }

    /// The number of repairs that are running.
    pub(super) fn taken(&self) -> usize {
        self.0.bytes()
    }
}

impl<W: World> Exchange<W> {
    /// Stores `record` at the replicas that lack it, all but `level`, until as many have it as the read requires: a later read cannot miss
    /// what this one returns.
    pub(super) async fn repair_before_answer(&mut self, record: &Encoded, level: &[u8]) -> Result<(), Failed> {
        let mut round = MergeRound::new(record.clone(), self.plan.asking(), self.plan.policy.shortfall);
        for replica in level {
            round.acked(*replica);
        }
        self.coordinator.metrics.repairs_triggered.inc();
        let met = self.until_met(&mut round).await;
        met.map_err(|failed| failed.failure.of_read())
    }

    /// Sends `record` to stale replicas and waits for all of them; gives up at once when too many repairs are running already.
    pub(super) async fn repair_behind(&mut self, record: &Encoded, stale: &[u8]) {
        if stale.is_empty() {
            return;
        }
        let Some(permit) = self.coordinator.repairs.take(&self.plan.tenant.id) else {
            self.coordinator.metrics.repairs_dropped.inc();
            return;
        };
        self.coordinator.metrics.repairs_triggered.inc();
        // The record was read after the operation has arrived.
        self.plan.deadline = age::deadline(self.plan.arrived, self.now(), REPAIR_MICROS);
        let stale = Tally::of(Quorum::of(stale.iter().copied(), stale.len() as u8));
        let mut round = MergeRound::new(record.clone(), stale, Shortfall::Fail).every_answer();
        self.drive(Phase::Repair, &mut round).await;
        if Fault::RepairPermitLeaked.is_on() {
            std::mem::forget(permit);
        }
    }
}

/// A repair's deadline, counted from its start: most of the read's has passed by then. What is left of [`age::OLDEST_MICROS`], if that is
/// less.
const REPAIR_MICROS: u64 = 5_000_000;
