//! Scenarios of stores that are not what they were: other disks, earlier copies, and disks that lose what they have acknowledged.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use witan_upkeep::HealingConfig;

use super::{Act, FINALE, OVERTURE, Scenario, Scene, Why, play};
use crate::nemesis::{Storm, Weather};

/// A node runs on an empty disk for a while (its own is not mounted), and then gets its own disk back.
pub(super) fn swapped(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    let scene = *[Scene::Unmounted, Scene::BackWhileFilling, Scene::BackAfterRepair].choose(rng).expect("not empty");
    disks(&mut scenario);
    play(scenario, vec![OVERTURE, Act::Disks(scene), Act::Settle, FINALE])
}

/// A node comes back with an earlier copy of its disk: a backup, or the snapshot of a volume or of its machine.
pub(super) fn copied(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    disks(&mut scenario);
    let scene = Scene::SetBack { coordinators_too: rng.random() };
    play(scenario, vec![OVERTURE, Act::Disks(scene), Act::Settle, FINALE])
}

/// A copy of the whole cluster is restored.
pub(super) fn restored(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    disks(&mut scenario);
    let scene = Scene::AllRestored { metadata_too: rng.random() };
    play(scenario, vec![OVERTURE, Act::Disks(scene), Act::Settle, FINALE])
}

/// Three nodes, whose stores are compared with those on record, and clients that do not give up early.
fn disks(scenario: &mut Scenario) {
    (scenario.strict, scenario.nodes) = (true, 3);
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    scenario.manner.weak = 0;
}

/// A tenant for which one replica was enough needs a quorum from now on, and a coordinator does not know of it.
pub(super) fn fenced(_: &mut StdRng, mut scenario: Scenario) -> Scenario {
    disks(&mut scenario);
    scenario.casts.truncate(1);
    play(scenario, vec![OVERTURE, Act::Rebind, Act::Fence, Act::Settle, FINALE])
}

