//! Deliberate faults: rules that are broken on purpose, to show that the simulation detects it.
//!
//! A search runs seed after seed until a fault is found, which takes minutes. So the seeds at which faults were found are
//! recorded, and every test run replays those. `cargo xtask sim --faults` searches again and prints the table, for use when a
//! change of timing has made a recorded seed run differently.

use std::sync::Mutex;

use witan_kernel::fault::Fault;

use crate::scenario::Play;
use crate::world::lock;
use crate::{chosen_fault, judge, on_all_cores};

/// Number of seeds within which a search must find a fault.
const FOUND_WITHIN: u64 = 500;
/// Number of plays that are tried first, of the scenario in which the broken rule is most visible.
const OF_THE_BEST: u64 = 100;

/// The recorded play in which the fault was found; `None`: it has not been found, so nothing tests its rule.
fn recorded(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::DotsMintedByCoordinator => Some("links:0"),
        Fault::OverwriteInsteadOfMerge => Some("links:0"),
        Fault::AcknowledgeBeforeSync => Some("crashes:0"),
        Fault::WriteIdForgotten => Some("outages:2"),
        Fault::StampRoundSkipped => Some("clocks:0"),
        Fault::VerdictWrittenBack => Some("replaced:1"),
        Fault::QuorumOffByOne => Some("links:0"),
        Fault::ActorReusedAfterWipe => Some("wiped:0"),
        Fault::ContextIgnoredOnDelete => Some("links:0"),
        Fault::NotFoundNotCounted => Some("links:0"),
        Fault::BlockingRepairSkipped => Some("races:3"),
        Fault::StoredStampIgnored => Some("late:8"),
        Fault::AcknowledgedUnrecorded => Some("late:2"),
        Fault::RetryMintsAgain => Some("late:12"),
        Fault::NewStoreBelieved => Some("replaced:7"),
        Fault::NewStoreRecorded => Some("replaced:7"),
        Fault::FactorsUnchecked => Some("grown:0"),
        Fault::LostCalledUnsent => Some("levels:1"),
        Fault::AnswersByTurn => Some("links:0"),
        Fault::ReplyForgotten => Some("races:0"),
        Fault::PermitsKept => Some("busy:0"),
        Fault::ReadsNotGated => Some("lone:38"),
        Fault::FailedSyncAnswered => Some("lone:0"),
        Fault::FailedWriteAnswered => Some("races:0"),
        Fault::RefusalCounted => Some("races:0"),
        Fault::DeadlineCountsAsMet => Some("links:4"),
        Fault::LateCalledUnapplied => Some("levels:1"),
        Fault::LevelIgnored => Some("levels:0"),
        Fault::MinimumIgnored => Some("policies:0"),
        Fault::DeadlineStartsAgain => Some("links:4"),
        Fault::ContextNotAbove => Some("wallclock:4"),
        Fault::TombstoneHasNoStamp => Some("clocks:0"),
        Fault::StampNotRemembered => Some("outages:4"),
        Fault::PutForgetsContext => Some("links:0"),
        Fault::PutDropsAll => Some("links:0"),
        Fault::MintAloneSuffices => Some("links:0"),
        Fault::WriterClaimsRecord => Some("links:0"),
        Fault::CollapseShowsHalf => Some("piled:0"),
        Fault::StaleCountedAsRepaired => Some("links:14"),
        Fault::RepairSendsFirst => Some("links:1"),
        Fault::RepairPermitLeaked => Some("links:0"),
        Fault::FirstAnswerReturned => Some("links:1"),
        Fault::DoubtReleased => Some("links:93"),
        Fault::TakeoverForgotten => Some("hot:6"),
        Fault::DuplicateCalledNew => Some("links:0"),
        Fault::ConflictAccepted => Some("links:0"),
        Fault::OutageIgnored => Some("outages:1"),
        Fault::AbsentNotSwept => Some("replaced:0"),
        Fault::SweepSendsFirst => Some("replaced:22"),
        Fault::LastReplicaNotSwept => Some("replaced:0"),
        Fault::TooFewBelieved => Some("twice:12"),
        Fault::AbsentNotStale => Some("busy:0"),
        Fault::OneStampIsEnough => Some("drifting:4"),
        Fault::UnadmittedStoreCounted => Some("swapped:0"),
        Fault::FillingStoreCounted => Some("swapped:8"),
        Fault::RetiredStoreUsed => Some("swapped:1"),
        Fault::SetBackStoreUsed => Some("copied:0"),
        Fault::BirthOutlivesBoot => Some("restored:0"),
        Fault::EraIgnored => Some("restored:1"),
        Fault::DamageBelieved => Some("damaged:51"),
        Fault::FenceIgnored | Fault::FenceVolatile | Fault::FenceNotAwaited | Fault::EpochOfLater => Some("fenced:0"),
        Fault::BindingUnfenced | Fault::BindingVouchedEarly => Some("fenced:0"),
        Fault::HealingSkipsRange => Some("healing:0"),
        Fault::ReturnUnnoticed => Some("healing:6"),
        Fault::AnswersMiscounted | Fault::OthersUnheard => Some("links:0"),
        // Those of `names` are recorded there.
        Fault::RepeatedUnasked
        | Fault::AskedWithoutPin
        | Fault::PinsUntold
        | Fault::AnswerTrimmed
        | Fault::HorizonIgnored
        | Fault::UnpinnedEarly
        | Fault::NewestIgnored
        | Fault::OwnDotLeftOut
        | Fault::UnreservedSentAsFirst => None,
        other => recorded_in_scenes(other).or_else(|| recorded_of_moves(other)),
    }
}

