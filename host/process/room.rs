//! How full the idempotency store is: for metrics, `/readyz`, and whoever has to give it room before it is full.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use witan_kernel::sync::lock;
use witan_store::idempotency::FILLING;

use super::stores::Idempotency;

/// Share of a disk from which an operator should act. Higher than for a Redis, since records are little of what is on a disk.
pub(crate) const DISK_FILLING: f64 = 0.93;

/// Watches the room of an idempotency store.
pub(super) struct Room {
    store: Idempotency,
    folder: PathBuf,
    /// The share that was used when it was last looked; `None` if that is unknown.
    share: Mutex<Option<f64>>,
    used: Gauge<f64, AtomicU64>,
    full: Gauge,
}

impl Room {
    pub(super) fn new(store: Idempotency, folder: &Path, registry: &mut Registry) -> Arc<Self> {
        let (used, full) = (Gauge::<f64, AtomicU64>::default(), Gauge::default());
        let help = "Share of the idempotency store's room that is used, 0 to 1: of Redis's maxmemory, or of the file system under the \
                    embedded store; NaN if it is unknown or has no limit";
        registry.register("witan_idempotency_store_used_ratio", help, used.clone());
        let help = "1 while the idempotency store refuses records because it is full";
        registry.register("witan_idempotency_store_full", help, full.clone());
        used.set(f64::NAN);
        Arc::new(Self { store, folder: folder.to_owned(), share: Mutex::new(None), used, full })
    }

    /// Looks how full it is. Takes as long as a step of the store at most.
    pub(super) async fn look(&self) {
        let share = match &self.store {
            Idempotency::Redis(redis) => redis.used_share().await.ok().flatten(),
            Idempotency::Embedded(_) => used_share(&self.folder),
        };
        *lock(&self.share) = share;
        self.used.set(share.unwrap_or(f64::NAN));
        self.full.set(self.store.is_full().into());
    }

    /// What is wrong with its room, for operators.
    pub(super) fn note(&self) -> Option<String> {
        let (what, soon) = match &self.store {
            Idempotency::Redis(_) => ("raise Redis's maxmemory", FILLING),
            Idempotency::Embedded(_) => ("make room on the disk under server.data_dir", DISK_FILLING),
        };
        let remedy = format!("{what}, or shorten the tenants' idempotency retention");
        if self.store.is_full() {
            return Some(format!(
                "the idempotency store is full, and requests with idempotency keys are refused (STORAGE_FULL): {remedy}"
            ));
        }
        let share = lock(&self.share).filter(|share| *share >= soon)?;
        Some(format!("{:.0}% of the idempotency store's room is used: {remedy}", share * 100.0))
    }
}

/// The share of a file system that is used, as `df` counts it: space that only root may use counts as used.
pub(crate) fn used_share(folder: &Path) -> Option<f64> {
    let system = rustix::fs::statvfs(folder).ok()?;
    let (all, free) = (system.f_blocks as f64, system.f_bavail as f64);
    let reserved = (system.f_bfree.saturating_sub(system.f_bavail)) as f64;
    (all - reserved > 0.0).then(|| 1.0 - free / (all - reserved))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_used_in_part() {
        let folder = tempfile::tempdir().unwrap();
        let share = used_share(folder.path()).unwrap();
        assert!((0.0..=1.0).contains(&share), "{share}");
        assert_eq!(used_share(&folder.path().join("nowhere")), None);
    }
}
