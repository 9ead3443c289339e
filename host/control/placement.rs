//! Changes of replication factors; and, where records cannot be moved, what would move some: one at a time, while nothing is stored.

use std::sync::Arc;

use witan_kernel::name::TenantId;
use witan_kernel::port::{Migration, PAGE, StorageNode};
use witan_kernel::scan::Fullness;
use witan_kernel::tenant::Tenant;

use super::migrations::members;
use super::{Catalog, Held, Refused, Turn, to_its_end};

/// A change of a replication factor that was made, or recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactorChanged {
    /// The tenant before.
    pub before: Tenant,
    /// The tenant with the factor that was asked for. While records move, it has the one of before still.
    pub after: Tenant,
    /// What moves the records; `None`: nothing has to move, and the change is made.
    pub migration: Option<Migration>,
}

/// The change of a replication factor, in errors.
const FACTOR: &str = "a change of the replication factor";

impl Catalog {
    /// Changes a tenant's replication factor: if records can be moved, by a migration that is recorded, else only if none would have to
    /// move. Runs to completion even if the caller is dropped.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn change_replication_factor(
        self: &Arc<Self>,
        turn: Turn,
        id: &TenantId,
        wanted: u8,
        now_ms: u64,
    ) -> Result<FactorChanged, Refused> {
        let (catalog, id) = (Arc::clone(self), id.clone());
        to_its_end(turn, async move { catalog.replicate(&id, wanted, now_ms).await }).await
    }

    async fn replicate(&self, id: &TenantId, wanted: u8, now_ms: u64) -> Result<FactorChanged, Refused> {
        let _placing = self.placing.lock().await;
        let before = self.tenant(id).await?;
        let is_so = before.replication_factor == wanted && before.wanted_factor.is_none() && before.moving.is_none();
        if is_so {
            return Ok(FactorChanged { before: before.clone(), after: before, migration: None });
        }
        self.enough_nodes(wanted).await?;
        if self.moves().await? {
            let migration = Some(self.record_factor(&before, wanted, now_ms).await?);
            let after = Tenant { replication_factor: wanted, ..before.clone() };
            return Ok(FactorChanged { before, after, migration });
        }
        let _held = self.held_while_empty(FACTOR).await?;
        let after = self.set_factor(&before, wanted).await?;
        if let Err(refused) = self.fenced_while_empty(&after, before.replication_factor).await {
            self.set_factor(&after, before.replication_factor).await?;
            return Err(refused);
        }
        Ok(FactorChanged { before, after, migration: None })
    }

    async fn set_factor(&self, tenant: &Tenant, factor: u8) -> Result<Tenant, Refused> {
        let tenant = Tenant { replication_factor: factor, ..tenant.clone() };
        let after = self.metadata.update_tenant(tenant, self.fenced()).await?;
        self.cluster.tenant_changed(after.clone());
        Ok(after)
    }

    /// Has nodes fence a change of a tenant's replication factor, and checks again that nothing is stored: a coordinator that is cut off
    /// from the metadata store, and whose lease has expired, may have written under the factor of `before` until then.
    async fn fenced_while_empty(&self, tenant: &Tenant, before: u8) -> Result<(), Refused> {
        if !self.fenced() {
            return Ok(());
        }
        self.fences_of(&Tenant { replication_factor: before, ..tenant.clone() }).await?;
        self.nothing_stored(FACTOR, self.nodes().await?).await
    }

    /// Has `nodes`, on which keys were placed until now, fence the present placement for all tenants, and checks again that nothing is
    /// stored on them, for the reason of [`Self::fenced_while_empty`].
    pub(super) async fn placement_fenced(&self, what: &str, nodes: Vec<StorageNode>) -> Result<(), Refused> {
        if !self.fenced() {
            return Ok(());
        }
        let epoch = self.metadata.placement().await?.epoch;
        for node in &nodes {
            self.cluster.raise_fence(&node.id, None, epoch).await.map_err(|error| {
                Refused::NeedsPlacementChange(format!(
                    "{what} requires that every storage node confirms it, and node {} does not: {error}",
                    node.id
                ))
            })?;
        }
        self.nothing_stored(what, nodes).await
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
        match self.may_hold(what).await {
            Ok(()) => {}
            Err(refused) => return Err(self.explained(what, refused).await),
        }
        let held = self.cluster.hold().await;
        self.nothing_stored(what, self.nodes().await?).await?;
        Ok(held)
    }

    async fn may_hold(&self, what: &str) -> Result<(), Refused> {
        if self.cluster.rings().all().count() > 1 {
            let why = format!("{what} requires that records can be moved, since an earlier change moves some still");
            return Err(Refused::NeedsPlacementChange(why));
        }
        self.alone(what).await?;
        self.nothing_stored(what, self.nodes().await?).await
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

    /// Checks that there are nodes for this number of replicas. Those that leave do not count.
    pub(super) async fn enough_nodes(&self, wanted: u8) -> Result<(), Refused> {
        let nodes = members(&self.metadata.placement().await?).len();
        if usize::from(wanted) > nodes { Err(Refused::TooFewNodes { wanted, nodes }) } else { Ok(()) }
    }

    /// A tenant that has, or is to have, more replicas than there are nodes, and how many.
    pub(super) async fn tenant_that_needs_more_than(&self, nodes: usize) -> Result<Option<(Tenant, usize)>, Refused> {
        let mut after: Option<TenantId> = None;
        loop {
            let page = self.metadata.tenants(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(None) };
            after = Some(last.id.clone());
            if let Some(needs) = page.into_iter().find(|tenant| tenant.most_replicas() > nodes) {
                let replicas = needs.most_replicas();
                return Ok(Some((needs, replicas)));
            }
        }
    }

    /// Checks that nothing is stored: there is no tenant, or each of these nodes reports that it is empty.
    async fn nothing_stored(&self, what: &str, nodes: Vec<StorageNode>) -> Result<(), Refused> {
        if self.metadata.tenants(None, 1).await?.is_empty() {
            return Ok(());
        }
        for node in nodes {
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
