//! A repair: a sweep, and after it the decision which new stores may be read from now on.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use witan_coordinate::World;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{Metadata, PAGE, StoreError};
use witan_kernel::scan::Ranges;

use super::Upkeep;
use super::runner::{Kind, Task};
use super::sweep::{Stopped, Sweep, Swept};

/// Why a repair did not begin.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    /// As many repairs are running as may.
    #[error("the most repairs that may run are running; wait for one of them to end, or cancel it")]
    Busy,
    /// The tenant to be repaired is deleted or unknown.
    #[error("tenant {0} does not exist")]
    TenantNotFound(TenantId),
    /// The metadata store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How a repair ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// What the sweep did. Stores that were put on record are no longer among `filled`; those that were not are in `unfilled`.
    pub swept: Swept,
    /// Nodes whose new stores are on record, and read, from now on.
    pub restored: Vec<NodeId>,
}

/// A repair that has its turn and knows what to compare.
pub struct Repair<W: World> {
    upkeep: Arc<Upkeep<W>>,
    sweep: Sweep,
    /// Stores on record when it began.
    stores: HashMap<NodeId, StoreId>,
    task: Task,
}

impl<W: World> Upkeep<W> {
    /// Takes a turn for a repair and reads what it has to know: the replication factors of the tenants concerned (they fill
    /// [`Sweep::factors`]) and the stores on record.
    ///
    /// # Errors
    /// [`NotBegun`]; nothing was done.
    pub async fn begin_repair(self: &Arc<Self>, mut sweep: Sweep) -> Result<Repair<W>, NotBegun> {
        let task = self.runner.begin(Kind::Repair, || describe(&sweep)).ok_or(NotBegun::Busy)?;
        sweep.factors = match &sweep.tenant {
            Some(tenant) => vec![self.replication_factor(tenant).await?],
            None => replication_factors(self.metadata.as_ref()).await?,
        };
        let nodes = self.metadata.nodes().await?;
        let stores = nodes.into_iter().filter_map(|on_record| Some((on_record.node.id, on_record.store_id?))).collect();
        Ok(Repair { upkeep: Arc::clone(self), sweep, stores, task })
    }

    async fn replication_factor(&self, id: &TenantId) -> Result<u8, NotBegun> {
        let tenant = self.metadata.tenant(id).await?.filter(|tenant| tenant.deleted_at_ms.is_none());
        tenant.map(|tenant| tenant.replication_factor).ok_or_else(|| NotBegun::TenantNotFound(id.clone()))
    }
}

impl<W: World> Repair<W> {
    /// Sweeps, and puts on record those new stores that hold everything afterwards. Progress goes to `progress`; when nobody takes it
    /// any more, the repair stops after the work under way.
    ///
    /// # Errors
    /// [`Stopped`]; what was repaired until then stays repaired.
    pub async fn run(self, progress: mpsc::Sender<Swept>) -> Result<Repaired, Stopped> {
        let factors = self.sweep.factors.clone();
        let swept = self.upkeep.sweep(self.sweep.clone(), progress, &self.task).await;
        match swept {
            Ok(swept) => Ok(self.conclude(&factors, swept).await),
            Err(stopped) => {
                if let Stopped::Failed(failure) = &stopped {
                    self.task.failed(failure.to_string());
                }
                Err(stopped)
            }
        }
    }

    async fn conclude(&self, factors: &[u8], mut swept: Swept) -> Repaired {
        let mut restored = Vec::new();
        for (node, store) in std::mem::take(&mut swept.filled) {
            match self.believe(factors, &node, store).await {
                Ok(()) => {
                    tracing::info!(%node, %store, "the node's new store holds all that it has to: it is asked again");
                    restored.push(node);
                }
                Err(why) => drop(swept.unfilled.insert(node, why.to_string())),
            }
        }
        if !restored.is_empty() {
            self.upkeep.coordinator.ports().replicas.stores_changed().await;
        }
        if !swept.is_complete() {
            self.task.failed(incomplete(&swept));
        }
        Repaired { swept, restored }
    }

    /// Puts a new store on record in place of the one that was when the repair began.
    async fn believe(&self, factors: &[u8], node: &NodeId, store: StoreId) -> Result<(), NotBelieved> {
        let from = self.stores.get(node).ok_or(NotBelieved::NoneOnRecord)?;
        // Which replicas were compared with each other depends on the replication factors: a key of a tenant with another one, whose
        // writes the lost store may have acknowledged, was not looked for everywhere.
        let now = replication_factors(self.upkeep.metadata.as_ref()).await.map_err(NotBelieved::Unknown)?;
        if now.iter().any(|factor| !factors.contains(factor)) && !Fault::FactorsUnchecked.is_on() {
            return Err(NotBelieved::NewFactor);
        }
        self.upkeep.metadata.replace_store_id(node, *from, store).await.map_err(NotBelieved::NotRecorded)
    }
}

/// Why a new store that was filled is not read.
#[derive(Debug, thiserror::Error)]
enum NotBelieved {
    #[error("no store of this node was on record when the repair began")]
    NoneOnRecord,
    #[error("{0}")]
    Unknown(StoreError),
    #[error("a tenant with another replication factor was created meanwhile; repeat the repair")]
    NewFactor,
    #[error("it could not be put on record: {0}")]
    NotRecorded(StoreError),
}

/// The replication factors of all tenants that are not deleted, each once, in order.
async fn replication_factors(metadata: &dyn Metadata) -> Result<Vec<u8>, StoreError> {
    let (mut factors, mut after) = (Vec::new(), None);
    loop {
        let page = metadata.tenants(after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(factors) };
        after = Some(last.id.clone());
        factors.extend(page.iter().map(|tenant| tenant.replication_factor));
        factors.sort_unstable();
        factors.dedup();
    }
}

fn describe(sweep: &Sweep) -> String {
    let part = if sweep.is_everything() { "all ranges" } else { "part of the ring" };
    sweep.tenant.as_ref().map_or_else(|| format!("repair {part}"), |tenant| format!("repair {part} of tenant {tenant}"))
}

fn incomplete(swept: &Swept) -> String {
    let nodes: Vec<String> = swept.missing.iter().map(|(node, why)| format!("{node}: {why}")).collect();
    let (ranges, failed) = (swept.ranges_incomplete, swept.failed);
    format!("{ranges} ranges incomplete, {failed} records failed; {}", nodes.join("; "))
}
