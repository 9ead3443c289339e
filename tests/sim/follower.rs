//! Coordinators that follow changes of tenants and of the ring as production does: each hears of them when it does, holds a lease, and
//! leads placement changes when it is its turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use witan_control::{Cluster, Held, follow};
use witan_coordinate::Coordinator;
use witan_kernel::capability::OF_COORDINATORS;
use witan_kernel::hook::{Pending, ReplicaState};
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{Claim, Claimant, Metadata, Placement, Slot, StorageNode, StoreError};
use witan_kernel::replica::ReplicaError;
use witan_kernel::ring::{Ring, Rings};
use witan_kernel::scan::{Fullness, Ranges, Removed, Standing, Trust};
use witan_kernel::tenant::Tenant;
use witan_peer::Lanes;
use witan_upkeep::{Moves, MovesConfig, Upkeep};

use crate::simulated::Simulated;
use crate::stores::View;
use crate::world::{Dial, Dice, SimClock};

/// A lease, and how often it is renewed: a coordinator that is cut off is soon not waited for any longer.
const LEASE_MS: u64 = 4000;
const RENEW: Duration = Duration::from_millis(1000);
/// The pause before the metadata store is asked again at a start.
const AGAIN: Duration = Duration::from_millis(200);

/// What a coordinator starts with.
pub(crate) struct Known {
    revision: u64,
    placement: Placement,
}

impl Known {
    pub(crate) fn nodes(&self) -> Vec<StorageNode> {
        self.placement.nodes.iter().map(|on_record| on_record.node.clone()).collect()
    }

    pub(crate) fn rings(&self) -> Rings {
        self.placement.rings()
    }
}

/// Reads everything, as a coordinator does before it serves.
pub(crate) async fn learn(metadata: &dyn Metadata, view: &View) -> Known {
    loop {
        match read(metadata, view).await {
            Ok(known) => return known,
            Err(_) => sleep(AGAIN).await,
        }
    }
}

async fn read(metadata: &dyn Metadata, view: &View) -> Result<Known, StoreError> {
    let revision = metadata.changes(u64::MAX).await?.revision;
    let placement = metadata.placement().await?;
    all_tenants(metadata, view).await?;
    Ok(Known { revision, placement })
}

async fn all_tenants(metadata: &dyn Metadata, view: &View) -> Result<(), StoreError> {
    metadata.tenants(None, 1000).await?.into_iter().for_each(|tenant| view.learn(tenant));
    Ok(())
}

/// The parts of a coordinator.
pub(crate) struct Parts {
    pub(crate) name: NodeId,
    pub(crate) metadata: Arc<dyn Metadata>,
    pub(crate) view: View,
    pub(crate) lanes: Arc<Lanes<SimClock, Dial>>,
    pub(crate) coordinator: Arc<Coordinator<Simulated>>,
    pub(crate) upkeep: Arc<Upkeep<Simulated>>,
    pub(crate) dice: Dice,
    pub(crate) late_ms: u64,
    pub(crate) copy_rate: u64,
}

/// Follows, and leads.
pub(crate) fn start(parts: Parts, known: &Known) {
    let Parts { name, metadata, view, lanes, coordinator, upkeep, dice, late_ms, copy_rate } = parts;
    coordinator.set_followed(known.revision);
    coordinator.set_fences(true);
    let instance = witan_kernel::port::Randomness::sixteen(&dice);
    let claimant = Claimant { coordinator: name.clone(), instance };
    tokio::spawn(hold_lease(Arc::clone(&metadata), name, instance));
    let noting = Arc::clone(&upkeep);
    let own = claimant.clone();
    tokio::spawn(async move { noting.note_drained(own).await });
    let moves = Moves::new(upkeep, claimant, MovesConfig { bytes_per_second: copy_rate, ..MovesConfig::default() });
    tokio::spawn(moves.run(std::future::pending()));
    let local = Local { metadata: Arc::clone(&metadata), view, lanes, coordinator, dice, late_ms };
    tokio::spawn(follow(metadata, Arc::new(local), known.revision));
}

