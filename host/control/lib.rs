//! The catalog: tenants and storage nodes as the metadata store has them, and changes to them.
//!
//! A change is stored first and put in force after: what the store has not accepted is never served.

mod follow;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use witan_kernel::hook::{Pending, ReplicaState};
use witan_kernel::name::{Invalid, NodeId, StoreId, TenantId};
use witan_kernel::port::{StorageNode, StoreError};
use witan_kernel::scan::Fullness;
use witan_kernel::tenant::Tenant;
use witan_store::metadata::{Metadata, Placement, Slot};

pub use follow::follow;

/// What the coordinator lets the catalog do to it.
pub trait Cluster: Send + Sync + 'static {
    /// Puts a tenant's change in force here.
    fn tenant_changed(&self, tenant: Tenant);

    /// Another coordinator has changed a tenant: it is read anew, if it is known here.
    fn tenant_outdated(&self, id: &TenantId) -> Pending<Result<(), StoreError>>;

    /// Others have changed nobody knows which tenants.
    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has changed the cluster's secrets: they are read anew.
    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has changed plugins, and the bindings of these slots (`None`: nobody knows which): they are read
    /// anew, and put in force.
    fn plugins_outdated(&self, slots: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>>;

    /// Another coordinator has made or revoked API tokens: they are read anew.
    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>>;

    /// What is known of API tokens here is what the store says now.
    fn tokens_confirmed(&self);

    /// Puts a placement in force here, if it is newer than the one that is.
    fn placement_changed(&self, epoch: u64, nodes: &[StorageNode]);

    /// What is known of a node.
    fn state(&self, node: &NodeId) -> ReplicaState;

    /// Asks a node how full it is; `None` when it does not answer.
    fn fullness(&self, node: &NodeId) -> Pending<Option<Fullness>>;

    /// True for a node that is written to, and not asked, because its store is not the one on record.
    fn is_write_only(&self, node: &NodeId) -> bool;

    /// Asks nodes that are written to only whether their stores are those on record by now.
    fn stores_changed(&self) -> Pending<()>;

    /// Keeps clients' operations out, once those under way have ended, until the answer is dropped.
    fn hold(&self) -> Pending<Held>;
}

/// Operations are kept out while this lives.
pub type Held = Box<dyn Send>;

/// Why a change of the catalog was not made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The request breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store did not accept it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tenant wants more replicas than there are nodes.
    #[error(
        "{wanted} replicas need {wanted} storage nodes and the cluster has {nodes}; add nodes or ask for fewer replicas"
    )]
    TooFewNodes {
        /// Replicas wanted.
        wanted: u8,
        /// Nodes there are.
        nodes: usize,
    },
    /// The node holds data, or tenants need it.
    #[error("{0}")]
    NodeInUse(String),
    /// It would move data, which this version cannot.
    #[error("{0}")]
    NeedsPlacementChange(String),
}

/// Tenants and nodes. Changes to the placement are made one at a time.
pub struct Catalog {
    /// This process, if it holds a lease among the coordinators of a shared store.
    instance: Option<[u8; 16]>,
    metadata: Arc<dyn Metadata>,
    cluster: Arc<dyn Cluster>,
    placing: Arc<Mutex<()>>,
}

impl Catalog {
    /// A catalog over `metadata` whose changes `cluster` follows. `instance`: who holds this coordinator's lease, where several
    /// share the store.
    pub fn new(metadata: Arc<dyn Metadata>, cluster: Arc<dyn Cluster>, instance: Option<[u8; 16]>) -> Self {
        Self { instance, metadata, cluster, placing: Arc::default() }
    }

    /// Stores a new tenant. [`StoreError::Exists`] when there is one of this id.
    pub async fn create_tenant(&self, tenant: Tenant) -> Result<Tenant, Refused> {
        let _placing = self.placing.lock().await;
        self.enough_nodes(tenant.replication_factor).await?;
        let tenant = self.metadata.create_tenant(tenant).await?;
        self.cluster.tenant_changed(tenant.clone());
        Ok(tenant)
    }

    /// One tenant. A deleted one is none.
    pub async fn tenant(&self, id: &TenantId) -> Result<Tenant, Refused> {
        let found = self.metadata.tenant(id).await?.filter(|tenant| tenant.deleted_at_ms.is_none());
        Ok(found.ok_or_else(|| StoreError::Missing(format!("tenant {id}")))?)
    }

