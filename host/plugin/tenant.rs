//! Serving one tenant from one version of a binding: its warm instances, its breaker, its share of the CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use witan_kernel::hook::{AnsweredBy, Asked, FaultKind, Hook, PolicyAnswer, PolicyQuestion, ResolverQuestion, Verdict};
use witan_kernel::name::{Key, TenantId};

use crate::answers::Answers;
use crate::binding::{BindingVersion, OnFault};
use crate::breaker::{Breaker, Ended, Ticket};
use crate::cpu::{CpuShare, Pace, max_cpu};
use crate::digest::Digest;
use crate::engine::Ticks;
use crate::error::PluginError;
use crate::event::{Event, EventKind, Events};
use crate::fair::Full;
use crate::fault::{Broken, Fault};
use crate::guest::Serves;
use crate::instance::{Instance, Program};
use crate::late::Late;
use crate::limit::{self, Limits};
use crate::lines::Logs;
use crate::metrics::Counters;
use crate::recent::Recent;
use crate::tally::{More, Tallies, Tally};
use crate::warm::{Warm, WarmPool};

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
    /// Counts per plugin and tenant.
    pub(crate) tallies: Arc<Tallies>,
    /// What plugins have logged.
    pub(crate) logs: Arc<Logs>,
    /// Bounds the warm instances of each tenant, and of all.
    pub(crate) warm: Arc<Warm>,
    /// Plugins that are loaded after the start.
    pub(crate) late: Arc<Late<TenantBinding>>,
}

/// Why a binding cannot answer at all: say, its component is missing.
#[derive(Debug, thiserror::Error)]
#[error("cannot be loaded: {0}")]
pub(crate) struct LoadError(pub(crate) PluginError);

impl LoadError {
    /// For whoever may see the binding. What failed of the host itself is in its log, with the names of files.
    pub(crate) fn shown(&self) -> String {
        match &self.0 {
            late @ PluginError::Late => late.to_string(),
            PluginError::Host(_) | PluginError::Store(_) => {
                "cannot be loaded: this coordinator's own disk or store failed; its log says how".to_owned()
            }
            error => format!("cannot be loaded: {error}"),
        }
    }
}

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
    pub(crate) fn event(&self, kind: EventKind, tenant: Option<TenantId>, detail: impl Into<String>) {
        let event = Event::new(kind, detail).of(self.version.digest, &*self.version.plugin).at(tenant, self.hook);
        self.shared.events.emit(event);
    }

    /// Whether its plugin is still to be loaded since the start.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self.primary, Err(LoadError(PluginError::Late)))
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

/// One version of one binding as one tenant uses it.
pub(crate) struct TenantBinding {
    pub(crate) active: Arc<ActiveBinding>,
    tenant: TenantId,
    instances: WarmPool,
    /// Instances of the previous version, used while the breaker is open.
    fallback_instances: WarmPool,
    breaker: Breaker,
    share: CpuShare,
    pace: Pace,
    tally: Tally,
    /// Of a deterministic policy.
    answers: Answers,
    /// What a policy was asked last.
    pub(crate) recent: Recent,
    /// Questions that a resolver has answered: some are put to another instance as well.
    resolved: AtomicU64,
    /// When it was reported last that another instance answers differently: the host's ticks and one more; 0: never.
    differed_at: AtomicU64,
    /// Asked since the last [`Self::release_idle`].
    used: AtomicBool,
}

/// How often a question that is no client's is put before running out of time counts as the answer.
const APART_TRIES: usize = 3;

impl TenantBinding {
    pub(crate) fn new(active: Arc<ActiveBinding>, tenant: TenantId) -> Self {
        // One that cannot be loaded is not called.
        let share = active.primary.as_ref().map_or(1000, |plan| plan.program.budget().share);
        Self::with_share(active, tenant, share)
    }

