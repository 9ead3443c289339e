use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Answer, StoreError, TenantStore, Tenants};
use witan_kernel::tenant::Tenant;
use witan_memory::MemoryMetadata;
use witan_memory::contract::{ManualClock, join_all, metadata as contract, poll_once};

use super::{TenantCache, TenantCacheConfig};

/// Metadata whose reads of tenants are counted, and can be held back after they have seen what they answer with.
#[derive(Clone)]
struct Watched {
    inner: MemoryMetadata,
    reads: Arc<AtomicU64>,
    gate: Arc<Mutex<Option<Arc<Semaphore>>>>,
}

impl Watched {
    fn new() -> Self {
        Self { inner: MemoryMetadata::new(ManualClock::new()), reads: Arc::default(), gate: Arc::default() }
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// From now on each read waits for a permit.
    fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().expect("not poisoned") = Some(gate.clone());
        gate
    }

    fn let_go(&self) {
        *self.gate.lock().expect("not poisoned") = None;
    }
}

impl TenantStore for Watched {
    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>> {
        let seen = self.inner.tenant(id);
        let gate = self.gate.lock().expect("not poisoned").clone();
        let reads = self.reads.clone();
        Box::pin(async move {
            let seen = seen.await;
            reads.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = gate {
                gate.acquire().await.expect("open").forget();
            }
            seen
        })
    }

    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.inner.create_tenant(tenant)
    }

    fn update_tenant(&self, tenant: Tenant, fenced: bool) -> Answer<Tenant> {
        self.inner.update_tenant(tenant, fenced)
    }

    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>> {
        self.inner.tenants(after, limit)
    }

    fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64, fenced: bool) -> Answer<Tenant> {
        self.inner.delete_tenant(id, version, now_ms, fenced)
    }
}

struct World {
    metadata: Watched,
    clock: ManualClock,
    cache: TenantCache,
}

fn world_with(config: TenantCacheConfig) -> World {
    let (metadata, clock) = (Watched::new(), ManualClock::new());
    let cache = TenantCache::new(Arc::new(metadata.clone()), clock.clone(), config);
    World { metadata, clock, cache }
}

fn world() -> World {
    world_with(TenantCacheConfig::default())
}

fn id(of: &str) -> TenantId {
    contract::tenant(of).id
}

impl World {
    async fn create(&self, of: &str) -> Tenant {
        self.metadata.create_tenant(contract::tenant(of)).await.expect("created")
    }

    async fn version(&self, of: &str) -> Option<u64> {
        self.cache.tenant(&id(of)).await.expect("answered").map(|tenant| tenant.version)
    }

    /// Lets what runs in the background come to its next wait.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn concurrent_misses_cause_one_read() {
    let world = world();
    world.create("t").await;
    let gate = world.metadata.hold();
    let mut waiting = Box::pin(join_all((0..100).map(|_| world.version("t"))));
    assert!(poll_once(&mut waiting).await.is_none());
    world.settle().await;
    gate.add_permits(1);
    assert_eq!(waiting.await, vec![Some(1); 100]);
    assert_eq!(world.metadata.reads(), 1);
    assert_eq!(world.version("t").await, Some(1));
    assert!(world.cache.cached(&id("t")).is_some());
    assert_eq!(world.metadata.reads(), 1);
}

#[tokio::test]
async fn a_waiter_that_goes_away_takes_nobody_along() {
    let world = world();
    world.create("t").await;
    let gate = world.metadata.hold();
    let mut first = Box::pin(world.version("t"));
    assert!(poll_once(&mut first).await.is_none());
    let mut second = Box::pin(world.version("t"));
    assert!(poll_once(&mut second).await.is_none());
    drop(first);
    gate.add_permits(1);
    assert_eq!(second.await, Some(1));
}

#[tokio::test]
async fn an_expired_tenant_is_served_while_one_read_refreshes_it() {
    let world = world();
    let first = world.create("t").await;
    assert_eq!(world.version("t").await, Some(1));
    world.metadata.update_tenant(first, false).await.expect("updated elsewhere");
    world.clock.pass_ms(299_999);
    assert_eq!((world.version("t").await, world.metadata.reads()), (Some(1), 1));
    world.clock.pass_ms(1);
    let gate = world.metadata.hold();
    for _ in 0..100 {
        assert_eq!(world.version("t").await, Some(1), "no request waits");
    }
    world.settle().await;
    // However long it takes.
    world.clock.pass_ms(60_000);
    assert_eq!(world.version("t").await, Some(1));
    world.settle().await;
    assert_eq!(world.metadata.reads(), 2);
    gate.add_permits(1);
    world.settle().await;
    assert_eq!((world.version("t").await, world.metadata.reads()), (Some(2), 2));
}

