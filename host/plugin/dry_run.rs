//! A dry run: a version is asked questions that nobody waits for, and its answers are compared with those of what is in force. It has
//! instances, a share of the CPU and counts of its own, so that nothing of it is seen by a request, a breaker, a metric or an event.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use witan_kernel::candidate::Latencies;
use witan_kernel::hook::{AnsweredBy, Hook, PolicyAnswer, ResolverQuestion, Shortfall, Verdict};
use witan_kernel::name::{Key, TenantId};
use witan_kernel::port::Artifact;
use witan_kernel::question::{Question, RoutingQuestion};
use witan_kernel::sync::lock;

use crate::binding::Reference;
use crate::candidate::{EXAMPLES, EXAMPLES_BYTES, timed};
use crate::cpu::{CpuShare, max_cpu};
use crate::engine::Ticks;
use crate::fault::{Fault, shorten};
use crate::instance::Instance;
use crate::limit;
use crate::metrics::{Counters, Unanswered};
use crate::pool::Pool;
use crate::tenant::Plan;

/// How long a question waits before it is queued again when shadows have filled the queue of their thread.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// Siblings of a question that are shown, if there is room for them.
const SHOWN: usize = 8;

/// A request for a dry run.
#[derive(Debug, Clone)]
pub struct DryRunRequest {
    /// The tenant in whose place it is asked.
    pub tenant: TenantId,
    /// The hook that it is to answer.
    pub hook: Hook,
    /// The plugin.
    pub plugin: Reference,
    /// Its configuration; at most 64 KiB.
    pub configuration: Bytes,
}

/// A question on which the tried version has answered differently, or not at all. The texts may hold values of the tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The key.
    pub key: Key,
    /// What was asked, shortened.
    pub question: String,
    /// What is in force has answered, shortened, or why it did not.
    pub in_force: String,
    /// What the tried version has answered, shortened, or why it did not.
    pub tried: String,
}

/// What a dry run has found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Questions that were put to the tried version.
    pub asked: u32,
    /// Of these, answered as by what is in force.
    pub equal: u32,
    /// Answered differently.
    pub differing: u32,
    /// Questions on which it failed.
    pub faulted: u32,
    /// Questions that it declined.
    pub refused: u32,
    /// Keys that a routing hook would place in another partition.
    pub moving: u32,
    /// How long its calls took.
    pub latencies: Latencies,
    /// The first questions that were not answered equally, at most [`EXAMPLES`] of [`EXAMPLES_BYTES`].
    pub cases: Vec<Case>,
    case_bytes: usize,
}

/// A dry run, prepared: the version is loaded and has passed its probe.
pub struct DryRun {
    artifact: Artifact,
    in_force: Option<AnsweredBy>,
    ticks: Ticks,
    share: CpuShare,
    shadows: Pool,
    /// Taken by the thread of shadows, one question at a time.
    runner: Arc<Mutex<Runner>>,
    findings: Findings,
}

impl std::fmt::Debug for DryRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DryRun").field("plugin", &self.artifact.plugin()).finish_non_exhaustive()
    }
}

impl DryRun {
    /// Of a plan that has passed its probe, beside that of what is in force. Both are asked on the thread of shadows.
    pub(crate) fn new(
        (tried, artifact): (Plan, Artifact),
        in_force: Option<Plan>,
        tenant: &TenantId,
        shadows: Pool,
        ticks: Ticks,
    ) -> Self {
        let asking = |plan: Plan| Asking::new(plan, tenant.clone());
        Self {
            artifact,
            in_force: in_force.as_ref().map(|plan| plan.by.clone()),
            ticks,
            share: CpuShare::new(limit::SHADOW_SHARE),
            shadows,
            runner: Arc::new(Mutex::new(Runner { tried: asking(tried), in_force: in_force.map(asking) })),
            findings: Findings::default(),
        }
    }

    /// The version that is tried.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// What it is compared with; `None`: the native rule.
    pub fn in_force(&self) -> Option<&AnsweredBy> {
        self.in_force.as_ref()
    }

