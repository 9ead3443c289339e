//! Plugin artifacts.

use witan_kernel::name::TenantId;
use witan_kernel::port::{
    Answer, Artifact, ArtifactStore, Changed, Component, Digest, Slot, StoreError, owners, rules,
};

use super::{MemoryMetadata, State, after};

impl State {
    /// Whether an artifact is stored that a slot may have: the operator's, or its tenant's.
    pub(super) fn has_artifact_for(&self, slot: &Slot, digest: Digest) -> bool {
        let of = |owner: &Option<TenantId>| self.artifacts.contains_key(&(digest, owner.clone()));
        of(&None) || of(&slot.tenant)
    }

    fn remove_artifact(&mut self, owner: Option<TenantId>, digest: Digest) -> Result<(), StoreError> {
        if !self.artifacts.contains_key(&(digest, owner.clone())) {
            return Err(rules::no_artifact(digest));
        }
        let is_for = |slot: &Slot| owner.is_none() || slot.tenant == owner;
        let named = digest.to_string();
        if self.bindings.values().any(|binding| is_for(&binding.slot) && binding.record.contains(&named)) {
            return Err(rules::needed_artifact(digest));
        }
        self.artifacts.remove(&(digest, owner));
        self.changed(Changed::Artifacts);
        Ok(())
    }

    /// Takes from a deleted tenant what none of its bindings names.
    pub(super) fn forget_artifacts_of(&mut self, tenant: &TenantId) {
        let own = self.artifacts.keys().filter(|(_, owner)| owner.as_ref() == Some(tenant));
        let own: Vec<_> = own.cloned().collect();
        for (digest, owner) in own {
            // What is bound stays.
            let _ = self.remove_artifact(owner, digest);
        }
    }
}

impl ArtifactStore for MemoryMetadata {
    fn put_artifact(&self, component: Component) -> Answer<()> {
        let now_ms = self.clock.wall_ms();
        self.answer(move |state| {
            rules::component(&component)?;
            let key = (component.artifact.digest, component.artifact.owner.clone());
            let signed_by = component.artifact.signed_by.clone();
            if let Some(known) = state.artifacts.get_mut(&key) {
                state.pushes.stored(key.1.as_ref(), key.0, now_ms);
                if signed_by.is_some() && known.artifact.signed_by != signed_by {
                    known.artifact.signed_by = signed_by;
                    state.changed(Changed::Artifacts);
                }
                return Ok(());
            }
            let all = state.artifacts.values().map(|component| &component.artifact);
            owners::may_own(&component.artifact, all).map_err(|why| rules::not_owned(&why))?;
            let artifact = Artifact { size: component.bytes.len() as u64, ..component.artifact };
            state.pushes.stored(key.1.as_ref(), key.0, now_ms);
            state.artifacts.insert(key, Component { artifact, ..component });
            state.changed(Changed::Artifacts);
            Ok(())
        })
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Component>> {
        self.answer(move |state| {
            let first = state.artifacts.range((digest, None)..).next();
            Ok(first.filter(|((of, _), _)| *of == digest).map(|(_, component)| component.clone()))
        })
    }

    fn artifacts(&self, last: Option<(Digest, Option<TenantId>)>, limit: u32) -> Answer<Vec<Artifact>> {
        self.answer(move |state| {
            let page = state.artifacts.range(after(last)).take(rules::page(limit) as usize);
            Ok(page.map(|(_, component)| component.artifact.clone()).collect())
        })
    }

    fn remove_artifact(&self, owner: Option<&TenantId>, digest: Digest) -> Answer<()> {
        let owner = owner.cloned();
        self.answer(move |state| state.remove_artifact(owner, digest))
    }
}
