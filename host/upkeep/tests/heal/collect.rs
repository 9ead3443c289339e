//! What is left of deleted keys goes by routine comparisons, and only once nothing of before can come back.

use std::time::Duration;

use tokio::time::sleep;
use witan_kernel::fault::{self, Fault};
use witan_kernel::placement::{Moving, Placed, Step};
use witan_upkeep::{HealingConfig, Sweep};

use super::Running;
use super::world::{Call, Cluster, place};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
/// Old enough for a tombstone to go.
const OLD: Duration = Duration::from_secs(37 * 3600);
/// Any key.
const KEY: usize = 7;

fn config() -> HealingConfig {
    // Comparisons alone must do it.
    let scrub_every = Duration::ZERO;
    HealingConfig { bytes_per_second: 1 << 20, compare_every: MINUTE, scrub_every, ..HealingConfig::default() }
}

/// A cluster in which the key was deleted long ago: all nodes have its tombstone.
async fn buried() -> Cluster {
    let cluster = Cluster::new().await;
    (0..3).for_each(|node| cluster.nodes.write(node, KEY, OLD, 1, None));
    cluster
}

/// Everything is compared a few times.
async fn heal(cluster: &Cluster) {
    let running = Running::start(cluster.healing(1, &config()));
    sleep(10 * MINUTE).await;
    running.end().await;
}

/// For each node whether it has the key: a value, a tombstone, or nothing.
fn has(cluster: &Cluster, key: usize) -> [Option<bool>; 3] {
    [0, 1, 2].map(|node| cluster.nodes.is_live(node, key))
}

const NOTHING: [Option<bool>; 3] = [None; 3];
const TOMBSTONES: [Option<bool>; 3] = [Some(false); 3];

