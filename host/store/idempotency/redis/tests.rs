use std::time::{Duration, Instant};

use witan_kernel::idempotency::{DOUBTED_MS, KEPT_MS, Name, Step, Stepped};
use witan_kernel::port::{IdempotencyStore, SmallRecords, StoreError, StoreTime};
use witan_memory::contract::{ManualClock, idempotency as contract, join_all, poll_once};
use witan_servers::{PATIENCE, Redis};

use super::script::Spelling;
use super::{BYTES_IN_FLIGHT, IN_FLIGHT, RedisConfig, RedisIdempotency, RedisServers};

mod model;
mod outage;
mod several;
mod small;
mod tls;

/// Waits as long as a busy machine takes.
fn patient(servers: RedisServers) -> RedisConfig {
    RedisConfig { timeout: PATIENCE, connect_timeout: PATIENCE, ..RedisConfig::new(servers) }
}

fn open(redis: &Redis) -> RedisIdempotency {
    RedisIdempotency::new(patient(RedisServers::Single(redis.url()))).expect("opens")
}

fn by_clock(redis: &Redis, clock: &ManualClock) -> RedisIdempotency {
    let mut store = open(redis);
    let shared = std::sync::Arc::get_mut(&mut store.shared).expect("not shared yet");
    shared.time = Some(StoreTime::starting_now(clock.clone()));
    store
}

/// The record's key under its long name, as a word of a command.
fn key(store: &RedisIdempotency, name: Name) -> String {
    String::from_utf8(store.shared.steps.key(&name, Spelling::Long)).expect("text")
}