async fn hold_lease(metadata: Arc<dyn Metadata>, name: NodeId, instance: [u8; 16]) {
    loop {
        let claim = Claim {
            node_id: name.clone(),
            instance,
            address: name.as_str().to_owned(),
            version: "simulated".to_owned(),
            capabilities: OF_COORDINATORS.iter().map(|named| (*named).to_owned()).collect(),
        };
        // A process that has crashed may hold the lease still.
        drop(metadata.hold_lease(claim, LEASE_MS).await);
        sleep(RENEW).await;
    }
}

/// A coordinator, as it follows.
struct Local {
    metadata: Arc<dyn Metadata>,
    view: View,
    lanes: Arc<Lanes<SimClock, Dial>>,
    coordinator: Arc<Coordinator<Simulated>>,
    dice: Dice,
    late_ms: u64,
}

fn done<T: Send + 'static>(answer: T) -> Pending<T> {
    Box::pin(std::future::ready(answer))
}

impl Cluster for Local {
    fn tenant_changed(&self, tenant: Tenant) {
        self.view.learn(tenant);
    }

    fn tenant_outdated(&self, id: &TenantId) -> Pending<Result<(), StoreError>> {
        let (metadata, view, id) = (Arc::clone(&self.metadata), self.view.clone(), id.clone());
        let late = self.dice.millis(0, self.late_ms);
        Box::pin(async move {
            sleep(late).await;
            if let Some(tenant) = metadata.tenant(&id).await? {
                view.learn(tenant);
            }
            Ok(())
        })
    }

    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>> {
        let (metadata, view) = (Arc::clone(&self.metadata), self.view.clone());
        Box::pin(async move { all_tenants(metadata.as_ref(), &view).await })
    }

    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>> {
        done(Ok(()))
    }

    fn plugins_outdated(&self, _: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>> {
        done(Ok(()))
    }

    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>> {
        done(Ok(()))
    }

    fn tokens_confirmed(&self) {}

    fn followed(&self, revision: u64) {
        self.coordinator.set_followed(revision);
    }

    fn behind(&self) -> Pending<()> {
        let coordinator = Arc::clone(&self.coordinator);
        Box::pin(async move { coordinator.behind().await })
    }

    fn fences(&self) -> bool {
        true
    }

    fn ring(&self) -> Arc<Ring> {
        self.coordinator.ring()
    }

    fn raise_fence(&self, node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> Pending<Result<(), ReplicaError>> {
        let (lanes, node, tenant) = (Arc::clone(&self.lanes), node.clone(), tenant.cloned());
        Box::pin(async move { lanes.raise_fence(&node, tenant.as_ref(), epoch).await.map(drop) })
    }

    fn placement_changed(&self, placement: Placement) {
        if placement.epoch <= self.coordinator.ring().epoch() {
            return;
        }
        let rings = placement.rings();
        let nodes: Vec<StorageNode> = placement.nodes.into_iter().map(|on_record| on_record.node).collect();
        self.lanes.set_nodes(&nodes);
        self.coordinator.set_rings(rings);
    }

    fn state(&self, _: &NodeId) -> ReplicaState {
        ReplicaState { reachable: true, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 }
    }

    fn fullness(&self, _: &NodeId) -> Pending<Option<Fullness>> {
        done(None)
    }

    fn standing(&self, _: &NodeId) -> Option<Standing> {
        Some(Standing { store: StoreId([1; 16]), trust: Trust::Whole })
    }

    fn stores_changed(&self) -> Pending<()> {
        let lanes = Arc::clone(&self.lanes);
        Box::pin(async move { lanes.meet_again(true).await })
    }

    fn remove_records(&self, _: &TenantId, _: Option<Vec<NodeId>>, _: Instant) -> Pending<Removed> {
        done(Removed::default())
    }

    fn hold(&self) -> Pending<Held> {
        done(Box::new(()) as Held)
    }
}
