//! A node's disk is replaced, and an operator asks to fill it: nothing may rest on the node before, and the migration must say how it
//! ended.

use std::time::Duration;

use futures::future::join_all;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::moves::replaces::{Fate, fate};
use witan_kernel::port::{Duty, Metadata, MigrationStatus, PlacementChange};

use crate::client::Client;
use crate::nemesis::{Action, Storm};
use crate::repairs::{NOTICED, holder};
use crate::stage::{Command, Mood, Stage};
use crate::world::now_micros;

/// Within this time a migration must have ended: the claim of a coordinator that has crashed expires after 30 s, a fill waits for 10 s
/// before it begins, and reads slowly in some plays.
const ENDED: Duration = Duration::from_secs(180);
/// How often the operator asks again: what has failed in the storm would be tried again after a minute, or an hour.
const AGAIN: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(500);

/// Performs [`Act::Replace`](crate::scenario::Act::Replace).
pub(crate) async fn play(
    stage: &Stage,
    clients: &mut [Client],
    operations: usize,
    storm: Storm,
    back_after_ms: Option<u64>,
) {
    let node = holder(stage, 0);
    stage.command(Command::Do(Action::SwapDisk { node }));
    tokio::time::sleep(NOTICED).await;
    let metadata = stage.cluster.metadata();
    let Some(number) = ask(stage, &metadata, node).await else { return };
    stage.command(Command::Storm(storm));
    let working = join_all(clients.iter_mut().map(|client| client.work(operations, Mood::Stormy)));
    let swapping = async {
        let Some(ms) = back_after_ms else { return };
        tokio::time::sleep(Duration::from_millis(ms)).await;
        stage.command(Command::Do(Action::SwapDisk { node }));
    };
    futures::future::join(working, swapping).await;
    stage.command(Command::Heal);
    tokio::time::sleep(NOTICED).await;
    let id = &stage.cluster.nodes[node].id;
    if back_after_ms.is_some() && on_record(&metadata, id).await != stage.cluster.nodes[node].store_id() {
        // It was filled before, and its own disk is the one that is retired.
        stage.command(Command::Do(Action::SwapDisk { node }));
    }
    ended(stage, &metadata, number).await;
}

/// Asks to fill the disk that the node shows now.
async fn ask(stage: &Stage, metadata: &dyn Metadata, node: usize) -> Option<u64> {
    let machine = &stage.cluster.nodes[node];
    let (from, to) = (on_record(metadata, &machine.id).await?, machine.store_id()?);
    let change = PlacementChange::ReplaceStore { node: machine.id.clone(), from, to, accept_loss: false };
    let recorded = metadata.change_placement(change, 0).await;
    stage.note(|| format!("replaced: {recorded:?}"));
    let wanted = metadata.want_duty(&Duty::fill()).await;
    if let (Ok(recorded), Ok(())) = (&recorded, wanted) {
        return Some(recorded.number);
    }
    stage.violated(format!("replace: refused although nothing prevents it: {recorded:?}"));
    None
}

async fn on_record(metadata: &dyn Metadata, id: &NodeId) -> Option<StoreId> {
    let nodes = metadata.nodes().await.ok()?;
    nodes.into_iter().find(|known| known.node.id == *id)?.store_id
}

/// All faults have ended: the migration must say that the store is whole, or that it was given up.
async fn ended(stage: &Stage, metadata: &dyn Metadata, number: u64) {
    let until = now_micros() + ENDED.as_micros() as u64;
    let (mut last, mut share, mut again) = (String::new(), 0.0, 0);
    while now_micros() < until {
        if now_micros() >= again {
            again = now_micros() + AGAIN.as_micros() as u64;
            drop(metadata.want_duty(&Duty::fill()).await);
        }
        let (of, nodes, stores) = (metadata.migration(number).await, metadata.nodes().await, metadata.stores().await);
        if let (Ok(of), Ok(nodes), Ok(stores)) = (of, nodes, stores) {
            let (done, total) = (of.progress.keys_done as f64, of.progress.keys_total as f64);
            let now = if total > 0.0 { done / total } else { 0.0 };
            if now < share {
                stage.violated(format!("replace: progress falls from {share} to {now}"));
            }
            share = now;
            let is = fate(&of.change, &nodes, &stores);
            last = format!("{is:?}, {:?}, {:?}", of.status, of.progress);
            let fits = match of.status {
                MigrationStatus::Completed => is == Fate::Whole,
                MigrationStatus::Cancelled => matches!(is, Fate::GivenUp(_)),
                MigrationStatus::Pending | MigrationStatus::InProgress | MigrationStatus::Failed => false,
            };
            if of.status.has_ended() && !fits {
                stage.violated(format!("replace: it has not ended like this: {last}"));
            }
            if fits {
                return stage.note(|| format!("replaced: {last}"));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    stage.violated(format!("replace: not ended after {ENDED:?} without a fault: {last}"));
}
