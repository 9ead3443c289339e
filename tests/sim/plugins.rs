//! The plugins of the simulation: resolvers with every kind of verdict, policies that answer anything, and faults of both.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use witan_kernel::hook::{
    Asked, FaultKind, Hooks, Native, Partition, Pending, Plugins, PolicyAnswer, PolicyQuestion, ReadReplica,
    ResolverQuestion, Shortfall, Verdict,
};
use witan_kernel::name::{Key, TenantId, Zone};

use crate::world::{Dice, Tags, from_value, to_value};

/// What a tenant's resolver decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolver {
    /// None is bound: readers get all siblings.
    None,
    /// The union of sets of tags.
    Union,
    /// The newest sibling, and now and then one that does not exist.
    Pick,
    /// Readers get all siblings.
    KeepAll,
}

impl Resolver {
    /// True when a reader may be shown fewer values than there are.
    pub(crate) fn hides(self) -> bool {
        self == Self::Pick
    }
}

/// What is bound to the tenants, by tenant.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    pub(crate) tenants: HashMap<TenantId, (Resolver, bool)>,
    /// Questions that plugins fail to answer, per mille.
    pub(crate) faulty: Arc<AtomicU64>,
    /// Whether a policy is in force, for every tenant, that is content with one answer.
    pub(crate) lenient: Arc<AtomicBool>,
    pub(crate) dice: Dice,
}

impl Bound {
    /// The same, at a coordinator where the lenient policy is in force while `lenient` is true.
    pub(crate) fn of(&self, lenient: &Arc<AtomicBool>) -> Self {
        Self { lenient: Arc::clone(lenient), ..self.clone() }
    }
}

impl Plugins for Bound {
    fn hooks(&self, tenant: &TenantId) -> Arc<dyn Hooks> {
        if self.lenient.load(Ordering::Relaxed) {
            return Arc::new(Lenient);
        }
        match self.tenants.get(tenant) {
            None => Arc::new(Native),
            Some((resolver, policy)) => Arc::new(Simulated {
                resolver: *resolver,
                policy: *policy,
                faulty: self.faulty.load(Ordering::Relaxed),
                dice: self.dice.clone(),
            }),
        }
    }
}

const BY: &str = "simulated@native";

/// What the partition hook of a generation says: each places keys where no other does.
pub(crate) fn partition(generation: u32, key: &Key) -> Partition {
    let name = match generation % 3 {
        0 if generation == 0 => return Partition::Native,
        // All keys together.
        2 => format!("all of {generation}"),
        _ => format!("{generation} {key}"),
    };
    Partition::By { key: name.into_bytes().into(), by: BY.into() }
}

/// The hooks of one tenant.
#[derive(Debug, Clone)]
struct Simulated {
    resolver: Resolver,
    policy: bool,
    faulty: u64,
    dice: Dice,
}

impl Simulated {
    fn fault<T>(&self) -> Option<Asked<T>> {
        let faults = self.faulty > 0 && self.dice.between(0, 999) < self.faulty;
        let fail = faults && self.dice.between(0, 1) == 0;
        faults.then(|| Asked::Faulted { kind: FaultKind::Trap, reason: "a fault".to_owned(), fail, by: BY.into() })
    }

    fn verdict(&self, question: &ResolverQuestion) -> Option<Verdict> {
        let count = question.siblings.len();
        match self.resolver {
            Resolver::None => None,
            Resolver::KeepAll => Some(Verdict::KeepAll),
            // A host that uses a verdict unchecked would fail on the one that does not exist.
            Resolver::Pick if self.dice.between(0, 15) == 0 => Some(Verdict::Pick(count + 3)),
            Resolver::Pick => Some(Verdict::Pick(count.checked_sub(1)?)),
            Resolver::Union => {
                let sets: Option<Vec<Tags>> =
                    question.siblings.iter().map(|sibling| from_value(&sibling.value)).collect();
                let longest = question.siblings.iter().map(|sibling| sibling.value.len()).max().unwrap_or_default();
                Some(Verdict::Merged(to_value(&sets?.into_iter().flatten().collect(), longest)))
            }
        }
    }
}

/// A policy that is content with one answer.
#[derive(Debug)]
struct Lenient;

impl Hooks for Lenient {
    fn has_policy(&self) -> bool {
        true
    }

    fn policy(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        let native = PolicyAnswer::native(question);
        Asked::Answered { answer: PolicyAnswer { required: 1, ..native }, by: BY.into() }
    }

    fn has_resolver(&self) -> bool {
        false
    }

    fn resolve(&self, _: ResolverQuestion) -> Pending<Asked<Verdict>> {
        Box::pin(std::future::ready(Asked::Unbound))
    }

    fn partition_key(&self, generation: u32, key: &Key) -> Partition {
        partition(generation, key)
    }

    fn prefer(&self, _: &Key, _: &[ReadReplica], _: Option<&Zone>) -> Asked<Vec<u8>> {
        Asked::Unbound
    }
}

impl Hooks for Simulated {
    fn has_policy(&self) -> bool {
        self.policy
    }

    fn policy(&self, question: &PolicyQuestion<'_>) -> Asked<PolicyAnswer> {
        if !self.policy {
            return Asked::Unbound;
        }
        if let Some(fault) = self.fault() {
            return fault;
        }
        let shortfall = match self.dice.between(0, 2) {
            0 => Shortfall::Fail,
            _ => Shortfall::Accept(self.dice.between(0, 4) as u8),
        };
        let answer = PolicyAnswer {
            required: self.dice.between(0, 6) as u8,
            deadline_ms: question.deadline_ms.saturating_mul(self.dice.between(1, 2) as u32),
            hedge_after_us: (self.dice.between(0, 1) == 0).then(|| self.dice.between(0, 50_000) as u32),
            shortfall,
        };
        Asked::Answered { answer, by: BY.into() }
    }

    fn has_resolver(&self) -> bool {
        self.resolver != Resolver::None
    }

    fn resolve(&self, question: ResolverQuestion) -> Pending<Asked<Verdict>> {
        let asked = self.fault().unwrap_or_else(|| match self.verdict(&question) {
            Some(answer) => Asked::Answered { answer, by: BY.into() },
            None => Asked::Unbound,
        });
        Box::pin(std::future::ready(asked))
    }

    fn partition_key(&self, generation: u32, key: &Key) -> Partition {
        partition(generation, key)
    }

    fn prefer(&self, _: &Key, _: &[ReadReplica], _: Option<&Zone>) -> Asked<Vec<u8>> {
        Asked::Unbound
    }
}
