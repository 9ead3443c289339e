//! Changes of bindings, and when they are allowed.

use std::sync::Arc;

use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::tenant::ConflictMode;

use super::{Catalog, Held, Refused, Turn};

/// Why a binding was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeRefused<E> {
    /// A rule of the control plane refused it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The plugin host refused it, or failed.
    #[error("{0}")]
    Host(E),
}

impl Catalog {
    /// Changes the binding of `hook` for `tenant` (`None`: for all tenants) by running `change` to completion, even if the caller
    /// is dropped.
    ///
    /// A resolver needs siblings to choose between. A different partition key moves every key of all tenants without a routing hook of
    /// their own, so the default can change only while nothing is stored: operations are blocked until the change is done. For the routing
    /// hook of one tenant, see [`Self::change_routing_hook`].
    ///
    /// # Errors
    /// The rule that refused the change, before `change` is polled; or the failure of `change`.
    pub async fn change_binding<T: Send + 'static, E: Send + 'static>(
        self: &Arc<Self>,
        turn: Turn,
        tenant: Option<&TenantId>,
        hook: Hook,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, ChangeRefused<E>> {
        let held = self.may_change(tenant, hook).await?;
        let catalog = Arc::clone(self);
        let changing = tokio::spawn(async move {
            let changed = change.await;
            // Nobody waits for the fences: whoever rolls back must not depend on the nodes.
            catalog.owing.notify_one();
            drop((held, turn));
            changed
        });
        match changing.await {
            Ok(changed) => changed.map_err(ChangeRefused::Host),
            Err(_) => Err(ChangeRefused::Refused(Refused::Lost)),
        }
    }

    /// Checks the rules. Operations are blocked as long as the returned guard lives.
    async fn may_change(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<Option<Held>, Refused> {
        if let Some(id) = tenant {
            let tenant = self.tenant(id).await?;
            if hook == Hook::ConflictResolver && tenant.conflict_mode != ConflictMode::Siblings {
                return Err(Refused::NothingToResolve(id.clone()));
            }
        }
        match hook {
            Hook::RoutingHook => self.hold_while_empty("a change of the routing hook").await.map(Some),
            Hook::ConsistencyPolicy | Hook::ConflictResolver => Ok(None),
        }
    }
}
