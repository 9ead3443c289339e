//! What nodes have missed of a coordinator's changes, and who makes it good.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use witan_kernel::port::{DutyKind, DutyOnRecord};
use witan_kernel::slice::{SLICES, Slice};
use witan_upkeep::Healing;

use crate::world::{Cluster, InMemory, id, place};
use crate::{KEYS, PARTS, Running, compared, config, wait_until};

/// The first key that no node has yet.
const NEW: usize = KEYS;
/// A bound of all waits here beside those that are named: of looks, and of a pass over some slices.
const SOON: Duration = Duration::from_secs(5);
/// What was sent by operations that were under way is waited for, and a jitter.
const LIFE: Duration = Duration::from_secs(12);
/// A claim expires.
const EXPIRES: Duration = Duration::from_secs(30);

/// A level cluster, and healing of the first coordinator after everything was compared once.
async fn level() -> (Cluster, Arc<Healing<InMemory>>, Running) {
    let cluster = Cluster::new().await;
    for key in 0..KEYS {
        (0..3).for_each(|node| cluster.nodes.put(node, key, 5));
    }
    let healing = cluster.healing(1, &config(1 << 20));
    let running = Running::start(Arc::clone(&healing));
    wait_until("everything was compared once", async || compared(&cluster).await == PARTS).await;
    cluster.nodes.take_scans();
    (cluster, healing, running)
}

/// The duties of what nodes have missed.
async fn owed(cluster: &Cluster) -> Vec<DutyOnRecord> {
    let duties = cluster.duties().await.duties;
    duties.into_iter().filter(|known| known.duty.kind == DutyKind::Missed).collect()
}

async fn is_level(cluster: &Cluster) {
    wait_until("the nodes are level", async || cluster.nodes.are_level()).await;
}

fn slices(keys: impl IntoIterator<Item = usize>) -> BTreeSet<Slice> {
    keys.into_iter().map(|key| Slice::of(place(3, key).token)).collect()
}

/// The slices that were read since this was last asked.
fn read(cluster: &Cluster) -> BTreeSet<Slice> {
    let scans = cluster.nodes.take_scans().into_iter();
    scans.flat_map(|(from, to)| (Slice::of(from).0..=Slice::of(to).0).map(Slice)).collect()
}

