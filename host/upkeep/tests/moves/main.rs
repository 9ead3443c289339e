//! Placement changes over nodes in memory, in paused time.

mod faults;
mod nodes;
mod rate;
mod replace;
mod swaps;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use witan_kernel::limit::LONGEST_DEADLINE;
use witan_kernel::name::Zone;
use witan_kernel::placement::{Placed, Step};
use witan_kernel::port::{MigrationStatus, MigrationStore, MoveTenant, PlacementChange, PlacementStore, TenantStore};
use witan_kernel::register::Stamp;
use witan_kernel::scan::Ranges;
use witan_kernel::tenant::Level;
use witan_upkeep::MovesConfig;

use nodes::Call;
use world::{Cluster, id, place, storage_node, tenant};

const KEYS: usize = 60;

/// A change, and the cluster that it is made in: nodes, and replicas.
#[derive(Debug, Clone, Copy)]
enum Change {
    Factor(u8, u8),
    Add,
    Remove,
    Force,
    Zone,
    Weight,
    Swap,
}

const CHANGES: [Change; 9] = [
    Change::Factor(1, 3),
    Change::Factor(3, 5),
    Change::Factor(5, 3),
    Change::Add,
    Change::Remove,
    Change::Force,
    Change::Zone,
    Change::Weight,
    Change::Swap,
];

impl Change {
    async fn cluster(self) -> Cluster {
        let factor = match self {
            Self::Factor(before, _) => before,
            _ => 3,
        };
        let cluster = Cluster::new(5, factor).await;
        cluster.fill(KEYS).await;
        cluster
    }

    fn change(self) -> PlacementChange {
        match self {
            Self::Factor(_, to) => PlacementChange::ReplicationFactor { tenant: tenant(), to },
            Self::Add => PlacementChange::AddNode(storage_node(5)),
            Self::Remove => PlacementChange::RemoveNode { node: id(0), force: false },
            Self::Force => PlacementChange::RemoveNode { node: id(0), force: true },
            // The only one of its zone has a replica of each key.
            Self::Zone => PlacementChange::UpdateNode {
                node: id(1),
                virtual_nodes: None,
                zone: Some(Zone::new("apart").expect("valid")),
            },
            Self::Weight => PlacementChange::UpdateNode { node: id(1), virtual_nodes: Some(9), zone: None },
            Self::Swap => PlacementChange::Generation { tenant: tenant(), generation: 1 },
        }
    }

    fn target(self) -> Placed {
        match self {
            Self::Factor(_, to) => Placed { ring: 0, replication_factor: to, generation: 0 },
            Self::Swap => Placed { ring: 0, replication_factor: 3, generation: 1 },
            _ => Placed { ring: 1, replication_factor: 3, generation: 0 },
        }
    }
}

fn lead(leader: world::Leader) -> JoinHandle<()> {
    tokio::spawn(leader.lead())
}

/// Writes to one key after the other, without end.
fn write(cluster: &Cluster) -> JoinHandle<()> {
    let cluster = cluster.clone();
    tokio::spawn(async move {
        for stamp in 2000.. {
            let key = stamp as usize * 7 % (KEYS + 20);
            cluster.write(key, stamp, if stamp % 4 == 0 { Level::One } else { Level::Quorum }).await;
            sleep(Duration::from_millis(7)).await;
        }
    })
}

/// The change is done, with what it left, and nothing that was acknowledged is forgotten.
async fn done(cluster: &Cluster, change: Change, number: u64) {
    let done = cluster.wait_for(number, MigrationStatus::Completed).await;
    assert_eq!(cluster.tenant().await.placed(), change.target());
    assert_eq!((cluster.leftovers().await, cluster.tenant().await.wanted_factor), (vec![], None));
    assert_eq!((done.progress.tenants_done, done.progress.tenants_total), (1, 1), "{done:?}");
    assert_eq!(done.progress.keys_done, done.progress.keys_total);
}