    /// Tenants by id, `limit` (1..=1000) of them after `after`.
    pub async fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Result<Vec<Tenant>, Refused> {
        Ok(self.metadata.tenants(after, limit).await?)
    }

    /// Changes what can change while data exists. With `version` 0 the change is applied to whatever stands, and tried
    /// again when another change comes between.
    pub async fn update_tenant(
        &self,
        id: &TenantId,
        version: u64,
        change: impl Fn(&mut Tenant) + Send,
    ) -> Result<Tenant, Refused> {
        /// Each lost race means that somebody else's change went through.
        const TRIES: usize = 16;
        let mut last = None;
        for _ in 0..TRIES {
            let mut tenant = self.tenant(id).await?;
            if version != 0 && tenant.version != version {
                let told =
                    format!("tenant {id} is at version {}, not {version}; read it and decide again", tenant.version);
                return Err(StoreError::Conflict(told).into());
            }
            change(&mut tenant);
            match self.metadata.update_tenant(tenant).await {
                Ok(tenant) => {
                    self.cluster.tenant_changed(tenant.clone());
                    return Ok(tenant);
                }
                Err(error @ StoreError::Conflict(_)) if version == 0 => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.unwrap_or_else(|| StoreError::Conflict(format!("tenant {id} keeps changing"))).into())
    }

    /// Deletes a tenant: from now on requests do not find it, and its id is never given to another. With `version` 0 whatever
    /// stands is deleted. One that is deleted already stays as it is. What it has stored is for the caller to remove.
    pub async fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64) -> Result<Tenant, Refused> {
        let version = match (version, self.metadata.tenant(id).await?) {
            (0, Some(stands)) => stands.version,
            (version, _) => version,
        };
        let deleted = self.metadata.delete_tenant(id, version, now_ms).await?;
        self.cluster.tenant_changed(deleted.clone());
        Ok(deleted)
    }

    /// The replication factors of a tenant, or of all of them, each once.
    pub async fn replication_factors(&self, tenant: Option<&TenantId>) -> Result<Vec<u8>, Refused> {
        if let Some(tenant) = tenant {
            return Ok(vec![self.tenant(tenant).await?.replication_factor]);
        }
        let (mut factors, mut after) = (Vec::new(), None);
        loop {
            let page = self.metadata.tenants(after.as_ref(), witan_store::metadata::PAGE).await?;
            let Some(last) = page.last() else { return Ok(factors) };
            after = Some(last.id.clone());
            factors.extend(page.iter().map(|tenant| tenant.replication_factor));
            factors.sort_unstable();
            factors.dedup();
        }
    }

    /// The store ids on record.
    pub async fn stores(&self) -> Result<HashMap<NodeId, StoreId>, Refused> {
        let nodes = self.metadata.nodes().await?;
        Ok(nodes.into_iter().filter_map(|on_record| Some((on_record.node.id, on_record.store_id?))).collect())
    }

    /// Records a node's new store, which holds all that it has to, in place of the one on record, `from`.
    pub async fn replace_store(&self, node: &NodeId, from: StoreId, to: StoreId) -> Result<(), Refused> {
        self.metadata.replace_store_id(node, from, to).await?;
        self.cluster.stores_changed().await;
        Ok(())
    }

    /// Changes a tenant's replication factor, where no data would have to move. Answers with the tenant before and after.
    pub async fn change_replication_factor(&self, id: &TenantId, wanted: u8) -> Result<(Tenant, Tenant), Refused> {
        let _placing = self.placing.lock().await;
        let before = self.tenant(id).await?;
        if before.replication_factor == wanted {
            return Ok((before.clone(), before));
        }
        self.enough_nodes(wanted).await?;
        let _held = self.held_while_empty("a change of the replication factor").await?;
        let mut tenant = before.clone();
        tenant.replication_factor = wanted;
        let after = self.metadata.update_tenant(tenant).await?;
        self.cluster.tenant_changed(after.clone());
        Ok((before, after))
    }

    /// The storage nodes on record.
    pub async fn nodes(&self) -> Result<Vec<StorageNode>, Refused> {
        Ok(self.metadata.nodes().await?.into_iter().map(|on_record| on_record.node).collect())
    }

    /// Lets a node take part, where no data would have to move.
    pub async fn add_node(&self, node: StorageNode, now_ms: u64) -> Result<(), Refused> {
        let _placing = self.placing.lock().await;
        let _held = self.held_while_empty("a node that joins").await?;
        self.metadata.add_node(node, now_ms).await?;
        self.publish_nodes().await
    }

