//! Servers that are killed, hang, forget, cut connections, or run out of memory.

use std::time::{Duration, Instant};

use witan_kernel::idempotency::Stepped;
use witan_kernel::port::{IdempotencyStore, StoreError};
use witan_memory::contract::join_all;
use witan_servers::{PATIENCE, Port, Redis};

use super::super::{RedisFacts, RedisFinding};
use super::{
    RedisConfig, RedisIdempotency, RedisServers, contract, eventually, nothing_is_in_flight, open, patient, reserve,
    reserve_all,
};

/// Gives up soon, as in production.
fn impatient(redis: &Redis) -> RedisIdempotency {
    let within = Duration::from_millis(200);
    let servers = RedisServers::Single(redis.url());
    RedisIdempotency::new(RedisConfig { timeout: within, connect_timeout: within, ..RedisConfig::new(servers) })
        .expect("opens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill() {
    let redis = Redis::start();
    let store = open(&redis);
    let mut acknowledged = Vec::new();
    for round in 0..3_u64 {
        let steps = (0..300).map(|step| {
            let (store, of) = (store.clone(), round * 1000 + step);
            tokio::spawn(async move {
                let stepped = store.step(contract::name(of), reserve(1, 1)).await;
                (of, stepped)
            })
        });
        let steps: Vec<_> = steps.collect();
        // In the midst of them.
        redis.kill();
        for step in steps {
            let (of, stepped) = step.await.expect("ends");
            match stepped {
                Ok(Stepped::Reserved { .. }) => acknowledged.push(of),
                Err(StoreError::Unavailable(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        redis.start_again();
        let stepped = eventually(&store, contract::name(round * 1000 + 999), reserve(1, 1)).await;
        assert!(matches!(stepped, Stepped::Reserved { .. }));
        acknowledged.push(round * 1000 + 999);
    }
    for of in acknowledged {
        contract::finds_one(&store, of).await;
    }
    assert!(nothing_is_in_flight(&store));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_fails_calls_in_time_and_is_found_when_it_goes_on() {
    let redis = Redis::start();
    let store = impatient(&redis);
    eventually(&store, contract::name(1), reserve(1, 1)).await;
    redis.pause();
    let started = Instant::now();
    contract::is_down(&store).await;
    // Hardly longer than a fifth of a second, however busy the machine is; without a time limit it would hang.
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    while !store.is_down() {
        contract::is_down(&store).await;
    }
    // From here on no step waits, except one trial after each pause.
    contract::is_down(&store).await;
    redis.resume();
    eventually(&store, contract::name(2), reserve(1, 1)).await;
    assert!(!store.is_down());
    assert!(nothing_is_in_flight(&store));
    let stepped = eventually(&store, contract::name(1), reserve(2, 2)).await;
    assert_eq!(stepped, Stepped::Conflict, "and it has forgotten nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_listens_calls_fail_at_once() {
    let port = Port::free();
    let servers = RedisServers::Single(format!("redis://{}", port.address()));
    let store = RedisIdempotency::new(patient(servers)).expect("opens");
    while !store.is_down() {
        contract::is_down(&store).await;
    }
    contract::is_down(&store).await;
    assert!(matches!(store.check().await, Err(StoreError::Unavailable(_))));
    assert!(nothing_is_in_flight(&store));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_records_are_absent() {
    let redis = Redis::start();
    let store = open(&redis);
    reserve_all(&store, 0..50).await;
    redis.ask("FLUSHALL");
    assert_eq!(store.step(contract::name(7), contract::done(1, 1, "answer")).await, Ok(Stepped::Lost));
    reserve_all(&store, 0..50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_script_is_sent_again() {
    let redis = Redis::start();
    let store = open(&redis);
    for round in 0..5 {
        reserve_all(&store, 1000 + round..1001 + round).await;
        redis.ask("SCRIPT FLUSH");
        let many = join_all((0..100).map(|of| store.step(contract::name(of), reserve(1, 1))));
        assert!(many.await.iter().all(|stepped| matches!(stepped, Ok(Stepped::Reserved { fence: 1, .. }))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_made_again_and_the_step_with_it() {
    let redis = std::sync::Arc::new(Redis::start());
    let store = open(&redis);
    reserve_all(&store, 1_000_000..1_000_000 + 1).await;
    for round in 0..5_u64 {
        // While idle,
        redis.ask("CLIENT KILL TYPE normal");
        reserve_all(&store, 1_000_001 + round..1_000_002 + round).await;
        // and while many are in flight.
        let steps: Vec<_> = (0..200)
            .map(|step| {
                let (store, of) = (store.clone(), round * 1000 + step);
                tokio::spawn(async move { reserve_all(&store, of..of + 1).await })
            })
            .collect();
        let cut = tokio::task::spawn_blocking({
            let redis = redis.clone();
            move || redis.ask("CLIENT KILL TYPE normal")
        });
        for step in steps {
            step.await.expect("nobody notices");
        }
        cut.await.expect("cut");
    }
    assert!(nothing_is_in_flight(&store) && !store.is_down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_refuses_changes_and_still_answers_duplicates() {
    let redis = Redis::start();
    let store = open(&redis);
    reserve_all(&store, 1..1 + 1).await;
    assert_eq!(store.step(contract::name(1), contract::done(1, 1, "answer")).await, Ok(Stepped::Stored));
    let limit = |bytes: u64| redis.ask(&format!("CONFIG SET maxmemory {bytes}"));
    limit(1 << 30);
    let share = store.used_share().await.expect("it answers").expect("it has a limit");
    assert!(share > 0.0 && share < 0.5, "{share}");
    limit(1);
    // More often than it takes to be given up as unreachable: a full server answers.
    for of in 2..20 {
        let refused = store.step(contract::name(of), reserve(1, 1)).await;
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    }
    assert!(store.is_full() && !store.is_down());
    assert!(store.used_share().await.expect("it answers").expect("it has a limit") > 1.0);
    let stepped = store.step(contract::name(1), reserve(2, 1)).await;
    assert_eq!(stepped, Ok(Stepped::Done { response: bytes::Bytes::from_static(b"answer") }));
    assert!(store.is_full(), "a duplicate needs no room");
    let findings: Vec<_> = store.check().await.expect("it answers").iter().flat_map(RedisFacts::findings).collect();
    assert!(findings.iter().any(|finding| matches!(finding, RedisFinding::Full { .. })), "{findings:?}");
    limit(0);
    eventually(&store, contract::name(2), reserve(1, 1)).await;
    assert!(!store.is_full());
    assert_eq!(store.used_share().await, Ok(None), "there is no limit");
}

/// The rules that docs/operators.md names: what a step needs, and nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_do_little_is_served_and_what_cannot_be_checked_is_said() {
    let redis = Redis::start();
    redis.ask(
        "ACL SETUSER witan on >hunter2 ~witan:* resetchannels -@all +@connection +get +set +del +time +evalsha +eval",
    );
    let servers = RedisServers::Single(redis.url());
    let credentials = super::super::RedisCredentials { user: Some("witan".to_owned()), password: "hunter2".to_owned() };
    let store =
        RedisIdempotency::new(RedisConfig { credentials: Some(credentials), ..patient(servers) }).expect("opens");
    reserve_all(&store, 1..4).await;
    assert_eq!(store.step(contract::name(1), contract::done(1, 1, "answer")).await, Ok(Stepped::Stored));
    let facts = store.check().await.expect("it answers");
    assert_eq!(facts[0].forbidden, ["INFO", "CONFIG GET"]);
    let findings = facts[0].findings();
    assert!(
        matches!(&findings[..], [RedisFinding::Unseen { commands }] if commands == "INFO and CONFIG GET"),
        "{findings:?}"
    );
    assert_eq!(store.used_share().await, Ok(None));
    redis.ask("ACL SETUSER witan +info +config|get");
    let facts = store.check().await.expect("it answers");
    assert!(facts[0].forbidden.is_empty() && facts[0].findings().is_empty(), "{facts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_can_be_changed_while_it_runs() {
    let (first, second) = (Redis::start(), Redis::start());
    let store = open(&first);
    reserve_all(&store, 1..1 + 1).await;
    store.reconnect_with(&patient(RedisServers::Single(second.url()))).expect("good addresses");
    reserve_all(&store, 1..1 + 1).await;
    let bad = patient(RedisServers::Single("nonsense".to_owned()));
    assert!(matches!(store.reconnect_with(&bad), Err(StoreError::Refused(_))));
    contract::finds_one(&store, 1).await;
    let locked = Redis::start();
    locked.ask("CONFIG SET requirepass hunter2");
    let with = |password: &str| {
        let credentials = super::super::RedisCredentials { user: None, password: password.to_owned() };
        let servers = RedisServers::Single(locked.url());
        RedisConfig { credentials: Some(credentials), ..patient(servers) }
    };
    store.reconnect_with(&with("wrong")).expect("a good address");
    match store.step(contract::name(1), reserve(1, 1)).await {
        Err(StoreError::Unavailable(why)) => assert!(!why.contains("wrong") && !why.contains("hunter2"), "{why}"),
        other => panic!("{other:?}"),
    }
    store.reconnect_with(&with("hunter2")).expect("a good address");
    eventually(&store, contract::name(1), reserve(1, 1)).await;
}
