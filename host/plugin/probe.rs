//! Asking a plugin before anything depends on its answers: it must answer within its limits, the same every time, and a
//! resolver's verdicts must keep the laws that make them safe to ask for anywhere, in any order and more than once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::hook::{Hook, Operation, PolicyQuestion, ReplicaState, ResolverQuestion, Sibling, Verdict};
use witan_kernel::name::{Key, NodeId};
use witan_kernel::tenant::Level;

use crate::guest::thread_cpu;
use crate::instance::{Fault, Instance, shorten};
use crate::metrics::Counters;
use crate::slot::Plan;

/// CPU time of one plugin's probe.
const PROBE: Duration = Duration::from_secs(5);
/// Its wall time, however little of it the thread was let run: what else is to be changed waits meanwhile.
const PROBE_WALL: Duration = Duration::from_secs(60);
/// Samples of a resolver's that are used, and the most bytes of each.
const SAMPLES: usize = 10;
const SAMPLE_BYTES: usize = 64 << 10;
/// Values of ours beside them: what any resolver may meet, whatever it is made for.
const COMMON: [&[u8]; 5] = [b"", b"[1,2]", b"{\"items\":{\"a\":1}}", b"a text", b"\xff\x00\x7f"];
/// Bytes of verdicts that are kept before another instance is asked for them.
const KEPT_BYTES: usize = 64 << 20;
/// Triples of values on which associativity is tried.
const TRIPLES: usize = 120;

/// Probes a plugin under the binding's configuration. `Err` says what it did wrong, with the case.
pub(crate) fn probe(plan: &Plan, hook: Hook, deterministic: bool) -> Result<(), String> {
    let counters = Arc::new(Counters::default());
    let (cpu_until, until) = (thread_cpu() + PROBE, Instant::now() + PROBE_WALL);
    let mut pair = Pair { plan, counters, cpu_until, until, first: None, second: None };
    match hook {
        Hook::ConsistencyPolicy => probe_policy(&mut pair, deterministic),
        Hook::ConflictResolver => probe_resolver(&mut pair),
        Hook::RoutingHook => probe_routing(&mut pair),
    }
}

/// Two instances: what one remembers, the other does not know.
struct Pair<'a> {
    plan: &'a Plan,
    counters: Arc<Counters>,
    /// Of this thread, which asks all of it.
    cpu_until: Duration,
    until: Instant,
    first: Option<Box<Instance>>,
    second: Option<Box<Instance>>,
}

impl Pair<'_> {
    fn ask<T>(
        &mut self,
        second: bool,
        question: impl FnOnce(&mut Instance) -> Result<T, Fault>,
    ) -> Result<Result<T, String>, String> {
        if thread_cpu() > self.cpu_until {
            return Err(format!("its probe took longer than {} s of CPU time", PROBE.as_secs()));
        }
        if Instant::now() > self.until {
            return Err(format!("its probe did not end within {} s", PROBE_WALL.as_secs()));
        }
        let seat = if second { &mut self.second } else { &mut self.first };
        let instance = match seat {
            Some(instance) => instance,
            None => seat.insert(self.plan.start(&self.counters).map_err(|fault| fault.to_string())?),
        };
        match question(instance) {
            Ok(answer) => Ok(Ok(answer)),
            Err(Fault::Declined(reason)) => Ok(Err(reason)),
            Err(Fault::Broken(reason)) => Err(reason),
        }
    }

    /// The answer that the first instance gives, twice, and the second once.
    fn agree<T: PartialEq>(
        &mut self,
        what: impl Fn() -> String,
        question: impl Fn(&mut Instance) -> Result<T, Fault>,
    ) -> Result<Result<T, String>, String> {
        let answer = self.ask(false, &question).map_err(|reason| format!("{reason}, asked {}", what()))?;
        for second in [false, true] {
            if self.ask(second, &question)? != answer {
                return Err(format!("answers differently the second time, asked {}", what()));
            }
        }
        Ok(answer)
    }
}

