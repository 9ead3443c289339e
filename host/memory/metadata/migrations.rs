//! Placement changes on record.

use std::collections::BTreeSet;

use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::moves::replaces::PlannedStore;
use witan_kernel::port::moves::{self, OnRecord, Plan, Planned};
use witan_kernel::port::{
    Answer, BindingChange, Changed, LEFTOVERS, Leftover, Migration, MigrationProgress, MigrationStatus, MigrationStore,
    MoveTenant, Owing, PlacementChange, Published, StoreError, StoreState, rules,
};
use witan_kernel::ring::Member;
use witan_kernel::tenant::Tenant;

use super::{MemoryMetadata, State};

impl State {
    fn migration(&self, number: u64) -> Result<Migration, StoreError> {
        self.migrations.get(&number).cloned().ok_or_else(|| moves::no_migration(number))
    }

    fn living(&self, id: &TenantId) -> Option<&Tenant> {
        self.tenants.get(id).filter(|tenant| tenant.deleted_at_ms.is_none())
    }

    /// Runs `work` on what a placement change depends on.
    fn on_record<T>(&self, change: &PlacementChange, work: impl FnOnce(&OnRecord<'_>) -> T) -> T {
        let (placement, migrations) = (self.placement(), self.migrations.values().cloned().collect::<Vec<_>>());
        let (tenant, stores) = (change.tenant().and_then(|id| self.living(id)), self.all_stores());
        work(&OnRecord { placement: &placement, stores: &stores, tenant, migrations: &migrations })
    }

    fn change_placement(&mut self, change: PlacementChange, now_ms: u64) -> Result<Migration, StoreError> {
        let planned = self.on_record(&change, |at| at.plan(change.clone(), now_ms));
        let plan = match planned? {
            Planned::Known(known) => return Ok(*known),
            Planned::Write(plan) => *plan,
        };
        let new = plan.migration.clone();
        let number = self.carry_out(plan, now_ms)?;
        let superfluous = moves::superfluous(self.migrations.len());
        let ended = self.migrations.values().filter(|of| of.status.has_ended()).map(|of| of.number);
        for number in ended.take(superfluous).collect::<Vec<_>>() {
            self.migrations.remove(&number);
        }
        let new = Migration { number, ..new };
        self.migrations.insert(number, new.clone());
        Ok(new)
    }

    /// Either both are written, or neither.
    fn swap_hook(
        &mut self,
        record: BindingChange,
        change: PlacementChange,
        now_ms: u64,
    ) -> Result<(u64, Migration), StoreError> {
        self.may_change_binding(&record)?;
        self.on_record(&change, |at| at.plan(change.clone(), now_ms))?;
        // Records move: what a coordinator that is cut off does meanwhile is fenced by the steps of that.
        let version = self.change_binding(BindingChange { fenced: false, ..record })?;
        Ok((version, self.change_placement(change, now_ms)?))
    }

    fn cancel_migration(&mut self, number: u64, now_ms: u64) -> Result<Migration, StoreError> {
        let known = self.migration(number)?;
        let plan = self.on_record(&known.change, |at| at.plan_taking_back(&known, now_ms));
        let Some(plan) = plan? else { return Ok(known) };
        let cancelled = plan.migration.clone();
        self.carry_out(plan, now_ms)?;
        self.migrations.insert(number, cancelled.clone());
        Ok(cancelled)
    }

    /// Writes all of a plan but the record of the change itself. Returns the revision that does so.
    fn carry_out(&mut self, plan: Plan, now_ms: u64) -> Result<u64, StoreError> {
        let placement = self.placement();
        if let Some(remaining) = plan.remaining(&placement) {
            let mut living = self.tenants.values().filter(|tenant| tenant.deleted_at_ms.is_none());
            if let Some(tenant) = living.find(|tenant| tenant.most_replicas() > remaining) {
                return Err(plan.too_few(remaining, &tenant.id));
            }
        }
        if let Some((version, members)) = plan.ring {
            let by_node =
                |members: Vec<Member>| members.into_iter().map(|member| (member.node.clone(), member)).collect();
            for before in placement.rings {
                self.rings.entry(before.version).or_insert_with(|| by_node(before.members));
            }
            self.rings.insert(version, by_node(members));
        }
        match plan.store {
            Some(PlannedStore::Admit { node, from, to }) => {
                self.admit_store(&node, from, to)?;
                return Ok(self.revision);
            }
            Some(PlannedStore::GiveUp(node)) => {
                self.drop_admitted(&node);
                return Ok(self.changed(Changed::Nodes));
            }
            None => {}
        }
        if let Some(node) = plan.node {
            self.write_node(node, now_ms);
        }
        if let Some(lost) = plan.lost {
            self.retire_stores(&lost);
            self.leftovers.retain(|(_, node, _), _| *node != lost);
        }
        if let Some(tenant) = plan.tenant {
            self.tenants.insert(tenant.id.clone(), Tenant { version: tenant.version + 1, ..tenant });
        }
        Ok(match plan.migration.change.tenant() {
            Some(tenant) => self.changed(Changed::Tenant(tenant.clone())),
            None => self.placement_changed(),
        })
    }

    fn move_tenant(
        &mut self,
        id: &TenantId,
        version: u64,
        step: &MoveTenant,
        now_ms: u64,
    ) -> Result<Published, StoreError> {
        let before = self.living(id).cloned().ok_or_else(|| rules::no_tenant(id))?;
        if before.version != version {
            return Err(rules::lost_update(id, version, before.version));
        }
        if let MoveTenant::Prepare(to) = step {
            moves::may_move(*to, &self.placement())?;
        }
        let epoch = self.revision + 1;
        let moved = before.moved(step, epoch)?;
        let tenant = Tenant { version: version + 1, updated_at_ms: now_ms, ..moved };
        for left in before.left_over(step, epoch, now_ms) {
            self.leave(left);
        }
        self.tenants.insert(id.clone(), tenant.clone());
        self.changed(Changed::Tenant(id.clone()));
        Ok(Published { tenant, epoch })
    }

    /// Keeps a leftover, in place of one of before that is the same, if its node may ever clean it.
    fn leave(&mut self, left: Leftover) {
        let Some(node) = self.nodes.get(&left.node) else { return };
        let store = node.store_id.and_then(|store| self.stores.get(&store));
        if store.is_some_and(|store| store.state == StoreState::Retired) {
            return;
        }
        self.leftovers.retain(|_, known| !known.is_same(&left));
        self.leftovers.insert((left.tenant.clone(), left.node.clone(), left.epoch), left);
    }

    fn forget_rings(&mut self) -> bool {
        let living = self.tenants.values().filter(|tenant| tenant.deleted_at_ms.is_none());
        let of_tenants = living.flat_map(|tenant| [Some(tenant.ring), tenant.moving.map(|moving| moving.to.ring)]);
        let of_leftovers = self.leftovers.values().flat_map(|left| [Some(left.from.ring), Some(left.to.ring)]);
        let referred: BTreeSet<u64> = of_tenants.chain(of_leftovers).flatten().collect();
        let (versions, nodes) = moves::forgotten(&self.placement(), &referred);
        if versions.is_empty() && nodes.is_empty() {
            return false;
        }
        versions.iter().for_each(|version| drop(self.rings.remove(version)));
        for node in &nodes {
            self.retire_stores(node);
            self.forget_node(node);
        }
        self.placement_changed();
        true
    }
}

impl MigrationStore for MemoryMetadata {
    fn change_placement(&self, change: PlacementChange, now_ms: u64) -> Answer<Migration> {
        self.answer(move |state| state.change_placement(change, now_ms))
    }

