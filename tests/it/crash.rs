//! `kill -9` of random processes under load: nothing acknowledged is lost, nothing deleted comes back, nothing is done twice.
//!
//! Writers note what was acknowledged, refused, or left in doubt; when all processes are back they compare it with what is
//! stored. `WITAN_CRASH_ROUNDS` sets in how many rounds processes are killed, `WITAN_CRASH_SEED` repeats a run's choices.
//! `company` does the same to several coordinators and to the servers that they share.

mod appends;
mod attempt;
mod company;
mod registers;
mod sets;
mod siblings;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{Api, Cluster, NODES, eventually};

/// Rounds, unless the environment says otherwise.
const ROUNDS: u64 = 10;
/// Writers of each kind.
const REGISTERS: u64 = 4;
const SIBLINGS: u64 = 3;
const APPENDS: u64 = 3;
const SETS: u64 = 2;
/// Changes that must be acknowledged between a restart and the next kill, so that each round has something to lose.
const BETWEEN_KILLS: usize = 20;
/// Violations that are shown.
const SHOWN: usize = 20;

/// What writers share.
#[derive(Clone)]
struct Ground {
    /// The coordinators, taken in turn: a second attempt goes to another one.
    doors: Arc<[Api]>,
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    /// Changes that were acknowledged so far.
    acknowledged: Arc<AtomicUsize>,
    /// Grows by one before all idempotency records are lost, and by one after. Replicas know the names of writes for a while
    /// (semantics.md), which serves what is being tried; what was acknowledged before is not sent again.
    losses: Arc<AtomicUsize>,
    /// Repetitions under way.
    repeating: Arc<AtomicUsize>,
}

impl Ground {
    fn new(doors: impl Into<Arc<[Api]>>) -> Self {
        let doors = doors.into();
        assert!(!doors.is_empty(), "a coordinator");
        Self {
            doors,
            next: Arc::default(),
            stop: Arc::default(),
            acknowledged: Arc::default(),
            losses: Arc::default(),
            repeating: Arc::default(),
        }
    }

    fn api(&self) -> &Api {
        &self.doors[self.next.fetch_add(1, Ordering::Relaxed) % self.doors.len()]
    }

    fn losses(&self) -> usize {
        self.losses.load(Ordering::SeqCst)
    }

    /// Loses all idempotency records by `flush`, while nothing that they remember is being repeated.
    async fn lose_records(&self, flush: impl FnOnce()) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        eventually("repetitions end", async || (self.repeating.load(Ordering::SeqCst) == 0).then_some(())).await;
        flush();
        self.losses.fetch_add(1, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until writers have got on.
    async fn got_on(&self) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + BETWEEN_KILLS;
        eventually("writers get on", async || (self.acknowledged.load(Ordering::Relaxed) >= enough).then_some(()))
            .await;
    }
}

/// What a writer has to say in the end.
#[derive(Default)]
struct Report {
    /// Changes that were acknowledged.
    acknowledged: usize,
    /// Changes whose outcome stayed unknown.
    in_doubt: usize,
    /// Changes that were sent again after they had been acknowledged.
    repeated: usize,
    /// What must not be.
    violations: Vec<String>,
}

impl Report {
    fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.in_doubt += other.in_doubt;
        self.repeated += other.repeated;
        self.violations.extend(other.violations);
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_resurrect_nothing_and_repeat_nothing() {
    let seed = from_environment("WITAN_CRASH_SEED").unwrap_or_else(rand::random);
    let rounds = from_environment("WITAN_CRASH_ROUNDS").unwrap_or(ROUNDS);
    // Standard error, and before anything can go wrong: whatever happens, the run can be repeated.
    eprintln!("WITAN_CRASH_SEED={seed} WITAN_CRASH_ROUNDS={rounds}");
    let began = Instant::now();
    let mut cluster = Cluster::start().await;
    // With the coordinator's own deadlines: what hangs on a process that has died must not be waited for too long.
    let api = cluster.api().without_deadline();
    let ground = Ground::new([api]);
    ground.api().tenant("registers", |_| {}).await;
    ground.api().siblings_tenant("siblings").await;

    let mut writers = JoinSet::new();
    let random = |kind: u64, index: u64| StdRng::seed_from_u64(seed ^ (kind << 56) ^ (index << 48));
    for index in 0..REGISTERS {
        writers.spawn(registers::run(ground.clone(), index, random(1, index)));
    }
    for index in 0..SIBLINGS {
        writers.spawn(siblings::run(ground.clone(), index, random(2, index)));
    }
    let elements = Arc::new(appends::Elements::new((0..NODES).map(|node| cluster.node_address(node)).collect()));
    for _ in 0..APPENDS {
        writers.spawn(appends::run(ground.clone(), Arc::clone(&elements)));
    }
    let members = Arc::new(sets::Members::default());
    for index in 0..SETS {
        writers.spawn(sets::run(ground.clone(), Arc::clone(&members), random(3, index)));
    }

    let kills = kill_and_restart(&mut cluster, &ground, rounds, &mut random(4, 0)).await;
    cluster.all_reachable().await;
    ground.stop.store(true, Ordering::Relaxed);
    let mut report = Report::default();
    while let Some(written) = writers.join_next().await {
        report.add(written.expect("a writer"));
    }
    report.add(elements.judge(&ground).await);
    report.add(members.judge(&ground).await);

    println!(
        "{rounds} rounds of kills ({kills:?} of the nodes and the coordinator) in {:?}: {} acknowledged changes, {} in doubt, {} repeated; \
         {} lost, resurrected or done twice",
        began.elapsed(),
        report.acknowledged,
        report.in_doubt,
        report.repeated,
        report.violations.len()
    );
    let shown = report.violations.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    assert!(report.violations.is_empty(), "WITAN_CRASH_SEED={seed} WITAN_CRASH_ROUNDS={rounds}\n{shown}");
    let heard = report.acknowledged + report.repeated;
    assert!(heard as u64 >= BETWEEN_KILLS as u64 * rounds, "hardly anything was acknowledged");
}

/// Kills a process per round, sometimes two, at a random moment, and starts it again after a random while. Returns how often
/// each was killed; the coordinator stands last.
async fn kill_and_restart(
    cluster: &mut Cluster,
    ground: &Ground,
    rounds: u64,
    random: &mut StdRng,
) -> [u64; NODES + 1] {
    let mut kills = [0; NODES + 1];
    for _ in 0..rounds {
        ground.got_on().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(100..700))).await;
        let mut victims = vec![random.random_range(0..=NODES)];
        if random.random_bool(0.15) {
            victims.push(random.random_range(0..=NODES));
        }
        victims.dedup();
        for victim in &victims {
            kills[*victim] += 1;
            if *victim == NODES { cluster.kill_coordinator() } else { cluster.kill_node(*victim) }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        for victim in victims {
            if victim == NODES { cluster.start_coordinator().await } else { cluster.start_node(victim).await }
        }
        // Sometimes the next one dies while the coordinator still looks for this one.
        if random.random_bool(0.6) {
            cluster.all_reachable().await;
        }
    }
    kills
}
