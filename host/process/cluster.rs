//! Applies the control plane's changes to this coordinator.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::time::Instant;
use witan_control::capabilities::{Written, written};
use witan_control::{Cluster, Held, TenantCache, ring};
use witan_coordinate::Coordinator;
use witan_kernel::capability::{FENCES, NAMES};
use witan_kernel::condition::Condition;
use witan_kernel::context::ContextKeys;
use witan_kernel::hook::{Pending, ReplicaState};
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{self, Metadata, Replicas, Secrets, Slot, StorageNode, StoreError};
use witan_kernel::ring::Ring;
use witan_kernel::scan::{Fullness, Ranges, Removed, Trust};
use witan_kernel::sync::lock;
use witan_kernel::tenant::Tenant;
use witan_peer::Lanes;
use witan_plugin::PluginHost;
use witan_upkeep::Upkeep;

use super::config::Formats;
use super::system::{SystemClock, unix_ms};
use super::world::{Real, Registered};
use crate::access::Access;

/// The keys that authenticate contexts.
pub(super) fn context_keys(secrets: &Secrets) -> anyhow::Result<ContextKeys> {
    let keys: Vec<(u32, [u8; 32])> = secrets.keys.iter().map(|secret| (secret.id, secret.key)).collect();
    ContextKeys::new(secrets.era, &keys).context("read the cluster's context keys")
}

/// Whether what goes with a capability is written.
struct Gate {
    capability: &'static str,
    wanted: Option<bool>,
    log: fn(&Written),
    /// What was decided last, which is logged when it changes.
    decided: Mutex<Option<Written>>,
}

impl Gate {
    fn new(capability: &'static str, wanted: Option<bool>, log: fn(&Written)) -> Self {
        Self { capability, wanted, log, decided: Mutex::default() }
    }

    /// Decides whether it is, by who is live, and logs a change.
    async fn decide(&self, metadata: &dyn Metadata) -> Result<bool, StoreError> {
        let now = written(metadata, self.capability, self.wanted).await?;
        let before = lock(&self.decided).replace(now.clone());
        if before.as_ref() != Some(&now) {
            (self.log)(&now);
        }
        Ok(now.is_yes())
    }
}

fn log_names(written: &Written) {
    match written {
        Written::Yes => tracing::info!("replicas are asked about a siblings write before it is repeated"),
        Written::Off => tracing::warn!(
            "consistency.ask_before_repeating is false: a replaced or deleted value of a siblings tenant may come back when a late \
             write is repeated; leave it out unless an earlier version has to read this cluster's data"
        ),
        Written::MayGoBack => tracing::warn!(
            "an earlier version of witan has created this cluster, so replicas are not asked about a siblings write before it is \
             repeated; once no process will go back to that version, set consistency.ask_before_repeating to true"
        ),
        Written::Lacking(coordinator, version) => tracing::warn!(
            %coordinator, version,
            "a coordinator is of an earlier version, so replicas are not asked about a siblings write before it is repeated"
        ),
    }
}

fn log_fences(written: &Written) {
    match written {
        Written::Yes => tracing::info!("changes of tenants are fenced at the storage nodes"),
        Written::Off => tracing::warn!(
            "consistency.fence_changes is false: a coordinator that is cut off from the metadata store goes on under a tenant's earlier \
             settings after they were changed; leave it out unless an earlier version has to open this cluster's storage nodes"
        ),
        Written::MayGoBack => tracing::warn!(
            "an earlier version of witan has created this cluster, so changes of tenants are not fenced at the storage nodes; once no \
             process will go back to that version, set consistency.fence_changes to true"
        ),
        Written::Lacking(coordinator, version) => tracing::warn!(
            %coordinator, version,
            "a coordinator is of an earlier version, so changes of tenants are not fenced at the storage nodes"
        ),
    }
}

/// This coordinator, as the catalog's [`Cluster`].
pub(super) struct Local {
    coordinator: Arc<Coordinator<Real>>,
    upkeep: Arc<Upkeep<Real>>,
    lanes: Arc<Lanes<SystemClock, Registered>>,
    tenants: Arc<TenantCache>,
    metadata: Arc<dyn Metadata>,
    plugins: PluginHost,
    access: Arc<Access>,
    gates: Arc<[Gate; 2]>,
    /// Several coordinators may share the metadata store: a single one is never cut off from its own changes.
    shared: bool,
    /// Held while a new placement is applied.
    placing: Mutex<()>,
}

