//! Probes a plugin before anything depends on its answers: it must answer within its limits and the same every time, and the verdicts
//! of a resolver must keep the laws that make it safe to ask anywhere, in any order and more than once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::hook::{
    Hook, Operation, PolicyQuestion, ReadReplica, ReplicaState, ResolverQuestion, Sibling, Verdict,
};
use witan_kernel::name::{Invalid, Key, NodeId, Zone};
use witan_kernel::tenant::Level;

use crate::fault::{Broken, Declined, Fault, Timeout, shorten};
use crate::guest::thread_cpu;
use crate::instance::Instance;
use crate::metrics::Counters;
use crate::tenant::Plan;

/// CPU time of one plugin's probe.
const PROBE: Duration = Duration::from_secs(5);
/// Wall time of a probe, for a thread that hardly gets the CPU: this machine is overloaded then, and the plugin is tried again.
const PROBE_WALL: Duration = Duration::from_secs(60);
/// Most samples of a resolver that are used.
const SAMPLES: usize = 10;
/// Largest sample that is used, in bytes.
const SAMPLE_BYTES: usize = 64 << 10;
/// Values that are tried besides the samples: any resolver may meet them, whatever it is made for.
const COMMON: [&[u8]; 5] = [b"", b"[1,2]", b"{\"items\":{\"a\":1}}", b"a text", b"\xff\x00\x7f"];
/// Bytes of verdicts that are kept before another instance is asked to repeat them.
const KEPT_BYTES: usize = 64 << 20;
/// Triples of values on which associativity is tried.
const TRIPLES: usize = 120;
/// Questions that a resolver is asked with one call: few enough that the time of one call is ample, since [`SAMPLES`] are small.
const AT_ONCE: usize = 8;
/// Bytes of a value or key that a refusal shows.
const SHOWN_BYTES: usize = 60;

/// Why a plugin failed its probe, with the case that it failed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("its probe took longer than {} s of CPU time", PROBE.as_secs())]
    CpuTime,
    #[error("its probe did not end within {} s", PROBE_WALL.as_secs())]
    WallTime,
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A name that the probe uses is not valid: a defect of the probe.
    #[error(transparent)]
    Name(#[from] Invalid),
    /// Any of these, when the plugin was asked this question.
    #[error("{error}, asked {question}")]
    Asked { error: Box<Self>, question: String },
    #[error("answers differently the second time, asked {question}")]
    Differs { question: String },
    #[error("its verdicts are not deterministic: {siblings} gives {outcome}")]
    NotDeterministic { siblings: String, outcome: &'static str },
    #[error("its verdicts are not {law}: {siblings} gives {verdict}, but {others} gives {other}")]
    Law { law: &'static str, siblings: String, verdict: String, others: String, other: String },
}

impl ProbeError {
    /// Whether the machine was too busy to find out: this says nothing about the plugin.
    pub(crate) fn is_wall_time(&self) -> bool {
        match self {
            Self::WallTime | Self::Fault(Fault::Broken(Broken::Timeout(Timeout::Wall(_)))) => true,
            Self::Asked { error, .. } => error.is_wall_time(),
            _ => false,
        }
    }

    /// For `map_err`: what was asked.
    fn asked(question: impl FnOnce() -> String) -> impl FnOnce(Self) -> Self {
        move |error| Self::Asked { error: Box::new(error), question: question() }
    }
}

/// Probes a plugin under the configuration of its binding. A resolver's laws are tried on `values` besides its own samples.
pub(crate) fn probe(plan: &Plan, hook: Hook, deterministic: bool, values: &[Bytes]) -> Result<(), ProbeError> {
    let counters = Arc::new(Counters::default());
    let (cpu_until, until) = (thread_cpu() + PROBE, Instant::now() + PROBE_WALL);
    let mut pair = Pair { plan, counters, cpu_until, until, first: None, second: None };
    match hook {
        Hook::ConsistencyPolicy => probe_policy(&mut pair, deterministic),
        Hook::ConflictResolver => probe_resolver(&mut pair, values),
        Hook::RoutingHook => probe_routing(&mut pair),
    }
}

/// Two instances of a plugin, so that what one remembers cannot influence the other.
struct Pair<'a> {
    plan: &'a Plan,
    counters: Arc<Counters>,
    /// CPU time of this thread, which makes all the calls.
    cpu_until: Duration,
    until: Instant,
    first: Option<Box<Instance>>,
    second: Option<Box<Instance>>,
}

impl Pair<'_> {
    /// Asks one of the instances. A plugin may decline.
    fn ask<T>(
        &mut self,
        second: bool,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault>,
    ) -> Result<Result<T, Declined>, ProbeError> {
        if thread_cpu() > self.cpu_until {
            return Err(ProbeError::CpuTime);
        }
        if Instant::now() > self.until {
            return Err(ProbeError::WallTime);
        }
        let place = if second { &mut self.second } else { &mut self.first };
        let instance = match place {
            Some(instance) => instance,
            None => place.insert(self.plan.start(None, &self.counters)?),
        };
        match question(instance) {
            Ok(answer) => Ok(Ok(answer)),
            Err(Fault::Declined(declined)) => Ok(Err(declined)),
            Err(broken @ Fault::Broken(_)) => Err(broken.into()),
        }
    }

    /// The answer of the first instance, which must give it twice, and the second instance once.
    fn agree<T: PartialEq>(
        &mut self,
        what: impl Fn() -> String,
        question: impl Fn(&mut Instance) -> Result<T, Fault>,
    ) -> Result<Result<T, Declined>, ProbeError> {
        let answer = self.ask(false, &question).map_err(ProbeError::asked(&what))?;
        for second in [false, true] {
            if self.ask(second, &question)? != answer {
                return Err(ProbeError::Differs { question: what() });
            }
        }
        Ok(answer)
    }
}

