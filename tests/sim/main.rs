//! Deterministic simulation: real coordinators and storage nodes on virtual machines whose networks, disks, clocks and power fail.
//! The complete history of their clients is then checked.
//!
//! `cargo xtask sim` runs [`SEEDS`] seeds; `--seed 7` or `--seed links:3` runs one and prints every event, `--seeds 5000` runs more,
//! `--scenario crashes` only those of one scenario, `--fault QuorumOffByOne` with that rule broken. (It sets `WITAN_SIM_SEED`,
//! `WITAN_SIM_SEEDS`, `WITAN_SIM_SCENARIO` and `WITAN_SIM_FAULT` for `cargo test -p witan-sim`, which does the same.)
//!
//! Reading order: [`scenario`], [`nemesis`], [`world`], [`stores`], [`plugins`], [`node`], [`heard`], [`simulated`], [`cluster`],
//! [`follower`], [`stage`], [`client`], [`play`], [`repairs`], [`healing`], [`missed`], [`refilled`], [`buried`], [`moves`], [`disks`],
//! [`history`], [`check`], [`oracle`], [`faults`], [`scene`], [`scenes`], [`losses`], [`reports`], [`names`].

// It runs in the same way each time.
#![deny(clippy::disallowed_methods, clippy::iter_over_hash_type)]

mod buried;
mod check;
mod client;
mod cluster;
mod collapses;
mod disks;
mod faults;
mod fences;
mod follower;
mod healing;
mod heard;
mod history;
mod losses;
mod missed;
mod moves;
mod names;
mod nemesis;
mod node;
mod oracle;
mod play;
mod plugins;
mod refilled;
mod repairs;
mod reports;
mod scenario;
mod scene;
mod scenes;
mod simulated;
mod stage;
mod stores;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use witan_kernel::fault::{self, Fault};

use history::Measured;
use play::Verdict;
use scenario::{Play, SHAPES, Scenario};
use world::lock;

/// Default number of seeds to run: 20 of each scenario, about a minute on two cores.
const SEEDS: u64 = 800;

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

/// Runs a play on this thread, with one rule broken or none: the scene of the rule, if there is one.
fn judge(play: Play, broken: Option<Fault>, verbose: bool) -> Verdict {
    match broken.and_then(scenes::of) {
        Some(scene) => judged(play.name(), broken, || scene(play)),
        None => judge_scenario(Scenario::of(play), broken, verbose),
    }
}

/// Runs a scenario on this thread, with one rule broken or none.
fn judge_scenario(scenario: Scenario, broken: Option<Fault>, verbose: bool) -> Verdict {
    judged(scenario.name, broken, || play::play(scenario, verbose))
}

fn judged(name: &'static str, broken: Option<Fault>, played: impl FnOnce() -> Verdict) -> Verdict {
    record_panics();
    fault::set(broken);
    PANICS.with_borrow_mut(Vec::clear);
    let played = catch_unwind(AssertUnwindSafe(played));
    fault::set(None);
    let panics = PANICS.take();
    let mut verdict = played.unwrap_or_else(|_| Verdict {
        scenario: name,
        violations: Vec::new(),
        hash: 0,
        log: String::new(),
        measured: Measured::default(),
        virtual_time: Duration::ZERO,
    });
    verdict.violations.extend(panics.into_iter().map(|panic| format!("panic: {panic}")));
    verdict
}

