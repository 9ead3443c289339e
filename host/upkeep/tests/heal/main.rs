//! Healing and sweeps over nodes in memory, in paused time.

mod collect;
mod digests;
mod missed;
mod nodes;
mod replace;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Claimant, Duty, DutyKind, UpkeepClaims};
use witan_kernel::register::Stamp;
use witan_upkeep::{Healing, HealingConfig, Sweep};

use world::{Cluster, InMemory};

const KEYS: usize = 1000;
const PARTS: usize = 16;

/// Nothing is scrubbed.
fn config(bytes_per_second: u64) -> HealingConfig {
    HealingConfig { bytes_per_second, scrub_every: Duration::ZERO, ..HealingConfig::default() }
}

/// A cluster in which the third node has nothing of what the others have.
async fn cluster() -> Cluster {
    let cluster = Cluster::new().await;
    for key in 0..KEYS {
        (0..2).for_each(|node| cluster.nodes.put(node, key, 5));
    }
    cluster
}

/// Healing that runs until it is stopped.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(healing: Arc<Healing<InMemory>>) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: tokio::spawn(healing.run(async move { drop(stopped.await) })) }
    }

    async fn end(self) {
        self.stop.send(()).expect("it runs");
        self.task.await.expect("it ends");
    }
}

/// Waits, at most for an hour, until something is so.
async fn wait_until(what: &str, is: impl AsyncFn() -> bool) {
    let late = Instant::now() + Duration::from_secs(3600);
    while !is().await {
        assert!(Instant::now() < late, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn compared(cluster: &Cluster) -> usize {
    covered(cluster, DutyKind::Compare).await
}

/// The number of parts of the ring that were covered completely.
async fn covered(cluster: &Cluster, kind: DutyKind) -> usize {
    let duties = cluster.duties().await.duties;
    duties.iter().filter(|known| known.duty.kind == kind && known.covered_ms > 0).count()
}

#[tokio::test(start_paused = true)]
async fn coordinators_share_the_work_and_give_it_back() {
    let cluster = cluster().await;
    let rate = 32 << 10;
    let running = [1, 2].map(|number| Running::start(cluster.healing(number, &config(rate))));
    let (began, mut holders) = (Instant::now(), [0_u32; 2]);
    while compared(&cluster).await < PARTS {
        let duties = cluster.duties().await;
        for held in duties.duties.iter().filter_map(|known| known.live_holder(duties.now_ms)) {
            holders[usize::from(held.instance[0]) - 1] += 1;
        }
        assert!(duties.duties.iter().filter(|known| known.live_holder(duties.now_ms).is_some()).count() <= 2);
        // Each may have read a page of each replica that is not paid for yet.
        let most = 2 * rate * (began.elapsed().as_secs() + 1 + 2);
        assert!(cluster.nodes.read() <= most, "{} of {most} bytes after {:?}", cluster.nodes.read(), began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(began.elapsed() < Duration::from_secs(3600));
    }
    assert!(cluster.nodes.are_level());
    assert!(holders[0].abs_diff(holders[1]) < (holders[0] + holders[1]) / 3, "{holders:?}");
    for running in running {
        running.end().await;
    }
}

/// Begins a slow comparison, and returns with the first part under way and partly done.
async fn begun(cluster: &Cluster) -> Running {
    let first = Running::start(cluster.healing(1, &config(2048)));
    wait_until("some of a part is on record", async || {
        cluster.duties().await.duties.iter().any(|known| known.cursor.len() > 2)
    })
    .await;
    first
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_is_given_back_goes_on_elsewhere() {
    let cluster = cluster().await;
    begun(&cluster).await.end().await;
    let duties = cluster.duties().await;
    let given_back = duties.duties.iter().find(|known| known.begun_ms > 0).expect("an interrupted pass").clone();
    assert!(given_back.holder.is_none() && given_back.covered_ms == 0 && given_back.cursor.len() > 2);
    let second = Running::start(cluster.healing(2, &config(1 << 20)));
    wait_until("it is done", async || compared(&cluster).await == PARTS).await;
    let duties = cluster.duties().await;
    let done = duties.duties.iter().find(|known| known.duty == given_back.duty).expect("the same duty");
    assert_eq!(done.covered_ms, given_back.begun_ms, "it is the pass that the first one began");
    assert!(cluster.nodes.are_level());
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_work_of_a_coordinator_that_has_died_goes_on_when_its_claim_has_expired() {
    let cluster = cluster().await;
    let part = Duty { kind: DutyKind::Compare, range: "3".to_owned() };
    let died = Claimant { coordinator: NodeId::new("coordinator-1").expect("an id"), instance: [1; 16] };
    let claimed = cluster.metadata.claim_duty(&part, died, 30_000).await.expect("claimed");
    let second = Running::start(cluster.healing(2, &config(1 << 20)));
    wait_until("the rest is done", async || compared(&cluster).await == PARTS - 1).await;
    let duties = cluster.duties().await;
    assert!(duties.now_ms < claimed.until_ms, "it was faster than that");
    wait_until("that is done, too", async || compared(&cluster).await == PARTS).await;
    let done = cluster.duties().await;
    assert!(done.now_ms >= claimed.until_ms, "not before it has expired");
    let done = done.duties.iter().find(|known| known.duty == part).expect("it is on record");
    assert!(done.fence > claimed.fence && done.covered_ms == claimed.begun_ms);
    assert!(cluster.nodes.are_level());
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_is_caught_up_with_although_the_database_was_away_too() {
    let cluster = Cluster::new().await;
    let running = Running::start(cluster.healing(1, &config(1 << 20)));
    wait_until("everything was compared once", async || compared(&cluster).await == PARTS).await;
    cluster.metadata.set_available(false);
    cluster.nodes.set_away(2, true);
    tokio::time::sleep(Duration::from_secs(1)).await;
    (0..KEYS).for_each(|key| cluster.write_missed_by(1, 2, key, 5));
    cluster.nodes.set_away(2, false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!cluster.nodes.are_level(), "nobody can claim it");
    cluster.metadata.set_available(true);
    let back = Instant::now();
    wait_until("it is level", async || cluster.nodes.are_level()).await;
    assert!(back.elapsed() < Duration::from_secs(30), "{:?}", back.elapsed());
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_for_a_moment_is_caught_up_with() {
    let cluster = Cluster::new().await;
    let running = Running::start(cluster.healing(1, &config(1 << 20)));
    wait_until("everything was compared once", async || compared(&cluster).await == PARTS).await;
    // It is back before anybody looks.
    cluster.nodes.set_away(2, true);
    (0..KEYS).for_each(|key| cluster.write_missed_by(1, 2, key, 5));
    cluster.nodes.set_away(2, false);
    let back = Instant::now();
    wait_until("it is level", async || cluster.nodes.are_level()).await;
    assert!(back.elapsed() < Duration::from_secs(30), "{:?}", back.elapsed());
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_merge_is_sent_under_a_later_change_only_if_the_tenant_is_known_to_be_there() {
    for is_known in [true, false] {
        let cluster = cluster().await;
        let (coordinator, healing) = cluster.healing_at(3, &config(1 << 20));
        cluster.nodes.set_fence(2, 5);
        if !is_known {
            cluster.forget_tenants();
        }
        let running = Running::start(healing);
        wait_until("a merge is refused", async || !cluster.nodes.refused(2).is_empty()).await;
        coordinator.set_followed(5);
        // Longer than all attempts at a merge take.
        tokio::time::sleep(Duration::from_secs(10)).await;
        // A tenant that may have been deleted in between: what was read before that is not sent as if it had been read after it.
        let (_, first) = cluster.nodes.refused(2).swap_remove(0);
        assert_eq!(cluster.nodes.has(2, &first), is_known);
        assert!(cluster.nodes.refused(2).iter().all(|(epoch, _)| *epoch == 3), "{:?}", cluster.nodes.refused(2));
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_long_ago_is_read_again_before_it_is_sent() {
    let cluster = Cluster::new().await;
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    (0..2).for_each(|node| cluster.nodes.put(node, 0, 5));
    cluster.nodes.hang_until(2, start + 12 * second);
    let repair = cluster.upkeep().begin_repair(Sweep::everything()).await.expect("begun");
    let (progress, mut reports) = mpsc::channel(1);
    let repaired = tokio::spawn(repair.run(progress));
    tokio::spawn(async move { while reports.recv().await.is_some() {} });
    tokio::time::sleep(second).await;
    (0..2).for_each(|node| cluster.nodes.put(node, 0, 9));
    let repaired = repaired.await.expect("it ends").expect("it is not stopped");
    assert!(repaired.swept.is_complete(), "{repaired:?}");
    assert!(cluster.nodes.are_level());
    let merges = cluster.nodes.merges(2);
    assert!(merges.len() >= 3, "{merges:?}");
    for (at, stamp) in merges {
        let after = at - start;
        assert!(stamp == Stamp(9) || after < 11 * second, "{stamp:?}, replaced after 1 s, is sent after {after:?}");
    }
}
