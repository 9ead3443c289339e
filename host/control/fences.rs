//! Fences: a change of what a promise rests on is answered only when no coordinator can go on under what was before.
//!
//! The transaction that makes such a change records that every storage node owes a fence. Whoever made the change has the nodes raise it,
//! and the change is answered when enough of them have: those that have not must be too few in every range of the ring to meet any level
//! that was allowed before. The others are asked again for as long as they owe it, by every coordinator: none of them has to live.
//!
//! A coordinator that has not followed the change is refused by the nodes, and begins again once it has. One that is cut off from the
//! metadata store is refused for as long as it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, sleep, timeout};
use witan_kernel::fault::Fault;
use witan_kernel::fence::tolerates;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{Metadata, OWED, OwedFence, Owing, StoreError};
use witan_kernel::scan::Removed;
use witan_kernel::tenant::{Level, Tenant};

use super::{Catalog, Cluster, Refused};

/// How long a change waits for the nodes' fences before it is answered that some are missing: as long as a node needs to be connected
/// again after a restart.
const PATIENCE: Duration = Duration::from_secs(3);
/// The pause between two requests for the same fences.
const AGAIN: Duration = Duration::from_millis(200);
/// How often owed fences are looked for that nobody waits for.
const EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether every coordinator knows of a change whose fences nobody waits for.
const SOON: Duration = Duration::from_millis(500);
/// How long such fences wait for live coordinators, so that none is refused that is about to know: longer than a component waits for its
/// turn and is compiled, on a machine that has little time for it. One that is cut off is waited for until its lease has expired.
const DRAINS: Duration = Duration::from_secs(120);
/// Nodes that are asked at a time.
const NODES: usize = 16;

/// Nodes that owe a fence still, each with the reason.
pub(super) type Lacking = BTreeMap<NodeId, String>;

impl Catalog {
    /// Whether changes are fenced from now on: every coordinator knows fences, and none can come that does not.
    pub(super) fn fenced(&self) -> bool {
        self.cluster.fences()
    }

    /// Has the nodes raise the fences that they owe for changes of a tenant. `tenant` is as before the changes, or as after them where its
    /// replicas are the same.
    ///
    /// # Errors
    /// [`Refused::FencesOwed`] when they are not enough after [`PATIENCE`]: the change is stored, and must not be answered as made.
    pub(super) async fn fences_of(&self, tenant: &Tenant) -> Result<(), Refused> {
        if Fault::FenceNotAwaited.is_on() {
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let (lacking, level) = self.raise(&tenant.id).await?;
            if self.tolerated(tenant, level, &lacking) {
                return Ok(());
            }
            if Instant::now() + AGAIN >= until {
                return Err(Refused::FencesOwed { tenant: tenant.id.clone(), lacking });
            }
            sleep(AGAIN).await;
        }
    }

    /// Whether nodes that lack a fence are too few for the level, where the tenant's records are and where they move: a coordinator that
    /// does not know of the change may be at any step of that.
    pub(super) fn tolerated(&self, tenant: &Tenant, level: Level, lacking: &Lacking) -> bool {
        let rings = self.cluster.rings();
        let places = [Some(tenant.placed()), tenant.moving.map(|moving| moving.to)];
        places.into_iter().flatten().all(|placed| match rings.version(placed.ring) {
            Some(ring) => tolerates(ring, placed.replication_factor, level, |node| lacking.contains_key(node)),
            // A change of the nodes that is not followed here yet.
            None => lacking.is_empty(),
        })
    }

    /// Every node with the same reason, also those whose records are moved away.
    pub(super) fn every_node(&self, why: &str) -> Lacking {
        self.cluster.rings().nodes().into_iter().map(|node| (node, why.to_owned())).collect()
    }

    /// Asks every node that owes a fence for this tenant to raise it. Returns those that owe one still, and the least level that was
    /// allowed before the changes.
    async fn raise(&self, tenant: &TenantId) -> Result<(Lacking, Level), StoreError> {
        let owed = self.metadata.owed_fences(Some(tenant), None).await?;
        let level = owed.iter().map(|owed| owed.level).min().unwrap_or(Level::All);
        Ok((raise(self.metadata.as_ref(), self.cluster.as_ref(), owed).await, level))
    }
}

