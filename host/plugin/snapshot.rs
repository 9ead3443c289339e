//! An immutable snapshot of all bindings in force: published by one atomic swap, taken once per request.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use witan_kernel::candidate::Mode;
use witan_kernel::hook::{
    Asked, Hook, Hooks, Native, Partition, Pending, PolicyAnswer, PolicyQuestion, ReadReplica, ResolverQuestion,
    Verdict,
};
use witan_kernel::name::{Key, TenantId, Zone};

use crate::candidate::{Candidate, timed};
use crate::limit;
use crate::pool::Pool;
use crate::resolvers::Resolvers;
use crate::tenant::{ActiveBinding, TenantBinding};
use crate::tried::Tried;

/// At most one of each per hook, in the order of [`Hook::ALL`].
type PerHook<T> = [Option<T>; 3];

/// The version in force of a slot, and what is tried beside it.
#[derive(Clone)]
pub(crate) struct Bound {
    pub(crate) active: Arc<ActiveBinding>,
    pub(crate) candidate: Option<Arc<Candidate>>,
}

/// What places the keys of each generation of a tenant's rows; `None`: what is bound for all tenants, or else the native rule.
pub(crate) type Generations<T> = Arc<[(u32, Option<Arc<T>>)]>;

/// Every binding in force, and the tenants that have used one.
pub(crate) struct Snapshot {
    /// Bindings of single tenants.
    own: HashMap<TenantId, PerHook<Bound>>,
    /// Default bindings, for tenants without their own.
    default: PerHook<Bound>,
    /// Of tenants whose routing hook was swapped, by what the keys of each generation are placed.
    partitions: HashMap<TenantId, Generations<ActiveBinding>>,
    native: Arc<dyn Hooks>,
    threads: Threads,
    hasher: RandomState,
    /// Tenants that have asked. A shard is copied when a tenant is added, so that a lookup takes no lock. A tenant's hooks are
    /// created when it first asks, because each tenant has its own instances of a default binding too.
    shards: Vec<ArcSwap<Shard>>,
}

/// Threads on which guests are asked that must not run on a serving thread.
#[derive(Clone)]
pub(crate) struct Threads {
    pub(crate) resolvers: Resolvers,
    /// One thread, so that all shadows together use one core at most.
    pub(crate) shadows: Pool,
}

impl Threads {
    /// Asks on one of the threads for that, in the tenant's turn. The question holds this many bytes.
    fn apart<T: Send + 'static>(
        &self,
        binding: Arc<TenantBinding>,
        bytes: usize,
        ask: impl FnOnce(&TenantBinding, oneshot::Sender<Asked<T>>) + Send + 'static,
    ) -> Pending<Asked<T>> {
        let (answer, asked) = oneshot::channel();
        let asking = binding.clone();
        let job = move || {
            // The operation may have ended while this question was queued.
            if !answer.is_closed() {
                ask(&asking, answer);
            }
        };
        if let Err(full) = self.resolvers.submit(binding.tenant(), bytes, job) {
            return Box::pin(std::future::ready(binding.queue_full(full)));
        }
        Box::pin(async move { asked.await.unwrap_or_else(|_| binding.lost()) })
    }

    /// Asks the version in force.
    fn resolve(&self, binding: &Arc<TenantBinding>, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        if binding.is_late() {
            let (threads, binding) = (self.clone(), binding.clone());
            return Box::pin(async move { threads.resolve_now(&ready(binding).await, question).await });
        }
        self.resolve_now(binding, question)
    }

    fn resolve_now(&self, binding: &Arc<TenantBinding>, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        self.apart(binding.clone(), bytes(&question), move |binding, answer| {
            let asked = binding.resolve(&question);
            let _ = answer.send(asked.clone());
            // While nobody waits for it, in the same tenant's turn.
            binding.repeat_some(&question, &asked);
        })
    }

    /// Asks a canary, and the version in force if that has no answer.
    fn resolve_tried(
        &self,
        binding: &Arc<TenantBinding>,
        tried: Arc<Tried>,
        question: ResolverQuestion,
    ) -> Pending<Asked<Verdict>> {
        let (threads, binding, asking) = (self.clone(), binding.clone(), question.clone());
        let asked = self.apart(tried.binding.clone(), bytes(&question), move |candidate, answer| {
            let (asked, took) = timed(|| candidate.resolve(&asking));
            tried.count(&asked, took);
            let _ = answer.send(asked);
        });
        Box::pin(async move {
            match asked.await {
                answered @ Asked::Answered { .. } => answered,
                _ => threads.resolve(&binding, question).await,
            }
        })
    }
}