/// Also if nodes keep digests, by which everything is level.
#[tokio::test(start_paused = true)]
async fn old_tombstones_go_everywhere_and_everything_else_stays() {
    for by_digests in [false, true] {
        let cluster = buried().await;
        if by_digests {
            cluster.nodes.keep_digests();
        }
        for key in 100..1100 {
            (0..3).for_each(|node| cluster.nodes.write(node, key, OLD, 1, None));
        }
        (0..3).for_each(|node| cluster.nodes.write(node, 1, OLD, 2, Some(b"live")));
        (0..3).for_each(|node| cluster.nodes.write(node, 2, HOUR, 3, None));
        cluster.nodes.write(1, 3, OLD, 4, None);
        // What was replaced by the deletion is remembered by one of them, and as old.
        cluster.nodes.write(2, KEY, OLD + HOUR, 5, None);
        heal(&cluster).await;
        assert_eq!((has(&cluster, KEY), has(&cluster, 3)), (NOTHING, NOTHING));
        assert!((100..1100).all(|key| has(&cluster, key) == NOTHING));
        assert_eq!((has(&cluster, 1), has(&cluster, 2)), ([Some(true); 3], TOMBSTONES));
        assert!((0..3).all(|node| cluster.nodes.merges(node).is_empty()), "nothing is sent for it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_is_asked_for_collects_nothing_and_sends_everything() {
    let cluster = buried().await;
    cluster.nodes.write(1, 3, OLD, 4, None);
    let repair = cluster.upkeep().begin_repair(Sweep::everything()).await.expect("begun");
    let (progress, mut reports) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    assert!(repair.run(progress).await.expect("not stopped").swept.is_complete());
    assert_eq!((has(&cluster, KEY), has(&cluster, 3)), (TOMBSTONES, TOMBSTONES));
}

#[tokio::test(start_paused = true)]
async fn it_can_be_turned_off_and_needs_every_coordinator() {
    let cluster = buried().await;
    let off = HealingConfig { collect_tombstones: false, ..config() };
    let healing = Running::start(cluster.healing(1, &off));
    sleep(10 * MINUTE).await;
    healing.end().await;
    assert_eq!(has(&cluster, KEY), TOMBSTONES);
    let (upkeep, healing) = cluster.healing_with(1, &config());
    upkeep.set_collects(false);
    let running = Running::start(healing);
    sleep(10 * MINUTE).await;
    assert_eq!(has(&cluster, KEY), TOMBSTONES);
    upkeep.set_collects(true);
    sleep(10 * MINUTE).await;
    assert_eq!(has(&cluster, KEY), NOTHING);
    running.end().await;
}

/// What keeps a tombstone, and how that ends.
#[derive(Debug, Clone, Copy)]
enum Obstacle {
    Away,
    Filling,
    OldVersion,
    Young,
    NodesClock,
    Moving,
    Fence,
}

impl Obstacle {
    const ALL: [Self; 7] =
        [Self::Away, Self::Filling, Self::OldVersion, Self::Young, Self::NodesClock, Self::Moving, Self::Fence];

    fn set(self, cluster: &Cluster, is_set: bool) {
        let moving = Moving {
            to: Placed { ring: 0, replication_factor: 2, generation: 0 },
            step: Step::Preparing,
            prepared: 1,
            since: 1,
        };
        match self {
            Self::Away => cluster.nodes.set_away(2, is_set),
            Self::Filling => cluster.nodes.set_filling(2, is_set),
            Self::OldVersion => cluster.nodes.set_old(2, is_set),
            Self::NodesClock => cluster.nodes.set_behind(2, if is_set { 2 * HOUR } else { Duration::ZERO }),
            Self::Moving => cluster.set_moving(is_set.then_some(moving)),
            Self::Fence => cluster.nodes.set_fence(2, if is_set { 5 } else { 0 }),
            Self::Young if is_set => {
                (0..3).for_each(|node| cluster.nodes.write(node, KEY, 36 * HOUR - 4 * MINUTE, 9, None))
            }
            Self::Young => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_speaks_against_it_keeps_it_everywhere() {
    for obstacle in Obstacle::ALL {
        let cluster = buried().await;
        obstacle.set(&cluster, true);
        let running = Running::start(cluster.healing(1, &config()));
        // It is young for four minutes.
        sleep(if matches!(obstacle, Obstacle::Young) { 3 * MINUTE } else { 10 * MINUTE }).await;
        let kept = has(&cluster, KEY);
        let expected = match obstacle {
            // The others have been asked, too.
            Obstacle::NodesClock => [None, None, Some(false)],
            _ => TOMBSTONES,
        };
        assert_eq!(kept, expected, "{obstacle:?}");
        obstacle.set(&cluster, false);
        sleep(10 * MINUTE).await;
        assert_eq!(has(&cluster, KEY), NOTHING, "{obstacle:?} is over");
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_something_else_is_sent_the_tombstone_first() {
    let cluster = buried().await;
    cluster.nodes.remove(2, KEY);
    cluster.nodes.write(2, KEY, 40 * HOUR, 3, Some(b"older"));
    heal(&cluster).await;
    assert_eq!(cluster.nodes.merges(2).len(), 1);
    assert_eq!(has(&cluster, KEY), NOTHING);
}

#[tokio::test(start_paused = true)]
async fn a_live_value_stays_and_goes_where_it_is_missing() {
    let cluster = buried().await;
    cluster.nodes.write(2, KEY, 36 * HOUR, 3, Some(b"newer"));
    heal(&cluster).await;
    assert_eq!(has(&cluster, KEY), [Some(true); 3]);
}

/// True if a rule is kept.
async fn holds(play: &str) -> bool {
    let cluster = buried().await;
    let nodes = &cluster.nodes;
    let is_back = |cluster: &Cluster| has(cluster, KEY).contains(&Some(true));
    match play {
        // A replica that was away has the value still.
        "quorum" => {
            nodes.remove(2, KEY);
            nodes.write(2, KEY, 40 * HOUR, 3, Some(b"older"));
            nodes.set_away(2, true);
            heal(&cluster).await;
            nodes.set_away(2, false);
            heal(&cluster).await;
            !is_back(&cluster)
        }
        // A repetition brings the stamp of before.
        "grace" => {
            (0..3).for_each(|node| nodes.write(node, 8, HOUR, 1, None));
            heal(&cluster).await;
            (0..3).for_each(|node| nodes.write(node, 8, 2 * HOUR, 3, Some(b"repeated")));
            !has(&cluster, 8).contains(&Some(true))
        }
        // Somebody writes between the second look and its result.
        "expected" => {
            nodes.at_next(Call::Collect, |nodes| {
                (0..2).for_each(|node| nodes.write(node, KEY, HOUR, 3, Some(b"new")));
            });
            heal(&cluster).await;
            has(&cluster, KEY) == [Some(true); 3]
        }
        // A merge that was made of what a replica had before the deletion is under way at the first look.
        "twice" => {
            nodes.remove(2, KEY);
            let late = cluster.nodes.clone();
            tokio::spawn(async move {
                while late.looked_at(2) == 0 {
                    sleep(Duration::from_millis(20)).await;
                }
                sleep(Duration::from_secs(5)).await;
                late.write(2, KEY, 40 * HOUR, 3, Some(b"older"));
            });
            heal(&cluster).await;
            !is_back(&cluster)
        }
        // A node has rows of before to hand over.
        "leftovers" => {
            let left = cluster.leave_over().await;
            heal(&cluster).await;
            let is_kept = has(&cluster, KEY) == TOMBSTONES;
            cluster.cleaned(&left).await;
            heal(&cluster).await;
            is_kept && has(&cluster, KEY) == NOTHING
        }
        // A node knows of a change that the coordinator has not heard of.
        "epoch" => {
            nodes.set_fence(2, 5);
            heal(&cluster).await;
            has(&cluster, KEY) == TOMBSTONES
        }
        // One node keeps its row at first.
        _ => {
            nodes.set_overloaded(0, 1);
            heal(&cluster).await;
            has(&cluster, KEY) == NOTHING && (1..3).all(|node| nodes.merges(node).is_empty())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_rule_of_collection_is_needed() {
    for (broken, play) in [
        (Fault::CollectByQuorum, "quorum"),
        (Fault::CollectWithoutGrace, "grace"),
        (Fault::CollectUnconditional, "expected"),
        (Fault::CollectAskedOnce, "twice"),
        (Fault::CollectWithLeftovers, "leftovers"),
        (Fault::CollectWithoutEpoch, "epoch"),
        (Fault::TombstonesBounce, "bounce"),
    ] {
        assert!(holds(play).await, "{play}");
        fault::set(Some(broken));
        let is_held = holds(play).await;
        fault::set(None);
        assert!(!is_held, "{play} does not notice {broken:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_between_the_two_looks_keeps_everything() {
    let cluster = buried().await;
    cluster.nodes.at_next(Call::Look, |nodes| nodes.write(2, KEY, OLD - HOUR / 2, 3, None));
    let running = Running::start(cluster.healing(1, &config()));
    while cluster.nodes.has_trap() {
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(has(&cluster, KEY), TOMBSTONES);
    assert!(cluster.nodes.has(2, &place(3, KEY)));
    sleep(10 * MINUTE).await;
    assert_eq!(has(&cluster, KEY), NOTHING, "it is found again");
    running.end().await;
}
