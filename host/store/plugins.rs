//! Plugin components and bindings in the metadata store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::runtime::Handle;
use witan_kernel::capability::{CANDIDATES, CLASSES, OWNERS};
use witan_kernel::class::Class;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{
    Answer, Artifact, BindingChange, BindingOnRecord, CandidateReport, Component, CoordinatorOnRecord, Digest,
    HistoryEntry, Metadata, Migration, PAGE, PlacementChange, PluginStore, PushBegun, PushOnRecord, RecordText, Saved,
    SigningKey, Slot, StoreError,
};
use witan_kernel::sync::lock;

/// Whether changes are fenced at the moment.
pub type Fenced = Box<dyn Fn() -> bool + Send + Sync>;

/// The plugin host's store on a metadata store.
pub struct StoredPlugins {
    metadata: Arc<dyn Metadata>,
    shared: bool,
    runtime: Handle,
    /// Whether a change of a binding is recorded with the fences that nodes owe for it.
    fenced: Fenced,
    /// The version of each binding that was last read or saved here. At most [`witan_kernel::port::BINDINGS`].
    versions: Mutex<HashMap<Slot, u64>>,
}

impl StoredPlugins {
    /// Plugins in `metadata`, which other coordinators change too if `shared`. Its operations run on `runtime`.
    pub fn new(metadata: Arc<dyn Metadata>, shared: bool, runtime: Handle) -> Self {
        Self { metadata, shared, runtime, fenced: Box::new(|| false), versions: Mutex::default() }
    }

    /// The same, whose changes are fenced while `fenced` says so.
    #[must_use]
    pub fn with_fences(self, fenced: Fenced) -> Self {
        Self { fenced, ..self }
    }

    fn wait<T>(&self, answer: Answer<T>) -> Result<T, StoreError> {
        self.runtime.block_on(answer)
    }

    /// 0 when none is known.
    fn version(&self, slot: &Slot) -> u64 {
        lock(&self.versions).get(slot).copied().unwrap_or(0)
    }

    fn change(&self, slot: &Slot, saved: Saved) -> BindingChange {
        let Saved { record, puts_in_force, entry } = saved;
        let (expected, fenced) = (self.version(slot), (self.fenced)());
        BindingChange { slot: slot.clone(), expected, record, puts_in_force, fenced, entry }
    }

    fn learn(&self, slot: &Slot, version: Option<u64>) {
        match version {
            Some(version) => lock(&self.versions).insert(slot.clone(), version),
            None => lock(&self.versions).remove(slot),
        };
    }
}

impl PluginStore for StoredPlugins {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn components(&self) -> Result<Vec<Artifact>, StoreError> {
        let mut components: Vec<Artifact> = Vec::new();
        loop {
            let last = components.last().map(|artifact| (artifact.digest, artifact.owner.clone()));
            let page = self.wait(self.metadata.artifacts(last, PAGE))?;
            let ended = page.len() < PAGE as usize;
            components.extend(page);
            if ended {
                return Ok(components);
            }
        }
    }

    fn component(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(self.wait(self.metadata.artifact(digest))?.map(|component| component.bytes))
    }

    fn keep(&self, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError> {
        if artifact.owner.is_some() {
            // A coordinator that does not know of owners would show it to everybody.
            self.wait(self.metadata.require(OWNERS)).map_err(|error| match error {
                StoreError::Conflict(lacking) => StoreError::Refused(format!(
                    "plugins of tenants need a later version everywhere: {lacking}; upgrade it"
                )),
                other => other,
            })?;
        }
        if !artifact.class.is_for_all() {
            // A coordinator that does not know of classes would refuse to load it.
            self.wait(self.metadata.require(CLASSES)).map_err(|error| match error {
                StoreError::Conflict(lacking) => StoreError::Refused(format!(
                    "plugins of class {} need a later version everywhere: {lacking}; upgrade it",
                    artifact.class
                )),
                other => other,
            })?;
        }
        self.wait(self.metadata.put_artifact(Component { artifact: artifact.clone(), bytes: bytes.clone() }))
    }

    fn forget(&self, owner: Option<&TenantId>, digest: Digest) -> Result<(), StoreError> {
        match self.wait(self.metadata.remove_artifact(owner, digest)) {
            Err(StoreError::Missing(_)) => Ok(()),
            removed => removed,
        }
    }

    fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        self.wait(self.metadata.signing_keys())
    }