/// Asks again until the store answers. A failover on a busy machine takes longer than anything else.
async fn eventually(store: &RedisIdempotency, name: Name, step: Step) -> Stepped {
    let until = Instant::now() + 3 * PATIENCE;
    loop {
        match store.step(name, step.clone()).await {
            Ok(stepped) => return stepped,
            Err(StoreError::Unavailable(why)) => assert!(Instant::now() < until, "{why}"),
            Err(other) => panic!("{other}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A claim whose lease is longer than any test: one that is sent again on another connection finds its own.
fn reserve(of: u8, request: u8) -> Step {
    contract::reserve(of, request, 600_000)
}

/// Claims all of these at once; they are new.
async fn reserve_all(store: &RedisIdempotency, names: std::ops::Range<u64>) {
    let results = join_all(names.map(|of| store.step(contract::name(of), reserve(1, 1)))).await;
    let first = Stepped::Reserved { fence: 1, took_over: false, stamp: None, started: 42 };
    for result in results {
        assert_eq!(result.as_ref(), Ok(&first));
    }
}

fn nothing_is_in_flight(store: &RedisIdempotency) -> bool {
    let bytes = store.shared.bytes_in_flight.load(std::sync::atomic::Ordering::Relaxed);
    bytes == 0 && store.shared.in_flight.available_permits() == IN_FLIGHT
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let redis = Redis::start();
    let clock = ManualClock::new();
    let store = by_clock(&redis, &clock);
    contract::all(&store, &clock).await;
    contract::reserve_many(&store, 500).await;
    assert!(nothing_is_in_flight(&store));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_with_small_records() {
    let redis = Redis::start();
    let clock = ManualClock::new();
    let store = by_clock(&redis, &clock);
    store.write_small(true);
    contract::all(&store, &clock).await;
    contract::reserve_many(&store, 500).await;
    assert_eq!(redis.ask("KEYS witan:idempotency:*").trim(), "", "no long name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_is_the_servers() {
    let redis = Redis::start();
    let store = open(&redis);
    let reserved = store.step(contract::name(1), contract::reserve(1, 1, 50)).await;
    assert!(matches!(reserved, Ok(Stepped::Reserved { fence: 1, took_over: false, .. })));
    let until = Instant::now() + PATIENCE;
    loop {
        match store.step(contract::name(1), contract::reserve(2, 1, 50)).await.expect("an answer") {
            Stepped::InProgress { left_ms } => assert!((1..=50).contains(&left_ms)),
            Stepped::Reserved { fence, took_over, .. } => {
                assert_eq!((fence, took_over), (2, true));
                break;
            }
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < until, "the lease does not expire");
    }
    let left: u64 = redis.ask(&format!("PTTL {}", key(&store, contract::name(1)))).parse().expect("a number");
    let days = KEPT_MS + DOUBTED_MS;
    assert!((1..=days).contains(&left), "{left}: the record expires on the server");
    assert!(left > days - PATIENCE.as_millis() as u64 * 2, "{left}: but not before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_at_once_share_one_connection() {
    let redis = Redis::start();
    let store = open(&redis);
    reserve_all(&store, 1_000_000..1_000_000 + 1).await;
    let before = connections(&redis);
    redis.pause();
    let many = tokio::spawn({
        let store = store.clone();
        async move { reserve_all(&store, 0..500).await }
    });
    // All are in flight before the first is answered.
    while store.shared.in_flight.available_permits() > IN_FLIGHT - 500 {
        tokio::task::yield_now().await;
    }
    redis.resume();
    many.await.expect("all are answered");
    // The one that asks is another each time.
    assert_eq!(connections(&redis) - before, 1);
}

/// Connections that the server has ever had.
fn connections(redis: &Redis) -> u64 {
    let info = redis.ask("INFO stats");
    let count = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    count.and_then(|count| count.trim().parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_future_leaves_its_step_done_or_not_done() {
    let redis = Redis::start();
    let store = open(&redis);
    reserve_all(&store, 1_000_000..1_000_000 + 1).await;
    let mut some = Vec::new();
    for of in 0..300 {
        let mut step = Box::pin(store.step(contract::name(of), reserve(1, 1)));
        // Some are dropped before they were sent, some while, some after.
        for _ in 0..of % 4 {
            if poll_once(&mut step).await.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if of % 2 == 0 {
            some.push(step);
        }
    }
    drop(some);
    assert!(nothing_is_in_flight(&store));
    for of in 0..300 {
        let stepped = store.step(contract::name(of), reserve(2, 1)).await.expect("an answer");
        match stepped {
            Stepped::Reserved { fence: 1, took_over: false, stamp: None, started: 42 } => {}
            Stepped::InProgress { left_ms } => assert!(left_ms <= 600_000),
            other => panic!("{of}: {other:?}"),
        }
    }
    assert!(nothing_is_in_flight(&store) && !store.is_down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_in_flight_are_bounded() {
    let redis = Redis::start();
    let store = open(&redis);
    reserve_all(&store, 1_000_000..1_000_000 + 1).await;
    redis.pause();
    let response = bytes::Bytes::from(vec![0; witan_kernel::idempotency::RESPONSE_BYTES]);
    let done = || Step::Done { owner: contract::owner(1), fence: 1, response: response.clone(), kept_ms: KEPT_MS };
    let mut waiting = Vec::new();
    let refused = loop {
        let mut step = Box::pin(store.step(contract::name(1_000_000), done()));
        match poll_once(&mut step).await {
            None => waiting.push(step),
            Some(stepped) => break stepped,
        }
        assert!(waiting.len() <= IN_FLIGHT);
    };
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(waiting.len(), BYTES_IN_FLIGHT / response.len());
    drop(waiting);
    let mut waiting: Vec<_> =
        (0..IN_FLIGHT as u64).map(|of| Box::pin(store.step(contract::name(of), reserve(1, 1)))).collect();
    for step in &mut waiting {
        assert!(poll_once(step).await.is_none());
    }
    contract::is_down(&store).await;
    assert!(!store.is_down(), "there is too much to do, but no outage");
    redis.resume();
    drop(waiting);
    assert!(nothing_is_in_flight(&store));
    reserve_all(&store, 2_000_000..2_000_000 + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_record_is_reported_and_left_alone() {
    let redis = Redis::start();
    let store = open(&redis);
    let (text, list) = (contract::name(1), contract::name(2));
    redis.ask(&format!("SET {} nonsense", key(&store, text)));
    redis.ask(&format!("RPUSH {} nonsense", key(&store, list)));
    for name in [text, list] {
        for _ in 0..10 {
            let stepped = store.step(name, reserve(1, 1)).await;
            assert!(matches!(stepped, Err(StoreError::Damaged(_))), "{stepped:?}");
        }
    }
    assert!(!store.is_down(), "it does answer");
    assert_eq!(redis.ask(&format!("GET {}", key(&store, text))), "nonsense");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_checked() {
    let fit = Redis::start();
    let facts = open(&fit).check().await.expect("it answers");
    assert_eq!(facts.len(), 1);
    assert_eq!(facts[0].findings(), [], "{facts:?}");
    assert!(facts[0].version.is_some_and(|version| version >= 7));

    let unfit = Redis::start_with(&[("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]);
    let findings = open(&unfit).check().await.expect("it answers")[0].findings();
    let evicts = super::RedisFinding::Evicts { policy: "allkeys-lru".to_owned() };
    assert_eq!(findings, [evicts, super::RedisFinding::NotLogged]);

    let late = Redis::start_with(&[("appendfsync", "everysec")]);
    let findings = open(&late).check().await.expect("it answers")[0].findings();
    assert_eq!(findings, [super::RedisFinding::SyncsLate { syncs: "everysec".to_owned() }]);
}
