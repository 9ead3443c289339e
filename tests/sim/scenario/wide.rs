//! Scenarios with other replication factors, levels, orderings, plugins, sizes and kinds of faults than the usual ones.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use witan_kernel::tenant::{ConflictMode, Level, Ordering, ReadRepair};

use super::{Act, Cast, FINALE, Manner, OVERTURE, Scenario, play};
use crate::nemesis::{Action, Machines, Storm, Weather, storm};
use crate::plugins::Resolver;

/// Keys with one or two replicas, on slow disks that lose power: what one read has shown must still be there for the next.
pub(super) fn lone(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        (cast.keys, cast.tenant.replication_factor) = (1, rng.random_range(1..=2));
    }
    scenario.nodes = 3;
    scenario.manner = Manner { reads: 600, pause_ms: 15, ..scenario.manner };
    let weather = Weather { slow_disks: 6, crashes: 4, power_cuts: 2, unsyncable: 1, holds: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 110);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Every replication factor, and levels that differ from one operation to the next.
pub(super) fn levels(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.nodes = 5;
    for cast in &mut scenario.casts {
        cast.keys = 1;
        cast.tenant.replication_factor = *[2, 3, 4, 5].choose(rng).expect("not empty");
        cast.tenant.default_level = *[Level::One, Level::Quorum, Level::All].choose(rng).expect("not empty");
        cast.tenant.read_repair = if rng.random() { ReadRepair::Blocking } else { ReadRepair::Async };
        cast.mixed = 700;
    }
    let weather = Weather { cuts: 5, holds: 3, crashes: 2, full_disks: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 130);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Registers that are ordered by clocks, which agree or do not.
pub(super) fn wallclock(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.truncate(1);
    let cast = &mut scenario.casts[0];
    cast.keys = 2;
    cast.tenant.ordering = Ordering::Clock;
    cast.mixed = if rng.random() { 300 } else { 0 };
    scenario.clocks_agree = rng.random();
    scenario.manner = Manner { named: 300, blind: 150, deletes: 250, ..scenario.manner };
    let jumps = if scenario.clocks_agree { 0 } else { 5 };
    let weather = Weather { cuts: 3, holds: 2, crashes: 1, coordinator_crashes: 1, jumps, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 140);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Consistency policies that answer anything, accept shortfalls, and fail.
pub(super) fn policies(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        cast.policy = true;
        cast.tenant.minimum_level = *[Level::One, Level::Quorum, Level::Quorum].choose(rng).expect("not empty");
        cast.tenant.replication_factor = *[3, 3, 5].choose(rng).expect("not empty");
    }
    scenario.nodes = 5;
    let weather = Weather { cuts: 4, holds: 2, crashes: 2, plugins: 3, full_disks: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 130);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Resolvers that pick one sibling or keep all, and fail.
pub(super) fn verdicts(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    let mut other = scenario.casts[1].clone();
    other.tenant.id = super::tenant("others").id;
    scenario.casts[0] = other;
    for cast in &mut scenario.casts {
        let resolver = *[Resolver::Pick, Resolver::KeepAll].choose(rng).expect("not empty");
        *cast = Cast { keys: 1, sets: false, resolver, ..cast.clone() };
    }
    scenario.manner = Manner { blind: 600, ..scenario.manner };
    let weather = Weather { cuts: 4, holds: 2, coordinator_crashes: 1, plugins: 3, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 140);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// As many siblings as a record may have, and more.
pub(super) fn crowded(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.remove(0);
    let resolver = *[Resolver::None, Resolver::KeepAll].choose(rng).expect("not empty");
    let cast = &mut scenario.casts[0];
    *cast = Cast { keys: 1, sets: false, crowded: true, forgets_names: true, resolver, ..cast.clone() };
    scenario.clients = 4;
    scenario.manner = Manner { patience_ms: 1500, pause_ms: 10, attempts: 2, ..scenario.manner };
    let weather = Weather { cuts: 3, holds: 2, crashes: 1, ..Weather::default() };
    let machines = scenario.machines();
    let acts = vec![
        OVERTURE,
        Act::Storm { operations: 2, storm: storm(rng, machines, weather, 4000, 180) },
        Act::Burst { writes: rng.random_range(22..=30) },
        Act::Storm { operations: 4, storm: storm(rng, machines, weather, 2000, 180) },
        Act::Settle,
        Act::TidyUp,
        Act::Settle,
    ];
    play(scenario, acts)
}

/// Values of up to 150 KB beside small ones: they take different lanes, and overtake each other.
pub(super) fn large(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    scenario.manner = Manner { large: 500, pause_ms: 20, ..scenario.manner };
    let weather =
        Weather { holds: 4, cuts: 3, crashes: 1, slow_disks: 1, coordinator_crashes: 1, ..Weather::default() };
    let operations = rng.random_range(10..=14);
    let storm = storm(rng, scenario.machines(), weather, 3500, 140);
    play(scenario, vec![Act::Calm { operations: 1 }, Act::Storm { operations, storm }, Act::Settle, FINALE])
}

/// One key with many writes, links that deliver what they held back seconds later, and repetitions by other coordinators.
pub(super) fn hot(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.remove(0);
    let cast = &mut scenario.casts[0];
    *cast = Cast { keys: 1, forgets_names: true, ..cast.clone().with_sets(false) };
    (scenario.nodes, scenario.clients) = (3, 4);
    let (named, attempts, patience_ms) = (700, 4, 900);
    scenario.manner =
        Manner { named, attempts, patience_ms, reads: 400, blind: 150, deletes: 80, pause_ms: 10, ..scenario.manner };
    let weather = Weather { holds: 4, cuts: 2, stops: 0, coordinator_crashes: 1, ..Weather::default() };
    let machines = Machines { longest: 4000, ..scenario.machines() };
    let storm = storm(rng, machines, weather, 9000, 350);
    play(scenario, vec![OVERTURE, Act::Storm { operations: 60, storm }, Act::Settle, FINALE])
}

/// Coordinators whose processes are stopped for a while, and then go on with what they were doing.
pub(super) fn stopped(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.stops = true;
    scenario.manner = Manner { patience_ms: 1200, attempts: 4, ..scenario.manner };
    let weather = Weather { stops: 6, cuts: 2, holds: 2, crashes: 1, ..Weather::default() };
    let machines = Machines { longest: 2500, ..scenario.machines() };
    let operations = rng.random_range(18..=26);
    let storm = storm(rng, machines, weather, 4000, 180);
    play(scenario, vec![OVERTURE, Act::Storm { operations, storm }, Act::Settle, FINALE])
}

/// Disks with damaged rows, and disks that fail to read or to sync.
pub(super) fn disks(rng: &mut StdRng, scenario: Scenario) -> Scenario {
    let weather = Weather {
        flips: 4,
        unreadable: 3,
        unsyncable: 3,
        slow_disks: 2,
        crashes: 1,
        full_disks: 1,
        ..Weather::default()
    };
    let storm = scenario.storm(rng, weather, 140);
    play(scenario, vec![OVERTURE, storm, Act::Settle, Act::NoRoom, FINALE])
}

/// Coordinators that cannot reach the metadata store, are answered late, or know of a change that others do not know of.
pub(super) fn views(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.strict = true;
    let weather = Weather { metadata: 5, cuts: 3, crashes: 2, coordinator_crashes: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 140);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// The idempotency store loses steps that it has acknowledged. What replicas remember must do for registers.
pub(super) fn forgetful(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.truncate(1);
    scenario.casts[0].keys = 1;
    scenario.forgetful = true;
    scenario.manner = Manner { named: 900, lost: 150, attempts: 5, patience_ms: 600, pause_ms: 10, ..scenario.manner };
    let weather = Weather { forgets: 5, cuts: 2, holds: 1, coordinator_crashes: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 160);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Clocks that drift by up to a fifth and jump by minutes.
pub(super) fn drifting(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    // Registers only, as in `clocks`.
    scenario.casts.truncate(1);
    let drifts: Storm = (0..scenario.coordinators)
        .map(|coordinator| (0, Action::Drift { coordinator, ppm: rng.random_range(-200_000..=200_000) }))
        .collect();
    // Full disks make single replicas miss what the others have stored.
    let weather = Weather { jumps: 5, cuts: 2, holds: 1, full_disks: 5, coordinator_crashes: 2, ..Weather::default() };
    let machines = Machines { jump: 300_000_000, ..scenario.machines() };
    let acts = vec![
        Act::Storm { operations: 4, storm: drifts },
        Act::Storm { operations: 24, storm: storm(rng, machines, weather, 2500, 200) },
        Act::Settle,
        FINALE,
    ];
    play(scenario, acts)
}

/// Two nodes lose their disks, one just after the other. With five replicas they are filled again; with three, what both had acknowledged
/// is lost, so no read may be answered without them.
pub(super) fn twice(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.strict = true;
    let replicas = *[3, 5].choose(rng).expect("not empty");
    for cast in &mut scenario.casts {
        (cast.keys, cast.tenant.replication_factor) = (1, replicas);
    }
    scenario.nodes = usize::from(replicas);
    scenario.torn = replicas == 3;
    scenario.manner.patience_ms = 800;
    let weather = Weather { cuts: 5, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let first = scenario.storm(rng, weather, 300);
    let quiet = |operations| Act::Storm { operations, storm: Storm::new() };
    let mut acts = vec![OVERTURE, first, Act::WipeBoth, Act::Idle { ms: rng.random_range(0..=1500) }, quiet(6)];
    if scenario.torn {
        acts.extend([Act::TryRepair, quiet(8)]);
    } else {
        acts.extend([Act::Repair, quiet(6), Act::Settle, FINALE]);
    }
    debug_assert!(scenario.casts.iter().any(|cast| cast.tenant.conflict_mode == ConflictMode::Siblings));
    play(scenario, acts)
}

/// A short storm, and then more operations than a node accepts on a lane without having answered: nothing that a storm takes, and nothing
/// that an operation takes, is lost for good.
pub(super) fn busy(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        cast.keys = 4;
    }
    (scenario.nodes, scenario.clients, scenario.latency_ms) = (3, 4, 5);
    scenario.manner.pause_ms = 5;
    let weather = Weather { cuts: 3, holds: 3, slow_disks: 2, ..Weather::default() };
    let storm = storm(rng, scenario.machines(), weather, 1000, 100);
    let mut acts = vec![OVERTURE, Act::Storm { operations: 6, storm }, Act::Settle];
    // Only reads bring back what the lost disk held.
    acts.extend([Act::Wipe, Act::Idle { ms: 1000 }, Act::Settle, Act::Calm { operations: 150 }]);
    play(scenario, acts)
}

/// Disks that take a fifth of a second for each sync, and lose power all the time: what was shown before it was synced is soon gone.
pub(super) fn flicker(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        (cast.keys, cast.tenant.replication_factor) = (1, rng.random_range(1..=3));
    }
    (scenario.nodes, scenario.clients) = (3, 5);
    scenario.manner = Manner { reads: 650, deletes: 50, patience_ms: 1500, pause_ms: 5, ..scenario.manner };
    let weather = Weather { crashes: 6, power_cuts: 3, holds: 1, ..Weather::default() };
    let machines = Machines { longest: 400, ..scenario.machines() };
    let mut storm = storm(rng, machines, weather, 5000, 130);
    let ms = rng.random_range(100..=250);
    (0..scenario.nodes).for_each(|node| storm.insert(0, (0, Action::SlowDisk { node, ms })));
    play(scenario, vec![OVERTURE, Act::Storm { operations: 36, storm }, Act::Settle, FINALE])
}
