//! A candidate as one tenant's requests ask it: a canary instead of the version in force, a shadow beside it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use witan_kernel::candidate::{Finding, Mode};
use witan_kernel::hook::{Asked, PolicyAnswer, PolicyQuestion, ReadReplica, ResolverQuestion, Verdict};
use witan_kernel::name::{Key, Zone};

use crate::candidate::{Candidate, Example, Outcome, shown, timed};
use crate::event::EventKind;
use crate::limit;
use crate::pool::Pool;
use crate::tenant::TenantBinding;

/// A candidate, and its instances for one tenant.
pub(crate) struct Tried {
    pub(crate) candidate: Arc<Candidate>,
    pub(crate) binding: Arc<TenantBinding>,
}

impl Tried {
    /// Whether a canary answers for this key here.
    pub(crate) fn answers_for(&self, key: &Key) -> bool {
        self.candidate.record.trial.answers_for(key.bytes()) && self.candidate.is_asked()
    }

    /// Whether a shadow is asked the next question.
    fn samples(&self) -> bool {
        let Candidate { record, watch, .. } = &*self.candidate;
        if record.trial.mode != Mode::Shadow || !self.candidate.is_asked() {
            return false;
        }
        record.trial.is_sampled(watch.question())
    }

    /// A canary's answer; `None`: the version in force is asked.
    pub(crate) fn policy(&self, question: &PolicyQuestion<'_>) -> Option<Asked<PolicyAnswer>> {
        self.answered(|| self.binding.decide(question))
    }

    /// A canary's answer; `None`: the version in force is asked.
    pub(crate) fn prefer(&self, key: &Key, replicas: &[ReadReplica], zone: Option<&Zone>) -> Option<Asked<Vec<u8>>> {
        self.answered(|| self.binding.ask(|instance| instance.prefer(key.bytes(), replicas, zone)))
    }

    fn answered<T>(&self, ask: impl FnOnce() -> Asked<T>) -> Option<Asked<T>> {
        let (asked, took) = timed(ask);
        self.count(&asked, took);
        matches!(asked, Asked::Answered { .. }).then_some(asked)
    }

    /// Counts a question.
    pub(crate) fn count<T>(&self, asked: &Asked<T>, took: Duration) {
        let Candidate { record, watch, .. } = &*self.candidate;
        self.report(watch.asked(&record.trial.bounds, Outcome::of(asked), took));
    }

    fn report(&self, found: Option<Finding>) {
        if let Some(finding) = found {
            self.candidate.report(finding);
        }
    }

    /// Has a shadow asked what the version in force has answered.
    pub(crate) fn shadow_policy(
        self: &Arc<Self>,
        shadows: &Pool,
        key: &Key,
        question: &PolicyQuestion<'_>,
        in_force: &Asked<PolicyAnswer>,
    ) {
        if !self.samples() {
            return;
        }
        let question = question.kept();
        let ask = move |tried: &Self| tried.binding.decide(&question.question());
        self.shadow(shadows, key, in_force.clone(), ask, |one, other| one == other);
    }

    /// The same, of the order of replicas.
    pub(crate) fn shadow_prefer(
        self: &Arc<Self>,
        shadows: &Pool,
        key: &Key,
        (replicas, zone): (&[ReadReplica], Option<&Zone>),
        in_force: &Asked<Vec<u8>>,
    ) {
        if !self.samples() {
            return;
        }
        let (asked_for, replicas, zone) = (key.clone(), replicas.to_vec(), zone.cloned());
        let ask = move |tried: &Self| {
            tried.binding.ask(|instance| instance.prefer(asked_for.bytes(), &replicas, zone.as_ref()))
        };
        self.shadow(shadows, key, in_force.clone(), ask, |one, other| one == other);
    }

    /// The same, of a verdict.
    pub(crate) fn shadow_resolve(
        self: &Arc<Self>,
        shadows: &Pool,
        mut question: ResolverQuestion,
        in_force: &Asked<Verdict>,
    ) {
        let bytes: usize = question.siblings.iter().map(|sibling| sibling.value.len()).sum();
        if bytes > limit::SHADOW_BYTES || !self.samples() {
            return;
        }
        // A slice would keep all of the nodes' answer in memory.
        for sibling in &mut question.siblings {
            sibling.value = Bytes::copy_from_slice(&sibling.value);
        }
        let (key, siblings) = (question.key.clone(), question.siblings.clone());
        let ask = move |tried: &Self| tried.binding.resolve(&question);
        let value = move |verdict: &Verdict| match verdict {
            Verdict::Pick(index) => siblings.get(*index).map(|sibling| sibling.value.clone()),
            Verdict::Merged(value) => Some(value.clone()),
            Verdict::KeepAll => None,
        };
        self.shadow(shadows, &key, in_force.clone(), ask, move |one, other| value(one) == value(other));
    }

    /// Puts a question to the candidate on the thread of shadows, and compares. Where there is no room and no CPU time left for shadows, it
    /// is not asked: that says nothing about it.
    fn shadow<T: std::fmt::Debug + Send + 'static>(
        self: &Arc<Self>,
        shadows: &Pool,
        key: &Key,
        in_force: Asked<T>,
        ask: impl Fn(&Self) -> Asked<T> + Send + 'static,
        same: impl Fn(&T, &T) -> bool + Send + 'static,
    ) {
        let (tried, key) = (Arc::clone(self), key.clone());
        let job = move || {
            if !tried.binding.has_share() || !tried.candidate.is_asked() {
                return;
            }
            let (asked, took) = timed(|| ask(&tried));
            tried.count(&asked, took);
            let bounds = &tried.candidate.record.trial.bounds;
            let example = |one: &Asked<T>, other: &Asked<T>| Example {
                key: key.clone(),
                in_force: shown(one),
                candidate: shown(other),
            };
            let differ = |one: &Asked<T>, other: &Asked<T>| match (one, other) {
                (Asked::Answered { answer: one, .. }, Asked::Answered { answer: other, .. }) => Some(!same(one, other)),
                _ => None,
            };
            if let Some(differs) = differ(&in_force, &asked) {
                let differing = differs.then(|| example(&in_force, &asked));
                tried.report(tried.candidate.watch.compared(bounds, differing));
            }
            if tried.candidate.watch.is_put_twice() && tried.binding.claims_to_be_determined() {
                let again = ask(&tried);
                if differ(&asked, &again) == Some(true) {
                    tried.report(tried.candidate.watch.undetermined(bounds, example(&asked, &again)));
                }
            }
        };
        // A full queue: see above.
        _ = shadows.submit(job);
    }
}

impl Candidate {
    /// Says that it is not asked here any longer.
    pub(crate) fn report(&self, finding: Finding) {
        let detail = format!("{finding}; it is not asked here for now");
        self.active.event(EventKind::CandidateTripped, self.active.tenant.clone(), detail);
    }

    /// Whether it is asked here: it is loaded, and does not exceed its bounds.
    fn is_asked(&self) -> bool {
        self.active.primary.is_ok() && !self.watch.is_tripped()
    }
}
