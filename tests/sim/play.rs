//! Runs one simulation, from its seed to its verdict.

mod settle;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use futures::future::join_all;
use tokio::sync::oneshot;

use crate::buried;
use crate::check;
use crate::client::Client;
use crate::cluster::{Call, Cluster};
use crate::disks;
use crate::fences;
use crate::healing;
use crate::history::Place;
use crate::history::{INSPECTOR, Measured};
use crate::missed;
use crate::moves;
use crate::nemesis::{Action, Link, Troubles, act, heal};
use crate::plugins::Bound;
use crate::refilled;
use crate::repairs::{NOTICED, holder, repair};
use crate::scenario::{Act, Scenario};
use crate::stage::{Command, Mood, Stage};
use crate::world::{Dice, lock};

pub(crate) use settle::{converged, differing, drained};
use settle::{everything_answers, settle};

/// Virtual time of one step. Messages are delivered between steps.
const TICK: Duration = Duration::from_millis(3);
/// Batches that a damaged disk loses: the end of a journal.
const LOST: usize = 12;
/// Limit on the virtual time of a simulation.
const LONGEST: Duration = Duration::from_secs(600);

/// The result of a simulation.
pub(crate) struct Verdict {
    pub(crate) scenario: &'static str,
    pub(crate) violations: Vec<String>,
    pub(crate) hash: u64,
    pub(crate) log: String,
    pub(crate) measured: Measured,
    pub(crate) virtual_time: Duration,
}

/// Runs a scenario on this thread.
pub(crate) fn play(scenario: Scenario, verbose: bool) -> Verdict {
    let dice = Dice::new(scenario.seed);
    let tenants = scenario.casts.iter().map(|cast| cast.tenant.clone()).collect();
    let bound = Bound {
        tenants: scenario.casts.iter().map(|cast| (cast.tenant.id.clone(), (cast.resolver, cast.policy))).collect(),
        faulty: Arc::default(),
        lenient: Arc::default(),
        dice: dice.clone(),
    };
    let cluster = Cluster::new(&scenario, tenants, bound, &dice);
    let mut sim = turmoil::Builder::new()
        .rng_seed(scenario.seed)
        .epoch(UNIX_EPOCH)
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(scenario.latency_ms))
        .tcp_capacity(1024)
        .build();
    cluster.boot(&mut sim);
    let name = scenario.name;
    let stage = Arc::new(Stage::new(scenario, cluster.clone(), verbose));
    sim.client("clients", direct(Arc::clone(&stage)));
    if let Err(error) = run(&mut sim, &cluster, &stage) {
        lock(&stage.violations).push(format!("aborted: {error}"));
    }
    let virtual_time = sim.elapsed();
    drop(sim);
    let operations = stage.history.operations();
    let mut violations = std::mem::take(&mut *lock(&stage.violations));
    let is_collapsed = |place: Place| cluster.collapsed.contains(&cluster.place(place.0, &Stage::key(place)));
    violations.append(&mut lock(&cluster.wrong_figures));
    violations.extend(check::all(&stage.scenario, &operations, is_collapsed));
    let measured = stage.history.measured();
    let (hash, log) = stage.history.close();
    Verdict { scenario: name, violations, hash, log, measured, virtual_time }
}

/// Steps the simulation, and applies due actions and the play's commands between steps.
fn run(sim: &mut turmoil::Sim<'_>, cluster: &Cluster, stage: &Stage) -> turmoil::Result {
    let mut due: VecDeque<(Duration, Action)> = VecDeque::new();
    let mut troubles = Troubles::default();
    loop {
        while due.front().is_some_and(|(at, _)| *at <= sim.elapsed()) {
            if let Some((at, action)) = due.pop_front() {
                apply(&action, at, sim, stage, &mut troubles);
            }
        }
        if sim.step()? || !lock(&stage.violations).is_empty() {
            return Ok(());
        }
        let commands = std::mem::take(&mut *lock(&stage.commands));
        for command in commands {
            let now = sim.elapsed();
            match command {
                Command::Storm(storm) => {
                    due = storm.into_iter().map(|(ms, action)| (now + Duration::from_millis(ms), action)).collect();
                }
                Command::StormToo(storm) => {
                    due.extend(storm.into_iter().map(|(ms, action)| (now + Duration::from_millis(ms), action)));
                    due.make_contiguous().sort_by_key(|(at, _)| *at);
                }
                Command::Heal => {
                    due.clear();
                    stage.history.note(now.as_micros() as u64, || "healed".to_owned());
                    heal(sim, cluster);
                    troubles.healed();
                    stage.history.disturbed(false, 0);
                }
                // At once: a storm that begins in the same step replaces what is due.
                Command::Wipe(node) => apply(&Action::Wipe { node }, now, sim, stage, &mut troubles),
                Command::Do(action) => apply(&action, now, sim, stage, &mut troubles),
                Command::CutOff(node) => (0..cluster.coordinators.len()).for_each(|coordinator| {
                    let cut = Action::Link { coordinator, node, becomes: Link::Cut };
                    apply(&cut, now, sim, stage, &mut troubles);
                }),
            }
        }
    }
}

