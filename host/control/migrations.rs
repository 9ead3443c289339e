//! Placement changes that move records: recorded here, and carried out by `upkeep`, one tenant after the other.
//!
//! They need every coordinator to know of tenants that move, every node to clear rows under an epoch, and changes that are fenced. Without
//! that, a change of the placement is made as in `placement`: only while nothing is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use witan_kernel::capability::MOVES;
use witan_kernel::fence::tolerates;
use witan_kernel::name::{Invalid, NodeId, TenantId};
use witan_kernel::placement::{Placed, Step};
use witan_kernel::port::{
    Migration, MigrationStatus, PAGE, Placement, PlacementChange, RingOnRecord, StorageNode, StoreError,
};
use witan_kernel::ring::{Member, Ring};
use witan_kernel::tenant::{Level, Tenant};

use super::{Catalog, Refused, Turn, to_its_end};

/// Migrations that are looked at for those that have not ended: as many as a store keeps.
const ALL: u32 = witan_kernel::port::MIGRATIONS as u32;

/// A change of the nodes that was made, or recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// What moves the records; `None`: nothing has to move, and the change is made.
    pub migration: Option<Migration>,
    /// What happens now, for people.
    pub message: String,
}

impl Changed {
    pub(super) fn made(message: &str) -> Self {
        Self { migration: None, message: message.to_owned() }
    }
}

/// A node that is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The node.
    pub node: NodeId,
    /// It is taken for lost.
    pub force: bool,
    /// Also where acknowledged writes may be gone with it.
    pub accept_loss: bool,
}

