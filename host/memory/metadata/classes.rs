//! Who may use which class of limits of plugins.

use witan_kernel::class::Class;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, ClassGrant, ClassStore, TENANT_COMPILATIONS, next_compilation, rules};

use super::MemoryMetadata;

impl ClassStore for MemoryMetadata {
    fn grant_class(&self, grant: ClassGrant) -> Answer<()> {
        self.answer(move |state| {
            rules::granted_class(grant.class)?;
            if state.tenants.get(&grant.tenant).is_none_or(|tenant| tenant.deleted_at_ms.is_some()) {
                return Err(rules::no_tenant(&grant.tenant));
            }
            state.class_grants.entry((grant.tenant, grant.class)).or_insert(grant.granted_at_ms);
            Ok(())
        })
    }

    fn revoke_class(&self, tenant: &TenantId, class: Class) -> Answer<()> {
        let tenant = tenant.clone();
        self.answer(move |state| {
            rules::granted_class(class)?;
            state.class_grants.remove(&(tenant, class));
            Ok(())
        })
    }

    fn class_grants(&self) -> Answer<Vec<ClassGrant>> {
        self.answer(|state| {
            let grant = |((tenant, class), at_ms): (&(TenantId, Class), &u64)| ClassGrant {
                tenant: tenant.clone(),
                class: *class,
                granted_at_ms: *at_ms,
            };
            Ok(state.class_grants.iter().map(grant).collect())
        })
    }

    fn count_compilation(&self, tenant: &TenantId) -> Answer<Option<u64>> {
        let (tenant, now_ms) = (tenant.clone(), self.clock.wall_ms());
        self.answer(move |state| {
            let began = state.compilations.entry(tenant).or_default();
            let next = next_compilation(began, now_ms);
            if next.is_none() {
                began.push(now_ms);
                let old = began.len().saturating_sub(TENANT_COMPILATIONS);
                began.drain(..old);
            }
            Ok(next)
        })
    }
}
