//! When a binding may change.

use std::sync::Arc;

use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::tenant::ConflictMode;

use super::{Catalog, Held, Refused};

/// Why a change of a binding was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeRefused<E> {
    /// A rule of the control plane refuses it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The plugin host refused it, or failed.
    #[error("{0}")]
    Host(E),
}

impl Catalog {
    /// Changes the binding of `hook` for `tenant` (`None`: for all tenants) by polling `change` to its end, whatever becomes of whoever
    /// waits for it.
    ///
    /// A resolver needs siblings to decide between. Another partition key is another place for every key of the tenant, so that a
    /// routing hook changes only while nothing is stored: operations are kept out until the change is done.
    ///
    /// # Errors
    /// The rule that refuses the change, before `change` is polled; or the failure of `change`.
    pub async fn change_binding<T: Send + 'static, E: Send + 'static>(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        hook: Hook,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, ChangeRefused<E>> {
        let held = self.may_change(tenant, hook).await?;
        let changing = tokio::spawn(async move {
            let changed = change.await;
            drop(held);
            changed
        });
        match changing.await {
            Ok(changed) => changed.map_err(ChangeRefused::Host),
            Err(_) => Err(ChangeRefused::Refused(Refused::Lost)),
        }
    }

    /// Operations are kept out as long as the answer lives.
    async fn may_change(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<Option<Held>, Refused> {
        if let Some(id) = tenant {
            let tenant = self.tenant(id).await?;
            if hook == Hook::ConflictResolver && tenant.conflict_mode != ConflictMode::Siblings {
                return Err(Refused::NothingToResolve(id.clone()));
            }
        }
        match hook {
            Hook::RoutingHook => self.hold_while_empty("another routing hook").await.map(Some),
            Hook::ConsistencyPolicy | Hook::ConflictResolver => Ok(None),
        }
    }
}
