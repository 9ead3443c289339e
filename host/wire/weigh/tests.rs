use std::hint::black_box;
use std::time::Instant;

use witan_kernel::limit;
use witan_kernel::scan::PAGE_RECORDS;

use super::*;
use crate::v1::replica_answer::Answer;
use crate::v1::session_request::Operation;
use crate::v1::session_response::Result as Outcome;

/// The share of its budget that a message takes.
#[track_caller]
fn share<M: Weighed>(message: &M) -> f64 {
    let wire = message.encode_to_vec();
    let weight = M::SHAPE.weigh(&wire).unwrap_or_else(|refused| panic!("{refused}")).expect("valid bytes");
    weight as f64 / Shape::budget(wire.len()) as f64
}

fn write(key: usize, bytes: usize) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest {
        tenant_id: "tenant".to_owned(),
        key: format!("key-{key}"),
        value: vec![7; bytes].into(),
        idempotency_key: format!("00000000-0000-0000-0000-{key:012}"),
        ..v1::WriteKeyValueRequest::default()
    }
}

fn batch(operations: usize, operation: impl Fn(usize) -> Operation) -> v1::SessionRequestBatch {
    let one = |id| v1::SessionRequest { id: id as u64, operation: Some(operation(id)), timeout_ms: 0 };
    v1::SessionRequestBatch { requests: (0..operations).map(one).collect() }
}

/// The smallest operation: what is lightest on the wire is heaviest in proportion.
fn smallest(_: usize) -> Operation {
    Operation::Read(v1::ReadKeyValueRequest { tenant_id: "t".into(), key: "k".into(), consistency: String::new() })
}

#[test]
fn requests_that_clients_send_are_light() {
    assert!(share(&write(1, limit::VALUE_BYTES)) < 0.2);
    assert!(share(&batch(SESSION_REQUESTS, smallest)) < 0.9);
    assert!(share(&batch(SESSION_REQUESTS, |key| Operation::Write(write(key, 100)))) < 0.7);
    assert!(share(&v1::CreateTokenRequest { scopes: vec!["read".into(); 100], ..Default::default() }) < 0.1);
    assert!(
        share(&v1::Hello { versions: vec![1; 100], capabilities: vec!["c".into(); 100], ..Default::default() }) < 0.1
    );
}

#[test]
fn answers_that_a_coordinator_sends_are_light() {
    let read = v1::ReadKeyValueResponse {
        siblings: vec![v1::Sibling { value: Bytes::new(), written_at_us: 0 }; limit::SIBLINGS],
        ..Default::default()
    };
    assert!(share(&read) < 0.1);
    let response = v1::SessionResponse { id: 1, result: Some(Outcome::Read(v1::ReadKeyValueResponse::default())) };
    assert!(share(&v1::SessionResponseBatch { responses: vec![response; 256] }) < 0.5);
    let keys = vec![v1::KeyInfo { key: "k".into(), siblings: true }; 1000];
    assert!(share(&v1::ListKeysResponse { keys, next_page_token: "x".repeat(100) }) < 0.1);
    assert!(share(&v1::ListTenantsResponse { tenants: vec![Default::default(); 1000], ..Default::default() }) < 0.9);
    assert!(share(&v1::ListTokensResponse { tokens: vec![Default::default(); 1000], ..Default::default() }) < 0.5);
    let nodes = vec![v1::StorageNodeInfo::default(); 1000];
    assert!(share(&v1::ListStorageNodesResponse { nodes, ..Default::default() }) < 0.8);
}

/// Lists without pages have no bound of their own but that of the message.
#[test]
fn long_lists_are_light() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let binding = v1::Binding {
        tenant_id: "tenant-0000001".into(),
        hook: "consistency".into(),
        digest: digest.clone(),
        name: "adaptive-latency".into(),
        version: "0.1.0".into(),
        on_fault: "builtin".into(),
        mode: "live".into(),
        number: 300,
        calls: 1_000_000,
        ..Default::default()
    };
    assert!(
        share(&v1::ListBindingsResponse { bindings: vec![binding; 20_000], ..v1::ListBindingsResponse::default() })
            < 1.0
    );
    let plugin = v1::PluginInfo {
        digest,
        name: "set-union".into(),
        version: "0.1.0".into(),
        hook: "resolver".into(),
        state: "ready".into(),
        ..Default::default()
    };
    assert!(
        share(&v1::ListPluginsResponse { plugins: vec![plugin; 20_000], ..v1::ListPluginsResponse::default() }) < 1.0
    );
}