fn probe_policy(pair: &mut Pair<'_>, deterministic: bool) -> Result<(), ProbeError> {
    let healthy = ReplicaState { reachable: true, latency_p50_us: 400, latency_p99_us: 2_000, in_flight: 3 };
    let slow = ReplicaState { latency_p50_us: 80_000, latency_p99_us: 900_000, in_flight: 4_000, ..healthy };
    let unreachable = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };
    let worst =
        ReplicaState { reachable: true, latency_p50_us: u32::MAX, latency_p99_us: u32::MAX, in_flight: u32::MAX };
    let views: [&[ReplicaState]; 5] =
        [&[], &[healthy; 3], &[healthy, slow, unreachable], &[unreachable; 5], &[worst; 5]];
    let zones = [Some(Zone::new("zone-1")?), Some(Zone::new("zone-2")?), None];
    for replicas in views {
        for operation in [Operation::Read, Operation::Write, Operation::Delete] {
            for (level, minimum) in [(Level::One, Level::One), (Level::Quorum, Level::One), (Level::All, Level::Quorum)]
            {
                let question = PolicyQuestion {
                    operation,
                    level,
                    minimum,
                    replication_factor: replicas.len().max(1) as u8,
                    deadline_ms: 1_000,
                    value_bytes: 256,
                    replicas,
                    zones: &zones,
                    zone: zones[0].as_ref(),
                };
                let what = || format!("about a {} at {level} with {} replicas", operation.as_str(), replicas.len());
                if deterministic {
                    let _ = pair.agree(what, |instance| instance.decide(&question))?;
                } else {
                    let _ = pair.ask(false, |instance| instance.decide(&question))?;
                }
            }
        }
    }
    Ok(())
}

fn probe_routing(pair: &mut Pair<'_>) -> Result<(), ProbeError> {
    let long = [b'k'; witan_kernel::limit::KEY_BYTES];
    let keys: [&[u8]; 8] = [b"a", b"user:1", b"{tag}.x", b"foo{}{bar}", b"{{x}}", b"{", b"\xff\x00", &long];
    let state = ReplicaState { reachable: true, latency_p50_us: 400, latency_p99_us: 2_000, in_flight: 3 };
    let (near, far) = (Zone::new("zone-1")?, Zone::new("zone-2")?);
    let candidate = |node, zone| NodeId::new(node).map(|node| ReadReplica { node, state, load: 2, zone });
    let candidates =
        [candidate("node-1", Some(near.clone()))?, candidate("node-2", Some(far))?, candidate("node-3", None)?];
    for key in keys {
        let shown = || format!("for the key {:?}", text(key));
        let _ = pair.agree(|| format!("{} for its partition", shown()), |instance| instance.partition_key(key))?;
        let _ = pair
            .ask(false, |instance| instance.prefer(key, &candidates, Some(&near)))
            .map_err(ProbeError::asked(shown))?;
    }
    // Each key once more, now that the plugin has seen all the others.
    for key in keys.iter().rev() {
        let _ = pair.agree(|| format!("for the key {:?}", text(key)), |instance| instance.partition_key(key))?;
    }
    Ok(())
}

