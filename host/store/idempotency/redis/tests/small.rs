//! Small records: how small, and beside those of the version before.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use witan_kernel::idempotency::{DOUBTED_MS, KEPT_MS, Name, Step, Stepped};
use witan_kernel::name::{Era, Key, TenantId};
use witan_kernel::port::{IdempotencyStore, SmallRecords, StoreError};
use witan_memory::contract::{ManualClock, join_all};
use witan_servers::Redis;

use super::{RedisIdempotency, by_clock, contract, open, reserve};
use crate::idempotency::redis::script::Spelling;

/// Bytes of the response to a change of a register, as coordinators record it, and the most with which a record is within [`MOST`].
const RESPONSES: [usize; 2] = [30, 56];

/// What a record may take in all.
const MOST: u64 = 220;

/// Names as requests have them.
fn named(of: u64) -> Name {
    let (tenant, key) = (TenantId::new("shop").expect("valid"), Key::new("k").expect("valid"));
    Name::new(Era::default(), &tenant, &key, &of.to_be_bytes())
}

/// Carries out a request from its claim to its response.
async fn whole(store: &RedisIdempotency, name: Name, response: usize) {
    let reserved = store.step(name, reserve(1, 1)).await;
    assert!(matches!(reserved, Ok(Stepped::Reserved { fence: 1, .. })), "{reserved:?}");
    let done =
        Step::Done { owner: contract::owner(1), fence: 1, response: Bytes::from(vec![7; response]), kept_ms: KEPT_MS };
    assert_eq!(store.step(name, done).await, Ok(Stepped::Stored));
}

async fn memory_usage(store: &RedisIdempotency, name: Name, spelling: Spelling) -> Option<u64> {
    let mut ask = redis::cmd("MEMORY");
    ask.arg("USAGE").arg(store.shared.steps.key(&name, spelling));
    match store.shared.link.connected().await.expect("a connection").connection.call(&ask).await.expect("an answer") {
        redis::Value::Int(bytes) => Some(bytes.try_into().expect("positive")),
        _ => None,
    }
}

/// Measured with Redis 7.0.15 of Debian (jemalloc 5.3.0, allocations in steps of 16 bytes). With the response of a register, MEMORY USAGE
/// is 136, of 296 before. In all, with the entry and the places in two hash tables that it leaves out, that is 192 with full tables, 197
/// at 100,000 records (358 before), and 208 right after a table was doubled. With 56 bytes of response it is 16 more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_takes_at_most_220_bytes() {
    const RECORDS: u64 = 16_000;
    for (response, usage) in RESPONSES.into_iter().zip([136, 152]) {
        let redis = Redis::start_with(&[("appendonly", "no")]);
        let store = open(&redis);
        store.write_small(true);
        let used = || -> u64 {
            let info = redis.ask("INFO memory");
            let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
            used.expect("INFO reports it").trim().parse().expect("a number")
        };
        // The connection and the script take memory of their own.
        whole(&store, named(RECORDS), response).await;
        let before = used();
        for some in (0..RECORDS).step_by(1000) {
            join_all((some..some + 1000).map(|of| whole(&store, named(of), response))).await;
        }
        let each = (used() - before) / RECORDS;
        assert!(each <= MOST, "{each} bytes of memory for each record");
        for of in 0..100 {
            let by_itself = memory_usage(&store, named(of), Spelling::Short).await.expect("it is there");
            assert!(by_itself <= usage, "{by_itself} bytes by MEMORY USAGE");
            assert_eq!(memory_usage(&store, named(of), Spelling::Long).await, None, "and nothing else");
        }
    }
}

