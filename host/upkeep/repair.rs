//! A repair: admits the new stores of nodes, sweeps, and decides which of the new stores are used from now on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;
use witan_coordinate::World;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::placement::Placed;
use witan_kernel::port::{Metadata, PAGE, Replicas, StoreError};
use witan_kernel::scan::{Ranges, Trust};

use super::Upkeep;
use super::runner::{Kind, Task};
use super::sweep::{Admitted, Stopped, Sweep, Swept};

/// Why a repair did not begin.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    /// The limit on concurrent repairs is reached.
    #[error(
        "too many repairs are running; wait for one of them to end, or cancel it (a tenant may run one, and hands its turn on after a \
         minute if another tenant asks)"
    )]
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
    /// Result of the sweep. Its `filled` is empty: stores that could not be put on record have been moved to `unfilled`.
    pub swept: Swept,
    /// Nodes whose new stores have been put on record and are read from now on.
    pub restored: Vec<NodeId>,
}

/// A repair that holds a slot and has read what it needs from the metadata store.
pub struct Repair<W: World> {
    upkeep: Arc<Upkeep<W>>,
    sweep: Sweep,
    /// Where the records of the tenants concerned were when the repair began.
    placements: Placements,
    /// The store of each node on record when the repair began.
    stores: HashMap<NodeId, StoreId>,
    task: Task,
}

impl<W: World> Upkeep<W> {
    /// Takes a slot for a repair and reads what the repair needs: the replication factors of the tenants concerned (stored in
    /// [`Sweep::factors`]) and the stores on record.
    ///
    /// # Errors
    /// [`NotBegun`]; nothing was done.
    pub async fn begin_repair(self: &Arc<Self>, sweep: Sweep) -> Result<Repair<W>, NotBegun> {
        self.begin_sweep(Kind::Repair, sweep).await
    }

    /// The same, as a task of this kind.
    pub(super) async fn begin_sweep(self: &Arc<Self>, kind: Kind, mut sweep: Sweep) -> Result<Repair<W>, NotBegun> {
        let tenant = sweep.tenant.as_ref().filter(|_| sweep.by_administrator);
        let task = self.runner.begin(kind, tenant, || describe(&sweep)).ok_or(NotBegun::Busy)?;
        let placements = match &sweep.tenant {
            Some(tenant) => Placements::from([(tenant.clone(), self.placed(tenant).await?)]),
            None => placements(self.metadata.as_ref()).await?,
        };
        sweep.factors = factors(&placements);
        let nodes = self.metadata.nodes().await?;
        let stores = nodes.into_iter().filter_map(|on_record| Some((on_record.node.id, on_record.store_id?))).collect();
        Ok(Repair { upkeep: Arc::clone(self), sweep, placements, stores, task })
    }

    async fn placed(&self, id: &TenantId) -> Result<Placed, NotBegun> {
        let tenant = self.metadata.tenant(id).await?.filter(|tenant| tenant.deleted_at_ms.is_none());
        tenant.map(|tenant| tenant.placed()).ok_or_else(|| NotBegun::TenantNotFound(id.clone()))
    }
}

