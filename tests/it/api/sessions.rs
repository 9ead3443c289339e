//! Sessions: many operations over one stream, matched by id, in the order of the stream for each key.

use std::collections::HashMap;

use tonic::Code;
use witan_wire::v1;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use crate::harness::{Dev, Refusal, delete, read, write};

/// An operation with the longest deadline.
fn request(id: u64, operation: Operation) -> v1::SessionRequest {
    v1::SessionRequest { id, operation: Some(operation), timeout_ms: 60_000 }
}

fn by_id(responses: Vec<v1::SessionResponse>) -> HashMap<u64, Outcome> {
    let count = responses.len();
    let by_id: HashMap<_, _> = responses.into_iter().map(|r| (r.id, r.result.expect("a result"))).collect();
    assert_eq!(by_id.len(), count, "each id is answered once");
    by_id
}

fn refused(outcome: &Outcome) -> Refusal {
    match outcome {
        Outcome::Status(status) => status.clone().into(),
        other => panic!("not refused: {other:?}"),
    }
}

fn value(outcome: &Outcome) -> &[u8] {
    match outcome {
        Outcome::Read(found) => &found.value,
        other => panic!("not read: {other:?}"),
    }
}

#[tokio::test]
async fn operations_on_a_key_keep_the_order_of_the_stream() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let mut session = api.session().await;
    let keys: Vec<String> = (0..20).map(|key| format!("k{key}")).collect();
    let steps: [fn(&str) -> Operation; 8] = [
        |key| Operation::Write(write("t", key, "1")),
        |key| Operation::Read(read("t", key)),
        |key| Operation::Write(write("t", key, "2")),
        |key| Operation::Read(read("t", key)),
        |key| Operation::Delete(delete("t", key)),
        |key| Operation::Read(read("t", key)),
        |key| Operation::Write(write("t", key, "3")),
        |key| Operation::Read(read("t", key)),
    ];
    let id = |key: usize, step: usize| (key * 100 + step) as u64;
    // Half of it in one batch, the rest in batches that each touch all keys.
    let step =
        |number: usize| keys.iter().enumerate().map(move |(at, key)| request(id(at, number), steps[number](key)));
    session.send((0..4).flat_map(step).collect()).await;
    for number in 4..steps.len() {
        session.send(step(number).collect()).await;
    }
    let answered = by_id(session.take(keys.len() * steps.len()).await);
    for at in 0..keys.len() {
        for (step, expected) in [(1, "1"), (3, "2"), (7, "3")] {
            assert_eq!(value(&answered[&id(at, step)]), expected.as_bytes(), "key {at}, step {step}");
        }
        let gone = refused(&answered[&id(at, 5)]);
        assert_eq!((gone.code, gone.reason.as_str()), (Code::NotFound, "KEY_NOT_FOUND"));
        assert!(!gone.context.is_empty(), "details travel in a session too");
    }
    session.finish();
    assert!(session.next().await.is_none(), "the stream ends when all is answered");
}

#[tokio::test]
async fn a_bad_operation_fails_alone() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let mut session = api.session().await;
    let level = v1::ReadKeyValueRequest { consistency: "most".to_owned(), ..read("t", "k") };
    session
        .send(vec![
            request(1, Operation::Write(write("t", "", "v"))),
            request(2, Operation::Write(write("t", "k", "v"))),
            request(3, Operation::Write(write("nobody", "k", "v"))),
            v1::SessionRequest { id: 4, operation: None, timeout_ms: 0 },
            request(5, Operation::Read(level)),
            request(6, Operation::Read(read("t", "k"))),
            request(u64::MAX, Operation::Read(read("t", "missing"))),
        ])
        .await;
    session.finish();
    let answered = by_id(session.take(7).await);
    assert_eq!(refused(&answered[&1]).summary(), (Code::InvalidArgument, "INVALID_REQUEST", "not-applied", "key"));
    assert!(matches!(answered[&2], Outcome::Write(_)));
    assert_eq!(refused(&answered[&3]).summary(), (Code::NotFound, "TENANT_NOT_FOUND", "not-applied", ""));
    assert_eq!(refused(&answered[&4]).summary().3, "operation");
    assert_eq!(refused(&answered[&5]).summary().3, "consistency");
    assert_eq!(value(&answered[&6]), b"v");
    assert_eq!(refused(&answered[&u64::MAX]).reason, "KEY_NOT_FOUND");
    assert!(session.next().await.is_none());
}

/// More operations than the window of a session, and responses larger than the limit of a message: the session slows down and goes on.
#[tokio::test]
async fn a_fast_client_is_slowed_down_and_served() {
    const KEYS: u64 = 200;
    const OPERATIONS: u64 = 6000;
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let mut session = api.session().await;
    // A batch of responses of this size would exceed the limit of a message.
    let large = vec![7; 20_000];
    let writes = (0..KEYS).map(|id| request(id, Operation::Write(write("t", &format!("k{id}"), large.clone()))));
    for batch in writes.collect::<Vec<_>>().chunks(20) {
        session.send(batch.to_vec()).await;
    }
    let written = by_id(session.take(KEYS as usize).await);
    assert!(written.values().all(|outcome| matches!(outcome, Outcome::Write(_))), "all are written");
    let reads = (0..OPERATIONS).map(|id| request(id, Operation::Read(read("t", &format!("k{}", id % KEYS)))));
    let reads: Vec<_> = reads.collect();
    let mut answered = 0;
    for batch in reads.chunks(1500) {
        session.send(batch.to_vec()).await;
    }
    while answered < OPERATIONS {
        let responses = session.next().await.expect("the session goes on");
        assert!(responses.iter().all(|r| value(r.result.as_ref().expect("a result")).len() == large.len()));
        answered += responses.len() as u64;
    }
    assert_eq!(answered, OPERATIONS);
}
