//! Instances that are kept warm for the next question. Their bytes are bounded, of each tenant and of all: the least recently used are
//! dropped first, whoever's plugins they are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use witan_kernel::name::TenantId;
use witan_kernel::sync::lock;

use crate::instance::Instance;

/// What can be kept: something of a certain size.
pub(crate) trait Keep {
    /// Bytes that it takes.
    fn kept_bytes(&self) -> usize;
}

impl Keep for Instance {
    fn kept_bytes(&self) -> usize {
        Self::kept_bytes(self)
    }
}

/// The warm instances of all tenants.
pub(crate) struct Warm<T = Instance> {
    most_of_tenant: usize,
    most: usize,
    bytes: AtomicUsize,
    tenants: Mutex<BTreeMap<TenantId, Weak<OfTenant<T>>>>,
    /// Held by the thread that makes room: the others wait, so that the bounds hold when a call has ended.
    dropping: Mutex<()>,
}

/// The warm instances of one tenant, of all its bindings.
pub(crate) struct OfTenant<T = Instance> {
    tenant: TenantId,
    all: Arc<Warm<T>>,
    bytes: AtomicUsize,
    pools: Mutex<Vec<Weak<Idle<T>>>>,
}

/// Warm instances of one version of one binding, for one tenant: as many as threads asked at the same time, up to a bound.
pub(crate) struct WarmPool<T = Instance> {
    idle: Arc<Idle<T>>,
    /// `None`: nothing is kept.
    of: Option<Arc<OfTenant<T>>>,
}

/// The least recently used first.
struct Idle<T>(Mutex<Vec<Kept<T>>>);

struct Kept<T> {
    instance: Box<T>,
    bytes: usize,
    /// When it was used last, in the host's ticks.
    at: u64,
}

impl<T: Keep> Warm<T> {
    /// At most this many bytes of each tenant, and of all together.
    pub(crate) fn new(most_of_tenant: usize, most: usize) -> Arc<Self> {
        let (bytes, tenants, dropping) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        Arc::new(Self { most_of_tenant, most, bytes, tenants, dropping })
    }

    /// Bytes of all that is kept.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// What is kept for a tenant.
    pub(crate) fn tenant(self: &Arc<Self>, tenant: &TenantId) -> Arc<OfTenant<T>> {
        let mut tenants = lock(&self.tenants);
        if let Some(known) = tenants.get(tenant).and_then(Weak::upgrade) {
            return known;
        }
        let (bytes, pools) = (AtomicUsize::new(0), Mutex::default());
        let made = Arc::new(OfTenant { tenant: tenant.clone(), all: self.clone(), bytes, pools });
        tenants.insert(tenant.clone(), Arc::downgrade(&made));
        made
    }

    /// Drops the least recently used of all, until there is some room: an eighth, so that it is not sought with every call.
    fn make_room(&self) {
        let _dropping = lock(&self.dropping);
        if self.bytes() > self.most {
            let tenants: Vec<_> = lock(&self.tenants).values().filter_map(Weak::upgrade).collect();
            let pools = tenants.iter().flat_map(|tenant| tenant.pools().into_iter().map(move |pool| (tenant, pool)));
            drop_oldest(&pools.collect::<Vec<_>>(), || self.bytes() > self.most - self.most / 8);
        }
    }
}

impl<T: Keep> OfTenant<T> {
    /// A pool for a version of a binding.
    pub(crate) fn pool(self: &Arc<Self>) -> WarmPool<T> {
        let idle = Arc::new(Idle(Mutex::default()));
        let mut pools = lock(&self.pools);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&idle));
        WarmPool { idle, of: Some(self.clone()) }
    }

    fn pools(&self) -> Vec<Arc<Idle<T>>> {
        lock(&self.pools).iter().filter_map(Weak::upgrade).collect()
    }

    /// Drops the least recently used of this tenant.
    fn make_room(self: &Arc<Self>) {
        let most = self.all.most_of_tenant;
        let _dropping = lock(&self.all.dropping);
        let pools: Vec<_> = self.pools().into_iter().map(|pool| (self, pool)).collect();
        drop_oldest(&pools, || self.bytes.load(Relaxed) > most);
    }
}

impl<T> OfTenant<T> {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.all.bytes.fetch_add(bytes, Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.all.bytes.fetch_sub(bytes, Relaxed);
    }
}

impl<T> Drop for OfTenant<T> {
    fn drop(&mut self) {
        let mut tenants = lock(&self.all.tenants);
        // Another one may have been made for the tenant meanwhile.
        if tenants.get(&self.tenant).is_some_and(|known| known.strong_count() == 0) {
            tenants.remove(&self.tenant);
        }
    }
}

/// A tenant's pool.
type Pool<'a, T> = (&'a Arc<OfTenant<T>>, Arc<Idle<T>>);

