//! Changes to the storage nodes.

use std::sync::Arc;

use witan_kernel::capability::ZONES;
use witan_kernel::condition::Condition;
use witan_kernel::hook::ReplicaState;
use witan_kernel::name::{Era, Invalid, NodeId};
use witan_kernel::port::{Duties, MIGRATIONS, Metadata, PlacementChange, StorageNode, StoreError};
use witan_kernel::scan::{Fullness, Trust};

use super::{Catalog, Changed, Refused, Removal, Turn, to_its_end};

/// Registers the nodes that a coordinator's configuration names. On the first start they form the cluster. Later nodes join
/// through [`Catalog::add_node`]; here a node that has moved gets its new address, since its data moved with it. Its number of
/// virtual nodes and its zone stay as they are: other ones would move keys without their data.
///
/// # Errors
/// [`Refused::UnknownNode`] for a node that was never part of a cluster that has nodes, or the error of the store.
pub async fn register(metadata: &dyn Metadata, configured: &[StorageNode], now_ms: u64) -> Result<(), Refused> {
    if configured.iter().any(|node| !node.zone.is_none()) && metadata.nodes().await?.is_empty() {
        // Coordinators that do not know zones would place keys elsewhere.
        metadata.require(ZONES).await.map_err(|error| match error {
            StoreError::Conflict(who) => Refused::NoZones { what: "a zone".to_owned(), who },
            error => error.into(),
        })?;
    }
    metadata.found_nodes(configured.to_vec(), now_ms).await?;
    let on_record = metadata.nodes().await?;
    for node in configured {
        let known = on_record.iter().map(|on_record| &on_record.node).find(|known| known.id == node.id);
        let Some(known) = known else {
            // Configurations name the nodes that have founded the cluster, and are not always changed when one has left.
            match has_left(metadata, &node.id).await? {
                true => {
                    tracing::warn!(node = %node.id, "a configured node was removed from the cluster; take it out of the configuration")
                }
                false => return Err(Refused::UnknownNode(node.id.clone())),
            }
            continue;
        };
        if known.virtual_nodes != node.virtual_nodes {
            tracing::warn!(
                node = %node.id,
                on_record = known.virtual_nodes,
                configured = node.virtual_nodes,
                "a node's number of virtual nodes is taken from the configuration when the cluster is founded; later what is configured \
                 has no effect: use `witan nodes update --virtual-nodes`"
            );
        }
        if known.zone != node.zone && !node.zone.is_none() {
            tracing::warn!(
                node = %node.id,
                on_record = known.zone.as_str(),
                configured = node.zone.as_str(),
                "a node's zone is taken from the configuration when the cluster is founded; later what is configured has no effect: use \
                 `witan nodes update --zone`"
            );
        }
        if (&known.host, known.port) != (&node.host, node.port) {
            metadata.readdress_node(&node.id, &node.host, node.port, now_ms).await?;
        }
    }
    Ok(())
}

/// Whether a migration that is on record still has removed this node.
async fn has_left(metadata: &dyn Metadata, id: &NodeId) -> Result<bool, Refused> {
    let migrations = metadata.migrations(None, MIGRATIONS as u32).await?;
    Ok(migrations.iter().any(|it| matches!(&it.change, PlacementChange::RemoveNode { node, .. } if node == id)))
}

impl Catalog {
    /// The storage nodes on record.
    pub async fn nodes(&self) -> Result<Vec<StorageNode>, Refused> {
        Ok(self.metadata.nodes().await?.into_iter().map(|on_record| on_record.node).collect())
    }