    fn swap_hook(&self, record: BindingChange, change: PlacementChange, now_ms: u64) -> Answer<(u64, Migration)> {
        self.answer(move |state| state.swap_hook(record, change, now_ms))
    }

    fn migration(&self, number: u64) -> Answer<Migration> {
        self.answer(move |state| state.migration(number))
    }

    fn migrations(&self, before: Option<u64>, limit: u32) -> Answer<Vec<Migration>> {
        self.answer(move |state| {
            let listed = state.migrations.range(..before.unwrap_or(u64::MAX)).rev();
            Ok(listed.take(rules::page(limit) as usize).map(|(_, migration)| migration.clone()).collect())
        })
    }

    fn note_migration(
        &self,
        number: u64,
        status: MigrationStatus,
        progress: MigrationProgress,
        now_ms: u64,
    ) -> Answer<()> {
        self.answer(move |state| {
            let noted = state.migration(number)?.noted(status, progress, now_ms);
            state.migrations.insert(number, noted);
            Ok(())
        })
    }

    fn cancel_migration(&self, number: u64, now_ms: u64) -> Answer<Migration> {
        self.answer(move |state| state.cancel_migration(number, now_ms))
    }

    fn move_tenant(&self, id: &TenantId, version: u64, step: MoveTenant, now_ms: u64) -> Answer<Published> {
        let id = id.clone();
        self.answer(move |state| state.move_tenant(&id, version, &step, now_ms))
    }

    fn leftovers(&self, tenant: Option<&TenantId>, after: Option<Owing>) -> Answer<Vec<Leftover>> {
        let tenant = tenant.cloned();
        self.answer(move |state| {
            // No epoch is higher.
            let after = after.map(|(tenant, node)| (tenant, node, u64::MAX));
            let asked = state.leftovers.range(super::after(after)).map(|(_, left)| left);
            let asked = asked.filter(|left| tenant.as_ref().is_none_or(|tenant| *tenant == left.tenant));
            Ok(moves::leftovers(asked.take(LEFTOVERS + 1).cloned().collect()))
        })
    }

    fn leftover_cleaned(&self, tenant: &TenantId, node: &NodeId, epoch: u64) -> Answer<()> {
        let cleaned = (tenant.clone(), node.clone(), epoch);
        self.answer(move |state| {
            state.leftovers.remove(&cleaned);
            Ok(())
        })
    }

    fn forget_rings(&self, _: u64) -> Answer<bool> {
        self.answer(move |state| Ok(state.forget_rings()))
    }
}
