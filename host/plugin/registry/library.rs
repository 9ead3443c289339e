//! The known components: on disk, named by digest, each with what it says about itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use witan_kernel::class::Class;
use witan_kernel::hook::Hook;
use witan_kernel::limit::COMPONENT_BYTES;
use witan_kernel::name::TenantId;
pub use witan_kernel::port::{Artifact, Source};

use crate::binding::Reference;
use crate::calls::Manifest;
use crate::digest::Digest;
use crate::disk::{remove_abandoned, write_file};
use crate::error::HostError;
use crate::folder::Folder;
use crate::limit;
use crate::upload::Push;
use crate::validate::Valid;

/// The component that a reference of a tenant means (`None`: one for all tenants): its own, or the operator's. Of several, the one in the
/// watched folder, which is the operator's, otherwise the newest.
pub(super) fn find<'a>(
    artifacts: &'a [Artifact],
    tenant: Option<&TenantId>,
    plugin: &Reference,
    folder: Option<&Folder>,
) -> Option<&'a Artifact> {
    let visible = artifacts.iter().filter(|artifact| artifact.is_for(tenant));
    let Reference::Name { of_operator, .. } = plugin else {
        return visible.filter(|artifact| means(plugin, artifact)).max_by_key(|artifact| artifact.owner.is_some());
    };
    let fits = visible.filter(|artifact| means(plugin, artifact) && !(*of_operator && artifact.owner.is_some()));
    let (own, operators): (Vec<&Artifact>, Vec<&Artifact>) = fits.partition(|artifact| artifact.owner.is_some());
    let newest = |of: Vec<&'a Artifact>| of.into_iter().max_by_key(|artifact| artifact.staged_at_ms);
    let filed = folder.and_then(|folder| folder.newest(|digest| operators.iter().any(|it| it.digest == digest)));
    let filed = filed.and_then(|digest| operators.iter().find(|it| it.digest == digest).copied());
    newest(own).or(filed).or_else(|| newest(operators))
}

/// Whether a component has the digest, or the name and the version, of a reference.
pub(super) fn means(plugin: &Reference, artifact: &Artifact) -> bool {
    match plugin {
        Reference::Digest(digest) => artifact.digest == *digest,
        Reference::Name { name, version, .. } => {
            artifact.name == *name && version.as_ref().is_none_or(|version| artifact.version == *version)
        }
    }
}

/// Largest description that is read, in bytes: its texts have at most a few hundred.
const DESCRIPTION_BYTES: u64 = 64 << 10;

/// The JSON file next to a component on disk.
#[derive(Serialize, Deserialize)]
struct Description {
    /// The layout's version, 1.
    v: u32,
    name: String,
    version: String,
    hook: String,
    deterministic: bool,
    bytes: u64,
    staged_at_ms: u64,
    file: Option<String>,
    /// Absent in what earlier versions wrote, which had this class alone.
    #[serde(default = "standard")]
    class: String,
    #[serde(default)]
    class_reason: String,
}

fn standard() -> String {
    Class::Standard.as_str().to_owned()
}

/// The folder with the known components. Its functions block, so that none is called under the registry's lock.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    /// The folder, and the descriptions of the components in it. Whose they are, the store says.
    pub(super) fn open(data_dir: &Path) -> Result<(Self, Vec<Artifact>), HostError> {
        let folder = data_dir.join("components");
        fs::create_dir_all(&folder).map_err(HostError::file("create", &folder))?;
        remove_abandoned(&folder);
        let mut described = Vec::new();
        let entries = fs::read_dir(&folder).map_err(HostError::file("list", &folder))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "json") {
                match read_description(&path) {
                    Some(artifact) => described.push(artifact),
                    None => {
                        tracing::warn!(path = %path.display(), "the description of a plugin cannot be read; upload the plugin again")
                    }
                }
            }
        }
        Ok((Self { folder }, described))
    }

    fn path(&self, digest: Digest, extension: &str) -> PathBuf {
        self.folder.join(format!("{digest}.{extension}"))
    }

    /// The file with a component's bytes.
    fn component(&self, digest: Digest) -> PathBuf {
        self.path(digest, "wasm")
    }

    /// A component's bytes, checked against its digest.
    pub(super) fn read(&self, digest: Digest) -> Result<Bytes, HostError> {
        let path = self.component(digest);
        let bytes = witan_file::read(&path, COMPONENT_BYTES as u64).map_err(HostError::file("read", &path))?;
        if Digest::of(&bytes) != digest {
            return Err(HostError::Damaged(path));
        }
        Ok(bytes.into())
    }

    /// Keeps a component. Its description is written last: a component without one is not known.
    pub(super) fn write(&self, artifact: &Artifact, bytes: &[u8]) -> Result<(), HostError> {
        let component = self.component(artifact.digest);
        let write = || {
            write_file(&component, &[bytes])?;
            write_file(&self.path(artifact.digest, "json"), &[&serde_json::to_vec(&describe(artifact))?])
        };
        write().map_err(HostError::file("keep", &component))
    }

    /// Removes a component: the description first. A component that cannot be removed is then unknown, and overwritten when it is
    /// staged again.
    pub(super) fn remove(&self, digest: Digest) {
        let _ = fs::remove_file(self.path(digest, "json"));
        let _ = fs::remove_file(self.component(digest));
    }
}