    /// Lets a node go, where no data would have to move.
    pub async fn remove_node(&self, id: &NodeId) -> Result<(), Refused> {
        let _placing = self.placing.lock().await;
        let left = self.nodes().await?.iter().filter(|node| node.id != *id).count();
        if let Some(needs) = self.tenant_that_needs_more_than(left).await? {
            let told = format!(
                "tenant {} wants {} replicas and {left} nodes would be left; lower its replication factor first",
                needs.id, needs.replication_factor
            );
            return Err(Refused::NodeInUse(told));
        }
        let _held = self.held_while_empty("a node that leaves").await?;
        self.metadata.remove_node(id).await?;
        self.publish_nodes().await
    }

    /// Keeps operations and other changes of the placement out for a change that would move data if there were any: given
    /// only while nothing is stored.
    pub async fn hold_while_empty(&self, what: &str) -> Result<Held, Refused> {
        let placing = Arc::clone(&self.placing).lock_owned().await;
        let held = self.held_while_empty(what).await?;
        Ok(Box::new((held, placing)))
    }

    /// Operations are kept out only once it is likely that the change can be made: one that is refused disturbs nobody.
    async fn held_while_empty(&self, what: &str) -> Result<Held, Refused> {
        self.alone(what).await?;
        self.nothing_stored(what).await?;
        let held = self.cluster.hold().await;
        self.nothing_stored(what).await?;
        Ok(held)
    }

    /// Only this coordinator's operations can be kept out.
    async fn alone(&self, what: &str) -> Result<(), Refused> {
        let Some(instance) = self.instance else { return Ok(()) };
        let coordinators = self.metadata.coordinators().await?;
        let other = coordinators.iter().find(|it| it.is_live() && it.claim.instance != instance);
        match other.map(|it| &it.claim.node_id) {
            None => Ok(()),
            Some(other) => Err(Refused::NeedsPlacementChange(format!(
                "{what} needs this coordinator to be alone, and coordinator {other} is running too: stop the others, change \
                 it, and start them again"
            ))),
        }
    }

    /// What is known of a node here.
    pub fn state(&self, node: &NodeId) -> ReplicaState {
        self.cluster.state(node)
    }

    /// True for a node that is written to, and not asked.
    pub fn is_write_only(&self, node: &NodeId) -> bool {
        self.cluster.is_write_only(node)
    }

    /// How full a node is; `None` when it does not answer.
    pub async fn fullness(&self, node: &StorageNode) -> Option<Fullness> {
        self.cluster.fullness(&node.id).await
    }

    async fn publish_nodes(&self) -> Result<(), Refused> {
        let Placement { epoch, nodes } = self.metadata.placement().await?;
        let nodes: Vec<StorageNode> = nodes.into_iter().map(|on_record| on_record.node).collect();
        self.cluster.placement_changed(epoch, &nodes);
        Ok(())
    }

    async fn enough_nodes(&self, wanted: u8) -> Result<(), Refused> {
        let nodes = self.metadata.nodes().await?.len();
        if usize::from(wanted) > nodes { Err(Refused::TooFewNodes { wanted, nodes }) } else { Ok(()) }
    }

    async fn tenant_that_needs_more_than(&self, nodes: usize) -> Result<Option<Tenant>, Refused> {
        let mut after: Option<TenantId> = None;
        loop {
            let page = self.metadata.tenants(after.as_ref(), witan_store::metadata::PAGE).await?;
            let Some(last) = page.last() else { return Ok(None) };
            after = Some(last.id.clone());
            if let Some(needs) = page.into_iter().find(|t| usize::from(t.replication_factor) > nodes) {
                return Ok(Some(needs));
            }
        }
    }

    /// Data would have to move unless there is none: no tenant, or every node says that it is empty.
    async fn nothing_stored(&self, what: &str) -> Result<(), Refused> {
        if self.metadata.tenants(None, 1).await?.is_empty() {
            return Ok(());
        }
        for node in self.nodes().await? {
            let told = match self.cluster.fullness(&node.id).await {
                Some(Fullness { keys: 0, .. }) => continue,
                Some(Fullness { keys, .. }) => format!("node {} holds about {keys} records", node.id),
                None => format!("node {} does not answer, so it may hold data", node.id),
            };
            return Err(Refused::NeedsPlacementChange(format!(
                "{what} would have to move data, which this version does not do: {told}"
            )));
        }
        Ok(())
    }
}
