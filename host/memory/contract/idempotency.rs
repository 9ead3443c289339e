//! What every idempotency store must do.

use bytes::Bytes;
use witan_kernel::idempotency::{DOUBTED_MS, KEPT_MS, Name, Owner, RESPONSE_BYTES, SHORTEST_KEPT_MS, Step, Stepped};
use witan_kernel::name::WriteId;
use witan_kernel::port::{Clock, IdempotencyStore, StoreError};
use witan_kernel::register::Stamp;

use super::{ManualClock, join_all};

/// The name of test record `of`.
pub fn name(of: u64) -> Name {
    let mut bytes = [0; 32];
    bytes[8..16].copy_from_slice(&of.to_be_bytes());
    Name(bytes)
}

/// Owner `of`.
pub fn owner(of: u8) -> Owner {
    Owner([of; 16])
}

/// A claim by owner `of` for request `request`.
pub fn reserve(of: u8, request: u8, lease_ms: u64) -> Step {
    Step::Reserve { owner: owner(of), write_id: WriteId([request; 16]), started: 42, lease_ms, kept_ms: KEPT_MS }
}

/// The end of a request, with its response.
pub fn done(of: u8, fence: u64, response: &'static str) -> Step {
    Step::Done { owner: owner(of), fence, response: Bytes::from_static(response.as_bytes()), kept_ms: KEPT_MS }
}

fn first() -> Stepped {
    Stepped::Reserved { fence: 1, took_over: false, stamp: None, started: 42 }
}

/// The whole contract, on names from 1,000 on.
pub async fn all<S: IdempotencyStore>(store: &S, clock: &ManualClock) {
    one_request_to_its_end(store).await;
    takeover(store, clock).await;
    giving_up(store).await;
    expiry(store, clock).await;
    no_repetition_prolongs_it(store, clock).await;
    a_short_retention(store, clock).await;
    no_jump_of_the_wall_clock_matters(store, clock).await;
    too_long_a_response(store).await;
    one_of_many_at_once(store).await;
}

async fn one_request_to_its_end<S: IdempotencyStore>(store: &S) {
    let name = name(1000);
    assert_eq!(store.step(name, reserve(1, 1, 500)).await, Ok(first()));
    assert_eq!(store.step(name, reserve(2, 1, 500)).await, Ok(Stepped::InProgress { left_ms: 500 }));
    assert_eq!(store.step(name, reserve(2, 2, 500)).await, Ok(Stepped::Conflict));
    assert_eq!(store.step(name, done(2, 1, "stolen")).await, Ok(Stepped::Lost));
    let stamp = Step::Stamp { owner: owner(1), fence: 1, stamp: Stamp(7) };
    assert_eq!(store.step(name, stamp).await, Ok(Stepped::Stored));
    assert_eq!(store.step(name, done(1, 1, "answer")).await, Ok(Stepped::Stored));
    let recorded = Stepped::Done { response: Bytes::from_static(b"answer") };
    assert_eq!(store.step(name, reserve(3, 1, 500)).await, Ok(recorded));
    assert_eq!(store.step(name, reserve(3, 2, 500)).await, Ok(Stepped::Conflict));
}

async fn takeover<S: IdempotencyStore>(store: &S, clock: &ManualClock) {
    let name = name(1001);
    assert_eq!(store.step(name, reserve(1, 1, 500)).await, Ok(first()));
    let stamp = Step::Stamp { owner: owner(1), fence: 1, stamp: Stamp(7) };
    assert_eq!(store.step(name, stamp).await, Ok(Stepped::Stored));
    clock.pass_ms(499);
    assert_eq!(store.step(name, reserve(2, 1, 500)).await, Ok(Stepped::InProgress { left_ms: 1 }));
    clock.pass_ms(1);
    let taken = Stepped::Reserved { fence: 2, took_over: true, stamp: Some(Stamp(7)), started: 42 };
    assert_eq!(store.step(name, reserve(2, 1, 500)).await, Ok(taken));
    assert_eq!(store.step(name, done(1, 1, "late")).await, Ok(Stepped::Lost));
    assert_eq!(store.step(name, done(2, 2, "right")).await, Ok(Stepped::Stored));
}

