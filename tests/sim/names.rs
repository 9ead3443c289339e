//! One hot key of `siblings`: several hundred writes, replicas that only one coordinator reaches, Puts that arrive seconds after their
//! deadline, and repetitions through other coordinators. Few names are kept, so that they overflow as on a much hotter key. Every quorum
//! read is judged, above all those during the storm.
//!
//! These seeds have a count of their own: `WITAN_SIM_NAMES=5000` runs more, `WITAN_SIM_NAMES_SEED=7` prints one.

use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use witan_kernel::fault::{self, Fault};
use witan_kernel::name::TenantId;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, ReadRepair, Tenant};

use crate::nemesis::{Action, Link, Storm};
use crate::play::Verdict;
use crate::scenario::{Act, Manner, Scenario, cast};
use crate::world::lock;
use crate::{from_environment, judge_scenario, on_all_cores};

/// Seeds that every test run plays: a minute on two cores.
const SEEDS: u64 = 30;
/// Seeds within which a search must find a fault.
const FOUND_WITHIN: u64 = 500;
/// Names that replicas keep.
const NAMES: usize = 8;
const NODES: usize = 3;
const COORDINATORS: usize = 3;
/// Seeds from this one on have outages of the idempotency store, of a tenant that proceeds without it. Nothing is promised there once a
/// name is forgotten (nobody knows when the write started), so these seeds only show what the rules for such writes are for.
const OUTAGES: u64 = 1_000_000;
/// Length of the storm, milliseconds.
const STORM_MS: u64 = 8000;

fn scenario(seed: u64) -> Scenario {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x407);
    let mut tenant = Tenant::with_defaults(TenantId::new("hot").expect("a tenant id"), 3, 0);
    tenant.conflict_mode = ConflictMode::Siblings;
    tenant.read_repair = if rng.random() { ReadRepair::Blocking } else { ReadRepair::Async };
    let outages = seed >= OUTAGES;
    if outages {
        tenant.idempotency_outage = IdempotencyOutage::Proceed;
    }
    let jumps = rng.random_bool(0.4);
    let storm = storm(&mut rng, outages, jumps);
    Scenario {
        seed,
        name: "names",
        nodes: NODES,
        coordinators: COORDINATORS,
        clients: 4,
        latency_ms: rng.random_range(4..=15),
        strict: false,
        asks: true,
        first_wiped: 0,
        forgetful: false,
        stops: false,
        clocks_agree: false,
        spare: 0,
        moves: false,
        late_ms: 0,
        copy_rate: 0,
        torn: false,
        heals: None,
        casts: vec![cast(tenant, 1)],
        manner: Manner {
            named: 700,
            lost: 60,
            cancelled: 20,
            weak: 0,
            deletes: 100,
            blind: 350,
            large: 0,
            reads: 350,
            attempts: 5,
            patience_ms: 2500,
            pause_ms: 15,
        },
        acts: vec![
            Act::Calm { operations: 2 },
            Act::Storm { operations: 110, storm },
            Act::Settle,
            Act::Calm { operations: 2 },
        ],
    }
}

/// Mostly links: of one replica to all coordinators but one, or a single one, cut or held. What is held arrives when it ends.
fn storm(rng: &mut StdRng, outages: bool, jumps: bool) -> Storm {
    let mut storm = Storm::new();
    let mut at = 0;
    while at < STORM_MS {
        at += rng.random_range(50..500);
        let (node, coordinator) = (rng.random_range(0..NODES), rng.random_range(0..COORDINATORS));
        let until = at + rng.random_range(50..4000);
        let becomes = if rng.random_bool(0.6) { Link::Held } else { Link::Cut };
        let mut link = |coordinator| {
            storm.push((at, Action::Link { coordinator, node, becomes }));
            storm.push((until, Action::Link { coordinator, node, becomes: Link::Up }));
        };
        match rng.random_range(0..10) {
            0..5 => (0..COORDINATORS).filter(|other| *other != coordinator).for_each(link),
            5..8 => link(coordinator),
            8 if jumps => {
                storm.push((at, Action::Jump { coordinator, micros: rng.random_range(-30_000_000..30_000_000) }))
            }
            8 => {
                storm.push((at, Action::CrashCoordinator { coordinator }));
                storm.push((at + 300, Action::RestartCoordinator { coordinator }));
            }
            _ if outages => {
                storm.push((at, Action::Outage { reserving: 800, settling: 500 }));
                storm.push((at + 1000, Action::Outage { reserving: 0, settling: 0 }));
            }
            _ => {
                storm.push((at, Action::CrashNode { node, survives: 1000 }));
                storm.push((at + 200, Action::RestartNode { node }));
            }
        }
    }
    storm.sort_by_key(|(at, _)| *at);
    storm
}

