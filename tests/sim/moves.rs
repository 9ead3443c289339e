//! Placement changes under load: nodes join and leave, replication factors change, and some of it is taken back, while machines fail and
//! clients work. Nothing may be lost or come back, and in the end every record is where it belongs and nowhere else.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::{join, join_all};
use witan_kernel::name::Zone;
use witan_kernel::port::{MigrationStore, PlacementChange, PlacementStore, StoreError, StoreState, TenantStore};
use witan_kernel::replica::Place;

use crate::client::Client;
use crate::nemesis::Storm;
use crate::node::NodeMachine;
use crate::play::drained;
use crate::scenario::{Change, Unaware};
use crate::stage::{Command, Mood, Stage};
use crate::world::now_micros;

/// Within this time all changes must have ended once nothing fails any longer: the claim of a leader that has crashed expires after 15 s,
/// a lease after 4 s, operations after 10 s, and moves that were given up wait for up to a minute.
const ENDED: Duration = Duration::from_secs(150);
/// How often steps are looked at.
const STEP: Duration = Duration::from_millis(10);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(250);

/// Performs [`Act::Move`](crate::scenario::Act::Move).
pub(crate) async fn play(
    stage: &Stage,
    clients: &mut [Client],
    operations: usize,
    storm: Storm,
    changes: Vec<(u64, Change)>,
    unaware: Option<Unaware>,
) {
    stage.command(Command::Storm(storm));
    let working = join_all(clients.iter_mut().map(|client| client.work(operations, Mood::Stormy)));
    let working = join(working, ask(stage, changes));
    futures::pin_mut!(working);
    futures::future::select(working, std::pin::pin!(watch(stage, unaware))).await;
}

