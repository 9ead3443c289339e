//! Who asks whom, as of one moment: immutable, published by one swap, taken once per request.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::oneshot;
use witan_kernel::hook::{
    Asked, Hook, Hooks, Native, Pending, PolicyAnswer, PolicyQuestion, ReplicaState, ResolverQuestion, Verdict,
};
use witan_kernel::name::{Key, NodeId, TenantId};

use crate::limit;
use crate::pool::Pool;
use crate::slot::{Active, Slot};

/// One binding per hook, or none, in the order of [`Hook::ALL`].
type Seats<T> = [Option<Arc<T>>; 3];

/// Every binding in force, and the tenants that have used them.
pub(crate) struct Snapshot {
    own: HashMap<TenantId, Seats<Active>>,
    default: Seats<Active>,
    native: Arc<dyn Hooks>,
    resolvers: Pool,
    hasher: RandomState,
    /// Tenants that have asked; copied when one is added, so that a look-up takes no lock. A tenant's hooks are made
    /// when it first asks, since instances of a default binding belong to one tenant as well.
    shards: Vec<ArcSwap<Shard>>,
}

type Shard = HashMap<TenantId, Arc<TenantHooks>>;

/// Few tenants per shard keep a copy cheap.
const SHARDS: usize = 64;

impl Snapshot {
    pub(crate) fn new(actives: &[Arc<Active>], resolvers: Pool) -> Self {
        let mut own: HashMap<TenantId, Seats<Active>> = HashMap::new();
        let mut default = Seats::default();
        for active in actives {
            let seats = match &active.tenant {
                Some(tenant) => own.entry(tenant.clone()).or_default(),
                None => &mut default,
            };
            seats[active.hook as usize] = Some(active.clone());
        }
        let shards = (0..SHARDS).map(|_| ArcSwap::default()).collect();
        Self { own, default, native: Arc::new(Native), resolvers, hasher: RandomState::new(), shards }
    }

    /// The next snapshot, in which tenants keep the warm instances of what has not changed.
    pub(crate) fn next(&self, actives: &[Arc<Active>]) -> Self {
        let mut next = Self::new(actives, self.resolvers.clone());
        next.hasher = self.hasher.clone();
        for (shard, old) in next.shards.iter().zip(&self.shards) {
            let old = old.load();
            if old.is_empty() {
                continue;
            }
            let kept = old.iter().map(|(tenant, hooks)| (tenant.clone(), next.make(tenant, Some(hooks))));
            shard.store(Arc::new(kept.collect()));
        }
        next
    }

    pub(crate) fn hooks(&self, tenant: &TenantId) -> Arc<dyn Hooks> {
        if self.own.is_empty() && self.default.iter().all(Option::is_none) {
            return self.native.clone();
        }
        let shard = &self.shards[self.hasher.hash_one(tenant) as usize % SHARDS];
        match shard.load().get(tenant) {
            Some(hooks) => hooks.clone(),
            None => self.add(shard, tenant),
        }
    }

    /// Lets instances go that nobody has used since the last time.
    pub(crate) fn rest(&self) {
        for shard in &self.shards {
            shard.load().values().flat_map(|hooks| hooks.slots.iter().flatten()).for_each(|slot| slot.rest());
        }
    }

    fn add(&self, shard: &ArcSwap<Shard>, tenant: &TenantId) -> Arc<dyn Hooks> {
        let made = self.make(tenant, None);
        if made.slots.iter().all(Option::is_none) {
            return self.native.clone();
        }
        let mut kept = made.clone();
        shard.rcu(|old| {
            if let Some(other) = old.get(tenant) {
                kept = other.clone();
                return old.clone();
            }
            let mut shard = Shard::clone(old);
            if shard.len() >= limit::WARM_TENANTS / SHARDS
                && let Some(other) = shard.keys().next().cloned()
            {
                shard.remove(&other);
            }
            shard.insert(tenant.clone(), made.clone());
            kept = made.clone();
            Arc::new(shard)
        });
        kept
    }

    fn make(&self, tenant: &TenantId, old: Option<&TenantHooks>) -> Arc<TenantHooks> {
        let own = self.own.get(tenant);
        let slot = |hook: Hook| {
            let seat = hook as usize;
            let active = own.and_then(|seats| seats[seat].as_ref()).or(self.default[seat].as_ref())?;
            let kept = old.and_then(|hooks| hooks.slots[seat].clone()).filter(|s| Arc::ptr_eq(&s.active, active));
            Some(kept.unwrap_or_else(|| Arc::new(Slot::new(active.clone(), tenant.clone()))))
        };
        Arc::new(TenantHooks { slots: Hook::ALL.map(slot), resolvers: self.resolvers.clone() })
    }
}

/// What answers for one tenant.
pub(crate) struct TenantHooks {
    slots: Seats<Slot>,
    resolvers: Pool,
}

impl TenantHooks {
    fn slot(&self, hook: Hook) -> Option<&Arc<Slot>> {
        self.slots[hook as usize].as_ref()
    }
}

impl Hooks for TenantHooks {
    fn has_policy(&self) -> bool {
        self.slot(Hook::ConsistencyPolicy).is_some()
    }

    fn policy(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        match self.slot(Hook::ConsistencyPolicy) {
            Some(slot) => slot.decide(question),
            None => Asked::Unbound,
        }
    }

    fn has_resolver(&self) -> bool {
        self.slot(Hook::ConflictResolver).is_some()
    }

    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        let Some(slot) = self.slot(Hook::ConflictResolver).cloned() else {
            return Box::pin(std::future::ready(Asked::Unbound));
        };
        let (answer, asked) = oneshot::channel();
        let queued = slot.line_up().is_some_and(|waiting| {
            let job = move || {
                // Nobody waits any more for an operation that has ended.
                if !answer.is_closed() {
                    let _ = answer.send(waiting.slot().ask(|instance| instance.resolve(&question)));
                }
            };
            self.resolvers.submit(job).is_ok()
        });
        Box::pin(async move {
            match asked.await {
                Ok(asked) if queued => asked,
                _ => slot.too_many(),
            }
        })
    }

    fn partition_key(&self, key: &Key) -> Asked<Bytes> {
        match self.slot(Hook::RoutingHook) {
            Some(slot) => slot.ask(|instance| instance.partition_key(key.bytes())),
            None => Asked::Unbound,
        }
    }

    fn prefer(&self, key: &Key, replicas: &[(NodeId, ReplicaState)]) -> Asked<Vec<u8>> {
        match self.slot(Hook::RoutingHook) {
            Some(slot) => match slot.ask(|instance| instance.prefer(key.bytes(), replicas)) {
                // Without a preference, the native order does.
                Asked::Faulted { reason, by, .. } => Asked::Faulted { reason, fail: false, by },
                asked => asked,
            },
            None => Asked::Unbound,
        }
    }
}
