//! Scenarios of placement changes.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use witan_kernel::placement::Step;
use witan_kernel::tenant::ReadRepair;

use super::{Act, Change, FINALE, OVERTURE, Scenario, Unaware, play};
use crate::nemesis::{Action, Link, Machines, Storm, Weather, storm};

/// Nodes join and leave, get zones and other weights, and replication factors change, two or three of these one soon after the other, and
/// some are taken back, while links, machines and leaders fail, or while one coordinator hears of nothing.
pub(super) fn moves(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    (scenario.strict, scenario.moves, scenario.clocks_agree) = (true, true, false);
    scenario.nodes = *[3, 3, 4].choose(rng).expect("not empty");
    scenario.spare = rng.random_range(1..=2);
    scenario.coordinators = 3;
    scenario.manner.weak = 0;
    // What reads repair, copies need not bring.
    scenario.manner.reads = 350;
    for cast in &mut scenario.casts {
        // With one key, some would have more operations than can be judged.
        cast.keys = rng.random_range(2..=3);
        if rng.random_bool(0.3) {
            cast.tenant.read_repair = ReadRepair::Async;
        }
    }
    let machines = Machines { nodes: scenario.nodes + scenario.spare, ..scenario.machines() };
    scenario.late_ms = *[60, 400, 1500].choose(rng).expect("not empty");
    // Steps that last as long as a few operations, so that operations of all views meet in each.
    scenario.copy_rate = *[0, 300, 1000].choose(rng).expect("not empty");
    scenario.manner.pause_ms = *[60, 160].choose(rng).expect("not empty");
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
        let ms = rng.random_range(6000..=12_000);
        let mut troubles: Storm =
            if rng.random_bool(0.85) { storm(rng, machines, weather, ms, 250) } else { Storm::new() };
        let unaware = rng.random_bool(0.5).then(|| unaware(rng, &scenario, &mut troubles));
        let changes = (0..rng.random_range(1..=3)).map(|_| (rng.random_range(0..=2000), change(rng, &scenario)));
        let changes = changes.collect();
        acts.push(Act::Move { operations: rng.random_range(40..=60), storm: troubles, changes, unaware });
        acts.push(Act::Moved);
        acts.push(Act::Settle);
    }
    acts.push(FINALE);
    // Drawn last, so that what has none is played as before there were zones.
    if rng.random_bool(0.5) {
        for act in &mut acts {
            let Act::Move { changes, .. } = act else { continue };
            for _ in 0..rng.random_range(1..=3) {
                let at = rng.random_range(0..=changes.len());
                changes.insert(at, (rng.random_range(0..=1500), update(rng, scenario.nodes + scenario.spare)));
            }
        }
    }
    play(scenario, acts)
}

/// A node gets another zone, or another weight.
fn update(rng: &mut StdRng, nodes: usize) -> Change {
    let node = rng.random_range(0..nodes);
    match rng.random_range(0..3) {
        0 => Change::Weight(node, *[2, 6, 40].choose(rng).expect("not empty")),
        _ => Change::Zone(node, rng.random_range(0..=3)),
    }
}

/// One coordinator hears of nothing from the moment on at which a tenant has come to a step, until everything is over, and does not reach
/// one of the nodes; another one does not reach a second node. What either writes is on a bare quorum, which has as little in common with
/// what the other one reads as may be. The third one may lead.
fn unaware(rng: &mut StdRng, scenario: &Scenario, troubles: &mut Storm) -> Unaware {
    let unaware = rng.random_range(0..scenario.coordinators);
    let aware = (unaware + rng.random_range(1..scenario.coordinators)) % scenario.coordinators;
    let first = rng.random_range(0..scenario.nodes);
    let second = (first + rng.random_range(1..scenario.nodes)) % scenario.nodes;
    // Nothing else happens to links and nodes, or to who may lead.
    troubles.retain(|(_, action)| {
        !matches!(
            action,
            Action::Metadata { .. }
                | Action::Link { .. }
                | Action::CrashNode { .. }
                | Action::CrashCoordinator { .. }
                | Action::Stop { .. }
                | Action::PowerCut
        )
    });
    let cut = |coordinator, node| Action::Link { coordinator, node, becomes: Link::Cut };
    let mut actions = vec![Action::Metadata { coordinator: unaware, missing: 0, away: true }, cut(unaware, first)];
    if rng.random_bool(0.8) {
        actions.push(cut(aware, second));
    }
    let step = *[Step::Preparing, Step::DualWrite, Step::DualWrite, Step::Cutover].choose(rng).expect("not empty");
    Unaware { step, after_ms: rng.random_range(0..=800), actions }
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

/// The same as these two, and tenants get other partition hooks meanwhile: their records move to other rows, mostly of the same nodes.
pub(super) fn swaps(rng: &mut StdRng, scenario: Scenario) -> Scenario {
    let is_split = rng.random_bool(0.6);
    let mut scenario = if is_split { split(rng, scenario) } else { moves(rng, scenario) };
    let tenants = scenario.casts.len();
    for act in &mut scenario.acts {
        let Act::Move { changes, .. } = act else { continue };
        let swap = (200, Change::Swap(rng.random_range(0..tenants)));
        if is_split || rng.random_bool(0.5) {
            changes[0] = swap;
        } else {
            changes.insert(0, swap);
        }
        if rng.random_bool(0.5) {
            changes.push((rng.random_range(0..=3000), Change::Swap(rng.random_range(0..tenants))));
        }
        if rng.random_bool(0.3) {
            changes.push((rng.random_range(0..=2000), Change::TakeBack));
        }
    }
    scenario
}

/// Three nodes and one that joins, or a factor that changes, while what two coordinators reach has as little in common as may be, and one
/// of them hears of nothing any longer from some step on: what each step rests on is all that holds.
pub(super) fn split(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    (scenario.strict, scenario.moves) = (true, true);
    (scenario.nodes, scenario.spare, scenario.coordinators, scenario.clients) = (3, 1, 3, 4);
    (scenario.manner.weak, scenario.manner.reads, scenario.manner.pause_ms) = (0, 450, 60);
    (scenario.manner.lost, scenario.manner.cancelled, scenario.manner.attempts) = (0, 0, 1);
    (scenario.manner.named, scenario.manner.patience_ms) = (200, 600);
    scenario.casts.truncate(1);
    scenario.casts[0].keys = rng.random_range(2..=3);
    scenario.late_ms = *[20, 200].choose(rng).expect("not empty");
    scenario.copy_rate = *[0, 400].choose(rng).expect("not empty");
    let first = match rng.random_range(0..5) {
        0 => Change::Factor(0, 2),
        _ => Change::Add(3),
    };
    let mut changes = vec![(200, first)];
    if rng.random_bool(0.3) {
        changes.push((rng.random_range(500..=3000), Change::TakeBack));
    }
    let mut troubles = Storm::new();
    let unaware = Some(unaware(rng, &scenario, &mut troubles));
    // Drawn last, as in `moves`. With a fourth node from the beginning, what a node is in the ring decides who holds a key.
    if rng.random_bool(0.25) {
        (scenario.nodes, scenario.spare) = (4, 0);
        changes[0].1 = update(rng, scenario.nodes);
    }
    let operations = 90;
    let acts = vec![
        OVERTURE,
        Act::Calm { operations: 3 },
        Act::Move { operations, storm: troubles, changes, unaware },
        Act::Moved,
        Act::Settle,
        FINALE,
    ];
    play(scenario, acts)
}
