//! Changes that would move data if there were any: made one at a time, and only while nothing is stored.

use std::sync::Arc;

use witan_kernel::name::TenantId;
use witan_kernel::port::PAGE;
use witan_kernel::scan::Fullness;
use witan_kernel::tenant::Tenant;

use super::{Catalog, Held, Refused, Turn, to_its_end};

impl Catalog {
    /// Changes a tenant's replication factor, if no data would have to move. Runs to completion even if the caller is dropped.
    /// Returns the tenant before and after.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn change_replication_factor(
        self: &Arc<Self>,
        turn: Turn,
        id: &TenantId,
        wanted: u8,
    ) -> Result<(Tenant, Tenant), Refused> {
        let (catalog, id) = (Arc::clone(self), id.clone());
        to_its_end(turn, async move { catalog.replicate(&id, wanted).await }).await
    }

    async fn replicate(&self, id: &TenantId, wanted: u8) -> Result<(Tenant, Tenant), Refused> {
        let _placing = self.placing.lock().await;
        let before = self.tenant(id).await?;
        if before.replication_factor == wanted {
            return Ok((before.clone(), before));
        }
        self.enough_nodes(wanted).await?;
        let _held = self.held_while_empty("a change of the replication factor").await?;
        let mut tenant = before.clone();
        tenant.replication_factor = wanted;
        let after = self.metadata.update_tenant(tenant, self.fenced()).await?;
        self.cluster.tenant_changed(after.clone());
        Ok((before, after))
    }

    /// Blocks operations and other changes of the placement, for a change that would move data if there were any. Refused unless
    /// nothing is stored.
    pub async fn hold_while_empty(&self, what: &str) -> Result<Held, Refused> {
        let placing = Arc::clone(&self.placing).lock_owned().await;
        let held = self.held_while_empty(what).await?;
        Ok(Box::new((held, placing)))
    }

    /// Operations are blocked only once the change is likely to succeed, so that a refused one disturbs nobody.
    pub(super) async fn held_while_empty(&self, what: &str) -> Result<Held, Refused> {
        self.alone(what).await?;
        self.nothing_stored(what).await?;
        let held = self.cluster.hold().await;
        self.nothing_stored(what).await?;
        Ok(held)
    }

    /// Checks that no other coordinator is live: only this one's operations can be blocked.
    async fn alone(&self, what: &str) -> Result<(), Refused> {
        let Some(instance) = self.instance else { return Ok(()) };
        let coordinators = self.metadata.coordinators().await?;
        let other = coordinators.iter().find(|it| it.is_live() && it.claim.instance != instance);
        match other.map(|it| &it.claim.node_id) {
            None => Ok(()),
            Some(other) => Err(Refused::NeedsPlacementChange(format!(
                "{what} requires that no other coordinator runs, and coordinator {other} is running: stop the others, make the \
                 change, and start them again"
            ))),
        }
    }

    pub(super) async fn enough_nodes(&self, wanted: u8) -> Result<(), Refused> {
        let nodes = self.metadata.nodes().await?.len();
        if usize::from(wanted) > nodes { Err(Refused::TooFewNodes { wanted, nodes }) } else { Ok(()) }
    }

    pub(super) async fn tenant_that_needs_more_than(&self, nodes: usize) -> Result<Option<Tenant>, Refused> {
        let mut after: Option<TenantId> = None;
        loop {
            let page = self.metadata.tenants(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(None) };
            after = Some(last.id.clone());
            if let Some(needs) = page.into_iter().find(|t| usize::from(t.replication_factor) > nodes) {
                return Ok(Some(needs));
            }
        }
    }

    /// Checks that nothing is stored: there is no tenant, or every node reports that it is empty.
    async fn nothing_stored(&self, what: &str) -> Result<(), Refused> {
        if self.metadata.tenants(None, 1).await?.is_empty() {
            return Ok(());
        }
        for node in self.nodes().await? {
            let why = match self.cluster.fullness(&node.id).await {
                Some(Fullness { keys: 0, .. }) => continue,
                Some(Fullness { keys, .. }) => format!("node {} holds about {keys} records", node.id),
                None => format!("node {} does not respond, so it may hold data", node.id),
            };
            return Err(Refused::NeedsPlacementChange(format!(
                "{what} would have to move data, which is not supported: {why}"
            )));
        }
        Ok(())
    }
}