async fn giving_up<S: IdempotencyStore>(store: &S) {
    let release = |fence| Step::Release { owner: owner(1), fence };
    assert_eq!(store.step(name(1002), reserve(1, 1, 500)).await, Ok(first()));
    assert_eq!(store.step(name(1002), release(1)).await, Ok(Stepped::Stored));
    assert_eq!(store.step(name(1002), release(1)).await, Ok(Stepped::Lost));
    assert_eq!(store.step(name(1002), reserve(2, 2, 500)).await, Ok(first()), "the name is free for another request");

    assert_eq!(store.step(name(1003), reserve(1, 1, 500)).await, Ok(first()));
    let abandon = Step::Abandon { owner: owner(1), fence: 1 };
    assert_eq!(store.step(name(1003), abandon).await, Ok(Stepped::Stored));
    assert_eq!(store.step(name(1003), reserve(2, 2, 500)).await, Ok(Stepped::Conflict), "and here it is not");
    let taken = Stepped::Reserved { fence: 2, took_over: true, stamp: None, started: 42 };
    assert_eq!(store.step(name(1003), reserve(2, 1, 500)).await, Ok(taken));
}

async fn expiry<S: IdempotencyStore>(store: &S, clock: &ManualClock) {
    assert_eq!(store.step(name(1004), reserve(1, 1, 500)).await, Ok(first()));
    clock.pass_ms(KEPT_MS / 2);
    assert_eq!(store.step(name(1004), done(1, 1, "kept from here")).await, Ok(Stepped::Stored));
    clock.pass_ms(KEPT_MS - 1);
    assert!(matches!(store.step(name(1004), reserve(2, 1, 500)).await, Ok(Stepped::Done { .. })));
    clock.pass_ms(1);
    assert_eq!(store.step(name(1004), reserve(2, 2, 500)).await, Ok(first()), "a day later the name is free");
}

/// An attempt in doubt that is repeated for a day is not carried out any longer, and its repetitions learn that for another day.
async fn no_repetition_prolongs_it<S: IdempotencyStore>(store: &S, clock: &ManualClock) {
    let name = name(1008);
    assert_eq!(store.step(name, reserve(1, 1, 500)).await, Ok(first()));
    let stamp = Step::Stamp { owner: owner(1), fence: 1, stamp: Stamp(7) };
    assert_eq!(store.step(name, stamp).await, Ok(Stepped::Stored));
    let abandon = |of, fence| Step::Abandon { owner: owner(of), fence };
    assert_eq!(store.step(name, abandon(1, 1)).await, Ok(Stepped::Stored));
    for fence in 2..=4 {
        clock.pass_ms(KEPT_MS / 4);
        let taken = Stepped::Reserved { fence, took_over: true, stamp: Some(Stamp(7)), started: 42 };
        let of = fence as u8;
        assert_eq!(store.step(name, reserve(of, 1, 500)).await, Ok(taken));
        assert_eq!(store.step(name, abandon(of, fence)).await, Ok(Stepped::Stored));
    }
    clock.pass_ms(KEPT_MS / 4);
    assert_eq!(store.step(name, reserve(9, 1, 500)).await, Ok(Stepped::Expired), "a day after its first claim");
    clock.pass_ms(DOUBTED_MS - 1);
    assert_eq!(store.step(name, reserve(9, 1, 500)).await, Ok(Stepped::Expired));
    clock.pass_ms(1);
    assert_eq!(store.step(name, reserve(9, 1, 500)).await, Ok(first()), "two days after it, it is forgotten");
}

