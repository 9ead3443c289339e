//! Limits of what may be under way. Beyond them requests are refused at once; nothing is queued. Long before them, a tenant that has more
//! under way than others gives way to these as soon as operations have to wait: see [`Load`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use witan_kernel::name::TenantId;
use witan_kernel::weight::Weights;

use super::load::Load;
use super::room::{COUNTERS, counter, share};

/// Limits of what is under way, background work included.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Operations of all tenants.
    pub operations: usize,
    /// Operations of one tenant. Tenants are assigned to counters by hash, and two with the same counter share its limit; with a thousand
    /// busy tenants that happens to about one in five.
    pub operations_per_tenant: usize,
    /// Bytes of values being written; three quarters of them for one tenant.
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
    load: Load,
    operations: AtomicUsize,
    bytes: AtomicUsize,
    tenants: Box<[OfTenant]>,
    active: Active,
    weights: ArcSwap<Weights>,
    empty: Notify,
    held: std::sync::atomic::AtomicBool,
}

/// What a tenant has under way.
#[derive(Debug, Default)]
struct OfTenant {
    operations: AtomicUsize,
    bytes: AtomicUsize,
    /// The number of the last period in which it was there.
    seen: AtomicU32,
}

/// How many tenants there are: those that have begun an operation lately, whether or not one is under way at the moment.
#[derive(Debug, Default)]
struct Active {
    /// The number of the latest period, which counts from the first one, 1.
    latest: AtomicU32,
    /// For the latest period and the one before, at the parity of its number: the number, and the weights of the tenants seen in it
    /// together, in one word each, so that nobody adds to one period what belongs to another.
    seen: [AtomicU64; 2],
}

/// Length of a period, in microseconds: a tenant with a few operations a second is there in each of them.
const PERIOD: u64 = 1_000_000;

impl Active {
    /// A tenant of this weight is there at `now`, in monotonic microseconds. Returns the weights of all that are, together.
    fn seen(&self, tenant: &OfTenant, weight: usize, now: u64) -> usize {
        let period = (now / PERIOD) as u32 + 1;
        let mut latest = self.latest.load(Ordering::Relaxed);
        if period > latest {
            latest = self.latest.fetch_max(period, Ordering::Relaxed).max(period);
        }
        // An operation that arrived before others that were seen is seen now: counted for a period that is over, its tenant would count
        // twice as soon as it is seen again.
        if tenant.seen.load(Ordering::Relaxed) < latest && tenant.seen.fetch_max(latest, Ordering::Relaxed) < latest {
            self.add(latest, weight);
        }
        self.of(latest).max(self.of(latest.wrapping_sub(1)))
    }

    fn slot(&self, period: u32) -> &AtomicU64 {
        &self.seen[period as usize % 2]
    }

    fn add(&self, period: u32, weight: usize) {
        let weight = u64::from(u32::try_from(weight).unwrap_or(u32::MAX));
        let more = |seen: u64| match (seen >> 32).cmp(&u64::from(period)) {
            std::cmp::Ordering::Less => Some(u64::from(period) << 32 | weight),
            std::cmp::Ordering::Equal => Some(seen + weight.min(u64::from(u32::MAX) - (seen & u64::from(u32::MAX)))),
            // Two periods have passed since.
            std::cmp::Ordering::Greater => None,
        };
        // An error means that there was nothing to add.
        let _ = self.slot(period).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// The weights of the tenants seen in one of the two latest periods, together.
    fn of(&self, period: u32) -> usize {
        let seen = self.slot(period).load(Ordering::Relaxed);
        if seen >> 32 == u64::from(period) { seen as u32 as usize } else { 0 }
    }
}

/// Permission for one operation to be under way; returned when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    /// Index of the tenant's counter.
    tenant: usize,
    bytes: usize,
}