impl Catalog {
    /// Whether a change of the placement is recorded and moves records. From the first one on, earlier versions refuse to start.
    pub(super) async fn moves(&self) -> Result<bool, Refused> {
        if !self.cluster.moves() {
            return Ok(false);
        }
        match self.metadata.require(MOVES).await {
            Ok(_) => Ok(true),
            // One that cannot has come in between, and is on record.
            Err(StoreError::Conflict(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Coordinators and nodes that cannot move records, for people; empty: there are none.
    pub(super) async fn too_old(&self) -> Result<Vec<String>, Refused> {
        let coordinators = self.metadata.coordinators().await?;
        let old = coordinators.iter().filter(|it| it.is_live() && !it.names(MOVES));
        let mut all: Vec<String> =
            old.map(|it| format!("coordinator {} (version {})", it.claim.node_id, it.claim.version)).collect();
        let nodes = self.metadata.nodes().await?;
        let old = nodes.iter().map(|on_record| &on_record.node.id).filter(|node| self.cluster.lacks_moves(node));
        all.extend(old.map(|node| format!("storage node {node}")));
        Ok(all)
    }

    /// A refusal because records would have to move, with those that are too old for that, if any are.
    pub(super) async fn explained(&self, what: &str, refused: Refused) -> Refused {
        let Refused::NeedsPlacementChange(why) = refused else { return refused };
        match self.too_old().await {
            Ok(old) if !old.is_empty() => {
                Refused::TooOld { what: what.to_owned(), who: old.join(", "), otherwise: why }
            }
            _ => Refused::NeedsPlacementChange(why),
        }
    }

    pub(super) async fn record_add(&self, node: StorageNode, now_ms: u64) -> Result<Changed, Refused> {
        let id = node.id.clone();
        let migration = self.metadata.change_placement(PlacementChange::AddNode(node), now_ms).await?;
        self.publish_placement().await;
        let mut message = format!("node {id} joins; records are moved to it in the background");
        if !self.cluster.state(&id).reachable {
            message.push_str("; it has not been reached yet, and the change waits until it runs");
        }
        Ok(Changed { migration: Some(migration), message })
    }

    /// Checks that no other node has this address: two nodes with one store would count each of its answers twice.
    pub(super) async fn address_is_free(&self, node: &StorageNode) -> Result<(), Refused> {
        let nodes = self.metadata.nodes().await?;
        let mut others = nodes.iter().map(|on_record| &on_record.node).filter(|other| other.id != node.id);
        match others.find(|other| (&other.host, other.port) == (&node.host, node.port)) {
            None => Ok(()),
            Some(other) => {
                let problem = format!("{}:{} is the address of node {}", node.host, node.port, other.id);
                Err(Invalid::new("host", problem, "send the address at which the new node listens").into())
            }
        }
    }

    pub(super) async fn record_removal(&self, removal: &Removal, now_ms: u64) -> Result<Changed, Refused> {
        let Removal { node: id, force, accept_loss } = removal;
        let placement = self.metadata.placement().await?;
        if !placement.nodes.iter().any(|on_record| on_record.node.id == *id) {
            return Err(StoreError::Missing(format!("node {id}")).into());
        }
        let members = members(&placement);
        let is_member = members.iter().any(|member| member.node == *id);
        if is_member {
            self.may_go(id, members.len() - 1).await?;
        }
        if *force
            && !accept_loss
            && let Some(why) = self.loss_with(id, &placement).await?
        {
            return Err(Refused::SourcesUnreachable(why));
        }
        // Read before the change: afterwards the node may be let go.
        let answers = self.cluster.state(id).reachable;
        let change = PlacementChange::RemoveNode { node: id.clone(), force: *force };
        let migration = self.metadata.change_placement(change, now_ms).await.map_err(|error| match error {
            StoreError::Refused(why) => Refused::NodeInUse(why),
            error => error.into(),
        })?;
        self.publish_placement().await;
        let message = match (*force, answers) {
            (false, true) => format!("node {id} leaves; keep it running until its records have moved"),
            (false, false) => format!(
                "node {id} leaves, and cannot be reached: the change waits for it at its end; if it is lost, repeat the call with force"
            ),
            (true, false) => format!("node {id} is taken for lost; its records are copied from their other replicas"),
            (true, true) => format!(
                "node {id} is taken for lost although it can be reached: what only it has is given up, and its store is never used again; \
                 without force, its records would have been moved"
            ),
        };
        Ok(Changed { migration: Some(migration), message })
    }

    /// Checks that `left` nodes are enough for every tenant.
    pub(super) async fn may_go(&self, id: &NodeId, left: usize) -> Result<(), Refused> {
        let Some((needs, factor)) = self.tenant_that_needs_more_than(left).await? else { return Ok(()) };
        Err(Refused::NodeInUse(format!(
            "without node {id}, {left} nodes would remain, and tenant {} wants {factor} replicas; lower its replication factor first, or \
             add a node",
            needs.id
        )))
    }

    /// Why acknowledged writes may be gone with a node that is taken for lost; `None`: they are not.
    pub(super) async fn loss_with(&self, id: &NodeId, placement: &Placement) -> Result<Option<String>, Refused> {
        let forced = self.unended().await?.into_iter().filter_map(|it| match it.change {
            PlacementChange::RemoveNode { node, force: true } => Some(node),
            _ => None,
        });
        let lost: BTreeSet<NodeId> = forced.chain([id.clone()]).collect();
        let rings: BTreeMap<u64, Ring> =
            placement.rings.iter().map(|ring| (ring.version, Ring::of(&ring.members, placement.epoch))).collect();
        let mut known: BTreeMap<Placed, bool> = BTreeMap::new();
        for tenant in self.every_tenant().await? {
            let Placed { ring, replication_factor, .. } = tenant.placed();
            let survives = *known.entry(tenant.placed()).or_insert_with(|| {
                let ring = rings.get(&ring);
                ring.is_none_or(|ring| tolerates(ring, replication_factor, Level::Quorum, |node| lost.contains(node)))
            });
            if !survives {
                let others = lost.len() - 1;
                let with = if others == 0 { String::new() } else { format!(" and {others} others that are lost") };
                return Ok(Some(format!(
                    "tenant {} has {replication_factor} replicas of each key, and without node {id}{with} some keys would have too few: \
                     acknowledged writes may be gone; bring the node back and remove it without force, or repeat the call with \
                     accept_loss",
                    tenant.id
                )));
            }
        }
        Ok(None)
    }

    pub(super) async fn record_factor(&self, before: &Tenant, to: u8, now_ms: u64) -> Result<Migration, Refused> {
        let tenant = before.id.clone();
        let nodes = members(&self.metadata.placement().await?).len();
        let recorded = self.metadata.change_placement(PlacementChange::ReplicationFactor { tenant, to }, now_ms).await;
        let migration = recorded.map_err(|error| match error {
            StoreError::Refused(_) => Refused::TooFewNodes { wanted: to, nodes },
            StoreError::Conflict(why) => Refused::MigrationConflict(why),
            error => error.into(),
        })?;
        self.publish_tenant(&before.id).await;
        Ok(migration)
    }

    /// Applies a change of the nodes here. It is on record, so a failure to read it again only delays that until it is followed.
    pub(super) async fn publish_placement(&self) {
        match self.metadata.placement().await {
            Ok(placement) => self.cluster.placement_changed(placement),
            Err(error) => tracing::debug!(%error, "a change of the nodes is followed later"),
        }
    }

    /// As [`Self::publish_placement`], for a tenant.
    pub(super) async fn publish_tenant(&self, id: &TenantId) {
        match self.metadata.tenant(id).await {
            Ok(Some(tenant)) => self.cluster.tenant_changed(tenant),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, tenant = %id, "a change of a tenant is followed later"),
        }
    }
}

/// What is known of migrations.
impl Catalog {
    /// A migration.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or another error of the store.
    pub async fn migration(&self, number: u64) -> Result<Migration, Refused> {
        Ok(self.metadata.migration(number).await?)
    }

    /// Migrations, the newest first, before `before`; at most `limit` (1..=1000).
    ///
    /// # Errors
    /// The error of the store.
    pub async fn migrations(&self, before: Option<u64>, limit: u32) -> Result<Vec<Migration>, Refused> {
        Ok(self.metadata.migrations(before, limit).await?)
    }

    /// Migrations that have not ended, the newest first.
    pub(super) async fn unended(&self) -> Result<Vec<Migration>, Refused> {
        let all = self.metadata.migrations(None, ALL).await?;
        Ok(all.into_iter().filter(|it| !it.status.has_ended()).collect())
    }

    /// The phase of each of these migrations that is in progress: that of the tenant which is moved at present.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn phases(&self, of: &[Migration]) -> Result<BTreeMap<u64, &'static str>, Refused> {
        let in_progress: Vec<&Migration> = of.iter().filter(|it| it.status == MigrationStatus::InProgress).collect();
        let moving: Vec<Tenant> = match &in_progress[..] {
            [] => return Ok(BTreeMap::new()),
            [
                Migration {
                    change:
                        PlacementChange::ReplicationFactor { tenant, .. } | PlacementChange::Generation { tenant, .. },
                    ..
                },
            ] => self.metadata.tenant(tenant).await?.into_iter().collect(),
            _ => self.every_tenant().await?,
        };
        let moving: Vec<Tenant> = moving.into_iter().filter(|tenant| tenant.moving.is_some()).collect();
        Ok(in_progress.into_iter().map(|it| (it.number, phase(it, &moving))).collect())
    }

    /// For each node that joins or leaves, how far that is, for people.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn comings_and_goings(&self, nodes: &[StorageNode]) -> Result<BTreeMap<NodeId, String>, Refused> {
        let is_settled = self.cluster.rings().all().count() == 1;
        if is_settled && nodes.iter().all(|node| node.status == witan_kernel::port::NodeStatus::Active) {
            return Ok(BTreeMap::new());
        }
        let mut known = BTreeMap::new();
        for migration in self.unended().await? {
            let (node, does) = match &migration.change {
                PlacementChange::AddNode(node) => (&node.id, "joins"),
                PlacementChange::RemoveNode { node, force: false } => (node, "leaves"),
                PlacementChange::RemoveNode { node, force: true } => (node, "is taken for lost"),
                PlacementChange::UpdateNode { node, .. } => (node, "gets another part of the ring"),
                // What its store is used for is said anyway.
                PlacementChange::ReplaceStore { .. }
                | PlacementChange::ReplicationFactor { .. }
                | PlacementChange::Generation { .. } => continue,
            };
            let (done, total) = (migration.progress.tenants_done, migration.progress.tenants_total);
            let does = if migration.cancel_requested { format!("{does} no longer") } else { does.to_owned() };
            let text =
                format!("{does}: {done} of {total} tenants are where they belong (migration m-{})", migration.number);
            known.entry(node.clone()).or_insert(text);
        }
        Ok(known)
    }

    /// For each of these tenants whose records move, or are to, the migration that moves them.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn pending(&self, tenants: &[Tenant]) -> Result<BTreeMap<TenantId, u64>, Refused> {
        let newest = self.cluster.rings().newest_version();
        let waits = |it: &&Tenant| {
            it.wanted_factor.is_some() || it.wanted_generation.is_some() || it.moving.is_some() || it.ring < newest
        };
        let waiting: Vec<&Tenant> = tenants.iter().filter(waits).collect();
        if waiting.is_empty() {
            return Ok(BTreeMap::new());
        }
        let unended = self.unended().await?;
        let of = |tenant: &Tenant| {
            let own = unended.iter().find(|it| is_of(&it.change, &tenant.id));
            own.or_else(|| unended.iter().find(|it| it.change.changes_ring()))
        };
        let found = waiting.into_iter().filter_map(|it| of(it).map(|migration| (it.id.clone(), migration.number)));
        Ok(found.collect())
    }

