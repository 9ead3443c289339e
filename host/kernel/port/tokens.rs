//! API tokens on record.

use std::fmt;

use super::Answer;
#[cfg(doc)]
use super::StoreError;
use crate::name::TenantId;

/// Most API tokens: each coordinator keeps all of them in memory, about 4 MB.
pub const TOKENS: usize = 10_000;
/// Longest id of an API token, in bytes: it is part of the token's text, which people copy.
pub const TOKEN_ID_BYTES: usize = 64;
/// Longest label of an API token, in bytes: a line for people.
pub const TOKEN_LABEL_BYTES: usize = 128;

/// An API credential, without the secret that would let anybody use it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public part: 1..=64 of a-z, 0-9 and '-'.
    pub id: String,
    /// The hash of its secret part.
    pub hash: [u8; 32],
    /// The tenant that it is limited to; `None` for all.
    pub tenant: Option<TenantId>,
    /// What it allows, as bits defined by the API.
    pub scopes: u32,
    /// For people; at most 128 bytes.
    pub label: String,
    /// Unix time, milliseconds.
    pub created_at_ms: u64,
    /// When it expires: Unix time, milliseconds.
    pub expires_at_ms: Option<u64>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("tenant", &self.tenant)
            .field("scopes", &self.scopes)
            .field("label", &self.label)
            .field("created_at_ms", &self.created_at_ms)
            .field("expires_at_ms", &self.expires_at_ms)
            .finish_non_exhaustive()
    }
}

/// API tokens on record.
pub trait TokenStore: Send + Sync + 'static {
    /// Stores a new API token. `of_tenant`: the most tokens that its tenant may have then; `None`: any number. [`StoreError::Exists`];
    /// [`StoreError::Refused`] outside the limits, beyond `of_tenant` or beyond [`TOKENS`].
    fn create_token(&self, token: Token, of_tenant: Option<usize>) -> Answer<()>;

    /// One API token.
    fn token(&self, id: &str) -> Answer<Option<Token>>;

    /// API tokens, by id.
    fn tokens(&self, after: Option<&str>, limit: u32) -> Answer<Vec<Token>>;

    /// Removes an API token. [`StoreError::Missing`].
    fn remove_token(&self, id: &str) -> Answer<()>;
}
