//! Room for bytes that are kept for clients, for pages that are read for them, and for results that are recorded late: in all, and of one
//! tenant.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use witan_kernel::name::TenantId;

/// Number of counters per tenant. Tenants are assigned to them by hash, so that the table is bounded whatever ids arrive.
pub(super) const COUNTERS: usize = 4096;

/// The counter of a tenant.
pub(super) fn counter(tenant: &TenantId) -> usize {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(tenant.bytes()) as usize % COUNTERS
}

/// Counters, one for each value of [`counter`].
pub(super) fn counters() -> Box<[AtomicUsize]> {
    (0..COUNTERS).map(|_| AtomicUsize::new(0)).collect()
}

/// What one tenant may have of what all share: three quarters, so that there is some for others.
pub(super) const fn share(most: usize) -> usize {
    most / 4 * 3
}

/// Room for a number of bytes.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    of_tenant: usize,
    bytes: AtomicUsize,
    tenants: Box<[AtomicUsize]>,
}

/// Bytes of a `Room`; given back when dropped.
#[derive(Debug)]
pub struct RoomPermit {
    room: Arc<Room>,
    tenant: usize,
    bytes: usize,
}

impl Room {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Self::of(most, share(most))
    }

    /// Of which one tenant may have this much.
    pub(super) fn of(most: usize, of_tenant: usize) -> Arc<Self> {
        Arc::new(Self { most, of_tenant, bytes: AtomicUsize::new(0), tenants: counters() })
    }

    /// Room for this number of bytes, unless there is none left for all or for the tenant.
    pub(super) fn admit(self: &Arc<Self>, tenant: &TenantId, bytes: usize) -> Option<RoomPermit> {
        let tenant = counter(tenant);
        let in_all = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let of_tenant = self.tenants[tenant].fetch_add(bytes, Ordering::AcqRel);
        // If refused, the permit is dropped here and the counts are undone.
        let permit = RoomPermit { room: Arc::clone(self), tenant, bytes };
        let fits = in_all + bytes <= self.most && of_tenant + bytes <= self.of_tenant;
        fits.then_some(permit)
    }

    /// Bytes that are taken.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }
}

impl Drop for RoomPermit {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.room.tenants[self.tenant].fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