    /// With this share of one core, in thousandths.
    pub(crate) fn with_share(active: Arc<ActiveBinding>, tenant: TenantId, share: u32) -> Self {
        let breaker = Breaker::new(&active.shared.limits);
        let of_tenant = active.shared.warm.tenant(&tenant);
        Self {
            active,
            tenant,
            instances: of_tenant.pool(),
            fallback_instances: of_tenant.pool(),
            breaker,
            share: CpuShare::new(share),
            pace: Pace::default(),
            tally: Tally::default(),
            answers: Answers::default(),
            recent: Recent::default(),
            resolved: AtomicU64::new(0),
            differed_at: AtomicU64::new(0),
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
            return self.refuse(FaultKind::Share, "has used up its share of the CPU for this second");
        }
        let Ok(plan) = &self.active.primary else { return self.not_loaded() };
        let Some(ticket) = self.breaker.admits(now) else { return self.ask_fallback(now, question) };
        match self.call(plan, &self.instances, now, &mut question) {
            Ok(answer) => {
                self.ended(ticket, None);
                Asked::Answered { answer, by: plan.by.clone() }
            }
            Err(fault) => {
                // Counted first: who hears of a fault by an event finds it in the counts.
                let asked = self.fault(plan, &fault);
                self.ended(ticket, Some((plan, &fault)).filter(|(_, fault)| matches!(fault, Fault::Broken(_))));
                asked
            }
        }
    }

    /// Takes note of a question that a policy was asked.
    pub(crate) fn note(&self, key: &Key, question: &PolicyQuestion<'_>) {
        self.recent.note(self.active.shared.ticks.now(), key, question);
    }

    /// Whether it may use the CPU in this second.
    pub(crate) fn has_share(&self) -> bool {
        self.share.admits(self.active.shared.ticks.now())
    }

    /// Whether equal questions must have equal answers: of resolvers always, of others if they say so.
    pub(crate) fn claims_to_be_determined(&self) -> bool {
        let says_so = self.active.primary.as_ref().is_ok_and(|plan| plan.deterministic);
        says_so || self.active.hook == Hook::ConflictResolver
    }

    /// Asks a conflict resolver, on one of the resolver threads.
    pub(crate) fn resolve(&self, question: &ResolverQuestion) -> Asked<Verdict> {
        self.ask(|instance| instance.resolve(question))
    }

    /// Puts some of the questions that the version in force has answered to another instance of it: a difference is a fault. Only what
    /// has no state, and asks nobody else, may decide for several coordinators.
    pub(crate) fn repeat_some(&self, question: &ResolverQuestion, asked: &Asked<Verdict>) {
        let (Ok(plan), Asked::Answered { answer: first, by }) = (&self.active.primary, asked) else { return };
        if !Arc::ptr_eq(by, &plan.by) || !self.resolved.fetch_add(1, Relaxed).is_multiple_of(limit::REPEATED_ONE_IN) {
            return;
        }
        let now = self.active.shared.ticks.now();
        let Some(ticket) = self.breaker.admits(now).filter(|_| self.share.admits(now)) else { return };
        self.active.both(Counters::repeated);
        let fresh = WarmPool::apart();
        let fault = match self.call(plan, &fresh, now, &mut |instance| instance.resolve(question)) {
            Ok(then) if then == *first => return self.ended(ticket, None),
            Ok(then) => Broken::Undetermined { first: brief(first), then: brief(&then) },
            Err(Fault::Declined(declined)) => Broken::Undetermined { first: brief(first), then: declined.to_string() },
            Err(Fault::Broken(broken)) => broken,
        };
        let fault = Fault::Broken(fault);
        self.fault::<()>(plan, &fault);
        if fault.kind() == FaultKind::Undetermined && self.may_tell_of_difference(now) {
            self.active.event(EventKind::Undetermined, Some(self.tenant.clone()), format!("{} {fault}", plan.by));
        }
        self.ended(ticket, Some((plan, &fault)));
    }