    /// What was found so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Puts a question to both versions, on the thread of shadows and within their share of the CPU. False if it could not be put before
    /// `until`. A caller that goes away leaves at most one question behind, which ends within the limits of a call.
    pub async fn ask(&mut self, question: Question, until: Instant) -> bool {
        let question = Arc::new(question);
        let compared = loop {
            if Instant::now() >= until {
                return false;
            }
            let now = self.ticks.now();
            if !self.share.admits(now) {
                // Its share is renewed with the next second.
                sleep_until(Duration::from_millis(1000 - now % 1000), until).await;
                continue;
            }
            let (answer, answered) = oneshot::channel();
            let (runner, asked) = (Arc::clone(&self.runner), Arc::clone(&question));
            let job = move || {
                let compared = lock(&runner).compare(&asked);
                _ = answer.send(compared);
            };
            if self.shadows.submit(job).is_err() {
                sleep_until(QUEUE_FULL, until).await;
                continue;
            }
            // A job that has panicked has said so in the log.
            let Ok(compared) = answered.await else { return false };
            break compared;
        };
        self.share.add(self.ticks.now(), compared.used);
        self.findings.count(&question, compared);
        true
    }
}

async fn sleep_until(longest: Duration, until: Instant) {
    tokio::time::sleep(longest.min(until.saturating_duration_since(Instant::now()))).await;
}

impl Findings {
    fn count(&mut self, question: &Question, compared: Compared) {
        let Compared { tried, in_force, took, .. } = compared;
        self.asked += 1;
        self.latencies.record(took.as_micros() as u64);
        let is_equal = match (&tried, &in_force) {
            (Ok(one), Ok(other)) => one.is_as(other, question),
            (Ok(_), Err(_)) | (Err(_), _) => false,
        };
        match &tried {
            Ok(_) if is_equal => self.equal += 1,
            Ok(_) => self.differing += 1,
            Err(fault) if Unanswered::of(fault.kind()) == Unanswered::Declined => self.refused += 1,
            Err(_) => self.faulted += 1,
        }
        if let (Ok(Answer::Routing { partition, .. }), Question::Routing(asked)) = (&tried, question) {
            self.moving += u32::from(*partition != asked.partition);
        }
        if !is_equal {
            self.keep(question, &in_force, &tried);
        }
    }

    fn keep(&mut self, question: &Question, in_force: &Result<Answer, Fault>, tried: &Result<Answer, Fault>) {
        if self.cases.len() >= EXAMPLES {
            return;
        }
        let answer = |answer: &Result<Answer, Fault>| match answer {
            Ok(answer) => shorten(&answer.text(question)),
            Err(fault) => shorten(&fault.to_string()),
        };
        let case = Case {
            key: question.key().clone(),
            question: shorten(&asked(question)),
            in_force: answer(in_force),
            tried: answer(tried),
        };
        let bytes = case.key.bytes().len() + case.question.len() + case.in_force.len() + case.tried.len();
        if self.case_bytes + bytes <= EXAMPLES_BYTES {
            self.case_bytes += bytes;
            self.cases.push(case);
        }
    }
}

/// What came of a question.
struct Compared {
    tried: Result<Answer, Fault>,
    in_force: Result<Answer, Fault>,
    /// By the tried version alone.
    took: Duration,
    /// CPU time of both, at most.
    used: Duration,
}

/// Both versions.
struct Runner {
    tried: Asking,
    in_force: Option<Asking>,
}

impl Runner {
    fn compare(&mut self, question: &Question) -> Compared {
        let (tried, took) = timed(|| self.tried.answer(question));
        let (in_force, also) = timed(|| match &mut self.in_force {
            Some(in_force) => in_force.answer(question),
            None => Ok(Answer::native(question)),
        });
        // Where a key is now is known: what is in force has placed it.
        let in_force = in_force.map(|answer| match (answer, question) {
            (Answer::Routing { order, .. }, Question::Routing(asked)) => {
                Answer::Routing { partition: asked.partition.clone(), order }
            }
            (answer, _) => answer,
        });
        let most = max_cpu(self.tried.plan.program.budget());
        Compared { tried, in_force, took, used: took.min(most) + also.min(most) }
    }
}

/// A version with an instance of its own, which is neither counted nor reported anywhere.
struct Asking {
    plan: Plan,
    tenant: TenantId,
    counters: Arc<Counters>,
    instance: Option<Box<Instance>>,
}

impl Asking {
    fn new(plan: Plan, tenant: TenantId) -> Self {
        Self { plan, tenant, counters: Arc::default(), instance: None }
    }

