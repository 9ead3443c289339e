use std::sync::mpsc;

use tokio::sync::oneshot;
use witan_kernel::idempotency::{DOUBTED_MS, KEPT_MS, SHORTEST_KEPT_MS, Step, Stepped};
use witan_kernel::port::{Durability, IdempotencyStore, StoreError};
use witan_memory::contract::{ManualClock, idempotency as contract, join_all};

use super::{EmbeddedIdempotency, QUEUE, Task};
use crate::testing;

fn open(folder: &tempfile::TempDir, clock: &ManualClock) -> EmbeddedIdempotency {
    EmbeddedIdempotency::open(folder.path(), clock.clone(), Durability::Sync).expect("opens")
}

async fn count(store: &EmbeddedIdempotency) -> (usize, usize) {
    let (answer, counted) = oneshot::channel();
    store.queue.try_send(Task::Count(answer)).expect("room");
    counted.await.expect("counted")
}

/// The thread does nothing until the sender is dropped or used.
fn stall(store: &EmbeddedIdempotency) -> mpsc::Sender<()> {
    let (go_on, until) = mpsc::channel();
    store.queue.try_send(Task::Stall(until)).expect("room");
    go_on
}

#[tokio::test]
async fn keeps_the_contract_and_keeps_it_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::new();
    let store = open(&folder, &clock);
    contract::all(&store, &clock).await;
    contract::reserve_one(&store, 1).await;
    let second = EmbeddedIdempotency::open(folder.path(), clock.clone(), Durability::Os);
    assert!(matches!(second, Err(StoreError::Conflict(_))), "one folder, one store");
    store.close().await;
    contract::is_down(&store).await;
    contract::finds_one(&open(&folder, &clock), 1).await;
}

/// The sweep sleeps until the first record that it knows is due, a day from now; one that is due earlier is swept all the same.
#[tokio::test]
async fn a_record_with_a_short_retention_is_swept_before_older_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::new();
    let store = open(&folder, &clock);
    contract::reserve_many(&store, 10).await;
    let kept_ms = SHORTEST_KEPT_MS;
    for of in 100..110 {
        contract::reserve_one(&store, of).await;
        let owner = contract::owner(1);
        let name = contract::name(1000 + of);
        let write_id = witan_kernel::name::WriteId([1; 16]);
        let reserve = Step::Reserve { owner, write_id, started: 1, lease_ms: 500, kept_ms };
        assert!(matches!(store.step(name, reserve).await, Ok(Stepped::Reserved { .. })));
        let done = Step::Done { owner, fence: 1, response: bytes::Bytes::new(), kept_ms };
        assert_eq!(store.step(name, done).await, Ok(Stepped::Stored));
    }
    assert_eq!(count(&store).await, (30, 30));
    clock.pass_ms(kept_ms);
    contract::reserve_one(&store, 200).await;
    assert_eq!(count(&store).await, (21, 21), "ten are gone, one is new");
}

#[tokio::test]
async fn expired_records_are_swept_in_portions() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::new();
    let store = open(&folder, &clock);
    contract::reserve_many(&store, 1000).await;
    clock.pass_ms(KEPT_MS / 4 * 5);
    // Kept a quarter of a day longer than the others are remembered.
    assert_eq!(store.step(contract::name(7), contract::done(1, 1, "answer")).await, Ok(Stepped::Stored));
    assert_eq!(count(&store).await, (1000, 1000));
    clock.pass_ms(DOUBTED_MS - KEPT_MS / 4);
    let mut left = 1000;
    for step in 0.. {
        contract::reserve_one(&store, 10_000 + step).await;
        let (records, entries) = count(&store).await;
        let old = records as u64 - step - 1;
        assert_eq!(records, entries);
        assert!(old < left && left - old <= 70, "{left} then {old}");
        left = old;
        if old == 1 {
            break;
        }
    }
    contract::finds_one(&store, 7).await;
    clock.pass_ms(KEPT_MS / 2);
    contract::reserve_one(&store, 7).await;
}

