//! The tenants that requests see: a bounded cache in front of the metadata store.
//!
//! A tenant that was read is fresh for some minutes. After that it is still served, while one read in the background
//! refreshes it, and for as long as the store cannot be reached. However many requests miss at once, one read serves them.
//! What a change has made of a tenant is [published](TenantCache::publish) here at once; a read that was under way meanwhile,
//! and saw an older version, does not undo it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use witan_kernel::name::TenantId;
use witan_kernel::port::{AnyClock, Clock, StoreError, TenantStore, Tenants};
use witan_kernel::tenant::Tenant;

use flights::{Flights, Landing, Outcome, Ticket};
use shards::Shards;

mod flights;
mod shards;

#[cfg(test)]
mod tests;

/// How the cache behaves.
#[derive(Debug, Clone, Copy)]
pub struct TenantCacheConfig {
    /// Tenants kept, and as many ids that are none.
    pub capacity: usize,
    /// How long a tenant is served without looking again.
    pub fresh: Duration,
    /// How long an unknown id is answered as unknown without another read. Short: a tenant that another coordinator has created
    /// is seen here so much later.
    pub unknown: Duration,
    /// How long after a failed refresh the next is tried.
    pub retry: Duration,
    /// Reads of different tenants that may be under way at once.
    pub reads: usize,
}

impl Default for TenantCacheConfig {
    fn default() -> Self {
        Self {
            capacity: 10_000,
            fresh: Duration::from_secs(300),
            unknown: Duration::from_secs(1),
            retry: Duration::from_secs(1),
            reads: 1024,
        }
    }
}

/// What the cache has done since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantCacheCounts {
    /// Reads of the metadata store.
    pub reads: u64,
    /// Those that failed.
    pub failed_reads: u64,
    /// Requests refused because too many reads were under way.
    pub refused: u64,
}

/// The cache. Clones share it.
#[derive(Clone)]
pub struct TenantCache {
    shared: Arc<Shared>,
}

struct Shared {
    metadata: Arc<dyn TenantStore>,
    clock: AnyClock,
    config: TenantCacheConfig,
    known: Shards<Known>,
    /// Ids that are no tenant's, and until when (monotonic microseconds) that is taken for granted. Kept apart, so that a
    /// flood of them drives no tenant out.
    unknown: Cache<TenantId, u64>,
    /// Reads under way. Its lock also orders everything that is put into the two caches.
    flights: Mutex<Flights>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    failed_reads: AtomicU64,
    refused: AtomicU64,
}

struct Known {
    tenant: Arc<Tenant>,
    /// Monotonic microseconds. Whoever moves it from the past to [`TenantCacheConfig::retry`] from now starts the refresh.
    fresh_until: AtomicU64,
}

impl TenantCache {
    /// An empty cache in front of `metadata`.
    pub fn new(metadata: Arc<dyn TenantStore>, clock: impl Clock, config: TenantCacheConfig) -> Self {
        let known = Shards::new(config.capacity);
        // Least recently used, so that an id that was just looked for is not turned away for want of earlier use.
        let unknown =
            Cache::builder().max_capacity(config.capacity as u64).eviction_policy(EvictionPolicy::lru()).build();
        let clock = AnyClock::new(clock);
        let flights = Mutex::new(Flights::new(config.reads));
        let counts = Counts::default();
        Self { shared: Arc::new(Shared { metadata, clock, config, known, unknown, flights, counts }) }
    }

    /// Makes a change visible to this coordinator's requests: call it with what the metadata store has accepted, before the
    /// change is acknowledged. An older version than is known changes nothing.
    pub fn publish(&self, tenant: Tenant) {
        let tenant = Arc::new(tenant);
        let mut flights = self.shared.lock();
        flights.publish(&tenant);
        self.shared.keep(&tenant);
    }

    /// Another coordinator has changed a tenant: if it is known here, reads it, once it was changed, and serves it as it is now.
    ///
    /// # Errors
    /// Those of [`TenantStore::tenant`]; then it is served as it was, and this is to be repeated.
    pub async fn changed(&self, id: &TenantId) -> Result<(), StoreError> {
        if !self.shared.concerns(id) {
            // Whoever asks for it next reads it.
            return Ok(());
        }
        if let Some(tenant) = self.shared.metadata.tenant(id).await? {
            self.publish(tenant);
        }
        Ok(())
    }

    /// Other coordinators have changed nobody knows what: [`Self::changed`] for every tenant that is known here, one after the
    /// other.
    ///
    /// # Errors
    /// The first of theirs; the rest is not looked at then.
    pub async fn all_changed(&self) -> Result<(), StoreError> {
        self.shared.unknown.invalidate_all();
        let under_way = self.shared.lock().ids();
        for id in self.shared.known.ids().into_iter().chain(under_way) {
            self.changed(&id).await?;
        }
        Ok(())
    }

    /// What the cache has done.
    pub fn counts(&self) -> TenantCacheCounts {
        let counts = &self.shared.counts;
        TenantCacheCounts {
            reads: counts.reads.load(Ordering::Relaxed),
            failed_reads: counts.failed_reads.load(Ordering::Relaxed),
            refused: counts.refused.load(Ordering::Relaxed),
        }
    }
}