impl Permit {
    /// The operation, admitted at `admitted`, begins at `now`, both monotonic microseconds.
    pub(super) fn begins(&self, admitted: u64, now: u64) {
        self.admission.load.began(admitted, now, self.admission.in_flight());
    }
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            load: Load::new(limits.operations),
            limits,
            operations: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            tenants: (0..COUNTERS).map(|_| OfTenant::default()).collect(),
            active: Active::default(),
            weights: ArcSwap::default(),
            empty: Notify::new(),
            held: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Whether [`Self::admit`] would refuse an operation because of the load, at this moment. Takes nothing, and costs less.
    pub(super) fn turns_away(&self, tenant: &TenantId, now: u64) -> bool {
        let operations = self.operations.load(Ordering::Relaxed);
        // Nearly always: nobody gives way, and whether the tenant is there is noted when it is admitted.
        if operations < self.window() {
            return false;
        }
        let of_tenant = &self.tenants[counter(tenant)];
        let weight = self.weight(tenant);
        let all = self.active.seen(of_tenant, weight, now);
        let own = of_tenant.operations.load(Ordering::Relaxed);
        operations >= self.limits.operations
            || own >= self.limits.operations_per_tenant
            || !self.load.admits(own, operations, weight, all)
    }

    /// A permit for one operation at `now` (monotonic microseconds), unless a limit is reached or the tenant has to give way to others.
    pub(super) fn admit(self: &Arc<Self>, tenant: &TenantId, bytes: usize, now: u64) -> Option<Permit> {
        let counter = counter(tenant);
        let of_tenant = &self.tenants[counter];
        let weight = self.weight(tenant);
        let all = self.active.seen(of_tenant, weight, now);
        let permit = Permit { admission: Arc::clone(self), tenant: counter, bytes };
        let operations = self.operations.fetch_add(1, Ordering::AcqRel);
        let own = of_tenant.operations.fetch_add(1, Ordering::AcqRel);
        let in_bytes = self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let own_bytes = of_tenant.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        // If refused, the permit is dropped here and the counts are undone.
        let fits = !self.held.load(Ordering::Acquire)
            && operations < self.limits.operations
            && own < self.limits.operations_per_tenant
            && (bytes == 0 || in_bytes <= self.limits.bytes && own_bytes <= share(self.limits.bytes))
            && self.load.admits(own, operations, weight, all);
        fits.then_some(permit)
    }

    fn weight(&self, tenant: &TenantId) -> usize {
        self.weights.load().of(tenant) as usize
    }

    /// Replaces the weights of tenants.
    pub(super) fn set_weights(&self, weights: Weights) {
        self.weights.store(Arc::new(weights));
    }

    /// Refuses operations until the returned value is dropped, and waits until those under way have ended.
    pub(super) async fn hold(self: &Arc<Self>) -> Hold {
        self.held.store(true, Ordering::Release);
        let hold = Hold(Arc::clone(self));
        self.drained().await;
        hold
    }

    /// The threads that serve had something to do for this share of their time lately.
    pub(super) fn set_busy(&self, share: f64) {
        self.load.set_busy(share);
    }

    /// Operations beyond which a tenant that has more than others gives way.
    pub(super) fn window(&self) -> usize {
        self.load.window()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.operations.load(Ordering::Acquire)
    }

    /// Operations, the same by tenant, and bytes.
    pub(super) fn held(&self) -> (usize, usize, usize) {
        let of_tenants = self.tenants.iter().map(|of| of.operations.load(Ordering::Acquire)).sum();
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
        admission.tenants[self.tenant].bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        admission.tenants[self.tenant].operations.fetch_sub(1, Ordering::AcqRel);
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
        let admit = |of, bytes| admission.admit(&tenant(of), bytes, 0);
        let first = admit("a", 8).unwrap();
        assert!(admit("a", 2).is_none(), "one tenant's bytes");
        assert!(admit("b", 5).is_none(), "bytes");
        let second = admit("a", 1).unwrap();
        assert!(admit("a", 0).is_none(), "one tenant's operations");
        let third = admit("b", 0).unwrap();
        assert!(admit("c", 0).is_none(), "operations");
        assert_eq!(admission.in_flight(), 3);
        drop((first, second, third));
        assert_eq!(admission.held(), (0, 0, 0));
        assert!(admit("a", 9).is_some());
    }

