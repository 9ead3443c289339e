//! Moves to rows of another generation, in which the partition hook puts each key elsewhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use witan_kernel::fault::{self, Fault};
use witan_kernel::placement::{Placed, Step};
use witan_kernel::port::{MigrationStatus, MigrationStore, PlacementChange};
use witan_kernel::tenant::Level;
use witan_upkeep::MovesConfig;

use crate::world::{id, tenant};
use crate::{Change, KEYS, done, lead, write};

fn to(generation: u32) -> PlacementChange {
    PlacementChange::Generation { tenant: tenant(), generation }
}

/// The placement of the tenant in a generation.
fn in_generation(generation: u32) -> Placed {
    Placed { ring: 0, replication_factor: 3, generation }
}

#[tokio::test(start_paused = true)]
async fn a_generation_after_another() {
    let cluster = Change::Swap.cluster().await;
    let (leading, writing) = (lead(cluster.leader(1).await), write(&cluster));
    for generation in 1..=3 {
        let number = cluster.change(to(generation)).await;
        cluster.wait_for(number, MigrationStatus::Completed).await;
        assert_eq!(cluster.tenant().await.placed(), in_generation(generation));
        assert_eq!(cluster.forgotten().await, [0_usize; 0], "{generation}");
    }
    writing.abort();
    drop(writing.await);
    assert_eq!(cluster.misplaced().await, []);
    leading.abort();
}

/// What the first copy has brought everywhere is not sent again by the last one.
#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_is_not_copied_again() {
    let cluster = Change::Swap.cluster().await;
    let leader = cluster.leader(1).await;
    let upkeep = Arc::clone(&leader.upkeep);
    let number = cluster.change(Change::Swap.change()).await;
    let leading = lead(leader);
    cluster.wait_until("it has the coming rows only", async |cluster| cluster.tenant().await.generation == 1).await;
    let copied = upkeep.metrics().moved_records.get();
    assert_eq!(copied, 3 * KEYS as u64, "each record once to each of its coming replicas");
    done(&cluster, Change::Swap, number).await;
    leading.abort();
}

/// A write that the first copy has missed: the last one brings it.
#[tokio::test(start_paused = true)]
async fn what_the_first_copy_has_missed_the_last_one_brings() {
    for is_broken in [false, true] {
        let cluster = Change::Swap.cluster().await;
        let number = cluster.change(Change::Swap.change()).await;
        cluster.another_coordinator().await;
        let leading = lead(cluster.leader(1).await);
        cluster
            .wait_until("it begins", async |cluster| {
                cluster.tenant().await.moving.is_some_and(|moving| moving.step == Step::Preparing)
            })
            .await;
        let late = cluster.plan(7).await;
        cluster
            .wait_until("it is in the last step", async |cluster| {
                cluster.tenant().await.moving.is_some_and(|moving| moving.step == Step::Cutover)
            })
            .await;
        // It waits for operations to end that began before: this one.
        assert!(cluster.send_to_old(&late, 5001));
        fault::set(is_broken.then_some(Fault::SwapDeltaSkipped));
        // Before anything is handed over, for which it waits, too.
        cluster.wait_until("it is settled", async |cluster| cluster.tenant().await.generation == 1).await;
        fault::set(None);
        assert_eq!(cluster.forgotten().await, if is_broken { vec![7] } else { vec![] });
        cluster.wait_for(number, MigrationStatus::Completed).await;
        assert_eq!(cluster.forgotten().await, [0_usize; 0]);
        leading.abort();
    }
}

