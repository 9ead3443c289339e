//! Serving one tenant from one version of a binding: its warm instances, its breaker, its share of the CPU.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::hook::{AnsweredBy, Asked, Hook, PolicyAnswer, PolicyQuestion};
use witan_kernel::name::TenantId;
use witan_kernel::sync::lock;

use crate::answers::Answers;
use crate::binding::{BindingVersion, OnFault};
use crate::breaker::{Breaker, Faulted};
use crate::digest::Digest;
use crate::engine::{TICK, Ticks};
use crate::error::PluginError;
use crate::event::{Event, EventKind, Events};
use crate::fault::{Broken, Fault};
use crate::guest::Serves;
use crate::instance::{Instance, Program};
use crate::limit::{self, Budget, Limits};
use crate::metrics::Counters;

/// A program with the configuration of its instances.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) digest: Digest,
    pub(crate) program: Arc<Program>,
    pub(crate) configuration: Bytes,
    pub(crate) by: AnsweredBy,
    /// Whether equal questions always get equal answers.
    pub(crate) deterministic: bool,
}

impl Plan {
    /// Starts an instance, for a tenant or to be probed, and configures it.
    pub(crate) fn start(&self, tenant: Option<&TenantId>, counters: &Arc<Counters>) -> Result<Box<Instance>, Fault> {
        let serves = Serves { by: self.by.clone(), tenant: tenant.cloned(), counters: counters.clone() };
        let mut instance = self.program.start(serves)?;
        instance.configure(&self.configuration).map_err(|fault| match fault {
            Fault::Declined(declined) => Broken::Configuration(declined),
            Fault::Broken(broken) => broken,
        })?;
        Ok(Box::new(instance))
    }
}

/// What all bindings need from the host.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) ticks: Ticks,
    pub(crate) limits: Arc<Limits>,
    pub(crate) events: Arc<Events>,
    /// Counts per hook, in the order of [`Hook::ALL`].
    pub(crate) totals: Arc<[Counters; 3]>,
}

/// Why a binding cannot answer at all: say, its component is missing.
#[derive(Debug, thiserror::Error)]
#[error("cannot be loaded: {0}")]
pub(crate) struct LoadError(pub(crate) PluginError);

/// One version of a binding, in force or draining. Immutable.
pub(crate) struct ActiveBinding {
    pub(crate) tenant: Option<TenantId>,
    pub(crate) hook: Hook,
    pub(crate) version: BindingVersion,
    /// What answers. On an error every question is a fault.
    pub(crate) primary: Result<Plan, LoadError>,
    /// The previous version, which answers while this one's breaker is open.
    pub(crate) fallback: Option<Plan>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shared: Shared,
    /// It is no version of a binding, so that its end is no event: it only places keys.
    pub(crate) is_quiet: bool,
}

impl ActiveBinding {
    fn event(&self, kind: EventKind, tenant: Option<TenantId>, detail: impl Into<String>) {
        let event = Event::new(kind, detail).of(self.version.digest, &*self.version.plugin).at(tenant, self.hook);
        self.shared.events.emit(event);
    }

    fn totals(&self) -> &Counters {
        &self.shared.totals[self.hook as usize]
    }

    fn both(&self, count: impl Fn(&Counters)) {
        count(&self.counters);
        count(self.totals());
    }
}

impl Drop for ActiveBinding {
    fn drop(&mut self) {
        if self.is_quiet {
            return;
        }
        self.event(EventKind::Drained, self.tenant.clone(), format!("version {} of the binding", self.version.number));
    }
}

/// Warm instances that wait for the next question: as many as threads asked at the same time, up to a bound.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "an instance is large, and is moved in and out under a lock with every question")]
struct InstancePool(Mutex<Vec<Box<Instance>>>);

impl InstancePool {
    fn pop(&self) -> Option<Box<Instance>> {
        lock(&self.0).pop()
    }

    fn push(&self, instance: Box<Instance>) {
        let mut instances = lock(&self.0);
        if instances.len() < WARM_INSTANCES {
            instances.push(instance);
        }
    }

    fn clear(&self) {
        // Dropped after the lock is released.
        let _instances = std::mem::take(&mut *lock(&self.0));
    }
}

/// One version of one binding as one tenant uses it.
pub(crate) struct TenantBinding {
    pub(crate) active: Arc<ActiveBinding>,
    tenant: TenantId,
    instances: InstancePool,
    /// Instances of the previous version, used while the breaker is open.
    fallback_instances: InstancePool,
    breaker: Breaker,
    share: CpuShare,
    /// Of a deterministic policy.
    answers: Answers,
    /// Questions that wait for a resolver thread.
    queued: AtomicUsize,
    /// Asked since the last [`Self::release_idle`].
    used: AtomicBool,
}

/// Warm instances that are kept per tenant and version: when more threads than this ask one tenant's plugin at once, the rest start
/// new instances.
const WARM_INSTANCES: usize = 16;