/// Drops what is kept in these pools, the least recently used first, for as long as it `must`.
fn drop_oldest<T: Keep>(pools: &[Pool<'_, T>], must: impl Fn() -> bool) {
    let ages = |at: usize| lock(&pools[at].1.0).iter().map(move |kept| (kept.at, at)).collect::<Vec<_>>();
    let mut ages: Vec<(u64, usize)> = (0..pools.len()).flat_map(ages).collect();
    ages.sort_unstable();
    for (_, at) in ages {
        if !must() {
            return;
        }
        let (tenant, pool) = &pools[at];
        let mut kept = lock(&pool.0);
        // It may have been taken meanwhile.
        let oldest = (!kept.is_empty()).then(|| kept.remove(0));
        drop(kept);
        if let Some(oldest) = oldest {
            tenant.subtract(oldest.bytes);
        }
    }
}

impl<T: Keep> WarmPool<T> {
    /// A pool that keeps nothing.
    pub(crate) fn apart() -> Self {
        Self { idle: Arc::new(Idle(Mutex::default())), of: None }
    }

    /// Takes the instance that was used last.
    pub(crate) fn pop(&self) -> Option<Box<T>> {
        let kept = lock(&self.idle.0).pop()?;
        if let Some(of) = &self.of {
            of.subtract(kept.bytes);
        }
        Some(kept.instance)
    }

    /// Keeps an instance that was used now, unless there are this many already.
    pub(crate) fn push(&self, instance: Box<T>, most: usize, now: u64) {
        let Some(of) = &self.of else { return };
        let bytes = instance.kept_bytes();
        {
            let mut kept = lock(&self.idle.0);
            if kept.len() >= most {
                return;
            }
            // Before another thread can take it.
            of.add(bytes);
            kept.push(Kept { instance, bytes, at: now });
        }
        if of.bytes.load(Relaxed) > of.all.most_of_tenant {
            of.make_room();
        }
        if of.all.bytes() > of.all.most {
            of.all.make_room();
        }
    }
}

impl<T> WarmPool<T> {
    /// Drops all that is kept here.
    pub(crate) fn clear(&self) {
        // Dropped after the lock is released.
        let kept = std::mem::take(&mut *lock(&self.idle.0));
        if let Some(of) = &self.of {
            of.subtract(kept.iter().map(|kept| kept.bytes).sum());
        }
    }
}

impl<T> Drop for WarmPool<T> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Of(usize);

    impl Keep for Of {
        fn kept_bytes(&self) -> usize {
            self.0
        }
    }

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    fn sizes(pool: &WarmPool<Of>) -> Vec<usize> {
        lock(&pool.idle.0).iter().map(|kept| kept.bytes).collect()
    }

    #[test]
    fn what_was_used_last_is_taken_first() {
        let warm = Warm::<Of>::new(100, 1000);
        let pool = warm.tenant(&tenant("a")).pool();
        pool.push(Box::new(Of(1)), 2, 1);
        pool.push(Box::new(Of(2)), 2, 2);
        pool.push(Box::new(Of(3)), 2, 3);
        assert_eq!((sizes(&pool), warm.bytes()), (vec![1, 2], 3), "no more than two");
        assert_eq!(pool.pop().unwrap().0, 2);
        assert_eq!(warm.bytes(), 1);
        pool.clear();
        assert_eq!((pool.pop().is_none(), warm.bytes()), (true, 0));
    }

    #[test]
    fn a_tenants_bytes_are_bounded_and_its_least_recently_used_dropped() {
        let warm = Warm::<Of>::new(100, 1000);
        let of = warm.tenant(&tenant("a"));
        let (first, second, other) = (of.pool(), of.pool(), warm.tenant(&tenant("b")).pool());
        other.push(Box::new(Of(90)), 4, 0);
        first.push(Box::new(Of(40)), 4, 1);
        second.push(Box::new(Of(30)), 4, 2);
        first.push(Box::new(Of(30)), 4, 3);
        assert_eq!((sizes(&first), sizes(&second)), (vec![40, 30], vec![30]));
        second.push(Box::new(Of(20)), 4, 4);
        assert_eq!((sizes(&first), sizes(&second)), (vec![30], vec![30, 20]), "the first one is the oldest");
        assert_eq!(sizes(&other), [90], "another tenant's, though older");
        second.push(Box::new(Of(101)), 4, 5);
        assert_eq!((sizes(&first), sizes(&second)), (vec![], vec![]), "what is too large by itself is not kept");
        assert_eq!(warm.bytes(), 90);
    }

    #[test]
    fn the_bytes_of_all_are_bounded_and_the_least_recently_used_of_any_tenant_dropped() {
        let warm = Warm::<Of>::new(100, 400);
        let tenants = ["a", "b", "c", "d", "e"].map(|id| warm.tenant(&tenant(id)).pool());
        for (pool, at) in tenants.iter().zip([3, 1, 2, 4, 5]) {
            pool.push(Box::new(Of(50)), 4, at);
            pool.push(Box::new(Of(40)), 4, at + 10);
        }
        // 450 are too many; 350 leave an eighth.
        assert!(warm.bytes() <= 350, "{}", warm.bytes());
        let kept = tenants.each_ref().map(sizes);
        assert_eq!(kept, [vec![50, 40], vec![40], vec![40], vec![50, 40], vec![50, 40]], "the oldest two are gone");
    }

    #[test]
    fn what_is_gone_does_not_count() {
        let warm = Warm::<Of>::new(100, 1000);
        let pool = warm.tenant(&tenant("a")).pool();
        pool.push(Box::new(Of(90)), 4, 1);
        drop(pool);
        assert_eq!((warm.bytes(), lock(&warm.tenants).len()), (0, 0));
        let apart = WarmPool::<Of>::apart();
        apart.push(Box::new(Of(90)), 4, 1);
        assert!(apart.pop().is_none());
    }
}
