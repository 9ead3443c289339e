//! Repairs by an operator who waits until every node is believed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::cluster::{Call, CoordinatorMachine};
use crate::node::NodeMachine;
use crate::play::{converged, drained};
use crate::stage::{Command, Stage};
use crate::world::now_micros;

/// How long a repair may take without faults: it waits for operations in flight.
const REPAIRED: Duration = Duration::from_secs(45);
/// Time for coordinators to notice that a node is cut off or has a new store.
pub(crate) const NOTICED: Duration = Duration::from_millis(2500);

/// Index of the node that holds a replica of the last tenant's first key. Replica 0 is the first choice for minting dots, unless the
/// scenario begins with another one.
pub(crate) fn holder(stage: &Stage, replica: usize) -> usize {
    let tenant = stage.scenario.casts.len() - 1;
    let factor = usize::from(stage.scenario.casts[tenant].tenant.replication_factor);
    let replica = (replica + stage.scenario.first_wiped) % factor;
    let place = stage.cluster.place(tenant, &Stage::key((tenant, 0)));
    let name = &stage.cluster.replicas(tenant, &place)[replica].name;
    stage.cluster.nodes.iter().position(|node| node.name == *name).unwrap_or_default()
}

/// For each node, whether a coordinator believes its store; `None` if it has not seen the node's present store yet.
pub(crate) fn standings(stage: &Stage, coordinator: &CoordinatorMachine) -> Vec<Option<bool>> {
    let doors = coordinator.doors();
    let standing = |node: &Arc<NodeMachine>| {
        let standing = doors.as_ref()?.standing(&node.id)?;
        (Some(standing.store) == node.store_id()).then_some(standing.is_whole())
    };
    stage.cluster.nodes.iter().map(standing).collect()
}

/// Ends all faults, then repairs until every coordinator believes every node.
pub(crate) async fn repair(stage: &Stage) {
    stage.command(Command::Heal);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let until = now_micros() + REPAIRED.as_micros() as u64;
    let mut last = String::new();
    while now_micros() < until {
        let believed: Vec<Option<bool>> = stage.cluster.coordinators.iter().flat_map(|c| standings(stage, c)).collect();
        if believed.iter().all(|whole| *whole == Some(true)) {
            return repaired_everything(stage).await;
        }
        // Once all coordinators have seen the new store, one of them repairs; the others learn the result soon.
        let first = &stage.cluster.coordinators[0];
        let met = believed.iter().all(Option::is_some) && standings(stage, first).contains(&Some(false));
        if let Some(doors) = first.doors().filter(|_| met) {
            let (to, answer) = oneshot::channel();
            let _ = doors.calls.send(Call::Repair(Duration::ZERO, to));
            last = answer.await.unwrap_or_else(|_| "aborted".to_owned());
            stage.note(|| format!("repair: {last}"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stage.violated(format!("repair: a new store is not believed although there are no faults: {last}"));
}

/// Repairs everything once more while nothing else happens. After that replicas must agree, although no read has repaired them.
async fn repaired_everything(stage: &Stage) {
    if !drained(stage).await {
        return;
    }
    let Some(doors) = stage.cluster.coordinators[0].doors() else { return };
    let (to, answer) = oneshot::channel();
    let _ = doors.calls.send(Call::Repair(Duration::ZERO, to));
    let repaired = answer.await.unwrap_or_else(|_| "aborted".to_owned());
    stage.note(|| format!("repair: {repaired}"));
    converged(stage);
}
