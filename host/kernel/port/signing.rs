//! Keys with which plugins are signed.

use std::fmt;

use super::Answer;
#[cfg(doc)]
use super::StoreError;
use crate::name::TenantId;

/// Most keys on record: one for each of a few hundred people and pipelines.
pub const SIGNING_KEYS: usize = 1000;
/// Longest id of a key, in bytes.
pub const SIGNING_KEY_ID_BYTES: usize = 64;

/// A public key of Ed25519, with which the plugins of one owner may be signed.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Whose plugins it may sign; `None`: those of the operator.
    pub owner: Option<TenantId>,
    /// Its id, unique for its owner: 1..=64 bytes of a-z, A-Z, 0-9, '.', '_' and '-'.
    pub id: String,
    /// The public key.
    pub public: [u8; 32],
    /// When it was added: Unix time, milliseconds.
    pub added_at_ms: u64,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("owner", &self.owner).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Signing keys on record.
pub trait SigningKeyStore: Send + Sync + 'static {
    /// Adds a key. The same key again is no error. [`StoreError::Exists`] when the owner has another key of this id;
    /// [`StoreError::Refused`] outside the limits, or beyond [`SIGNING_KEYS`].
    fn add_signing_key(&self, key: SigningKey) -> Answer<()>;

    /// Every key, by owner (the operator first) and id.
    fn signing_keys(&self) -> Answer<Vec<SigningKey>>;

    /// Removes a key: what is signed with it is accepted no longer. [`StoreError::Missing`].
    fn remove_signing_key(&self, owner: Option<&TenantId>, id: &str) -> Answer<()>;
}
