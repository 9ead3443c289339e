//! Each rule of a move has a play that loses something without it.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use witan_kernel::fault::{self, Fault};
use witan_kernel::limit::GRACE;
use witan_kernel::name::WriteId;
use witan_kernel::placement::{Placed, Step};
use witan_kernel::port::MigrationStatus;
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::tenant::Level;
use witan_upkeep::{Routine, Sweep};

use super::nodes::Call;
use super::world::{Cluster, id, place, tenant};
use super::{Change, lead};

/// Leads the change to its end, or as far as it comes in ten minutes. True if it has ended.
async fn ended(cluster: &Cluster, number: u64) -> bool {
    let leading = lead(cluster.leader(1).await);
    let late = Instant::now() + Duration::from_secs(600);
    while Instant::now() < late && cluster.migration(number).await.status != MigrationStatus::Completed {
        sleep(Duration::from_millis(100)).await;
    }
    leading.abort();
    let migration = cluster.migration(number).await;
    if migration.status != MigrationStatus::Completed {
        println!("{:?}: {migration:?}", cluster.tenant().await.moving);
    }
    migration.status == MigrationStatus::Completed
}

/// An operation that began before the move ends when the first copy has passed it, and everything is as it should be.
async fn late_write(key: usize) -> bool {
    let cluster = Change::Factor(1, 3).cluster().await;
    cluster.another_coordinator().await;
    let mut write = cluster.plan(key).await;
    let number = cluster.change(Change::Factor(1, 3).change()).await;
    // It is planned when nodes are prepared: some of those are sources of other ranges, and have a fence from then on.
    write.epoch = cluster.revision().await + 1;
    let late = {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let is_last = async |cluster: &Cluster| {
                cluster.tenant().await.moving.is_some_and(|moving| moving.step == Step::Cutover)
            };
            cluster.wait_until("the last step", is_last).await;
            cluster.send(&write, 9999, Level::Quorum)
        })
    };
    assert!(ended(&cluster, number).await);
    assert!(late.await.expect("it ends"), "it is in time");
    cluster.forgotten().await.is_empty()
}

/// The same when the last copy has passed it, too.
async fn later_write() -> bool {
    let cluster = Change::Factor(1, 3).cluster().await;
    let mut write = cluster.plan(7).await;
    let number = cluster.change(Change::Factor(1, 3).change()).await;
    // It is planned when nodes are prepared: some of those are sources of other ranges, and have a fence from then on.
    write.epoch = cluster.revision().await + 1;
    let late = cluster.clone();
    // Five nodes get rows: they are prepared, asked before the last copy, and asked after it.
    cluster.nodes.after(Call::Enter, 10, move || _ = late.send(&write, 9999, Level::Quorum));
    assert!(ended(&cluster, number).await);
    cluster.forgotten().await.is_empty()
}

/// Of the two nodes that have acknowledged a write one is away, and the other one cannot read it any longer.
async fn one_source() -> bool {
    let cluster = Change::Remove.cluster().await;
    let (mut key, mut write) = (0, cluster.plan(0).await);
    while write.old[0] != id(0) {
        key += 1;
        write = cluster.plan(key).await;
    }
    cluster.nodes.set_away(&write.old[2], true);
    assert!(cluster.send(&write, 9999, Level::Quorum));
    cluster.nodes.set_away(&write.old[2], false);
    cluster.nodes.spoil(&write.old[1], &place(key));
    cluster.nodes.set_away(&id(0), true);
    let number = cluster.change(Change::Remove.change()).await;
    assert!(!ended(&cluster, number).await, "the node that leaves cannot clean up");
    cluster.tenant().await.ring == 0
}

/// No node stores what it gets.
async fn full_disks() -> bool {
    let cluster = Change::Factor(1, 3).cluster().await;
    (0..5).for_each(|node| cluster.nodes.set_full(&id(node)));
    let number = cluster.change(Change::Factor(1, 3).change()).await;
    ended(&cluster, number).await;
    cluster.forgotten().await.is_empty()
}

/// The node that enters has a row of long ago, of a key that was deleted, and whose deletion was collected since.
async fn old_row() -> bool {
    let cluster = Change::Add.cluster().await;
    let number = cluster.change(Change::Add.change()).await;
    let new = Placed { ring: 1, replication_factor: 3, generation: 0 };
    let mut key = 500;
    while !cluster.replicas(key, new).await.contains(&id(5)) {
        key += 1;
    }
    let old = Record::Register(Register::written(Stamp(1), WriteId([1; 16]), Some(Bytes::from_static(b"old"))));
    cluster.nodes.merge(&id(5), &place(key), &old, 1).expect("stored");
    assert!(ended(&cluster, number).await);
    (0..6).all(|node| cluster.nodes.row(&id(node), &place(key)).is_none())
}

