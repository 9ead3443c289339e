//! Scenarios of one kind of fault each, and of all of them together.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Tenant};

use super::{Act, Cast, FINALE, FORGOTTEN_MS, Manner, OVERTURE, Scenario, play, tenant};
use crate::nemesis::{Action, Machines, Storm, Weather, storm};

/// Links are cut, delayed and lossy.
pub(super) fn links(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.manner.weak = rng.random_range(0..=100);
    let weather = Weather { cuts: 6, holds: 4, losses: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 150);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Processes crash, and come back with the data that they had synced.
pub(super) fn crashes(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.manner.weak = rng.random_range(0..=100);
    let weather =
        Weather { cuts: 1, crashes: 4, coordinator_crashes: 4, power_cuts: 1, slow_disks: 2, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 160);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Wall clocks are wrong, and jump.
pub(super) fn clocks(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    // Registers only: the guarantee for retries of siblings holds only within the window of `recent`.
    scenario.casts.truncate(1);
    scenario.casts[0].keys = 2;
    let jump = *[4_000_000, 60_000_000, 600_000_000].choose(rng).expect("not empty");
    let machines = Machines { jump, ..scenario.machines() };
    let weather = Weather { jumps: 6, cuts: 2, holds: 1, coordinator_crashes: 1, ..Weather::default() };
    let first = storm(rng, machines, Weather { jumps: 1, ..Weather::default() }, 10, 2);
    let acts = vec![
        Act::Storm { operations: 4, storm: first },
        Act::Storm { operations: 24, storm: storm(rng, machines, weather, 4000, 180) },
        Act::Settle,
        FINALE,
    ];
    play(scenario, acts)
}

/// The idempotency store has outages; tenants continue without it.
pub(super) fn outages(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        cast.tenant.idempotency_outage =
            if rng.random_bool(0.7) { IdempotencyOutage::Proceed } else { IdempotencyOutage::Reject };
    }
    scenario.manner =
        Manner { named: 900, lost: 200, cancelled: 60, attempts: 5, patience_ms: 500, pause_ms: 10, ..scenario.manner };
    let mut weather = Weather { outages: 10, cuts: 1, coordinator_crashes: 1, ..Weather::default() };
    let operations = rng.random_range(18..=26);
    let machines = scenario.machines();
    let steady = rng.random_bool(0.5);
    if steady {
        // Most retries find no trace of the first attempt except the idempotency key that replicas remember.
        weather = Weather { holds: 1, ..Weather::default() };
        scenario.casts.truncate(1);
        let cast = &mut scenario.casts[0];
        (cast.keys, cast.tenant.idempotency_outage) = (1, IdempotencyOutage::Proceed);
        scenario.manner = Manner { lost: 300, cancelled: 0, deletes: 50, patience_ms: 300, ..scenario.manner };
    }
    let mut storm = storm(rng, machines, weather, 5000, if steady { 1500 } else { 250 });
    if steady {
        storm.insert(0, (0, Action::Outage { reserving: 700, settling: 0 }));
    }
    let storm = Act::Storm { operations, storm };
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Clients retry changes of unknown outcome after replicas have forgotten their idempotency keys.
pub(super) fn late(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        *cast = Cast { keys: 1, ..cast.clone().with_sets(false) };
    }
    scenario.manner = Manner {
        named: 900,
        lost: 300,
        cancelled: 0,
        attempts: 1,
        reads: 450,
        deletes: 200,
        patience_ms: 400,
        pause_ms: 20,
        ..scenario.manner
    };
    let weather = Weather { cuts: 1, coordinator_crashes: 1, ..Weather::default() };
    let machines = Machines { jump: 1_000_000, ..scenario.machines() };
    let mut storm = storm(rng, machines, weather, 3000, 600);
    // Most completed operations are not recorded, and the coordinators that would retry recording crash before they can.
    storm.insert(0, (0, Action::Outage { reserving: 0, settling: 800 }));
    let crash = (0..scenario.coordinators).map(|coordinator| (0, Action::CrashCoordinator { coordinator }));
    let restart = (0..scenario.coordinators).map(|coordinator| (200, Action::RestartCoordinator { coordinator }));
    let crashes = crash.chain(restart).collect();
    let acts = vec![
        OVERTURE,
        Act::Storm { operations: 12, storm },
        Act::Storm { operations: 0, storm: crashes },
        Act::Idle { ms: 300 },
        Act::Settle,
        Act::Calm { operations: 4 },
        Act::Idle { ms: FORGOTTEN_MS },
        Act::Calm { operations: 3 },
        Act::Retry,
        Act::Calm { operations: 3 },
        Act::Settle,
    ];
    play(scenario, acts)
}

/// A node's disk is replaced by an empty one.
pub(super) fn wiped(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    let weather = Weather { cuts: 4, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 250);
    let acts = vec![
        Act::Calm { operations: 4 },
        Act::Settle,
        Act::Wipe,
        // Time for idle connections to break, and to be established again.
        Act::Idle { ms: rng.random_range(0..=1500) },
        Act::Burst { writes: 1 },
        storm,
        Act::Settle,
        FINALE,
    ];
    play(scenario, acts)
}

/// One node after the other loses its disk and is filled again from the others, without any other repair of what links have lost.
pub(super) fn replaced(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.strict = true;
    scenario.nodes = 3;
    scenario.first_wiped = rng.random_range(0..3);
    for cast in &mut scenario.casts {
        // Few reads of each key, which would repair it.
        cast.keys = 3;
    }
    let weather = Weather { cuts: 6, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let first = scenario.storm(rng, weather, 160);
    let second = scenario.storm(rng, Weather { cuts: 2, holds: 2, ..Weather::default() }, 250);
    // No further faults, but connections to the lost node break.
    let quiet = |operations| Act::Storm { operations, storm: Storm::new() };
    let mut acts = vec![OVERTURE, first, Act::Wipe, Act::Idle { ms: rng.random_range(0..=1500) }];
    // Between the loss and a repair that fails, no read repairs what links have lost.
    if rng.random() {
        acts.extend([Act::TryRepairOnFullDisks, quiet(8)])
    } else {
        acts.push(second)
    }
    acts.extend([Act::Repair, Act::WipeNext, quiet(8), Act::Repair, Act::Settle, FINALE]);
    play(scenario, acts)
}

/// A tenant with a new replication factor is created while a repair fills a new store.
pub(super) fn grown(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.strict = true;
    scenario.nodes = 5;
    for cast in &mut scenario.casts {
        *cast = Cast { keys: 1, ..cast.clone().with_sets(false) };
    }
    let (first, last) = (&mut scenario.casts[0], tenant("grown"));
    first.tenant.replication_factor = 2;
    scenario.casts[1].tenant = Tenant { conflict_mode: ConflictMode::Siblings, replication_factor: 5, ..last };
    scenario.casts[1].comes_later = true;
    let weather = Weather { holds: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 250);
    let acts = vec![OVERTURE, storm, Act::Settle, Act::Grow, Act::Repair, Act::Settle, FINALE];
    play(scenario, acts)
}

/// Siblings accumulate until they are collapsed.
pub(super) fn piled(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.remove(0);
    let cast = &mut scenario.casts[0];
    *cast = Cast { keys: 1, ..cast.clone().with_sets(true) };
    let weather = Weather { cuts: 4, holds: 2, coordinator_crashes: 1, crashes: 1, ..Weather::default() };
    let calmer = Weather { cuts: 1, holds: 1, ..Weather::default() };
    let machines = scenario.machines();
    let acts = vec![
        OVERTURE,
        Act::Storm { operations: 3, storm: storm(rng, machines, weather, 1500, 300) },
        Act::Burst { writes: 9 },
        Act::Storm { operations: 8, storm: storm(rng, machines, calmer, 1500, 500) },
        Act::Settle,
        FINALE,
    ];
    play(scenario, acts)
}

/// All kinds of faults.
pub(super) fn mixed(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.manner.weak = rng.random_range(0..=60);
    let weather = Weather {
        cuts: 6,
        holds: 3,
        crashes: 3,
        power_cuts: 1,
        coordinator_crashes: 3,
        jumps: 3,
        outages: 3,
        slow_disks: 2,
        full_disks: 1,
        losses: 1,
        ..Weather::default()
    };
    let storm = scenario.storm(rng, weather, 160);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Slow disks and repeated power failures of all nodes at once.
pub(super) fn unsynced(rng: &mut StdRng, scenario: Scenario) -> Scenario {
    let weather = Weather { power_cuts: 3, slow_disks: 5, crashes: 2, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 180);
    play(scenario, vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// One register, many reads, reordered messages, and replicas that cannot store what they receive: a value that one read has
/// returned must not be missed by the next.
pub(super) fn races(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.truncate(1);
    scenario.casts[0].keys = 1;
    scenario.nodes = 3;
    scenario.latency_ms = rng.random_range(25..=120);
    scenario.manner = Manner { reads: 700, deletes: 50, named: 200, pause_ms: 10, ..scenario.manner };
    let weather = Weather { full_disks: 8, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let ms = rng.random_range(2000..=3000);
    let storm = storm(rng, scenario.machines(), weather, ms, 150);
    play(scenario, vec![OVERTURE, Act::Storm { operations: 36, storm }, Act::Settle, Act::NoRoom, FINALE])
}
