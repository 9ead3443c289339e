//! Changes of the generation of a tenant's rows.

use super::{OnRecord, Plan};
use crate::name::TenantId;
use crate::port::{PlacementChange, StoreError, rules};
use crate::tenant::Tenant;

impl Tenant {
    /// The tenant with another wish: a generation that its rows are to have, and that it never had before.
    pub(super) fn wishing_generation(&self, generation: u32, now_ms: u64) -> Self {
        let generations = self.generations.max(generation);
        Self { wanted_generation: Some(generation), generations, updated_at_ms: now_ms, ..self.clone() }
    }
}

impl OnRecord<'_> {
    pub(super) fn plan_generation(
        &self,
        plan: &mut Plan,
        id: &TenantId,
        to: u32,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let tenant = self.tenant.ok_or_else(|| rules::no_tenant(id))?;
        let is_one =
            |change: &PlacementChange| matches!(change, PlacementChange::Generation { tenant, .. } if tenant == id);
        if let Some(other) = self.migrations.iter().find(|of| of.is_open() && is_one(&of.change)) {
            let number = other.number;
            return Err(StoreError::Conflict(format!(
                "another change of the routing hook of tenant {id} is under way, number {number}; wait until it has ended, or \
                 cancel it"
            )));
        }
        let highest = tenant.generations;
        if tenant.wanted_generation.is_some() || highest.checked_add(1) != Some(to) {
            return Err(StoreError::Conflict(format!(
                "generation {to} is not the next one of tenant {id}, whose highest was {highest}; read it again"
            )));
        }
        plan.tenant = Some(tenant.wishing_generation(to, now_ms));
        Ok(())
    }

    /// What is to be written so that a tenant does not get a generation that it was to get.
    pub(super) fn plan_no_generation(&self, plan: &mut Plan, of: u32, now_ms: u64) -> Result<(), StoreError> {
        let Some(tenant) = self.tenant else { return Ok(()) };
        if tenant.generation >= of {
            return Err(StoreError::Conflict(format!(
                "the records of tenant {} have been moved already; bind the routing hook of before again instead",
                tenant.id
            )));
        }
        if tenant.wanted_generation == Some(of) {
            plan.tenant = Some(Tenant { wanted_generation: None, updated_at_ms: now_ms, ..tenant.clone() });
        }
        Ok(())
    }
}
