//! Bindings: which plugin answers for whom, as it is stored; and the store of plugins and bindings.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::StoreError;

use crate::compile::lock;
use crate::digest::Digest;
use crate::limit;
use crate::registry::Artifact;

/// What a consistency policy's fault means for the request. (A resolver's fault always keeps all siblings, and a fault of
/// a partition key always fails the request: anything else would lose data.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFault {
    /// The native rule holds.
    #[default]
    Native,
    /// The request fails.
    Fail,
}

impl OnFault {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fail => "fail",
        }
    }

    /// Reads the API's spelling; "" is the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "native" => Some(Self::Native),
            "fail" => Some(Self::Fail),
            _ => None,
        }
    }
}

/// How a binding names its plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// This component and no other.
    Digest(Digest),
    /// The component of this name, and of this version if one is given. A binding by name follows when the watched
    /// folder's file of that name is replaced (a routing hook's never does: that would move keys).
    Name {
        /// The plugin's name.
        name: String,
        /// Its version; `None` for whichever came last.
        version: Option<String>,
    },
}

impl Reference {
    /// Reads a digest (64 hexadecimal digits, `sha256:` before them or not), `name` or `name@version`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(digest) = Digest::parse(text) {
            return Some(Self::Digest(digest));
        }
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let good = is_name(name) && version.is_none_or(is_version);
        good.then(|| Self::Name { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Name { name, version: None } => f.write_str(name),
            Self::Name { name, version: Some(version) } => write!(f, "{name}@{version}"),
        }
    }
}

/// True for 1 to 64 of a-z, 0-9 and '-'.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=limit::NAME_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// True for 1 to 64 of a-z, A-Z, 0-9, '.', '-' and '+'.
pub(crate) fn is_version(text: &str) -> bool {
    (1..=limit::NAME_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte))
}

/// One version of a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingVersion {
    /// The binding's number when this was put in force. Grows with every change.
    pub number: u64,
    /// The component.
    pub digest: Digest,
    /// How it was asked for.
    pub reference: Reference,
    /// `name@version` of the plugin, for a person.
    pub plugin: String,
    /// What the plugin is configured with; at most 64 KiB.
    pub configuration: Bytes,
    /// What a fault means.
    pub on_fault: OnFault,
}

/// A binding, as a store keeps it: one row per (tenant, hook).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingRecord {
    /// Whose it is; `None` for every tenant without one of its own.
    pub tenant: Option<TenantId>,
    /// What it answers.
    pub hook: Hook,
    /// What is in force.
    pub current: BindingVersion,
    /// What was in force before, the newest last, for rollback. At most [`limit::HISTORY`].
    pub previous: Vec<BindingVersion>,
    /// For a binding by name: the watched folder's component of that name when it was last looked at, so that a
    /// rollback is not undone by the file that it rolled back from.
    pub followed: Option<Digest>,
}

#[derive(Serialize, Deserialize)]
struct StoredVersion {
    number: u64,
    digest: String,
    reference: String,
    plugin: String,
    configuration: String,
    on_fault: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// The layout's version, 1.
    v: u32,
    tenant: Option<String>,
    hook: String,
    current: StoredVersion,
    previous: Vec<StoredVersion>,
    followed: Option<String>,
}

impl BindingRecord {
    /// The record as JSON, version 1 of its layout.
    pub fn encode(&self) -> String {
        let stored = Stored {
            v: 1,
            tenant: self.tenant.as_ref().map(|tenant| tenant.as_str().to_owned()),
            hook: self.hook.as_str().to_owned(),
            current: store_version(&self.current),
            previous: self.previous.iter().map(store_version).collect(),
            followed: self.followed.map(|digest| digest.to_string()),
        };
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// Reads what [`BindingRecord::encode`] has written, in this or an earlier version.
    pub fn decode(text: &str) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("a plugin binding's {what}"));
        let stored: Stored = serde_json::from_str(text).map_err(|error| damaged(&format!("record: {error}")))?;
        if stored.v != 1 {
            return Err(damaged(&format!("layout {} is not known; it is newer than this program", stored.v)));
        }
        let digest = |text: &str| Digest::parse(text).ok_or_else(|| damaged("digest"));
        let version = |it: &StoredVersion| {
            Ok::<_, StoreError>(BindingVersion {
                number: it.number,
                digest: digest(&it.digest)?,
                reference: Reference::parse(&it.reference).ok_or_else(|| damaged("reference"))?,
                plugin: it.plugin.clone(),
                configuration: unhex(&it.configuration).ok_or_else(|| damaged("configuration"))?,
                on_fault: OnFault::parse(&it.on_fault).ok_or_else(|| damaged("on_fault"))?,
            })
        };
        Ok(Self {
            tenant: stored.tenant.map(TenantId::new).transpose().map_err(|error| damaged(&error.to_string()))?,
            hook: Hook::parse(&stored.hook).ok_or_else(|| damaged("hook"))?,
            current: version(&stored.current)?,
            previous: stored.previous.iter().map(version).collect::<Result<_, _>>()?,
            followed: stored.followed.as_deref().map(digest).transpose()?,
        })
    }
}