/// What is in force once a plugin that is loaded after the start is there, or has been waited for.
async fn ready(binding: Arc<TenantBinding>) -> Arc<TenantBinding> {
    let late = binding.active.shared.late.clone();
    late.ready(binding).await
}

/// Bytes of the values that a question holds.
fn bytes(question: &ResolverQuestion) -> usize {
    question.siblings.iter().map(|sibling| sibling.value.len()).sum()
}

type Shard = HashMap<TenantId, Arc<TenantHooks>>;

/// Shards of the tenants: few tenants in each make a copy cheap.
const SHARDS: usize = 64;

impl Snapshot {
    pub(crate) fn new(
        bound: &[Bound],
        partitions: HashMap<TenantId, Generations<ActiveBinding>>,
        threads: Threads,
    ) -> Self {
        let mut own: HashMap<TenantId, PerHook<Bound>> = HashMap::new();
        let mut default = PerHook::default();
        for each in bound {
            let bindings = match &each.active.tenant {
                Some(tenant) => own.entry(tenant.clone()).or_default(),
                None => &mut default,
            };
            bindings[each.active.hook as usize] = Some(each.clone());
        }
        let shards = (0..SHARDS).map(|_| ArcSwap::default()).collect();
        Self { own, default, partitions, native: Arc::new(Unbound), threads, hasher: RandomState::new(), shards }
    }

    /// The next snapshot. Tenants keep their warm instances of bindings that have not changed.
    pub(crate) fn next(&self, bound: &[Bound], partitions: HashMap<TenantId, Generations<ActiveBinding>>) -> Self {
        let mut next = Self::new(bound, partitions, self.threads.clone());
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
        match self.of_tenant(tenant) {
            Some(hooks) => hooks,
            None => self.native.clone(),
        }
    }

    /// `None`: nothing is bound for it.
    fn of_tenant(&self, tenant: &TenantId) -> Option<Arc<TenantHooks>> {
        if self.own.is_empty() && self.partitions.is_empty() && self.default.iter().all(Option::is_none) {
            return None;
        }
        let shard = &self.shards[self.hasher.hash_one(tenant) as usize % SHARDS];
        match shard.load().get(tenant) {
            Some(hooks) => Some(hooks.clone()),
            None => self.add(shard, tenant),
        }
    }

    /// The binding whose version answers for a tenant.
    pub(crate) fn in_force(&self, tenant: &TenantId, hook: Hook) -> Option<Arc<TenantBinding>> {
        self.of_tenant(tenant)?.binding(hook).cloned()
    }

    /// The thread of shadows.
    pub(crate) fn shadows(&self) -> Pool {
        self.threads.shadows.clone()
    }

    /// The breakers of each binding, of all tenants that have asked it: only those that are open.
    pub(crate) fn open_breakers(&self) -> HashMap<*const ActiveBinding, OpenBreakers> {
        let mut open: HashMap<*const ActiveBinding, OpenBreakers> = HashMap::new();
        self.each(|binding| {
            if binding.is_breaker_open() {
                let of = open.entry(Arc::as_ptr(&binding.active)).or_default();
                of.tenants += 1;
                of.admitted_permille = of.admitted_permille.min(binding.admitted_permille());
            }
        });
        open
    }

    /// Every binding of every tenant that has asked, once each.
    pub(crate) fn each(&self, mut look: impl FnMut(&Arc<TenantBinding>)) {
        for shard in &self.shards {
            shard.load().values().for_each(|hooks| hooks.each(&mut look));
        }
    }