/// Has nodes raise the fences that they owe, and forgets those that they have. Returns the nodes that owe one still.
async fn raise(metadata: &dyn Metadata, cluster: &dyn Cluster, owed: Vec<OwedFence>) -> Lacking {
    let each = stream::iter(owed).map(|OwedFence { tenant, node, epoch, .. }| async move {
        let raised = match cluster.raise_fence(&node, tenant.as_ref(), epoch).await {
            Ok(()) => metadata.fence_raised(tenant.as_ref(), &node, epoch).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        raised.err().map(|why| (node, why))
    });
    each.buffered(NODES).filter_map(std::future::ready).collect().await
}

/// How often nodes are asked again to remove what a deletion has left.
const REMOVE_EVERY: Duration = Duration::from_secs(10);
/// How long ago a tenant must have been deleted until its records are removed without being asked for: by then the call that has deleted
/// it, which removes them as well, has usually ended.
const LEFT_AFTER_MS: u64 = 20_000;

impl Catalog {
    /// Removes a deleted tenant's records from these nodes, or from every one, and notes the nodes that hold none any longer. Those do not
    /// count that a coordinator which does not know of the deletion could still write to.
    pub(super) async fn remove_records(&self, tenant: &TenantId, from: Option<Vec<NodeId>>, until: Instant) -> Removed {
        let asked = from.clone().unwrap_or_else(|| self.cluster.rings().nodes());
        let lacking =
            self.raise(tenant).await.map_or_else(|error| self.every_node(&error.to_string()), |raised| raised.0);
        let removed = self.cluster.remove_records(tenant, from, until).await;
        let left = |node: &&NodeId| removed.incomplete.contains_key(*node) || lacking.contains_key(*node);
        for node in asked.iter().filter(|node| !left(node)) {
            // What is not noted is removed again, and there is nothing left then.
            if let Err(error) = self.metadata.records_removed(tenant, node).await {
                tracing::debug!(%error, %tenant, %node, "that a node holds no record of a deleted tenant could not be noted");
            }
        }
        removed
    }

    /// Removes what deletions have left on nodes that could not be reached then, for as long as it is polled.
    pub async fn remove_leftovers(self: Arc<Self>) {
        loop {
            sleep(REMOVE_EVERY).await;
            let Ok(now) = self.metadata.now_ms().await else { continue };
            let Ok(owed) = self.every_removal(now.saturating_sub(LEFT_AFTER_MS)).await else { continue };
            let mut of: BTreeMap<TenantId, Vec<NodeId>> = BTreeMap::new();
            for (tenant, node) in owed {
                of.entry(tenant).or_default().push(node);
            }
            for (tenant, nodes) in of {
                let removed = self.remove_records(&tenant, Some(nodes), Instant::now() + REMOVE_EVERY).await;
                if removed.records > 0 {
                    tracing::info!(%tenant, records = removed.records, "removed what the deletion of a tenant had left");
                }
            }
        }
    }

    /// Has nodes raise the fences that they owe and that nobody waits for, for as long as it is polled: those of nodes that were away, and
    /// of changes whose coordinator has stopped, and those of bindings.
    ///
    /// A node refuses every coordinator that does not know of the change yet, so they are given time for that first, within a bound.
    pub async fn raise_owed_fences(self: Arc<Self>) {
        let mut known = Lacking::new();
        let mut since: BTreeMap<u64, Instant> = BTreeMap::new();
        let mut pause = EVERY;
        loop {
            _ = timeout(pause, self.owing.notified()).await;
            let Ok(owed) = self.every_fence().await else { continue };
            let now = Instant::now();
            since.retain(|epoch, _| owed.iter().any(|owed| owed.epoch == *epoch));
            owed.iter().for_each(|owed| _ = since.entry(owed.epoch).or_insert(now));
            let known_to_all = if owed.is_empty() { u64::MAX } else { self.known_to_all().await };
            let is_due = |owed: &OwedFence| owed.epoch <= known_to_all || now >= since[&owed.epoch] + DRAINS;
            let (due, early): (Vec<_>, Vec<_>) = owed.into_iter().partition(is_due);
            pause = if early.is_empty() { EVERY } else { SOON };
            let lacking = raise(self.metadata.as_ref(), self.cluster.as_ref(), due.clone()).await;
            let left = due.iter().filter(|owed| lacking.contains_key(&owed.node)).count();
            self.owed.set((left + early.len()) as i64);
            if !lacking.keys().eq(known.keys()) {
                report(&lacking);
            }
            known = lacking;
        }
    }
}

/// Nodes that may still serve a coordinator which goes by earlier bindings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfenced {
    /// The tenant; `None`: every one.
    pub tenant: Option<TenantId>,
    /// The nodes that have not confirmed the change of a tenant yet.
    pub nodes: Vec<NodeId>,
    /// True if they are too few for any operation by themselves, so that the change is in force all the same.
    pub enough: bool,
}