impl<W: World> Repair<W> {
    /// What waits until another tenant wants the slot: then drop the receiver of the progress, so that the repair ends.
    pub fn handed_on(&self) -> impl Future<Output = ()> + Send + 'static {
        self.task.handed_on()
    }

    /// Admits new stores, sweeps, then puts on record those that are complete. Progress goes to `progress`; when its receiver is
    /// dropped, the repair stops after the work in flight.
    ///
    /// # Errors
    /// [`Stopped`]; what was repaired until then stays repaired.
    pub async fn run(self, progress: mpsc::Sender<Swept>) -> Result<Repaired, Stopped> {
        let (admitted, refused) = self.admit(&progress).await?;
        let swept = self.upkeep.sweep(self.sweep.clone(), admitted, progress, &self.task).await;
        match swept {
            Ok(mut swept) => {
                swept.unfilled.extend(refused);
                Ok(self.conclude(swept).await)
            }
            Err(stopped) => {
                if let Stopped::Failed(failure) = &stopped {
                    self.task.failed(failure.to_string());
                }
                Err(stopped)
            }
        }
    }

    /// Admits every store that is not the one on record, if this is a repair of everything: it is sent merges from now on. What it
    /// replaces is reported first, so that an operator who has merely forgotten to mount a disk can stop the repair. Returns the
    /// admitted stores, and the nodes whose store is refused, with the reason.
    async fn admit(
        &self,
        progress: &mpsc::Sender<Swept>,
    ) -> Result<(Vec<Admitted>, BTreeMap<NodeId, String>), Stopped> {
        let (found, mut refused) = (self.unadmitted().await, BTreeMap::new());
        if found.is_empty() {
            return Ok((found, refused));
        }
        let report = Swept { waiting: true, admitted: found.clone(), ..Swept::default() };
        progress.send(report).await.map_err(|_| Stopped::Abandoned)?;
        let mut admitted = Vec::new();
        for new in found {
            match self.upkeep.metadata.admit_store(&new.node, new.replaces, new.store).await {
                Ok(()) => {
                    tracing::warn!(node = %new.node, store = %new.store, replaces = %new.replaces, "filling the node's new store");
                    admitted.push(new);
                }
                Err(error) => drop(refused.insert(new.node, error.to_string())),
            }
        }
        self.upkeep.coordinator.ports().replicas.stores_changed().await;
        Ok((admitted, refused))
    }

    /// The stores that nobody has admitted, of nodes that have another one on record.
    async fn unadmitted(&self) -> Vec<Admitted> {
        if !self.sweep.is_everything() {
            return Vec::new();
        }
        let on_record = self.upkeep.metadata.stores().await.unwrap_or_default();
        let keys = |store| on_record.iter().find(|known| known.store == store).map_or(0, |known| known.keys);
        let nodes = self.upkeep.coordinator.rings().nodes();
        let replicas = &self.upkeep.coordinator.ports().replicas;
        let found = nodes.iter().filter(|node| self.sweep.may_fill(node)).filter_map(|node| {
            let standing = replicas.standing(node).filter(|standing| standing.trust == Trust::Unadmitted)?;
            let replaces = *self.stores.get(node)?;
            Some(Admitted { node: node.clone(), store: standing.store, replaces, keys: keys(replaces) })
        });
        found.collect()
    }

    async fn conclude(&self, mut swept: Swept) -> Repaired {
        let mut restored = Vec::new();
        for (node, store) in std::mem::take(&mut swept.filled) {
            match self.believe(&node, store).await {
                Ok(()) => {
                    tracing::info!(%node, %store, "the node's new store is complete and is used from now on; the old one is retired");
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

    /// Puts a new store on record in place of the one that was on record when the repair began.
    async fn believe(&self, node: &NodeId, store: StoreId) -> Result<(), NotBelieved> {
        let from = self.stores.get(node).ok_or(NotBelieved::NoneOnRecord)?;
        // The replication factors determine which replicas were compared: keys of a tenant with a factor unknown to the repair,
        // whose writes the lost store may have acknowledged, were not compared on all of their replicas.
        let now = placements(self.upkeep.metadata.as_ref()).await.map_err(NotBelieved::Unknown)?;
        if factors(&now).iter().any(|factor| !self.sweep.factors.contains(factor)) && !Fault::FactorsUnchecked.is_on() {
            return Err(NotBelieved::NewFactor);
        }
        // A tenant that has moved may have been passed by where it is now, and not been there yet where it was.
        let moved = |(id, placed): (&TenantId, &Placed)| now.get(id).is_some_and(|now| now != placed);
        if self.placements.iter().any(moved) {
            return Err(NotBelieved::Moved);
        }
        self.fence(node, store).await?;
        self.upkeep.metadata.replace_store(node, *from, store).await.map_err(NotBelieved::NotRecorded)
    }

    /// Raises the fence of a new store for all tenants to where this coordinator has followed all changes: it has none of the fences that
    /// the old store had, and nobody who has to be refused may use it.
    async fn fence(&self, node: &NodeId, store: StoreId) -> Result<(), NotBelieved> {
        let coordinator = &self.upkeep.coordinator;
        if !coordinator.fences() || !coordinator.ports().replicas.has_fences(node) {
            return Ok(());
        }
        match coordinator.ports().replicas.raise_fence(node, None, coordinator.followed()).await {
            Ok(fenced) if fenced == store => Ok(()),
            Ok(_) => Err(NotBelieved::NotFenced("it has another store now".to_owned())),
            Err(error) => Err(NotBelieved::NotFenced(error.to_string())),
        }
    }
}

/// Why a new store that was filled is not put on record.
#[derive(Debug, thiserror::Error)]
enum NotBelieved {
    #[error("no store of this node was on record when the repair began")]
    NoneOnRecord,
    #[error("{0}")]
    Unknown(StoreError),
    #[error("a tenant with a new replication factor was created during the repair; repeat the repair")]
    NewFactor,
    #[error("a tenant's records have moved during the repair; repeat the repair")]
    Moved,
    #[error("its store could not be put on record: {0}")]
    NotRecorded(StoreError),
    #[error("its store lacks the fences of the old one, and could not be given one: {0}; repeat the repair")]
    NotFenced(String),
}

/// Where the records of tenants are.
type Placements = BTreeMap<TenantId, Placed>;

/// Where the records of all tenants are that are not deleted.
async fn placements(metadata: &dyn Metadata) -> Result<Placements, StoreError> {
    let (mut all, mut after) = (Placements::new(), None);
    loop {
        let page = metadata.tenants(after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(all) };
        after = Some(last.id.clone());
        all.extend(page.into_iter().map(|tenant| (tenant.id.clone(), tenant.placed())));
    }
}

/// Their replication factors, sorted, without duplicates.
fn factors(placements: &Placements) -> Vec<u8> {
    let all: BTreeSet<u8> = placements.values().map(|placed| placed.replication_factor).collect();
    all.into_iter().collect()
}

fn describe(sweep: &Sweep) -> String {
    let part = match (&sweep.of, sweep.is_everything()) {
        (Some(of), _) => &format!("ranges of {}", of.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")),
        (None, true) => "all ranges",
        (None, false) => "part of the ring",
    };
    let part = &sweep.slices.as_ref().map_or_else(|| (*part).to_owned(), |slices| format!("{slices:?} of {part}"));
    sweep.tenant.as_ref().map_or_else(|| format!("repair {part}"), |tenant| format!("repair {part} of tenant {tenant}"))
}

fn incomplete(swept: &Swept) -> String {
    let nodes: Vec<String> = swept.missing.iter().map(|(node, why)| format!("{node}: {why}")).collect();
    let (ranges, failed) = (swept.ranges_incomplete, swept.failed);
    format!("{ranges} ranges incomplete, {failed} records failed; {}", nodes.join("; "))
}
