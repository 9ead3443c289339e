//! Metadata in memory, for the simulation and for tests of what stands above: the same rules, no thread, no disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{Clock, StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

use super::{
    ARTIFACTS, Answer, Artifact, ArtifactEntry, Binding, Digest, HISTORY, Metadata, NODES, NodeOnRecord, SECRETS,
    Secret, Slot, Terms, rules,
};
use crate::clock::AnyClock;

/// Metadata that clones share.
#[derive(Clone)]
pub struct MemoryMetadata {
    clock: AnyClock,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    down: bool,
    tenants: BTreeMap<TenantId, Tenant>,
    nodes: BTreeMap<NodeId, NodeOnRecord>,
    artifacts: BTreeMap<Digest, Artifact>,
    slots: BTreeMap<SlotKey, SlotState>,
    records: BTreeMap<SlotKey, String>,
    secrets: Vec<Secret>,
}

/// Orders slots as the API does: by tenant, then by the hook's name.
type SlotKey = (String, &'static str);

#[derive(Default)]
struct SlotState {
    in_force: u64,
    last: u64,
    history: BTreeMap<u64, Binding>,
}

fn slot_key(slot: &Slot) -> SlotKey {
    (slot.tenant.as_ref().map_or(String::new(), |tenant| tenant.as_str().to_owned()), slot.hook.as_str())
}

fn after<K>(key: Option<K>) -> (Bound<K>, Bound<K>) {
    (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

impl MemoryMetadata {
    /// Empty metadata that live by `clock`.
    pub fn new(clock: impl Clock) -> Self {
        Self { clock: AnyClock::new(clock), state: Arc::default() }
    }

    /// While `false`, every operation is answered with [`StoreError::Unavailable`] and does nothing.
    pub fn set_available(&self, available: bool) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).down = !available;
    }

    fn answer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<T> {
        let state = self.state.clone();
        Box::pin(async move {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.down {
                return Err(StoreError::Unavailable("the metadata store is down".into()));
            }
            work(&mut state)
        })
    }
}

impl State {
    fn room_for(&self, node: &StorageNode) -> Result<(), StoreError> {
        if self.nodes.len() >= NODES && !self.nodes.contains_key(&node.id) {
            return Err(rules::too_many_nodes());
        }
        Ok(())
    }

    fn put_node(&mut self, node: StorageNode, now_ms: u64) {
        let known = self.nodes.get(&node.id);
        let record = NodeOnRecord {
            store_id: known.and_then(|known| known.store_id),
            created_at_ms: known.map_or(now_ms, |known| known.created_at_ms),
            updated_at_ms: now_ms,
            node,
        };
        self.nodes.insert(record.node.id.clone(), record);
    }

    fn protects(slot: &SlotState, digest: Digest) -> bool {
        let in_force = slot.history.get(&slot.in_force);
        let before = in_force.and_then(|binding| slot.history.get(&binding.previous));
        [in_force, before].into_iter().flatten().any(|binding| binding.terms.digest == digest)
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
    }
}

impl SlotState {
    fn bind(&mut self, terms: Terms) -> Binding {
        self.last += 1;
        let binding = Binding { number: self.last, previous: self.in_force, terms };
        self.history.insert(binding.number, binding.clone());
        self.in_force = binding.number;
        let oldest = self.last.saturating_sub(HISTORY as u64);
        self.history.retain(|number, _| *number > oldest || *number == binding.previous);
        binding
    }
}

impl Metadata for MemoryMetadata {
    fn now_ms(&self) -> Answer<u64> {
        let clock = self.clock.clone();
        self.answer(move |_| Ok(clock.wall_micros() / 1000))
    }

    fn schema_version(&self) -> Answer<u64> {
        self.answer(|_| Ok(1))
    }

    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.answer(move |state| {
            rules::tenant(&tenant)?;
            if state.tenants.contains_key(&tenant.id) {
                return Err(rules::tenant_exists(&tenant.id));
            }
            let tenant = Tenant { version: 1, ..tenant };
            state.tenants.insert(tenant.id.clone(), tenant.clone());
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
            let page = state.tenants.range::<TenantId, _>(after(last.as_ref())).take(rules::page(limit) as usize);
            Ok(page.map(|(_, tenant)| tenant.clone()).collect())
        })
    }

    fn update_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.answer(move |state| {
            rules::tenant(&tenant)?;
            let stored = state.tenants.get_mut(&tenant.id).ok_or_else(|| rules::no_tenant(&tenant.id))?;
            if stored.version != tenant.version {
                return Err(rules::lost_update(&tenant, stored.version));
            }
            *stored = Tenant { version: stored.version + 1, created_at_ms: stored.created_at_ms, ..tenant };
            Ok(stored.clone())
        })
    }

    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.answer(move |state| {
            rules::node(&node)?;
            if state.nodes.contains_key(&node.id) {
                return Err(rules::node_exists(&node.id));
            }
            state.room_for(&node)?;
            state.put_node(node, now_ms);
            Ok(())
        })
    }

    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.answer(move |state| {
            rules::node(&node)?;
            state.room_for(&node)?;
            state.put_node(node, now_ms);
            Ok(())
        })
    }

    fn nodes(&self) -> Answer<Vec<NodeOnRecord>> {
        self.answer(|state| Ok(state.nodes.values().cloned().collect()))
    }

    fn remove_node(&self, id: &NodeId) -> Answer<()> {
        let id = id.clone();
        self.answer(move |state| state.nodes.remove(&id).map(drop).ok_or_else(|| rules::no_node(&id)))
    }

    fn record_store_id(&self, id: &NodeId, told: StoreId) -> Answer<StoreId> {
        let id = id.clone();
        self.answer(move |state| {
            let record = state.nodes.get_mut(&id).ok_or_else(|| rules::no_node(&id))?;
            Ok(*record.store_id.get_or_insert(told))
        })
    }

    fn put_artifact(&self, artifact: Artifact) -> Answer<()> {
        self.answer(move |state| {
            rules::artifact(&artifact)?;
            if !state.artifacts.contains_key(&artifact.digest) {
                if state.artifacts.len() >= ARTIFACTS {
                    return Err(rules::too_many_artifacts());
                }
                state.artifacts.insert(artifact.digest, artifact);
            }
            Ok(())
        })
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Artifact>> {
        self.answer(move |state| Ok(state.artifacts.get(&digest).cloned()))
    }

    fn artifacts(&self, last: Option<Digest>, limit: u32) -> Answer<Vec<ArtifactEntry>> {
        self.answer(move |state| {
            let page = state.artifacts.range(after(last)).take(rules::page(limit) as usize);
            let entry = |artifact: &Artifact| ArtifactEntry {
                digest: artifact.digest,
                name: artifact.name.clone(),
                version: artifact.version.clone(),
                hook: artifact.hook,
                size: artifact.bytes.len() as u64,
                created_at_ms: artifact.created_at_ms,
            };
            Ok(page.map(|(_, artifact)| entry(artifact)).collect())
        })
    }

    fn remove_artifact(&self, digest: Digest) -> Answer<()> {
        self.answer(move |state| {
            if !state.artifacts.contains_key(&digest) {
                return Err(rules::no_artifact(digest));
            }
            if state.slots.values().any(|slot| State::protects(slot, digest)) {
                return Err(rules::artifact_bound(digest));
            }
            for slot in state.slots.values_mut() {
                slot.history.retain(|_, binding| binding.terms.digest != digest);
            }
            state.artifacts.remove(&digest);
            Ok(())
        })
    }

    fn bind(&self, terms: Terms) -> Answer<Binding> {
        self.answer(move |state| {
            rules::terms(&terms)?;
            let artifact = state.artifacts.get(&terms.digest).ok_or_else(|| rules::no_artifact(terms.digest))?;
            rules::same_hook(&terms, artifact.hook)?;
            Ok(state.slots.entry(slot_key(&terms.slot)).or_default().bind(terms))
        })
    }

    fn rollback(&self, slot: &Slot, from: u64) -> Answer<Option<Binding>> {
        let slot = slot.clone();
        self.answer(move |state| {
            let nothing = || rules::nothing_bound(&slot);
            let bound =
                state.slots.get_mut(&slot_key(&slot)).filter(|bound| bound.in_force != 0).ok_or_else(nothing)?;
            if bound.in_force != from {
                return Err(rules::not_in_force(&slot, from, bound.in_force));
            }
            let to = bound.history.get(&from).ok_or_else(|| rules::forgotten(&slot, from))?.previous;
            let before = bound.history.get(&to).cloned();
            if to != 0 && before.is_none() {
                return Err(rules::forgotten(&slot, to));
            }
            bound.in_force = to;
            Ok(before)
        })
    }

    fn bindings(&self, last: Option<&Slot>, limit: u32) -> Answer<Vec<Binding>> {
        let last = last.map(slot_key);
        self.answer(move |state| {
            let slots = state.slots.range(after(last)).map(|(_, slot)| slot);
            let in_force = slots.filter_map(|slot| slot.history.get(&slot.in_force)).cloned();
            Ok(in_force.take(rules::page(limit) as usize).collect())
        })
    }

    fn binding(&self, slot: &Slot, number: u64) -> Answer<Option<Binding>> {
        let key = slot_key(slot);
        self.answer(move |state| Ok(state.slots.get(&key).and_then(|slot| slot.history.get(&number)).cloned()))
    }

    fn binding_history(&self, slot: &Slot) -> Answer<Vec<Binding>> {
        let key = slot_key(slot);
        self.answer(move |state| {
            let newest_first = state.slots.get(&key).into_iter().flat_map(|slot| slot.history.values().rev());
            Ok(newest_first.take(HISTORY).cloned().collect())
        })
    }

    fn binding_records(&self) -> Answer<Vec<String>> {
        self.answer(|state| Ok(state.records.values().cloned().collect()))
    }

    fn save_binding_record(&self, slot: &Slot, record: String) -> Answer<()> {
        let key = slot_key(slot);
        self.answer(move |state| {
            state.records.insert(key, record);
            Ok(())
        })
    }

    fn remove_binding_record(&self, slot: &Slot) -> Answer<()> {
        let key = slot_key(slot);
        self.answer(move |state| {
            state.records.remove(&key);
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
        contract::all(&MemoryMetadata::new(StandingClock::new())).await;
    }

    #[tokio::test]
    async fn can_be_down() {
        let metadata = MemoryMetadata::new(StandingClock::new());
        metadata.set_available(false);
        assert!(matches!(metadata.nodes().await, Err(StoreError::Unavailable(_))));
    }
}
