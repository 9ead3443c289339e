//! Limits of what may be under way. Beyond them requests are refused at once; nothing is queued.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use witan_kernel::name::TenantId;

use super::room::{counter, counters, share};

/// Limits of what is under way, background work included.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Operations of all tenants.
    pub operations: usize,
    /// Operations of one tenant. Tenants are assigned to counters by hash, and two with the same counter share its limit; with a thousand
    /// busy tenants that happens to about one in five.
    pub operations_per_tenant: usize,
    /// Bytes of values being written. One tenant may have three quarters.
    pub bytes: usize,
    /// Repairs in the background. One tenant may have three quarters.
    pub repairs: usize,
    /// Pages of keys that are being read, of all tenants.
    pub scans: usize,
    /// The same of one tenant.
    pub scans_per_tenant: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            operations: 20_000,
            operations_per_tenant: 15_000,
            bytes: 512 << 20,
            repairs: 1000,
            scans: 64,
            scans_per_tenant: 8,
        }
    }
}

#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    operations: AtomicUsize,
    bytes: AtomicUsize,
    tenants: Box<[AtomicUsize]>,
    /// Bytes by tenant, with the same counters.
    tenants_bytes: Box<[AtomicUsize]>,
    empty: Notify,
    held: std::sync::atomic::AtomicBool,
}

/// Permission for one operation to be under way; returned when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    /// Index of the tenant's counter.
    tenant: usize,
    bytes: usize,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            operations: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            tenants: counters(),
            tenants_bytes: counters(),
            empty: Notify::new(),
            held: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// A permit for one operation, unless a limit is reached.
    pub(super) fn admit(self: &Arc<Self>, tenant: &TenantId, bytes: usize) -> Option<Permit> {
        let counter = counter(tenant);
        let permit = Permit { admission: Arc::clone(self), tenant: counter, bytes };
        let operations = self.operations.fetch_add(1, Ordering::AcqRel);
        let of_tenant = self.tenants[counter].fetch_add(1, Ordering::AcqRel);
        let in_bytes = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let of_tenant_bytes = self.tenants_bytes[counter].fetch_add(bytes, Ordering::AcqRel);
        // If refused, the permit is dropped here and the counts are undone.
        let fits = !self.held.load(Ordering::Acquire)
            && operations < self.limits.operations
            && of_tenant < self.limits.operations_per_tenant
            && (bytes == 0
                || in_bytes + bytes <= self.limits.bytes && of_tenant_bytes + bytes <= share(self.limits.bytes));
        fits.then_some(permit)
    }

    /// Refuses operations until the returned value is dropped, and waits until those under way have ended.
    pub(super) async fn hold(self: &Arc<Self>) -> Hold {
        self.held.store(true, Ordering::Release);
        let hold = Hold(Arc::clone(self));
        self.drained().await;
        hold
    }

    pub(super) fn in_flight(&self) -> usize {
        self.operations.load(Ordering::Acquire)
    }

    /// Operations, the same by tenant, and bytes.
    pub(super) fn held(&self) -> (usize, usize, usize) {
        let of_tenants = self.tenants.iter().map(|count| count.load(Ordering::Acquire)).sum();
        (self.in_flight(), of_tenants, self.bytes.load(Ordering::Acquire))
    }

    pub(super) async fn drained(&self) {
        loop {
            let emptied = self.empty.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// Operations are refused while this exists.
#[derive(Debug)]
pub struct Hold(Arc<Admission>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Release);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let admission = &self.admission;
        admission.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        admission.tenants_bytes[self.tenant].fetch_sub(self.bytes, Ordering::AcqRel);
        admission.tenants[self.tenant].fetch_sub(1, Ordering::AcqRel);
        if admission.operations.fetch_sub(1, Ordering::AcqRel) == 1 {
            admission.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    #[test]
    fn a_refusal_leaves_no_trace() {
        let limits = Limits { operations: 3, operations_per_tenant: 2, bytes: 12, ..Limits::default() };
        let admission = Arc::new(Admission::new(limits));
        let first = admission.admit(&tenant("a"), 7).unwrap();
        assert!(admission.admit(&tenant("a"), 3).is_none(), "one tenant's bytes");
        assert!(admission.admit(&tenant("b"), 6).is_none(), "bytes");
        let second = admission.admit(&tenant("a"), 2).unwrap();
        assert!(admission.admit(&tenant("a"), 0).is_none(), "one tenant's operations");
        let third = admission.admit(&tenant("b"), 0).unwrap();
        assert!(admission.admit(&tenant("c"), 0).is_none(), "operations");
        assert_eq!(admission.in_flight(), 3);
        drop((first, second, third));
        assert_eq!(admission.held(), (0, 0, 0));
        assert!(admission.admit(&tenant("a"), 9).is_some());
    }

    #[tokio::test]
    async fn drained_waits_for_the_last() {
        let admission = Arc::new(Admission::new(Limits::default()));
        admission.drained().await;
        let permit = admission.admit(&tenant("a"), 0);
        let waiting = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.drained().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(permit);
        waiting.await.unwrap();
    }
}