#[tokio::test]
async fn a_known_tenant_is_served_while_the_database_is_down() {
    let world = world();
    world.create("t").await;
    assert_eq!(world.version("t").await, Some(1));
    world.metadata.inner.set_available(false);
    for hour in 0..48 {
        world.clock.pass_ms(3_600_000);
        for _ in 0..10 {
            assert_eq!(world.version("t").await, Some(1));
            world.settle().await;
        }
        assert_eq!(world.metadata.reads(), 2 + hour, "one try a time");
    }
    let told = world.cache.tenant(&id("other")).await;
    assert!(matches!(told, Err(StoreError::Unavailable(_))));
    world.metadata.inner.set_available(true);
    let second = contract::tenant("t");
    world.metadata.update_tenant(second, false).await.expect("updated");
    world.clock.pass_ms(1000);
    assert_eq!(world.version("t").await, Some(1));
    world.settle().await;
    assert_eq!(world.version("t").await, Some(2));
    assert_eq!(world.cache.counts().failed_reads, 49);
}

#[tokio::test]
async fn a_change_is_seen_at_once_and_no_older_read_undoes_it() {
    let world = world();
    let first = world.create("t").await;
    let gate = world.metadata.hold();
    let mut reading = Box::pin(world.version("t"));
    assert!(poll_once(&mut reading).await.is_none());
    world.settle().await;
    assert_eq!(world.metadata.reads(), 1, "it has seen version 1");
    let second = world.metadata.update_tenant(first.clone(), false).await.expect("updated");
    world.cache.publish(second.clone());
    assert_eq!(world.version("t").await, Some(2), "seen at once");
    gate.add_permits(1);
    assert_eq!(reading.await, Some(2));
    assert_eq!(world.version("t").await, Some(2));
    world.cache.publish(first.clone());
    assert_eq!(world.version("t").await, Some(2), "two changes published in the wrong order");

    // The same for a refresh.
    world.clock.pass_ms(300_000);
    assert_eq!(world.version("t").await, Some(2));
    world.settle().await;
    let third = world.metadata.update_tenant(second, false).await.expect("updated");
    world.cache.publish(third);
    gate.add_permits(1);
    world.settle().await;
    assert_eq!(world.version("t").await, Some(3));
    // And that it was deleted.
    let deleted = world.metadata.delete_tenant(&first.id, 3, 50, false).await.expect("deleted");
    world.cache.publish(deleted.clone());
    assert_eq!(world.cache.cached(&first.id).as_deref(), Some(&deleted));
    assert_eq!(world.cache.tenant(&first.id).await.expect("answered").as_deref(), Some(&deleted));
}

#[tokio::test]
async fn a_read_that_a_change_overtook_does_not_undo_it_when_the_change_was_evicted() {
    let world = world_with(TenantCacheConfig { capacity: 1, ..TenantCacheConfig::default() });
    let first = world.create("t").await;
    let gate = world.metadata.hold();
    let mut reading = Box::pin(world.version("t"));
    assert!(poll_once(&mut reading).await.is_none());
    world.settle().await;
    world.cache.publish(world.metadata.update_tenant(first, false).await.expect("updated"));
    for of in 0..10 {
        world.cache.publish(contract::tenant(&format!("other-{of}")));
    }
    assert!(world.cache.cached(&id("t")).is_none());
    gate.add_permits(1);
    assert_eq!(reading.await, Some(2));
}

