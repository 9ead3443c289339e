//! Deterministic simulation: real coordinators and storage nodes on virtual machines, whose networks, disks, clocks and power
//! fail, under clients whose whole history is then checked.
//!
//! `cargo test --test sim` plays [`SEEDS`] seeds. `WITAN_SIM_SEEDS=5000` plays more, `WITAN_SIM_SEED=7` plays one and shows
//! all that happens; with `WITAN_SIM_FAULT=QuorumOffByOne` it is played with that rule broken. Reading order: [`scenario`], [`nemesis`], [`world`], [`cluster`], [`client`], [`play`], [`history`],
//! [`check`].

mod check;
mod client;
mod cluster;
mod history;
mod nemesis;
mod play;
mod scenario;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use witan_kernel::fault::{self, Fault};

use play::Verdict;
use world::lock;

/// Seeds played when nothing else is said.
const SEEDS: u64 = 500;
/// Seeds within which a deliberate fault must be found.
const FOUND_WITHIN: u64 = 500;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A panic within a task of a simulated machine would go unnoticed: its runtime swallows it.
fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            if std::thread::current().name() != Some(PLAYER) {
                before(info);
            }
        }));
    });
}

const PLAYER: &str = "player";

/// Plays a seed on this thread, with a rule broken or none.
fn judge(seed: u64, broken: Option<Fault>, verbose: bool) -> Verdict {
    notice_panics();
    fault::set(broken);
    PANICS.with_borrow_mut(Vec::clear);
    let played = catch_unwind(AssertUnwindSafe(|| play::play(seed, verbose)));
    fault::set(None);
    let panics = PANICS.take();
    let mut verdict = played.unwrap_or_else(|_| Verdict {
        scenario: "?",
        violations: Vec::new(),
        hash: 0,
        log: String::new(),
        operations: 0,
        virtual_time: std::time::Duration::ZERO,
    });
    verdict.violations.extend(panics.into_iter().map(|panic| format!("panic: {panic}")));
    verdict
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// The fault that the environment names.
/// The scenario, by its place among them, in which a broken rule shows most.
fn shape_for(fault: Fault) -> u64 {
    match fault {
        Fault::WriteIdForgotten => 3,
        Fault::StoredStampIgnored | Fault::RetryMintsAgain | Fault::AcknowledgedUnrecorded => 4,
        Fault::ActorReusedAfterWipe => 5,
        Fault::BlockingRepairSkipped => 9,
        Fault::NewStoreBelieved | Fault::NewStoreRecorded | Fault::VerdictWrittenBack => 10,
        Fault::FactorsUnchecked => 11,
        _ => 0,
    }
}

fn one_fault() -> Option<Fault> {
    std::env::var("WITAN_SIM_FAULT").ok().map(|name| {
        let named = Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name);
        named.unwrap_or_else(|| panic!("there is no fault {name}"))
    })
}

/// Hands numbers below `count` to as many threads as there are cores, each to a thread that has played nothing before:
/// what a thread remembers must not tell one seed from another.
fn on_all_cores(count: u64, each: impl Fn(u64) + Sync) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    std::thread::scope(|inner| {
                        let player = std::thread::Builder::new().name(PLAYER.to_owned()).stack_size(16 << 20);
                        player.spawn_scoped(inner, || each(number)).expect("starts a thread");
                    });
                }
            });
        }
    });
}

/// Seeds of one scenario, their operations, and the seconds that they took: virtual ones and real ones.
type Summary = (u64, usize, f64, f64);

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = from_environment("WITAN_SIM_SEED") {
        let verdict = judge(seed, one_fault(), true);
        assert!(verdict.violations.is_empty(), "seed {seed} ({}): {:#?}", verdict.scenario, verdict.violations);
        return;
    }
    let seeds = from_environment("WITAN_SIM_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let failed: Mutex<Vec<(u64, Verdict)>> = Mutex::default();
    let summary: Mutex<BTreeMap<&str, Summary>> = Mutex::default();
    on_all_cores(seeds, |seed| {
        let began = Instant::now();
        let verdict = judge(seed, None, false);
        let mut summary = lock(&summary);
        let of = summary.entry(verdict.scenario).or_default();
        of.0 += 1;
        of.1 += verdict.operations;
        of.2 += verdict.virtual_time.as_secs_f64();
        of.3 += began.elapsed().as_secs_f64();
        if !verdict.violations.is_empty() {
            println!(
                "seed {seed} ({}) fails: {}\n  replay: WITAN_SIM_SEED={seed} cargo test --test sim -- --nocapture no_seed",
                verdict.scenario, verdict.violations[0]
            );
            lock(&failed).push((seed, verdict));
        }
    });
    for (scenario, (count, operations, virtual_s, real_s)) in lock(&summary).iter() {
        println!(
            "{scenario:>9}: {count} seeds, {operations} operations, {virtual_s:.0} s of virtual time in {real_s:.1} s"
        );
    }
    println!("{seeds} seeds in {:.1} s", started.elapsed().as_secs_f64());
    let failed = lock(&failed);
    let numbers: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    assert!(failed.is_empty(), "{} of {seeds} seeds fail: {numbers:?}", failed.len());
}

#[test]
fn the_same_seed_goes_the_same_way() {
    let strayed: Mutex<Vec<String>> = Mutex::default();
    on_all_cores(24, |seed| {
        let (first, second) = (judge(seed, None, false), judge(seed, None, false));
        if first.hash != second.hash {
            let mut lines = first.log.lines().zip(second.log.lines());
            let parting = lines.find(|(one, other)| one != other);
            lock(&strayed).push(format!("seed {seed} ({}) parts at {parting:?}", first.scenario));
        }
    });
    assert!(lock(&strayed).is_empty(), "{:#?}", lock(&strayed));
}

#[test]
fn every_deliberate_fault_is_found() {
    let missed: Mutex<Vec<Fault>> = Mutex::default();
    let faults = one_fault().map_or(Fault::ALL.to_vec(), |fault| vec![fault]);
    on_all_cores(faults.len() as u64, |number| {
        let broken = faults[number as usize];
        // The same seeds, whatever their order: those come first that go where this rule matters.
        let telling = |seed: &u64| *seed % scenario::SHAPES.len() as u64 != shape_for(broken);
        let mut seeds: Vec<u64> = (0..FOUND_WITHIN).collect();
        seeds.sort_by_key(telling);
        let found = seeds.into_iter().find_map(|seed| {
            let verdict = judge(seed, Some(broken), false);
            verdict.violations.first().map(|violation| (seed, verdict.scenario, violation.clone()))
        });
        match found {
            Some((seed, scenario, violation)) => {
                let shortened: String = violation.chars().take(160).collect();
                println!("{broken:?}: found at seed {seed} ({scenario}): {shortened}");
            }
            None => lock(&missed).push(broken),
        }
    });
    assert!(lock(&missed).is_empty(), "not found within {FOUND_WITHIN} seeds: {:?}", lock(&missed));
}
