//! Metadata in memory, for the simulation and for tests of what stands above: the same rules, no thread, no disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{Clock, StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

use super::rules::Granting;
use super::{
    ARTIFACTS, Answer, Artifact, ArtifactEntry, BINDINGS, BindingOnRecord, COORDINATOR_KEPT_MS, COORDINATORS, Changed,
    Changes, Claim, CoordinatorOnRecord, Digest, Lease, Metadata, NODES, NodeOnRecord, Placement, SECRETS, Secret,
    Slot, TOKENS, Token, rules,
};
use crate::clock::AnyClock;

/// Metadata that clones share.
#[derive(Clone)]
pub struct MemoryMetadata {
    clock: AnyClock,
    state: Arc<Mutex<State>>,
    hint: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    down: bool,
    revision: u64,
    changes: BTreeMap<u64, Changed>,
    fence: u64,
    tenants: BTreeMap<TenantId, Tenant>,
    nodes: BTreeMap<NodeId, NodeOnRecord>,
    placement_epoch: u64,
    coordinators: BTreeMap<NodeId, CoordinatorOnRecord>,
    artifacts: BTreeMap<Digest, Artifact>,
    bindings: BTreeMap<SlotKey, BindingOnRecord>,
    tokens: BTreeMap<String, Token>,
    secrets: Vec<Secret>,
}

/// Orders slots as the other stores do: by tenant, then by the hook's name.
type SlotKey = (String, &'static str);

fn slot_key(slot: &Slot) -> SlotKey {
    (slot.tenant_text().to_owned(), slot.hook.as_str())
}

fn after<K>(key: Option<K>) -> (Bound<K>, Bound<K>) {
    (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

impl MemoryMetadata {
    /// Empty metadata that live by `clock`.
    pub fn new(clock: impl Clock) -> Self {
        Self { clock: AnyClock::new(clock), state: Arc::default(), hint: Arc::new(watch::Sender::new(0)) }
    }

    /// While `false`, every operation is answered with [`StoreError::Unavailable`] and does nothing.
    pub fn set_available(&self, available: bool) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).down = !available;
    }

    fn answer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let (state, hint) = (self.state.clone(), self.hint.clone());
        Box::pin(async move {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.down {
                return Err(StoreError::Unavailable("the metadata store is down".into()));
            }
            let before = state.revision;
            let done = work(&mut state);
            if state.revision != before {
                hint.send_modify(|hints| *hints += 1);
            }
            done
        })
    }
}

impl State {
    fn changed(&mut self, what: Changed) -> u64 {
        self.revision += 1;
        self.changes.insert(self.revision, what);
        let forgotten = rules::remembered_from(self.revision);
        self.changes.remove(&forgotten);
        self.revision
    }

    fn add_node(&mut self, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
        if self.nodes.contains_key(&node.id) {
            return Err(rules::node_exists(&node.id));
        }
        self.put_node(node, now_ms)
    }

    fn put_node(&mut self, node: StorageNode, now_ms: u64) -> Result<(), StoreError> {
        rules::node(&node)?;
        let known = self.nodes.get(&node.id);
        if known.is_none() && self.nodes.len() >= NODES {
            return Err(rules::too_many_nodes());
        }
        let record = NodeOnRecord {
            store_id: known.and_then(|known| known.store_id),
            created_at_ms: known.map_or(now_ms, |known| known.created_at_ms),
            updated_at_ms: now_ms,
            node,
        };
        self.nodes.insert(record.node.id.clone(), record);
        self.placement_epoch = self.changed(Changed::Nodes);
        Ok(())
    }

    fn hold_lease(&mut self, claim: Claim, lease_ms: u64, now_ms: u64) -> Result<Lease, StoreError> {
        rules::claim(&claim, lease_ms)?;
        let on_record = self.coordinators.get(&claim.node_id);
        let until_ms = now_ms.saturating_add(lease_ms);
        let (fence, granted_at_ms) = match rules::grant(&claim, on_record, now_ms)? {
            Granting::Renewed(fence) => (fence, on_record.map_or(now_ms, |holder| holder.granted_at_ms)),
            Granting::New => {
                self.room_for_coordinator(&claim.node_id, now_ms)?;
                self.fence += 1;
                self.changed(Changed::Coordinators);
                (self.fence, now_ms)
            }
        };
        let held = CoordinatorOnRecord { claim, fence, granted_at_ms, until_ms, left_ms: 0 };
        self.coordinators.insert(held.claim.node_id.clone(), held);
        Ok(Lease { fence, until_ms, now_ms })
    }

