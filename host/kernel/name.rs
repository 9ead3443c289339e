//! Names of tenants, keys, nodes, stores and writes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::limit;

/// A value that breaks a rule of the data model: the field, the problem, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct Invalid {
    /// The field's name in the API.
    pub field: &'static str,
    /// What is wrong, with the value (shortened).
    pub problem: String,
    /// What to send instead.
    pub remedy: String,
}

impl Invalid {
    /// An invalid `field`.
    pub fn new(field: &'static str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field, problem: problem.into(), remedy: remedy.into() }
    }
}

/// A tenant's id: 1..=256 bytes of UTF-8 without ':' and control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Bytes);

impl TenantId {
    /// Checks and wraps an id.
    pub fn new(id: impl Into<String>) -> Result<Self, Invalid> {
        let id = id.into();
        let remedy = || format!("use 1 to {} bytes of UTF-8 without ':' and control characters", limit::TENANT_BYTES);
        if id.is_empty() {
            return Err(Invalid::new("tenant_id", "is empty", remedy()));
        }
        if id.len() > limit::TENANT_BYTES {
            return Err(Invalid::new("tenant_id", format!("has {} bytes", id.len()), remedy()));
        }
        if let Some(bad) = id.chars().find(|c| *c == ':' || c.is_control()) {
            return Err(Invalid::new("tenant_id", format!("{id:?} contains {bad:?}"), remedy()));
        }
        Ok(Self(Bytes::from(id.into_bytes())))
    }

    /// Wraps an id that another part of this system has checked already (a peer, a stored row).
    pub fn from_trusted(id: Bytes) -> Self {
        Self(id)
    }

    /// The id's bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("(not UTF-8)")
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A key: 1..=1024 bytes. The API accepts UTF-8 only; replicas accept any bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Bytes);

impl Key {
    /// Checks and wraps a key.
    pub fn new(key: impl Into<Bytes>) -> Result<Self, Invalid> {
        let key = key.into();
        let remedy = || format!("use 1 to {} bytes", limit::KEY_BYTES);
        if key.is_empty() {
            return Err(Invalid::new("key", "is empty", remedy()));
        }
        if key.len() > limit::KEY_BYTES {
            return Err(Invalid::new("key", format!("has {} bytes", key.len()), remedy()));
        }
        Ok(Self(key))
    }

    /// Wraps a key that another part of this system has checked already.
    pub fn from_trusted(key: Bytes) -> Self {
        Self(key)
    }

    /// The key's bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.0))
    }
}

/// A storage node's id: 1..=128 of `a-z A-Z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Checks and wraps an id.
    pub fn new(id: impl AsRef<str>) -> Result<Self, Invalid> {
        let id = id.as_ref();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if id.is_empty() || id.len() > 128 || !id.chars().all(allowed) {
            let shown: String = id.chars().take(40).collect();
            return Err(Invalid::new(
                "node_id",
                format!("{shown:?} is not a node id"),
                "use 1 to 128 of a-z, A-Z, 0-9, '.', '_' and '-'",
            ));
        }
        Ok(Self(Arc::from(id)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

macro_rules! sixteen {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads 16 bytes; `None` for any other length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The bytes as 32 lower-case hexadecimal digits.
            pub fn hex(&self) -> String {
                hex(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

sixteen! {
    /// The id of a client's intention to write. A retry repeats it, so that both together have one effect.
    WriteId
}

sixteen! {
    /// The id of a store, drawn when an empty store is created and when a backup is restored. It is part of every actor, so that a wiped
    /// disk cannot reuse a dot.
    StoreId
}

sixteen! {
    /// An era of the cluster: from one restore of all its stores to the next. Zero until the first one is declared.
    Era
}

impl std::str::FromStr for NodeId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text)
    }
}
