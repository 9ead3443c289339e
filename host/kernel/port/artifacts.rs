//! Plugin artifacts: components and what is known of them.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::Answer;
#[cfg(doc)]
use super::StoreError;
use crate::class::Class;
use crate::hook::Hook;
use crate::name::TenantId;

/// Most plugin artifacts of the operator: tens of versions of tens of plugins.
pub const ARTIFACTS: usize = 1000;
/// Largest plugin component, in bytes: one with the runtime of an interpreted language in it.
pub const ARTIFACT_BYTES: usize = crate::limit::COMPONENT_BYTES;
/// Longest name of a plugin, in bytes: twice what the plugin host accepts today.
pub const PLUGIN_NAME_BYTES: usize = 128;
/// Longest version of a plugin, in bytes: a semantic version with its build metadata.
pub const PLUGIN_VERSION_BYTES: usize = 64;
/// Longest name of the file that a plugin came from, in bytes: that of common file systems.
pub const PLUGIN_SOURCE_BYTES: usize = 255;

/// Longest reason why a plugin needs its class, in bytes: a sentence with two numbers.
pub const PLUGIN_CLASS_REASON_BYTES: usize = 256;

/// A plugin's identity: the SHA-256 of its component's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads 64 hexadecimal digits, with or without `sha256:` before them.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("sha256:").unwrap_or(text);
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(digest))
    }

    /// The first twelve digits, enough for a person.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a component came from first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It was uploaded.
    Upload,
    /// The file of this name in a watched folder, 1..=255 bytes.
    File(String),
}

/// A plugin's component without its bytes, as one of its owners has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// SHA-256 of the component's bytes.
    pub digest: Digest,
    /// The tenant that it belongs to; `None`: the operator, whose plugins are for all tenants.
    pub owner: Option<TenantId>,
    /// The plugin's name, from its manifest: 1..=128 bytes.
    pub name: String,
    /// The plugin's version, from its manifest: 1..=64 bytes.
    pub version: String,
    /// The hook that it answers.
    pub hook: Hook,
    /// Whether equal questions always get equal answers, as its manifest claims.
    pub deterministic: bool,
    /// Size of the component in bytes.
    pub size: u64,
    /// When its owner staged it first: Unix time, milliseconds.
    pub staged_at_ms: u64,
    /// Where it came from first. A tenant's was uploaded.
    pub source: Source,
    /// The id of the key that has signed it for its owner; `None`: it is not signed.
    pub signed_by: Option<String>,
    /// The class of limits that it needs.
    pub class: Class,
    /// What of it is beyond the next stricter class, in words, at most [`PLUGIN_CLASS_REASON_BYTES`]; empty for the strictest.
    pub class_reason: String,
}

impl Artifact {
    /// `name@version`.
    pub fn plugin(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// A plugin's component with its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Component {
    /// What is known of it; its size is that of `bytes`.
    pub artifact: Artifact,
    /// The component, 1 byte to 32 MiB.
    pub bytes: Bytes,
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("artifact", &self.artifact).finish_non_exhaustive()
    }
}

/// Plugin artifacts on record.
pub trait ArtifactStore: Send + Sync + 'static {
    /// Stores a component for its owner. One that the owner has already is left unchanged, except that it is signed from then on if
    /// it was not before, or by the later key. [`StoreError::Refused`] outside the limits, and where `owners::may_own` says so. The
    /// caller has checked that the digest is that of the bytes.
    fn put_artifact(&self, component: Component) -> Answer<()>;

    /// One component with its bytes, as the first of its owners has it: nobody but the plugin host may see whose it is.
    fn artifact(&self, digest: Digest) -> Answer<Option<Component>>;

    /// Artifacts, by digest and then by owner, after those of this digest and owner: each once for every owner.
    fn artifacts(&self, after: Option<(Digest, Option<TenantId>)>, limit: u32) -> Answer<Vec<Artifact>>;

    /// Takes an artifact from its owner, and removes it with the last one. [`StoreError::Missing`] if this owner does not have it;
    /// [`StoreError::Refused`] while the record of one of the slots that it is for names its digest.
    fn remove_artifact(&self, owner: Option<&TenantId>, digest: Digest) -> Answer<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = Digest::of(b"witan");
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        assert_eq!(Digest::parse(&format!("sha256:{digest}")), Some(digest));
        for wrong in ["", "abc", &"g".repeat(64), &"a".repeat(63), "é"] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }
}