    /// Every tenant, page after page.
    pub(super) async fn every_tenant(&self) -> Result<Vec<Tenant>, Refused> {
        let mut all: Vec<Tenant> = Vec::new();
        loop {
            let page = self.metadata.tenants(all.last().map(|last| &last.id), PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Gives a migration up. One that has ended, or is being given up already, is returned as it is. Runs to completion even if the caller
    /// is dropped. `undo`: also if tenants have been moved already, which are moved back.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn cancel_migration(
        self: &Arc<Self>,
        turn: Turn,
        number: u64,
        undo: bool,
        now_ms: u64,
    ) -> Result<Migration, Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move { catalog.give_up(number, undo, now_ms).await }).await
    }

    async fn give_up(&self, number: u64, undo: bool, now_ms: u64) -> Result<Migration, Refused> {
        let _placing = self.placing.lock().await;
        let migration = self.migration(number).await?;
        if migration.status.has_ended() || migration.cancel_requested {
            return Ok(migration);
        }
        self.may_be_given_up(&migration, undo).await?;
        let given_up = self.metadata.cancel_migration(number, now_ms).await.map_err(|error| match error {
            StoreError::Conflict(why) => Refused::TooLate(why),
            error => error.into(),
        })?;
        match &given_up.change {
            PlacementChange::ReplicationFactor { tenant, .. } => self.publish_tenant(tenant).await,
            PlacementChange::Generation { tenant, .. } => {
                self.publish_tenant(tenant).await;
                self.cluster.hook_given_up(tenant).await;
            }
            PlacementChange::ReplaceStore { .. } => self.cluster.stores_changed().await,
            PlacementChange::AddNode(_) | PlacementChange::RemoveNode { .. } | PlacementChange::UpdateNode { .. } => {
                self.publish_placement().await
            }
        }
        Ok(given_up)
    }

