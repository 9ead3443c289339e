//! Plugin components and bindings in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use witan_kernel::class::Class;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{
    Artifact, BindingOnRecord, CandidateReport, Digest, HISTORY_ENTRIES, HISTORY_ENTRY_BYTES, HistoryEntry, Migration,
    PlacementChange, PluginStore, PushBegun, PushOnRecord, PushTable, REPORTS, REPORTS_KEPT_MS, RecordText, Saved,
    SigningKey, Slot, StoreError, TENANT_COMPILATIONS, TENANT_COMPILATIONS_MS, owners, rules,
};
use witan_kernel::sync::lock;

use crate::slot::{SlotKey, slot_key};

/// There is no clock here: no push grows old.
const NOW_MS: u64 = 0;

/// Plugins and bindings in memory. Plugin hosts of one cluster share it, each through a [`Self::seat`].
#[derive(Debug, Clone, Default)]
pub struct MemoryPlugins {
    kept: Arc<Mutex<Kept>>,
    /// The version of each binding that this seat has last read or saved.
    known: Arc<Mutex<BTreeMap<SlotKey, u64>>>,
    shared: bool,
}

#[derive(Debug, Default)]
struct Kept {
    /// By digest and owner.
    components: BTreeMap<(Digest, Option<TenantId>), (Artifact, Bytes)>,
    signing_keys: Vec<SigningKey>,
    classes: BTreeSet<(TenantId, Class)>,
    /// Compilations that count.
    compilations: BTreeMap<TenantId, usize>,
    pushes: PushTable,
    bindings: BTreeMap<SlotKey, BindingOnRecord>,
    versions: u64,
    /// Of each slot, the newest entry first.
    histories: BTreeMap<SlotKey, Vec<HistoryEntry>>,
    reports: BTreeMap<SlotKey, BTreeMap<(u64, NodeId, u64), CandidateReport>>,
    preparations: BTreeMap<SlotKey, RecordText>,
}

impl MemoryPlugins {
    /// The same store, as another plugin host sees it.
    #[must_use]
    pub fn seat(&self) -> Self {
        Self { kept: Arc::clone(&self.kept), known: Arc::default(), shared: true }
    }

    /// Accepts these keys as those with which plugins are signed, instead of those of before.
    pub fn set_signing_keys(&self, keys: Vec<SigningKey>) {
        lock(&self.kept).signing_keys = keys;
    }

    /// Grants a class to a tenant, or takes it.
    pub fn set_class(&self, tenant: &TenantId, class: Class, granted: bool) {
        let (mut kept, grant) = (lock(&self.kept), (tenant.clone(), class));
        if granted { _ = kept.classes.insert(grant) } else { _ = kept.classes.remove(&grant) }
    }

    fn expect(&self, kept: &Kept, slot: &Slot) -> Result<(), StoreError> {
        let key = slot_key(slot);
        let stored = kept.bindings.get(&key).map_or(0, |stored| stored.version);
        let known = lock(&self.known).get(&key).copied().unwrap_or(0);
        if stored == known { Ok(()) } else { Err(rules::other_record(slot, known, stored)) }
    }

    fn learn(&self, slot: &Slot, version: u64) {
        lock(&self.known).insert(slot_key(slot), version);
    }
}

impl PluginStore for MemoryPlugins {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn components(&self) -> Result<Vec<Artifact>, StoreError> {
        Ok(lock(&self.kept).components.values().map(|(artifact, _)| artifact.clone()).collect())
    }

    fn component(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        let kept = lock(&self.kept);
        let first = kept.components.range((digest, None)..).next();
        Ok(first.filter(|((of, _), _)| *of == digest).map(|(_, (_, bytes))| bytes.clone()))
    }

    fn keep(&self, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError> {
        let mut kept = lock(&self.kept);
        let key = (artifact.digest, artifact.owner.clone());
        if let Some((known, _)) = kept.components.get_mut(&key) {
            known.signed_by = artifact.signed_by.clone().or(known.signed_by.take());
            kept.pushes.stored(artifact.owner.as_ref(), artifact.digest, NOW_MS);
            return Ok(());
        }
        let all = kept.components.values().map(|(artifact, _)| artifact);
        owners::may_own(artifact, all).map_err(|why| rules::not_owned(&why))?;
        kept.components.insert(key, (artifact.clone(), bytes.clone()));
        kept.pushes.stored(artifact.owner.as_ref(), artifact.digest, NOW_MS);
        Ok(())
    }

    fn forget(&self, owner: Option<&TenantId>, digest: Digest) -> Result<(), StoreError> {
        let mut kept = lock(&self.kept);
        let key = (digest, owner.cloned());
        if !kept.components.contains_key(&key) {
            return Ok(());
        }
        let hex = digest.to_string();
        let is_for = |slot: &Slot| owner.is_none() || slot.tenant.as_ref() == owner;
        if kept.bindings.values().any(|stored| is_for(&stored.slot) && stored.record.contains(&hex)) {
            return Err(rules::needed_artifact(digest));
        }
        kept.components.remove(&key);
        Ok(())
    }

    fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        Ok(lock(&self.kept).signing_keys.clone())
    }

    fn has_class(&self, tenant: &TenantId, class: Class) -> Result<bool, StoreError> {
        Ok(class.is_for_all() || lock(&self.kept).classes.contains(&(tenant.clone(), class)))
    }

