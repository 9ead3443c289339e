//! The scenario of a seed: the cluster, its tenants, and the acts of the play.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use witan_kernel::limit;
use witan_kernel::name::TenantId;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, ReadRepair, Tenant};

use crate::nemesis::{Action, Machines, Storm, Weather, storm};

/// A tenant and its workload.
#[derive(Debug, Clone)]
pub(crate) struct Cast {
    pub(crate) tenant: Tenant,
    /// Number of keys in use.
    pub(crate) keys: usize,
    /// Values are sets whose union the resolver returns; otherwise each write has a value of its own.
    pub(crate) sets: bool,
    /// Enough siblings accumulate to be collapsed.
    pub(crate) collapses: bool,
    /// The tenant is created during the play.
    pub(crate) comes_later: bool,
}

impl Cast {
    pub(crate) fn is_register(&self) -> bool {
        self.tenant.conflict_mode == ConflictMode::Register
    }
}

/// A phase of the play.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Every client performs this many operations without faults: all must succeed.
    Calm { operations: usize },
    /// Every client performs this many operations during the storm.
    Storm { operations: usize, storm: Storm },
    /// All faults end: everything must work again, and all replicas must converge.
    Settle,
    /// The node that is the first choice for minting dots of the last tenant's first key comes back with an empty disk.
    Wipe,
    /// The same for the node that is the second choice.
    WipeNext,
    /// The node that is the first choice loses power, and its disk the last of what it has acknowledged.
    Damage,
    /// All faults end, and repairs run until every node is believed.
    Repair,
    /// Nothing happens for `ms` milliseconds.
    Idle { ms: u64 },
    /// Clients retry changes whose outcome they do not know, and some that were acknowledged.
    Retry,
    /// Every client writes this many times to the last tenant's first key, without having read.
    Burst { writes: usize },
    /// A repair has read the list of tenants, and pauses. Meanwhile the last tenant is created, with more replicas than any other;
    /// three of its five replicas acknowledge a write, and one of these three comes back with an empty disk. Then the repair
    /// continues. After it, the two replicas that have the write cannot be reached.
    Grow,
    /// A node comes back with another disk, or with an earlier copy of its own.
    Disks(Scene),
}

/// Which disk the node comes back with, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scene {
    /// It runs on an empty disk, and gets its own back.
    Unmounted,
    /// It gets its own disk back while a repair is filling the empty one.
    BackWhileFilling,
    /// It gets its own disk back after a repair has filled the other one, and then that one again.
    BackAfterRepair,
    /// It gets an earlier copy of its disk.
    SetBack {
        /// Coordinators restart at the same time, and remember nothing.
        coordinators_too: bool,
    },
    /// All nodes get earlier copies of their disks at once, and an operator declares it.
    AllRestored,
}

/// The behaviour of clients. Shares are per mille.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Share of changes with an idempotency key.
    pub(crate) named: u64,
    /// Share of requests, and also of responses, that are lost in a storm.
    pub(crate) lost: u64,
    /// Share of requests that are cancelled soon after they were sent, in a storm.
    pub(crate) cancelled: u64,
    /// Share of operations at level one.
    pub(crate) weak: u64,
    /// Share of deletes among changes.
    pub(crate) deletes: u64,
    /// Share of reads among operations.
    pub(crate) reads: u64,
    /// Limit on attempts per change.
    pub(crate) attempts: u64,
    /// Longest wait for one answer in a storm, milliseconds.
    pub(crate) patience_ms: u64,
    /// Longest pause between two operations, milliseconds.
    pub(crate) pause_ms: u64,
}

/// Everything that a simulation is made from.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) name: &'static str,
    pub(crate) nodes: usize,
    pub(crate) coordinators: usize,
    pub(crate) clients: usize,
    pub(crate) latency_ms: u64,
    /// Whether a node that comes back with a new store is believed only once a repair has filled it.
    pub(crate) strict: bool,
    /// Whether a write is asked about before it is repeated: `consistency.ask_before_repeating`.
    pub(crate) asks: bool,
    pub(crate) casts: Vec<Cast>,
    pub(crate) manner: Manner,
    pub(crate) acts: Vec<Act>,
}

/// The seeds of the scenario `damaged` begin here. They are apart from the others, so that these go on meaning what they meant.
pub(crate) const DAMAGED: u64 = 1_000_000;

/// The scenarios; seed `n` uses number `n` modulo their count.
pub(crate) const SHAPES: [fn(&mut StdRng, Scenario) -> Scenario; 15] = [
    links, crashes, clocks, outages, late, wiped, piled, mixed, unsynced, races, replaced, grown, swapped, copied,
    restored,
];

