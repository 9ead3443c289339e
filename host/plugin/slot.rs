//! One tenant's seat at one binding: its warm instances, its breaker, its share of the CPU.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::hook::{AnsweredBy, Asked, Hook, PolicyAnswer, PolicyQuestion};
use witan_kernel::name::TenantId;

use crate::binding::{BindingVersion, OnFault};
use crate::breaker::{Breaker, Faulted};
use crate::compile::lock;
use crate::digest::Digest;
use crate::engine::{TICK, Ticks};
use crate::event::{Event, EventKind, Events};
use crate::instance::{Fault, Instance, Program};
use crate::limit::{self, Budget, Limits};
use crate::memory::Memory;
use crate::metrics::Counters;

/// A program with the configuration that its instances get.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) digest: Digest,
    pub(crate) program: Arc<Program>,
    pub(crate) configuration: Bytes,
    pub(crate) by: AnsweredBy,
    /// Equal questions always get equal answers.
    pub(crate) deterministic: bool,
}

impl Plan {
    /// An instance that has its configuration.
    pub(crate) fn start(&self, counters: &Arc<Counters>) -> Result<Box<Instance>, Fault> {
        let mut instance = self.program.start(self.by.clone(), counters.clone())?;
        instance.configure(&self.configuration).map_err(|fault| Fault::Broken(fault.to_string()))?;
        Ok(Box::new(instance))
    }
}

/// What all slots need of the host.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) ticks: Ticks,
    pub(crate) limits: Arc<Limits>,
    pub(crate) events: Arc<Events>,
    /// Counts per hook, in the order of [`Hook::ALL`].
    pub(crate) totals: Arc<[Counters; 3]>,
}

/// One version of a binding, in force or draining. Immutable.
pub(crate) struct Active {
    pub(crate) tenant: Option<TenantId>,
    pub(crate) hook: Hook,
    pub(crate) version: BindingVersion,
    /// What answers; `Err` says why nothing can (say, the component is gone): then every question is a fault.
    pub(crate) primary: Result<Plan, String>,
    /// The last version that was good, for when this one's breaker opens.
    pub(crate) fallback: Option<Plan>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shared: Shared,
}

impl Active {
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

impl Drop for Active {
    fn drop(&mut self) {
        self.event(EventKind::Drained, self.tenant.clone(), format!("version {} of the binding", self.version.number));
    }
}

/// Instances that wait for the next question. As many as threads have asked at once.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "an instance is large, and goes in and out under a lock with every question")]
struct Warm(Mutex<Vec<Box<Instance>>>);

impl Warm {
    fn pop(&self) -> Option<Box<Instance>> {
        lock(&self.0).pop()
    }

    fn push(&self, instance: Box<Instance>, most: usize) {
        let mut instances = lock(&self.0);
        if instances.len() < most {
            instances.push(instance);
        }
    }

    fn clear(&self) {
        // Dropped after the lock.
        let _instances = std::mem::take(&mut *lock(&self.0));
    }
}

/// One tenant's seat at one version of one binding.
pub(crate) struct Slot {
    pub(crate) active: Arc<Active>,
    tenant: TenantId,
    warm: Warm,
    spare: Warm,
    breaker: Breaker,
    share: Share,
    memory: Memory,
    waiting: AtomicUsize,
    used: AtomicBool,
}

/// Instances that a slot keeps: more threads than this asking one tenant's plugin at once start instances anew.
const WARM: usize = 16;

impl Slot {
    pub(crate) fn new(active: Arc<Active>, tenant: TenantId) -> Self {
        let breaker = Breaker::new(&active.shared.limits);
        let share = active.shared.limits.budget(active.hook).share;
        Self {
            active,
            tenant,
            warm: Warm::default(),
            spare: Warm::default(),
            breaker,
            share: Share::new(share),
            memory: Memory::default(),
            waiting: AtomicUsize::new(0),
            used: AtomicBool::new(false),
        }
    }

    /// Has a consistency policy decide. A deterministic one is asked once for equal questions.
    pub(crate) fn decide(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        let primary = self.active.primary.as_ref().ok().filter(|plan| plan.deterministic && !self.breaker.is_open());
        let Some(plan) = primary else { return self.ask(|instance| instance.decide(question)) };
        if let Some(answer) = self.memory.answer(question) {
            self.active.both(Counters::remembered);
            return Asked::Answered { answer, by: plan.by.clone() };
        }
        let asked = self.ask(|instance| instance.decide(question));
        if let Asked::Answered { answer, by } = &asked
            && Arc::ptr_eq(by, &plan.by)
        {
            self.memory.keep(question, *answer);
        }
        asked
    }