async fn deletions() -> bool {
    let cluster = Change::Factor(1, 3).cluster().await;
    let number = cluster.change(Change::Factor(1, 3).change()).await;
    assert!(ended(&cluster, number).await);
    cluster.forgotten().await.is_empty()
}

/// What was acknowledged at level `one` by a node that leaves, and that no other node has, is handed over.
async fn hand_over() -> bool {
    let cluster = Change::Remove.cluster().await;
    let (mut key, mut write) = (0, cluster.plan(0).await);
    while !write.old.contains(&id(0)) {
        key += 1;
        write = cluster.plan(key).await;
    }
    let number = cluster.change(Change::Remove.change()).await;
    write.epoch = cluster.revision().await + 1;
    // It cannot be reached when the others fence. Then a coordinator writes to it that is cut off from everything else.
    let nodes = cluster.nodes.clone();
    cluster.nodes.at_next(Call::Fence, move || nodes.set_away(&id(0), true));
    let leading = lead(cluster.leader(1).await);
    cluster.wait_until("it has moved", async |cluster| cluster.tenant().await.ring == 1).await;
    assert_eq!(cluster.leftovers().await.len(), 1);
    cluster
        .wait_until("it says so", async |cluster| {
            let message = cluster.migration(number).await.progress.message;
            message.contains("node-0") && message.contains("it cannot be reached")
        })
        .await;
    cluster.nodes.set_away(&id(0), false);
    write.old.retain(|node| *node == id(0));
    assert!(cluster.send(&write, 9999, Level::One), "it serves who does not know better");
    let forgotten = cluster.forgotten().await;
    leading.abort();
    assert!(ended(&cluster, number).await);
    assert!(!cluster.send(&write, 10_000, Level::One), "it has a fence now");
    assert_eq!((cluster.misplaced().await, forgotten), (vec![], vec![key]), "nobody else had it");
    cluster.forgotten().await.is_empty()
}

/// A value has been copied when its key is deleted, which the node that enters does not hear of. A coordinator that has not heard of the
/// move finds the tombstone on all replicas that it knows.
async fn collected() -> bool {
    let cluster = Change::Add.cluster().await;
    let (collector, new) = (cluster.collector().await, Placed { ring: 1, replication_factor: 3, generation: 0 });
    let number = cluster.change(Change::Add.change()).await;
    let mut key = 1;
    while !cluster.replicas(key, new).await.contains(&id(5)) || key % 5 == 0 {
        key += 1;
    }
    // The leader waits for it before it copies for the last time.
    cluster.another_coordinator().await;
    let leading = lead(cluster.leader(1).await);
    let is_last =
        async |cluster: &Cluster| cluster.tenant().await.moving.is_some_and(|moving| moving.step == Step::Cutover);
    cluster.wait_until("the last step", is_last).await;
    cluster.nodes.halt_at(Some(0));
    timeout(Duration::from_secs(60), cluster.nodes.halted()).await.expect("it halts");
    leading.abort();
    cluster.nodes.halt_at(None);
    assert!(cluster.nodes.row(&id(5), &place(key)).is_some_and(|row| !row.is_deleted()), "the value was copied");
    let mut deletion = cluster.plan(key).await;
    deletion.old.retain(|node| *node != id(5));
    assert!(cluster.send_to_old(&deletion, 9995));
    let routine = Some(Routine { grace: GRACE, collects: true });
    let sweep = Sweep { tenant: Some(tenant()), fills: false, routine, ..Sweep::everything() };
    let (progress, mut reports) = mpsc::channel(1);
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    collector.begin_repair(sweep).await.expect("begun").run(progress).await.expect("it is not stopped");
    assert!(ended(&cluster, number).await);
    cluster.forgotten().await.is_empty()
}

async fn holds(play: &str) -> bool {
    match play {
        "collection" => collected().await,
        "late write" => late_write(7).await,
        // Of a key of which nothing was copied before.
        "late first write" => late_write(707).await,
        "later write" => later_write().await,
        "one source" => one_source().await,
        "full disks" => full_disks().await,
        "old row" => old_row().await,
        "deletions" => deletions().await,
        _ => hand_over().await,
    }
}

#[tokio::test(start_paused = true)]
async fn each_rule_of_a_move_is_needed() {
    for (broken, play) in [
        (Fault::MoveDeltaSkipped, "late write"),
        (Fault::CopyTakesNothingForLevel, "late first write"),
        (Fault::MoveUnfenced, "later write"),
        (Fault::MoveCopyFromOne, "one source"),
        (Fault::MoveCopyToOne, "full disks"),
        (Fault::MovePrepareSkipped, "old row"),
        (Fault::MoveSkipsTombstones, "deletions"),
        (Fault::LeftoverDroppedUnseen, "hand over"),
        (Fault::CollectDuringMove, "collection"),
    ] {
        assert!(holds(play).await, "{play}");
        fault::set(Some(broken));
        let is_held = holds(play).await;
        fault::set(None);
        assert!(!is_held, "{play} does not notice {broken:?}");
    }
}