    /// Drops the warm instances that have not been used since the last call.
    pub(crate) fn release_idle(&self) {
        // Once each: what is released twice at once counts as unused.
        self.each(|binding| binding.release_idle());
    }

    fn add(&self, shard: &ArcSwap<Shard>, tenant: &TenantId) -> Option<Arc<TenantHooks>> {
        let made = self.tenant_hooks(tenant, None);
        if made.is_native() {
            return None;
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
        Some(kept)
    }

    fn tenant_hooks(&self, tenant: &TenantId, old: Option<&TenantHooks>) -> Arc<TenantHooks> {
        let own = self.own.get(tenant);
        let kept = |active: &Arc<ActiveBinding>| {
            let kept = old.and_then(|old| old.all().find(|it| Arc::ptr_eq(&it.active, active)).cloned());
            kept.unwrap_or_else(|| Arc::new(TenantBinding::new(active.clone(), tenant.clone())))
        };
        let bound = |hook: Hook| {
            let index = hook as usize;
            own.and_then(|own| own[index].as_ref()).or(self.default[index].as_ref())
        };
        let mut hooks = TenantHooks {
            bindings: Hook::ALL.map(|hook| bound(hook).map(|bound| kept(&bound.active))),
            tried: Hook::ALL.map(|hook| tried(bound(hook)?.candidate.as_ref()?, tenant, old)),
            partitions: None,
            default: None,
            threads: self.threads.clone(),
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
            hooks.default = default.map(|Bound { active, .. }| {
                hooks.all().find(|it| Arc::ptr_eq(&it.active, active)).cloned().unwrap_or_else(|| kept(active))
            });
        }
        Arc::new(hooks)
    }
}

/// Breakers of one binding that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenBreakers {
    /// Tenants for which it is: one, or for a binding of all tenants any number of them.
    pub tenants: usize,
    /// The share of the questions that reaches the plugin nevertheless, as trials, in thousandths: the smallest of these tenants'.
    pub admitted_permille: u32,
}

impl Default for OpenBreakers {
    /// None is open.
    fn default() -> Self {
        Self { tenants: 0, admitted_permille: 1000 }
    }
}

/// A candidate for one tenant. A step of its trial keeps its warm instances.
fn tried(candidate: &Arc<Candidate>, tenant: &TenantId, old: Option<&TenantHooks>) -> Option<Arc<Tried>> {
    let mut before = old.into_iter().flat_map(|old| old.tried.iter().flatten());
    let binding = match before.find(|it| Arc::ptr_eq(&it.binding.active, &candidate.active)) {
        Some(tried) if Arc::ptr_eq(&tried.candidate, candidate) => return Some(tried.clone()),
        Some(tried) => tried.binding.clone(),
        None if candidate.record.trial.mode == Mode::Shadow => {
            let active = candidate.active.clone();
            Arc::new(TenantBinding::with_share(active, tenant.clone(), limit::SHADOW_SHARE))
        }
        None => Arc::new(TenantBinding::new(candidate.active.clone(), tenant.clone())),
    };
    Some(Arc::new(Tried { candidate: candidate.clone(), binding }))
}

/// The bindings that answer for one tenant.
pub(crate) struct TenantHooks {
    bindings: PerHook<Arc<TenantBinding>>,
    /// What is tried beside them.
    tried: PerHook<Arc<Tried>>,
    /// By what the keys of each generation are placed. `None` before the first swap: by what is bound.
    partitions: Option<Generations<TenantBinding>>,
    /// With [`Self::partitions`]: the routing hook of all tenants.
    default: Option<Arc<TenantBinding>>,
    threads: Threads,
}

impl TenantHooks {
    /// Every binding, some of them more than once.
    fn all(&self) -> impl Iterator<Item = &Arc<TenantBinding>> {
        let generations = self.partitions.iter().flat_map(|all| all.iter().filter_map(|(_, by)| by.as_ref()));
        self.bindings.iter().flatten().chain(generations).chain(&self.default)
    }