    /// Puts one question, to whom it is to be put now.
    pub(crate) fn ask<T>(&self, mut question: impl FnMut(&mut Instance) -> Result<T, Fault>) -> Asked<T> {
        let now = self.active.shared.ticks.now();
        if !self.share.admits(now) {
            return self.refuse("has used up its share of the CPU for this second");
        }
        let plan = match &self.active.primary {
            Ok(plan) => plan,
            Err(reason) => return self.refuse(reason),
        };
        if !self.breaker.admits(now) {
            return self.ask_fallback(now, question);
        }
        match self.put(plan, &self.warm, now, &mut question) {
            Ok(answer) => {
                if self.breaker.answered() {
                    self.active.event(EventKind::BreakerClosed, Some(self.tenant.clone()), "it answers again");
                }
                Asked::Answered { answer, by: plan.by.clone() }
            }
            Err(fault) => self.fault(plan, fault, now),
        }
    }

    /// The breaker is open: the last good version answers, if there is one and the hook allows it. A partition key does
    /// not: another version may put the key elsewhere.
    fn ask_fallback<T>(&self, now: u64, mut question: impl FnMut(&mut Instance) -> Result<T, Fault>) -> Asked<T> {
        match &self.active.fallback {
            Some(plan) if self.active.hook != Hook::RoutingHook => {
                match self.put(plan, &self.spare, now, &mut question) {
                    Ok(answer) => Asked::Answered { answer, by: plan.by.clone() },
                    Err(fault) => self.fault(plan, fault, now),
                }
            }
            _ => self.refuse("has failed too often and is not asked for a while"),
        }
    }

    fn put<T>(
        &self,
        plan: &Plan,
        warm: &Warm,
        now: u64,
        question: &mut impl FnMut(&mut Instance) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let began = Instant::now();
        let answer = self.put_untimed(plan, warm, question);
        let took = began.elapsed();
        self.share.used(now, took.min(most_cpu(plan.program.budget())));
        self.active.both(|counters| counters.called(took));
        answer
    }

    fn put_untimed<T>(
        &self,
        plan: &Plan,
        warm: &Warm,
        question: &mut impl FnMut(&mut Instance) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut instance = match warm.pop() {
            Some(instance) => instance,
            None => plan.start(&self.active.counters)?,
        };
        let answer = question(&mut instance);
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
        // After a trap an instance cannot be entered again.
        if !matches!(answer, Err(Fault::Broken(_))) && instance.is_fresh(plan.program.budget()) {
            warm.push(instance, WARM);
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

    /// Keep-all needs no choice, and without a partition key there is no place.
    fn fails(&self) -> bool {
        match self.active.hook {
            Hook::ConsistencyPolicy => self.active.version.on_fault == OnFault::Fail,
            Hook::ConflictResolver => false,
            Hook::RoutingHook => true,
        }
    }

    /// Lets the warm instances go when nobody has asked since the last time.
    pub(crate) fn rest(&self) {
        if !self.used.swap(false, Relaxed) {
            self.warm.clear();
            self.spare.clear();
        }
    }

    /// Takes a place in the line for the resolver threads.
    pub(crate) fn line_up(self: &Arc<Self>) -> Option<Waiting> {
        let more = |n: usize| (n < limit::RESOLVER_WAITING).then_some(n + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Waiting(self.clone()))
    }

    /// The line is full.
    pub(crate) fn too_many<T>(&self) -> Asked<T> {
        self.refuse("has too many questions waiting")
    }
}

/// A place in the line for the resolver threads.
pub(crate) struct Waiting(Arc<Slot>);

impl Waiting {
    pub(crate) fn slot(&self) -> &Slot {
        &self.0
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// The CPU that one question can take: what it may itself, and before it an instance that is started and configured. Asking
/// for the CPU time with every question would cost a system call; a thread that is kept from running, on a busy machine,
/// takes longer than this and uses no more.
fn most_cpu(budget: &Budget) -> Duration {
    3 * (budget.cpu + 2 * TICK)
}

/// How much of a core one tenant's plugin has used in this second.
#[derive(Debug)]
struct Share {
    second: AtomicU64,
    nanos: AtomicU64,
    most: u64,
}

impl Share {
    /// `thousandths` of one core.
    fn new(thousandths: u32) -> Self {
        Self { second: AtomicU64::new(0), nanos: AtomicU64::new(0), most: u64::from(thousandths) * 1_000_000 }
    }

    fn admits(&self, now_ms: u64) -> bool {
        self.nanos.load(Relaxed) < self.most || self.second.load(Relaxed) != now_ms / 1000
    }

    fn used(&self, now_ms: u64, took: Duration) {
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
        let share = Share::new(500);
        assert!(share.admits(10));
        share.used(10, Duration::from_millis(499));
        assert!(share.admits(20));
        share.used(20, Duration::from_millis(1));
        assert!(!share.admits(999));
        assert!(share.admits(1000));
        share.used(1000, Duration::from_millis(1));
        assert!(share.admits(1001));
    }
}
