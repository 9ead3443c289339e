//! Clients that cancel, vanish, or have a short deadline: nothing stays half done, and nothing stays in flight.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use witan_wire::v1;
use witan_wire::v1::session_request::Operation;

use crate::harness::{Dev, eventually, get, read, write};

/// Waits until the coordinator has nothing in flight.
async fn nothing_is_under_way(dev: &Dev) {
    eventually("nothing is under way", async || {
        let (_, metrics) = get(dev.admin(), "/metrics").await.expect("metrics");
        metrics.lines().any(|line| line == "witan_operations_in_flight 0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn cancelled_calls_leave_nothing_behind() {
    const CALLS: usize = 600;
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    api.write(write("t", "k", "warm")).await.expect("write");
    let mut random = StdRng::seed_from_u64(7);
    let calls = (0..CALLS).map(|call| {
        let api = api.clone();
        let patience = Duration::from_micros(random.random_range(0..100_000));
        let tenant = if call % 2 == 0 { "t" } else { "s" };
        let key = format!("k{}", call % 60);
        async move {
            // Dropping the call resets its stream.
            let answered = match call % 3 {
                0 => tokio::time::timeout(patience, api.read(read(tenant, &key))).await.is_ok(),
                _ => tokio::time::timeout(patience, api.write(write(tenant, &key, call.to_string()))).await.is_ok(),
            };
            usize::from(answered)
        }
    });
    let answered: usize = join_all(calls).await.into_iter().sum();
    println!("{answered} of {CALLS} calls were answered before they were cancelled");
    assert!(answered < CALLS, "some were cancelled");
    nothing_is_under_way(&dev).await;
    for key in 0..60 {
        // Every operation that began has ended: each key can be read.
        let tenant = if key % 2 == 0 { "t" } else { "s" };
        api.values(read(tenant, &format!("k{key}"))).await.expect("read");
    }
}

/// Operations queued behind another one on the same key have either not started when the client vanishes, or are completed: the stored
/// ones are a prefix of those sent.
#[tokio::test]
async fn a_client_that_vanishes_leaves_a_beginning_of_what_it_sent() {
    const KEYS: u64 = 10;
    const EACH: u64 = 60;
    let dev = Dev::start().await;
    let api = dev.api();
    api.siblings_tenant("s").await;
    for round in 0..5_usize {
        // A separate connection, which vanishes with the session.
        let mut session = dev.api().session().await;
        let writes = (0..EACH).flat_map(|number| (0..KEYS).map(move |key| (key, number)));
        let requests: Vec<_> = writes
            .enumerate()
            .map(|(id, (key, number))| {
                let operation = Operation::Write(write("s", &format!("{round}/{key}"), format!("{number:02}")));
                v1::SessionRequest { id: id as u64, operation: Some(operation), timeout_ms: 60_000 }
            })
            .collect();
        session.send(requests).await;
        let answered = session.take(1 + round * 100).await.len();
        drop(session);
        nothing_is_under_way(&dev).await;
        let mut stored = 0;
        for key in 0..KEYS {
            let (values, _) = api.values(read("s", &format!("{round}/{key}"))).await.expect("read");
            let expected: BTreeSet<String> = (0..values.len()).map(|number| format!("{number:02}")).collect();
            let found: BTreeSet<String> = values.iter().map(|v| String::from_utf8_lossy(v).into_owned()).collect();
            assert_eq!(found, expected, "a beginning of what was sent for key {key}");
            stored += values.len();
        }
        assert!(stored >= answered, "{answered} were answered, {stored} are stored");
        println!("{answered} answered, {stored} stored, {} sent", KEYS * EACH);
    }
}
