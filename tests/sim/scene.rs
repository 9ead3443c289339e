//! The stage of scenes: the machines of a play, without its acts, and a hand that does something to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use witan_coordinate::{ReadAnswer, ReadRequest, WriteRequest, Written};
use witan_kernel::failure::Failed;
use witan_kernel::name::Key;
use witan_kernel::tenant::{IdempotencyOutage, Level};

use crate::cluster::{Call, Cluster};
use crate::history::Measured;
use crate::nemesis::{Action, act};
use crate::play::Verdict;
use crate::plugins::Bound;
use crate::scenario::{Play, Scenario};
use crate::world::{Dice, lock, to_value};

/// Plays a scene, on the machines of a play.
pub(crate) type Scene = fn(Play) -> Verdict;

/// Does something to machines, between two steps of the simulation.
#[derive(Clone, Default)]
pub(crate) struct Hand(Arc<Mutex<Vec<Action>>>);

impl Hand {
    /// Returns once it is done.
    pub(crate) async fn does(&self, action: Action) {
        lock(&self.0).push(action);
        while !lock(&self.0).is_empty() {
            tokio::time::sleep(TICK).await;
        }
    }
}

/// Time for the merges that follow a response to be stored.
pub(crate) const MERGED: Duration = Duration::from_secs(1);

const TICK: Duration = Duration::from_millis(1);

/// Runs `scene` on the machines of a scenario that was changed by `shape`, without any of its acts. It returns what it saw that must not
/// be.
pub(crate) fn stage<F>(
    play: Play,
    name: &'static str,
    shape: impl FnOnce(&mut Scenario),
    scene: impl FnOnce(Cluster, Hand) -> F,
) -> Verdict
where
    F: Future<Output = Vec<String>> + 'static,
{
    let mut scenario = Scenario::of(play);
    shape(&mut scenario);
    let dice = Dice::new(scenario.seed);
    let tenants = scenario.casts.iter().map(|cast| {
        let mut tenant = cast.tenant.clone();
        tenant.idempotency_outage = IdempotencyOutage::Reject;
        tenant
    });
    let bound = Bound { tenants: HashMap::new(), faulty: Arc::default(), lenient: Arc::default(), dice: dice.clone() };
    let cluster = Cluster::new(&scenario, tenants.collect(), bound, &dice);
    let mut sim = turmoil::Builder::new()
        .rng_seed(scenario.seed)
        .epoch(UNIX_EPOCH)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(150))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(scenario.latency_ms))
        .tcp_capacity(1024)
        .build();
    cluster.boot(&mut sim);
    let (to, mut seen) = mpsc::unbounded_channel();
    let hand = Hand::default();
    let playing = scene(cluster.clone(), hand.clone());
    sim.client("clients", async move {
        to.send(playing.await).expect("the test waits for it");
        Ok(())
    });
    let aborted = loop {
        match sim.step() {
            Ok(true) => break None,
            Ok(false) => {}
            Err(error) => break Some(format!("aborted: {error}")),
        }
        lock(&hand.0).drain(..).for_each(|action| act(&action, &mut sim, &cluster));
    };
    let virtual_time = sim.elapsed();
    drop(sim);
    let mut violations: Vec<String> = aborted.into_iter().collect();
    violations.extend(seen.try_recv().unwrap_or_else(|_| vec!["aborted: the scene has not ended".to_owned()]));
    violations.append(&mut lock(&cluster.wrong_figures));
    Verdict { scenario: name, violations, hash: 0, log: String::new(), measured: Measured::default(), virtual_time }
}

pub(crate) fn write(cluster: &Cluster, value: u32, timeout: Duration) -> WriteRequest {
    WriteRequest {
        tenant: cluster.tenants[0].id.clone(),
        key: Key::new("key-0").expect("a key"),
        value: Some(to_value(&[value].into(), 0)),
        level: None,
        idempotency_key: None,
        context: Bytes::new(),
        arrived: None,
        timeout: Some(timeout),
    }
}

/// Sends a write to the first coordinator, once it is up.
pub(crate) async fn send(cluster: &Cluster, request: WriteRequest) -> Result<Written, Failed> {
    loop {
        let (to, answer) = oneshot::channel();
        if let Some(doors) = cluster.coordinators[0].doors()
            && doors.calls.send(Call::Write(request.clone(), to)).is_ok()
        {
            return answer.await.expect("an answer");
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Writes until the coordinator has lanes to its nodes.
pub(crate) async fn everything_works(cluster: &Cluster) {
    while send(cluster, write(cluster, 0, Duration::from_secs(2))).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads the key from a quorum through the first coordinator, once it is up.
pub(crate) async fn read(cluster: &Cluster, timeout: Duration) -> Result<ReadAnswer, Failed> {
    let (tenant, key) = (cluster.tenants[0].id.clone(), Key::new("key-0").expect("a key"));
    let request = ReadRequest { tenant, key, level: Some(Level::Quorum), arrived: None, timeout: Some(timeout) };
    loop {
        let (to, answer) = oneshot::channel();
        if let Some(doors) = cluster.coordinators[0].doors()
            && doors.calls.send(Call::Read(request.clone(), to)).is_ok()
        {
            return answer.await.expect("an answer");
        }
        tokio::time::sleep(TICK).await;
    }
}