/// Every known component, once for each of its owners. The bytes of each are on the shelf.
#[derive(Debug, Default)]
pub(super) struct Library {
    artifacts: BTreeMap<(Digest, Option<TenantId>), Artifact>,
    list: Arc<Vec<Artifact>>,
}

impl Library {
    /// A component, whoever owns it.
    pub(super) fn get(&self, digest: Digest) -> Option<&Artifact> {
        let first = self.artifacts.range((digest, None)..).next();
        first.filter(|((of, _), _)| *of == digest).map(|(_, artifact)| artifact)
    }

    /// A component of this owner.
    pub(super) fn of(&self, owner: Option<&TenantId>, digest: Digest) -> Option<&Artifact> {
        self.artifacts.get(&(digest, owner.cloned()))
    }

    pub(super) fn list(&self) -> Arc<Vec<Artifact>> {
        self.list.clone()
    }

    fn relist(&mut self) {
        let mut list: Vec<Artifact> = self.artifacts.values().cloned().collect();
        list.sort_by(|a, b| a.name.cmp(&b.name).then(b.staged_at_ms.cmp(&a.staged_at_ms)));
        self.list = Arc::new(list);
    }

    /// Describes a component that is staged now.
    pub(super) fn artifact(&self, push: &Push, valid: &Valid, manifest: Manifest, source: Source) -> Artifact {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        // Components staged within the same millisecond still have an order.
        let last = self.artifacts.values().map(|artifact| artifact.staged_at_ms).max().unwrap_or(0);
        Artifact {
            digest: Digest::of(&push.bytes),
            owner: push.owner.clone(),
            name: manifest.name,
            version: manifest.version,
            hook: valid.hook,
            deterministic: manifest.deterministic,
            size: push.bytes.len() as u64,
            staged_at_ms: now.max(last + 1),
            source,
            signed_by: None,
            class: valid.needs.class,
            class_reason: valid.needs.reason(),
        }
    }

    pub(super) fn insert(&mut self, artifact: Artifact) {
        self.artifacts.insert((artifact.digest, artifact.owner.clone()), artifact);
        self.relist();
    }

    /// Takes a component from its owner.
    pub(super) fn remove(&mut self, owner: Option<&TenantId>, digest: Digest) -> Option<Artifact> {
        let artifact = self.artifacts.remove(&(digest, owner.cloned()))?;
        self.relist();
        Some(artifact)
    }

    /// The operator's oldest component that is not `used`. Uploads go first: a file may still be in the folder of another coordinator.
    pub(super) fn to_evict(&self, used: impl Fn(Digest) -> bool) -> Option<Digest> {
        let unused = self.of_operator().filter(|artifact| !used(artifact.digest));
        let last = |artifact: &&Artifact| (artifact.source != Source::Upload, artifact.staged_at_ms);
        unused.min_by_key(last).map(|artifact| artifact.digest)
    }

    /// Whether the operator has as many as are kept.
    pub(super) fn is_full(&self) -> bool {
        self.of_operator().count() >= limit::ARTIFACTS
    }

    fn of_operator(&self) -> impl Iterator<Item = &Artifact> {
        self.artifacts.values().filter(|artifact| artifact.owner.is_none())
    }
}

fn describe(artifact: &Artifact) -> Description {
    Description {
        v: 1,
        name: artifact.name.clone(),
        version: artifact.version.clone(),
        hook: artifact.hook.as_str().to_owned(),
        deterministic: artifact.deterministic,
        bytes: artifact.size,
        staged_at_ms: artifact.staged_at_ms,
        file: match &artifact.source {
            Source::Upload => None,
            Source::File(name) => Some(name.clone()),
        },
        class: artifact.class.as_str().to_owned(),
        class_reason: artifact.class_reason.clone(),
    }
}

fn read_description(path: &Path) -> Option<Artifact> {
    let digest = Digest::parse(path.file_stem()?.to_str()?)?;
    let description: Description = serde_json::from_slice(&witan_file::read(path, DESCRIPTION_BYTES).ok()?).ok()?;
    (description.v == 1).then_some(())?;
    Some(Artifact {
        digest,
        owner: None,
        name: description.name,
        version: description.version,
        hook: Hook::parse(&description.hook)?,
        deterministic: description.deterministic,
        size: description.bytes,
        staged_at_ms: description.staged_at_ms,
        source: description.file.map_or(Source::Upload, Source::File),
        signed_by: None,
        class: Class::parse(&description.class)?,
        class_reason: description.class_reason,
    })
}