/// How often a question that is no client's is put before running out of time counts as the answer.
const APART_TRIES: usize = 3;

impl TenantBinding {
    pub(crate) fn new(active: Arc<ActiveBinding>, tenant: TenantId) -> Self {
        let breaker = Breaker::new(&active.shared.limits);
        let share = active.shared.limits.budget(active.hook).share;
        Self {
            active,
            tenant,
            instances: InstancePool::default(),
            fallback_instances: InstancePool::default(),
            breaker,
            share: CpuShare::new(share),
            answers: Answers::default(),
            queued: AtomicUsize::new(0),
            used: AtomicBool::new(false),
        }
    }

    /// Asks a consistency policy. A deterministic one is called only once for equal questions.
    pub(crate) fn decide(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        let primary = self.active.primary.as_ref().ok().filter(|plan| plan.deterministic && !self.breaker.is_open());
        let Some(plan) = primary else { return self.ask(|instance| instance.decide(question)) };
        // What a policy is not shown makes no difference to its answer.
        let question =
            &PolicyQuestion { zones: if plan.program.sees_zones() { question.zones } else { &[] }, ..*question };
        if let Some(answer) = self.answers.get(question) {
            self.active.both(Counters::remembered);
            return Asked::Answered { answer, by: plan.by.clone() };
        }
        let asked = self.ask(|instance| instance.decide(question));
        if let Asked::Answered { answer, by } = &asked
            && Arc::ptr_eq(by, &plan.by)
        {
            self.answers.put(question, *answer);
        }
        asked
    }

    /// Asks the version in force, or the previous one while the breaker is open.
    pub(crate) fn ask<T>(&self, mut question: impl FnMut(&mut Instance) -> Result<T, Fault>) -> Asked<T> {
        let now = self.active.shared.ticks.now();
        if !self.share.admits(now) {
            return self.refuse("has used up its share of the CPU for this second");
        }
        let plan = match &self.active.primary {
            Ok(plan) => plan,
            Err(error) => return self.refuse(&error.to_string()),
        };
        if !self.breaker.admits(now) {
            return self.ask_fallback(now, question);
        }
        match self.call(plan, &self.instances, now, &mut question) {
            Ok(answer) => {
                if self.breaker.answered() {
                    self.active.event(EventKind::BreakerClosed, Some(self.tenant.clone()), "it answers again");
                }
                Asked::Answered { answer, by: plan.by.clone() }
            }
            Err(fault) => self.fault(plan, fault, now),
        }
    }

    /// Asks for a purpose other than serving a client, say about every key of the tenant: whatever share of the CPU that takes, and without
    /// the breaker, so that only this one question is answered for. What only happens on an overloaded machine is tried again.
    pub(crate) fn ask_apart<T>(&self, mut question: impl FnMut(&mut Instance) -> Result<T, Fault>) -> Asked<T> {
        let plan = match &self.active.primary {
            Ok(plan) => plan,
            Err(error) => return self.refuse(&error.to_string()),
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match self.call_untimed(plan, &self.instances, &mut question) {
                Ok(answer) => return Asked::Answered { answer, by: plan.by.clone() },
                Err(Fault::Broken(Broken::Timeout(_))) if tries < APART_TRIES => {}
                Err(fault) => {
                    let reason = format!("{} {fault}", plan.by);
                    return Asked::Faulted { reason, fail: self.fails(), by: plan.by.clone() };
                }
            }
        }
    }

    /// While the breaker is open the previous version answers, if there is one. Not for routing hooks: another version may place
    /// keys elsewhere.
    fn ask_fallback<T>(&self, now: u64, mut question: impl FnMut(&mut Instance) -> Result<T, Fault>) -> Asked<T> {
        match &self.active.fallback {
            Some(plan) if self.active.hook != Hook::RoutingHook => {
                match self.call(plan, &self.fallback_instances, now, &mut question) {
                    Ok(answer) => Asked::Answered { answer, by: plan.by.clone() },
                    Err(fault) => self.fault(plan, fault, now),
                }
            }
            _ => self.refuse("has failed too often and is not asked for a while"),
        }
    }

    fn call<T>(
        &self,
        plan: &Plan,
        instances: &InstancePool,
        now: u64,
        question: &mut impl FnMut(&mut Instance) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let began = Instant::now();
        let answer = self.call_untimed(plan, instances, question);
        let took = began.elapsed();
        self.share.add(now, took.min(max_cpu(plan.program.budget())));
        self.active.both(|counters| counters.called(took));
        answer
    }

    fn call_untimed<T>(
        &self,
        plan: &Plan,
        instances: &InstancePool,
        question: &mut impl FnMut(&mut Instance) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut instance = match instances.pop() {
            Some(instance) => instance,
            None => plan.start(Some(&self.tenant), &self.active.counters)?,
        };
        let answer = question(&mut instance);
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        // After a trap an instance cannot be entered again.
        if !matches!(answer, Err(Fault::Broken(_))) && instance.is_reusable(plan.program.budget()) {
            instances.push(instance);
        }
        answer
    }

