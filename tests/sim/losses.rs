//! Scenes of what is lost: with the power of a node, between an answer and its sync; with the memory of replicas; and with a disk that
//! nobody has filled. Each needs a coincidence that storms seldom have.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use witan_coordinate::{ReadAnswer, WriteRequest};
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::name::Key;

use crate::cluster::{Call, Cluster};
use crate::nemesis::{Action, Link};
use crate::play::Verdict;
use crate::scenario::{Play, Scenario};
use crate::scene::{Hand, MERGED, Scene, everything_works, read, send, stage, write};
use crate::world::{now_micros, to_value};

/// The scenes.
pub(crate) const ALL: [Scene; 4] = [repeated_before_the_sync, shown_during_the_sync, repeated_after_others, not_filled];

/// One register, on one node.
fn one_replica(scenario: &mut Scenario) {
    register(scenario);
    scenario.nodes = 1;
    scenario.casts[0].tenant.replication_factor = 1;
}

/// One register, of which nobody but the scene takes care.
fn register(scenario: &mut Scenario) {
    scenario.casts.retain(|cast| cast.is_register() && cast.is_linearizable());
    scenario.casts.truncate(1);
    scenario.casts[0].comes_later = false;
    (scenario.heals, scenario.moves, scenario.spare, scenario.strict) = (None, false, 0, false);
}

/// Only plays that have such a register.
fn has_register(play: Play) -> bool {
    Scenario::of(play).casts.iter().any(|cast| cast.is_register() && cast.is_linearizable())
}

fn nothing_to_see(name: &'static str, play: Play) -> Verdict {
    stage(play, name, |_| {}, |_, _| async { Vec::new() })
}

fn value(number: u32) -> Bytes {
    to_value(&[number].into(), 0)
}

/// What a read shows, in words; `None` if it was not answered.
fn shows(answer: &Result<ReadAnswer, Failed>) -> Option<Bytes> {
    match answer {
        Ok(answer) => Some(answer.value.clone()),
        Err(Failed { failure: Failure::KeyNotFound { .. }, .. }) => Some(Bytes::new()),
        Err(_) => None,
    }
}

/// Reads until there is an answer.
async fn reads(cluster: &Cluster) -> Bytes {
    loop {
        if let Some(shown) = shows(&read(cluster, Duration::from_secs(2)).await) {
            return shown;
        }
        tokio::time::sleep(SHORT).await;
    }
}

/// Longest duration of a sync in these scenes, milliseconds.
const SLOW_MS: u64 = 1500;
const FAST_MS: u64 = 5;
/// How long clients wait for what is to be answered before a sync.
const SHORT: Duration = Duration::from_millis(60);
/// How often it is tried: whether a sync takes long enough is up to chance.
const ROUNDS: u32 = 12;

/// Power is lost, and is back.
async fn blackout(hand: &Hand) {
    hand.does(Action::CrashNode { node: 0, survives: 0 }).await;
    hand.does(Action::RestartNode { node: 0 }).await;
}

/// A write is not answered in time, because its sync is slow, and is repeated under its idempotency key. The repetition changes nothing
/// at the replica, and is acknowledged. Then the power fails: what was acknowledged is there.
pub(crate) fn repeated_before_the_sync(play: Play) -> Verdict {
    const NAME: &str = "repeated-before-the-sync";
    if !has_register(play) {
        return nothing_to_see(NAME, play);
    }
    stage(play, NAME, one_replica, |cluster, hand| async move {
        everything_works(&cluster).await;
        let mut violations = Vec::new();
        for round in 1..=ROUNDS {
            cluster.nodes[0].set_slowest_sync(SLOW_MS);
            let named = WriteRequest {
                idempotency_key: Some(format!("round-{round}")),
                ..write(&cluster, round, Duration::from_millis(150))
            };
            let mut acknowledged = send(&cluster, named.clone()).await.is_ok();
            for _ in 0..4 {
                acknowledged = acknowledged || send(&cluster, named.clone()).await.is_ok();
            }
            blackout(&hand).await;
            cluster.nodes[0].set_slowest_sync(FAST_MS);
            let shown = reads(&cluster).await;
            if acknowledged && shown != value(round) {
                violations.push(format!(
                    "lost: write {round} was acknowledged, and after a loss of power {shown:?} is there"
                ));
            }
        }
        violations
    })
}

/// A write is stored while a sync is under way that does not cover it, and is read before the next one. What a read has shown, a later read
/// shows, whatever power is lost in between.
pub(crate) fn shown_during_the_sync(play: Play) -> Verdict {
    const NAME: &str = "shown-during-the-sync";
    if !has_register(play) {
        return nothing_to_see(NAME, play);
    }
    stage(play, NAME, one_replica, |cluster, hand| async move {
        everything_works(&cluster).await;
        let mut violations = Vec::new();
        for round in 1..=ROUNDS {
            cluster.nodes[0].set_slowest_sync(SLOW_MS);
            let other = WriteRequest {
                key: Key::new("other").expect("a key"),
                ..write(&cluster, round, Duration::from_millis(SLOW_MS))
            };
            let own = write(&cluster, round, Duration::from_millis(20));
            let begins = cluster.clone();
            let first = tokio::spawn(async move { send(&begins, other).await });
            tokio::time::sleep(SHORT).await;
            // Not answered in time: it waits for the sync after that of the other key.
            let _ = send(&cluster, own).await;
            let until = now_micros() + 2 * SLOW_MS * 1000;
            let mut seen = false;
            while !seen && now_micros() < until {
                seen = shows(&read(&cluster, SHORT).await) == Some(value(round));
            }
            blackout(&hand).await;
            cluster.nodes[0].set_slowest_sync(FAST_MS);
            let shown = reads(&cluster).await;
            if seen && shown != value(round) {
                violations
                    .push(format!("linearizability: value {round} was read, and after a loss of power {shown:?}"));
            }
            let _ = first.await;
        }
        violations
    })
}

