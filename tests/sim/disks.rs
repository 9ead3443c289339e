//! Scenes in which a node comes back with another disk than it had, or with an earlier copy of its own.
//!
//! Each scene lets writes be acknowledged by the node in question and one other of three, and then asks the node and the third.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::oneshot;
use witan_coordinate::{ReadAnswer, ReadRequest, WriteRequest};
use witan_kernel::failure::{Effect, Failed, Failure};
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
        Scene::AllRestored { metadata_too } => return all_restored(stage, metadata_too).await,
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

/// A client reads what was written after the copy was made. After the restore, it still has its context, and repeats a write whose result
/// only the idempotency store remembers. The key is used by nobody else, since what the copy lacks is lost.
async fn all_restored(stage: &Stage, metadata_too: bool) {
    let nodes = 0..stage.cluster.nodes.len();
    if write(stage, "base", None, Bytes::new()).await.is_err() {
        return;
    }
    nodes.clone().for_each(|node| stage.command(Command::Do(Action::CopyDisk { node })));
    let metadata = stage.cluster.copy_metadata();
    tokio::time::sleep(NOTICED).await;
    let repeated = async || write(stage, "repeated", Some("of before"), Bytes::new()).await;
    let (Ok(_), Ok(seen)) = (repeated().await, read(stage).await) else { return };
    nodes.for_each(|node| stage.command(Command::Do(Action::SwapDisk { node })));
    restart_coordinators(stage).await;
    if metadata_too {
        // Nobody can notice, and no one declares it.
        stage.cluster.restore_metadata(&metadata);
    } else {
        stage.cluster.declare_restored();
        stage.new_era.store(true, Ordering::Relaxed);
    }
    tokio::time::sleep(NOTICED).await;
    let Ok(now) = read(stage).await else { return };
    if write(stage, "unseen", None, now.context).await.is_err() {
        return;
    }
    let old = write(stage, "after the restore", None, seen.context).await;
    let again = if metadata_too { Err(None) } else { repeated().await };
    if let (false, Ok(_)) = (metadata_too, &old) {
        stage.violated("restore: a context of the lost era was accepted".to_owned());
    }
    if let Err(Some(Failed { effect: Some(Effect::InDoubt), failure: Failure::ContextOutdated })) = old {
        stage.violated("honesty: a write that was refused for its context is said to be in doubt".to_owned());
    }
    if let Ok(found) = read(stage).await {
        let values: Vec<&Bytes> = found.siblings.iter().map(|sibling| &sibling.value).chain([&found.value]).collect();
        let shows = |text: &[u8]| values.iter().any(|value| value[..] == *text);
        if !shows(b"unseen") {
            stage.violated(format!("restore: a write was superseded by one that had not seen it; left: {values:?}"));
        }
        if again.is_ok() && !shows(b"repeated") {
            stage.violated(format!("restore: a write that was lost was acknowledged again; left: {values:?}"));
        }
    }
}

/// The key of [`Scene::AllRestored`].
fn key() -> Key {
    Key::from_trusted(Bytes::from_static(b"restored"))
}

async fn write(
    stage: &Stage,
    value: &'static str,
    name: Option<&str>,
    context: Bytes,
) -> Result<Bytes, Option<Failed>> {
    let request = WriteRequest {
        tenant: stage.scenario.casts.last().ok_or(None)?.tenant.id.clone(),
        key: key(),
        value: Some(Bytes::from_static(value.as_bytes())),
        level: None,
        idempotency_key: name.map(str::to_owned),
        context,
        timeout: None,
        arrived: None,
    };
    let written = answered(stage, |to| Call::Write(request, to)).await;
    stage.note(|| format!("{value:?}: {written:?}"));
    written.map(|written| written.context)
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
