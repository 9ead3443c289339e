//! Secrets that the coordinators of a cluster share.

use std::fmt;

use super::Answer;

/// Most secrets at a time: what the seven before the newest have signed is still accepted.
pub const SECRETS: usize = 8;

/// A key that the coordinators of a cluster share and nobody else knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// From 1 on; never reused.
    pub id: u32,
    /// The key.
    pub key: [u8; 32],
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The cluster's secrets.
pub trait SecretStore: Send + Sync + 'static {
    /// The cluster's secrets, newest first. On the cluster's first start there are none, and `fresh` is stored as the first one.
    /// Coordinators that start at once all get the same.
    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>>;

    /// Adds `fresh` as the newest secret, removes the oldest beyond [`SECRETS`], and returns them as [`Self::secrets`] does.
    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>>;
}