#[tokio::test]
async fn unknown_tenants_cost_one_read_a_second_and_drive_nobody_out() {
    let config = TenantCacheConfig { capacity: 100, ..TenantCacheConfig::default() };
    let world = world_with(config);
    world.create("t").await;
    assert_eq!(world.version("t").await, Some(1));
    for _ in 0..100 {
        assert_eq!(world.version("nobody").await, None);
    }
    assert_eq!(world.metadata.reads(), 2);
    for of in 0..1000 {
        assert_eq!(world.version(&format!("nobody-{of}")).await, None);
    }
    world.cache.shared.unknown.run_pending_tasks();
    assert!(world.cache.shared.unknown.entry_count() <= 100);
    assert!(world.cache.cached(&id("t")).is_some());

    // Created elsewhere: seen a second later. Created here: at once.
    assert_eq!(world.version("late").await, None);
    world.create("late").await;
    world.clock.pass_ms(999);
    assert_eq!(world.version("late").await, None);
    world.clock.pass_ms(1);
    assert_eq!(world.version("late").await, Some(1));
    assert_eq!(world.version("mine").await, None);
    world.cache.publish(world.create("mine").await);
    assert_eq!(world.version("mine").await, Some(1));
}

#[tokio::test]
async fn a_tenant_created_while_it_is_looked_up_is_found() {
    let world = world();
    let gate = world.metadata.hold();
    let mut reading = Box::pin(world.version("t"));
    assert!(poll_once(&mut reading).await.is_none());
    world.settle().await;
    world.cache.publish(world.create("t").await);
    gate.add_permits(1);
    assert_eq!(reading.await, Some(1));
    assert_eq!(world.version("t").await, Some(1));
}

#[tokio::test]
async fn a_change_of_another_coordinator_is_seen_and_no_older_read_undoes_it() {
    let world = world();
    let first = world.create("t").await;
    assert_eq!(world.version("t").await, Some(1));
    let second = world.metadata.update_tenant(first, false).await.expect("updated elsewhere");
    world.cache.changed(&id("t")).await.expect("read");
    assert_eq!((world.version("t").await, world.metadata.reads()), (Some(2), 2));
    world.cache.changed(&id("not known here")).await.expect("nothing to do");
    assert_eq!(world.metadata.reads(), 2);

    // A refresh that is under way has seen version 2 already.
    world.clock.pass_ms(300_000);
    let gate = world.metadata.hold();
    assert_eq!(world.version("t").await, Some(2));
    world.settle().await;
    world.metadata.update_tenant(second, false).await.expect("updated elsewhere");
    world.metadata.let_go();
    world.cache.all_changed().await.expect("read");
    gate.add_permits(1);
    world.settle().await;
    assert_eq!(world.version("t").await, Some(3));

    // One that was looked for in vain, and is created elsewhere.
    assert_eq!(world.version("late").await, None);
    world.create("late").await;
    world.cache.changed(&id("late")).await.expect("nothing to do");
    assert_eq!(world.version("late").await, Some(1));
    world.metadata.inner.set_available(false);
    assert!(world.cache.changed(&id("t")).await.is_err());
    assert_eq!(world.version("t").await, Some(3));
}

#[tokio::test]
async fn reads_under_way_are_bounded() {
    let world = world_with(TenantCacheConfig { reads: 10, ..TenantCacheConfig::default() });
    let gate = world.metadata.hold();
    let many = (0..11).map(|of| {
        let cache = world.cache.clone();
        async move { cache.tenant(&id(&format!("t{of}"))).await }
    });
    let mut all = Box::pin(join_all(many));
    assert!(poll_once(&mut all).await.is_none());
    gate.add_permits(10);
    let refused = all.await.into_iter().filter(|told| matches!(told, Err(StoreError::Unavailable(_)))).count();
    assert_eq!((refused, world.cache.counts().refused), (1, 1));
    world.metadata.let_go();
    assert_eq!(world.version("t0").await, None);
}

#[test]
fn a_runtime_that_ends_leaves_no_tenant_marked_as_being_read() {
    let world = world();
    let runtime = || tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    world.metadata.hold();
    let first = runtime();
    first.block_on(async {
        world.create("t").await;
        let mut reading = Box::pin(world.version("t"));
        assert!(poll_once(&mut reading).await.is_none());
        world.settle().await;
    });
    drop(first);
    world.metadata.let_go();
    assert_eq!(runtime().block_on(world.version("t")), Some(1));
    assert!(world.cache.cached(&id("t")).is_some(), "outside a runtime too");
}

#[test]
fn outside_a_runtime_an_expired_tenant_is_served() {
    let world = world();
    world.cache.publish(contract::tenant("t"));
    world.clock.pass_ms(10_000_000);
    assert!(world.cache.cached(&id("t")).is_some());
}