/// The same, of those that have scenes of their own.
fn recorded_in_scenes(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::MergesNotGated => Some("flicker:0"),
        Fault::SyncCoversLater => Some("lone:0"),
        Fault::FailureUnreported | Fault::FailedAskedFirst | Fault::ForgottenCalledShort | Fault::EventsGoAlone => {
            Some("links:0")
        }
        Fault::StampNotStored => Some("late:0"),
        Fault::UnrepairedBelieved => Some("replaced:0"),
        Fault::DeadlineFromTurn | Fault::ReservationProlonged | Fault::UncanonicalAccepted | Fault::LateAccepted => {
            Some("links:0")
        }
        _ => None,
    }
}

/// The same, of placement changes, of collection, and of what replicas have missed.
fn recorded_of_moves(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::MoveCountsUnion => Some("split:21"),
        Fault::MoveReadsNewOnly => Some("split:1"),
        Fault::MoveReadsOldOnly => Some("split:50"),
        Fault::MoveWritesNewOnly => Some("split:0"),
        Fault::MoveWritesOldOnly => Some("split:1"),
        Fault::MoveNewInForceEarly => Some("split:0"),
        Fault::MoveDeltaSkipped => Some("split:0"),
        Fault::HookInForceEarly => Some("swaps:0"),
        Fault::HookFromNewest => Some("swaps:0"),
        Fault::SwapDeltaSkipped => Some("swaps:74"),
        Fault::SwapLeftoverMisplaced => Some("swaps:1"),
        Fault::CollectUnconditional => Some("buried:27"),
        // The others of collection are found by plays of their own, each of which needs a moment that seeds seldom have:
        // host/upkeep/tests/heal/collect.rs, host/upkeep/tests/moves/faults.rs.
        Fault::CollectByQuorum
        | Fault::CollectWithoutGrace
        | Fault::CollectAskedOnce
        | Fault::CollectDuringMove
        | Fault::CollectWithLeftovers
        | Fault::CollectWithoutEpoch
        | Fault::TombstonesBounce => None,
        // What replicas have missed is made good without a digest, so that no play depends on them: host/node/digest/tests.rs.
        Fault::DigestNotUpdated => None,
        Fault::MissForgotten => Some("missed:23"),
        Fault::MissEndsEarly => Some("missed:13"),
        Fault::MissUnclaimed => Some("missed:211"),
        // Those of copies and of dropped rows are found by plays of their own: host/upkeep/tests/moves/faults.rs, host/node/clear/tests.rs.
        _ => None,
    }
}