fn probe_policy(pair: &mut Pair<'_>, deterministic: bool) -> Result<(), String> {
    let well = ReplicaState { reachable: true, latency_p50_us: 400, latency_p99_us: 2_000, in_flight: 3 };
    let slow = ReplicaState { latency_p50_us: 80_000, latency_p99_us: 900_000, in_flight: 4_000, ..well };
    let gone = ReplicaState { reachable: false, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 };
    let worst =
        ReplicaState { reachable: true, latency_p50_us: u32::MAX, latency_p99_us: u32::MAX, in_flight: u32::MAX };
    let views: [&[ReplicaState]; 5] = [&[], &[well; 3], &[well, slow, gone], &[gone; 5], &[worst; 5]];
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

fn probe_routing(pair: &mut Pair<'_>) -> Result<(), String> {
    let long = [b'k'; witan_kernel::limit::KEY_BYTES];
    let keys: [&[u8]; 8] = [b"a", b"user:1", b"{tag}.x", b"foo{}{bar}", b"{{x}}", b"{", b"\xff\x00", &long];
    let state = ReplicaState { reachable: true, latency_p50_us: 400, latency_p99_us: 2_000, in_flight: 3 };
    let node = |name: &str| NodeId::new(name).map_err(|error| error.to_string());
    let nodes = [(node("node-1")?, state), (node("node-2")?, state), (node("node-3")?, state)];
    for key in keys {
        let shown = || format!("for the key {:?}", text(key));
        let _ = pair.agree(|| format!("{} for its partition", shown()), |instance| instance.partition_key(key))?;
        let _ = pair
            .ask(false, |instance| instance.prefer(key, &nodes))
            .map_err(|reason| format!("{reason}, asked {}", shown()))?;
    }
    // Asked again at the end, when it has seen all the others.
    for key in keys.iter().rev() {
        let _ = pair.agree(|| format!("for the key {:?}", text(key)), |instance| instance.partition_key(key))?;
    }
    Ok(())
}

fn probe_resolver(pair: &mut Pair<'_>) -> Result<(), String> {
    let samples = pair.ask(false, |instance| instance.samples())?.map_err(|reason| reason.to_string())?;
    let mut values: Vec<Bytes> = samples.into_iter().filter(|v| v.len() <= SAMPLE_BYTES).take(SAMPLES).collect();
    values.extend(COMMON.map(Bytes::from_static));
    let mut laws = Laws { pair, asked: Vec::new(), kept: 0 };
    for (i, a) in values.iter().enumerate() {
        for b in &values[i + 1..] {
            for (first, second) in [(1, 1), (1, 2), (2, 1)] {
                laws.check_pair(&sibling(a, first), &sibling(b, second))?;
            }
        }
    }
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..TRIPLES {
        let [a, b, c] = [(); 3].map(|()| sibling(&values[dice.below(values.len())], 1 + dice.below(3) as u64));
        laws.check_triple(&a, &b, &c)?;
    }
    laws.ask_all_again()
}

fn sibling(value: &Bytes, time: u64) -> Sibling {
    Sibling { value: value.clone(), time }
}

/// Xorshift: the cases are the same in every probe, so that a refusal can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Checks verdicts. `None` stands for keep-all: nothing collapses there, so only the order must not matter.
struct Laws<'a, 'b> {
    pair: &'a mut Pair<'b>,
    asked: Vec<(Vec<Sibling>, Option<Sibling>)>,
    /// Bytes of the verdicts in `asked`.
    kept: usize,
}

impl Laws<'_, '_> {
    fn check_pair(&mut self, a: &Sibling, b: &Sibling) -> Result<(), String> {
        let ab = self.resolve(&[a, b])?;
        self.same("commutative", &[a, b], &ab, &[b, a])?;
        let Some(ab) = ab else { return Ok(()) };
        let verdict = Some(ab.clone());
        self.same("idempotent", &[a, b], &verdict, &[&ab, &ab])?;
        self.same("idempotent", &[a, b], &verdict, &[&ab, a])?;
        self.same("idempotent", &[a, b], &verdict, &[b, &ab])
    }

    fn check_triple(&mut self, a: &Sibling, b: &Sibling, c: &Sibling) -> Result<(), String> {
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
        law: &str,
        siblings: &[&Sibling],
        expected: &Option<Sibling>,
        other: &[&Sibling],
    ) -> Result<(), String> {
        let found = self.resolve(other)?;
        if found.as_ref().map(|s| &s.value) == expected.as_ref().map(|s| &s.value) {
            return Ok(());
        }
        Err(format!(
            "its verdicts are not {law}: {} gives {}, but {} gives {}",
            shown(siblings),
            shown_verdict(expected),
            shown(other),
            shown_verdict(&found)
        ))
    }

    fn resolve(&mut self, siblings: &[&Sibling]) -> Result<Option<Sibling>, String> {
        let siblings: Vec<Sibling> = siblings.iter().map(|&sibling| sibling.clone()).collect();
        let verdict = self.ask_twice(&siblings)?;
        self.kept += verdict.as_ref().map_or(0, |verdict| verdict.value.len());
        self.asked.push((siblings, verdict.clone()));
        if self.kept > KEPT_BYTES {
            self.ask_all_again()?;
        }
        Ok(verdict)
    }

    fn ask_twice(&mut self, siblings: &[Sibling]) -> Result<Option<Sibling>, String> {
        let first = ask(self.pair, false, siblings)?;
        if ask(self.pair, false, siblings)? == first {
            return Ok(first);
        }
        let refs: Vec<&Sibling> = siblings.iter().collect();
        Err(format!("its verdicts are not deterministic: {} gives two verdicts", shown(&refs)))
    }

    /// Another instance, asked in another order, must say the same.
    fn ask_all_again(&mut self) -> Result<(), String> {
        while let Some((siblings, verdict)) = self.asked.pop() {
            if ask(self.pair, true, &siblings)? != verdict {
                let refs: Vec<&Sibling> = siblings.iter().collect();
                return Err(format!(
                    "its verdicts are not deterministic: {} gives another verdict in another instance",
                    shown(&refs)
                ));
            }
        }
        self.kept = 0;
        Ok(())
    }
}

/// The one sibling that stands for all; `None` where all stay. A resolver that declines keeps all.
fn ask(pair: &mut Pair<'_>, second: bool, siblings: &[Sibling]) -> Result<Option<Sibling>, String> {
    let key = Key::new("probe").map_err(|error| error.to_string())?;
    let question = ResolverQuestion { key, siblings: siblings.to_vec() };
    let asked = pair.ask(second, |instance| instance.resolve(&question)).map_err(|reason| {
        let refs: Vec<&Sibling> = siblings.iter().collect();
        format!("{reason}, asked about {}", shown(&refs))
    })?;
    let newest = siblings.iter().map(|sibling| sibling.time).max().unwrap_or(0);
    Ok(match asked {
        Ok(Verdict::Pick(index)) => siblings.get(index).cloned(),
        Ok(Verdict::Merged(value)) => Some(Sibling { value, time: newest }),
        Ok(Verdict::KeepAll) | Err(_) => None,
    })
}

fn text(bytes: &[u8]) -> String {
    shorten(&String::from_utf8_lossy(&bytes[..bytes.len().min(60)]))
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
