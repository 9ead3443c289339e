//! Applies the control plane's changes to this coordinator.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use bytes::Bytes;
use tokio::time::Instant;
use witan_control::{Cluster, Held, KeysAt, KeysFrom, TenantCache};
use witan_coordinate::{Coordinator, KeysRequest, Resume};
use witan_kernel::condition::Condition;
use witan_kernel::context::ContextKeys;
use witan_kernel::failure::Failure;
use witan_kernel::hook::{Partition, Pending, Plugins, ReplicaState};
use witan_kernel::name::{Key, NodeId, TenantId};
use witan_kernel::port::{self, Metadata, PAGE, Placement, Replicas, Secrets, Slot, StorageNode, StoreError};
use witan_kernel::replica::ReplicaError;
use witan_kernel::ring::{self, Ring, Rings};
use witan_kernel::scan::{Fullness, Ranges, Removed, Standing};
use witan_kernel::sync::lock;
use witan_kernel::tenant::Tenant;
use witan_peer::Lanes;
use witan_plugin::PluginHost;
use witan_upkeep::Upkeep;

use super::formats::Formats;
use super::swaps;
use super::system::{SystemClock, unix_ms};
use super::world::{Real, Registered};
use crate::access::Access;

/// The keys that authenticate contexts.
pub(super) fn context_keys(secrets: &Secrets) -> anyhow::Result<ContextKeys> {
    let keys: Vec<(u32, [u8; 32])> = secrets.keys.iter().map(|secret| (secret.id, secret.key)).collect();
    ContextKeys::new(secrets.era, &keys).context("read the cluster's context keys")
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
    formats: Arc<Formats>,
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
        formats: Formats,
    ) -> Self {
        let formats = Arc::new(formats);
        Self { coordinator, upkeep, lanes, tenants, metadata, plugins, access, formats, placing: Mutex::default() }
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
        let (formats, upkeep) = (Arc::clone(&self.formats), Arc::clone(&self.upkeep));
        Box::pin(async move {
            let decided = formats.decide(metadata.as_ref(), &coordinator).await;
            upkeep.set_collects(formats.collects() && (coordinator.fences() || !formats.shared()));
            decided
        })
    }

    fn followed(&self, revision: u64) {
        self.coordinator.set_followed(revision);
    }

    fn bindings_change(&self, tenants: Vec<Option<TenantId>>, revision: u64) {
        self.coordinator.bindings_change(tenants, revision);
    }

    fn bindings_followed(&self) {
        self.coordinator.bindings_followed();
    }

    fn drained(&self) -> u64 {
        self.coordinator.drained_revision()
    }

    fn behind(&self) -> Pending<()> {
        let coordinator = Arc::clone(&self.coordinator);
        Box::pin(async move { coordinator.behind().await })
    }

    fn fences(&self) -> bool {
        // A node of an earlier version cannot have any.
        self.coordinator.fences() && self.coordinator.rings().nodes().iter().all(|node| self.lanes.has_fences(node))
    }

    fn moves(&self) -> bool {
        let nodes = self.coordinator.rings().nodes();
        self.formats.moves()
            && (self.fences() || !self.formats.shared())
            && !nodes.iter().any(|it| self.lacks_moves(it))
    }

    fn lacks_moves(&self, node: &NodeId) -> bool {
        self.lanes.state(node).reachable && !self.lanes.has_moves(node)
    }

    fn highest_fence(&self) -> u64 {
        self.lanes.highest_fence().max(self.coordinator.followed())
    }

    fn lacks_generations(&self, node: &NodeId) -> bool {
        self.lanes.state(node).reachable && !self.lanes.has_generations(node)
    }

    fn keys(&self, tenant: &Tenant, from: Option<KeysFrom>) -> Pending<Result<KeysAt, Failure>> {
        let (coordinator, tenant) = (Arc::clone(&self.coordinator), tenant.clone());
        let hooks = self.plugins.hooks(&tenant.id);
        Box::pin(async move {
            let (token, after) = from.unwrap_or_default();
            let request = KeysRequest {
                tenant: tenant.id.clone(),
                prefix: Bytes::new(),
                from: Resume { generation: tenant.generation, token, after },
                limit: PAGE,
                arrived: None,
                timeout: None,
            };
            let page = coordinator.list_keys(request).await?;
            let place = |key: Key| {
                let partition = match hooks.partition_key(tenant.generation, &key) {
                    Partition::By { key, .. } => key,
                    Partition::Native | Partition::Unknown | Partition::Faulted { .. } => key.bytes().clone(),
                };
                (ring::token(&tenant.id, &partition), key)
            };
            let keys = page.keys.into_iter().map(|listed| place(listed.key)).collect();
            Ok(KeysAt { keys, next: page.next.map(|next| (next.token, next.after)) })
        })
    }

    fn hook_given_up(&self, tenant: &TenantId) -> Pending<()> {
        let (metadata, plugins, tenant) = (Arc::clone(&self.metadata), self.plugins.clone(), tenant.clone());
        Box::pin(async move { swaps::settle(&metadata, &plugins, tenant).await })
    }

    fn ring(&self) -> Arc<Ring> {
        self.coordinator.ring()
    }

    fn rings(&self) -> Arc<Rings> {
        self.coordinator.rings()
    }

    fn raise_fence(&self, node: &NodeId, tenant: Option<&TenantId>, epoch: u64) -> Pending<Result<(), ReplicaError>> {
        let (lanes, node, tenant) = (Arc::clone(&self.lanes), node.clone(), tenant.cloned());
        Box::pin(async move { lanes.raise_fence(&node, tenant.as_ref(), epoch).await.map(drop) })
    }

    fn placement_changed(&self, placement: Placement) {
        // A newer placement may have been published since this one was read.
        let _one_at_a_time = lock(&self.placing);
        // Draining a node places no key elsewhere, and makes no new epoch. What is older than what was applied is soon followed by what is
        // newer.
        self.lanes.set_drained(placement.drained());
        if placement.epoch <= self.coordinator.ring().epoch() {
            return;
        }
        let rings = placement.rings();
        let nodes: Vec<StorageNode> = placement.nodes.into_iter().map(|on_record| on_record.node).collect();
        self.lanes.set_nodes(&nodes);
        self.coordinator.set_rings(rings);
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

    fn standing(&self, node: &NodeId) -> Option<Standing> {
        self.lanes.standing(node)
    }

    fn is_drained(&self, node: &NodeId) -> bool {
        self.lanes.is_asked_last(node)
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