#[tokio::test(start_paused = true)]
async fn only_the_slices_are_read_in_which_something_was_missed() {
    let (cluster, _, running) = level().await;
    cluster.nodes.set_away(2, true);
    (NEW..NEW + 20).for_each(|key| cluster.write_missed_by(1, 2, key, 6));
    wait_until("it is on record", async || !owed(&cluster).await.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!cluster.nodes.are_level() && read(&cluster).is_empty(), "it is away");
    cluster.nodes.set_away(2, false);
    let back = Instant::now();
    is_level(&cluster).await;
    assert!((LIFE - Duration::from_secs(2)..LIFE + SOON).contains(&back.elapsed()), "{:?}", back.elapsed());
    wait_until("it is off the record", async || owed(&cluster).await.is_empty()).await;
    assert_eq!(read(&cluster), slices(NEW..NEW + 20));
    assert!(cluster.missed(1).of_node(&id(2)).is_empty());
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_missed_while_the_node_is_there_is_made_good_too() {
    let (cluster, _, running) = level().await;
    cluster.write_missed_by(1, 2, NEW, 6);
    let began = Instant::now();
    is_level(&cluster).await;
    assert!(began.elapsed() < LIFE + SOON, "{:?}", began.elapsed());
    assert_eq!(read(&cluster), slices([NEW]));
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_sent_is_sent_again() {
    let (cluster, _, running) = level().await;
    cluster.nodes.hang_until(2, Instant::now() + Duration::from_secs(60));
    cluster.write_missed_by(1, 2, NEW, 6);
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert!(!cluster.nodes.are_level() && cluster.nodes.merges(2).len() >= 2);
    assert_eq!(cluster.missed(1).of_node(&id(2)).count(), 1);
    let duties = cluster.duties().await;
    let known = owed(&cluster).await;
    assert!(known.len() == 1 && known[0].live_holder(duties.now_ms).is_some(), "{known:?}");
    is_level(&cluster).await;
    wait_until("it is off the record", async || owed(&cluster).await.is_empty()).await;
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_coordinator_knew_that_has_died_is_lost_and_everything_is_compared() {
    let (cluster, _, running) = level().await;
    cluster.nodes.set_away(2, true);
    (NEW..NEW + 20).for_each(|key| cluster.write_missed_by(1, 2, key, 6));
    wait_until("it is on record", async || !owed(&cluster).await.is_empty()).await;
    // What it has noted in its last moment is lost as well.
    cluster.write_missed_by(1, 2, NEW + 30, 6);
    running.task.abort();
    let died = Instant::now();
    let second = Running::start(cluster.healing(2, &config(1 << 20)));
    cluster.nodes.set_away(2, false);
    is_level(&cluster).await;
    assert!(
        died.elapsed() > EXPIRES - Duration::from_secs(10),
        "while it may live, that is its own: {:?}",
        died.elapsed()
    );
    wait_until("it is off the record", async || owed(&cluster).await.is_empty()).await;
    assert_eq!(read(&cluster).len(), SLICES, "all that the node may hold");
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_else_does_the_work_of_a_coordinator_that_lives() {
    let (cluster, _, running) = level().await;
    let second = Running::start(cluster.healing(2, &config(1 << 20)));
    cluster.nodes.set_away(2, true);
    (NEW..NEW + 20).for_each(|key| cluster.write_missed_by(1, 2, key, 6));
    // Longer than a claim lasts that is not renewed.
    tokio::time::sleep(4 * EXPIRES).await;
    let (duties, known) = (cluster.duties().await, owed(&cluster).await);
    let holders: BTreeSet<_> = known
        .iter()
        .filter_map(|known| known.live_holder(duties.now_ms))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|by| by.instance[0])
        .collect();
    assert_eq!((known.len(), holders), (2, BTreeSet::from([1, 2])), "both have seen that it is away");
    cluster.nodes.set_away(2, false);
    wait_until("it is off the record", async || owed(&cluster).await.is_empty()).await;
    assert!(cluster.nodes.are_level());
    assert_eq!(read(&cluster), slices(NEW..NEW + 20));
    running.end().await;
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_stops_hands_over_what_it_knows() {
    let (cluster, healing, running) = level().await;
    cluster.nodes.set_away(2, true);
    (NEW..NEW + 20).for_each(|key| cluster.write_missed_by(1, 2, key, 6));
    wait_until("it is on record", async || !owed(&cluster).await.is_empty()).await;
    running.end().await;
    // An operation that has ended since.
    cluster.write_missed_by(1, 2, NEW + 30, 6);
    healing.hand_over().await;
    cluster.nodes.set_away(2, false);
    let second = Running::start(cluster.healing(2, &config(1 << 20)));
    let began = Instant::now();
    is_level(&cluster).await;
    assert!(began.elapsed() < LIFE + 2 * SOON, "{:?}", began.elapsed());
    wait_until("it is off the record", async || owed(&cluster).await.is_empty()).await;
    assert_eq!(read(&cluster), slices((NEW..NEW + 20).chain([NEW + 30])));
    second.end().await;
}

/// A write that only one node has, which is away when the others are compared.
#[tokio::test(start_paused = true)]
async fn what_only_an_absent_node_has_comes_from_it_once_it_is_back() {
    let (cluster, _, running) = level().await;
    cluster.nodes.put(1, NEW, 6);
    [0, 2].into_iter().for_each(|node| cluster.miss(1, node, NEW));
    cluster.nodes.set_away(1, true);
    wait_until("only the one that is away is on record", async || {
        let (missed, owed) = (cluster.missed(1), owed(&cluster).await);
        missed.of_node(&id(0)).is_empty() && missed.of_node(&id(2)).is_empty() && owed.len() == 1
    })
    .await;
    assert!(!cluster.nodes.are_level());
    assert_eq!(cluster.missed(1).of_node(&id(1)).count(), 1);
    cluster.nodes.set_away(1, false);
    let back = Instant::now();
    is_level(&cluster).await;
    assert!(back.elapsed() < LIFE + SOON, "{:?}", back.elapsed());
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_may_have_lost_what_it_has_acknowledged_is_compared_in_everything() {
    let cluster = Cluster::new().await;
    cluster.nodes.set_unsynced_boot(2, 4);
    let running = Running::start(cluster.healing(1, &config(1 << 20)));
    wait_until("everything was compared once", async || compared(&cluster).await == PARTS).await;
    cluster.nodes.set_away(2, true);
    tokio::time::sleep(SOON).await;
    // All of them had acknowledged it.
    (0..2).for_each(|node| cluster.nodes.put(node, NEW, 6));
    cluster.nodes.set_unsynced_boot(2, 5);
    cluster.nodes.set_away(2, false);
    let back = Instant::now();
    is_level(&cluster).await;
    assert!(back.elapsed() < LIFE + 2 * SOON, "{:?}", back.elapsed());
    running.end().await;
}