impl Scenario {
    /// The scenario of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let shape = match seed.checked_sub(DAMAGED) {
            Some(_) => damaged,
            None => SHAPES[(seed % SHAPES.len() as u64) as usize],
        };
        let blank = Self {
            seed,
            name: "",
            nodes: *[3, 3, 4, 5].choose(&mut rng).expect("not empty"),
            coordinators: 2,
            clients: rng.random_range(3..=4),
            latency_ms: rng.random_range(4..=25),
            strict: false,
            asks: seed / SHAPES.len() as u64 % 2 == 1,
            casts: vec![register(&mut rng), siblings(&mut rng)],
            manner: Manner {
                named: 600,
                lost: 30,
                cancelled: 20,
                weak: 0,
                deletes: 150,
                reads: 450,
                attempts: 3,
                patience_ms: 2500,
                pause_ms: 40,
            },
            acts: Vec::new(),
        };
        shape(&mut rng, blank)
    }

    fn machines(&self) -> Machines {
        Machines { nodes: self.nodes, coordinators: self.coordinators, jump: 4_000_000 }
    }

    fn storm(&self, rng: &mut StdRng, weather: Weather, gap: u64) -> Act {
        let ms = rng.random_range(2000..=3500);
        let operations = rng.random_range(18..=26);
        Act::Storm { operations, storm: storm(rng, self.machines(), weather, ms, gap) }
    }
}

fn register(rng: &mut StdRng) -> Cast {
    let mut tenant = tenant("register");
    tenant.read_repair = ReadRepair::Blocking;
    Cast { tenant, keys: rng.random_range(1..=2), sets: false, collapses: false, comes_later: false }
}

fn siblings(rng: &mut StdRng) -> Cast {
    let mut tenant = tenant("siblings");
    tenant.conflict_mode = ConflictMode::Siblings;
    tenant.read_repair = if rng.random() { ReadRepair::Blocking } else { ReadRepair::Async };
    Cast { tenant, keys: rng.random_range(1..=2), sets: rng.random(), collapses: false, comes_later: false }
}

fn tenant(id: &str) -> Tenant {
    Tenant::with_defaults(TenantId::new(id).expect("a tenant id"), 3, 0)
}

fn play(scenario: Scenario, name: &'static str, acts: Vec<Act>) -> Scenario {
    Scenario { name, acts, ..scenario }
}

const OVERTURE: Act = Act::Calm { operations: 3 };
/// Time after which replicas have forgotten the idempotency keys of writes, whatever the clocks show. Milliseconds.
const FORGOTTEN_MS: u64 = (limit::RECENT_MICROS + limit::CLOCK_SKEW_MICROS) / 1000 + 3_000;
const FINALE: Act = Act::Calm { operations: 2 };