    #[test]
    fn tenants_are_there_for_a_while() {
        let (active, a, b) = (Active::default(), OfTenant::default(), OfTenant::default());
        assert_eq!((active.seen(&a, 1, 5), active.seen(&a, 1, 6), active.seen(&b, 3, 7)), (1, 1, 4));
        assert_eq!(active.seen(&a, 1, PERIOD + 1), 4, "the other was there in the period before");
        assert_eq!(active.seen(&a, 1, 2 * PERIOD), 1);
        active.seen(&b, 3, 2 * PERIOD + 1);
        assert_eq!(active.seen(&a, 1, 9 * PERIOD), 1);
    }

    /// Of a session's batch some operations are looked at as of its arrival, and some as of later.
    #[test]
    fn a_tenant_that_is_alone_is_alone_whatever_the_order_of_its_operations() {
        let (active, tenant) = (Active::default(), OfTenant::default());
        for second in 1..9 {
            for time in [0, 3, 1, 5, 2, 7, 4] {
                for late in [0, PERIOD / 2] {
                    let seen = active.seen(&tenant, 1, second * PERIOD + time - 3 + late.min(time));
                    assert_eq!(seen, 1, "second {second}, {time}, {late}");
                }
            }
        }
    }

    #[test]
    fn tenants_that_are_seen_at_the_same_moment_are_counted_once_each() {
        let active = Active::default();
        let tenants: Vec<OfTenant> = (0..3).map(|_| OfTenant::default()).collect();
        for round in 0..300_u64 {
            let most = std::thread::scope(|scope| {
                let (active, tenants) = (&active, &tenants);
                let seers = (0..4_u64).map(|thread| {
                    scope.spawn(move || {
                        // Around the end of a period, each in another order.
                        let times =
                            (0..60).map(|step| round * 3 * PERIOD + PERIOD - 30 + (step * 7 + thread * 13) % 60);
                        times.enumerate().map(|(at, now)| active.seen(&tenants[at % 3], 1, now)).max().unwrap_or(0)
                    })
                });
                seers.collect::<Vec<_>>().into_iter().map(|seer| seer.join().unwrap()).max()
            });
            assert!(most.is_some_and(|most| most <= 3), "round {round}: {most:?}");
        }
    }

    #[test]
    fn a_tenant_with_more_than_others_gives_way_to_them() {
        let admission = Arc::new(Admission::new(Limits::default()));
        let busy: Vec<Permit> = (0..1000).map(|_| admission.admit(&tenant("busy"), 0, 0).unwrap()).collect();
        busy.iter().for_each(|permit| permit.begins(0, 50_000));
        assert!(admission.admit(&tenant("busy"), 0, 50_000).is_some(), "nobody else is there");
        assert!(admission.admit(&tenant("quiet"), 0, 60_000).is_some());
        assert!(admission.admit(&tenant("busy"), 0, 60_000).is_none());
        assert!(admission.admit(&tenant("quiet"), 0, 60_000).is_some());
        drop(busy);
        assert!(admission.admit(&tenant("busy"), 0, 60_000).is_some());
    }

    #[test]
    fn a_tenant_of_greater_weight_may_have_more_than_others() {
        let admission = Arc::new(Admission::new(Limits::default()));
        admission.set_weights(Weights::parse("weights", &["heavy=4".to_owned()]).unwrap());
        let admit = |of: &str, operations: usize| -> Vec<Permit> {
            (0..operations).filter_map(|_| admission.admit(&tenant(of), 0, 0)).collect()
        };
        let (heavy, light) = (admit("heavy", 800), admit("light", 200));
        light.iter().for_each(|permit| permit.begins(0, 50_000));
        assert_eq!((heavy.len(), light.len()), (800, 200));
        assert_eq!(admit("heavy", 1).len() + admit("light", 1).len(), 2, "they share four to one");
        let more = admit("light", 200);
        assert_eq!(more.len(), 143, "343 of 1,143 are half as much again as a fifth");
        assert!(admission.turns_away(&tenant("light"), 0));
        assert!(!admission.turns_away(&tenant("heavy"), 0));
    }

    #[tokio::test]
    async fn drained_waits_for_the_last() {
        let admission = Arc::new(Admission::new(Limits::default()));
        admission.drained().await;
        let permit = admission.admit(&tenant("a"), 0, 0);
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