    fn room_for_coordinator(&mut self, id: &NodeId, now_ms: u64) -> Result<(), StoreError> {
        self.coordinators.retain(|_, gone| gone.until_ms.saturating_add(COORDINATOR_KEPT_MS) > now_ms);
        if self.coordinators.contains_key(id) || self.coordinators.len() < COORDINATORS {
            return Ok(());
        }
        let longest_gone = self.coordinators.values().filter(|gone| gone.until_ms <= now_ms);
        let longest_gone = longest_gone.min_by_key(|gone| gone.until_ms).map(|gone| gone.claim.node_id.clone());
        let forgotten = longest_gone.and_then(|id| self.coordinators.remove(&id));
        forgotten.map(drop).ok_or_else(rules::too_many_coordinators)
    }

    /// The version of a slot's record; 0 when there is none.
    fn expect_binding(&self, slot: &Slot, expected: u64) -> Result<(), StoreError> {
        let stored = self.bindings.get(&slot_key(slot)).map_or(0, |record| record.version);
        if stored == expected { Ok(()) } else { Err(rules::other_record(slot, expected, stored)) }
    }

    fn secrets(&self) -> Vec<Secret> {
        self.secrets.iter().rev().cloned().collect()
    }

    fn add_secret(&mut self, key: [u8; 32]) {
        let id = self.secrets.last().map_or(1, |newest| newest.id + 1);
        self.secrets.push(Secret { id, key });
        if self.secrets.len() > SECRETS {
            self.secrets.remove(0);
        }
        self.changed(Changed::Secrets);
    }
}

impl Metadata for MemoryMetadata {
    fn now_ms(&self) -> Answer<u64> {
        let clock = self.clock.clone();
        self.answer(move |_| Ok(clock.wall_micros() / 1000))
    }

    fn schema_version(&self) -> Answer<u64> {
        self.answer(|_| Ok(2))
    }

    fn changes(&self, after: u64) -> Answer<Changes> {
        self.answer(move |state| {
            let complete = rules::complete(after, state.revision);
            let since = if complete { after.saturating_add(1) } else { u64::MAX };
            let all = state.changes.range(since..).map(|(_, changed)| changed.clone());
            Ok(Changes { revision: state.revision, complete, changed: rules::each_once(all) })
        })
    }