    fn answer(&mut self, question: &Question) -> Result<Answer, Fault> {
        match question {
            Question::Policy { question, .. } => {
                self.ask(|instance| instance.decide(&question.question())).map(Answer::Policy)
            }
            Question::Resolver(question) => self.ask(|instance| instance.resolve(question)).map(Answer::Verdict),
            Question::Routing(question) => self.ask(|instance| {
                let RoutingQuestion { key, replicas, zone, .. } = question;
                let partition = instance.partition_key(key.bytes())?;
                let preferred = instance.prefer(key.bytes(), replicas, zone.as_ref())?;
                Ok(Answer::Routing { partition, order: question.completed(&preferred) })
            }),
        }
    }

    fn ask<T>(&mut self, question: impl FnOnce(&mut Instance) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => self.plan.start(Some(&self.tenant), &self.counters)?,
        };
        let answer = question(&mut instance);
        // After a trap an instance cannot be entered again.
        if !matches!(answer, Err(Fault::Broken(_))) && instance.is_reusable(self.plan.program.budget()) {
            self.instance = Some(instance);
        }
        answer
    }
}

/// An answer of any hook.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Policy(PolicyAnswer),
    Verdict(Verdict),
    Routing { partition: Bytes, order: Vec<u8> },
}

impl Answer {
    /// What holds where nothing is bound.
    fn native(question: &Question) -> Self {
        match question {
            Question::Policy { question, .. } => Self::Policy(PolicyAnswer::native(&question.question())),
            Question::Resolver(_) => Self::Verdict(Verdict::KeepAll),
            Question::Routing(question) => {
                Self::Routing { partition: question.partition.clone(), order: question.native.clone() }
            }
        }
    }

    /// Whether clients see the same: which sibling a resolver picks makes no difference if the value does not.
    fn is_as(&self, other: &Self, question: &Question) -> bool {
        match (self, other, question) {
            (Self::Verdict(one), Self::Verdict(other), Question::Resolver(asked)) => {
                value(one, asked) == value(other, asked)
            }
            (one, other, _) => one == other,
        }
    }

    fn text(&self, question: &Question) -> String {
        match (self, question) {
            (Self::Policy(answer), _) => policy_text(answer),
            (Self::Verdict(verdict), Question::Resolver(asked)) => match (verdict, value(verdict, asked)) {
                (Verdict::Pick(_), Some(value)) => format!("picks {}", shown(&value)),
                (Verdict::Merged(_), Some(value)) => format!("merges to {}", shown(&value)),
                _ => "keeps all".to_owned(),
            },
            (Self::Routing { partition, order }, Question::Routing(asked)) => {
                let nodes = order.iter().filter_map(|index| asked.replicas.get(usize::from(*index)));
                let nodes: Vec<&str> = nodes.map(|replica| replica.node.as_str()).collect();
                format!("partition {}, read from {}", shown(partition), nodes.join(", "))
            }
            (answer, _) => format!("{answer:?}"),
        }
    }
}

/// The value that readers get; `None`: all of them.
fn value(verdict: &Verdict, asked: &ResolverQuestion) -> Option<Bytes> {
    match verdict {
        Verdict::Pick(index) => asked.siblings.get(*index).map(|sibling| sibling.value.clone()),
        Verdict::Merged(value) => Some(value.clone()),
        Verdict::KeepAll => None,
    }
}

fn policy_text(answer: &PolicyAnswer) -> String {
    let PolicyAnswer { required, deadline_ms, hedge_after_us, shortfall } = answer;
    let hedge = hedge_after_us.map(|after| format!(", hedges after {after} us")).unwrap_or_default();
    let shortfall = match shortfall {
        Shortfall::Fail => "fails with fewer".to_owned(),
        Shortfall::Accept(least) => format!("accepts {least}"),
    };
    format!("requires {required} within {deadline_ms} ms, {shortfall}{hedge}")
}

fn asked(question: &Question) -> String {
    match question {
        Question::Policy { question, .. } => {
            let asked = question.question();
            let (operation, level) = (asked.operation.as_str(), asked.level);
            format!("{operation} at level {}, {} bytes", level.as_str(), asked.value_bytes)
        }
        Question::Resolver(asked) => {
            let values: Vec<_> = asked.siblings.iter().take(SHOWN).map(|sibling| shown(&sibling.value)).collect();
            format!("{} values: {}", asked.siblings.len(), values.join(", "))
        }
        Question::Routing(asked) => format!("{} replicas", asked.replicas.len()),
    }
}

/// The beginning of a value, quoted.
fn shown(value: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&value[..value.len().min(limit::TEXT_BYTES)]))
}
