//! Scenarios of placement changes.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use witan_kernel::tenant::ReadRepair;

use super::{Act, FINALE, OVERTURE, Scenario, play};
use crate::moves::Change;
use crate::nemesis::{Action, Link, Machines, Storm, Weather, storm};

/// Nodes join and leave, and replication factors change, two or three of these one soon after the other, and some are taken back, while
/// links, machines and leaders fail, or while one coordinator hears of nothing.
pub(super) fn moves(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    (scenario.strict, scenario.moves, scenario.clocks_agree) = (true, true, false);
    scenario.nodes = rng.random_range(3..=4);
    scenario.spare = rng.random_range(1..=2);
    scenario.coordinators = 3;
    scenario.manner.weak = 0;
    // What reads repair, copies need not bring.
    scenario.manner.reads = 350;
    for cast in &mut scenario.casts {
        cast.keys = rng.random_range(1..=3);
        if rng.random_bool(0.3) {
            cast.tenant.read_repair = ReadRepair::Async;
        }
    }
    let machines = Machines { nodes: scenario.nodes + scenario.spare, ..scenario.machines() };
    scenario.late_ms = *[60, 400, 1500].choose(rng).expect("not empty");
    let weather = match rng.random_range(0..4) {
        // Every write reaches a bare quorum, as often as not.
        0 => Weather { cuts: 12, ..Weather::default() },
        1 => Weather { cuts: 4, crashes: 2, coordinator_crashes: 4, metadata: 2, ..Weather::default() },
        2 => Weather { cuts: 4, holds: 4, slow_disks: 2, metadata: 3, stops: 1, ..Weather::default() },
        _ => Weather { cuts: 3, holds: 2, crashes: 3, power_cuts: 1, losses: 1, ..Weather::default() },
    };
    scenario.stops = weather.stops > 0;
    let mut acts = vec![OVERTURE, Act::Calm { operations: 3 }];
    for _ in 0..rng.random_range(1..=2) {
        let ms = rng.random_range(4000..=9000);
        let mut troubles: Storm =
            if rng.random_bool(0.85) { storm(rng, machines, weather, ms, 250) } else { Storm::new() };
        if rng.random_bool(0.5) {
            unaware(rng, &scenario, &mut troubles);
        }
        let changes = (0..rng.random_range(1..=3)).map(|_| (rng.random_range(0..=2500), change(rng, &scenario)));
        let changes = changes.collect();
        acts.push(Act::Move { operations: rng.random_range(20..=40), storm: troubles, changes });
        acts.push(Act::Moved);
        acts.push(Act::Settle);
    }
    acts.push(FINALE);
    play(scenario, acts)
}

/// One coordinator hears of nothing from some moment on, until everything is over, and does not reach one of the nodes: what it writes is on
/// a bare quorum, and nobody repairs it but readers.
fn unaware(rng: &mut StdRng, scenario: &Scenario, troubles: &mut Storm) {
    let coordinator = rng.random_range(0..scenario.coordinators);
    let node = rng.random_range(0..scenario.nodes);
    let own = |action: &Action| match action {
        Action::Metadata { .. } => true,
        Action::Link { coordinator: of, node: to, .. } => (*of, *to) == (coordinator, node),
        _ => false,
    };
    troubles.retain(|(_, action)| !own(action));
    let at = rng.random_range(0..=3000);
    troubles.push((at, Action::Metadata { coordinator, missing: 0, away: true }));
    if rng.random_bool(0.8) {
        troubles.push((at, Action::Link { coordinator, node, becomes: Link::Cut }));
    }
    troubles.sort_by_key(|(at, _)| *at);
}

fn change(rng: &mut StdRng, scenario: &Scenario) -> Change {
    let all = scenario.nodes + scenario.spare;
    match rng.random_range(0..10) {
        0..=2 => Change::Add(rng.random_range(scenario.nodes..all)),
        3 | 4 => Change::Remove(rng.random_range(0..all)),
        5 => Change::TakeBack,
        _ => {
            let factor = *[2, 2, 3, 3, 4, 5].choose(rng).expect("not empty");
            Change::Factor(rng.random_range(0..scenario.casts.len()), factor)
        }
    }
}