impl Catalog {
    /// The nodes that owe fences of a tenant, and of all tenants; `None`: of any tenant. By tenant, those of all tenants first.
    ///
    /// # Errors
    /// The store's.
    pub async fn unfenced(&self, of: Option<&TenantId>) -> Result<Vec<Unfenced>, Refused> {
        let mut lacking: BTreeMap<Option<TenantId>, (Level, Lacking)> = BTreeMap::new();
        for OwedFence { tenant, node, level, .. } in self.every_fence().await? {
            if tenant.is_none() || of.is_none() || tenant.as_ref() == of {
                let (least, nodes) = lacking.entry(tenant).or_insert((level, Lacking::new()));
                *least = level.min(*least);
                nodes.insert(node, String::new());
            }
        }
        let mut unfenced = Vec::new();
        for (tenant, (level, lacking)) in lacking {
            let known = match &tenant {
                Some(id) => self.metadata.tenant(id).await?,
                None => None,
            };
            let enough = known.is_some_and(|tenant| self.tolerated(&tenant, level, &lacking));
            unfenced.push(Unfenced { tenant, nodes: lacking.into_keys().collect(), enough });
        }
        Ok(unfenced)
    }

    /// The revision up to which every operation under way, at any live coordinator, knows all changes; 0 if that cannot be said.
    async fn known_to_all(&self) -> u64 {
        let Ok(all) = self.metadata.coordinators().await else { return 0 };
        let others = all.iter().filter(|it| it.is_live() && Some(it.claim.instance) != self.instance);
        others.map(|it| it.drained).chain([self.cluster.drained()]).min().unwrap_or(0)
    }
}

/// What is owed, page after page: a node that is away for long must not hold up what others owe.
impl Catalog {
    async fn every_fence(&self) -> Result<Vec<OwedFence>, StoreError> {
        let mut all: Vec<OwedFence> = Vec::new();
        loop {
            let after = all.last().map(|owed| (owed.tenant.clone(), owed.node.clone()));
            let page = self.metadata.owed_fences(None, after).await?;
            let is_last = page.len() < OWED;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    async fn every_removal(&self, deleted_by_ms: u64) -> Result<Vec<Owing>, StoreError> {
        let mut all: Vec<Owing> = Vec::new();
        loop {
            let page = self.metadata.owed_removals(deleted_by_ms, all.last().cloned()).await?;
            let is_last = page.len() < OWED;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }
}

fn report(lacking: &Lacking) {
    match lacking.is_empty() {
        true => tracing::info!("every node has the fences of all changes"),
        false => tracing::warn!(
            nodes = lacking.keys().map(NodeId::as_str).collect::<Vec<_>>().join(", "),
            why = lacking.values().next().map_or("", String::as_str),
            "nodes lack the fences of changes, so that coordinators which are cut off from the metadata store may still use them under \
             earlier settings"
        ),
    }
}