#[test]
fn what_nodes_and_coordinators_exchange_is_light() {
    let entry = v1::VersionVectorEntry { store_id: vec![1; 16].into(), birth: 1, counter: 1 };
    let put = v1::PutAsk { seen: vec![entry.clone(); 1024], cloud: vec![entry; 1024], ..Default::default() };
    let request = v1::ReplicaRequest { ask: Some(v1::replica_request::Ask::Put(put)), ..Default::default() };
    assert!(share(&v1::RequestBatch { requests: vec![request; 256], sent_at: u64::MAX }) < 1.0);
    let told = vec![v1::PinnedName { write_id: vec![1; 16].into(), time: 1 << 40 }; 5 * limit::PINNED_NAMES];
    let answer = v1::ReplicaAnswer {
        answer: Some(Answer::Merged(v1::MergedAnswer { superseded: false, told })),
        ..Default::default()
    };
    assert!(share(&v1::AnswerBatch { answers: vec![answer; 256] }) < 1.0);
    let position = v1::Position { token: 1, tenant: "t".into(), key: "k".into() };
    let record = v1::StoredRecord { position: Some(position), ..v1::StoredRecord::default() };
    let records = vec![record; PAGE_RECORDS as usize];
    assert!(share(&v1::ScanRangeResponse { records, ..Default::default() }) < 0.3);
}

#[test]
fn a_batch_of_a_session_holds_as_many_operations_as_a_session() {
    let wire = batch(SESSION_REQUESTS + 1, smallest).encode_to_vec();
    let refused = decode::<v1::SessionRequestBatch>(wire.into()).unwrap_err();
    let expected = Refused::TooMany { message: "SessionRequestBatch", field: "requests", most: SESSION_REQUESTS };
    assert_eq!(refused, Undecodable::Refused(expected));
}

#[test]
fn what_is_too_heavy_is_named_with_its_bound() {
    // Scopes of no bytes: two bytes each on the wire.
    let wire = [0x12, 0].repeat(1 << 20);
    let refused = decode::<v1::CreateTokenRequest>(wire.into()).unwrap_err().to_string();
    let expected = "a CreateTokenRequest of 2097152 bytes would take more than 20971520 bytes of memory, which is 4194304 and 8 for each \
                    of its bytes; send fewer items in one message";
    assert_eq!(refused, expected);
}

#[test]
fn damage_is_reported_by_the_decoder() {
    let wire = Bytes::from_static(&[0x0a, 0x03, 0x12, 0x02, 0x0a]);
    let expected = v1::SessionRequestBatch::decode(wire.clone()).unwrap_err();
    assert_eq!(decode::<v1::SessionRequestBatch>(wire), Err(Undecodable::Malformed(expected)));
}

/// An inner message that goes on behind the end of the one around it is decoded up to its own end before the decoder notices.
#[test]
fn what_is_decoded_before_the_damage_is_noticed_is_weighed() {
    let siblings = [0x3a, 0].repeat(1 << 20);
    // A response of two bytes, with a read of two MiB in it.
    let mut wire = vec![0x0a, 0x02, 0x1a];
    prost::encoding::encode_varint(siblings.len() as u64, &mut wire);
    wire.extend(siblings);
    let refused = decode::<v1::SessionResponseBatch>(wire.into()).unwrap_err();
    assert!(matches!(refused, Undecodable::Refused(Refused::TooHeavy { .. })), "{refused}");
}

/// `cargo test -p witan-wire what_weighing_costs -- --ignored --nocapture`
#[test]
#[ignore = "a measurement: prints nanoseconds, and checks nothing"]
fn what_weighing_costs() {
    measure("a write of 1 KiB", &write(1, 1024));
    measure("a session batch of 64 writes of 100 bytes", &batch(64, |key| Operation::Write(write(key, 100))));
    measure("a session batch of 64 reads", &batch(64, smallest));
}

fn measure<M: Weighed>(what: &str, message: &M) {
    const TIMES: u32 = 20_000;
    let wire = Bytes::from(message.encode_to_vec());
    let nanos = |work: &dyn Fn()| {
        let rounds = (0..15).map(|_| {
            let began = Instant::now();
            (0..TIMES).for_each(|_| work());
            began.elapsed().as_nanos() / u128::from(TIMES)
        });
        rounds.min().unwrap_or_default()
    };
    let weighed = nanos(&|| drop(black_box(M::SHAPE.weigh(black_box(&wire)))));
    let decoded = nanos(&|| drop(black_box(M::decode(black_box(wire.clone())))));
    println!("{what}, {} bytes: weighed in {weighed} ns, decoded in {decoded} ns", wire.len());
}
