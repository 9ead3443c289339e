//! Plugin artifacts.

use witan_kernel::port::{ARTIFACTS, Answer, Artifact, ArtifactStore, Changed, Component, Digest, rules};

use super::{MemoryMetadata, after};

impl ArtifactStore for MemoryMetadata {
    fn put_artifact(&self, component: Component) -> Answer<()> {
        self.answer(move |state| {
            rules::component(&component)?;
            let digest = component.artifact.digest;
            if state.artifacts.contains_key(&digest) {
                return Ok(());
            }
            if state.artifacts.len() >= ARTIFACTS {
                return Err(rules::too_many_artifacts());
            }
            let artifact = Artifact { size: component.bytes.len() as u64, ..component.artifact };
            state.artifacts.insert(digest, Component { artifact, ..component });
            state.changed(Changed::Artifacts);
            Ok(())
        })
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Component>> {
        self.answer(move |state| Ok(state.artifacts.get(&digest).cloned()))
    }

    fn artifacts(&self, last: Option<Digest>, limit: u32) -> Answer<Vec<Artifact>> {
        self.answer(move |state| {
            let page = state.artifacts.range(after(last)).take(rules::page(limit) as usize);
            Ok(page.map(|(_, component)| component.artifact.clone()).collect())
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
}
