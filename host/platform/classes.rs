//! Calls about classes of limits, and which tenant has which.

use std::time::Duration;

use tonic::{Request, Response, Status};
use witan_kernel::class::Class;
use witan_kernel::name::{Invalid, TenantId, shown};
use witan_kernel::port::ClassGrant;
use witan_wire::v1;

use super::{PluginApi, named, own};
use crate::access::caller::Caller;
use crate::grpc::guard::caller;
use crate::grpc::status::invalid;
use crate::grpc::tenants;

/// How long a list of plugins waits for the metadata store: the plugins are known without it.
const GRANTS_WITHIN: Duration = Duration::from_secs(1);

impl PluginApi {
    pub(super) async fn grant_class(
        &self,
        mut request: Request<v1::GrantPluginClassRequest>,
    ) -> Result<Response<v1::GrantPluginClassResponse>, Status> {
        let caller = caller(&mut request)?;
        let v1::GrantPluginClassRequest { tenant_id, class, granted } = request.into_inner();
        let tenant = named(&tenant_id)?.ok_or_else(|| {
            invalid(&Invalid::new("tenant_id", "is empty", "name the tenant; operators need no grant"))
        })?;
        own(&caller, Some(&tenant))?;
        let class = Class::parse(&class).filter(|class| !class.is_for_all()).ok_or_else(|| {
            let problem = format!("{} is no class that is granted", shown(&class));
            invalid(&Invalid::new("class", problem, "use interpreted; every tenant has standard"))
        })?;
        let turn = self.change(&caller, Some(&tenant))?;
        let done = if granted {
            self.catalog.grant_class(turn, ClassGrant { tenant, class, granted_at_ms: (self.now_ms)() }).await
        } else {
            self.catalog.revoke_class(turn, &tenant, class).await
        };
        done.map_err(|refused| tenants::status(&refused))?;
        Ok(Response::new(v1::GrantPluginClassResponse {}))
    }

    /// Whether a tenant has a class.
    pub(super) async fn has_class(&self, caller: &Caller, tenant: &TenantId, class: Class) -> Result<bool, Status> {
        let grants = self.grants_of(caller, Some(tenant)).await.map_err(|refused| tenants::status(&refused))?;
        Ok(grants.iter().any(|grant| grant.class == class))
    }

    /// The grants of a tenant, or of all, or why they are not known: plugins can be listed all the same.
    pub(super) async fn shown_grants(
        &self,
        caller: &Caller,
        tenant: Option<&TenantId>,
    ) -> (Vec<v1::PluginClassGrant>, String) {
        let shown = |grant: ClassGrant| v1::PluginClassGrant {
            tenant_id: grant.tenant.to_string(),
            class: grant.class.to_string(),
            granted_at_ms: i64::try_from(grant.granted_at_ms).unwrap_or(i64::MAX),
        };
        match tokio::time::timeout(GRANTS_WITHIN, self.grants_of(caller, tenant)).await {
            Ok(Ok(grants)) => {
                let seen = grants.into_iter().filter(|grant| caller.credential().covers(&grant.tenant).is_ok());
                (seen.map(shown).collect(), String::new())
            }
            Ok(Err(refused)) => (Vec::new(), refused.to_string()),
            Err(_) => (Vec::new(), "the metadata store did not answer in time".to_owned()),
        }
    }

    async fn grants_of(
        &self,
        caller: &Caller,
        tenant: Option<&TenantId>,
    ) -> Result<Vec<ClassGrant>, witan_control::Refused> {
        let _turn = self.catalog.lookups().take(tenant.and_then(|tenant| caller.on_behalf_of(tenant)))?;
        self.catalog.class_grants(tenant).await
    }
}