impl Local {
    #[expect(clippy::too_many_arguments, reason = "each part once")]
    pub(super) fn new(
        coordinator: Arc<Coordinator<Real>>,
        upkeep: Arc<Upkeep<Real>>,
        lanes: Arc<Lanes<SystemClock, Registered>>,
        tenants: Arc<TenantCache>,
        metadata: Arc<dyn Metadata>,
        plugins: PluginHost,
        access: Arc<Access>,
        wanted: Formats,
        shared: bool,
    ) -> Self {
        let gates = [Gate::new(NAMES, wanted.names, log_names), Gate::new(FENCES, wanted.fences, log_fences)];
        let (gates, placing) = (Arc::new(gates), Mutex::default());
        Self { coordinator, upkeep, lanes, tenants, metadata, plugins, access, gates, shared, placing }
    }
}

impl Cluster for Local {
    fn tenant_changed(&self, tenant: Tenant) {
        self.tenants.publish(tenant);
    }

    fn tenant_outdated(&self, id: &TenantId) -> Pending<Result<(), StoreError>> {
        let (tenants, id) = (Arc::clone(&self.tenants), id.clone());
        Box::pin(async move { tenants.changed(&id).await })
    }

    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>> {
        let tenants = Arc::clone(&self.tenants);
        Box::pin(async move { tenants.all_changed().await })
    }

    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>> {
        let (metadata, coordinator) = (Arc::clone(&self.metadata), Arc::clone(&self.coordinator));
        Box::pin(async move {
            let secrets = metadata.secrets(rand::random(), unix_ms()).await?;
            match context_keys(&secrets) {
                Ok(keys) => coordinator.set_context_keys(keys),
                Err(error) => tracing::error!(%error, "the cluster's new secrets cannot be used; the old ones remain"),
            }
            Ok(())
        })
    }

    fn plugins_outdated(&self, slots: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>> {
        port::PluginHost::refresh(&self.plugins, slots)
    }

    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>> {
        let access = Arc::clone(&self.access);
        Box::pin(async move { access.tokens_outdated().await })
    }

    fn tokens_confirmed(&self) {
        self.access.confirmed();
    }

    fn coordinators_changed(&self) -> Pending<Result<(), StoreError>> {
        let (metadata, coordinator) = (Arc::clone(&self.metadata), Arc::clone(&self.coordinator));
        let (gates, shared) = (Arc::clone(&self.gates), self.shared);
        Box::pin(async move {
            let [names, fences] = gates.as_ref();
            coordinator.set_names(names.decide(metadata.as_ref()).await?);
            if shared {
                coordinator.set_fences(fences.decide(metadata.as_ref()).await?);
            }
            Ok(())
        })
    }

    fn followed(&self, revision: u64) {
        self.coordinator.set_followed(revision);
    }

    fn behind(&self) -> Pending<()> {
        let coordinator = Arc::clone(&self.coordinator);
        Box::pin(async move { coordinator.behind().await })
    }

    fn fences(&self) -> bool {
        self.coordinator.fences()
    }

    fn ring(&self) -> Arc<Ring> {
        self.coordinator.ring()
    }

    fn raise_fence(&self, node: &NodeId, tenant: &TenantId, epoch: u64) -> Pending<Result<(), String>> {
        let (lanes, node, tenant) = (Arc::clone(&self.lanes), node.clone(), tenant.clone());
        Box::pin(async move {
            lanes.raise_fence(&node, Some(&tenant), epoch).await.map(drop).map_err(|error| error.to_string())
        })
    }

    fn placement_changed(&self, epoch: u64, nodes: &[StorageNode]) {
        // A newer placement may have been published since this one was read.
        let _one_at_a_time = lock(&self.placing);
        if epoch <= self.coordinator.ring().epoch() {
            return;
        }
        self.lanes.set_nodes(nodes);
        self.coordinator.set_ring(ring(nodes, epoch));
    }

    fn state(&self, node: &NodeId) -> ReplicaState {
        self.lanes.state(node)
    }

    fn fullness(&self, node: &NodeId) -> Pending<Option<Fullness>> {
        let (lanes, node) = (Arc::clone(&self.lanes), node.clone());
        Box::pin(async move { lanes.fullness(&node).await })
    }

    fn condition(&self, node: &NodeId) -> Option<Condition> {
        self.lanes.condition(node)
    }

    fn trust(&self, node: &NodeId) -> Option<Trust> {
        self.lanes.standing(node).map(|standing| standing.trust)
    }

    fn stores_changed(&self) -> Pending<()> {
        let lanes = Arc::clone(&self.lanes);
        Box::pin(async move { lanes.meet_again(true).await })
    }

    fn remove_records(&self, tenant: &TenantId, from: Option<Vec<NodeId>>, until: Instant) -> Pending<Removed> {
        let (upkeep, tenant) = (Arc::clone(&self.upkeep), tenant.clone());
        Box::pin(async move { upkeep.remove_records(&tenant, from, until).await })
    }

    fn hold(&self) -> Pending<Held> {
        let coordinator = Arc::clone(&self.coordinator);
        Box::pin(async move { Box::new(coordinator.hold().await) as Held })
    }
}
