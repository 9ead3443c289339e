//! Bindings: which plugin answers for which tenant, and the format in which a binding is stored.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
pub use witan_kernel::port::PluginStore;
use witan_kernel::port::{Slot, StoreError};

use crate::digest::Digest;
use crate::limit;

/// What a fault of a consistency policy means for the request. (A fault of a resolver always keeps all siblings, and a fault of a
/// partition key always fails the request: anything else would lose data.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFault {
    /// The native rule applies.
    #[default]
    Native,
    /// The request fails.
    Fail,
}

impl OnFault {
    /// The value in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Fail => "fail",
        }
    }

    /// Reads the value in the API; "" is the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "native" => Some(Self::Native),
            "fail" => Some(Self::Fail),
            _ => None,
        }
    }
}

/// How a binding refers to its plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The component with this digest.
    Digest(Digest),
    /// The component with this name, and this version if one is given. A binding by name follows when the file of that name in the
    /// watched folder is replaced (except for routing hooks, since that would move keys).
    Name {
        /// The plugin's name.
        name: String,
        /// The plugin's version; `None` for the newest.
        version: Option<String>,
    },
}

impl Reference {
    /// Reads a digest (64 hexadecimal digits, optionally after `sha256:`), `name` or `name@version`.
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
    /// Number of the version: one more than that of the version before it.
    pub number: u64,
    /// The component.
    pub digest: Digest,
    /// The reference by which the component was requested.
    pub reference: Reference,
    /// `name@version` of the plugin, for a person.
    pub plugin: String,
    /// The plugin's configuration; at most 64 KiB.
    pub configuration: Bytes,
    /// What a fault of the plugin means for a request.
    pub on_fault: OnFault,
}

/// A binding as it is stored: one record per tenant and hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindingRecord {
    /// The tenant; `None` for the default of tenants without a binding.
    pub tenant: Option<TenantId>,
    /// The hook that the plugin answers.
    pub hook: Hook,
    /// The version in force.
    pub current: BindingVersion,
    /// Earlier versions for rollback, the newest last. At most [`limit::HISTORY`].
    pub previous: Vec<BindingVersion>,
    /// For a binding by name: the component of that name in the watched folder at the last change, so that the file that a rollback
    /// went back from does not undo the rollback.
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
    /// The slot of the binding.
    pub fn slot(&self) -> Slot {
        Slot { tenant: self.tenant.clone(), hook: self.hook }
    }

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

    /// Reads what [`BindingRecord::encode`] wrote, in this or an earlier version of the layout.
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

/// All bindings of a store.
pub(crate) fn stored(store: &dyn PluginStore) -> Result<Vec<BindingRecord>, StoreError> {
    store.bindings()?.iter().map(|on_record| BindingRecord::decode(&on_record.record)).collect()
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
        let plugin = r#""reference":"adaptive-latency","plugin":"adaptive-latency@0.1.0","configuration":"61","on_fault":"native""#;
        let current = format!(r#"{{"number":7,"digest":"{digest}",{plugin}}}"#);
        let text = format!(
            r#"{{"v":1,"tenant":null,"hook":"consistency-policy","current":{current},"previous":[],"followed":null}}"#
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
