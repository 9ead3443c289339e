//! Who may use which class of limits of plugins.

use witan_kernel::class::Class;
use witan_kernel::name::TenantId;
use witan_kernel::port::ClassGrant;

use super::{Catalog, Refused, Turn};

impl Catalog {
    /// Grants a class to a tenant. The same again changes nothing.
    pub async fn grant_class(&self, _turn: Turn, grant: ClassGrant) -> Result<(), Refused> {
        self.tenant(&grant.tenant).await?;
        Ok(self.metadata.grant_class(grant).await?)
    }

    /// Takes a class from a tenant: what is bound stays.
    pub async fn revoke_class(&self, _turn: Turn, tenant: &TenantId, class: Class) -> Result<(), Refused> {
        self.tenant(tenant).await?;
        Ok(self.metadata.revoke_class(tenant, class).await?)
    }

    /// Every grant, by tenant and class; of one tenant, if it is named.
    pub async fn class_grants(&self, tenant: Option<&TenantId>) -> Result<Vec<ClassGrant>, Refused> {
        let mut grants = self.metadata.class_grants().await?;
        grants.retain(|grant| tenant.is_none_or(|tenant| grant.tenant == *tenant));
        Ok(grants)
    }
}