fn probe_resolver(pair: &mut Pair<'_>, more: &[Bytes]) -> Result<(), ProbeError> {
    let samples = pair.ask(false, |instance| instance.samples())?.map_err(Fault::Declined)?;
    let mut values: Vec<Bytes> = samples.into_iter().filter(|v| v.len() <= SAMPLE_BYTES).take(SAMPLES).collect();
    values.extend(COMMON.map(Bytes::from_static));
    values.extend(more.iter().filter(|value| value.len() <= SAMPLE_BYTES).cloned());
    let mut laws = Laws { pair, asked: Vec::new(), kept: 0 };
    for (i, a) in values.iter().enumerate() {
        for b in &values[i + 1..] {
            for (first, second) in [(1, 1), (1, 2), (2, 1)] {
                laws.check_pair(&sibling(a, first), &sibling(b, second))?;
            }
        }
    }
    let mut cases = Cases(0x9e37_79b9_7f4a_7c15);
    for _ in 0..TRIPLES {
        let [a, b, c] = [(); 3].map(|()| sibling(&values[cases.below(values.len())], 1 + cases.below(3) as u64));
        laws.check_triple(&a, &b, &c)?;
    }
    laws.ask_all_again()
}

fn sibling(value: &Bytes, time: u64) -> Sibling {
    Sibling { value: value.clone(), time }
}

/// A pseudo-random generator (xorshift) with a fixed seed: every probe tries the same cases, so a refusal can be reproduced.
struct Cases(u64);

impl Cases {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Checks the laws of verdicts. A verdict of `None` is keep-all: it merges nothing, so only the order must not matter.
struct Laws<'a, 'b> {
    pair: &'a mut Pair<'b>,
    /// Verdicts of the first instance, to be compared with those of the second.
    asked: Vec<(Vec<Sibling>, Option<Sibling>)>,
    /// Bytes of the verdicts in `asked`.
    kept: usize,
}

impl Laws<'_, '_> {
    fn check_pair(&mut self, a: &Sibling, b: &Sibling) -> Result<(), ProbeError> {
        let ab = self.resolve(&[a, b])?;
        self.same("commutative", &[a, b], &ab, &[b, a])?;
        let Some(ab) = ab else { return Ok(()) };
        let verdict = Some(ab.clone());
        self.same("idempotent", &[a, b], &verdict, &[&ab, &ab])?;
        self.same("idempotent", &[a, b], &verdict, &[&ab, a])?;
        self.same("idempotent", &[a, b], &verdict, &[b, &ab])
    }

    fn check_triple(&mut self, a: &Sibling, b: &Sibling, c: &Sibling) -> Result<(), ProbeError> {
        let whole = self.resolve(&[a, b, c])?;
        self.same("commutative", &[a, b, c], &whole, &[c, a, b])?;
        if let Some(ab) = self.resolve(&[a, b])? {
            self.same("associative", &[a, b, c], &whole, &[&ab, c])?;
        }
        if let Some(bc) = self.resolve(&[b, c])? {
            self.same("associative", &[a, b, c], &whole, &[a, &bc])?;
        }
        Ok(())
    }

    /// The verdict on `other` must have the value of `expected`, which was the verdict on `siblings`.
    fn same(
        &mut self,
        law: &'static str,
        siblings: &[&Sibling],
        expected: &Option<Sibling>,
        other: &[&Sibling],
    ) -> Result<(), ProbeError> {
        let found = self.resolve(other)?;
        if found.as_ref().map(|s| &s.value) == expected.as_ref().map(|s| &s.value) {
            return Ok(());
        }
        Err(ProbeError::Law {
            law,
            siblings: shown(siblings),
            verdict: shown_verdict(expected),
            others: shown(other),
            other: shown_verdict(&found),
        })
    }