/// One coordinator has learned that records may be small, and another has not: each sees what the other has claimed and recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_both_names_are_seen_by_all() {
    let (redis, clock) = (Redis::start(), ManualClock::new());
    let (short, long) = (by_clock(&redis, &clock), by_clock(&redis, &clock));
    short.write_small(true);
    let first = Stepped::Reserved { fence: 1, took_over: false, stamp: None, started: 42 };
    let taken = Stepped::Reserved { fence: 2, took_over: true, stamp: None, started: 42 };
    for (of, spelling, mine, others) in [(1, Spelling::Short, &short, &long), (2, Spelling::Long, &long, &short)] {
        let name = contract::name(of);
        assert_eq!(mine.step(name, contract::reserve(1, 1, 500)).await.as_ref(), Ok(&first));
        let busy = others.step(name, contract::reserve(2, 1, 500)).await;
        assert_eq!(busy, Ok(Stepped::InProgress { left_ms: 500 }));
        assert_eq!(others.step(name, contract::reserve(2, 2, 500)).await, Ok(Stepped::Conflict));
        clock.pass_ms(500);
        assert_eq!(others.step(name, contract::reserve(2, 1, 500)).await.as_ref(), Ok(&taken));
        assert_eq!(mine.step(name, contract::done(1, 1, "late")).await, Ok(Stepped::Lost));
        assert_eq!(mine.step(name, contract::done(2, 2, "right")).await, Ok(Stepped::Stored), "by whomever it is sent");
        for store in [mine, others] {
            let recorded = Stepped::Done { response: Bytes::from_static(b"right") };
            assert_eq!(store.step(name, contract::reserve(3, 1, 500)).await, Ok(recorded));
            assert_eq!(store.step(name, contract::reserve(3, 2, 500)).await, Ok(Stepped::Conflict));
        }
        for name_of in [Spelling::Short, Spelling::Long] {
            let is_there = memory_usage(mine, name, name_of).await.is_some();
            assert_eq!(is_there, name_of == spelling, "it stays where it was claimed first");
        }
    }
    assert!(short.claims() && long.claims());
}

/// What is forgotten under one name does not come back when the same name is claimed under the other, and the clock is set back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_claim_leaves_nothing_under_the_other_name() {
    let (redis, clock) = (Redis::start(), ManualClock::new());
    let (short, long) = (by_clock(&redis, &clock), by_clock(&redis, &clock));
    short.write_small(true);
    let name = contract::name(1);
    let first = Stepped::Reserved { fence: 1, took_over: false, stamp: None, started: 42 };
    assert_eq!(long.step(name, contract::reserve(1, 1, 500)).await.as_ref(), Ok(&first));
    clock.pass_ms(KEPT_MS + DOUBTED_MS);
    // A server without memory changes nothing.
    redis.ask("CONFIG SET maxmemory 1");
    assert!(matches!(short.step(name, contract::reserve(2, 2, 500)).await, Err(StoreError::Full(_))));
    assert!(memory_usage(&short, name, Spelling::Long).await.is_some());
    redis.ask("CONFIG SET maxmemory 0");
    assert_eq!(short.step(name, contract::reserve(2, 2, 500)).await.as_ref(), Ok(&first));
    assert!(memory_usage(&short, name, Spelling::Long).await.is_none());
    assert!(memory_usage(&short, name, Spelling::Short).await.is_some());
    // In doubt, and its time is over: another request may have the name.
    clock.pass_ms(KEPT_MS);
    assert_eq!(long.step(name, contract::reserve(3, 3, 500)).await.as_ref(), Ok(&first));
    assert!(memory_usage(&short, name, Spelling::Short).await.is_none());
    assert_eq!(short.step(name, contract::reserve(4, 4, 500)).await, Ok(Stepped::Conflict));
}

/// Until a key has been claimed, it does not matter which form is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_noticed() {
    let redis = Redis::start();
    let store = open(&redis);
    assert!(!store.claims() && !store.shared.small.load(Ordering::Relaxed));
    assert_eq!(store.step(contract::name(1), contract::done(1, 1, "nothing to record")).await, Ok(Stepped::Lost));
    assert!(!store.claims(), "nothing was claimed");
    assert!(matches!(store.step(contract::name(1), reserve(1, 1)).await, Ok(Stepped::Reserved { .. })));
    assert!(store.claims());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_small_record_is_reported_and_left_alone() {
    let redis = Redis::start();
    let store = open(&redis);
    for (of, bytes) in [(1, &b"\x02 too short"[..]), (2, &[3; 83]), (3, &[])] {
        let mut set = redis::cmd("SET");
        set.arg(store.shared.steps.key(&contract::name(of), Spelling::Short)).arg(bytes);
        store.shared.link.connected().await.expect("a connection").connection.call(&set).await.expect("stored");
        let stepped = store.step(contract::name(of), reserve(1, 1)).await;
        assert!(matches!(stepped, Err(StoreError::Damaged(_))), "{stepped:?}");
    }
    // The version before never wrote the small form, and would not read it.
    let mut set = redis::cmd("SET");
    set.arg(store.shared.steps.key(&contract::name(4), Spelling::Long)).arg(&[2_u8; 76][..]);
    store.shared.link.connected().await.expect("a connection").connection.call(&set).await.expect("stored");
    let stepped = store.step(contract::name(4), reserve(1, 1)).await;
    assert!(matches!(stepped, Err(StoreError::Damaged(_))), "{stepped:?}");
}