/// Links are cut, delayed and lossy.
fn links(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.manner.weak = rng.random_range(0..=100);
    let weather = Weather { cuts: 6, holds: 4, losses: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 250);
    play(scenario, "links", vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Processes crash, and come back with the data that they had synced.
fn crashes(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.manner.weak = rng.random_range(0..=100);
    let weather =
        Weather { cuts: 1, crashes: 4, coordinator_crashes: 4, power_cuts: 1, slow_disks: 2, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 400);
    play(scenario, "crashes", vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Wall clocks are wrong, and jump.
fn clocks(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    // Registers only: the guarantee for retries of siblings holds only within the window of `recent`.
    scenario.casts.truncate(1);
    scenario.casts[0].keys = 2;
    let machines = Machines { jump: 60_000_000, ..scenario.machines() };
    let weather = Weather { jumps: 6, cuts: 2, holds: 1, coordinator_crashes: 1, ..Weather::default() };
    let first = storm(rng, machines, Weather { jumps: 1, ..Weather::default() }, 10, 2);
    let acts = vec![
        Act::Storm { operations: 4, storm: first },
        Act::Storm { operations: 24, storm: storm(rng, machines, weather, 2500, 250) },
        Act::Settle,
        FINALE,
    ];
    play(scenario, "clocks", acts)
}

/// The idempotency store has outages; tenants continue without it.
fn outages(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
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
    play(scenario, "outages", vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Clients retry changes of unknown outcome after replicas have forgotten their idempotency keys.
fn late(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        (cast.keys, cast.sets) = (1, false);
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
    play(scenario, "late", acts)
}

/// A node's disk is replaced by an empty one.
fn wiped(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    let weather = Weather { cuts: 4, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 700);
    let acts = vec![
        Act::Calm { operations: 5 },
        Act::Settle,
        Act::Wipe,
        // Time for idle connections to break, and to be established again.
        Act::Idle { ms: rng.random_range(0..=1500) },
        Act::Burst { writes: 1 },
        storm,
        Act::Settle,
        FINALE,
    ];
    play(scenario, "wiped", acts)
}

/// One node after the other loses its disk and is filled again from the others, without any other repair of what links have lost.
fn replaced(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.strict = true;
    scenario.nodes = 3;
    let weather = Weather { cuts: 6, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let first = scenario.storm(rng, weather, 300);
    let second = scenario.storm(rng, Weather { cuts: 2, holds: 2, ..Weather::default() }, 700);
    // No further faults, but connections to the lost node break.
    let quiet = |operations| Act::Storm { operations, storm: Storm::new() };
    let acts = vec![
        OVERTURE,
        first,
        Act::Wipe,
        Act::Idle { ms: rng.random_range(0..=1500) },
        second,
        Act::Repair,
        Act::WipeNext,
        quiet(8),
        Act::Repair,
        Act::Settle,
        FINALE,
    ];
    play(scenario, "replaced", acts)
}

/// A tenant with a new replication factor is created while a repair fills a new store.
fn grown(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.strict = true;
    scenario.nodes = 5;
    for cast in &mut scenario.casts {
        (cast.keys, cast.sets) = (1, false);
    }
    let (first, last) = (&mut scenario.casts[0], tenant("grown"));
    first.tenant.replication_factor = 2;
    scenario.casts[1].tenant = Tenant { conflict_mode: ConflictMode::Siblings, replication_factor: 5, ..last };
    scenario.casts[1].comes_later = true;
    let weather = Weather { holds: 1, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 700);
    let acts = vec![OVERTURE, storm, Act::Settle, Act::Grow, Act::Repair, Act::Settle, FINALE];
    play(scenario, "grown", acts)
}

/// A node runs on an empty disk for a while (its own is not mounted), and then gets its own disk back.
fn swapped(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    let scene = *[Scene::Unmounted, Scene::BackWhileFilling, Scene::BackAfterRepair].choose(rng).expect("not empty");
    disks(&mut scenario);
    play(scenario, "swapped", vec![OVERTURE, Act::Disks(scene), Act::Settle, FINALE])
}

/// A node comes back with an earlier copy of its disk: a backup, or the snapshot of a volume or of its machine.
fn copied(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    disks(&mut scenario);
    let scene = Scene::SetBack { coordinators_too: rng.random() };
    play(scenario, "copied", vec![OVERTURE, Act::Disks(scene), Act::Settle, FINALE])
}

/// A copy of the whole cluster is restored.
fn restored(_: &mut StdRng, mut scenario: Scenario) -> Scenario {
    disks(&mut scenario);
    play(scenario, "restored", vec![OVERTURE, Act::Disks(Scene::AllRestored), Act::Settle, FINALE])
}

/// Three nodes, whose stores are compared with those on record, and clients that do not give up early.
fn disks(scenario: &mut Scenario) {
    (scenario.strict, scenario.nodes) = (true, 3);
    for cast in &mut scenario.casts {
        cast.keys = 1;
    }
    scenario.manner.weak = 0;
}

/// A node loses acknowledged writes, and is replaced later.
fn damaged(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
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

/// Siblings accumulate until they are collapsed.
fn piled(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.remove(0);
    let cast = &mut scenario.casts[0];
    (cast.keys, cast.sets, cast.collapses) = (1, true, true);
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
    play(scenario, "piled", acts)
}

/// All kinds of faults.
fn mixed(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
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
    };
    let storm = scenario.storm(rng, weather, 200);
    play(scenario, "mixed", vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// Slow disks and repeated power failures of all nodes at once.
fn unsynced(rng: &mut StdRng, scenario: Scenario) -> Scenario {
    let weather = Weather { power_cuts: 3, slow_disks: 5, crashes: 2, ..Weather::default() };
    let storm = scenario.storm(rng, weather, 350);
    play(scenario, "unsynced", vec![OVERTURE, storm, Act::Settle, FINALE])
}

/// One register, many reads, reordered messages, and replicas that cannot store what they receive: a value that one read has
/// returned must not be missed by the next.
fn races(rng: &mut StdRng, mut scenario: Scenario) -> Scenario {
    scenario.casts.truncate(1);
    scenario.casts[0].keys = 1;
    scenario.nodes = 3;
    scenario.latency_ms = rng.random_range(25..=120);
    scenario.manner = Manner { reads: 700, deletes: 50, named: 200, pause_ms: 10, ..scenario.manner };
    let weather = Weather { full_disks: 8, holds: 2, coordinator_crashes: 1, ..Weather::default() };
    let ms = rng.random_range(2000..=3000);
    let storm = storm(rng, scenario.machines(), weather, ms, 150);
    play(scenario, "races", vec![OVERTURE, Act::Storm { operations: 36, storm }, Act::Settle, FINALE])
}
