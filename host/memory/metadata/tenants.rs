//! Tenants.

use witan_kernel::fence;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, Changed, TenantStore, rules};
use witan_kernel::tenant::Tenant;

use super::{MemoryMetadata, State, after};

impl State {
    /// Logs the change of a tenant, and the fences that nodes owe for it.
    fn tenant_changed(&mut self, before: &Tenant, after: &Tenant, fenced: bool) {
        let epoch = self.changed(Changed::Tenant(after.id.clone()));
        if let Some(level) = fence::needed(before, after).filter(|_| fenced) {
            self.owe(Some(&after.id), epoch, level);
        }
        if after.deleted_at_ms.is_some() {
            self.owed_removals.extend(self.nodes.keys().map(|node| (after.id.clone(), node.clone())));
        }
    }
}

impl TenantStore for MemoryMetadata {
    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.answer(move |state| {
            rules::tenant(&tenant)?;
            if let Some(stored) = state.tenants.get(&tenant.id) {
                return Err(rules::tenant_exists(stored));
            }
            let ring = state.rings.last_key_value().map_or(0, |(newest, _)| *newest);
            let tenant = Tenant { version: 1, deleted_at_ms: None, ..tenant.placed_anew(ring) };
            state.tenants.insert(tenant.id.clone(), tenant.clone());
            state.changed(Changed::Tenant(tenant.id.clone()));
            Ok(tenant)
        })
    }

    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>> {
        let id = id.clone();
        self.answer(move |state| Ok(state.tenants.get(&id).cloned()))
    }

    fn tenants(&self, last: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>> {
        let last = last.cloned();
        self.answer(move |state| {
            let there = state.tenants.range::<TenantId, _>(after(last.as_ref())).map(|(_, tenant)| tenant);
            let there = there.filter(|tenant| tenant.deleted_at_ms.is_none());
            Ok(there.take(rules::page(limit) as usize).cloned().collect())
        })
    }

    fn update_tenant(&self, tenant: Tenant, fenced: bool) -> Answer<Tenant> {
        self.answer(move |state| {
            rules::tenant(&tenant)?;
            let stored = state.tenants.get_mut(&tenant.id).filter(|stored| stored.deleted_at_ms.is_none());
            let stored = stored.ok_or_else(|| rules::no_tenant(&tenant.id))?;
            if stored.version != tenant.version {
                return Err(rules::lost_update(&tenant.id, tenant.version, stored.version));
            }
            let updated = Tenant { version: stored.version + 1, ..tenant.replacing(stored)? };
            let before = std::mem::replace(stored, updated.clone());
            state.tenant_changed(&before, &updated, fenced);
            Ok(updated)
        })
    }

    fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64, fenced: bool) -> Answer<Tenant> {
        let id = id.clone();
        self.answer(move |state| {
            let stored = state.tenants.get_mut(&id).ok_or_else(|| rules::no_tenant(&id))?;
            if stored.deleted_at_ms.is_some() {
                return Ok(stored.clone());
            }
            if stored.version != version {
                return Err(rules::lost_update(&id, version, stored.version));
            }
            let deleted = Tenant { version: stored.version + 1, ..stored.deleted(now_ms) };
            let before = std::mem::replace(stored, deleted.clone());
            state.leftovers.retain(|(of, _, _), _| *of != id);
            state.forget_artifacts_of(&id);
            state.class_grants.retain(|(of, _), _| *of != id);
            state.compilations.remove(&id);
            state.pushes.forget_of(&id);
            state.tenant_changed(&before, &deleted, fenced);
            Ok(deleted)
        })
    }
}