    /// What is healed by whom, as on record.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn duties(&self) -> Result<Duties, Refused> {
        Ok(self.metadata.duties().await?)
    }

    /// Adds a node: if records can be moved, by a migration that is recorded, else only if none would have to move. Runs to completion even
    /// if the caller is dropped.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn add_node(self: &Arc<Self>, turn: Turn, node: StorageNode, now_ms: u64) -> Result<Changed, Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move {
            let _placing = catalog.placing.lock().await;
            catalog.address_is_free(&node).await?;
            match catalog.moves().await? {
                true => {
                    if !node.zone.is_none() {
                        catalog.zones_are_known("a zone").await?;
                    }
                    catalog.record_add(node, now_ms).await
                }
                false => catalog.add_while_empty(node, now_ms).await.map(|()| Changed::made("node added")),
            }
        })
        .await
    }

    async fn add_while_empty(&self, node: StorageNode, now_ms: u64) -> Result<(), Refused> {
        let what = "adding a node";
        let _held = self.held_while_empty(what).await?;
        if !node.zone.is_none() {
            self.zones_are_known("a zone").await?;
        }
        let (before, id) = (self.nodes().await?, node.id.clone());
        self.metadata.add_node(node, now_ms).await?;
        if let Err(refused) = self.placement_fenced(what, before).await {
            self.metadata.remove_node(&id).await?;
            return Err(refused);
        }
        self.publish_nodes().await
    }

    /// Removes a node: if records can be moved, by a migration that is recorded, else only if none would have to move. Runs to completion
    /// even if the caller is dropped.
    ///
    /// # Errors
    /// The rule that refuses it, or the error of the store.
    pub async fn remove_node(self: &Arc<Self>, turn: Turn, removal: Removal, now_ms: u64) -> Result<Changed, Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move {
            let _placing = catalog.placing.lock().await;
            if removal.accept_loss && !removal.force {
                let remedy = "set force as well for a node that is lost, or leave it out";
                return Err(Invalid::new("accept_loss", "is set without force", remedy).into());
            }
            match catalog.moves().await? {
                true => catalog.record_removal(&removal, now_ms).await,
                false => catalog.remove_while_empty(&removal).await.map(|()| Changed::made("node removed")),
            }
        })
        .await
    }

    async fn remove_while_empty(&self, removal: &Removal) -> Result<(), Refused> {
        let (what, id) = ("removing a node", &removal.node);
        if removal.force {
            let why = "force takes a node for lost while its records are stored elsewhere, which is not supported here";
            return Err(self.explained(what, Refused::NeedsPlacementChange(why.to_owned())).await);
        }
        let left = self.nodes().await?.iter().filter(|node| node.id != *id).count();
        self.may_go(id, left).await?;
        let _held = self.held_while_empty(what).await?;
        let before = self.nodes().await?;
        self.metadata.remove_node(id).await?;
        if let Err(refused) = self.placement_fenced(what, before.clone()).await {
            // Its store goes on record again when it is next met.
            if let Some(node) = before.into_iter().find(|node| node.id == *id) {
                self.metadata.add_node(node, self.metadata.now_ms().await?).await?;
            }
            self.publish_nodes().await?;
            return Err(refused);
        }
        self.publish_nodes().await
    }

    /// A node's state as last observed here.
    pub fn state(&self, node: &NodeId) -> ReplicaState {
        self.cluster.state(node)
    }

    /// The condition of a node's store as it reported it last; `None` if it is not known.
    pub fn condition(&self, node: &NodeId) -> Option<Condition> {
        self.cluster.condition(node)
    }

    /// Declares that an earlier copy of all storage nodes was restored: see
    /// [`SecretStore::begin_era`](witan_kernel::port::SecretStore::begin_era).
    ///
    /// # Errors
    /// The error of the store.
    pub async fn declare_restored(
        self: &Arc<Self>,
        turn: Turn,
        era: Era,
        fresh: [u8; 32],
        now_ms: u64,
    ) -> Result<(), Refused> {
        let catalog = Arc::clone(self);
        to_its_end(turn, async move {
            catalog.metadata.begin_era(era, fresh, catalog.cluster.highest_fence(), now_ms).await?;
            tracing::warn!(%era, "an operator has declared that an earlier copy of all storage nodes was restored");
            catalog.cluster.secrets_outdated().await?;
            catalog.cluster.stores_changed().await;
            Ok(())
        })
        .await
    }

    /// What a node's store may be used for; `None` while the node cannot be reached.
    pub fn trust(&self, node: &NodeId) -> Option<Trust> {
        self.cluster.trust(node)
    }

    /// True for a node that is asked last here, since it is drained.
    pub fn is_drained(&self, node: &NodeId) -> bool {
        self.cluster.is_drained(node)
    }

    /// How full a node is; `None` when it does not respond.
    pub async fn fullness(&self, node: &StorageNode) -> Option<Fullness> {
        self.cluster.fullness(&node.id).await
    }

    async fn publish_nodes(&self) -> Result<(), Refused> {
        self.cluster.placement_changed(self.metadata.placement().await?);
        Ok(())
    }
}