/// Each record has the retention of its first claim, and a recorded response that of its own claim, but never less.
async fn a_short_retention<S: IdempotencyStore>(store: &S, clock: &ManualClock) {
    const SHORT_MS: u64 = SHORTEST_KEPT_MS;
    let of = |of: u8, kept_ms| match reserve(of, 1, 500) {
        Step::Reserve { owner, write_id, started, lease_ms, .. } => {
            Step::Reserve { owner, write_id, started, lease_ms, kept_ms }
        }
        other => other,
    };
    let done = |of: u8, fence, kept_ms| Step::Done { owner: owner(of), fence, response: Bytes::new(), kept_ms };
    let taken = Stepped::Reserved { fence: 2, took_over: true, stamp: None, started: 42 };

    // In doubt: its time ends after the short retention, whatever the repetition's is.
    assert_eq!(store.step(name(1010), of(1, SHORT_MS)).await, Ok(first()));
    clock.pass_ms(SHORT_MS - 1);
    assert_eq!(store.step(name(1010), of(2, KEPT_MS)).await, Ok(taken.clone()));
    clock.pass_ms(1);
    assert_eq!(store.step(name(1010), of(3, KEPT_MS)).await, Ok(Stepped::Expired));

    // Done: free after the short retention.
    assert_eq!(store.step(name(1011), of(1, SHORT_MS)).await, Ok(first()));
    assert_eq!(store.step(name(1011), done(1, 1, SHORT_MS)).await, Ok(Stepped::Stored));
    clock.pass_ms(SHORT_MS - 1);
    assert!(matches!(store.step(name(1011), of(2, SHORT_MS)).await, Ok(Stepped::Done { .. })));
    clock.pass_ms(1);
    assert_eq!(store.step(name(1011), of(2, SHORT_MS)).await, Ok(first()));

    // Shortened between two attempts: the first one's retention still holds.
    assert_eq!(store.step(name(1012), of(1, KEPT_MS)).await, Ok(first()));
    clock.pass_ms(500);
    assert_eq!(store.step(name(1012), of(2, SHORT_MS)).await, Ok(taken));
    assert_eq!(store.step(name(1012), done(2, 2, SHORT_MS)).await, Ok(Stepped::Stored));
    clock.pass_ms(KEPT_MS - 501);
    assert!(matches!(store.step(name(1012), of(3, SHORT_MS)).await, Ok(Stepped::Done { .. })));
}

async fn no_jump_of_the_wall_clock_matters<S: IdempotencyStore>(store: &S, clock: &ManualClock) {
    assert_eq!(store.step(name(1005), reserve(1, 1, 500)).await, Ok(first()));
    let right = clock.wall_micros();
    for wall in [0, u64::MAX / 2, right] {
        clock.jump_to(wall);
        assert_eq!(store.step(name(1005), reserve(2, 1, 500)).await, Ok(Stepped::InProgress { left_ms: 500 }));
    }
}

async fn too_long_a_response<S: IdempotencyStore>(store: &S) {
    assert_eq!(store.step(name(1006), reserve(1, 1, 500)).await, Ok(first()));
    let done = |bytes| Step::Done { owner: owner(1), fence: 1, response: vec![0; bytes].into(), kept_ms: KEPT_MS };
    assert!(matches!(store.step(name(1006), done(RESPONSE_BYTES + 1)).await, Err(StoreError::Refused(_))));
    assert_eq!(store.step(name(1006), done(RESPONSE_BYTES)).await, Ok(Stepped::Stored));
}

async fn one_of_many_at_once<S: IdempotencyStore>(store: &S) {
    let claims = (1..=100).map(|of| store.step(name(1007), reserve(of, 1, 500)));
    let stepped = join_all(claims).await;
    assert_eq!(stepped.iter().filter(|stepped| **stepped == Ok(first())).count(), 1);
    assert_eq!(stepped.iter().filter(|stepped| **stepped == Ok(Stepped::InProgress { left_ms: 500 })).count(), 99);
}

/// Claims one new name.
pub async fn reserve_one<S: IdempotencyStore>(store: &S, of: u64) {
    assert_eq!(store.step(name(of), reserve(1, 1, 500)).await, Ok(first()));
}

/// Claims `many` new names at once, from 0 on.
pub async fn reserve_many<S: IdempotencyStore>(store: &S, many: u64) {
    let stepped = join_all((0..many).map(|of| store.step(name(of), reserve(1, 1, 500)))).await;
    assert!(stepped.iter().all(|stepped| *stepped == Ok(first())));
}

/// Checks that the name of test record `of` is claimed.
pub async fn finds_one<S: IdempotencyStore>(store: &S, of: u64) {
    let stepped = store.step(name(of), reserve(2, 2, 500)).await;
    assert_eq!(stepped, Ok(Stepped::Conflict));
}

/// Checks that the store is unavailable.
pub async fn is_down<S: IdempotencyStore>(store: &S) {
    let stepped = store.step(name(1), reserve(2, 1, 500)).await;
    assert!(matches!(stepped, Err(StoreError::Unavailable(_))));
}
