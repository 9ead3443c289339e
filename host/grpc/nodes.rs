//! Calls about storage nodes.

use futures::future::join_all;
use tonic::{Code, Status};
use witan_kernel::condition::Condition;
use witan_kernel::limit;
use witan_kernel::name::{Era, Invalid, NodeId, Zone, shown};
use witan_kernel::port::{Clock, Duties, DutyKind, DutyOnRecord, NodeStatus, StorageNode, StoreError};
use witan_kernel::scan::Trust;
use witan_kernel::slice::SLICES;
use witan_wire::v1;

use super::CoordinatorApi;
use super::convert::migration_id;
use super::status::{invalid, refused};
use super::tenants::status;
use witan_control::{Changed, NodeUpdate, Refused, Removal, Replacement, Turn};
use witan_coordinate::World;
use witan_upkeep::is_wanted;

impl<W: World> CoordinatorApi<W> {
    pub(super) async fn add_node(
        &self,
        request: v1::AddStorageNodeRequest,
    ) -> Result<v1::StorageNodeChangeResponse, Status> {
        let node = node_of(request, self.fallbacks.load().virtual_nodes).map_err(|error| invalid(&error))?;
        let id = node.id.clone();
        let turn = self.operators_change()?;
        let added = self.catalog.add_node(turn, node, self.now_ms()).await;
        Ok(changed(&id, added.map_err(|error| node_status(&error))?))
    }

    pub(super) async fn remove_node(
        &self,
        request: v1::RemoveStorageNodeRequest,
    ) -> Result<v1::StorageNodeChangeResponse, Status> {
        let node = NodeId::new(request.node_id).map_err(|error| invalid(&error))?;
        let removal = Removal { node, force: request.force, accept_loss: request.accept_loss };
        let (id, turn) = (removal.node.clone(), self.operators_change()?);
        let removed = self.catalog.remove_node(turn, removal, self.now_ms()).await;
        Ok(changed(&id, removed.map_err(|error| node_status(&error))?))
    }

    pub(super) async fn update_node(
        &self,
        request: v1::UpdateStorageNodeRequest,
    ) -> Result<v1::StorageNodeChangeResponse, Status> {
        let update = update_of(request).map_err(|error| invalid(&error))?;
        let (id, turn) = (update.node.clone(), self.operators_change()?);
        let updated = self.catalog.update_node(turn, update, self.now_ms()).await;
        Ok(changed(&id, updated.map_err(|error| node_status(&error))?))
    }

    pub(super) async fn replace_node(
        &self,
        request: v1::ReplaceStorageNodeRequest,
    ) -> Result<v1::StorageNodeChangeResponse, Status> {
        let replacement = replacement_of(request).map_err(|error| invalid(&error))?;
        let (id, turn) = (replacement.node.clone(), self.operators_change()?);
        let replaced = self.catalog.replace_store(turn, replacement, self.now_ms()).await;
        Ok(changed(&id, replaced.map_err(|error| node_status(&error))?))
    }

    pub(super) async fn drain_node(
        &self,
        request: v1::DrainStorageNodeRequest,
    ) -> Result<v1::StorageNodeChangeResponse, Status> {
        let id = NodeId::new(request.node_id).map_err(|error| invalid(&error))?;
        let turn = self.operators_change()?;
        let drained = self.catalog.drain_node(turn, id.clone(), !request.undrain, self.now_ms()).await;
        Ok(changed(&id, drained.map_err(|error| node_status(&error))?))
    }

    pub(super) async fn list_nodes(&self) -> Result<v1::ListStorageNodesResponse, Status> {
        let _turn = self.catalog.lookups().take(None).map_err(|error| node_status(&error))?;
        let nodes = self.catalog.nodes().await.map_err(|error| node_status(&error))?;
        let healing = healing(&self.catalog.duties().await.map_err(|error| node_status(&error))?);
        let moving = self.catalog.comings_and_goings(&nodes).await.map_err(|error| node_status(&error))?;
        let infos = join_all(nodes.iter().map(|node| self.info(node, moving.get(&node.id)))).await;
        Ok(v1::ListStorageNodesResponse { success: true, nodes: infos, error_message: String::new(), healing })
    }

    pub(super) async fn declare_restored(
        &self,
        request: &v1::DeclareRestoredRequest,
    ) -> Result<v1::DeclareRestoredResponse, Status> {
        if request.confirm != "restored" {
            let problem = format!("is {}", shown(&request.confirm));
            let remedy = "send \"restored\": what the restored copy lacks is lost, and a store that was set back alone must not be \
                declared";
            return Err(invalid(&Invalid::new("confirm", problem, remedy)));
        }
        let turn = self.operators_change()?;
        let declared = self.catalog.declare_restored(turn, Era(rand::random()), rand::random(), self.now_ms()).await;
        declared.map_err(|error| node_status(&error))?;
        Ok(v1::DeclareRestoredResponse {})
    }

    pub(super) fn operators_change(&self) -> Result<Turn, Status> {
        self.catalog.changes().take(None).map_err(|error| node_status(&error))
    }

