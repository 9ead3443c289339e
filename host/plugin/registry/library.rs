//! The components that are known: on disk by digest, each with what it said about itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use witan_kernel::hook::Hook;

use crate::binding::Reference;
use crate::compile::{sweep, write_file};
use crate::digest::Digest;
use crate::folder::Folder;
use crate::instance::Manifest;
use crate::limit;

/// Where a component came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An upload.
    Upload,
    /// A file of this name in the watched folder.
    File(String),
}

/// A component that can be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its identity.
    pub digest: Digest,
    /// The name that it gives itself.
    pub name: String,
    /// The version that it gives itself.
    pub version: String,
    /// What it implements.
    pub hook: Hook,
    /// Whether equal questions always get equal answers, as it says.
    pub deterministic: bool,
    /// Its size.
    pub bytes: u64,
    /// When it came in first: Unix time, milliseconds.
    pub staged_at_ms: u64,
    /// Where it came from first.
    pub source: Source,
}

impl Artifact {
    /// `name@version`.
    pub fn plugin(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// The component that a reference means: of several, the watched folder's, else the newest.
pub(super) fn find<'a>(artifacts: &'a [Artifact], plugin: &Reference, folder: Option<&Folder>) -> Option<&'a Artifact> {
    match plugin {
        Reference::Digest(digest) => artifacts.iter().find(|artifact| artifact.digest == *digest),
        Reference::Name { name, version } => {
            let fits = |a: &&Artifact| a.name == *name && version.as_ref().is_none_or(|version| a.version == *version);
            let filed = folder.and_then(|folder| {
                folder.newest(|digest| artifacts.iter().filter(fits).any(|artifact| artifact.digest == digest))
            });
            match filed {
                Some(digest) => artifacts.iter().find(|artifact| artifact.digest == digest),
                None => artifacts.iter().filter(fits).max_by_key(|artifact| artifact.staged_at_ms),
            }
        }
    }
}

/// What stands beside a component on disk. Version 1.
#[derive(Serialize, Deserialize)]
struct Card {
    v: u32,
    name: String,
    version: String,
    hook: String,
    deterministic: bool,
    bytes: u64,
    staged_at_ms: u64,
    file: Option<String>,
}

/// Every known component.
#[derive(Debug, Default)]
pub(super) struct Library {
    folder: PathBuf,
    artifacts: BTreeMap<Digest, Artifact>,
    list: Arc<Vec<Artifact>>,
}

impl Library {
    pub(super) fn open(data_dir: &Path) -> Result<Self, String> {
        let folder = data_dir.join("components");
        fs::create_dir_all(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
        sweep(&folder);
        let mut library = Self { folder, ..Self::default() };
        let entries = fs::read_dir(&library.folder).map_err(|error| format!("list components: {error}"))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "json") {
                match read_card(&path) {
                    Some(artifact) => _ = library.artifacts.insert(artifact.digest, artifact),
                    None => tracing::warn!(path = %path.display(), "a plugin's card cannot be read; stage it again"),
                }
            }
        }
        library.relist();
        Ok(library)
    }

    pub(super) fn get(&self, digest: Digest) -> Option<&Artifact> {
        self.artifacts.get(&digest)
    }

    pub(super) fn list(&self) -> Arc<Vec<Artifact>> {
        self.list.clone()
    }

    fn relist(&mut self) {
        let mut list: Vec<Artifact> = self.artifacts.values().cloned().collect();
        list.sort_by(|a, b| a.name.cmp(&b.name).then(b.staged_at_ms.cmp(&a.staged_at_ms)));
        self.list = Arc::new(list);
    }

    fn path(&self, digest: Digest, extension: &str) -> PathBuf {
        self.folder.join(format!("{digest}.{extension}"))
    }

    /// Where a component's bytes are.
    fn component(&self, digest: Digest) -> PathBuf {
        self.path(digest, "wasm")
    }

    /// A component's bytes, if they are its own.
    pub(super) fn read(&self, digest: Digest) -> Result<Bytes, String> {
        let path = self.component(digest);
        let bytes = fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        if Digest::of(&bytes) != digest {
            return Err(format!("{} is damaged; stage the plugin again", path.display()));
        }
        Ok(bytes.into())
    }

    /// What a component that comes in now is to be known as.
    pub(super) fn card_of(&self, bytes: &[u8], hook: Hook, manifest: Manifest, source: Source) -> Artifact {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        // Two that came in within a millisecond still have an order.
        let last = self.artifacts.values().map(|artifact| artifact.staged_at_ms).max().unwrap_or(0);
        Artifact {
            digest: Digest::of(bytes),
            name: manifest.name,
            version: manifest.version,
            hook,
            deterministic: manifest.deterministic,
            bytes: bytes.len() as u64,
            staged_at_ms: now.max(last + 1),
            source,
        }
    }

    /// Keeps a component. The card is written last: without it the component is not known.
    pub(super) fn insert(&mut self, artifact: Artifact, bytes: &[u8]) -> Result<(), String> {
        let card = card(&artifact);
        let write = || {
            write_file(&self.path(artifact.digest, "wasm"), &[bytes])?;
            write_file(&self.path(artifact.digest, "json"), &[&serde_json::to_vec(&card)?])
        };
        write().map_err(|error: std::io::Error| format!("keep the component: {error}"))?;
        self.artifacts.insert(artifact.digest, artifact);
        self.relist();
        Ok(())
    }

    pub(super) fn remove(&mut self, digest: Digest) -> Option<Artifact> {
        let artifact = self.artifacts.remove(&digest)?;
        // The card first: what stays behind is not known, and overwritten when it comes again.
        let _ = fs::remove_file(self.path(digest, "json"));
        let _ = fs::remove_file(self.path(digest, "wasm"));
        self.relist();
        Some(artifact)
    }

    /// The oldest component that is not `used`, when there are as many as there may be.
    pub(super) fn to_evict(&self, used: impl Fn(Digest) -> bool) -> Option<Digest> {
        if self.artifacts.len() < limit::ARTIFACTS {
            return None;
        }
        let unused = self.artifacts.values().filter(|artifact| !used(artifact.digest));
        unused.min_by_key(|artifact| artifact.staged_at_ms).map(|artifact| artifact.digest)
    }

    pub(super) fn is_full(&self) -> bool {
        self.artifacts.len() >= limit::ARTIFACTS
    }
}

fn card(artifact: &Artifact) -> Card {
    Card {
        v: 1,
        name: artifact.name.clone(),
        version: artifact.version.clone(),
        hook: artifact.hook.as_str().to_owned(),
        deterministic: artifact.deterministic,
        bytes: artifact.bytes,
        staged_at_ms: artifact.staged_at_ms,
        file: match &artifact.source {
            Source::Upload => None,
            Source::File(name) => Some(name.clone()),
        },
    }
}

fn read_card(path: &Path) -> Option<Artifact> {
    let digest = Digest::parse(path.file_stem()?.to_str()?)?;
    let card: Card = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (card.v == 1).then_some(())?;
    Some(Artifact {
        digest,
        name: card.name,
        version: card.version,
        hook: Hook::parse(&card.hook)?,
        deterministic: card.deterministic,
        bytes: card.bytes,
        staged_at_ms: card.staged_at_ms,
        source: card.file.map_or(Source::Upload, Source::File),
    })
}