    /// At most once within a window, as of other faults, but whether or not there were others.
    fn may_tell_of_difference(&self, now: u64) -> bool {
        let window = self.active.shared.limits.fault_window.as_millis() as u64;
        let told = self.differed_at.load(Relaxed);
        let may = told == 0 || now > told + window;
        if may {
            self.differed_at.store(now + 1, Relaxed);
        }
        may
    }

    /// Asks for a purpose other than serving a client, say about every key of the tenant: whatever share of the CPU that takes, and without
    /// the breaker, so that only this one question is answered for. What only happens on an overloaded machine is tried again.
    pub(crate) fn ask_apart<T>(&self, mut question: impl FnMut(&mut Instance) -> Result<T, Fault>) -> Asked<T> {
        let Ok(plan) = &self.active.primary else { return self.not_loaded() };
        let mut tries = 0;
        loop {
            tries += 1;
            match self.call_untimed(plan, &self.instances, &mut question) {
                Ok(answer) => return Asked::Answered { answer, by: plan.by.clone() },
                Err(Fault::Broken(Broken::Timeout(_))) if tries < APART_TRIES => {}
                Err(fault) => return self.unanswered(fault.kind(), self.reason(plan, &fault), plan.by.clone()),
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
                    Err(fault) => self.fault(plan, &fault),
                }
            }
            _ => self.refuse(FaultKind::Breaker, "has failed too often and is not asked for a while"),
        }
    }

    fn call<T>(
        &self,
        plan: &Plan,
        instances: &WarmPool,
        now: u64,
        question: &mut impl FnMut(&mut Instance) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let began = Instant::now();
        let answer = self.call_untimed(plan, instances, question);
        let took = began.elapsed();
        self.share.add(now, took.min(max_cpu(plan.program.budget())));
        self.pace.took(took);
        self.tally.called(took);
        self.active.both(|counters| counters.called(took));
        answer
    }

    fn call_untimed<T>(
        &self,
        plan: &Plan,
        instances: &WarmPool,
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
            instances.push(instance, plan.program.budget().warm, self.active.shared.ticks.now());
        }
        answer
    }

    /// Counts a call in the breaker, and says what is to be known of its end. `fault`: the one on which it ended.
    fn ended(&self, ticket: Ticket, fault: Option<(&Plan, &Fault)>) {
        let now = self.active.shared.ticks.now();
        let event = |kind, detail: String| self.active.event(kind, Some(self.tenant.clone()), detail);
        let last = || fault.map_or_else(|| "none of late".to_owned(), |(plan, fault)| format!("{} {fault}", plan.by));
        match self.breaker.ended(ticket, now, fault.is_some()) {
            Ended::Counted => {}
            // That has an event of its own.
            Ended::FirstFault if fault.is_some_and(|(_, it)| it.kind() == FaultKind::Undetermined) => {}
            Ended::FirstFault => event(EventKind::Faulted, last()),
            Ended::Opened => event(EventKind::BreakerOpened, format!("{}; last fault: {}", self.instead(), last())),
            Ended::Closed => event(EventKind::BreakerClosed, "it answers again".to_owned()),
        }
    }

    /// What happens while the breaker is open.
    fn instead(&self) -> String {
        match (&self.active.fallback, self.active.hook) {
            (Some(plan), hook) if hook != Hook::RoutingHook => format!("{} answers instead", plan.by),
            (_, Hook::ConflictResolver) => "all siblings are kept".into(),
            (_, Hook::RoutingHook) => "requests fail".into(),
            (_, Hook::ConsistencyPolicy) if self.fails() => "requests fail".into(),
            (_, Hook::ConsistencyPolicy) => "the native rule holds".into(),
        }
    }

    fn fault<T>(&self, plan: &Plan, fault: &Fault) -> Asked<T> {
        self.count_unanswered(fault.kind());
        self.unanswered(fault.kind(), self.reason(plan, fault), plan.by.clone())
    }

    /// Why a plugin has not answered, as its tenant's clients may know it. The configuration of a binding for all tenants is its
    /// operator's, and a plugin may quote it when it refuses it.
    fn reason(&self, plan: &Plan, fault: &Fault) -> String {
        match fault {
            Fault::Broken(Broken::Configuration(_)) if self.active.tenant.is_none() => {
                format!("{} refuses its configuration, which an operator has bound for all tenants", plan.by)
            }
            fault => format!("{} {fault}", plan.by),
        }
    }

    /// Why the component cannot be loaded is for operators: it may name files and stores.
    fn not_loaded<T>(&self) -> Asked<T> {
        let why = match self.is_late() {
            true => "is still being loaded since the coordinator was started",
            false => "cannot be loaded; the list of bindings says why",
        };
        self.refuse(FaultKind::NotLoaded, why)
    }

    fn refuse<T>(&self, kind: FaultKind, reason: &str) -> Asked<T> {
        self.count_unanswered(kind);
        let by: AnsweredBy = match &self.active.primary {
            Ok(plan) => plan.by.clone(),
            Err(_) => {
                let version = &self.active.version;
                let name = version.plugin.split('@').next().unwrap_or_default();
                format!("{name}@{}", version.digest.short()).into()
            }
        };
        self.unanswered(kind, format!("{by} {reason}"), by)
    }

    fn count_unanswered(&self, kind: FaultKind) {
        self.tally.unanswered(kind);
        self.active.both(|counters| counters.unanswered(kind));
    }

    fn unanswered<T>(&self, kind: FaultKind, reason: String, by: AnsweredBy) -> Asked<T> {
        Asked::Faulted { kind, reason, fail: self.fails(), by }
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

    /// Whether a policy takes so long that it must not be asked on a serving thread. Not for a question whose answer is cached.
    pub(crate) fn is_slow(&self, question: &PolicyQuestion<'_>) -> bool {
        self.pace.is_slow() && (self.breaker.is_open() || self.answers.get(question).is_none())
    }

    /// What was counted since this was called last.
    pub(crate) fn take_counts(&self) -> More {
        let version = &self.active.version;
        let plugin = version.plugin.split('@').next().unwrap_or_default().to_owned();
        More { hook: self.active.hook, plugin, tenant: self.tenant.clone(), counts: self.tally.take() }
    }

    /// Whether its plugin is still to be loaded since the start.
    pub(crate) fn is_late(&self) -> bool {
        self.active.is_late()
    }

    /// The tenant, for whose questions there is a queue.
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The outcome of a question for which the queue is full.
    pub(crate) fn queue_full<T>(&self, full: Full) -> Asked<T> {
        let reason = match full {
            Full::Jobs => "has too many questions waiting",
            Full::Bytes => "has questions waiting with too many bytes of siblings",
        };
        self.refuse(FaultKind::Queue, reason)
    }

    /// The outcome of a question whose thread panicked.
    pub(crate) fn lost<T>(&self) -> Asked<T> {
        self.refuse(FaultKind::Queue, "was not asked, because of a defect of the coordinator, which is in its log")
    }

    /// The share of this tenant's questions that reach the version in force, in thousandths; 1000 while its breaker is closed.
    pub(crate) fn admitted_permille(&self) -> u32 {
        self.breaker.admitted_permille()
    }

    pub(crate) fn is_breaker_open(&self) -> bool {
        self.breaker.is_open()
    }
}

impl Drop for TenantBinding {
    fn drop(&mut self) {
        self.active.shared.tallies.add(self.take_counts());
    }
}

/// A verdict without values: those are for who may read the key.
fn brief(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Pick(index) => format!("picked sibling {index}, counted from 0"),
        Verdict::Merged(bytes) => format!("merged to {} bytes", bytes.len()),
        Verdict::KeepAll => "kept all siblings".to_owned(),
    }
}
