//! Replicas become level by themselves: nobody reads, and nobody repairs.

use std::time::Duration;

use futures::future::join_all;

use crate::client::Client;
use crate::nemesis::{Action, Link};
use crate::play::{converged, differing, drained};
use crate::repairs::{NOTICED, holder, standings};
use crate::stage::{Command, Mood, Stage};
use crate::world::now_micros;

/// Operations of each client while a node is away.
const OPERATIONS: usize = 5;
/// Within this time replicas must be level: the claim of a coordinator that has crashed expires after 30 s; a pass begins 12 s after a
/// node is back, or a store was filled, and an incomplete one is repeated after 30 s.
const LEVEL: Duration = Duration::from_secs(120);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_millis(500);

/// Performs [`Act::Away`](crate::scenario::Act::Away).
pub(crate) async fn away(stage: &Stage, clients: &mut [Client], from_all: bool) {
    let node = holder(stage, 0);
    if from_all {
        stage.command(Command::CutOff(node));
    } else {
        let cut = Action::Link { coordinator: 0, node, becomes: Link::Cut };
        stage.command(Command::Do(cut));
    }
    tokio::time::sleep(NOTICED).await;
    join_all(clients.iter_mut().map(|client| client.work(OPERATIONS, Mood::Stormy))).await;
}

/// Performs [`Act::Level`](crate::scenario::Act::Level).
pub(crate) async fn level(stage: &Stage) {
    stage.command(Command::Heal);
    tokio::time::sleep(Duration::from_millis(100)).await;
    if !drained(stage).await {
        return;
    }
    let until = now_micros() + LEVEL.as_micros() as u64;
    loop {
        let all = stage.cluster.coordinators.iter().flat_map(|coordinator| standings(stage, coordinator));
        let unbelieved = all.filter(|whole| *whole != Some(true)).count();
        let difference = differing(stage);
        if unbelieved == 0 && difference.is_none() {
            return converged(stage);
        }
        if now_micros() > until {
            let what = difference.unwrap_or_else(|| format!("{unbelieved} stores are not believed"));
            return stage.violated(format!("healing: not level after {LEVEL:?} without a fault: {what}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}
