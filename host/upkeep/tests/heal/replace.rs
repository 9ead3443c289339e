//! A store that an operator has asked to fill.

use std::time::Duration;

use witan_kernel::name::StoreId;
use witan_kernel::port::{
    Duty, MigrationStatus, MigrationStore, PlacementChange, PlacementStore, UpkeepClaims,
    moves::replaces::{Fate, fate},
};
use witan_upkeep::HealingConfig;

use super::{KEYS, Running, cluster, config, wait_until};
use crate::nodes::{id, store};
use crate::world::Cluster;

const OLD: StoreId = StoreId([200; 16]);

/// New stores are filled only if somebody asks for it.
fn by_request(bytes_per_second: u64) -> HealingConfig {
    HealingConfig { admit_after: Duration::ZERO, anti_entropy: false, ..config(bytes_per_second) }
}

/// The third node shows another store than the one that it had; that is to be filled. Returns the change.
async fn replaced(cluster: &Cluster, accept_loss: bool) -> u64 {
    let (node, to) = (id(2), store(&id(2)));
    cluster.metadata.meet_store(&node, OLD, 0, 0).await.expect("met");
    let change = PlacementChange::ReplaceStore { node, from: OLD, to, accept_loss };
    let recorded = cluster.metadata.change_placement(change, 1).await.expect("recorded");
    cluster.nodes.set_filling(2, true);
    recorded.number
}

async fn fate_of(cluster: &Cluster, number: u64) -> Fate {
    let change = cluster.metadata.migration(number).await.expect("on record").change;
    let nodes = cluster.metadata.nodes().await.expect("nodes");
    fate(&change, &nodes, &cluster.metadata.stores().await.expect("stores"))
}

#[tokio::test(start_paused = true)]
async fn a_store_is_filled_because_it_was_asked_for_and_how_far_it_is_never_falls() {
    let cluster = cluster().await;
    let number = replaced(&cluster, false).await;
    let running = Running::start(cluster.healing(1, &by_request(40 << 10)));
    let (mut last, mut shown) = ((0, 0, 0.0), 0);
    let share = |done: u64, total: u64| if total == 0 { 0.0 } else { done as f64 / total as f64 };
    while fate_of(&cluster, number).await == Fate::Filling {
        let of = cluster.metadata.migration(number).await.expect("on record");
        let now = (of.progress.keys_done, of.progress.bytes_done, share(of.progress.keys_done, of.progress.keys_total));
        assert!(now.0 >= last.0 && now.1 >= last.1 && now.2 >= last.2, "{now:?} after {last:?}");
        shown +=
            usize::from(now != last && of.progress.message.starts_with("coordinator-1 fills the store of node node-2"));
        last = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(shown > 3, "{last:?}");
    assert_eq!(fate_of(&cluster, number).await, Fate::Whole);
    let of = cluster.metadata.migration(number).await.expect("on record");
    assert_eq!((of.status, of.progress.keys_done), (MigrationStatus::InProgress, KEYS as u64), "{:?}", of.progress);
    assert!(of.progress.bytes_done > 0 && cluster.nodes.are_level());
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_fill_goes_on_elsewhere_and_one_that_failed_is_tried_again_when_it_is_asked_for() {
    let cluster = cluster().await;
    let number = replaced(&cluster, false).await;
    let first = Running::start(cluster.healing(1, &by_request(40 << 10)));
    wait_until("some of it is filled", async || {
        cluster.metadata.migration(number).await.expect("on record").progress.keys_done > 100
    })
    .await;
    // Two of three whole replicas are needed, and one is away.
    cluster.nodes.set_away(0, true);
    first.end().await;
    let second = Running::start(cluster.healing(2, &by_request(0)));
    wait_until("it is said why it is not filled", async || {
        let of = cluster.metadata.migration(number).await.expect("on record");
        of.progress.keys_done > 100 && of.progress.message.contains("could not be filled: keys with 3 replicas need 2")
    })
    .await;
    assert_eq!(fate_of(&cluster, number).await, Fate::Filling);
    cluster.nodes.set_away(0, false);
    let asked = tokio::time::Instant::now();
    cluster.metadata.want_duty(&Duty::fill()).await.expect("asked for");
    wait_until("it is whole", async || fate_of(&cluster, number).await == Fate::Whole).await;
    assert!(asked.elapsed() < Duration::from_secs(30), "without a pause: {:?}", asked.elapsed());
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn loss_that_is_accepted_is_accepted_by_whoever_fills() {
    let cluster = cluster().await;
    cluster.nodes.set_away(0, true);
    let number = replaced(&cluster, true).await;
    let running = Running::start(cluster.healing(1, &by_request(0)));
    wait_until("it is whole", async || fate_of(&cluster, number).await == Fate::Whole).await;
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_given_up_is_not_filled_by_itself() {
    let cluster = cluster().await;
    let number = replaced(&cluster, false).await;
    cluster.metadata.cancel_migration(number, 2).await.expect("given up");
    let at_once = HealingConfig { admit_after: Duration::from_secs(1), anti_entropy: false, ..config(0) };
    let (upkeep, healing) = cluster.healing_with(1, &at_once);
    let running = Running::start(healing);
    wait_until("it is said what to do", async || {
        upkeep
            .new_store(&id(2))
            .is_some_and(|note| note.contains("was given up") && note.contains("nodes replace node-2"))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(matches!(fate_of(&cluster, number).await, Fate::GivenUp(_)) && !cluster.nodes.are_level());
    running.end().await;
}