    fn resolve(&mut self, siblings: &[&Sibling]) -> Result<Option<Sibling>, ProbeError> {
        let siblings: Vec<Sibling> = siblings.iter().map(|&sibling| sibling.clone()).collect();
        let verdict = self.ask_twice(&siblings)?;
        self.kept += verdict.as_ref().map_or(0, |verdict| verdict.value.len());
        self.asked.push((siblings, verdict.clone()));
        if self.kept > KEPT_BYTES {
            self.ask_all_again()?;
        }
        Ok(verdict)
    }

    fn ask_twice(&mut self, siblings: &[Sibling]) -> Result<Option<Sibling>, ProbeError> {
        let first = ask(self.pair, false, siblings)?;
        if ask(self.pair, false, siblings)? == first {
            return Ok(first);
        }
        let siblings = shown(&siblings.iter().collect::<Vec<_>>());
        Err(ProbeError::NotDeterministic { siblings, outcome: "two verdicts" })
    }

    /// The other instance, asked in another order, must give the same verdicts: one by one, or several with one call if the resolver's
    /// version of the interface has such a call.
    fn ask_all_again(&mut self) -> Result<(), ProbeError> {
        while !self.asked.is_empty() {
            let mut some = self.asked.split_off(self.asked.len().saturating_sub(AT_ONCE));
            some.reverse();
            let (siblings, verdicts): (Vec<Vec<Sibling>>, Vec<Option<Sibling>>) = some.into_iter().unzip();
            let again = ask_many(self.pair, &siblings)?;
            let other = siblings.iter().zip(&verdicts).zip(&again).find(|((_, verdict), again)| verdict != again);
            if let Some(((siblings, _), _)) = other {
                let siblings = shown(&siblings.iter().collect::<Vec<_>>());
                return Err(ProbeError::NotDeterministic { siblings, outcome: "another verdict in another instance" });
            }
        }
        self.kept = 0;
        Ok(())
    }
}

/// The verdict of one of the instances.
fn ask(pair: &mut Pair<'_>, second: bool, siblings: &[Sibling]) -> Result<Option<Sibling>, ProbeError> {
    let question = question(siblings)?;
    let asked = pair
        .ask(second, |instance| instance.resolve(&question))
        .map_err(ProbeError::asked(|| format!("about {}", shown(&siblings.iter().collect::<Vec<_>>()))))?;
    Ok(replacement(siblings, asked))
}

/// The verdicts of the second instance.
fn ask_many(pair: &mut Pair<'_>, siblings: &[Vec<Sibling>]) -> Result<Vec<Option<Sibling>>, ProbeError> {
    let questions = siblings.iter().map(|siblings| question(siblings)).collect::<Result<Vec<_>, _>>()?;
    let at_once = pair
        .ask(true, |instance| instance.resolve_many(&questions))
        .map_err(ProbeError::asked(|| format!("{} questions at once", questions.len())))?;
    match at_once.map_err(Fault::Declined)? {
        Some(verdicts) => Ok(siblings.iter().zip(verdicts).map(|(them, said)| replacement(them, said)).collect()),
        None => siblings.iter().map(|siblings| ask(pair, true, siblings)).collect(),
    }
}

fn question(siblings: &[Sibling]) -> Result<ResolverQuestion, Invalid> {
    Ok(ResolverQuestion { key: Key::new("probe")?, siblings: siblings.to_vec() })
}

/// The sibling that replaces all others; `None` when all are kept, as they are when a resolver declines.
fn replacement(siblings: &[Sibling], said: Result<Verdict, Declined>) -> Option<Sibling> {
    let newest = siblings.iter().map(|sibling| sibling.time).max().unwrap_or(0);
    match said {
        Ok(Verdict::Pick(index)) => siblings.get(index).cloned(),
        Ok(Verdict::Merged(value)) => Some(Sibling { value, time: newest }),
        Ok(Verdict::KeepAll) | Err(_) => None,
    }
}

fn text(bytes: &[u8]) -> String {
    shorten(&String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]))
}

fn shown(siblings: &[&Sibling]) -> String {
    let each = siblings.iter().map(|sibling| format!("{:?} of time {}", text(&sibling.value), sibling.time));
    format!("[{}]", each.collect::<Vec<_>>().join(", "))
}

fn shown_verdict(verdict: &Option<Sibling>) -> String {
    match verdict {
        Some(sibling) => format!("{:?}", text(&sibling.value)),
        None => "keep-all".into(),
    }
}
