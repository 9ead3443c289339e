//! A disk that loses what it has acknowledged: the store on it is not opened again, the other nodes go on, and the node is filled
//! like one with a replaced disk.

use std::sync::Mutex;

use rand::Rng;
use rand::rngs::StdRng;

use crate::nemesis::{Storm, Weather};
use crate::scenario::{Act, FINALE, OVERTURE, Scenario, play};
use crate::world::lock;
use crate::{judge, on_all_cores};

/// The seeds of this scenario begin here. They are apart from the others, so that these go on meaning what they meant.
pub(crate) const SEEDS: u64 = 1_000_000;
/// How many of them every test run plays.
const PLAYED: u64 = 40;

/// A node loses acknowledged writes, and is replaced later.
pub(crate) fn shape(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.strict = true;
    scenario.nodes = 3;
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
    play(scenario, "damaged", acts)
}

#[test]
fn a_disk_that_loses_what_it_acknowledged_breaks_no_promise() {
    let failed: Mutex<Vec<String>> = Mutex::default();
    on_all_cores(PLAYED, |number| {
        let verdict = judge(SEEDS + number, None, false);
        if let Some(violation) = verdict.violations.first() {
            lock(&failed).push(format!("seed {}: {violation}", SEEDS + number));
        }
    });
    assert!(lock(&failed).is_empty(), "{:#?}", lock(&failed));
}
