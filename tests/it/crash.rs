//! `kill -9` of random processes under load: nothing acknowledged is lost, nothing deleted reappears, nothing takes effect twice.
//!
//! Writers note which changes were acknowledged, refused, or left in doubt; when all processes are back they compare these with the
//! stored data. `WITAN_CRASH_ROUNDS` sets the number of rounds in which processes are killed, `WITAN_CRASH_SEED` repeats the random
//! choices of a run. `company` does the same with several coordinators and the servers that they share.

mod appends;
mod attempt;
mod company;
mod registers;
mod sets;
mod siblings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{Api, Cluster, NODES, eventually};

/// Default number of rounds.
const ROUNDS: u64 = 10;
const WRITERS: Writers = Writers { registers: 4, siblings: 3, appends: 3, sets: 2 };
/// Changes acknowledged between a restart and the next kill, so that each round has something to lose.
const BETWEEN_KILLS: usize = 20;
/// Most violations shown.
const SHOWN: usize = 20;

/// State shared by the writers.
#[derive(Clone)]
struct Ground {
    /// The coordinators, used in turn: a retry goes to another one.
    doors: Arc<[Api]>,
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    /// Changes acknowledged so far.
    acknowledged: Arc<AtomicUsize>,
    /// Incremented before all idempotency records are lost, and again after. Replicas remember the idempotency keys of writes for a
    /// while (semantics.md), which covers changes being attempted; changes acknowledged before are not sent again.
    losses: Arc<AtomicUsize>,
    /// Repetitions in flight.
    repeating: Arc<AtomicUsize>,
    /// Changes with an idempotency key that were never acknowledged, however often they were sent.
    given_up: Arc<AtomicUsize>,
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
            given_up: Arc::default(),
        }
    }

    fn api(&self) -> &Api {
        &self.doors[self.next.fetch_add(1, Ordering::Relaxed) % self.doors.len()]
    }

    fn losses(&self) -> usize {
        self.losses.load(Ordering::SeqCst)
    }

    /// Loses all idempotency records with `flush`, while none of their changes is being repeated.
    async fn lose_records(&self, flush: impl FnOnce()) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        eventually("repetitions end", async || (self.repeating.load(Ordering::SeqCst) == 0).then_some(())).await;
        flush();
        self.losses.fetch_add(1, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until the writers have made progress.
    async fn got_on(&self) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + BETWEEN_KILLS;
        eventually("writers get on", async || (self.acknowledged.load(Ordering::Relaxed) >= enough).then_some(()))
            .await;
    }
}

/// The result of a writer.
#[derive(Default)]
pub(crate) struct Report {
    /// Changes that were acknowledged.
    pub(crate) acknowledged: usize,
    /// Changes whose outcome stayed unknown.
    in_doubt: usize,
    /// Changes sent again after they had been acknowledged.
    repeated: usize,
    /// Changes with an idempotency key that were retried, and given up.
    pub(crate) given_up: usize,
    /// Violations of a promise.
    violations: Vec<String>,
}

impl Report {
    fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.in_doubt += other.in_doubt;
        self.repeated += other.repeated;
        self.given_up += other.given_up;
        self.violations.extend(other.violations);
    }

    /// Prints the result.
    ///
    /// # Panics
    /// When there is a violation.
    pub(crate) fn judge(&self, seed: u64) {
        println!(
            "{} acknowledged changes, {} in doubt, {} repeated; {} lost, resurrected or done twice",
            self.acknowledged,
            self.in_doubt,
            self.repeated,
            self.violations.len()
        );
        let shown = self.violations.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
        assert!(self.violations.is_empty(), "WITAN_CRASH_SEED={seed}\n{shown}");
    }
}

/// The number of writers of each kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writers {
    pub(crate) registers: u64,
    pub(crate) siblings: u64,
    pub(crate) appends: u64,
    pub(crate) sets: u64,
}