/// True when `this` was stored after `that`: a version counts up, and an id is never given to another tenant.
fn newer(this: &Tenant, that: &Tenant) -> bool {
    this.version > that.version
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn after(&self, duration: Duration) -> u64 {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.clock.monotonic_micros().saturating_add(micros)
    }

    /// Whether anybody here has seen, or may be about to see, the tenant as it was before now. That there is none of this id is
    /// no longer taken for granted.
    fn concerns(&self, id: &TenantId) -> bool {
        let flights = self.lock();
        self.unknown.invalidate(id);
        flights.has(id) || self.known.look(id, |_| ()).is_some()
    }

    /// Keeps what is the newest known of a tenant, and answers with it. Call it under the flights' lock.
    fn keep(&self, tenant: &Arc<Tenant>) -> Arc<Tenant> {
        let known = self.known.look(&tenant.id, |known| known.tenant.clone());
        let newest = known.filter(|known| newer(known, tenant)).unwrap_or_else(|| tenant.clone());
        let fresh_until = AtomicU64::new(self.after(self.config.fresh));
        self.known.insert(tenant.id.clone(), Known { tenant: newest.clone(), fresh_until });
        self.unknown.invalidate(&tenant.id);
        newest
    }

    /// Serves a known tenant, and sees to its refresh when it is due.
    fn serve(self: &Arc<Self>, known: &Known) -> Arc<Tenant> {
        let now = self.clock.monotonic_micros();
        let fresh_until = known.fresh_until.load(Ordering::Relaxed);
        if fresh_until <= now {
            self.refresh(known, fresh_until);
        }
        known.tenant.clone()
    }

    #[cold]
    fn refresh(self: &Arc<Self>, known: &Known, fresh_until: u64) {
        let next = self.after(self.config.retry);
        let mine = known.fresh_until.compare_exchange(fresh_until, next, Ordering::Relaxed, Ordering::Relaxed);
        if mine.is_ok() {
            // Refused when too many reads are under way: then the next turn. Nobody waits.
            let _ = self.board(self.lock(), &known.tenant.id);
        }
    }

    /// Looks once more, now that nothing can be put into the caches, and then joins or starts a read.
    fn miss(self: &Arc<Self>, id: &TenantId) -> Result<Miss, StoreError> {
        let flights = self.lock();
        if let Some(tenant) = self.known.look(id, |known| known.tenant.clone()) {
            return Ok(Miss::Told(Some(tenant)));
        }
        let now = self.clock.monotonic_micros();
        if self.unknown.get(id).is_some_and(|until| now < until) {
            return Ok(Miss::Told(None));
        }
        self.board(flights, id).map(Miss::Wait)
    }

    /// Joins the read of a tenant that is under way, or starts one.
    fn board(self: &Arc<Self>, mut flights: MutexGuard<'_, Flights>, id: &TenantId) -> Result<Ticket, StoreError> {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return Err(StoreError::Unavailable("no runtime to look up a tenant in".into()));
        };
        let boarding = flights.board(id).inspect_err(|_| {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        })?;
        drop(flights);
        if let Some(landing) = boarding.start {
            runtime.spawn(Aboard { shared: self.clone(), id: id.clone(), landed: false }.fly(landing));
        }
        Ok(boarding.ticket)
    }

    /// Takes in what a read has found.
    fn land(&self, id: &TenantId, read: Result<Option<Tenant>, StoreError>) -> Outcome {
        let mut flights = self.lock();
        let published = flights.land(id);
        match read {
            Ok(read) => Ok(match (read.map(Arc::new), published) {
                (Some(read), Some(published)) if newer(&published, &read) => Some(self.keep(&published)),
                (Some(read), _) => Some(self.keep(&read)),
                // Created while the read was under way.
                (None, Some(published)) => Some(self.keep(&published)),
                (None, None) => {
                    self.known.remove(id);
                    self.unknown.insert(id.clone(), self.after(self.config.unknown));
                    None
                }
            }),
            Err(error) => {
                self.counts.failed_reads.fetch_add(1, Ordering::Relaxed);
                // A tenant that is known goes on being served, so that nobody may hear of this.
                tracing::warn!(tenant = %id, %error, "a tenant could not be read");
                published.map_or(Err(error), |published| Ok(Some(published)))
            }
        }
    }
}

/// What is left to do for a tenant that is not cached.
enum Miss {
    Told(Option<Arc<Tenant>>),
    Wait(Ticket),
}

/// A read under way. Dropped midway, or before it began, it leaves no tenant marked as being read, and nobody waiting.
struct Aboard {
    shared: Arc<Shared>,
    id: TenantId,
    landed: bool,
}

impl Aboard {
    async fn fly(mut self, landing: Landing) {
        self.shared.counts.reads.fetch_add(1, Ordering::Relaxed);
        let read = self.shared.metadata.tenant(&self.id).await;
        self.landed = true;
        landing.announce(self.shared.land(&self.id, read));
    }
}

impl Drop for Aboard {
    fn drop(&mut self) {
        if !self.landed {
            self.shared.lock().land(&self.id);
        }
    }
}

impl Tenants for TenantCache {
    fn cached(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.shared.known.look(id, |known| self.shared.serve(known))
    }

    async fn tenant(&self, id: &TenantId) -> Result<Option<Arc<Tenant>>, StoreError> {
        if let Some(tenant) = self.cached(id) {
            return Ok(Some(tenant));
        }
        match self.shared.miss(id)? {
            Miss::Told(tenant) => Ok(tenant),
            Miss::Wait(ticket) => ticket.outcome().await,
        }
    }
}

impl std::fmt::Debug for TenantCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantCache").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