/// Longer than replicas remember whose write is whose, microseconds.
const FORGOTTEN: i64 = 200_000_000;

/// A write is in doubt, and has been stored. Others read it, and write over it. When it is repeated under its idempotency key, long after
/// replicas have forgotten it, it has its old place in the order: it does not come back.
pub(crate) fn repeated_after_others(play: Play) -> Verdict {
    const NAME: &str = "repeated-after-others";
    if !has_register(play) {
        return nothing_to_see(NAME, play);
    }
    let shape = |scenario: &mut Scenario| {
        register(scenario);
        (scenario.nodes, scenario.casts[0].tenant.replication_factor) = (3, 3);
    };
    stage(play, NAME, shape, |cluster, _| async move {
        everything_works(&cluster).await;
        cluster.nodes.iter().for_each(|node| node.set_slowest_sync(SLOW_MS));
        let mine = WriteRequest {
            idempotency_key: Some("intention".to_owned()),
            ..write(&cluster, 1, Duration::from_millis(150))
        };
        let first = send(&cluster, mine.clone()).await;
        cluster.nodes.iter().for_each(|node| node.set_slowest_sync(FAST_MS));
        tokio::time::sleep(MERGED + Duration::from_millis(SLOW_MS)).await;
        let mut violations = Vec::new();
        if first.is_ok() || reads(&cluster).await != value(1) {
            return violations;
        }
        for number in [2, 3] {
            let calm = Duration::from_secs(5);
            if let Err(failed) = send(&cluster, write(&cluster, number, calm)).await {
                violations.push(format!("recovery: write {number} has failed: {failed:?}"));
            }
            tokio::time::sleep(MERGED).await;
            // Each write drops what is old by then.
            cluster.nodes.iter().for_each(|node| node.clock.jump_by(FORGOTTEN));
            cluster.coordinators.iter().for_each(|coordinator| coordinator.clock.jump_by(FORGOTTEN));
        }
        let again = send(&cluster, WriteRequest { timeout: Some(Duration::from_secs(5)), ..mine }).await;
        tokio::time::sleep(MERGED).await;
        let shown = reads(&cluster).await;
        if shown != value(3) {
            violations
                .push(format!("linearizability: the value that was replaced twice came back as {shown:?}: {again:?}"));
        }
        violations
    })
}

/// Time for coordinators to notice that a node is cut off, is back, or has a new store.
const NOTICED: Duration = Duration::from_millis(2500);

/// A replica misses a write, and another one loses its disk; a repair cannot store anything. The third is the only one that has the write:
/// a read without it is not answered.
pub(crate) fn not_filled(play: Play) -> Verdict {
    const NAME: &str = "not-filled";
    if !has_register(play) {
        return nothing_to_see(NAME, play);
    }
    let shape = |scenario: &mut Scenario| {
        register(scenario);
        (scenario.nodes, scenario.strict) = (3, true);
        scenario.casts[0].tenant.replication_factor = 3;
    };
    stage(play, NAME, shape, |cluster, hand| async move {
        everything_works(&cluster).await;
        tokio::time::sleep(MERGED).await;
        let link = async |node, becomes| {
            for coordinator in 0..cluster.coordinators.len() {
                hand.does(Action::Link { coordinator, node, becomes }).await;
            }
            tokio::time::sleep(NOTICED).await;
        };
        link(2, Link::Cut).await;
        let written = send(&cluster, write(&cluster, 1, Duration::from_secs(5))).await;
        tokio::time::sleep(MERGED).await;
        link(2, Link::Up).await;
        hand.does(Action::Wipe { node: 0 }).await;
        let full = |full| cluster.nodes.iter().for_each(|node| node.disk().set_full(full));
        full(true);
        tokio::time::sleep(NOTICED).await;
        let (to, answer) = oneshot::channel();
        if let Some(doors) = cluster.coordinators[0].doors() {
            let _ = doors.calls.send(Call::Repair(Duration::ZERO, to));
        }
        let repaired = answer.await.unwrap_or_else(|_| "aborted".to_owned());
        full(false);
        tokio::time::sleep(NOTICED).await;
        link(1, Link::Cut).await;
        let shown = shows(&read(&cluster, Duration::from_secs(2)).await);
        match (written, shown) {
            (Ok(_), Some(shown)) if shown != value(1) => {
                vec![format!("lost: an acknowledged write is missed by a read that shows {shown:?}, after {repaired}")]
            }
            (Err(failed), _) => vec![format!("recovery: a quorum was there: {failed:?}")],
            _ => Vec::new(),
        }
    })
}