    /// There is no clock here: all compilations are of one hour.
    fn count_compilation(&self, tenant: &TenantId) -> Result<Option<u64>, StoreError> {
        let mut kept = lock(&self.kept);
        let count = kept.compilations.entry(tenant.clone()).or_default();
        if *count >= TENANT_COMPILATIONS {
            return Ok(Some(TENANT_COMPILATIONS_MS));
        }
        *count += 1;
        Ok(None)
    }

    fn begin_push(&self, push: PushOnRecord) -> Result<PushBegun, StoreError> {
        lock(&self.kept).pushes.begin(push, NOW_MS)
    }

    fn step_push(&self, push: PushOnRecord) -> Result<bool, StoreError> {
        Ok(lock(&self.kept).pushes.step(push, NOW_MS))
    }

    fn push(&self, owner: Option<&TenantId>, digest: Digest) -> Result<Option<PushOnRecord>, StoreError> {
        Ok(lock(&self.kept).pushes.get(owner, digest, NOW_MS))
    }

    fn abandon_pushes(&self, worker: &NodeId) -> Result<(), StoreError> {
        lock(&self.kept).pushes.abandon(worker, NOW_MS);
        Ok(())
    }

    fn bindings(&self) -> Result<Vec<BindingOnRecord>, StoreError> {
        Ok(lock(&self.kept).bindings.values().cloned().collect())
    }

    fn binding(&self, slot: &Slot) -> Result<Option<BindingOnRecord>, StoreError> {
        let kept = lock(&self.kept);
        let stored = kept.bindings.get(&slot_key(slot));
        self.learn(slot, stored.map_or(0, |stored| stored.version));
        Ok(stored.cloned())
    }

    fn save(&self, slot: &Slot, saved: Saved) -> Result<(), StoreError> {
        let mut kept = lock(&self.kept);
        let key = slot_key(slot);
        if saved.record.is_none() && !kept.bindings.contains_key(&key) {
            return Ok(());
        }
        self.expect(&kept, slot)?;
        let entry = saved.entry.as_ref().map_or(0, String::len);
        if entry > HISTORY_ENTRY_BYTES {
            return Err(StoreError::Refused(format!(
                "an entry of a history has {entry} bytes; at most {HISTORY_ENTRY_BYTES}"
            )));
        }
        let has = |digest: &Digest| {
            let of = |owner: &Option<TenantId>| kept.components.contains_key(&(*digest, owner.clone()));
            of(&None) || of(&slot.tenant)
        };
        if let Some(missing) = saved.puts_in_force.filter(|digest| !has(digest)) {
            return Err(rules::no_artifact(missing));
        }
        kept.versions += 1;
        let version = kept.versions;
        match saved.record {
            Some(RecordText(record)) => {
                kept.bindings.insert(key.clone(), BindingOnRecord { slot: slot.clone(), version, record });
                self.learn(slot, version);
            }
            None => {
                kept.bindings.remove(&key);
                self.learn(slot, 0);
            }
        }
        if let Some(text) = saved.entry {
            let history = kept.histories.entry(key).or_default();
            history.insert(0, HistoryEntry { number: version, text });
            history.truncate(HISTORY_ENTRIES);
        }
        Ok(())
    }

    /// There are no tenants here: the change is not checked, and is answered as one that has begun.
    fn save_and_move(
        &self,
        slot: &Slot,
        saved: Saved,
        change: PlacementChange,
        now_ms: u64,
    ) -> Result<Migration, StoreError> {
        self.save(slot, saved)?;
        let number = lock(&self.kept).versions;
        Ok(Migration { number, ..Migration::pending(change, 0, now_ms) })
    }

    fn history(&self, slot: &Slot) -> Result<Vec<HistoryEntry>, StoreError> {
        Ok(lock(&self.kept).histories.get(&slot_key(slot)).cloned().unwrap_or_default())
    }

    fn report(&self, report: CandidateReport) -> Result<(), StoreError> {
        rules::report(&report)?;
        let mut kept = lock(&self.kept);
        let at = (report.number, report.coordinator.clone(), report.at_ms);
        let of_slot = kept.reports.entry(slot_key(&report.slot)).or_default();
        let old = report.at_ms.saturating_sub(REPORTS_KEPT_MS);
        of_slot.retain(|(_, _, at_ms), _| *at_ms >= old);
        of_slot.insert(at, report);
        Ok(())
    }

    fn reports(&self, slot: &Slot, number: u64, since_ms: u64) -> Result<Vec<CandidateReport>, StoreError> {
        let kept = lock(&self.kept);
        let of_slot = kept.reports.get(&slot_key(slot)).into_iter().flatten();
        let wanted = of_slot.filter(|((of, _, at_ms), _)| *of == number && *at_ms >= since_ms);
        Ok(wanted.take(REPORTS).map(|(_, report)| report.clone()).collect())
    }

    fn prepare(&self, slot: &Slot, version: Option<RecordText>) -> Result<(), StoreError> {
        let mut kept = lock(&self.kept);
        match version {
            Some(text) => _ = kept.preparations.insert(slot_key(slot), text),
            None => _ = kept.preparations.remove(&slot_key(slot)),
        }
        Ok(())
    }

    fn prepared(&self, slot: &Slot) -> Result<Option<RecordText>, StoreError> {
        Ok(lock(&self.kept).preparations.get(&slot_key(slot)).cloned())
    }

    /// Nobody holds a lease here.
    fn coordinators(&self) -> Result<Vec<(NodeId, bool)>, StoreError> {
        Ok(Vec::new())
    }

    fn require_candidates(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryPlugins;
    use crate::contract::plugins as contract;

    #[test]
    fn keeps_the_contract() {
        let one = MemoryPlugins::default().seat();
        contract::all(&one, &one.seat());
    }
}