fn apply(action: &Action, at: Duration, sim: &mut turmoil::Sim<'_>, stage: &Stage, troubles: &mut Troubles) {
    stage.history.note(at.as_micros() as u64, || format!("{action:?}"));
    act(action, sim, &stage.cluster);
    let begins = troubles.after(action, stage.cluster.nodes.len());
    stage.history.disturbed(begins, troubles.going_on());
}

/// Performs the acts in order.
async fn direct(stage: Arc<Stage>) -> turmoil::Result {
    let mut clients: Vec<Client> = (0..stage.scenario.clients).map(|id| Client::new(id, Arc::clone(&stage))).collect();
    let mut inspector = Client::new(INSPECTOR, Arc::clone(&stage));
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
            Act::WipeNext => stage.command(Command::Wipe(holder(&stage, 1))),
            Act::Damage => {
                stage.command(Command::Do(Action::Damage { node: holder(&stage, 0), batches: LOST }));
            }
            Act::Fence => fences::play(&stage).await,
            Act::Rebind => fences::rebind(&stage).await,
            Act::Disks(scene) => disks::play(scene, &stage, &mut clients, &mut inspector).await,
            Act::WipeBoth => {
                stage.command(Command::Wipe(holder(&stage, 0)));
                stage.command(Command::Wipe(holder(&stage, 1)));
            }
            Act::TidyUp => {
                for client in &mut clients {
                    client.tidy_up(Mood::Calm).await;
                }
            }
            Act::NoRoom => no_room(&stage, &mut clients).await,
            Act::TryRepair => try_repair(&stage, false).await,
            Act::TryRepairOnFullDisks => try_repair(&stage, true).await,
            Act::Repair => repair(&stage).await,
            Act::Away { from_all } => healing::away(&stage, &mut clients, from_all).await,
            Act::Miss { why, relapses } => missed::miss(&stage, &mut clients, why, relapses).await,
            Act::Replace { operations, storm, back_after_ms } => {
                refilled::play(&stage, &mut clients, operations, storm, back_after_ms).await;
            }
            Act::Level => healing::level(&stage).await,
            Act::Pass { hours } => buried::pass(&stage, hours).await,
            Act::DeleteAll => buried::delete_all(&stage, &mut inspector).await,
            Act::Gone => buried::gone(&stage).await,
            Act::Move { operations, storm, changes, unaware } => {
                moves::play(&stage, &mut clients, operations, storm, changes, unaware).await;
            }
            Act::Moved => moves::moved(&stage).await,
            Act::Grow => grow(&stage, &mut inspector).await,
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
    if !stage.scenario.torn {
        settle(&stage, &mut inspector).await;
    }
    Ok(())
}

/// Time for a command to take effect.
const SOON: Duration = Duration::from_millis(20);

/// Performs [`Act::NoRoom`].
async fn no_room(stage: &Stage, clients: &mut [Client]) {
    let full = |full| (0..stage.cluster.nodes.len()).map(move |node| (0, Action::FullDisk { node, full })).collect();
    stage.command(Command::Storm(full(true)));
    tokio::time::sleep(SOON).await;
    join_all(clients.iter_mut().map(Client::is_refused)).await;
    stage.command(Command::Storm(full(false)));
    tokio::time::sleep(SOON).await;
}

/// Longer than a repair waits before it begins, and than all its attempts at one merge take together. Milliseconds.
const FULL_FOR_MS: u64 = 14_000;

/// Asks for one repair, whatever becomes of it.
async fn try_repair(stage: &Stage, on_full_disks: bool) {
    stage.command(Command::Heal);
    tokio::time::sleep(NOTICED).await;
    let Some(doors) = stage.cluster.coordinators[0].doors() else { return };
    if on_full_disks {
        let nodes = 0..stage.cluster.nodes.len();
        let full = |at, full| nodes.clone().map(move |node| (at, Action::FullDisk { node, full }));
        stage.command(Command::Storm(full(0, true).chain(full(FULL_FOR_MS, false)).collect()));
    }
    let (to, answer) = oneshot::channel();
    let _ = doors.calls.send(Call::Repair(Duration::ZERO, to));
    let repaired = answer.await.unwrap_or_else(|_| "aborted".to_owned());
    stage.note(|| format!("repair: {repaired}"));
    stage.command(Command::Heal);
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