#[tokio::test(start_paused = true)]
async fn every_change_under_writes() {
    for change in CHANGES {
        let cluster = change.cluster().await;
        let (leading, writing) = (lead(cluster.leader(1).await), write(&cluster));
        let number = cluster.change(change.change()).await;
        if matches!(change, Change::Force) {
            cluster.nodes.set_away(&id(0), true);
        }
        done(&cluster, change, number).await;
        writing.abort();
        assert!(writing.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(cluster.forgotten().await, [0_usize; 0], "{change:?}");
        let misplaced = cluster.misplaced().await;
        let of_lost = |node: &_| matches!(change, Change::Force) && *node == id(0);
        assert!(misplaced.iter().all(|(node, _)| of_lost(node)), "{change:?}: {misplaced:?}");
        let placement = cluster.metadata.placement().await.expect("read");
        assert_eq!(placement.rings.len(), 1, "{change:?}: versions of the ring are forgotten");
        let has_left = matches!(change, Change::Remove | Change::Force);
        assert_eq!(placement.nodes.iter().any(|node| node.node.id == id(0)), !has_left, "{change:?}");
        leading.abort();
    }
}

/// A leader comes to a halt at each call to a node, before or after its effect, and another one goes on.
#[tokio::test(start_paused = true)]
async fn another_leader_goes_on_wherever_one_stops() {
    for change in [Change::Factor(1, 3), Change::Factor(5, 3), Change::Add, Change::Remove, Change::Swap] {
        let (mut at, mut calls) = (0, usize::MAX);
        while at < calls {
            let cluster = change.cluster().await;
            let number = cluster.change(change.change()).await;
            cluster.nodes.halt_at(Some(at));
            let first = lead(cluster.leader(1).await);
            let writing = write(&cluster);
            let halted = timeout(Duration::from_secs(600), cluster.nodes.halted()).await.is_ok();
            if !halted {
                calls = cluster.nodes.calls();
            }
            first.abort();
            cluster.nodes.halt_at(None);
            let second = lead(cluster.leader(2).await);
            done(&cluster, change, number).await;
            writing.abort();
            drop(writing.await);
            assert_eq!(cluster.forgotten().await, [0_usize; 0], "{change:?} at {at}");
            assert_eq!(cluster.misplaced().await, [], "{change:?} at {at}");
            second.abort();
            // Every other call is before an effect, and every other one after it.
            at += 23;
        }
        assert!(calls > 50, "{change:?}: {calls}");
    }
}

/// Nodes forget the names of writes that are old as soon as they are sent them.
#[tokio::test(start_paused = true)]
async fn what_is_old_is_copied_once() {
    let cluster = Change::Add.cluster().await;
    for key in 0..KEYS {
        for node in cluster.plan(key).await.old {
            cluster.nodes.remember(&node, &place(key));
        }
    }
    let leader = cluster.leader(1).await;
    let upkeep = Arc::clone(&leader.upkeep);
    let number = cluster.change(Change::Add.change()).await;
    let leading = lead(leader);
    done(&cluster, Change::Add, number).await;
    let rows = cluster.nodes.places(&id(5), &tenant()).len() as u64;
    assert!(rows > 10);
    assert_eq!(upkeep.metrics().moved_records.get(), rows);
    leading.abort();
}

/// The first copy reads one replica in each range; what comes after it reads fingerprints, and whole only what a replica lacks.
#[tokio::test(start_paused = true)]
async fn records_are_read_whole_where_somebody_lacks_them() {
    let change = Change::Factor(3, 5);
    for stale in [0, 4] {
        let cluster = change.cluster().await;
        (0..stale).for_each(|key| cluster.nodes.lose(&id(0), &place(10 * key)));
        let held = (0..stale).filter(|key| cluster.nodes.row(&id(0), &place(10 * key)).is_none()).count();
        let leading = lead(cluster.leader(1).await);
        let number = cluster.change(change.change()).await;
        done(&cluster, change, number).await;
        assert_eq!((held, cluster.forgotten().await), (stale, vec![]));
        let read = cluster.nodes.read();
        // Each is read again of all five, with fewer than eight others beside it.
        assert!(
            (KEYS - stale..=KEYS + 5 * 8 * stale).contains(&read),
            "{read} records of {KEYS} were read, {stale} stale"
        );
        leading.abort();
    }
}

/// The rate makes a copy wait for longer than records may be sent after they were read, and the pages of its sources end in different
/// places.
#[tokio::test(start_paused = true)]
async fn what_is_copied_slowly_is_read_again_before_it_is_sent() {
    let cluster = Change::Factor(3, 5).cluster().await;
    (0..KEYS).step_by(2).for_each(|key| cluster.nodes.lose(&id(0), &place(key)));
    let config = MovesConfig { bytes_per_second: 60, ..MovesConfig::default() };
    let number = cluster.change(Change::Factor(3, 5).change()).await;
    let (leading, began) = (lead(cluster.leader_with(1, config).await), Instant::now());
    done(&cluster, Change::Factor(3, 5), number).await;
    assert!(began.elapsed() > Duration::from_secs(60), "it was slow: {:?}", began.elapsed());
    let oldest = cluster.nodes.oldest_merge();
    assert!(oldest > Duration::ZERO && oldest <= LONGEST_DEADLINE, "{oldest:?}");
    assert_eq!(cluster.forgotten().await, [0_usize; 0]);
    leading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stops_gives_its_claim_back_and_one_that_is_cut_off_loses_it() {
    let cluster = Change::Add.cluster().await;
    let first = cluster.leader(1).await;
    let (moves, (stop, stopped)) = (Arc::clone(&first.moves), oneshot::channel::<()>());
    let running = tokio::spawn(Arc::clone(&moves).run(async move { drop(stopped.await) }));
    let second = cluster.leader(2).await;
    let other = Arc::clone(&second.moves);
    cluster.wait_until("one leads", async |_| moves.is_leader()).await;
    let leading = lead(second);
    sleep(Duration::from_secs(60)).await;
    assert!(moves.is_leader() && !other.is_leader(), "one at a time");
    stop.send(()).expect("it runs");
    running.await.expect("it ends");
    sleep(Duration::from_secs(6)).await;
    assert!(other.is_leader(), "it does not wait for the claim to expire");

    cluster.metadata.set_available(false);
    // The claim lasts for 15 seconds since it was last renewed, which is done every five.
    sleep(Duration::from_secs(9)).await;
    assert!(other.is_leader());
    sleep(Duration::from_secs(7)).await;
    assert!(!other.is_leader(), "another one may have the claim by now");
    cluster.metadata.set_available(true);
    let number = cluster.change(Change::Add.change()).await;
    done(&cluster, Change::Add, number).await;
    leading.abort();
}

/// A node has a fence above every revision: the metadata store was set back.
#[tokio::test(start_paused = true)]
async fn nodes_that_know_later_changes_than_the_metadata_store_do_not_make_it_publish_without_end() {
    let cluster = Change::Add.cluster().await;
    cluster.nodes.raise_fence(&id(5), Some(&tenant()), 1_000_000).await.expect("raised");
    let number = cluster.change(Change::Add.change()).await;
    let (before, leading) = (cluster.revision().await, lead(cluster.leader(1).await));
    sleep(Duration::from_secs(600)).await;
    let published = cluster.revision().await - before;
    assert!((10..400).contains(&published), "{published}");
    assert!(cluster.migration(number).await.progress.message.contains("refused it 10 times"));
    leading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_is_waited_for() {
    let cluster = Change::Add.cluster().await;
    let number = cluster.change(Change::Add.change()).await;
    cluster.nodes.set_away(&id(5), true);
    let leading = lead(cluster.leader(1).await);
    cluster
        .wait_until("it says so", async |cluster| {
            let message = cluster.migration(number).await.progress.message;
            message.contains("waits for node node-5: it cannot be reached") && message.contains("shop")
        })
        .await;
    let migration = cluster.migration(number).await;
    assert_eq!((migration.status, cluster.tenant().await.moving), (MigrationStatus::Pending, None));
    cluster.nodes.set_away(&id(5), false);
    done(&cluster, Change::Add, number).await;
    assert_eq!(cluster.forgotten().await, [0_usize; 0]);
    leading.abort();
}

/// The store of the node that enters is replaced when it was prepared, when what was stored is copied, and when the rest is.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_replaced_during_the_copy_begins_anew() {
    for call in [Call::Scan, Call::Merge, Call::Fence] {
        let cluster = Change::Add.cluster().await;
        let number = cluster.change(Change::Add.change()).await;
        let nodes = cluster.nodes.clone();
        cluster.nodes.at_next(call, move || nodes.replace_store(&id(5), true));
        let leading = lead(cluster.leader(1).await);
        done(&cluster, Change::Add, number).await;
        assert_eq!(cluster.forgotten().await, [0_usize; 0], "{call:?}");
        assert_eq!(cluster.misplaced().await, [], "{call:?}");
        leading.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_being_filled_does_not_count() {
    let cluster = Change::Add.cluster().await;
    let number = cluster.change(Change::Add.change()).await;
    let nodes = cluster.nodes.clone();
    cluster.nodes.at_next(Call::Merge, move || nodes.replace_store(&id(5), false));
    let leading = lead(cluster.leader(1).await);
    cluster
        .wait_until("it says so", async |cluster| {
            cluster.migration(number).await.progress.message.contains("is not the one on record")
        })
        .await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(cluster.tenant().await.placed().ring, 0);
    assert_eq!(cluster.forgotten().await, [0_usize; 0]);
    leading.abort();
}

/// A change is taken back in each step, and everything is as before.
#[tokio::test(start_paused = true)]
async fn a_change_can_be_taken_back_in_each_step() {
    for change in [Change::Add, Change::Factor(1, 3), Change::Remove] {
        for step in [None, Some(Step::Preparing), Some(Step::DualWrite), Some(Step::Cutover)] {
            let cluster = change.cluster().await;
            let before = cluster.tenant().await.placed();
            let number = cluster.change(change.change()).await;
            // At its next call the leader halts, and the change is taken back.
            let call = match step {
                Some(Step::Preparing) => Some(Call::Enter),
                Some(Step::DualWrite) => Some(Call::Merge),
                Some(Step::Cutover) => Some(Call::Fence),
                None => None,
            };
            let nodes = cluster.nodes.clone();
            if let Some(call) = call {
                cluster.nodes.at_next(call, move || nodes.halt_at(Some(0)));
            }
            let first = lead(cluster.leader(1).await);
            if call.is_some() {
                timeout(Duration::from_secs(60), cluster.nodes.halted()).await.expect("it halts");
                assert_eq!(cluster.tenant().await.moving.map(|moving| moving.step), step, "{change:?}");
            }
            first.abort();
            cluster.metadata.cancel_migration(number, 9).await.expect("taken back");
            cluster.nodes.halt_at(None);
            let second = lead(cluster.leader(2).await);
            let ended = cluster.wait_for(number, MigrationStatus::Cancelled).await;
            assert!(ended.cancel_requested);
            let after = cluster.tenant().await;
            let at = (after.replication_factor, after.moving, after.wanted_factor);
            assert_eq!(at, (before.replication_factor, None, None), "{change:?} {step:?}");
            assert_eq!(cluster.forgotten().await, [0_usize; 0], "{change:?} {step:?}");
            assert_eq!(cluster.misplaced().await, [], "{change:?} {step:?}");
            let placement = cluster.metadata.placement().await.expect("read");
            assert_eq!((placement.nodes.len(), placement.rings.len()), (5, 1), "{change:?} {step:?}");
            second.abort();
        }
    }
}

/// Of the rows that a node got in a move that was given up, it gets fewer in the next one.
#[tokio::test(start_paused = true)]
async fn a_node_that_gets_rows_again_keeps_none_of_before() {
    // One of them takes rows of the node.
    for other in 6..9 {
        let cluster = Change::Add.cluster().await;
        let first = cluster.change(Change::Add.change()).await;
        let nodes = cluster.nodes.clone();
        // When what was stored has been copied.
        cluster.nodes.at_next(Call::Fence, move || nodes.halt_at(Some(0)));
        let leading = lead(cluster.leader(1).await);
        timeout(Duration::from_secs(60), cluster.nodes.halted()).await.expect("it halts");
        leading.abort();
        cluster.nodes.halt_at(None);
        let tenant = cluster.tenant().await;
        assert_eq!(tenant.moving.map(|moving| moving.step), Some(Step::Cutover));
        let step = MoveTenant::GiveUp(vec![id(5)]);
        cluster.metadata.move_tenant(&tenant.id, tenant.version, step, 9).await.expect("given up");
        let second = cluster.change(PlacementChange::AddNode(storage_node(other))).await;
        let leading = lead(cluster.leader(2).await);
        for number in [first, second] {
            cluster.wait_for(number, MigrationStatus::Completed).await;
        }
        assert_eq!(cluster.tenant().await.placed(), Placed { ring: 2, replication_factor: 3, generation: 0 });
        assert_eq!((cluster.forgotten().await, cluster.misplaced().await), (vec![], vec![]));
        leading.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_tenant_does_not_move() {
    for call in [Call::Enter, Call::Merge, Call::Fence] {
        let cluster = Change::Factor(1, 3).cluster().await;
        let number = cluster.change(Change::Factor(1, 3).change()).await;
        let nodes = cluster.nodes.clone();
        cluster.nodes.at_next(call, move || nodes.halt_at(Some(0)));
        let first = lead(cluster.leader(1).await);
        timeout(Duration::from_secs(60), cluster.nodes.halted()).await.expect("it halts");
        let known = cluster.tenant().await;
        cluster.metadata.delete_tenant(&tenant(), known.version, 9, true).await.expect("deleted");
        first.abort();
        cluster.nodes.halt_at(None);
        let second = lead(cluster.leader(2).await);
        let ended = cluster.wait_for(number, MigrationStatus::Cancelled).await;
        assert!(ended.progress.message.contains("deleted"), "{ended:?}");
        second.abort();
    }
}

/// A source that cannot read a record does not count.
#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_makes_its_node_no_source() {
    let cluster = Change::Add.cluster().await;
    let all = cluster.plan(3).await.old;
    // One of three may be missing, two may not.
    cluster.nodes.spoil(&all[0], &place(3));
    let number = cluster.change(Change::Add.change()).await;
    let leading = lead(cluster.leader(1).await);
    done(&cluster, Change::Add, number).await;
    leading.abort();
    let cluster = Change::Add.cluster().await;
    all[..2].iter().for_each(|node| cluster.nodes.spoil(node, &place(3)));
    cluster.change(Change::Add.change()).await;
    let leading = lead(cluster.leader(1).await);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(cluster.tenant().await.ring, 0, "too few are left");
    leading.abort();
}

/// What was deleted since it was read must not be copied once its tombstone may have been collected.
#[tokio::test(start_paused = true)]
async fn nothing_is_copied_that_was_read_long_before() {
    let cluster = Change::Add.cluster().await;
    let number = cluster.change(Change::Add.change()).await;
    let began = Instant::now();
    cluster.nodes.hang_for(&id(5), Duration::from_secs(40));
    let leading = lead(cluster.leader(1).await);
    cluster.wait_until("it is sent", async |cluster| !cluster.nodes.merges(&id(5)).is_empty()).await;
    // What is sent was read before.
    let (read, (_, first)) = (began.elapsed(), cluster.nodes.merges(&id(5))[0]);
    let deletion = cluster.plan(first.0 as usize - 1000).await;
    assert!(cluster.send_to_old(&deletion, 9995));
    done(&cluster, Change::Add, number).await;
    let merges = cluster.nodes.merges(&id(5));
    assert!(merges.iter().any(|(_, stamp)| *stamp == Stamp(9995)) && merges.len() > 3, "{merges:?}");
    let latest = (read + Duration::from_secs(10)).as_micros() as u64;
    for (deadline, _) in merges.iter().filter(|(_, stamp)| *stamp == first) {
        assert!(*deadline <= latest, "it may be stored until {deadline}, and was read before {read:?}");
    }
    assert_eq!(cluster.forgotten().await, [0_usize; 0]);
    leading.abort();
}
