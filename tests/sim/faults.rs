//! Deliberate faults: rules that are broken on purpose, to show that the simulation detects it.
//!
//! A search runs seed after seed until a fault is found, which takes minutes. So the seeds at which faults were found are
//! recorded, and every test run replays those. `cargo xtask sim --faults` searches again and prints the table, for use when a
//! change of timing has made a recorded seed run differently.

use std::sync::Mutex;

use witan_kernel::fault::Fault;

use crate::scenario::{DAMAGED, SHAPES};
use crate::world::lock;
use crate::{chosen_fault, judge, on_all_cores};

/// Number of seeds within which a search must find a fault.
const FOUND_WITHIN: u64 = 1000;

/// The recorded seed at which the fault was found.
fn recorded(fault: Fault) -> u64 {
    match fault {
        Fault::DotsMintedByCoordinator => 15,
        Fault::OverwriteInsteadOfMerge => 15,
        Fault::AcknowledgeBeforeSync => 13,
        Fault::WriteIdForgotten => 108,
        Fault::StampRoundSkipped => 2,
        Fault::VerdictWrittenBack => 10,
        Fault::QuorumOffByOne => 0,
        Fault::ActorReusedAfterWipe => 5,
        Fault::ContextIgnoredOnDelete => 0,
        Fault::NotFoundNotCounted => 0,
        Fault::BlockingRepairSkipped => 24,
        Fault::StoredStampIgnored => 874,
        Fault::AcknowledgedUnrecorded => 4,
        Fault::RetryMintsAgain => 64,
        Fault::NewStoreBelieved => 55,
        Fault::NewStoreRecorded => 55,
        Fault::FactorsUnchecked => 11,
        Fault::UnadmittedStoreCounted => 12,
        Fault::FillingStoreCounted => 117,
        Fault::RetiredStoreUsed => 27,
        Fault::SetBackStoreUsed => 13,
        Fault::BirthOutlivesBoot => 14,
        Fault::DamageBelieved => DAMAGED + 65,
        // In scenes of their own.
        Fault::DeadlineFromTurn => 0,
        Fault::ReservationProlonged => 0,
        // Those of `hot` are recorded there.
        _ => u64::MAX,
    }
}

/// The scenario, by its index in [`SHAPES`], in which a broken rule is most visible.
fn best_scenario(fault: Fault) -> u64 {
    match fault {
        Fault::WriteIdForgotten => 3,
        Fault::StoredStampIgnored | Fault::RetryMintsAgain | Fault::AcknowledgedUnrecorded => 4,
        Fault::ActorReusedAfterWipe => 5,
        Fault::BlockingRepairSkipped => 9,
        Fault::NewStoreBelieved | Fault::NewStoreRecorded | Fault::VerdictWrittenBack => 10,
        Fault::FactorsUnchecked => 11,
        Fault::UnadmittedStoreCounted | Fault::FillingStoreCounted | Fault::RetiredStoreUsed => 12,
        Fault::SetBackStoreUsed => 13,
        Fault::BirthOutlivesBoot => 14,
        _ => 0,
    }
}

/// The first violation at a seed, shortened.
fn found_at(fault: Fault, seed: u64) -> Option<String> {
    let verdict = judge(seed, Some(fault), false);
    let violation = verdict.violations.first()?;
    Some(format!("{} ({}): {}", seed, verdict.scenario, violation.chars().take(160).collect::<String>()))
}

fn chosen() -> Vec<Fault> {
    let here = |fault: &Fault| !crate::hot::is_mine(*fault);
    chosen_fault().map_or(Fault::ALL.to_vec(), |fault| vec![fault]).into_iter().filter(here).collect()
}

#[test]
fn every_deliberate_fault_is_found() {
    let missed: Mutex<Vec<Fault>> = Mutex::default();
    let faults = chosen();
    on_all_cores(faults.len() as u64, |number| {
        let fault = faults[number as usize];
        match found_at(fault, recorded(fault)) {
            Some(found) => println!("{fault:?}: found at seed {found}"),
            None => lock(&missed).push(fault),
        }
    });
    let missed = lock(&missed);
    assert!(
        missed.is_empty(),
        "not found at their recorded seeds: {missed:?}. If timing has changed, search again with `cargo xtask sim --faults` and record \
         what it prints in tests/sim/faults.rs; if a fault is not found there either, nothing tests its rule any longer"
    );
}

/// Searches for every fault and prints the table of [`recorded`]. Takes minutes: started by `cargo xtask sim --faults`.
#[test]
#[ignore = "a search of minutes, started by `cargo xtask sim --faults`"]
fn search_for_every_deliberate_fault() {
    let missed: Mutex<Vec<Fault>> = Mutex::default();
    let table: Mutex<Vec<(usize, String)>> = Mutex::default();
    let faults = chosen();
    on_all_cores(faults.len() as u64, |number| {
        let fault = faults[number as usize];
        // All seeds, starting with those of the scenario in which this rule matters.
        let first = if fault == Fault::DamageBelieved { DAMAGED } else { 0 };
        let mut seeds: Vec<u64> = (first..first + FOUND_WITHIN).collect();
        seeds.sort_by_key(|seed| *seed % SHAPES.len() as u64 != best_scenario(fault));
        match seeds.into_iter().find_map(|seed| Some((seed, found_at(fault, seed)?))) {
            Some((seed, found)) => {
                println!("{fault:?}: found at seed {found}");
                lock(&table).push((number as usize, format!("        Fault::{fault:?} => {seed},")));
            }
            None => lock(&missed).push(fault),
        }
    });
    lock(&table).sort();
    lock(&table).iter().for_each(|(_, line)| println!("{line}"));
    assert!(lock(&missed).is_empty(), "not found within {FOUND_WITHIN} seeds: {:?}", lock(&missed));
}
