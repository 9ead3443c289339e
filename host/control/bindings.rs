//! Changes of bindings, and when they are allowed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::PluginHost;
use witan_kernel::tenant::ConflictMode;

use super::{Catalog, Held, Refused, Turn};

/// How often candidates are looked after.
const TEND_EVERY: Duration = Duration::from_secs(1);

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
        self.run(turn, held, change).await
    }

    /// Changes what is tried beside the binding of `hook`, as [`Self::change_binding`]. A candidate moves no records: nothing is blocked.
    ///
    /// # Errors
    /// As [`Self::change_binding`].
    pub async fn change_candidate<T: Send + 'static, E: Send + 'static>(
        self: &Arc<Self>,
        turn: Turn,
        tenant: Option<&TenantId>,
        hook: Hook,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, ChangeRefused<E>> {
        self.may_have(tenant, hook).await?;
        self.run(turn, None, change).await
    }

    async fn run<T: Send + 'static, E: Send + 'static>(
        self: &Arc<Self>,
        turn: Turn,
        held: Option<Held>,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, ChangeRefused<E>> {
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

    /// Reports what candidates have done here, and makes what is due for them, every second for as long as it is polled. While the metadata
    /// store does not answer, nothing is promoted and nothing taken back: a coordinator which finds by itself that a candidate exceeds its
    /// bounds does not ask it.
    pub async fn tend_candidates(self: Arc<Self>, plugins: Arc<dyn PluginHost>) {
        let mut failing = false;
        loop {
            sleep(TEND_EVERY).await;
            match plugins.tend().await {
                Ok(changed) => {
                    failing = false;
                    if changed {
                        self.owing.notify_one();
                    }
                }
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(%error, "candidates of bindings cannot be reported, promoted or taken back for now");
                }
                Err(_) => {}
            }
        }
    }

    /// Checks the rules. Operations are blocked as long as the returned guard lives.
    async fn may_change(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<Option<Held>, Refused> {
        self.may_have(tenant, hook).await?;
        match hook {
            Hook::RoutingHook => self.hold_while_empty("a change of the routing hook").await.map(Some),
            Hook::ConsistencyPolicy | Hook::ConflictResolver => Ok(None),
        }
    }

    /// Checks that a tenant may have a plugin for this hook.
    async fn may_have(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<(), Refused> {
        if let Some(id) = tenant {
            let tenant = self.tenant(id).await?;
            if hook == Hook::ConflictResolver && tenant.conflict_mode != ConflictMode::Siblings {
                return Err(Refused::NothingToResolve(id.clone()));
            }
        }
        Ok(())
    }
}