    fn fault<T>(&self, plan: &Plan, fault: Fault, now: u64) -> Asked<T> {
        let reason = format!("{} {fault}", plan.by);
        match fault {
            Fault::Declined(_) => self.active.both(Counters::declined),
            Fault::Broken(_) => {
                self.active.both(Counters::faulted);
                self.report(self.breaker.faulted(now), &reason);
            }
        }
        Asked::Faulted { reason, fail: self.fails(), by: plan.by.clone() }
    }

    fn report(&self, faulted: Faulted, reason: &str) {
        let tenant = Some(self.tenant.clone());
        match faulted {
            Faulted::First => self.active.event(EventKind::Faulted, tenant, reason),
            Faulted::Again => {}
            Faulted::Opened => {
                let instead = match (&self.active.fallback, self.active.hook) {
                    (Some(plan), hook) if hook != Hook::RoutingHook => format!("{} answers instead", plan.by),
                    (_, Hook::ConflictResolver) => "all siblings are kept".into(),
                    (_, Hook::RoutingHook) => "requests fail".into(),
                    (_, Hook::ConsistencyPolicy) if self.fails() => "requests fail".into(),
                    (_, Hook::ConsistencyPolicy) => "the native rule holds".into(),
                };
                self.active.event(EventKind::BreakerOpened, tenant, format!("{instead}; last fault: {reason}"));
            }
        }
    }

    fn refuse<T>(&self, reason: &str) -> Asked<T> {
        self.active.both(Counters::refused);
        let by: AnsweredBy = match &self.active.primary {
            Ok(plan) => plan.by.clone(),
            Err(_) => self.active.version.plugin.as_str().into(),
        };
        Asked::Faulted { reason: format!("{by} {reason}"), fail: self.fails(), by }
    }

    /// Whether a fault fails the request. A resolver's never does, since all siblings can be kept; a partition key's always does,
    /// since without one the key has no place.
    fn fails(&self) -> bool {
        match self.active.hook {
            Hook::ConsistencyPolicy => self.active.version.on_fault == OnFault::Fail,
            Hook::ConflictResolver => false,
            Hook::RoutingHook => true,
        }
    }

    /// Drops the warm instances if they have not been used since the last call.
    pub(crate) fn release_idle(&self) {
        if !self.used.swap(false, Relaxed) {
            self.instances.clear();
            self.fallback_instances.clear();
        }
    }

    /// Reserves a place in the queue for the resolver threads; `None` when this tenant's part of it is full.
    pub(crate) fn enqueue(self: &Arc<Self>) -> Option<Queued> {
        let more = |n: usize| (n < limit::RESOLVER_WAITING).then_some(n + 1);
        self.queued.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Queued(self.clone()))
    }

    /// The outcome of a question for which the queue is full.
    pub(crate) fn queue_full<T>(&self) -> Asked<T> {
        self.refuse("has too many questions waiting")
    }
}

/// A place in the queue for the resolver threads.
pub(crate) struct Queued(Arc<TenantBinding>);

impl Queued {
    pub(crate) fn binding(&self) -> &TenantBinding {
        &self.0
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Relaxed);
    }
}

/// An upper bound on the CPU time of one question: of the call itself, and of starting and configuring an instance for it. Elapsed
/// time is charged up to this bound, because reading the thread's CPU time would cost a system call with every question, and a
/// thread that is descheduled on a busy machine takes longer without using more CPU.
fn max_cpu(budget: &Budget) -> Duration {
    3 * (budget.cpu + 2 * TICK)
}

/// The CPU time that one tenant's plugin has used in the current second, and its limit.
#[derive(Debug)]
struct CpuShare {
    second: AtomicU64,
    nanos: AtomicU64,
    limit_nanos: u64,
}

impl CpuShare {
    /// A limit in thousandths of one core.
    fn new(thousandths: u32) -> Self {
        Self { second: AtomicU64::new(0), nanos: AtomicU64::new(0), limit_nanos: u64::from(thousandths) * 1_000_000 }
    }

    fn admits(&self, now_ms: u64) -> bool {
        self.nanos.load(Relaxed) < self.limit_nanos || self.second.load(Relaxed) != now_ms / 1000
    }

    fn add(&self, now_ms: u64, took: Duration) {
        let second = now_ms / 1000;
        if self.second.swap(second, Relaxed) != second {
            self.nanos.store(0, Relaxed);
        }
        self.nanos.fetch_add(took.as_nanos() as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_renewed_every_second() {
        let share = CpuShare::new(500);
        assert!(share.admits(10));
        share.add(10, Duration::from_millis(499));
        assert!(share.admits(20));
        share.add(20, Duration::from_millis(1));
        assert!(!share.admits(999));
        assert!(share.admits(1000));
        share.add(1000, Duration::from_millis(1));
        assert!(share.admits(1001));
    }
}
