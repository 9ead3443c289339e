//! Fences and removals that storage nodes owe.

use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{Answer, FenceStore, Fencing, OWED, OwedFence, Owing};
use witan_kernel::tenant::Level;

use super::{MemoryMetadata, State};

impl State {
    /// Every node owes the fence of a change that was made at revision `epoch`, of a tenant or (`None`) of all; `level`: the least that
    /// operations could have before.
    pub(super) fn owe(&mut self, tenant: Option<&TenantId>, epoch: u64, level: Level) {
        for node in self.nodes.keys() {
            let owed = self.owed.entry((tenant.cloned(), node.clone())).or_insert((epoch, level));
            *owed = (epoch, level.min(owed.1));
        }
    }
}

impl FenceStore for MemoryMetadata {
    fn owed_fences(&self, tenant: Option<&TenantId>, after: Option<Fencing>) -> Answer<Vec<OwedFence>> {
        let tenant = tenant.cloned();
        self.answer(move |state| {
            let asked = state.owed.range(super::after(after)).filter(|((of, _), _)| tenant.is_none() || tenant == *of);
            let owed = asked.map(|((tenant, node), (epoch, level))| OwedFence {
                tenant: tenant.clone(),
                node: node.clone(),
                epoch: *epoch,
                level: *level,
            });
            Ok(owed.take(OWED).collect())
        })
    }

    fn fence_raised(&self, tenant: Option<&TenantId>, node: &NodeId, epoch: u64) -> Answer<()> {
        let owed = (tenant.cloned(), node.clone());
        self.answer(move |state| {
            if state.owed.get(&owed).is_some_and(|(until, _)| *until <= epoch) {
                state.owed.remove(&owed);
            }
            Ok(())
        })
    }

    fn owed_removals(&self, deleted_by_ms: u64, after: Option<Owing>) -> Answer<Vec<Owing>> {
        self.answer(move |state| {
            let deleted = |id: &TenantId| state.tenants.get(id).and_then(|tenant| tenant.deleted_at_ms);
            let due = |(id, _): &&Owing| deleted(id).is_some_and(|at| at <= deleted_by_ms);
            Ok(state.owed_removals.range(super::after(after)).filter(due).take(OWED).cloned().collect())
        })
    }

    fn records_removed(&self, tenant: &TenantId, node: &NodeId) -> Answer<()> {
        let owed = (tenant.clone(), node.clone());
        self.answer(move |state| {
            state.owed_removals.remove(&owed);
            Ok(())
        })
    }
}
