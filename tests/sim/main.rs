//! Deterministic simulation: real coordinators and storage nodes on virtual machines whose networks, disks, clocks and power fail.
//! The complete history of their clients is then checked.
//!
//! `cargo xtask sim` runs [`SEEDS`] seeds; `--seed 7` runs one and prints every event, `--seeds 5000` runs more, `--scenario
//! crashes` only those of one scenario, `--fault QuorumOffByOne` with that rule broken. (It sets `WITAN_SIM_SEED`,
//! `WITAN_SIM_SEEDS`, `WITAN_SIM_SCENARIO` and `WITAN_SIM_FAULT` for `cargo test -p witan-sim`, which does the same.)
//!
//! Reading order: [`scenario`], [`nemesis`], [`world`], [`cluster`], [`client`], [`play`], [`repairs`], [`disks`], [`damaged`],
//! [`history`], [`check`], [`faults`], [`scenes`], [`hot`].

// It runs in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

mod check;
mod client;
mod cluster;
mod damaged;
mod disks;
mod faults;
mod history;
mod hot;
mod nemesis;
mod play;
mod repairs;
mod scenario;
mod scenes;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use witan_kernel::fault::{self, Fault};

use play::Verdict;
use scenario::Scenario;
use world::lock;

/// Default number of seeds to run.
const SEEDS: u64 = 500;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Records panics: without this, a panic in a task of a simulated machine would be swallowed by its runtime.
fn record_panics() {
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

/// Name of the threads that run seeds; their panics are reported with the seed.
const PLAYER: &str = "player";

/// Runs a seed on this thread, with one rule broken or none.
fn judge(seed: u64, broken: Option<Fault>, verbose: bool) -> Verdict {
    judge_scenario(Scenario::of(seed), broken, verbose)
}

/// Runs a scenario on this thread, with one rule broken or none.
fn judge_scenario(scenario: Scenario, broken: Option<Fault>, verbose: bool) -> Verdict {
    record_panics();
    fault::set(broken);
    PANICS.with_borrow_mut(Vec::clear);
    let seed = scenario.seed;
    let played = catch_unwind(AssertUnwindSafe(|| match broken.and_then(scenes::of) {
        Some(scene) => scene(seed),
        None => play::play(scenario, verbose),
    }));
    fault::set(None);
    let panics = PANICS.take();
    let mut verdict = played.unwrap_or_else(|_| Verdict {
        scenario: "?",
        violations: Vec::new(),
        hash: 0,
        log: String::new(),
        operations: 0,
        virtual_time: Duration::ZERO,
    });
    verdict.violations.extend(panics.into_iter().map(|panic| format!("panic: {panic}")));
    verdict
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// The fault that `WITAN_SIM_FAULT` names.
fn chosen_fault() -> Option<Fault> {
    std::env::var("WITAN_SIM_FAULT").ok().map(|name| {
        let named = Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name);
        named.unwrap_or_else(|| panic!("WITAN_SIM_FAULT={name} is not a fault; use one of {:?}", Fault::ALL))
    })
}

/// The scenario that `WITAN_SIM_SCENARIO` names.
fn chosen_scenario() -> Option<String> {
    let name = std::env::var("WITAN_SIM_SCENARIO").ok()?;
    let names: Vec<&str> = (0..scenario::SHAPES.len() as u64).map(|seed| Scenario::of(seed).name).collect();
    assert!(names.contains(&name.as_str()), "WITAN_SIM_SCENARIO={name} is not a scenario; use one of {names:?}");
    Some(name)
}

/// Calls `each` with the numbers below `count`, on as many threads at a time as there are cores, and each on a fresh thread: state
/// in thread-local variables must not make one seed depend on another.
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

/// Totals over the seeds of one scenario.
#[derive(Debug, Default)]
struct Summary {
    seeds: u64,
    operations: usize,
    virtual_time: Duration,
    real_time: Duration,
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = from_environment("WITAN_SIM_SEED") {
        let verdict = judge(seed, chosen_fault(), true);
        assert!(verdict.violations.is_empty(), "seed {seed} ({}): {:#?}", verdict.scenario, verdict.violations);
        return;
    }
    let count = from_environment("WITAN_SIM_SEEDS").unwrap_or(SEEDS);
    let scenario = chosen_scenario();
    let chosen = |seed: &u64| scenario.as_ref().is_none_or(|name| Scenario::of(*seed).name == name);
    let seeds: Vec<u64> = (0..).filter(chosen).take(count as usize).collect();
    let started = Instant::now();
    let failed: Mutex<Vec<u64>> = Mutex::default();
    let summaries: Mutex<BTreeMap<&str, Summary>> = Mutex::default();
    on_all_cores(count, |number| {
        let (seed, began) = (seeds[number as usize], Instant::now());
        let verdict = judge(seed, chosen_fault(), false);
        let mut summaries = lock(&summaries);
        let summary = summaries.entry(verdict.scenario).or_default();
        summary.seeds += 1;
        summary.operations += verdict.operations;
        summary.virtual_time += verdict.virtual_time;
        summary.real_time += began.elapsed();
        drop(summaries);
        if let Some(violation) = verdict.violations.first() {
            println!("seed {seed} ({}) fails: {violation}\n  replay: cargo xtask sim --seed {seed}", verdict.scenario);
            lock(&failed).push(seed);
        }
    });
    for (scenario, Summary { seeds, operations, virtual_time, real_time }) in lock(&summaries).iter() {
        let (simulated, real) = (virtual_time.as_secs_f64(), real_time.as_secs_f64());
        println!("{scenario:>9}: {seeds} seeds, {operations} operations, {simulated:.0} s simulated in {real:.1} s");
    }
    println!("{count} seeds in {:.1} s", started.elapsed().as_secs_f64());
    let failed = lock(&failed);
    assert!(failed.is_empty(), "{} of {count} seeds fail: {failed:?}", failed.len());
}

#[test]
fn the_same_seed_runs_identically() {
    let diverged: Mutex<Vec<String>> = Mutex::default();
    on_all_cores(from_environment("WITAN_SIM_SAME").unwrap_or(2 * scenario::SHAPES.len() as u64), |seed| {
        let (first, second) = (judge(seed, None, false), judge(seed, None, false));
        if first.hash != second.hash {
            let mut lines = first.log.lines().zip(second.log.lines());
            let difference = lines.find(|(one, other)| one != other);
            lock(&diverged).push(format!("seed {seed} ({}) diverges at {difference:?}", first.scenario));
        }
    });
    assert!(lock(&diverged).is_empty(), "{:#?}", lock(&diverged));
}
