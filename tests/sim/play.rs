//! Runs one simulation, from its seed to its verdict.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use futures::future::join_all;
use tokio::sync::oneshot;
use witan_kernel::record::Record;
use witan_kernel::tenant::Level;

use crate::check;
use crate::client::{Client, Command, Mood, Stage};
use crate::cluster::{Call, Cluster, Link, RECOVERY};
use crate::disks;
use crate::history::History;
use crate::nemesis::{Action, act, heal};
use crate::repairs::{NOTICED, holder, repair};
use crate::scenario::{Act, Scenario};
use crate::world::{Bound, Dice, lock, now_micros};

/// Virtual time of one step. Messages are delivered between steps.
const TICK: Duration = Duration::from_millis(3);
/// Batches that a damaged disk loses: the end of a journal.
const LOST: usize = 12;
/// Limit on the virtual time of a simulation.
const LONGEST: Duration = Duration::from_secs(300);

/// The result of a simulation.
pub(crate) struct Verdict {
    pub(crate) scenario: &'static str,
    pub(crate) violations: Vec<String>,
    pub(crate) hash: u64,
    pub(crate) log: String,
    pub(crate) operations: usize,
    pub(crate) virtual_time: Duration,
}

/// Runs a scenario on this thread.
pub(crate) fn play(scenario: Scenario, verbose: bool) -> Verdict {
    let seed = scenario.seed;
    let dice = Dice::new(seed);
    let tenants = scenario.casts.iter().map(|cast| cast.tenant.clone()).collect();
    let sets = scenario.casts.iter().filter(|cast| cast.sets).map(|cast| cast.tenant.id.clone()).collect();
    let cluster = Cluster::new(&scenario, tenants, Bound(sets), &dice);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(UNIX_EPOCH)
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(scenario.latency_ms))
        .tcp_capacity(1024)
        .build();
    cluster.boot(&mut sim);
    let name = scenario.name;
    let stage = Arc::new(Stage {
        scenario,
        cluster: cluster.clone(),
        history: History::new(verbose),
        commands: Mutex::default(),
        violations: Mutex::default(),
        doubtful: Mutex::default(),
        acknowledged: Mutex::default(),
        grown: AtomicBool::default(),
    });
    sim.client("clients", direct(Arc::clone(&stage)));
    if let Err(error) = run(&mut sim, &cluster, &stage) {
        lock(&stage.violations).push(format!("aborted: {error}"));
    }
    let virtual_time = sim.elapsed();
    drop(sim);
    let operations = stage.history.operations();
    let mut violations = std::mem::take(&mut *lock(&stage.violations));
    violations.extend(check::all(&stage.scenario, &operations));
    let (hash, log) = stage.history.close();
    Verdict { scenario: name, violations, hash, log, operations: operations.len(), virtual_time }
}

/// Steps the simulation, and applies due actions and the play's commands between steps.
fn run(sim: &mut turmoil::Sim<'_>, cluster: &Cluster, stage: &Stage) -> turmoil::Result {
    let mut due: VecDeque<(Duration, Action)> = VecDeque::new();
    loop {
        while due.front().is_some_and(|(at, _)| *at <= sim.elapsed()) {
            if let Some((at, action)) = due.pop_front() {
                stage.history.note(at.as_micros() as u64, || format!("{action:?}"));
                act(&action, sim, cluster);
            }
        }
        if sim.step()? || !lock(&stage.violations).is_empty() {
            return Ok(());
        }
        let commands = std::mem::take(&mut *lock(&stage.commands));
        for command in commands {
            match command {
                Command::Storm(storm) => {
                    let now = sim.elapsed();
                    due = storm.into_iter().map(|(ms, action)| (now + Duration::from_millis(ms), action)).collect();
                }
                Command::Heal => {
                    due.clear();
                    stage.history.note(sim.elapsed().as_micros() as u64, || "healed".to_owned());
                    heal(sim, cluster);
                }
                Command::Do(action) => due.push_front((sim.elapsed(), action)),
                Command::Damage(node) => due.push_front((sim.elapsed(), Action::Damage { node, batches: LOST })),
                Command::Wipe(node) => due.push_front((sim.elapsed(), Action::Wipe { node })),
                Command::CutOff(node) => {
                    let cut = |coordinator| (sim.elapsed(), Action::Link { coordinator, node, becomes: Link::Cut });
                    (0..cluster.coordinators.len()).for_each(|coordinator| due.push_front(cut(coordinator)));
                }
            }
        }
    }
}