/// A node loses acknowledged writes, and is replaced later.
pub(super) fn damaged(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    (scenario.strict, scenario.nodes) = (true, 3);
    // Without reads of everything in between, what a node has lost would be noticed by chance only.
    scenario.manner.reads = 300;
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    let weather = Weather { cuts: 6, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let first = scenario.storm(rng, weather, 300);
    let second = scenario.storm(rng, Weather { cuts: 3, holds: 2, ..Weather::default() }, 500);
    let quiet = |operations| Act::Storm { operations, storm: Storm::new() };
    let acts = vec![
        OVERTURE,
        first,
        Act::Damage,
        Act::Idle { ms: rng.random_range(50..=1500) },
        quiet(6),
        second,
        Act::Wipe,
        Act::Idle { ms: 50 },
        Act::Repair,
        Act::Settle,
        FINALE,
    ];
    play(scenario, acts)
}

/// Replicas miss writes, or lose their disks, and nobody reads or repairs: what coordinators do by themselves must make them level.
pub(super) fn healing(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    // Reads would make replicas level before healing does.
    (scenario.strict, scenario.manner.reads) = (true, 100);
    // A comparison that is routine only once, so that a node that was away must be noticed, or one that finds everything.
    let routine = rng.random();
    let compare_every = Duration::from_secs(if routine { 10 } else { 86_400 });
    let admit_after = Duration::from_secs(2);
    // Mostly, digests alone say what has to be read.
    let scrub_every = if rng.random_bool(0.25) { Duration::from_secs(30) } else { Duration::ZERO };
    scenario.heals = Some(HealingConfig { compare_every, scrub_every, admit_after, ..HealingConfig::default() });
    let trouble = match (routine, rng.random_range(0..3)) {
        (true, 0 | 1) => {
            let weather = Weather { cuts: 5, holds: 2, crashes: 2, coordinator_crashes: 2, ..Weather::default() };
            scenario.storm(rng, weather, 140)
        }
        (_, 2) => Act::Wipe,
        _ => Act::Away { from_all: rng.random() },
    };
    play(scenario, vec![OVERTURE, Act::Calm { operations: 4 }, trouble, Act::Level, FINALE])
}

/// Clients delete what they write, days pass, and what is left of it goes, while links and nodes fail and one node is away for days.
/// Clients go on with contexts of before.
pub(super) fn buried(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    (scenario.strict, scenario.nodes) = (true, 3);
    (scenario.manner.deletes, scenario.manner.reads) = (550, 250);
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    let (compare_every, admit_after) = (Duration::from_secs(5), Duration::from_secs(2));
    scenario.heals = Some(HealingConfig { compare_every, admit_after, ..HealingConfig::default() });
    let mut acts = vec![OVERTURE];
    for _ in 0..rng.random_range(1..=2) {
        let weather = Weather { cuts: 6, holds: 3, crashes: 3, coordinator_crashes: 1, jumps: 1, ..Weather::default() };
        acts.push(scenario.storm(rng, weather, 250));
        if rng.random_bool(0.5) {
            acts.push(Act::Away { from_all: rng.random() });
        }
        acts.push(Act::Pass { hours: rng.random_range(37..=60) });
        acts.push(Act::Idle { ms: rng.random_range(0..=40_000) });
        let weather = Weather { cuts: 5, holds: 5, crashes: 2, coordinator_crashes: 2, ..Weather::default() };
        acts.push(scenario.storm(rng, weather, 300));
    }
    acts.extend([Act::DeleteAll, Act::Pass { hours: 37 }, Act::Gone, FINALE]);
    play(scenario, acts)
}

/// Replicas miss changes in every way there is, and what coordinators have noted must make them level: nothing is compared routinely, once
/// it has been at the beginning.
pub(super) fn missed(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    (scenario.strict, scenario.manner.reads) = (true, 100);
    let compare_every = Duration::from_secs(86_400);
    scenario.heals = Some(HealingConfig { compare_every, ..HealingConfig::default() });
    let relapses = rng.random();
    let trouble = match Why::ALL.get(rng.random_range(0..=Why::ALL.len())) {
        Some(why) => Act::Miss { why: *why, relapses },
        None => {
            // A coordinator that crashes takes with it what operations of its last moment have left undone.
            let weather = Weather {
                cuts: 6,
                holds: 3,
                crashes: 2,
                full_disks: 3,
                slow_disks: 1,
                losses: 1,
                ..Weather::default()
            };
            scenario.storm(rng, weather, 140)
        }
    };
    play(scenario, vec![OVERTURE, Act::Idle { ms: 4000 }, Act::Calm { operations: 4 }, trouble, Act::Level, FINALE])
}

/// A node has an empty disk, and is filled because an operator asks for it and for no other reason, while links, nodes and coordinators
/// fail. Sometimes its own disk is back meanwhile.
pub(super) fn refilled(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    // With everything that several coordinators need for changes: fences, too.
    (scenario.strict, scenario.moves, scenario.nodes) = (true, true, 3);
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    let (compare_every, admit_after) = (Duration::from_secs(86_400), Duration::ZERO);
    // Slow enough for a part of the plays that something happens while it is filled.
    let bytes_per_second = *[64, 1024, 4 << 20].choose(rng).expect("not empty");
    let config = HealingConfig { compare_every, admit_after, bytes_per_second, ..HealingConfig::default() };
    scenario.heals = Some(HealingConfig { scrub_every: Duration::ZERO, ..config });
    let weather = Weather { cuts: 4, holds: 2, crashes: 2, coordinator_crashes: 2, ..Weather::default() };
    let Act::Storm { operations, storm } = scenario.storm(rng, weather, 300) else { unreachable!("a storm") };
    let back_after_ms = rng.random_bool(0.4).then(|| rng.random_range(200..=25_000));
    let replaced = Act::Replace { operations, storm, back_after_ms };
    play(scenario, vec![OVERTURE, Act::Calm { operations: 3 }, replaced, Act::Level, Act::Settle, FINALE])
}
