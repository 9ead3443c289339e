//! What coordinators have asked of a node since it was started.

use std::sync::atomic::{AtomicU64, Ordering};

use witan_kernel::replica::Ask;

/// Counts of requests that a node which is out of service for maintenance is not to get.
#[derive(Debug, Default)]
pub struct Served {
    reads: AtomicU64,
    mints: AtomicU64,
}

impl Served {
    /// A request has arrived.
    pub fn count(&self, ask: &Ask) {
        match ask {
            Ask::Read => self.reads.fetch_add(1, Ordering::Relaxed),
            Ask::Put(_) => self.mints.fetch_add(1, Ordering::Relaxed),
            // Parts of changes, which it gets as all replicas do.
            Ask::Stamp { .. } | Ask::Merge { .. } | Ask::Names { .. } | Ask::Unpin { .. } | Ask::Collect { .. } => 0,
        };
    }

    /// Requests for what is stored.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Requests to mint an event.
    pub fn mints(&self) -> u64 {
        self.mints.load(Ordering::Relaxed)
    }
}
