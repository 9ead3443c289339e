//! A tenant that has thousands of operations under way: another one's calls are all carried out, and what is refused is refused to it, with
//! the right reason.

use std::collections::BTreeMap;

use futures::future::join_all;
use witan_wire::v1::SessionRequest;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use super::Target;
use crate::harness::{Refusal, read, write};

/// The friend's tenant is another one.
#[tokio::test(flavor = "multi_thread")]
async fn operations_of_a_busy_tenant() {
    const SESSIONS: usize = 15;
    const BATCHES: usize = 4;
    const BATCH: usize = 1000;
    let target = Target::start().await;
    target.api().tenant("busy", |_| {}).await;
    let attack = async |session_number: usize| {
        let mut session = target.api().session().await;
        let mut answers = Vec::new();
        for batch in 0..BATCHES {
            let requests = (0..BATCH).map(|n| {
                let key = format!("{session_number}-{n}");
                let operation = match batch % 2 {
                    0 => Operation::Write(write("busy", &key, "v")),
                    _ => Operation::Read(read("busy", &key)),
                };
                SessionRequest { id: n as u64, operation: Some(operation), timeout_ms: 60_000 }
            });
            session.send(requests.collect()).await;
        }
        answers.extend(session.take(BATCHES * BATCH).await);
        answers
    };
    let answers: Vec<_> = join_all((0..SESSIONS).map(attack)).await.into_iter().flatten().collect();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for answer in answers {
        let reason = match answer.result.expect("a result") {
            Outcome::Status(status) => Refusal::from(status).reason,
            Outcome::Write(_) | Outcome::Read(_) => String::new(),
        };
        *reasons.entry(reason).or_default() += 1;
    }
    println!("a busy tenant's operations, by the reason for their refusal: {reasons:?}");
    // Of a write that was refused, a later read finds nothing.
    let known = |reason: &String| ["", "OVERLOADED", "KEY_NOT_FOUND"].contains(&reason.as_str());
    assert!(reasons.contains_key("") && reasons.keys().all(known), "{reasons:?}");
    target.withstands("a busy tenant", 300, ()).await;
}