/// Performs the acts in order.
async fn direct(stage: Arc<Stage>) -> turmoil::Result {
    let mut clients: Vec<Client> = (0..stage.scenario.clients).map(|id| Client::new(id, Arc::clone(&stage))).collect();
    let mut inspector = Client::new(usize::MAX, Arc::clone(&stage));
    if !everything_answers(&stage, &mut inspector).await {
        return Ok(());
    }
    for act in stage.scenario.acts.clone() {
        stage.note(|| match &act {
            Act::Storm { operations, storm } => format!("-- storm of {} actions, {operations} operations", storm.len()),
            act => format!("-- {act:?}"),
        });
        match act {
            Act::Calm { operations } => {
                join_all(clients.iter_mut().map(|client| client.work(operations, Mood::Calm))).await;
            }
            Act::Storm { operations, storm } => {
                stage.command(Command::Storm(storm));
                join_all(clients.iter_mut().map(|client| client.work(operations, Mood::Stormy))).await;
            }
            Act::Burst { writes } => {
                join_all(clients.iter_mut().map(|client| client.pile_up(writes))).await;
            }
            Act::Settle => settle(&stage, &mut inspector).await,
            Act::Wipe => stage.command(Command::Wipe(holder(&stage, 0))),
            Act::Damage => stage.command(Command::Damage(holder(&stage, 0))),
            Act::WipeNext => stage.command(Command::Wipe(holder(&stage, 1))),
            Act::Repair => repair(&stage).await,
            Act::Grow => grow(&stage, &mut inspector).await,
            Act::Disks(scene) => disks::play(scene, &stage, &mut clients, &mut inspector).await,
            Act::Idle { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Act::Retry => {
                let doubtful: Vec<_> = lock(&stage.doubtful).drain(..).collect();
                for (doubtful, client) in doubtful.into_iter().zip((0..clients.len()).cycle()) {
                    clients[client].retry(doubtful).await;
                }
                let acknowledged: Vec<_> = lock(&stage.acknowledged).drain(..).collect();
                for (acknowledged, client) in acknowledged.into_iter().zip((0..clients.len()).cycle()) {
                    clients[client].repeat(acknowledged, Mood::Calm).await;
                }
            }
        }
    }
    settle(&stage, &mut inspector).await;
    Ok(())
}

/// Pause of the repair: longer than everything that happens during it.
const REPAIR_PAUSES: Duration = Duration::from_secs(8);
/// Attempts at the write that three of five replicas must acknowledge.
const ATTEMPTS: u64 = 8;

/// Performs [`Act::Grow`].
async fn grow(stage: &Arc<Stage>, inspector: &mut Client) {
    let tenant = stage.scenario.casts.len() - 1;
    let (place, index) = ((tenant, 0), |name: &str| stage.cluster.nodes.iter().position(|node| node.name == name));
    let at = stage.cluster.place(tenant, &Stage::key(place));
    let replicas: Vec<usize> =
        stage.cluster.replicas(tenant, &at).iter().filter_map(|node| index(&node.name)).collect();
    let Some(doors) = stage.cluster.coordinators[0].doors() else { return };
    let (to, repaired) = oneshot::channel();
    let _ = doors.calls.send(Call::Repair(REPAIR_PAUSES, to));
    tokio::time::sleep(Duration::from_millis(50)).await;
    stage.cluster.create_tenant(tenant);
    stage.grown.store(true, Ordering::Relaxed);
    // The first two do not receive the write, so that the other three acknowledge it.
    replicas[..2].iter().for_each(|node| stage.command(Command::CutOff(*node)));
    tokio::time::sleep(NOTICED).await;
    let acknowledged = inspector.write(place, ATTEMPTS).await;
    stage.note(|| format!("three of five replicas acknowledged: {acknowledged}"));
    stage.command(Command::Heal);
    stage.command(Command::Wipe(replicas[4]));
    let repaired = repaired.await.unwrap_or_else(|_| "aborted".to_owned());
    stage.note(|| format!("repair: {repaired}"));
    replicas[2..4].iter().for_each(|node| stage.command(Command::CutOff(*node)));
    tokio::time::sleep(NOTICED).await;
    for coordinator in 0..stage.cluster.coordinators.len() {
        inspector.read(place, None, coordinator, Mood::Stormy).await;
    }
    stage.command(Command::Heal);
}

/// Ends all faults, waits until everything works, reads every key at level all, and checks that replicas agree.
async fn settle(stage: &Arc<Stage>, inspector: &mut Client) {
    stage.command(Command::Heal);
    tokio::time::sleep(Duration::from_millis(100)).await;
    if !drained(stage).await || !everything_answers(stage, inspector).await {
        return;
    }
    // Read repairs run in the background, after the reads that caused them.
    tokio::time::sleep(Duration::from_millis(600)).await;
    for place in stage.places() {
        for coordinator in 0..stage.cluster.coordinators.len() {
            inspector.read(place, Some(Level::All), coordinator, Mood::Calm).await;
        }
    }
    if drained(stage).await {
        tokio::time::sleep(Duration::from_millis(200)).await;
        converged(stage);
    }
}

/// Waits until no coordinator has an operation in flight.
async fn drained(stage: &Stage) -> bool {
    let until = now_micros() + RECOVERY.as_micros() as u64;
    while now_micros() < until {
        let busy = stage.cluster.coordinators.iter().any(|c| c.doors().is_none_or(|doors| doors.in_flight() > 0));
        if !busy {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.violated("recovery: an operation outlives every deadline".to_owned());
    false
}

/// Waits until every key can be read at level all through every coordinator.
async fn everything_answers(stage: &Arc<Stage>, inspector: &mut Client) -> bool {
    let until = now_micros() + RECOVERY.as_micros() as u64;
    for place in stage.places() {
        for coordinator in 0..stage.cluster.coordinators.len() {
            while inspector.read(place, Some(Level::All), coordinator, Mood::Stormy).await.is_none() {
                if now_micros() > until {
                    let name = &stage.cluster.coordinators[coordinator].name;
                    stage.violated(format!("recovery: {place:?} cannot be read at level all through {name}"));
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    true
}

/// Checks that all replicas of each key have the same record.
fn converged(stage: &Stage) {
    for (tenant, key) in stage.places() {
        let place = stage.cluster.place(tenant, &Stage::key((tenant, key)));
        let mut stored: Vec<(String, Option<Record>)> = Vec::new();
        for node in stage.cluster.replicas(tenant, &place) {
            match node.stored(&place) {
                Ok(record) => stored.push((node.name.clone(), record)),
                Err(error) => return stage.violated(format!("convergence: {} cannot read: {error}", node.name)),
            }
        }
        let same = stored.windows(2).all(|pair| match (&pair[0].1, &pair[1].1) {
            (Some(a), Some(b)) => a.same_state(b),
            (a, b) => a.is_none() == b.is_none(),
        });
        if !same {
            stage.violated(format!("convergence: replicas of {:?} differ: {stored:?}", (tenant, key)));
        }
    }
}
