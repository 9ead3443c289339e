//! An immutable snapshot of all bindings in force: published by one atomic swap, taken once per request.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use witan_kernel::hook::{
    Asked, Candidate, Hook, Hooks, Native, Partition, Pending, PolicyAnswer, PolicyQuestion, ResolverQuestion, Verdict,
};
use witan_kernel::name::{Key, TenantId, Zone};

use crate::limit;
use crate::pool::Pool;
use crate::tenant::{ActiveBinding, TenantBinding};

/// At most one binding per hook, in the order of [`Hook::ALL`].
type PerHook<T> = [Option<Arc<T>>; 3];

/// What places the keys of each generation of a tenant's rows; `None`: what is bound for all tenants, or else the native rule.
pub(crate) type Generations<T> = Arc<[(u32, Option<Arc<T>>)]>;

/// Every binding in force, and the tenants that have used one.
pub(crate) struct Snapshot {
    /// Bindings of single tenants.
    own: HashMap<TenantId, PerHook<ActiveBinding>>,
    /// Default bindings, for tenants without their own.
    default: PerHook<ActiveBinding>,
    /// Of tenants whose routing hook was swapped, by what the keys of each generation are placed.
    partitions: HashMap<TenantId, Generations<ActiveBinding>>,
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
    pub(crate) fn new(
        actives: &[Arc<ActiveBinding>],
        partitions: HashMap<TenantId, Generations<ActiveBinding>>,
        resolvers: Pool,
    ) -> Self {
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
        Self { own, default, partitions, native: Arc::new(Unbound), resolvers, hasher: RandomState::new(), shards }
    }

    /// The next snapshot. Tenants keep their warm instances of bindings that have not changed.
    pub(crate) fn next(
        &self,
        actives: &[Arc<ActiveBinding>],
        partitions: HashMap<TenantId, Generations<ActiveBinding>>,
    ) -> Self {
        let mut next = Self::new(actives, partitions, self.resolvers.clone());
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
        if self.own.is_empty() && self.partitions.is_empty() && self.default.iter().all(Option::is_none) {
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
            shard.values().for_each(|hooks| hooks.release_idle());
        }
    }

    fn add(&self, shard: &ArcSwap<Shard>, tenant: &TenantId) -> Arc<dyn Hooks> {
        let made = self.tenant_hooks(tenant, None);
        if made.is_native() {
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
        let kept = |active: &Arc<ActiveBinding>| {
            let kept = old.and_then(|old| old.all().find(|it| Arc::ptr_eq(&it.active, active)).cloned());
            kept.unwrap_or_else(|| Arc::new(TenantBinding::new(active.clone(), tenant.clone())))
        };
        let binding = |hook: Hook| {
            let index = hook as usize;
            own.and_then(|own| own[index].as_ref()).or(self.default[index].as_ref()).map(kept)
        };
        let mut hooks = TenantHooks {
            bindings: Hook::ALL.map(binding),
            partitions: None,
            default: None,
            resolvers: self.resolvers.clone(),
        };
        if let Some(generations) = self.partitions.get(tenant) {
            let mut all: Vec<(u32, Option<Arc<TenantBinding>>)> = Vec::with_capacity(generations.len());
            for (generation, active) in generations.iter() {
                // One breaker and one set of warm instances for each, however many generations it places, and if it is bound, too.
                let made = active.as_ref().map(|active| {
                    let is_it = |it: &&Arc<TenantBinding>| Arc::ptr_eq(&it.active, active);
                    let others = hooks.all().chain(all.iter().filter_map(|(_, made)| made.as_ref()));
                    others.into_iter().find(is_it).cloned().unwrap_or_else(|| kept(active))
                });
                all.push((*generation, made));
            }
            hooks.partitions = Some(all.into());
            let default = self.default[Hook::RoutingHook as usize].as_ref();
            hooks.default = default.map(|active| {
                hooks.all().find(|it| Arc::ptr_eq(&it.active, active)).cloned().unwrap_or_else(|| kept(active))
            });
        }
        Arc::new(hooks)
    }
}

/// The bindings that answer for one tenant.
pub(crate) struct TenantHooks {
    bindings: PerHook<TenantBinding>,
    /// By what the keys of each generation are placed. `None` before the first swap: by what is bound.
    partitions: Option<Generations<TenantBinding>>,
    /// With [`Self::partitions`]: the routing hook of all tenants.
    default: Option<Arc<TenantBinding>>,
    resolvers: Pool,
}

impl TenantHooks {
    /// Every binding, some of them more than once.
    fn all(&self) -> impl Iterator<Item = &Arc<TenantBinding>> {
        let generations = self.partitions.iter().flat_map(|all| all.iter().filter_map(|(_, by)| by.as_ref()));
        self.bindings.iter().flatten().chain(generations).chain(&self.default)
    }

