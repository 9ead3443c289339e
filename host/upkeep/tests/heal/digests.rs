//! Comparison by digests: what is level is not read, and what has rotted is found by reading.

use std::time::Duration;

use witan_kernel::port::DutyKind;
use witan_kernel::replica::Place;
use witan_kernel::slice::Slice;
use witan_upkeep::{HealingConfig, Sweep};

use super::world::{Cluster, place};
use super::{PARTS, Running, compared, config, covered, wait_until};

const FACTORS: [u8; 3] = [1, 3, 5];
const KEYS: usize = 300;

/// Five nodes that keep digests, and three tenants that are on one, three and five of them: all replicas are level.
async fn level() -> Cluster {
    let cluster = Cluster::of(5, &FACTORS).await;
    cluster.nodes.keep_digests();
    for place in places() {
        cluster.replicas(&place).iter().for_each(|node| cluster.nodes.put_at(node, place.clone(), 5));
    }
    cluster
}

fn places() -> impl Iterator<Item = Place> {
    FACTORS.into_iter().flat_map(|factor| (0..KEYS).map(move |key| place(factor, key)))
}

fn merges(cluster: &Cluster) -> usize {
    (0..5).map(|node| cluster.nodes.merges(node).len()).sum()
}

#[test]
fn a_new_store_is_not_filled_by_digests() {
    assert!(Sweep::everything().is_everything());
    assert!(!Sweep { by_digests: true, ..Sweep::everything() }.is_everything());
}

#[tokio::test(start_paused = true)]
async fn of_level_replicas_nothing_is_read_or_sent() {
    let cluster = level().await;
    let running = Running::start(cluster.healing(1, &config(1 << 20)));
    wait_until("everything was compared", async || compared(&cluster).await == PARTS).await;
    running.end().await;
    assert_eq!((cluster.nodes.read(), cluster.nodes.scanned(), merges(&cluster)), (0, vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_read_and_nothing_else() {
    let cluster = level().await;
    let (old, missing) = (place(3, 7), place(5, 9));
    let replicas = [cluster.replicas(&old), cluster.replicas(&missing)];
    cluster.nodes.put_at(&replicas[0][1], old.clone(), 4);
    let elsewhere = (0..).map(|key| place(5, KEYS + key)).find(|place| Slice::of(place.token) != Slice::of(old.token));
    let elsewhere = elsewhere.expect("a place");
    cluster.nodes.put_at(&replicas[1][0], elsewhere.clone(), 5);
    let running = Running::start(cluster.healing(1, &config(1 << 20)));
    wait_until("everything was compared", async || compared(&cluster).await == PARTS).await;
    running.end().await;
    let (slices, scanned) = ([&old, &elsewhere].map(|place| Slice::of(place.token)), cluster.nodes.scanned());
    assert!(scanned.iter().all(|(from, to)| Slice::of(*from) == Slice::of(*to) && slices.contains(&Slice::of(*from))));
    assert_eq!(scanned.len(), 10, "a page of each of five replicas, for each of the two");
    assert_eq!(merges(&cluster), 1 + 4, "to those that lack something");
    for node in &replicas[0] {
        assert_eq!(cluster.nodes.stamp(node, &old), Some(5));
    }
    for node in cluster.replicas(&elsewhere) {
        assert_eq!(cluster.nodes.stamp(&node, &elsewhere), Some(5));
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_rotted_is_found_by_the_scrub() {
    let cluster = level().await;
    let rotten = place(3, 7);
    cluster.nodes.rot(&cluster.replicas(&rotten)[2], &rotten);
    let scrub_every = Duration::from_secs(7 * 86_400);
    let running = Running::start(cluster.healing(1, &HealingConfig { scrub_every, ..config(1 << 20) }));
    wait_until("everything was read", async || {
        cluster
            .duties()
            .await
            .duties
            .iter()
            .filter(|known| known.duty.kind == DutyKind::Scrub && known.ended_ms > 0)
            .count()
            == PARTS
    })
    .await;
    wait_until("everything was compared", async || compared(&cluster).await == PARTS).await;
    assert_eq!(covered(&cluster, DutyKind::Scrub).await, PARTS - 1, "all but the part with that record");
    assert!(cluster.nodes.read() > 0);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_others_are_compared_while_a_node_is_away() {
    let cluster = level().await;
    cluster.nodes.set_away(4, true);
    let old = (0..KEYS).map(|key| place(3, key)).find(|place| {
        let replicas = cluster.replicas(place);
        replicas.iter().all(|node| *node != super::world::id(4))
    });
    let old = old.expect("a place");
    cluster.nodes.put_at(&cluster.replicas(&old)[0], old.clone(), 4);
    let running = Running::start(cluster.healing(1, &config(1 << 20)));
    wait_until("it is level", async || cluster.nodes.stamp(&cluster.replicas(&old)[0], &old) == Some(5)).await;
    wait_until("all parts have ended", async || {
        cluster
            .duties()
            .await
            .duties
            .iter()
            .filter(|known| known.duty.kind == DutyKind::Compare && known.ended_ms > 0)
            .count()
            == PARTS
    })
    .await;
    assert_eq!(compared(&cluster).await, 0, "none is complete without that node");
    assert!(cluster.nodes.scanned().iter().all(|(from, _)| Slice::of(*from) == Slice::of(old.token)));
    running.end().await;
}
