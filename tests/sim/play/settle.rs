//! The end of a storm: everything must work again, replicas must agree, and nothing may be left over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use witan_coordinate::UnderWay;
use witan_kernel::tenant::Level;

use crate::client::Client;
use crate::cluster::{Call, RECOVERY};
use crate::history::{INSPECTOR, Intention, Operation, Outcome, Place};
use crate::oracle::{self, Content};
use crate::stage::{Command, Mood, Stage};
use crate::world::{Tags, from_value, now_micros};

/// By then a coordinator has given up an attempt to connect that a fault has swallowed, and made another.
const CONNECTED_AGAIN: Duration = Duration::from_secs(5);

/// Ends all faults, waits until everything works, reads every key at level all, and checks that replicas agree.
pub(super) async fn settle(stage: &Arc<Stage>, inspector: &mut Client) {
    stage.command(Command::Heal);
    tokio::time::sleep(Duration::from_millis(100)).await;
    if !drained(stage).await || !everything_answers(stage, inspector).await {
        return;
    }
    let policies = stage.scenario.casts.iter().any(|cast| cast.policy);
    if policies {
        // A policy may accept that a node does not answer, so that everything answers while a connection is still being made.
        tokio::time::sleep(CONNECTED_AGAIN).await;
    }
    // Read repairs run in the background, after the reads that caused them.
    tokio::time::sleep(Duration::from_millis(600)).await;
    for place in stage.places() {
        for coordinator in 0..stage.cluster.coordinators.len() {
            inspector.read(place, Some(Level::All), coordinator, Mood::Calm).await;
        }
    }
    if policies {
        // A policy may accept that a read at level all is answered by fewer replicas: then it repairs fewer, too.
        repair(stage).await;
    }
    if drained(stage).await {
        // The answers that the last operations did not wait for arrive, or are given up.
        tokio::time::sleep(Duration::from_millis(200)).await;
        converged(stage);
        nothing_leaks(stage);
    }
}

/// Repairs every record once.
async fn repair(stage: &Stage) {
    let Some(doors) = stage.cluster.coordinators[0].doors() else {
        return stage.violated("recovery: a coordinator is not back".to_owned());
    };
    let (to, answer) = oneshot::channel();
    let _ = doors.calls.send(Call::Repair(Duration::ZERO, to));
    let repaired = answer.await.unwrap_or_else(|_| "aborted".to_owned());
    stage.note(|| format!("repair: {repaired}"));
}

/// Waits until no coordinator has an operation in flight.
pub(crate) async fn drained(stage: &Stage) -> bool {
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
pub(super) async fn everything_answers(stage: &Arc<Stage>, inspector: &mut Client) -> bool {
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

/// How replicas of some key differ, or why that cannot be said; `None` if they are level.
pub(crate) fn differing(stage: &Stage) -> Option<String> {
    stage.places().into_iter().find_map(|(tenant, key)| {
        let place = stage.cluster.place(tenant, &Stage::key((tenant, key)));
        let replicas = stage.cluster.replicas(tenant, &place).into_iter();
        let stored: Result<Vec<_>, String> =
            replicas.map(|node| Ok((node.name.clone(), node.content(&place)?))).collect();
        let difference = stored.map_or_else(Some, |stored| oracle::differs(&stored));
        difference.map(|difference| format!("replicas of {:?} differ: {difference}", (tenant, key)))
    })
}

/// Checks that all replicas of each key have the same content, and notes it as what a read of all of them would show.
pub(crate) fn converged(stage: &Stage) {
    for (tenant, key) in stage.places() {
        let place = stage.cluster.place(tenant, &Stage::key((tenant, key)));
        let mut stored: Vec<(String, Option<Content>)> = Vec::new();
        for node in stage.cluster.replicas(tenant, &place) {
            match node.content(&place) {
                Ok(content) => stored.push((node.name.clone(), content)),
                Err(error) => return stage.violated(format!("convergence: {} cannot be read: {error}", node.name)),
            }
        }
        if let Some(difference) = oracle::differs(&stored) {
            return stage.violated(format!("convergence: replicas of {:?} differ: {difference}", (tenant, key)));
        }
        if let Some(content) = stored.into_iter().next().and_then(|(_, content)| content) {
            contents(stage, (tenant, key), &content);
        }
    }
}

/// Notes what replicas have stored as a read at level all: the checks judge it like any other, without the code that serves reads.
fn contents(stage: &Stage, place: Place, content: &Content) {
    if let Some(flaw) = content.flaw() {
        return stage.violated(format!("contents: of {place:?}: {flaw}"));
    }
    let tags: Option<Vec<Tags>> = content.values().into_iter().map(from_value).collect();
    let Some(tags) = tags else {
        return stage.violated(format!("contents: {place:?} holds what no client wrote: {content:?}"));
    };
    let replicas = stage.scenario.casts[place.0].tenant.replication_factor;
    let index = stage.history.start(Operation::new(INSPECTOR, place, Intention::Read, replicas, replicas));
    stage.history.end(index, Outcome::Shown(tags.into_iter().flatten().collect()));
}

/// Checks that everything that operations take has been given back once none is under way.
fn nothing_leaks(stage: &Stage) {
    for coordinator in &stage.cluster.coordinators {
        let Some(doors) = coordinator.doors() else { continue };
        let left = doors.under_way();
        if left != UnderWay::default() {
            stage.violated(format!("leak: {} has no operation under way, and holds {left:?}", coordinator.name));
        }
        for node in &stage.cluster.nodes {
            let unanswered = doors.unanswered(&node.id);
            if unanswered > 0 {
                let (from, to) = (&coordinator.name, &node.name);
                stage
                    .violated(format!("leak: {from} waits for {unanswered} answers of {to}, and nothing is under way"));
            }
        }
    }
}
