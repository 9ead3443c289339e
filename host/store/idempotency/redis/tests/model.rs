//! The script against the kernel's `apply`: the same answers, and the same record, after every step of any sequence, whichever name the
//! coordinators of each step write new records under.

use std::cell::Cell;

use proptest::prelude::{ProptestConfig, Strategy, prop_oneof};
use proptest::prop_assert_eq;
use proptest::sample::select;
use proptest::test_runner::{TestCaseError, TestRunner};
use witan_kernel::idempotency::{Change, KEPT_MS, Name, RESPONSE_BYTES, Reservation, State, Step, Stepped, apply};
use witan_kernel::name::WriteId;
use witan_kernel::register::Stamp;
use witan_servers::Redis;

use super::{contract, open};
use crate::idempotency::redis::link::Connection;
use crate::idempotency::redis::script::Spelling;
use crate::idempotency::redis::{RedisIdempotency, script};

/// Steps of one sequence, each on the same record, so that they meet each other.
const STEPS: usize = 60;

/// Sequences.
const SEQUENCES: u32 = 250;

fn steps() -> impl Strategy<Value = Step> {
    let who = || (select(vec![1_u8, 2, 3]), select(vec![1_u64, 1, 2, 2, 3, u64::MAX]));
    let stamps = select(vec![0, 7, 7, u64::MAX]);
    let leases = select(vec![0, 1, 500, 500, 60_000, KEPT_MS, KEPT_MS + 1, u64::MAX]);
    let lengths = select(vec![0, 1, 1, 2, 63, 64, 65, 1000, RESPONSE_BYTES]);
    let kept = || select(vec![KEPT_MS, KEPT_MS, KEPT_MS, 400, 60_000, u64::MAX]);
    let reserve =
        (select(vec![1_u8, 2, 3]), select(vec![1_u8, 1, 1, 2]), select(vec![0, 42, u64::MAX]), leases, kept());
    let reserve = reserve.prop_map(|(of, request, started, lease_ms, kept_ms)| Step::Reserve {
        owner: contract::owner(of),
        write_id: WriteId([request; 16]),
        started,
        lease_ms,
        kept_ms,
    });
    prop_oneof![
        6 => reserve,
        2 => (who(), stamps).prop_map(|((of, fence), stamp)| Step::Stamp {
            owner: contract::owner(of), fence, stamp: Stamp(stamp),
        }),
        1 => (who(), lengths, kept()).prop_map(|((of, fence), bytes, kept_ms)| Step::Done {
            owner: contract::owner(of), fence, response: (0..bytes).map(|at| at as u8).collect(), kept_ms,
        }),
        1 => who().prop_map(|(of, fence)| Step::Release { owner: contract::owner(of), fence }),
        1 => who().prop_map(|(of, fence)| Step::Abandon { owner: contract::owner(of), fence }),
    ]
}

/// By how much the clock moves before a step, milliseconds; now and then it is set back.
fn pauses() -> impl Strategy<Value = i64> {
    let kept = KEPT_MS as i64;
    prop_oneof![
        6 => select(vec![0_i64, 0, 0, 1, 250, 499, 500, 501]),
        1 => select(vec![400, 60_000, kept - 500, kept - 1, kept, kept + 1]),
        1 => select(vec![-1_i64, -500, -60_000]),
    ]
}