    fn release_idle(&self) {
        let mut seen: Vec<&Arc<TenantBinding>> = Vec::new();
        for binding in self.all() {
            // Once each: what is released twice at once counts as unused.
            if !seen.iter().any(|it| Arc::ptr_eq(it, binding)) {
                binding.release_idle();
                seen.push(binding);
            }
        }
    }

    fn is_native(&self) -> bool {
        self.partitions.is_none() && self.bindings.iter().all(Option::is_none)
    }

    /// What places the keys of a generation; `Err`: that is not known.
    fn placing(&self, generation: u32) -> Result<Option<&Arc<TenantBinding>>, NotKnown> {
        let Some(partitions) = &self.partitions else {
            return if generation == 0 { Ok(self.binding(Hook::RoutingHook)) } else { Err(NotKnown) };
        };
        let (_, by) = partitions.iter().find(|(of, _)| *of == generation).ok_or(NotKnown)?;
        Ok(by.as_ref().or(self.default.as_ref()))
    }

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

    fn partition_key(&self, generation: u32, key: &Key) -> Partition {
        match self.placing(generation) {
            Ok(Some(binding)) => binding.ask(|instance| instance.partition_key(key.bytes())).into(),
            Ok(None) => Partition::Native,
            Err(NotKnown) => Partition::Unknown,
        }
    }

    fn partition_key_apart(&self, generation: u32, key: &Key) -> Partition {
        match self.placing(generation) {
            Ok(Some(binding)) => binding.ask_apart(|instance| instance.partition_key(key.bytes())).into(),
            Ok(None) => Partition::Native,
            Err(NotKnown) => Partition::Unknown,
        }
    }

    fn has_routing(&self) -> bool {
        self.binding(Hook::RoutingHook).is_some()
    }

    fn prefer(&self, key: &Key, candidates: &[Candidate], zone: Option<&Zone>) -> Asked<Vec<u8>> {
        match self.binding(Hook::RoutingHook) {
            Some(binding) => match binding.ask(|instance| instance.prefer(key.bytes(), candidates, zone)) {
                // Without a preference, replicas are read in the native order.
                Asked::Faulted { reason, by, .. } => Asked::Faulted { reason, fail: false, by },
                asked => asked,
            },
            None => Asked::Unbound,
        }
    }
}

/// Which hook a generation has is not on record here.
struct NotKnown;

/// The hooks of tenants for which nothing is bound, and whose routing hook was never swapped.
struct Unbound;

impl Hooks for Unbound {
    fn has_policy(&self) -> bool {
        Native.has_policy()
    }

    fn policy(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        Native.policy(question)
    }

    fn has_resolver(&self) -> bool {
        Native.has_resolver()
    }

    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        Native.resolve(question)
    }

    fn partition_key(&self, generation: u32, _: &Key) -> Partition {
        if generation == 0 { Partition::Native } else { Partition::Unknown }
    }

    fn has_routing(&self) -> bool {
        Native.has_routing()
    }

    fn prefer(&self, key: &Key, candidates: &[Candidate], zone: Option<&Zone>) -> Asked<Vec<u8>> {
        Native.prefer(key, candidates, zone)
    }
}