    fn hint(&self) -> watch::Receiver<u64> {
        self.hint.subscribe()
    }

    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.answer(move |state| {
            rules::tenant(&tenant)?;
            if let Some(stored) = state.tenants.get(&tenant.id) {
                return Err(rules::tenant_exists(stored));
            }
            let tenant = Tenant { version: 1, deleted_at_ms: None, ..tenant };
            state.tenants.insert(tenant.id.clone(), tenant.clone());
            state.changed(Changed::Tenant(tenant.id.clone()));
            Ok(tenant)
        })
    }

    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>> {
        let id = id.clone();
        self.answer(move |state| Ok(state.tenants.get(&id).cloned()))
    }

    fn tenants(&self, last: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>> {
        let last = last.cloned();
        self.answer(move |state| {
            let there = state.tenants.range::<TenantId, _>(after(last.as_ref())).map(|(_, tenant)| tenant);
            let there = there.filter(|tenant| tenant.deleted_at_ms.is_none());
            Ok(there.take(rules::page(limit) as usize).cloned().collect())
        })
    }

    fn update_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.answer(move |state| {
            rules::tenant(&tenant)?;
            let stored = state.tenants.get_mut(&tenant.id).filter(|stored| stored.deleted_at_ms.is_none());
            let stored = stored.ok_or_else(|| rules::no_tenant(&tenant.id))?;
            if stored.version != tenant.version {
                return Err(rules::lost_update(&tenant.id, tenant.version, stored.version));
            }
            let (version, created_at_ms) = (stored.version + 1, stored.created_at_ms);
            *stored = Tenant { version, created_at_ms, deleted_at_ms: None, ..tenant };
            let updated = stored.clone();
            state.changed(Changed::Tenant(updated.id.clone()));
            Ok(updated)
        })
    }

    fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64) -> Answer<Tenant> {
        let id = id.clone();
        self.answer(move |state| {
            let stored = state.tenants.get_mut(&id).ok_or_else(|| rules::no_tenant(&id))?;
            if stored.deleted_at_ms.is_some() {
                return Ok(stored.clone());
            }
            if stored.version != version {
                return Err(rules::lost_update(&id, version, stored.version));
            }
            stored.version += 1;
            stored.updated_at_ms = now_ms;
            stored.deleted_at_ms = Some(now_ms);
            let deleted = stored.clone();
            state.changed(Changed::Tenant(id));
            Ok(deleted)
        })
    }

    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()> {
        self.answer(move |state| {
            if !state.nodes.is_empty() {
                return Ok(());
            }
            let stored = nodes.into_iter().try_for_each(|node| state.add_node(node, now_ms));
            if stored.is_err() {
                state.nodes.clear();
            }
            stored
        })
    }

    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.answer(move |state| state.add_node(node, now_ms))
    }

    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.answer(move |state| state.put_node(node, now_ms))
    }

    fn placement(&self) -> Answer<Placement> {
        self.answer(|state| {
            Ok(Placement { epoch: state.placement_epoch.max(1), nodes: state.nodes.values().cloned().collect() })
        })
    }

    fn remove_node(&self, id: &NodeId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| {
            state.nodes.remove(&id).ok_or_else(|| rules::no_node(&id))?;
            state.placement_epoch = state.changed(Changed::Nodes);
            Ok(())
        })
    }

    fn record_store_id(&self, id: &NodeId, told: StoreId) -> Answer<StoreId> {
        let id = id.clone();
        self.answer(move |state| {
            let record = state.nodes.get_mut(&id).ok_or_else(|| rules::no_node(&id))?;
            if let Some(on_record) = record.store_id {
                return Ok(on_record);
            }
            record.store_id = Some(told);
            state.changed(Changed::Nodes);
            Ok(told)
        })
    }

    fn replace_store_id(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| {
            let on_record = state.nodes.get(&id).ok_or_else(|| rules::no_node(&id))?.store_id;
            let others = state.nodes.values().filter(|other| other.node.id != id).filter_map(|other| other.store_id);
            if rules::replaces_store(&id, on_record, from, to, others)?
                && let Some(record) = state.nodes.get_mut(&id)
            {
                record.store_id = Some(to);
                state.changed(Changed::Nodes);
            }
            Ok(())
        })
    }

    fn hold_lease(&self, claim: Claim, lease_ms: u64) -> Answer<Lease> {
        let clock = self.clock.clone();
        self.answer(move |state| state.hold_lease(claim, lease_ms, clock.wall_micros() / 1000))
    }

    fn release_lease(&self, node_id: &NodeId, instance: [u8; 16]) -> Answer<()> {
        let (node_id, clock) = (node_id.clone(), self.clock.clone());
        self.answer(move |state| {
            let now_ms = clock.wall_micros() / 1000;
            let held = state.coordinators.get_mut(&node_id);
            let held = held.filter(|held| held.claim.instance == instance && held.until_ms > now_ms);
            if let Some(held) = held {
                held.until_ms = now_ms;
                state.changed(Changed::Coordinators);
            }
            Ok(())
        })
    }

    fn coordinators(&self) -> Answer<Vec<CoordinatorOnRecord>> {
        let clock = self.clock.clone();
        self.answer(move |state| {
            let now_ms = clock.wall_micros() / 1000;
            let recent = |gone: &&CoordinatorOnRecord| gone.until_ms.saturating_add(COORDINATOR_KEPT_MS) > now_ms;
            let seen = |at: &CoordinatorOnRecord| CoordinatorOnRecord {
                left_ms: at.until_ms.saturating_sub(now_ms),
                ..at.clone()
            };
            Ok(state.coordinators.values().filter(recent).map(seen).collect())
        })
    }

    fn put_artifact(&self, artifact: Artifact) -> Answer<()> {
        self.answer(move |state| {
            rules::artifact(&artifact)?;
            let digest = artifact.entry.digest;
            if state.artifacts.contains_key(&digest) {
                return Ok(());
            }
            if state.artifacts.len() >= ARTIFACTS {
                return Err(rules::too_many_artifacts());
            }
            let size = artifact.bytes.len() as u64;
            let artifact = Artifact { entry: ArtifactEntry { size, ..artifact.entry }, ..artifact };
            state.artifacts.insert(digest, artifact);
            state.changed(Changed::Artifacts);
            Ok(())
        })
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Artifact>> {
        self.answer(move |state| Ok(state.artifacts.get(&digest).cloned()))
    }

    fn artifacts(&self, last: Option<Digest>, limit: u32) -> Answer<Vec<ArtifactEntry>> {
        self.answer(move |state| {
            let page = state.artifacts.range(after(last)).take(rules::page(limit) as usize);
            Ok(page.map(|(_, artifact)| artifact.entry.clone()).collect())
        })
    }

    fn remove_artifact(&self, digest: Digest) -> Answer<()> {
        self.answer(move |state| {
            if state.bindings.values().any(|binding| binding.record.contains(&digest.to_string())) {
                return Err(rules::needed_artifact(digest));
            }
            state.artifacts.remove(&digest).ok_or_else(|| rules::no_artifact(digest))?;
            state.changed(Changed::Artifacts);
            Ok(())
        })
    }

    fn binding_records(&self) -> Answer<Vec<BindingOnRecord>> {
        self.answer(|state| Ok(state.bindings.values().cloned().collect()))
    }

    fn binding_record(&self, slot: &Slot) -> Answer<Option<BindingOnRecord>> {
        let key = slot_key(slot);
        self.answer(move |state| Ok(state.bindings.get(&key).cloned()))
    }

    fn save_binding_record(
        &self,
        slot: &Slot,
        expected: u64,
        record: String,
        puts_in_force: Option<Digest>,
    ) -> Answer<u64> {
        let slot = slot.clone();
        self.answer(move |state| {
            rules::binding_record(&record)?;
            state.expect_binding(&slot, expected)?;
            if let Some(digest) = puts_in_force.filter(|digest| !state.artifacts.contains_key(digest)) {
                return Err(rules::no_artifact(digest));
            }
            if expected == 0 && state.bindings.len() >= BINDINGS {
                return Err(rules::too_many_bindings());
            }
            let version = state.changed(Changed::Binding(slot.clone()));
            state.bindings.insert(slot_key(&slot), BindingOnRecord { slot, version, record });
            Ok(version)
        })
    }

    fn remove_binding_record(&self, slot: &Slot, expected: u64) -> Answer<()> {
        let slot = slot.clone();
        self.answer(move |state| {
            if state.bindings.contains_key(&slot_key(&slot)) {
                state.expect_binding(&slot, expected)?;
                state.bindings.remove(&slot_key(&slot));
                state.changed(Changed::Binding(slot));
            }
            Ok(())
        })
    }

    fn create_token(&self, token: Token) -> Answer<()> {
        self.answer(move |state| {
            rules::token(&token)?;
            if state.tokens.contains_key(&token.id) {
                return Err(rules::token_exists(&token.id));
            }
            if state.tokens.len() >= TOKENS {
                return Err(rules::too_many_tokens());
            }
            state.tokens.insert(token.id.clone(), token);
            state.changed(Changed::Tokens);
            Ok(())
        })
    }

    fn token(&self, id: &str) -> Answer<Option<Token>> {
        let id = id.to_owned();
        self.answer(move |state| Ok(state.tokens.get(&id).cloned()))
    }

    fn tokens(&self, last: Option<&str>, limit: u32) -> Answer<Vec<Token>> {
        let last = last.map(str::to_owned);
        self.answer(move |state| {
            let page = state.tokens.range(after(last)).take(rules::page(limit) as usize);
            Ok(page.map(|(_, token)| token.clone()).collect())
        })
    }

    fn remove_token(&self, id: &str) -> Answer<()> {
        let id = id.to_owned();
        self.answer(move |state| {
            state.tokens.remove(&id).ok_or_else(|| rules::no_token(&id))?;
            state.changed(Changed::Tokens);
            Ok(())
        })
    }

    fn secrets(&self, fresh: [u8; 32], _: u64) -> Answer<Vec<Secret>> {
        self.answer(move |state| {
            if state.secrets.is_empty() {
                state.add_secret(fresh);
            }
            Ok(state.secrets())
        })
    }

    fn rotate_secret(&self, fresh: [u8; 32], _: u64) -> Answer<Vec<Secret>> {
        self.answer(move |state| {
            state.add_secret(fresh);
            Ok(state.secrets())
        })
    }
}

impl std::fmt::Debug for MemoryMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryMetadata").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::port::StoreError;

    use super::MemoryMetadata;
    use crate::metadata::{Metadata, contract};
    use crate::testing::StandingClock;

    #[tokio::test]
    async fn keeps_the_contract() {
        let clock = StandingClock::new();
        let metadata = MemoryMetadata::new(clock.clone());
        contract::all(&metadata, &|ms| {
            clock.pass_ms(ms);
            Box::pin(std::future::ready(()))
        })
        .await;
    }

    #[tokio::test]
    async fn can_be_down() {
        let metadata = MemoryMetadata::new(StandingClock::new());
        metadata.set_available(false);
        assert!(matches!(metadata.nodes().await, Err(StoreError::Unavailable(_))));
    }
}