    /// Every binding, once each.
    fn each(&self, look: &mut impl FnMut(&Arc<TenantBinding>)) {
        let mut seen: Vec<&Arc<TenantBinding>> = Vec::new();
        for binding in self.all() {
            if !seen.iter().any(|it| Arc::ptr_eq(it, binding)) {
                look(binding);
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

    fn tried(&self, hook: Hook) -> Option<&Arc<Tried>> {
        self.tried[hook as usize].as_ref()
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

    fn policy_apart(&self, question: &PolicyQuestion<'_>) -> Option<Pending<Asked<PolicyAnswer>>> {
        let binding = self.binding(Hook::ConsistencyPolicy)?;
        if !binding.is_late() && !binding.is_slow(question) {
            return None;
        }
        let (threads, binding, question) = (self.threads.clone(), binding.clone(), question.kept());
        let decide = move |binding: &TenantBinding, answer: oneshot::Sender<Asked<PolicyAnswer>>| {
            let _ = answer.send(binding.decide(&question.question()));
        };
        if binding.is_late() {
            return Some(Box::pin(async move { threads.apart(ready(binding).await, 0, decide).await }));
        }
        Some(threads.apart(binding, 0, decide))
    }

    fn policy_tried(&self, key: &Key, question: &PolicyQuestion<'_>) -> Option<Asked<PolicyAnswer>> {
        self.tried(Hook::ConsistencyPolicy).filter(|tried| tried.answers_for(key))?.policy(question)
    }

    fn policy_answered(&self, key: &Key, question: &PolicyQuestion<'_>, asked: &Asked<PolicyAnswer>) {
        if let Some(binding) = self.binding(Hook::ConsistencyPolicy) {
            binding.note(key, question);
        }
        if let Some(tried) = self.tried(Hook::ConsistencyPolicy) {
            tried.shadow_policy(&self.threads.shadows, key, question, asked);
        }
    }

    fn has_resolver(&self) -> bool {
        self.binding(Hook::ConflictResolver).is_some()
    }

    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        let (Some(binding), Some(tried)) = (self.binding(Hook::ConflictResolver), self.tried(Hook::ConflictResolver))
        else {
            return self.resolve_in_force(question);
        };
        if tried.answers_for(&question.key) {
            return self.threads.resolve_tried(binding, tried.clone(), question);
        }
        let (asked, tried) = (self.threads.resolve(binding, question.clone()), tried.clone());
        let shadows = self.threads.shadows.clone();
        Box::pin(async move {
            let asked = asked.await;
            tried.shadow_resolve(&shadows, question, &asked);
            asked
        })
    }

    fn resolve_in_force(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        match self.binding(Hook::ConflictResolver) {
            Some(binding) => self.threads.resolve(binding, question),
            None => Box::pin(std::future::ready(Asked::Unbound)),
        }
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

    fn prefer(&self, key: &Key, replicas: &[ReadReplica], zone: Option<&Zone>) -> Asked<Vec<u8>> {
        let Some(binding) = self.binding(Hook::RoutingHook) else { return Asked::Unbound };
        let tried = self.tried(Hook::RoutingHook);
        let answers = tried.filter(|tried| tried.answers_for(key));
        if let Some(answered) = answers.and_then(|tried| tried.prefer(key, replicas, zone)) {
            return answered;
        }
        let asked = binding.ask(|instance| instance.prefer(key.bytes(), replicas, zone));
        if let Some(tried) = tried {
            tried.shadow_prefer(&self.threads.shadows, key, (replicas, zone), &asked);
        }
        match asked {
            // Without a preference, replicas are read in the native order.
            Asked::Faulted { kind, reason, by, .. } => Asked::Faulted { kind, reason, fail: false, by },
            asked => asked,
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

    fn prefer(&self, key: &Key, replicas: &[ReadReplica], zone: Option<&Zone>) -> Asked<Vec<u8>> {
        Native.prefer(key, replicas, zone)
    }
}
