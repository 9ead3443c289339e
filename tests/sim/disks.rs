//! Scenes in which a node comes back with another disk than it had, or with an earlier copy of its own.
//!
//! Each scene lets writes be acknowledged by the node in question and one other of three, and then asks the node and the third.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::oneshot;
use witan_coordinate::{ReadAnswer, ReadRequest, WriteRequest};
use witan_kernel::failure::Failed;
use witan_kernel::name::Key;

use crate::client::Client;
use crate::cluster::Call;
use crate::nemesis::Action;
use crate::repairs::{NOTICED, holder, repair};
use crate::scenario::Scene;
use crate::stage::{Command, Mood, Stage};

/// Operations of each client while one node is away.
const OPERATIONS: usize = 5;

/// Plays a scene.
pub(crate) async fn play(scene: Scene, stage: &Stage, clients: &mut [Client], inspector: &mut Client) {
    let [node, _, third] = [0, 1, 2].map(|replica| holder(stage, replica));
    match scene {
        Scene::Unmounted => {
            swap(stage, node).await;
            without(stage, third, clients).await;
            swap(stage, node).await;
        }
        Scene::BackWhileFilling => {
            swap(stage, node).await;
            let repaired = begin_repair(stage);
            tokio::time::sleep(Duration::from_secs(1)).await;
            without(stage, third, clients).await;
            swap(stage, node).await;
            asked(stage, clients, inspector).await;
            let repaired = repaired.await.unwrap_or_else(|_| "aborted".to_owned());
            stage.note(|| format!("repair: {repaired}"));
            if repaired.contains(&format!("restored: [{}]", stage.cluster.nodes[node].id)) {
                // Clients were so slow that the repair had ended before: then its own disk is the one that is retired.
                swap(stage, node).await;
            }
        }
        Scene::BackAfterRepair => {
            swap(stage, node).await;
            repair(stage).await;
            without(stage, third, clients).await;
            swap(stage, node).await;
            asked(stage, clients, inspector).await;
            swap(stage, node).await;
        }
        Scene::SetBack { coordinators_too } => {
            stage.command(Command::Do(Action::CopyDisk { node }));
            without(stage, third, clients).await;
            if coordinators_too {
                restart_coordinators(stage).await;
            }
            swap(stage, node).await;
            asked(stage, clients, inspector).await;
            stage.command(Command::Wipe(node));
            tokio::time::sleep(NOTICED).await;
            repair(stage).await;
        }
        Scene::AllRestored => return all_restored(stage).await,
    }
    asked(stage, clients, inspector).await;
}

/// Exchanges a node's disk for the one on its shelf, and waits until coordinators have noticed.
async fn swap(stage: &Stage, node: usize) {
    stage.command(Command::Do(Action::SwapDisk { node }));
    tokio::time::sleep(NOTICED).await;
}

/// Clients work while a node cannot be reached.
async fn without(stage: &Stage, node: usize, clients: &mut [Client]) {
    stage.command(Command::CutOff(node));
    tokio::time::sleep(NOTICED).await;
    join_all(clients.iter_mut().map(|client| client.work(OPERATIONS, Mood::Stormy))).await;
    stage.command(Command::Heal);
    tokio::time::sleep(NOTICED).await;
}

/// Every key is read while the node cannot be reached that has acknowledged what the scene's node may lack.
async fn asked(stage: &Stage, clients: &mut [Client], inspector: &mut Client) {
    let second = holder(stage, 1);
    stage.command(Command::CutOff(second));
    tokio::time::sleep(NOTICED).await;
    for place in stage.places() {
        for coordinator in 0..stage.cluster.coordinators.len() {
            inspector.read(place, None, coordinator, Mood::Stormy).await;
        }
    }
    join_all(clients.iter_mut().map(|client| client.work(1, Mood::Stormy))).await;
    stage.command(Command::Heal);
    tokio::time::sleep(NOTICED).await;
}

fn begin_repair(stage: &Stage) -> oneshot::Receiver<String> {
    let (to, repaired) = oneshot::channel();
    if let Some(doors) = stage.cluster.coordinators[0].doors() {
        let _ = doors.calls.send(Call::Repair(Duration::ZERO, to));
    }
    repaired
}

async fn restart_coordinators(stage: &Stage) {
    let all = 0..stage.cluster.coordinators.len();
    all.clone().for_each(|coordinator| stage.command(Command::Do(Action::CrashCoordinator { coordinator })));
    tokio::time::sleep(Duration::from_millis(100)).await;
    all.for_each(|coordinator| stage.command(Command::Do(Action::RestartCoordinator { coordinator })));
    tokio::time::sleep(NOTICED).await;
}

/// A client reads what was written after the copy was made. After the restore, a write that it has never seen is acknowledged, and it
/// writes with the context that it still has: both must be there. The key is used by nobody else, since what the copy lacks is lost.
async fn all_restored(stage: &Stage) {
    let nodes = 0..stage.cluster.nodes.len();
    let Ok(base) = write(stage, "base", Bytes::new()).await else { return };
    nodes.clone().for_each(|node| stage.command(Command::Do(Action::CopyDisk { node })));
    tokio::time::sleep(NOTICED).await;
    let Ok(_) = write(stage, "before the restore", base.clone()).await else { return };
    let Ok(seen) = read(stage).await else { return };
    nodes.for_each(|node| stage.command(Command::Do(Action::SwapDisk { node })));
    restart_coordinators(stage).await;
    stage.cluster.declare_restored();
    tokio::time::sleep(NOTICED).await;
    if write(stage, "unseen", base).await.is_err() || write(stage, "after the restore", seen.context).await.is_err() {
        return;
    }
    if let Ok(found) = read(stage).await {
        let values: Vec<&Bytes> = found.siblings.iter().map(|sibling| &sibling.value).collect();
        if !values.iter().any(|value| value[..] == *b"unseen") {
            stage.violated(format!("restore: a write was superseded by one that had not seen it; left: {values:?}"));
        }
    }
}

/// The key of [`Scene::AllRestored`].
fn key() -> Key {
    Key::from_trusted(Bytes::from_static(b"restored"))
}

async fn write(stage: &Stage, value: &'static str, context: Bytes) -> Result<Bytes, ()> {
    let request = WriteRequest {
        tenant: stage.scenario.casts.last().ok_or(())?.tenant.id.clone(),
        key: key(),
        value: Some(Bytes::from_static(value.as_bytes())),
        level: None,
        idempotency_key: None,
        context,
        timeout: None,
        arrived: None,
    };
    let written = answered(stage, |to| Call::Write(request, to)).await;
    stage.note(|| format!("{value:?}: {written:?}"));
    written.map(|written| written.context).map_err(drop)
}

async fn read(stage: &Stage) -> Result<ReadAnswer, ()> {
    let tenant = stage.scenario.casts.last().ok_or(())?.tenant.id.clone();
    let request = ReadRequest { tenant, key: key(), level: None, timeout: None, arrived: None };
    let found = answered(stage, |to| Call::Read(request, to)).await;
    stage.note(|| format!("found: {found:?}"));
    found.map_err(drop)
}

async fn answered<T>(
    stage: &Stage,
    call: impl FnOnce(oneshot::Sender<Result<T, Failed>>) -> Call,
) -> Result<T, Option<Failed>> {
    let (to, answer) = oneshot::channel();
    let doors = stage.cluster.coordinators[0].doors().ok_or(None)?;
    let _ = doors.calls.send(call(to));
    answer.await.map_err(|_| None)?.map_err(Some)
}