/// The scenario in which a broken rule is most visible.
fn best_scenario(fault: Fault) -> &'static str {
    match fault {
        Fault::WriteIdForgotten => "outages",
        Fault::StoredStampIgnored | Fault::RetryMintsAgain | Fault::AcknowledgedUnrecorded => "late",
        Fault::ActorReusedAfterWipe => "wiped",
        Fault::BlockingRepairSkipped => "races",
        Fault::NewStoreBelieved | Fault::NewStoreRecorded | Fault::VerdictWrittenBack => "replaced",
        Fault::FactorsUnchecked => "grown",
        Fault::UnadmittedStoreCounted | Fault::FillingStoreCounted | Fault::RetiredStoreUsed => "swapped",
        Fault::SetBackStoreUsed => "copied",
        Fault::BirthOutlivesBoot | Fault::EraIgnored => "restored",
        Fault::DamageBelieved => "damaged",
        Fault::FenceIgnored | Fault::FenceVolatile | Fault::FenceNotAwaited | Fault::EpochOfLater => "fenced",
        Fault::BindingUnfenced | Fault::BindingVouchedEarly => "fenced",
        Fault::MoveCountsUnion
        | Fault::MoveReadsNewOnly
        | Fault::MoveReadsOldOnly
        | Fault::MoveWritesNewOnly
        | Fault::MoveWritesOldOnly
        | Fault::EnterDropsNothing
        | Fault::StaleEnterDrops
        | Fault::LeaveIgnoresEntry
        | Fault::MoveNewInForceEarly
        | Fault::MoveDeltaSkipped
        | Fault::CopyTakesNothingForLevel
        | Fault::MoveCopyFromOne
        | Fault::MoveCopyToOne
        | Fault::MovePrepareSkipped
        | Fault::LeftoverDroppedUnseen
        | Fault::MoveUnfenced
        | Fault::MoveSkipsTombstones => "split",
        Fault::HookInForceEarly | Fault::HookFromNewest | Fault::SwapDeltaSkipped | Fault::SwapLeftoverMisplaced => {
            "swaps"
        }
        Fault::LevelIgnored | Fault::LateCalledUnapplied => "levels",
        Fault::MinimumIgnored => "policies",
        Fault::ContextNotAbove => "wallclock",
        Fault::PermitsKept => "busy",
        Fault::ReadsNotGated | Fault::SyncCoversLater | Fault::FailedSyncAnswered => "lone",
        Fault::MergesNotGated => "flicker",
        Fault::TooFewBelieved => "twice",
        Fault::UnrepairedBelieved | Fault::SweepSendsFirst => "replaced",
        Fault::StampNotStored => "late",
        Fault::HealingSkipsRange | Fault::ReturnUnnoticed | Fault::DigestNotUpdated => "healing",
        Fault::CollectByQuorum
        | Fault::CollectWithoutGrace
        | Fault::CollectUnconditional
        | Fault::CollectAskedOnce
        | Fault::TombstonesBounce => "buried",
        Fault::MissForgotten | Fault::MissEndsEarly | Fault::MissUnclaimed => "missed",
        Fault::OneStampIsEnough => "drifting",
        Fault::StampNotRemembered => "outages",
        _ => "links",
    }
}

/// The first violation of a play, shortened.
fn found_at(fault: Fault, play: Play) -> Option<String> {
    let verdict = judge(play, Some(fault), false);
    let violation = verdict.violations.first()?;
    Some(format!("{play}: {}", violation.chars().take(160).collect::<String>()))
}

fn chosen() -> Vec<Fault> {
    let here = |fault: &Fault| !crate::names::is_mine(*fault);
    chosen_fault().map_or(Fault::ALL.to_vec(), |fault| vec![fault]).into_iter().filter(here).collect()
}

#[test]
fn every_deliberate_fault_is_found() {
    let missed: Mutex<Vec<Fault>> = Mutex::default();
    let faults = chosen();
    on_all_cores(faults.len() as u64, |number| {
        let fault = faults[number as usize];
        let Some(recorded) = recorded(fault) else {
            println!("{fault:?}: not found by now");
            return;
        };
        match found_at(fault, Play::parse(recorded).expect("a play")) {
            Some(found) => println!("{fault:?}: found at {found}"),
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
    let in_order = std::env::var("WITAN_SIM_IN_ORDER").is_ok();
    on_all_cores(faults.len() as u64, |number| {
        let fault = faults[number as usize];
        // Either as seeds come, which says how many it takes, or starting with those of the scenario in which this rule matters.
        let mut plays: Vec<Play> = (0..FOUND_WITHIN).map(Play::of).collect();
        if !in_order {
            let best = best_scenario(fault);
            let first = (0..OF_THE_BEST).filter_map(|number| Play::parse(&format!("{best}:{number}")));
            plays = first.chain(plays.into_iter().filter(|play| play.name() != best)).collect();
        }
        let tried = plays.into_iter().enumerate();
        match tried.into_iter().find_map(|(tried, play)| Some((tried, play, found_at(fault, play)?))) {
            Some((tried, play, found)) => {
                println!("{fault:?}: found after {} seeds at {found}", tried + 1);
                lock(&table).push((number as usize, format!("        Fault::{fault:?} => Some(\"{play}\"),")));
            }
            None => lock(&missed).push(fault),
        }
    });
    lock(&table).sort();
    lock(&table).iter().for_each(|(_, line)| println!("{line}"));
    assert!(lock(&missed).is_empty(), "not found within {FOUND_WITHIN} seeds: {:?}", lock(&missed));
}