/// Notes the steps of moves, for whoever reads the log, and makes a coordinator unaware when it is time.
async fn watch(stage: &Stage, mut unaware: Option<Unaware>) {
    let metadata = stage.cluster.metadata();
    let mut known = BTreeMap::new();
    loop {
        for tenant in &stage.cluster.tenants {
            let Ok(Some(now)) = metadata.tenant(&tenant.id).await else { continue };
            let now = (now.placed(), now.moving.map(|moving| (moving.to, moving.step)));
            if known.insert(&tenant.id, now).is_some_and(|before| before != now) {
                stage.note(|| format!("{} is {now:?}", tenant.id));
            }
            if let Some(Unaware { after_ms, actions, .. }) =
                unaware.take_if(|unaware| now.1.is_some_and(|(_, step)| step == unaware.step))
            {
                let storm = actions.into_iter().map(|action| (after_ms, action)).collect();
                stage.command(Command::StormToo(storm));
            }
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Asks for changes, each this many milliseconds after the one before.
async fn ask(stage: &Stage, changes: Vec<(u64, Change)>) {
    let metadata = stage.cluster.metadata();
    let mut accepted = Vec::new();
    for (after, change) in changes {
        tokio::time::sleep(Duration::from_millis(after)).await;
        let asked = match change {
            Change::Add(node) => {
                if has_left(stage, node).await {
                    // It has left, and its store is never used again.
                    stage.command(Command::Wipe(node));
                    tokio::time::sleep(LOOK).await;
                }
                metadata.change_placement(PlacementChange::AddNode(stage.cluster.nodes[node].on_record()), 0).await
            }
            Change::Remove(node) => {
                let node = stage.cluster.nodes[node].id.clone();
                metadata.change_placement(PlacementChange::RemoveNode { node, force: false }, 0).await
            }
            Change::Factor(tenant, to) => {
                let tenant = stage.cluster.tenants[tenant].id.clone();
                metadata.change_placement(PlacementChange::ReplicationFactor { tenant, to }, 0).await
            }
            Change::Swap(tenant) => {
                let tenant = stage.cluster.tenants[tenant].id.clone();
                // In the simulation, each generation has a hook of its own.
                let known = metadata.tenant(&tenant).await.ok().flatten();
                let generation = known.map_or(0, |tenant| tenant.generations) + 1;
                metadata.change_placement(PlacementChange::Generation { tenant, generation }, 0).await
            }
            Change::Zone(node, zone) => {
                let zone = if zone == 0 { String::new() } else { format!("z{zone}") };
                let zone = Some(Zone::new(zone).expect("a zone"));
                let node = stage.cluster.nodes[node].id.clone();
                metadata.change_placement(PlacementChange::UpdateNode { node, virtual_nodes: None, zone }, 0).await
            }
            Change::Weight(node, virtual_nodes) => {
                let (node, virtual_nodes) = (stage.cluster.nodes[node].id.clone(), Some(virtual_nodes));
                metadata.change_placement(PlacementChange::UpdateNode { node, virtual_nodes, zone: None }, 0).await
            }
            Change::TakeBack => match accepted.pop() {
                Some(number) => metadata.cancel_migration(number, 0).await,
                None => Err(StoreError::Missing("nothing to take back".to_owned())),
            },
        };
        stage.note(|| format!("{change:?}: {asked:?}"));
        if let (Ok(migration), false) = (asked, matches!(change, Change::TakeBack)) {
            accepted.push(migration.number);
        }
    }
}

/// Whether a node has served, and is not on record any longer.
async fn has_left(stage: &Stage, node: usize) -> bool {
    let node = &stage.cluster.nodes[node];
    let (metadata, own) = (stage.cluster.metadata(), node.store_id());
    let stores = metadata.stores().await.unwrap_or_default();
    stores.iter().any(|known| Some(known.store) == own && known.state == StoreState::Retired)
}

/// Performs [`Act::Moved`](crate::scenario::Act::Moved): all faults end, and so must all changes.
pub(crate) async fn moved(stage: &Stage) {
    stage.command(Command::Heal);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let until = now_micros() + ENDED.as_micros() as u64;
    while let Some(open) = open(stage).await {
        if now_micros() > until {
            return stage.violated(format!("placement: not ended after {ENDED:?} without a fault: {open}"));
        }
        tokio::time::sleep(LOOK).await;
    }
    if !drained(stage).await {
        return;
    }
    // Answers that the last operations did not wait for.
    tokio::time::sleep(Duration::from_millis(300)).await;
    if let Some(stray) = stray(stage) {
        stage.violated(format!("placement: {stray}"));
    }
}

/// A placement change that has not ended.
async fn open(stage: &Stage) -> Option<String> {
    let metadata = stage.cluster.metadata();
    let all = metadata.migrations(None, 1000).await.ok()?;
    let left = metadata.leftovers(None, None).await.ok()?;
    let mut open = all.into_iter().filter(|migration| !migration.status.has_ended()).map(|open| format!("{open:?}"));
    open.next().or_else(|| left.first().map(|left| format!("{left:?}"))).map(|open| format!("{open}; left: {left:?}"))
}

/// A row on a node that is no replica of it.
fn stray(stage: &Stage) -> Option<String> {
    stage.places().into_iter().find_map(|(tenant, key)| {
        let name = Stage::key((tenant, key));
        let place = stage.cluster.place(tenant, &name);
        let replicas = stage.cluster.replicas(tenant, &place);
        let has = |node: &NodeMachine, place: &Place| !matches!(node.content(place), Ok(None));
        let elsewhere = stage.cluster.nodes.iter().filter(|node| replicas.iter().all(|own| own.id != node.id));
        if let Some(holder) = elsewhere.into_iter().find(|node| has(node, &place)) {
            return Some(format!("{} holds a row of {:?} and is no replica of it", holder.name, (tenant, key)));
        }
        let others = stage.cluster.other_places(tenant, &name);
        let holds = |node: &NodeMachine| others.iter().find(|other| has(node, other)).cloned();
        let (holder, other) = stage.cluster.nodes.iter().find_map(|node| Some((node, holds(node)?)))?;
        Some(format!("{} holds a row of {:?} at {other:?}, and it is at {place:?}", holder.name, (tenant, key)))
    })
}