/// Level one: the only copy of a write is on one node, which hands it over to where the key is now.
#[tokio::test(start_paused = true)]
async fn the_only_copy_is_handed_over_to_where_its_key_is_now() {
    for broken in [None, Some(Fault::SwapLeftoverMisplaced)] {
        let cluster = Change::Swap.cluster().await;
        let number = cluster.change(Change::Swap.change()).await;
        let early = cluster.plan(3).await;
        // Nobody else has it, and the copies need not read this one: it is away until they are done.
        let holder = early.old[2].clone();
        early.old[..2].iter().for_each(|node| cluster.nodes.set_away(node, true));
        assert!(cluster.send(&early, 9001, Level::One));
        early.old[..2].iter().for_each(|node| cluster.nodes.set_away(node, false));
        cluster.nodes.refuse_scans(&holder, true);
        fault::set(broken);
        let leading = lead(cluster.leader(1).await);
        cluster.wait_until("it is settled", async |cluster| cluster.tenant().await.generation == 1).await;
        cluster.nodes.refuse_scans(&holder, false);
        cluster.wait_for(number, MigrationStatus::Completed).await;
        fault::set(None);
        assert_eq!(cluster.forgotten().await, if broken.is_some() { vec![3] } else { vec![] });
        assert_eq!(cluster.misplaced().await.is_empty(), broken.is_none());
        leading.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_faults_on_a_key_ends_the_change_and_says_on_which() {
    let cluster = Change::Swap.cluster().await;
    let writing = write(&cluster);
    *cluster.hooked.faults_on.lock().unwrap() = Some("key-9".to_owned());
    let number = cluster.change(Change::Swap.change()).await;
    let leading = lead(cluster.leader(1).await);
    let failed = cluster.wait_for(number, MigrationStatus::Failed).await;
    assert_eq!(failed.progress.message, "hook faults on key \"key-9\": out of fuel (bad@1)");
    writing.abort();
    drop(writing.await);
    let after = cluster.tenant().await;
    assert_eq!(
        (after.placed(), after.moving, after.wanted_generation, after.generations),
        (in_generation(0), None, None, 1)
    );
    assert_eq!((cluster.forgotten().await, cluster.misplaced().await), (vec![], vec![]));
    // Its number is never used again.
    assert!(cluster.metadata.change_placement(to(1), 9).await.is_err());
    *cluster.hooked.faults_on.lock().unwrap() = None;
    let number = cluster.change(to(2)).await;
    cluster.wait_for(number, MigrationStatus::Completed).await;
    assert_eq!((cluster.forgotten().await, cluster.misplaced().await), (vec![], vec![]));
    leading.abort();
}

/// A leader that has not heard of the hook yet waits for it.
#[tokio::test(start_paused = true)]
async fn a_hook_that_is_not_known_is_waited_for() {
    let cluster = Change::Swap.cluster().await;
    *cluster.hooked.unknown.lock().unwrap() = Some(1);
    let number = cluster.change(Change::Swap.change()).await;
    let leading = lead(cluster.leader(1).await);
    sleep(Duration::from_secs(300)).await;
    assert_eq!(cluster.tenant().await.generation, 0);
    *cluster.hooked.unknown.lock().unwrap() = None;
    done(&cluster, Change::Swap, number).await;
    assert_eq!((cluster.forgotten().await, cluster.misplaced().await), (vec![], vec![]));
    leading.abort();
}

/// Taken back in each step: everything is where it was, and the coming rows are gone. From the last one there is no way to the new
/// generation either.
#[tokio::test(start_paused = true)]
async fn a_swap_is_taken_back_in_each_step() {
    for step in [Step::Preparing, Step::DualWrite, Step::Cutover] {
        let cluster = Change::Swap.cluster().await;
        cluster.another_coordinator().await;
        // Slowly enough for each step to be seen.
        let config = MovesConfig { bytes_per_second: 2000, ..MovesConfig::default() };
        let (leading, writing) = (lead(cluster.leader_with(1, config).await), write(&cluster));
        let number = cluster.change(Change::Swap.change()).await;
        let what = format!("it is in {step:?}");
        cluster
            .wait_until(&what, async |cluster| cluster.tenant().await.moving.is_some_and(|moving| moving.step == step))
            .await;
        cluster.metadata.cancel_migration(number, 7).await.expect("taken back");
        cluster.wait_for(number, MigrationStatus::Cancelled).await;
        assert_eq!(cluster.tenant().await.placed(), in_generation(0), "{step:?}");
        writing.abort();
        drop(writing.await);
        assert_eq!((cluster.forgotten().await, cluster.misplaced().await), (vec![], vec![]), "{step:?}");
        let number = cluster.change(to(2)).await;
        cluster.wait_for(number, MigrationStatus::Completed).await;
        assert!(cluster.metadata.cancel_migration(number, 9).await.is_ok_and(|ended| ended.status.has_ended()));
        assert_eq!((cluster.forgotten().await, cluster.misplaced().await), (vec![], vec![]), "{step:?}");
        leading.abort();
    }
}

/// A ring and a generation that change together: one move to both.
#[tokio::test(start_paused = true)]
async fn a_node_joins_while_the_hook_is_swapped() {
    let cluster = Change::Add.cluster().await;
    let (leading, writing) = (lead(cluster.leader(1).await), write(&cluster));
    let (first, second) = (cluster.change(Change::Swap.change()).await, cluster.change(Change::Add.change()).await);
    cluster.wait_for(first, MigrationStatus::Completed).await;
    cluster.wait_for(second, MigrationStatus::Completed).await;
    assert_eq!(cluster.tenant().await.placed(), Placed { ring: 1, ..in_generation(1) });
    writing.abort();
    drop(writing.await);
    assert_eq!((cluster.forgotten().await, cluster.misplaced().await), (vec![], vec![]));
    assert!(!cluster.nodes.places(&id(5), &tenant()).is_empty());
    leading.abort();
}