#[test]
fn the_script_decides_as_the_kernel_does() {
    let redis = Redis::start_with(&[("appendfsync", "no")]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = open(&redis);
    let config = ProptestConfig { cases: SEQUENCES, failure_persistence: None, ..ProptestConfig::default() };
    let spellings = || select(vec![Spelling::Short, Spelling::Long]);
    let sequences = proptest::collection::vec((pauses(), spellings(), steps()), STEPS);
    // Each on a record of its own.
    let of = Cell::new(0);
    let outcome = TestRunner::new(config).run(&sequences, |sequence| {
        of.set(of.get() + 1);
        runtime.block_on(agree(&store, contract::name(of.get()), &sequence))
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

async fn agree(store: &RedisIdempotency, name: Name, sequence: &[(i64, Spelling, Step)]) -> Result<(), TestCaseError> {
    let mut connection = store.shared.link.connected().await.expect("a connection").connection;
    let mut now_ms: u64 = 1_800_000_000_000;
    let mut model: Option<Reservation> = None;
    // Where its first claim was written.
    let mut at = Spelling::Long;
    for (pause, spelling, step) in sequence {
        now_ms = now_ms.saturating_add_signed(*pause);
        let (change, expected) = apply(model.as_ref(), step, now_ms);
        match change {
            Change::Keep => {}
            Change::Put(reservation) => {
                if is_first(model.as_ref(), &reservation, now_ms) {
                    at = *spelling;
                }
                model = Some(reservation);
            }
            Change::Delete => model = None,
        }
        let call = store.shared.steps.call(&name, step, *spelling, Some(now_ms));
        let stepped = call.send(&mut connection).await.expect("an answer");
        prop_assert_eq!(script::read(&stepped), Ok(expected));
        for spelling in [Spelling::Short, Spelling::Long] {
            let record = model.as_ref().filter(|_| spelling == at);
            let stored = stored(store, &mut connection, name, spelling).await;
            prop_assert_eq!(stored, record.map(|record| expected_bytes(record, at)), "{:?}, of {:?}", spelling, at);
        }
    }
    Ok(())
}

/// Whether a record is a first claim, after which nothing of the one before counts.
fn is_first(before: Option<&Reservation>, put: &Reservation, now_ms: u64) -> bool {
    let before = before.filter(|before| before.remembered_until_ms() > now_ms);
    before.is_none_or(|before| before.write_id != put.write_id)
}

/// The kernel's own form, without its checksum. A response under a short name has only what is still asked about it.
fn expected_bytes(record: &Reservation, at: Spelling) -> Vec<u8> {
    let encoded = record.encode();
    match &record.state {
        State::Done { response } if at == Spelling::Short => {
            let (kept, fence) = (record.kept_until_ms.to_be_bytes(), record.fence.to_be_bytes());
            [&[2], &record.write_id.0[..10], &kept[2..], &record.owner.0[..2], &fence[7..], response].concat()
        }
        _ => [&[1], &encoded[5..]].concat(),
    }
}

async fn stored(
    store: &RedisIdempotency,
    connection: &mut Connection,
    name: Name,
    spelling: Spelling,
) -> Option<Vec<u8>> {
    let mut get = redis::cmd("GET");
    get.arg(store.shared.steps.key(&name, spelling));
    match connection.call(&get).await.expect("an answer") {
        redis::Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// What version 1 wrote stays readable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_version_one_are_read() {
    let redis = Redis::start();
    let store = open(&redis);
    let mut connection = store.shared.link.connected().await.expect("a connection").connection;
    // Done, by request 1 and owner 2 under fence 3, started at 4 with stamp 5, leased from 6 to 7, kept until 8.
    let record = [
        &[1_u8, 1][..],
        &[1; 16],
        &[2; 16],
        &3_u64.to_be_bytes(),
        &4_u64.to_be_bytes(),
        &[1],
        &5_u64.to_be_bytes(),
        &6_u64.to_be_bytes(),
        &7_u64.to_be_bytes(),
        &8_u64.to_be_bytes(),
        b"ok",
    ]
    .concat();
    let mut set = redis::cmd("SET");
    set.arg(store.shared.steps.key(&contract::name(1), Spelling::Long)).arg(record);
    connection.call(&set).await.expect("stored");
    let step = contract::reserve(9, 1, 500);
    let call = store.shared.steps.call(&contract::name(1), &step, Spelling::Short, Some(7));
    let stepped = script::read(&call.send(&mut connection).await.expect("an answer"));
    assert_eq!(stepped, Ok(Stepped::Done { response: bytes::Bytes::from_static(b"ok") }));
    let key = String::from_utf8(store.shared.steps.key(&contract::name(1), Spelling::Long)).expect("text");
    assert_eq!(key, format!("witan:idempotency:{{{}01{}}}", "00".repeat(15), "00".repeat(16)));
}

/// So does the small form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_records_of_version_two_are_read() {
    let redis = Redis::start();
    let store = open(&redis);
    let mut connection = store.shared.link.connected().await.expect("a connection").connection;
    // Done, by a request whose id begins with ones, kept until 8, by an owner that begins with twos under fence 3.
    let record = [&[2_u8][..], &[1; 10], &[0, 0, 0, 0, 0, 8], &[2; 2], &[3], b"ok"].concat();
    let key = store.shared.steps.key(&contract::name(1), Spelling::Short);
    let mut set = redis::cmd("SET");
    set.arg(&key).arg(record);
    connection.call(&set).await.expect("stored");
    let done = |of: u8, fence, response: &'static str| contract::done(of, fence, response);
    let completed = Stepped::Done { response: bytes::Bytes::from_static(b"ok") };
    for (step, now_ms, expected) in [
        (contract::reserve(9, 1, 500), 7, completed),
        (contract::reserve(9, 4, 500), 7, Stepped::Conflict),
        (done(2, 3, "ok"), 7, Stepped::Stored),
        (done(2, 3, "no"), 7, Stepped::Lost),
        (done(3, 3, "ok"), 7, Stepped::Lost),
        (done(2, 2, "ok"), 7, Stepped::Lost),
        (done(2, 3, "ok"), 8, Stepped::Lost),
    ] {
        for first in [Spelling::Short, Spelling::Long] {
            let call = store.shared.steps.call(&contract::name(1), &step, first, Some(now_ms));
            let reply = call.send(&mut connection).await.expect("an answer");
            assert_eq!(script::read(&reply).as_ref(), Ok(&expected), "{step:?} at {now_ms}");
        }
    }
    assert_eq!(key, [&b"witan:{"[..], &key[7..9], &b"}"[..], &[0; 15], &[1]].concat());
}
