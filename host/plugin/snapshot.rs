//! An immutable snapshot of all bindings in force: published by one atomic swap, taken once per request.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use witan_kernel::hook::{
    Asked, Hook, Hooks, Native, Partition, Pending, PolicyAnswer, PolicyQuestion, ReplicaState, ResolverQuestion,
    Verdict,
};
use witan_kernel::name::{Key, NodeId, TenantId};

use crate::limit;
use crate::pool::Pool;
use crate::tenant::{ActiveBinding, TenantBinding};

/// At most one binding per hook, in the order of [`Hook::ALL`].
type PerHook<T> = [Option<Arc<T>>; 3];

/// Every binding in force, and the tenants that have used one.
pub(crate) struct Snapshot {
    /// Bindings of single tenants.
    own: HashMap<TenantId, PerHook<ActiveBinding>>,
    /// Default bindings, for tenants without their own.
    default: PerHook<ActiveBinding>,
    native: Arc<dyn Hooks>,
    resolvers: Pool,
    hasher: RandomState,
    /// Tenants that have asked. A shard is copied when a tenant is added, so that a lookup takes no lock. A tenant's hooks are
    /// created when it first asks, because each tenant has its own instances of a default binding too.
    shards: Vec<ArcSwap<Shard>>,
}

type Shard = HashMap<TenantId, Arc<TenantHooks>>;

/// Shards of the tenants: few tenants in each make a copy cheap.
const SHARDS: usize = 64;

impl Snapshot {
    pub(crate) fn new(actives: &[Arc<ActiveBinding>], resolvers: Pool) -> Self {
        let mut own: HashMap<TenantId, PerHook<ActiveBinding>> = HashMap::new();
        let mut default = PerHook::default();
        for active in actives {
            let bindings = match &active.tenant {
                Some(tenant) => own.entry(tenant.clone()).or_default(),
                None => &mut default,
            };
            bindings[active.hook as usize] = Some(active.clone());
        }
        let shards = (0..SHARDS).map(|_| ArcSwap::default()).collect();
        Self { own, default, native: Arc::new(Native), resolvers, hasher: RandomState::new(), shards }
    }

    /// The next snapshot. Tenants keep their warm instances of bindings that have not changed.
    pub(crate) fn next(&self, actives: &[Arc<ActiveBinding>]) -> Self {
        let mut next = Self::new(actives, self.resolvers.clone());
        next.hasher = self.hasher.clone();
        for (shard, old) in next.shards.iter().zip(&self.shards) {
            let old = old.load();
            if old.is_empty() {
                continue;
            }
            let hooks = old.iter().map(|(tenant, hooks)| (tenant.clone(), next.tenant_hooks(tenant, Some(hooks))));
            shard.store(Arc::new(hooks.collect()));
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

    /// Drops the warm instances that have not been used since the last call.
    pub(crate) fn release_idle(&self) {
        for shard in &self.shards {
            let shard = shard.load();
            shard.values().flat_map(|hooks| hooks.bindings.iter().flatten()).for_each(|it| it.release_idle());
        }
    }

    fn add(&self, shard: &ArcSwap<Shard>, tenant: &TenantId) -> Arc<dyn Hooks> {
        let made = self.tenant_hooks(tenant, None);
        if made.bindings.iter().all(Option::is_none) {
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

    fn tenant_hooks(&self, tenant: &TenantId, old: Option<&TenantHooks>) -> Arc<TenantHooks> {
        let own = self.own.get(tenant);
        let binding = |hook: Hook| {
            let index = hook as usize;
            let active = own.and_then(|own| own[index].as_ref()).or(self.default[index].as_ref())?;
            let kept = old.and_then(|old| old.bindings[index].clone()).filter(|it| Arc::ptr_eq(&it.active, active));
            Some(kept.unwrap_or_else(|| Arc::new(TenantBinding::new(active.clone(), tenant.clone()))))
        };
        Arc::new(TenantHooks { bindings: Hook::ALL.map(binding), resolvers: self.resolvers.clone() })
    }
}

/// The bindings that answer for one tenant.
pub(crate) struct TenantHooks {
    bindings: PerHook<TenantBinding>,
    resolvers: Pool,
}

impl TenantHooks {
    fn binding(&self, hook: Hook) -> Option<&Arc<TenantBinding>> {
        self.bindings[hook as usize].as_ref()
    }
}

impl Hooks for TenantHooks {
    fn has_policy(&self) -> bool {
        self.binding(Hook::ConsistencyPolicy).is_some()
    }

    fn policy(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        match self.binding(Hook::ConsistencyPolicy) {
            Some(binding) => binding.decide(question),
            None => Asked::Unbound,
        }
    }

    fn has_resolver(&self) -> bool {
        self.binding(Hook::ConflictResolver).is_some()
    }

    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        let Some(binding) = self.binding(Hook::ConflictResolver).cloned() else {
            return Box::pin(std::future::ready(Asked::Unbound));
        };
        let (answer, asked) = oneshot::channel();
        let queued = binding.enqueue().is_some_and(|queued| {
            let job = move || {
                // The operation may have ended while this question was queued.
                if !answer.is_closed() {
                    let _ = answer.send(queued.binding().ask(|instance| instance.resolve(&question)));
                }
            };
            self.resolvers.submit(job).is_ok()
        });
        Box::pin(async move {
            match asked.await {
                Ok(asked) if queued => asked,
                _ => binding.queue_full(),
            }
        })
    }

    fn partition_key(&self, _: u32, key: &Key) -> Partition {
        match self.binding(Hook::RoutingHook) {
            Some(binding) => binding.ask(|instance| instance.partition_key(key.bytes())).into(),
            None => Partition::Native,
        }
    }

    fn prefer(&self, key: &Key, replicas: &[(NodeId, ReplicaState)]) -> Asked<Vec<u8>> {
        match self.binding(Hook::RoutingHook) {
            Some(binding) => match binding.ask(|instance| instance.prefer(key.bytes(), replicas)) {
                // Without a preference, replicas are read in the native order.
                Asked::Faulted { reason, by, .. } => Asked::Faulted { reason, fail: false, by },
                asked => asked,
            },
            None => Asked::Unbound,
        }
    }
}