/// The play that `WITAN_SIM_SEED` names.
fn chosen_play() -> Option<Play> {
    let text = std::env::var("WITAN_SIM_SEED").ok()?;
    Some(Play::parse(&text).unwrap_or_else(|| panic!("WITAN_SIM_SEED={text} is neither a number nor like links:3")))
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
    let names = SHAPES.map(|(name, _)| name);
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
#[derive(Debug, Default, Clone, Copy)]
struct Summary {
    seeds: u64,
    measured: Measured,
    virtual_time: Duration,
    real_time: Duration,
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.measured.operations += other.measured.operations;
        self.measured.disturbed += other.measured.disturbed;
        self.measured.pairs += other.measured.pairs;
        self.virtual_time += other.virtual_time;
        self.real_time += other.real_time;
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seeds, measured: Measured { operations, disturbed, pairs }, virtual_time, real_time } = *self;
        let (of_seeds, of_operations) = (seeds.max(1) as f64, operations.max(1) as f64);
        let (simulated, real) = (virtual_time.as_secs_f64(), real_time.as_secs_f64());
        write!(
            f,
            "{seeds:>4} seeds, {:>4.0} operations a seed, {:>3.0} % meet a fault, {:.1} others at the key meanwhile; \
             {simulated:>6.0} s simulated in {real:>5.1} s, {:.1} seeds a second and core",
            operations as f64 / of_seeds,
            100.0 * disturbed as f64 / of_operations,
            2.0 * pairs as f64 / of_operations,
            of_seeds / real.max(0.001),
        )
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(play) = chosen_play() {
        let verdict = judge(play, chosen_fault(), true);
        assert!(verdict.violations.is_empty(), "{play}: {:#?}", verdict.violations);
        return;
    }
    let count = from_environment("WITAN_SIM_SEEDS").unwrap_or(SEEDS);
    let scenario = chosen_scenario();
    let chosen = |play: &Play| scenario.as_ref().is_none_or(|name| play.name() == name);
    let plays: Vec<Play> = (0..).map(Play::of).filter(chosen).take(count as usize).collect();
    let started = Instant::now();
    let failed: Mutex<Vec<String>> = Mutex::default();
    let summaries: Mutex<BTreeMap<&str, Summary>> = Mutex::default();
    on_all_cores(count, |number| {
        let (play, began) = (plays[number as usize], Instant::now());
        let verdict = judge(play, chosen_fault(), false);
        let (measured, virtual_time) = (verdict.measured, verdict.virtual_time);
        let summary = Summary { seeds: 1, measured, virtual_time, real_time: began.elapsed() };
        lock(&summaries).entry(verdict.scenario).or_default().add(&summary);
        if let Some(violation) = verdict.violations.first() {
            println!("{play} fails: {violation}\n  replay: cargo xtask sim --seed {play}");
            lock(&failed).push(play.to_string());
        }
    });
    let mut total = Summary::default();
    for (scenario, summary) in lock(&summaries).iter() {
        println!("{scenario:>9}: {summary}");
        total.add(summary);
    }
    println!("{:>9}: {total}", "all");
    println!("{count} seeds in {:.1} s", started.elapsed().as_secs_f64());
    let failed = lock(&failed);
    assert!(failed.is_empty(), "{} of {count} seeds fail: {failed:?}", failed.len());
}

#[test]
fn the_same_seed_runs_identically() {
    let diverged: Mutex<Vec<String>> = Mutex::default();
    on_all_cores(from_environment("WITAN_SIM_SAME").unwrap_or(2 * SHAPES.len() as u64), |seed| {
        let play = Play::of(seed);
        let (first, second) = (judge(play, None, false), judge(play, None, false));
        if first.hash != second.hash {
            let mut lines = first.log.lines().zip(second.log.lines());
            let difference = lines.find(|(one, other)| one != other);
            lock(&diverged).push(format!("{play} diverges at {difference:?}"));
        }
    });
    assert!(lock(&diverged).is_empty(), "{:#?}", lock(&diverged));
}

#[test]
fn plays_are_named_by_scenario_and_number() {
    let seed = 2 * SHAPES.len() as u64 + 1;
    assert_eq!(Play::parse(&seed.to_string()), Play::parse("crashes:2"));
    assert_eq!(Play::of(seed).to_string(), "crashes:2");
    assert_eq!(Play::parse("nothing:2"), None);
    assert_eq!(Play::parse("links:x"), None);
}