    async fn may_be_given_up(&self, migration: &Migration, undo: bool) -> Result<(), Refused> {
        match &migration.change {
            PlacementChange::RemoveNode { node, force: true } => Err(Refused::TooLate(format!(
                "node {node} is taken for lost, and its store is never used again; add the node anew with an empty store"
            ))),
            PlacementChange::ReplicationFactor { tenant, to } if !undo => {
                // One that is deleted moves nowhere.
                let now = self.metadata.tenant(tenant).await?.filter(|tenant| tenant.deleted_at_ms.is_none());
                match now.is_some_and(|now| now.replication_factor == *to) {
                    true => Err(unconfirmed(format!("tenant {tenant} has {to} replicas of each key already"))),
                    false => Ok(()),
                }
            }
            // One whose rows have moved is not taken back: its generation is never used again. The store refuses it.
            PlacementChange::Generation { .. } => Ok(()),
            _ if migration.progress.tenants_done > 0 && !undo => {
                let (done, of) = (migration.progress.tenants_done, migration.progress.tenants_total);
                Err(unconfirmed(format!("{done} of {of} tenants have been moved already")))
            }
            _ => Ok(()),
        }
    }
}

/// What has moved would move back, and nobody has said that this is wanted.
fn unconfirmed(why: String) -> Refused {
    Invalid::new("confirm_undo", format!("is not set, and {why}"), "set it to move the records back").into()
}

/// The nodes of the newest ring.
pub(super) fn members(placement: &Placement) -> &[Member] {
    placement.rings.last().map_or(&[], |RingOnRecord { members, .. }| members)
}

fn is_of(change: &PlacementChange, id: &TenantId) -> bool {
    change.tenant() == Some(id)
}

/// The phase of a migration that is in progress. `moving`: tenants that are being moved.
fn phase(migration: &Migration, moving: &[Tenant]) -> &'static str {
    let concerns = |tenant: &Tenant| is_of(&migration.change, &tenant.id) || migration.change.changes_ring();
    let step = moving.iter().filter(|tenant| concerns(tenant)).find_map(|tenant| tenant.moving.map(|it| it.step));
    let progress = &migration.progress;
    if let PlacementChange::ReplaceStore { .. } = migration.change {
        return "data_copy";
    }
    match step {
        Some(Step::Cutover) => "cutover",
        Some(Step::DualWrite) if progress.keys_done > 0 => "data_copy",
        Some(Step::Preparing | Step::DualWrite) => "dual_write",
        None if progress.tenants_done >= progress.tenants_total => "cleanup",
        None => "dual_write",
    }
}

#[cfg(test)]
mod tests;