    async fn info(&self, node: &StorageNode, moving: Option<&String>) -> v1::StorageNodeInfo {
        let state = self.catalog.state(&node.id);
        let fullness = self.catalog.fullness(node).await;
        let trust = self.catalog.trust(&node.id);
        let condition = self.catalog.condition(&node.id);
        v1::StorageNodeInfo {
            node_id: node.id.to_string(),
            host: node.host.clone(),
            port: i32::from(node.port),
            status: node.status.as_str().to_owned(),
            virtual_nodes: i32::try_from(node.virtual_nodes).unwrap_or(i32::MAX),
            zone: node.zone.as_str().to_owned(),
            keys_count: fullness.map_or(0, |full| whole(full.keys)),
            disk_usage_percent: fullness.map_or(0.0, |full| full.disk_usage_percent),
            reachable: state.reachable,
            latency_p50_us: state.latency_p50_us,
            latency_p99_us: state.latency_p99_us,
            write_only: trust.is_some_and(|trust| trust != Trust::Whole),
            draining: self.catalog.is_drained(&node.id),
            reads: fullness.map_or(0, |full| whole(full.reads)),
            mints: fullness.map_or(0, |full| whole(full.mints)),
            state_message: moving
                .cloned()
                .into_iter()
                .chain(self.draining_message(&node.id))
                .chain(self.state_message(&node.id, trust))
                .chain(self.missed_message(&node.id))
                .collect::<Vec<_>>()
                .join("; "),
            store_use: trust.map_or("", Trust::as_str).to_owned(),
            store_state: condition.as_ref().map_or("", Condition::as_str).to_owned(),
            store_reason: condition.as_ref().map_or("", Condition::reason).to_owned(),
        }
    }

    /// What is wrong with a node's store, what becomes of it by itself, and what to do.
    fn state_message(&self, node: &NodeId, trust: Option<Trust>) -> Option<String> {
        let advice = trust.and_then(Trust::advice)?;
        let more = self.upkeep.new_store(node).map(|more| format!("; {more}"));
        Some(format!("{advice}{}", more.unwrap_or_default()))
    }

    /// That a node is out of service.
    fn draining_message(&self, node: &NodeId) -> Option<String> {
        self.catalog.is_drained(node).then(|| format!("draining: it is asked last, until `witan nodes undrain {node}`"))
    }

    /// That a node has missed changes of this coordinator, and in how much.
    fn missed_message(&self, node: &NodeId) -> Option<String> {
        let slices = self.upkeep.missed_slices(node);
        (slices > 0).then(|| format!("catching up: {slices} of {SLICES} slices missed"))
    }

    /// The current time, Unix milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.coordinator.ports().clock.wall_micros() / 1000
    }
}

fn healing(duties: &Duties) -> Vec<v1::HealingDuty> {
    let duty = |known: &DutyOnRecord| v1::HealingDuty {
        kind: known.duty.kind.as_str().to_owned(),
        // Of what a node has missed, the coordinator's instance is no range, and only tells duties apart.
        range: known.duty.range.split('/').next().unwrap_or_default().to_owned(),
        coordinator_id: known.live_holder(duties.now_ms).map(|by| by.coordinator.to_string()).unwrap_or_default(),
        complete_age_seconds: (known.covered_ms > 0).then(|| duties.now_ms.saturating_sub(known.covered_ms) / 1000),
        wanted: is_wanted(known),
    };
    let healing = duties.duties.iter().filter(|known| DutyKind::HEALING.contains(&known.duty.kind));
    healing.map(duty).collect()
}

pub(super) fn node_of(request: v1::AddStorageNodeRequest, fallback: u32) -> Result<StorageNode, Invalid> {
    let port = u16::try_from(request.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Invalid::new("port", format!("{} is not a port", request.port), "use 1 to 65535"))?;
    if request.host.is_empty() {
        return Err(Invalid::new("host", "is empty", "send a host name or an address"));
    }
    let virtual_nodes = match request.virtual_nodes {
        0 => fallback,
        given => virtual_nodes(given, &format!(", or 0 for {fallback}"))?,
    };
    let (id, zone) = (NodeId::new(request.node_id)?, Zone::new(request.zone)?);
    Ok(StorageNode { id, host: request.host, port, virtual_nodes, status: NodeStatus::Active, zone })
}

/// `or`: what else may be sent.
fn virtual_nodes(given: i32, or: &str) -> Result<u32, Invalid> {
    let most = limit::MAX_VIRTUAL_NODES;
    u32::try_from(given).ok().filter(|given| (1..=most).contains(given)).ok_or_else(|| {
        Invalid::new("virtual_nodes", format!("{given} is out of range"), format!("use 1 to {most}{or}"))
    })
}

pub(super) fn update_of(request: v1::UpdateStorageNodeRequest) -> Result<NodeUpdate, Invalid> {
    Ok(NodeUpdate {
        node: NodeId::new(request.node_id)?,
        virtual_nodes: request.virtual_nodes.map(|given| virtual_nodes(given, "")).transpose()?,
        zone: request.zone.map(Zone::new).transpose()?,
    })
}

pub(super) fn replacement_of(request: v1::ReplaceStorageNodeRequest) -> Result<Replacement, Invalid> {
    Ok(Replacement { node: NodeId::new(request.node_id)?, accept_loss: request.accept_loss })
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn changed(id: &NodeId, changed: Changed) -> v1::StorageNodeChangeResponse {
    v1::StorageNodeChangeResponse {
        success: true,
        node_id: id.to_string(),
        migration_id: changed.migration.map(|migration| migration_id(migration.number)).unwrap_or_default(),
        message: changed.message,
        // Nothing has moved yet, so nothing is known of its speed.
        estimated_completion: 0,
        error_message: String::new(),
    }
}

pub(super) fn node_status(error: &Refused) -> Status {
    match error {
        Refused::Store(StoreError::Exists(_)) => refused(Code::AlreadyExists, "NODE_EXISTS", error.to_string()),
        Refused::Store(StoreError::Missing(_)) => refused(Code::NotFound, "NODE_NOT_FOUND", error.to_string()),
        _ => status(error),
    }
}