fn judge(seed: u64, broken: Option<Fault>, verbose: bool) -> Verdict {
    fault::keep_names(NAMES);
    judge_scenario(scenario(seed), broken, verbose)
}

#[test]
fn nothing_comes_back_on_a_hot_key() {
    if let Some(seed) = from_environment("WITAN_SIM_NAMES_SEED") {
        let verdict = judge(seed, crate::chosen_fault(), true);
        assert!(verdict.violations.is_empty(), "seed {seed}: {:#?}", verdict.violations);
        return;
    }
    let failed: Mutex<Vec<u64>> = Mutex::default();
    let operations: Mutex<usize> = Mutex::default();
    on_all_cores(from_environment("WITAN_SIM_NAMES").unwrap_or(SEEDS), |seed| {
        let verdict = judge(seed, crate::chosen_fault(), false);
        *lock(&operations) += verdict.measured.operations;
        if let Some(violation) = verdict.violations.first() {
            println!(
                "seed {seed} fails: {violation}\n  replay: WITAN_SIM_NAMES_SEED={seed} cargo test -p witan-sim hot_key"
            );
            lock(&failed).push(seed);
        }
    });
    println!("{} operations", lock(&operations));
    assert!(lock(&failed).is_empty(), "{:?}", lock(&failed));
}

/// Faults that show on a hot key, each with the seed at which it was found.
const RECORDED: &[(Fault, u64)] = &[
    (Fault::RepeatedUnasked, 6),
    (Fault::AskedWithoutPin, 26),
    (Fault::HorizonIgnored, 4),
    (Fault::UnpinnedEarly, 76),
    (Fault::UnreservedSentAsFirst, OUTAGES + 2),
];

/// Faults whose rule needs a coincidence that random histories do not have within reason: the kernel's tests play it by hand, and fail
/// with the fault (`names.rs`, `siblings_model.rs`).
const BY_HAND: [Fault; 4] = [Fault::PinsUntold, Fault::AnswerTrimmed, Fault::NewestIgnored, Fault::OwnDotLeftOut];

/// True for faults that are searched for here, and not in the other scenarios.
pub(crate) fn is_mine(fault: Fault) -> bool {
    RECORDED.iter().any(|(mine, _)| *mine == fault) || BY_HAND.contains(&fault)
}

#[test]
fn every_deliberate_fault_of_names_is_found() {
    let missed: Mutex<Vec<Fault>> = Mutex::default();
    on_all_cores(RECORDED.len() as u64, |number| {
        let (fault, seed) = RECORDED[number as usize];
        match judge(seed, Some(fault), false).violations.first() {
            Some(found) => println!("{fault:?}: found at seed {seed}: {}", found.chars().take(160).collect::<String>()),
            None => lock(&missed).push(fault),
        }
    });
    assert!(lock(&missed).is_empty(), "not found at their recorded seeds: {:?}", lock(&missed));
}

/// Searches for every fault and prints the table of [`RECORDED`]. Takes minutes: started by `cargo xtask sim --faults`.
#[test]
#[ignore = "a search of minutes, started by `cargo xtask sim --faults`"]
fn search_for_every_deliberate_fault_of_names() {
    let within = from_environment("WITAN_SIM_NAMES").unwrap_or(FOUND_WITHIN);
    let chosen = crate::chosen_fault();
    if let Some(fault) = chosen.filter(|fault| BY_HAND.contains(fault)) {
        panic!("{fault:?} is not searched for: the kernel's tests play it by hand, see host/kernel/tests/names.rs");
    }
    let all = RECORDED.iter().map(|(fault, _)| *fault);
    let faults: Vec<Fault> = all.filter(|fault| chosen.is_none_or(|chosen| chosen == *fault)).collect();
    let missed: Mutex<Vec<Fault>> = Mutex::default();
    on_all_cores(faults.len() as u64, |number| {
        let fault = faults[number as usize];
        let from = if fault == Fault::UnreservedSentAsFirst { OUTAGES } else { 0 };
        let fails = |seed: u64, fault| !judge(seed, fault, false).violations.is_empty();
        match (from..from + within).find(|seed| fails(*seed, Some(fault)) && !fails(*seed, None)) {
            Some(seed) => println!("    (Fault::{fault:?}, {seed}),"),
            None => lock(&missed).push(fault),
        }
    });
    assert!(lock(&missed).is_empty(), "not found within {within} seeds: {:?}", lock(&missed));
}
