//! A node of the ring gets another number of virtual nodes, or another zone: see docs/decisions/0042.

use std::sync::Arc;

use witan_kernel::capability::ZONES;
use witan_kernel::name::{Invalid, NodeId, Zone};
use witan_kernel::port::{Migration, Placement, PlacementChange, StorageNode, StoreError, rules};
use witan_kernel::ring::Member;

use super::migrations::members;
use super::{Catalog, Changed, Refused, Turn, to_its_end};

/// What is to change of a node; what is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUpdate {
    /// The node.
    pub node: NodeId,
    /// Its virtual nodes.
    pub virtual_nodes: Option<u32>,
    /// Its zone.
    pub zone: Option<Zone>,
}

impl NodeUpdate {
    /// As a placement change.
    pub fn change(self) -> PlacementChange {
        PlacementChange::UpdateNode { node: self.node, virtual_nodes: self.virtual_nodes, zone: self.zone }
    }

    fn of(&self, member: &Member) -> Member {
        member.updated(self.virtual_nodes, self.zone.as_ref())
    }
}

impl Catalog {
    /// Changes what a node is in the ring: if records can be moved, by a migration that is recorded, else only if none would have to move.
    /// Runs to completion even if the caller is dropped.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn update_node(
        self: &Arc<Self>,
        turn: Turn,
        update: NodeUpdate,
        now_ms: u64,
    ) -> Result<Changed, Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move { catalog.update(update, now_ms).await }).await
    }

    async fn update(&self, update: NodeUpdate, now_ms: u64) -> Result<Changed, Refused> {
        let _placing = self.placing.lock().await;
        if update.virtual_nodes.is_none() && update.zone.is_none() {
            let remedy = "send virtual_nodes, zone or both; an empty zone is none";
            return Err(Invalid::new("virtual_nodes", "is missing, and so is zone", remedy).into());
        }
        let placement = self.metadata.placement().await?;
        let member = self.member(&update.node, &placement)?;
        let updated = update.of(&member);
        if updated == member {
            return self.nothing_to_update(&member).await;
        }
        if self.moves().await? {
            self.zones_are_known("updating a node").await?;
            return self.record_update(update, &member, &updated, now_ms).await;
        }
        self.update_while_empty(&updated, &placement, now_ms).await?;
        Ok(Changed::made("node updated"))
    }

    /// A member of the newest ring.
    pub(super) fn member(&self, id: &NodeId, placement: &Placement) -> Result<Member, Refused> {
        if !placement.nodes.iter().any(|on_record| on_record.node.id == *id) {
            return Err(StoreError::Missing(format!("node {id}")).into());
        }
        let member = members(placement).iter().find(|member| member.node == *id);
        member.cloned().ok_or_else(|| {
            Refused::MigrationConflict(format!(
                "node {id} leaves the ring, and what it is there cannot change any more"
            ))
        })
    }

    /// It is as it is to be, or is becoming so.
    async fn nothing_to_update(&self, member: &Member) -> Result<Changed, Refused> {
        let updates = |it: &&Migration| {
            matches!(&it.change, PlacementChange::UpdateNode { node, .. } if *node == member.node)
                && !it.cancel_requested
        };
        let Member { node, virtual_nodes, zone } = member;
        let is = format!("node {node} has {virtual_nodes} virtual nodes and {zone}");
        Ok(match self.unended().await?.iter().find(updates) {
            Some(known) => {
                Changed { migration: Some(known.clone()), message: format!("{is} already; records are moved still") }
            }
            None => Changed::made(&format!("{is} already; nothing changes")),
        })
    }

    async fn record_update(
        &self,
        update: NodeUpdate,
        before: &Member,
        after: &Member,
        now_ms: u64,
    ) -> Result<Changed, Refused> {
        let migration = self.metadata.change_placement(update.change(), now_ms).await?;
        self.publish_placement().await;
        let mut parts = Vec::new();
        if before.zone != after.zone {
            parts.push(format!("{} instead of {}", after.zone, before.zone));
        }
        if before.virtual_nodes != after.virtual_nodes {
            parts.push(format!("{} virtual nodes instead of {}", after.virtual_nodes, before.virtual_nodes));
        }
        let message = format!("node {} gets {}; records are moved in the background", after.node, parts.join(" and "));
        Ok(Changed { migration: Some(migration), message })
    }

    async fn update_while_empty(&self, to: &Member, placement: &Placement, now_ms: u64) -> Result<(), Refused> {
        let what = "updating a node";
        let on_record = placement.nodes.iter().map(|on_record| &on_record.node);
        let before = on_record.clone().find(|node| node.id == to.node).ok_or_else(|| rules::no_node(&to.node))?;
        let all: Vec<StorageNode> = on_record.cloned().collect();
        let _held = self.held_while_empty(what).await?;
        if !to.zone.is_none() {
            self.zones_are_known("a zone").await?;
        }
        let after = StorageNode { virtual_nodes: to.virtual_nodes, zone: to.zone.clone(), ..before.clone() };
        self.metadata.put_node(after, now_ms).await?;
        if let Err(refused) = self.placement_fenced(what, all).await {
            self.metadata.put_node(before.clone(), now_ms).await?;
            self.publish_placement().await;
            return Err(refused);
        }
        self.publish_placement().await;
        Ok(())
    }

    /// Checks that every coordinator knows zones, and that none will come that does not: from then on, earlier versions refuse to start.
    pub(super) async fn zones_are_known(&self, what: &str) -> Result<(), Refused> {
        match self.metadata.require(ZONES).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict(why)) => {
                let old = self.without_zones().await?;
                let who = if old.is_empty() { why } else { old.join(", ") };
                Err(Refused::NoZones { what: what.to_owned(), who })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Live coordinators that do not know zones, for people.
    pub(super) async fn without_zones(&self) -> Result<Vec<String>, Refused> {
        let coordinators = self.metadata.coordinators().await?;
        let old = coordinators.iter().filter(|it| it.is_live() && !it.names(ZONES));
        Ok(old.map(|it| format!("coordinator {} (version {})", it.claim.node_id, it.claim.version)).collect())
    }
}
