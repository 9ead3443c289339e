//! Copies wait for room on disks, and are slow while nodes are.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use witan_kernel::placement::Step;
use witan_upkeep::MovesConfig;

use crate::nodes::Call;
use crate::world::{Cluster, id};
use crate::{Change, KEYS, done, lead};

async fn says(cluster: &Cluster, number: u64, what: &str) {
    let is = async |cluster: &Cluster| cluster.migration(number).await.progress.message.contains(what);
    cluster.wait_until(what, is).await;
}

fn set_disk(cluster: &Cluster, node: usize, percent: f32) {
    cluster.nodes.with(&id(node), |node| node.disk = Some(percent));
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_disk_is_nearly_full_gets_nothing() {
    let cluster = Change::Add.cluster().await;
    let number = cluster.change(Change::Add.change()).await;
    // The others are full as well: that is why there is another one.
    (0..6).for_each(|node| set_disk(&cluster, node, 80.0));
    let leading = lead(cluster.leader(1).await);
    says(&cluster, number, "waits for node node-5: its disk is too full").await;
    assert_eq!(cluster.tenant().await.moving, None);
    set_disk(&cluster, 5, 79.9);
    done(&cluster, Change::Add, number).await;
    assert_eq!(cluster.forgotten().await, [0_usize; 0]);
    leading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_gets_full_pauses_the_copy_until_there_is_room() {
    let cluster = Change::Add.cluster().await;
    let number = cluster.change(Change::Add.change()).await;
    let full = cluster.clone();
    cluster.nodes.at_next(Call::Scan, move || set_disk(&full, 5, 85.0));
    let leading = lead(cluster.leader(1).await);
    says(&cluster, number, "pauses: the disk of node node-5, which gets records, is 85 % full").await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(cluster.tenant().await.moving.map(|moving| moving.step), Some(Step::DualWrite));
    set_disk(&cluster, 5, 84.9);
    // It goes on, and what is left waits until there is room for clients as well.
    says(&cluster, number, "its disk is too full").await;
    set_disk(&cluster, 5, 50.0);
    done(&cluster, Change::Add, number).await;
    assert_eq!(cluster.forgotten().await, [0_usize; 0]);
    leading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_slow_while_a_node_is() {
    for (now, usual, share) in [(40_000, Some(10_000), 2.0), (12_000, Some(10_000), 1.0), (40_000, None, 1.0)] {
        let cluster = Change::Add.cluster().await;
        cluster.nodes.with(&id(2), |node| node.p99_us = (now, usual));
        let number = cluster.change(Change::Add.change()).await;
        let leader = cluster.leader(1).await;
        let upkeep = leader.upkeep.clone();
        let leading = lead(leader);
        done(&cluster, Change::Add, number).await;
        let rate = upkeep.metrics().copy_rate.get();
        assert_eq!(rate * share, f64::from(32 << 20), "{now} {usual:?}");
        leading.abort();
    }
}

/// Eight ranges are walked at a time. Once it is known how much a turn reads, only one of them goes on at a time.
#[tokio::test(start_paused = true)]
async fn walks_do_not_all_go_on_at_once() {
    let change = Change::Factor(3, 5);
    let cluster = change.cluster().await;
    cluster.change(change.change()).await;
    let config = MovesConfig { bytes_per_second: 2000, ..MovesConfig::default() };
    let leading = lead(cluster.leader_with(1, config).await);
    let copies = async |cluster: &Cluster| cluster.nodes.read() >= KEYS;
    cluster.wait_until("the first copy", copies).await;
    let scans = cluster.nodes.scans();
    let at_once = |when: &Instant| scans.iter().filter(|scan| *scan == when).count();
    let paced: Vec<usize> =
        scans.iter().filter(|when| **when > scans[0] + Duration::from_secs(1)).map(at_once).collect();
    // A page of the one source, and of the two nodes that enter.
    assert!(paced.len() > 10 && paced.iter().all(|number| *number <= 3), "{paced:?}");
    leading.abort();
}