fn store_version(version: &BindingVersion) -> StoredVersion {
    StoredVersion {
        number: version.number,
        digest: version.digest.to_string(),
        reference: version.reference.to_string(),
        plugin: version.plugin.clone(),
        configuration: version.configuration.iter().map(|byte| format!("{byte:02x}")).collect(),
        on_fault: version.on_fault.as_str().to_owned(),
    }
}

fn unhex(text: &str) -> Option<Bytes> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(byte).collect()
}

/// Where plugins and bindings are kept, for one coordinator or for several. Called on a thread of the plugin host's own, never
/// on a runtime's, one call at a time: an implementation may block (say, in `tokio::runtime::Handle::block_on`). A binding is
/// in force only after `save`, and a component is known only after `keep`.
pub trait PluginStore: Send + Sync + 'static {
    /// Whether other coordinators change it too.
    fn is_shared(&self) -> bool;

    /// Every component, without its bytes. At most [`limit::ARTIFACTS`] are taken from here.
    fn components(&self) -> Result<Vec<Artifact>, StoreError>;

    /// A component's bytes. `None` when it is not there (any more).
    fn component(&self, digest: Digest) -> Result<Option<Bytes>, StoreError>;

    /// Stores a component; one that is there stays as it is. Durable when it returns.
    fn keep(&self, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError>;

    /// Forgets a component. Not an error when there is none; [`StoreError::Refused`] when a binding needs it.
    fn forget(&self, digest: Digest) -> Result<(), StoreError>;

    /// Every binding.
    fn bindings(&self) -> Result<Vec<BindingRecord>, StoreError>;

    /// One binding.
    fn binding(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<Option<BindingRecord>, StoreError>;

    /// Stores a binding in place of the one of the same tenant and hook that was last told or stored here. Durable when it
    /// returns. [`StoreError::Conflict`] when another coordinator has stored one since, [`StoreError::Missing`] when the
    /// component that it puts in force is not there.
    fn save(&self, record: &BindingRecord) -> Result<(), StoreError>;

    /// Forgets a binding, as [`Self::save`] stores one. Not an error when there is none.
    fn remove(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<(), StoreError>;
}

/// Plugins and bindings that live as long as the process: for tests, simulations and measurements. Hosts that are given the
/// same one share it, each by a [`Self::seat`] of its own.
#[derive(Debug, Clone, Default)]
pub struct InMemoryPlugins {
    kept: Arc<Mutex<Kept>>,
    /// What this host has read or stored last.
    known: Arc<Mutex<BTreeMap<Place, u64>>>,
    shared: bool,
}

type Place = (Option<TenantId>, Hook);

#[derive(Debug, Default)]
struct Kept {
    components: BTreeMap<Digest, (Artifact, Bytes)>,
    /// Each with its version.
    bindings: BTreeMap<Place, (u64, String)>,
    versions: u64,
}

impl InMemoryPlugins {
    /// The same store as another host sees it.
    #[must_use]
    pub fn seat(&self) -> Self {
        Self { kept: Arc::clone(&self.kept), known: Arc::default(), shared: true }
    }

    fn expect(&self, kept: &Kept, place: &Place) -> Result<(), StoreError> {
        let stored = kept.bindings.get(place).map_or(0, |(version, _)| *version);
        let known = lock(&self.known).get(place).copied().unwrap_or(0);
        if stored == known {
            return Ok(());
        }
        Err(StoreError::Conflict(format!("the binding is at version {stored}, and {known} was to be changed")))
    }

    fn learn(&self, place: &Place, version: u64) {
        lock(&self.known).insert(place.clone(), version);
    }
}

impl PluginStore for InMemoryPlugins {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn components(&self) -> Result<Vec<Artifact>, StoreError> {
        Ok(lock(&self.kept).components.values().map(|(artifact, _)| artifact.clone()).collect())
    }

    fn component(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(lock(&self.kept).components.get(&digest).map(|(_, bytes)| bytes.clone()))
    }

    fn keep(&self, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError> {
        lock(&self.kept).components.entry(artifact.digest).or_insert_with(|| (artifact.clone(), bytes.clone()));
        Ok(())
    }

    fn forget(&self, digest: Digest) -> Result<(), StoreError> {
        let mut kept = lock(&self.kept);
        let hex = digest.to_string();
        if kept.bindings.values().any(|(_, record)| record.contains(&hex)) {
            return Err(StoreError::Refused(format!("plugin {digest} is bound")));
        }
        kept.components.remove(&digest);
        Ok(())
    }

    fn bindings(&self) -> Result<Vec<BindingRecord>, StoreError> {
        let kept = lock(&self.kept);
        kept.bindings.iter().for_each(|(place, (version, _))| self.learn(place, *version));
        kept.bindings.values().map(|(_, text)| BindingRecord::decode(text)).collect()
    }

    fn binding(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<Option<BindingRecord>, StoreError> {
        let place = (tenant.cloned(), hook);
        let kept = lock(&self.kept);
        let stored = kept.bindings.get(&place);
        self.learn(&place, stored.map_or(0, |(version, _)| *version));
        stored.map(|(_, text)| BindingRecord::decode(text)).transpose()
    }

    fn save(&self, record: &BindingRecord) -> Result<(), StoreError> {
        let place = (record.tenant.clone(), record.hook);
        let mut kept = lock(&self.kept);
        self.expect(&kept, &place)?;
        if !kept.components.contains_key(&record.current.digest) {
            return Err(StoreError::Missing(format!("plugin {}", record.current.digest)));
        }
        kept.versions += 1;
        let version = kept.versions;
        kept.bindings.insert(place.clone(), (version, record.encode()));
        self.learn(&place, version);
        Ok(())
    }

    fn remove(&self, tenant: Option<&TenantId>, hook: Hook) -> Result<(), StoreError> {
        let place = (tenant.cloned(), hook);
        let mut kept = lock(&self.kept);
        self.expect(&kept, &place)?;
        kept.bindings.remove(&place);
        self.learn(&place, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u64) -> BindingVersion {
        BindingVersion {
            number,
            digest: Digest::of(b"x"),
            reference: Reference::parse("set-union@1.2.0").unwrap(),
            plugin: "set-union@1.2.0".into(),
            configuration: Bytes::from_static(&[0, 255, b'"']),
            on_fault: OnFault::Fail,
        }
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let record = BindingRecord {
            tenant: Some(TenantId::new("a\"b").unwrap()),
            hook: Hook::ConflictResolver,
            current: version(2),
            previous: vec![version(1)],
            followed: Some(Digest::of(b"y")),
        };
        assert_eq!(BindingRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn bytes_of_the_first_layout_are_read() {
        let digest = "ab".repeat(32);
        let text = format!(
            r#"{{"v":1,"tenant":null,"hook":"consistency-policy","current":{{"number":7,"digest":"{digest}","reference":"adaptive-latency","plugin":"adaptive-latency@0.1.0","configuration":"61","on_fault":"native"}},"previous":[],"followed":null}}"#
        );
        let record = BindingRecord::decode(&text).unwrap();
        assert_eq!((record.current.number, &record.current.configuration[..]), (7, &b"a"[..]));
        assert!(BindingRecord::decode(&text.replace("\"v\":1", "\"v\":2")).unwrap_err().to_string().contains("newer"));
        assert!(BindingRecord::decode("{}").is_err());
    }

    #[test]
    fn references_are_digests_names_or_names_with_a_version() {
        for text in ["set-union", "set-union@1.0.0", &"0f".repeat(32)] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["", "Set", "a@", "@1", "a b", "../x", "a@1@2"] {
            assert_eq!(Reference::parse(wrong), None, "{wrong}");
        }
    }
}