impl Writers {
    /// The same number of each kind.
    pub(crate) fn of_each(count: u64) -> Self {
        Self { registers: count, siblings: count, appends: count, sets: count }
    }
}

/// Running writers of every kind, and their notes.
pub(crate) struct Load {
    ground: Ground,
    writers: JoinSet<Report>,
    elements: Arc<appends::Elements>,
    members: Arc<sets::Members>,
}

impl Load {
    /// Creates the writers' tenants and starts the writers. `nodes` are the replicas of every key.
    pub(crate) async fn start(doors: Vec<Api>, nodes: Vec<SocketAddr>, count: Writers, seed: u64) -> Self {
        let ground = Ground::new(doors);
        ground.api().tenant("registers", |_| {}).await;
        ground.api().siblings_tenant("siblings").await;
        let mut writers = JoinSet::new();
        let (elements, members) = (Arc::new(appends::Elements::new(nodes)), Arc::new(sets::Members::default()));
        for index in 0..count.registers {
            writers.spawn(registers::run(ground.clone(), index, dice(seed, 1, index)));
        }
        for index in 0..count.siblings {
            writers.spawn(siblings::run(ground.clone(), index, dice(seed, 2, index)));
        }
        for _ in 0..count.appends {
            writers.spawn(appends::run(ground.clone(), Arc::clone(&elements)));
        }
        for index in 0..count.sets {
            writers.spawn(sets::run(ground.clone(), Arc::clone(&members), dice(seed, 3, index)));
        }
        Self { ground, writers, elements, members }
    }

    /// Waits until the writers have made progress.
    pub(crate) async fn got_on(&self) {
        self.ground.got_on().await;
    }

    /// Stops the writers, and compares their notes with the stored data.
    pub(crate) async fn end(mut self) -> Report {
        self.ground.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        while let Some(written) = self.writers.join_next().await {
            report.add(written.expect("a writer"));
        }
        report.add(self.elements.judge(&self.ground).await);
        report.add(self.members.judge(&self.ground).await);
        report.given_up = self.ground.given_up.load(Ordering::Relaxed);
        report
    }
}

/// The random numbers of the `index`th writer of a kind.
fn dice(seed: u64, kind: u64, index: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ (kind << 56) ^ (index << 48))
}

/// The seed from the environment, or a random one. It is printed to standard error first, so that every run can be repeated.
pub(crate) fn seed() -> u64 {
    let seed = from_environment("WITAN_CRASH_SEED").unwrap_or_else(rand::random);
    eprintln!("WITAN_CRASH_SEED={seed}");
    seed
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_resurrect_nothing_and_repeat_nothing() {
    let seed = seed();
    let rounds = from_environment("WITAN_CRASH_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("WITAN_CRASH_ROUNDS={rounds}");
    let began = Instant::now();
    let mut cluster = Cluster::start().await;
    // With the coordinator's default deadlines, so that requests that hang on a dead process do not wait too long.
    let api = cluster.api().without_deadline();
    let nodes = (0..NODES).map(|node| cluster.node_address(node)).collect();
    let load = Load::start(vec![api], nodes, WRITERS, seed).await;
    let kills = kill_and_restart(&mut cluster, &load.ground, rounds, &mut dice(seed, 4, 0)).await;
    cluster.all_reachable().await;
    let report = load.end().await;
    println!("{rounds} rounds of kills ({kills:?} of the nodes and the coordinator) in {:?}", began.elapsed());
    report.judge(seed);
    let heard = report.acknowledged + report.repeated;
    assert!(heard as u64 >= BETWEEN_KILLS as u64 * rounds, "hardly anything was acknowledged");
}

/// Kills one process per round, sometimes two, at a random time, and restarts it after a random time. Returns how often each was
/// killed; the coordinator is last.
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
        // Sometimes the next one dies while the coordinator is still reconnecting to this one.
        if random.random_bool(0.6) {
            cluster.all_reachable().await;
        }
    }
    kills
}