#[tokio::test]
async fn a_full_queue_says_so_and_a_dropped_future_harms_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = ManualClock::new();
    let store = open(&folder, &clock);
    let go_on = stall(&store);
    // The thread takes the stall out of the queue at any time, so one more may fit, even after another was refused.
    let waiting: Vec<_> =
        (0..=QUEUE as u64).map(|of| store.enqueue(contract::name(of), contract::reserve(1, 1, 500))).collect();
    let is_full = |refused: &StoreError| matches!(refused, StoreError::Unavailable(why) if why.contains("full"));
    assert!(waiting.iter().any(|queued| queued.as_ref().is_err_and(is_full)));
    drop(waiting);
    drop(go_on);
    // Those claims were dropped before they were carried out: the names are free.
    let queued = loop {
        match store.enqueue(contract::name(1), contract::reserve(2, 2, 500)) {
            Ok(queued) => break queued,
            // The thread has not come far enough.
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let again = queued.await.expect("answered");
    assert!(matches!(again, Ok(Stepped::Reserved { .. })), "{again:?}");
}

#[tokio::test]
async fn responses_in_the_queue_are_bounded_by_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder, &ManualClock::new());
    let go_on = stall(&store);
    let large = || witan_kernel::idempotency::Step::Done {
        owner: witan_kernel::idempotency::Owner([1; 16]),
        fence: 1,
        response: vec![1; witan_kernel::idempotency::RESPONSE_BYTES].into(),
        kept_ms: KEPT_MS,
    };
    let fit = super::QUEUED_BYTES / witan_kernel::idempotency::RESPONSE_BYTES;
    let waiting: Vec<_> = (0..=fit as u64).map(|of| store.enqueue(contract::name(of), large())).collect();
    assert_eq!(waiting.iter().filter(|queued| queued.is_err()).count(), 1);
    drop(go_on);
    for queued in waiting.into_iter().flatten() {
        assert_eq!(queued.await.expect("answered"), Ok(Stepped::Lost));
    }
    let stepped = store.step(contract::name(1), large()).await;
    assert_eq!(stepped, Ok(Stepped::Lost), "the room is free again");
}

#[tokio::test]
async fn a_failed_store_is_opened_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder, &ManualClock::new());
    contract::reserve_one(&store, 1).await;
    store.queue.try_send(Task::Break).expect("room");
    contract::finds_one(&store, 1).await;
}

/// The engine creates its folder in several steps, and cannot resume in the middle.
#[tokio::test]
async fn a_store_whose_creation_was_interrupted_is_created_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    open(&folder, &ManualClock::new()).close().await;
    std::fs::remove_file(folder.path().join("version")).expect("the engine's mark");
    contract::reserve_one(&open(&folder, &ManualClock::new()), 1).await;
}

/// Killed while it works, the store has every step that it has acknowledged, synced or not.
#[test]
fn survives_being_killed() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let clock = ManualClock::new();
    if let Some(folder) = testing::as_child() {
        let durability = if folder.ends_with("0") { Durability::Os } else { Durability::Sync };
        let store = EmbeddedIdempotency::open(folder, clock.clone(), durability).expect("opens");
        runtime.block_on(async {
            for batch in 0.. {
                let batch: Vec<u64> = (batch * 10..batch * 10 + 10).collect();
                join_all(batch.iter().map(|of| contract::reserve_one(&store, *of))).await;
                batch.iter().for_each(|of| println!("ack {of}"));
            }
        });
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut from = 0;
    for round in 0..3 {
        let folder = folder.path().join(round.to_string());
        let test = "idempotency::embedded::tests::survives_being_killed";
        let acknowledged = testing::kill_midway(test, &folder, 200);
        let store = EmbeddedIdempotency::open(&folder, clock.clone(), Durability::Sync).expect("opens after the kill");
        for of in acknowledged {
            runtime.block_on(contract::finds_one(&store, of.parse().expect("a number")));
            from += 1;
        }
    }
    assert!(from >= 600);
}
