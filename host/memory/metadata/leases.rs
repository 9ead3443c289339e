//! Leases of coordinators.

use witan_kernel::capability::OF_FOUNDERS;
use witan_kernel::name::NodeId;
use witan_kernel::port::rules::Granting;
use witan_kernel::port::{
    Answer, COORDINATOR_KEPT_MS, COORDINATORS, Changed, Claim, CoordinatorOnRecord, Lease, LeaseStore, StoreError,
    rules,
};

use super::{MemoryMetadata, State};

impl State {
    fn hold_lease(&mut self, claim: Claim, lease_ms: u64, now_ms: u64) -> Result<Lease, StoreError> {
        rules::claim(&claim, lease_ms)?;
        let on_record = self.coordinators.get(&claim.node_id);
        let until_ms = now_ms.saturating_add(lease_ms);
        let (fence, granted_at_ms, drained) = match rules::grant(&claim, on_record, now_ms)? {
            Granting::Renewed(fence) => {
                let (granted_at_ms, drained) = on_record.map_or((now_ms, 0), |at| (at.granted_at_ms, at.drained));
                (fence, granted_at_ms, drained)
            }
            Granting::New => {
                self.room_for_coordinator(&claim.node_id, now_ms)?;
                self.fence += 1;
                self.changed(Changed::Coordinators);
                (self.fence, now_ms, 0)
            }
        };
        let held = CoordinatorOnRecord { claim, fence, granted_at_ms, until_ms, left_ms: 0, drained };
        self.coordinators.insert(held.claim.node_id.clone(), held);
        Ok(Lease { fence, until_ms, now_ms })
    }

    fn coordinators(&self, now_ms: u64) -> Vec<CoordinatorOnRecord> {
        let recent = |at: &&CoordinatorOnRecord| at.until_ms.saturating_add(COORDINATOR_KEPT_MS) > now_ms;
        let now = |at: &CoordinatorOnRecord| CoordinatorOnRecord {
            left_ms: at.until_ms.saturating_sub(now_ms),
            ..at.clone()
        };
        self.coordinators.values().filter(recent).map(now).collect()
    }

    /// Drops coordinators that ended long ago and, if that is not enough, the one that ended first.
    fn room_for_coordinator(&mut self, id: &NodeId, now_ms: u64) -> Result<(), StoreError> {
        self.coordinators.retain(|_, ended| ended.until_ms.saturating_add(COORDINATOR_KEPT_MS) > now_ms);
        if self.coordinators.contains_key(id) || self.coordinators.len() < COORDINATORS {
            return Ok(());
        }
        let ended = self.coordinators.values().filter(|ended| ended.until_ms <= now_ms);
        let first = ended.min_by_key(|ended| ended.until_ms).map(|ended| ended.claim.node_id.clone());
        let dropped = first.and_then(|id| self.coordinators.remove(&id));
        dropped.map(drop).ok_or_else(rules::too_many_coordinators)
    }
}

impl LeaseStore for MemoryMetadata {
    fn hold_lease(&self, claim: Claim, lease_ms: u64) -> Answer<Lease> {
        let clock = self.clock.clone();
        self.answer(move |state| state.hold_lease(claim, lease_ms, clock.wall_ms()))
    }

    fn note_drained(&self, node_id: &NodeId, instance: [u8; 16], revision: u64) -> Answer<()> {
        let (node_id, clock) = (node_id.clone(), self.clock.clone());
        self.answer(move |state| {
            let now_ms = clock.wall_ms();
            let held = state.coordinators.get_mut(&node_id);
            let held = held.filter(|held| held.claim.instance == instance && held.until_ms > now_ms);
            if let Some(held) = held {
                held.drained = held.drained.max(revision);
            }
            Ok(())
        })
    }

    fn release_lease(&self, node_id: &NodeId, instance: [u8; 16]) -> Answer<()> {
        let (node_id, clock) = (node_id.clone(), self.clock.clone());
        self.answer(move |state| {
            let now_ms = clock.wall_ms();
            let held = state.coordinators.get_mut(&node_id);
            let held = held.filter(|held| held.claim.instance == instance && held.until_ms > now_ms);
            if let Some(held) = held {
                held.until_ms = now_ms;
                state.changed(Changed::Coordinators);
            }
            Ok(())
        })
    }

    fn founded_with(&self) -> Answer<Vec<String>> {
        self.answer(|_| Ok(OF_FOUNDERS.map(str::to_owned).to_vec()))
    }

    fn require(&self, capability: &'static str) -> Answer<bool> {
        let clock = self.clock.clone();
        self.answer(move |state| {
            let schema = rules::schema_of(capability)?;
            let required = state.needs_schema >= schema;
            if !required {
                rules::all_name(capability, &state.coordinators(clock.wall_ms()))?;
                state.needs_schema = schema;
            }
            Ok(required)
        })
    }

    fn coordinators(&self) -> Answer<Vec<CoordinatorOnRecord>> {
        let clock = self.clock.clone();
        self.answer(move |state| Ok(state.coordinators(clock.wall_ms())))
    }
}
