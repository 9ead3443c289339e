//! Days pass, and what is left of deleted keys goes: nothing that was deleted comes back, and in the end no row of it is left.

use std::time::Duration;

use witan_kernel::limit::LONGEST_DEADLINE;

use crate::client::Client;
use crate::nemesis::Action;
use crate::stage::{Command, Stage};
use crate::world::{lock, now_micros};

/// Within this time no row of a deleted key may be left once nothing fails any longer: each part of the ring is compared every few seconds,
/// one after the other, and looked at again after 15 s; the claim of a coordinator that has crashed expires after 30 s, and a pass in
/// which a replica was missing is repeated after a while.
const GONE: Duration = Duration::from_secs(200);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(500);
/// Attempts at a change that must succeed.
const ATTEMPTS: u64 = 20;
/// What is under way when days pass has ended before, and a moment.
const ENDS: Duration = LONGEST_DEADLINE.saturating_add(Duration::from_secs(1));

/// Performs [`Act::Pass`](crate::scenario::Act::Pass): every wall clock shows a later time, and operations are not repeated that are as
/// old as that.
pub(crate) async fn pass(stage: &Stage, hours: u64) {
    tokio::time::sleep(ENDS).await;
    let micros = (hours * 3_600_000_000) as i64;
    for coordinator in 0..stage.cluster.coordinators.len() {
        stage.command(Command::Do(Action::Jump { coordinator, micros }));
    }
    for node in 0..stage.cluster.nodes.len() {
        stage.command(Command::Do(Action::JumpNode { node, micros }));
    }
    stage.cluster.idempotency.pass_ms(hours * 3_600_000);
    lock(&stage.doubtful).clear();
    lock(&stage.acknowledged).clear();
    tokio::time::sleep(LOOK).await;
}

/// Performs [`Act::DeleteAll`](crate::scenario::Act::DeleteAll).
pub(crate) async fn delete_all(stage: &Stage, client: &mut Client) {
    stage.command(Command::Heal);
    tokio::time::sleep(LOOK).await;
    for place in stage.places() {
        if !client.delete(place, ATTEMPTS).await {
            return stage.violated(format!("recovery: {place:?} cannot be deleted without a fault"));
        }
    }
}

/// Performs [`Act::Gone`](crate::scenario::Act::Gone).
pub(crate) async fn gone(stage: &Stage) {
    stage.command(Command::Heal);
    let until = now_micros() + GONE.as_micros() as u64;
    while let Some(left) = left(stage) {
        if now_micros() > until {
            return stage.violated(format!("rows left: {left} after {GONE:?} without a fault"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A row of a key without a value.
fn left(stage: &Stage) -> Option<String> {
    stage.places().into_iter().find_map(|(tenant, key)| {
        let place = stage.cluster.place(tenant, &Stage::key((tenant, key)));
        stage.cluster.nodes.iter().find_map(|node| match node.content(&place) {
            Ok(Some(content)) if content.values().is_empty() => {
                Some(format!("{} has a row of the deleted {:?}", node.name, (tenant, key)))
            }
            Ok(_) => None,
            Err(error) => Some(format!("{} cannot be read: {error}", node.name)),
        })
    })
}