    fn has_class(&self, tenant: &TenantId, class: Class) -> Result<bool, StoreError> {
        if class.is_for_all() {
            return Ok(true);
        }
        let grants = self.wait(self.metadata.class_grants())?;
        Ok(grants.iter().any(|grant| grant.tenant == *tenant && grant.class == class))
    }

    fn count_compilation(&self, tenant: &TenantId) -> Result<Option<u64>, StoreError> {
        self.wait(self.metadata.count_compilation(tenant))
    }

    fn begin_push(&self, push: PushOnRecord) -> Result<PushBegun, StoreError> {
        self.wait(self.metadata.begin_push(push))
    }

    fn step_push(&self, push: PushOnRecord) -> Result<bool, StoreError> {
        self.wait(self.metadata.step_push(push))
    }

    fn push(&self, owner: Option<&TenantId>, digest: Digest) -> Result<Option<PushOnRecord>, StoreError> {
        self.wait(self.metadata.push(owner, digest))
    }

    fn abandon_pushes(&self, worker: &NodeId) -> Result<(), StoreError> {
        self.wait(self.metadata.abandon_pushes(worker))
    }

    fn bindings(&self) -> Result<Vec<BindingOnRecord>, StoreError> {
        self.wait(self.metadata.binding_records())
    }

    fn binding(&self, slot: &Slot) -> Result<Option<BindingOnRecord>, StoreError> {
        let stored = self.wait(self.metadata.binding_record(slot))?;
        self.learn(slot, stored.as_ref().map(|stored| stored.version));
        Ok(stored)
    }

    fn save(&self, slot: &Slot, saved: Saved) -> Result<(), StoreError> {
        let removed = saved.record.is_none();
        let version = self.wait(self.metadata.change_binding_record(self.change(slot, saved)))?;
        self.learn(slot, (!removed).then_some(version));
        Ok(())
    }

    fn save_and_move(
        &self,
        slot: &Slot,
        saved: Saved,
        change: PlacementChange,
        now_ms: u64,
    ) -> Result<Migration, StoreError> {
        let (version, migration) = self.wait(self.metadata.swap_hook(self.change(slot, saved), change, now_ms))?;
        self.learn(slot, Some(version));
        Ok(migration)
    }

    fn history(&self, slot: &Slot) -> Result<Vec<HistoryEntry>, StoreError> {
        self.wait(self.metadata.binding_history(slot))
    }

    fn report(&self, report: CandidateReport) -> Result<(), StoreError> {
        self.wait(self.metadata.put_report(report))
    }

    fn reports(&self, slot: &Slot, number: u64, since_ms: u64) -> Result<Vec<CandidateReport>, StoreError> {
        self.wait(self.metadata.reports(slot, number, since_ms))
    }

    fn prepare(&self, slot: &Slot, version: Option<RecordText>) -> Result<(), StoreError> {
        self.wait(self.metadata.prepare_binding(slot, version))
    }

    fn prepared(&self, slot: &Slot) -> Result<Option<RecordText>, StoreError> {
        self.wait(self.metadata.prepared_binding(slot))
    }

    fn coordinators(&self) -> Result<Vec<(NodeId, bool)>, StoreError> {
        if !self.shared {
            return Ok(Vec::new());
        }
        let live = self.wait(self.metadata.coordinators())?.into_iter().filter(CoordinatorOnRecord::is_live);
        Ok(live.map(|one| (one.claim.node_id.clone(), one.names(CANDIDATES))).collect())
    }

    fn require_candidates(&self) -> Result<(), StoreError> {
        self.wait(self.metadata.require(CANDIDATES)).map(drop)
    }
}

impl std::fmt::Debug for StoredPlugins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredPlugins").field("shared", &self.shared).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use witan_memory::contract::plugins as contract;

    use super::StoredPlugins;
    use crate::metadata::SqliteMetadata;

    #[tokio::test(flavor = "multi_thread")]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().expect("a folder");
        let metadata = SqliteMetadata::open(folder.path().join("metadata.sqlite")).await.expect("opens");
        let runtime = tokio::runtime::Handle::current();
        let work = move || {
            let seat = || StoredPlugins::new(Arc::new(metadata.clone()), true, runtime.clone());
            contract::all(&seat(), &seat());
        };
        tokio::task::spawn_blocking(work).await.expect("passes");
    }
}
