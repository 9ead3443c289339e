//! Scenes of what is reported: that a node's store has failed, and what has become of a change whose coordinator was killed.

use std::time::Duration;

use tokio::sync::oneshot;
use witan_coordinate::WriteRequest;
use witan_kernel::condition::Condition;
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::name::Key;

use crate::cluster::{Call, Cluster};
use crate::nemesis::Action;
use crate::oracle::Content;
use crate::play::Verdict;
use crate::repairs::NOTICED;
use crate::scenario::{Play, Scenario};
use crate::scene::{MERGED, Scene, everything_works, read, send, stage, write};
use crate::world::{now_micros, to_value};

/// The scenes.
pub(crate) const ALL: [Scene; 2] = [store_fails, killed_before_recording];

/// Three nodes, of which nobody but the scene takes care, and one tenant with three replicas; false if the play has no such tenant.
pub(crate) fn alone(scenario: &mut Scenario, siblings: bool) -> bool {
    scenario.casts.retain(|cast| cast.is_register() != siblings);
    scenario.casts.truncate(1);
    (scenario.nodes, scenario.heals, scenario.moves, scenario.spare, scenario.strict) = (3, None, false, 0, false);
    for cast in &mut scenario.casts {
        cast.comes_later = false;
        cast.tenant.replication_factor = 3;
    }
    !scenario.casts.is_empty()
}

/// Reads of which it is counted whom they ask.
const READS: usize = 30;
/// Of these, as many may ask the node that has failed: a read asks one node more when an answer is late.
const SOME: u64 = READS as u64 / 3;

/// The node that is read most cannot sync any longer. Every coordinator shows that its store has failed, no operation fails because of it,
/// and it is asked last from then on.
pub(crate) fn store_fails(play: Play) -> Verdict {
    let siblings = !Scenario::of(play).casts.iter().any(|cast| cast.is_register());
    let shape = |scenario: &mut Scenario| {
        alone(scenario, siblings);
    };
    stage(play, "store-fails", shape, |cluster, hand| async move {
        everything_works(&cluster).await;
        tokio::time::sleep(NOTICED).await;
        let mut violations = read_often(&cluster).await;
        let Some(doors) = cluster.coordinators[0].doors() else { return violations };
        let most = (0..cluster.nodes.len()).max_by_key(|node| doors.reads(&cluster.nodes[*node].id)).unwrap_or(0);
        let id = &cluster.nodes[most].id;

        hand.does(Action::FailSyncs { node: most }).await;
        if let Err(failed) = send(&cluster, write(&cluster, 1, Duration::from_secs(2))).await {
            violations.push(format!("recovery: a write with a quorum of stores that are well has failed: {failed:?}"));
        }
        tokio::time::sleep(NOTICED).await;
        for coordinator in &cluster.coordinators {
            let condition = coordinator.doors().and_then(|doors| doors.condition(id));
            if !condition.as_ref().is_some_and(Condition::is_failed) {
                let name = &coordinator.name;
                violations.push(format!("health: the store of {id} has failed, and {name} shows {condition:?}"));
            }
        }
        let before = doors.reads(id);
        violations.extend(read_often(&cluster).await);
        let asked = doors.reads(id) - before;
        if asked > SOME {
            violations.push(format!("health: {id}, whose store has failed, was asked in {asked} of {READS} reads"));
        }
        violations
    })
}

async fn read_often(cluster: &Cluster) -> Vec<String> {
    let mut violations = Vec::new();
    for _ in 0..READS {
        if let Err(failed) = read(cluster, Duration::from_secs(2)).await {
            violations.push(format!("recovery: a read has failed: {failed:?}"));
        }
    }
    violations
}

/// Writes to the key that follow: more than a replica keeps names of.
const OTHERS: u32 = 75;
/// How long the repetition waits for the first attempt's reservation to end.
const RESERVED: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);
const CALM: Duration = Duration::from_secs(5);

/// A coordinator is killed after replicas have stored a write of siblings, and before that is recorded under its idempotency key. Others
/// write over it, more often than replicas keep names. Repeated then, while everything is well, the write is either acknowledged or in
/// doubt for a reason of its own; too few answers are no reason, and it does not come back beside what has replaced it.
pub(crate) fn killed_before_recording(play: Play) -> Verdict {
    const NAME: &str = "killed-before-recording";
    if !alone(&mut Scenario::of(play), true) {
        return stage(play, NAME, |_| {}, |_, _| async { Vec::new() });
    }
    let shape = |scenario: &mut Scenario| {
        alone(scenario, true);
    };
    stage(play, NAME, shape, |cluster, hand| async move {
        everything_works(&cluster).await;
        tokio::time::sleep(MERGED).await;
        let mine = WriteRequest { idempotency_key: Some("intention".to_owned()), ..write(&cluster, 1, CALM) };
        let (to, _nobody_waits) = oneshot::channel();
        if let Some(doors) = cluster.coordinators[0].doors() {
            let _ = doors.calls.send(Call::Write(mine.clone(), to));
        }
        while !is_stored(&cluster) {
            tokio::time::sleep(TICK).await;
        }
        hand.does(Action::CrashCoordinator { coordinator: 0 }).await;
        hand.does(Action::RestartCoordinator { coordinator: 0 }).await;
        everything_works(&cluster).await;

        let mut violations = Vec::new();
        for number in 2..2 + OTHERS {
            // The context of a read: that of a write would go on naming the first write, which nobody would forget.
            let context = match read(&cluster, CALM).await {
                Ok(answer) => answer.context,
                Err(failed) => return vec![format!("recovery: a read has failed: {failed:?}")],
            };
            let over = WriteRequest { context, ..write(&cluster, number, CALM) };
            if let Err(failed) = send(&cluster, over).await {
                return vec![format!("recovery: write {number} has failed: {failed:?}")];
            }
        }
        let until = now_micros() + RESERVED.as_micros() as u64;
        let again = loop {
            match send(&cluster, mine.clone()).await {
                Err(Failed { failure: Failure::InProgress { .. }, .. }) if now_micros() < until => {
                    tokio::time::sleep(CALM / 10).await;
                }
                answer => break answer,
            }
        };
        let forgotten =
            |failed: &Failed| matches!(failed, Failed { failure: Failure::Forgotten, effect: Some(Effect::InDoubt) });
        if let Err(failed) = &again
            && !forgotten(failed)
        {
            violations.push(format!("reason: a repetition, with all nodes well, was answered {failed:?}: {failed}"));
        }
        tokio::time::sleep(MERGED).await;
        match read(&cluster, CALM).await {
            Ok(answer) if answer.siblings.is_empty() && answer.value == to_value(&[1 + OTHERS].into(), 0) => {}
            other => violations.push(format!("siblings: after {again:?}, a read shows {other:?}")),
        }
        violations
    })
}

/// Whether a quorum of the replicas has the first write.
fn is_stored(cluster: &Cluster) -> bool {
    let (place, value) = (cluster.place(0, &Key::new("key-0").expect("a key")), to_value(&[1].into(), 0));
    let has = |content: &Content| content.values().contains(&&value[..]);
    let replicas = cluster.replicas(0, &place);
    replicas.iter().filter(|node| node.content(&place).is_ok_and(|content| content.as_ref().is_some_and(has))).count()
        >= 2
}
