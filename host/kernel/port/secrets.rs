//! Secrets that the coordinators of a cluster share.

use std::fmt;

use super::Answer;
use crate::name::Era;

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

/// The secrets of a cluster, and the era that they are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// The present era.
    pub era: Era,
    /// The secrets, newest first.
    pub keys: Vec<Secret>,
}

/// The cluster's secrets.
pub trait SecretStore: Send + Sync + 'static {
    /// The cluster's secrets. On the cluster's first start there are none, and `fresh` is stored as the first one.
    /// Coordinators that start at once all get the same.
    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Secrets>;

    /// Adds `fresh` as the newest secret, removes the oldest beyond [`SECRETS`], and returns them as [`Self::secrets`] does.
    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Secrets>;

    /// Declares that a copy of the whole cluster was restored, and begins an era. `fresh` takes the place of all secrets, so that no
    /// context of before is accepted; commit numbers are forgotten, and that stores were set back. Whatever the copy lacks is lost. The
    /// revisions of later changes are above `above`: nodes may have fences of changes that the copy lacks.
    fn begin_era(&self, era: Era, fresh: [u8; 32], above: u64, now_ms: u64) -> Answer<()>;
}
