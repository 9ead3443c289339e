//! Requests, uploads and texts that the server would have to keep: their bytes are bounded, however many clients send them.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use futures::future::join_all;
use prost::Message;
use prost::encoding::encode_varint;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_types::StatusExt;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;
use witan_wire::v1::upload_plugin_request::Part;
use witan_wire::v1::{BindPluginRequest, ListKeysRequest, SessionRequest, UploadPluginManifest, UploadPluginRequest};

use super::attack::{HEALTH, WRITE, silent_sessions, unheard, unread, whole};
use super::{INVALID_ARGUMENT, OUT_OF_RANGE, Target};
use crate::harness::{PATIENCE, channel, read, write};

const BIND: &str = "witan.v1.PluginService/BindPlugin";
const LIST: &str = "witan.v1.CoordinatorService/ListKeys";

/// Writes of large values to one key wait for each other: in six sessions, 1.5 GiB of them.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_for_each_other() {
    const SESSIONS: u64 = 6;
    const WRITES: u64 = 64;
    let target = Target::start().await;
    let value = Bytes::from(vec![b'x'; 4 << 20]);
    let attack = async |session_number: u64| {
        let mut session = target.api().session().await;
        let key = format!("key-{session_number}");
        let writes = async {
            for id in 0..WRITES {
                let operation = Some(Operation::Write(write("t", &key, value.clone())));
                // The default deadline would answer most of them before their turn.
                session.send(vec![SessionRequest { id, operation, timeout_ms: 10_000 }]).await;
            }
        };
        writes.await;
        session.take(WRITES as usize).await
    };
    let answers: Vec<_> = join_all((0..SESSIONS).map(attack)).await.into_iter().flatten().collect();
    let written = answers.iter().filter(|answer| matches!(answer.result, Some(Outcome::Write(_)))).count();
    let code = |answer: &witan_wire::v1::SessionResponse| match &answer.result {
        Some(Outcome::Status(status)) => Some(Code::from_i32(status.code)),
        _ => None,
    };
    let refused = answers.iter().filter(|answer| code(answer) == Some(Code::ResourceExhausted)).count();
    println!("{written} of {} writes were carried out, {refused} were refused", answers.len());
    assert!(written > 0 && refused > 0);
    target.withstands("writes that wait", 600, ()).await;
}

/// What clients have sent and nobody reads: sessions that do not go on, because their clients take no answers.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_nobody_reads() {
    const CONNECTIONS: usize = 200;
    let target = Target::start().await;
    // Batches of operations that are refused at once, more than may be answered and not taken; then the beginning of a large message.
    let batch = [0x0a, 0].repeat(1024);
    let framed = |message: &[u8], length: usize| {
        let mut bytes = vec![0];
        bytes.put_u32(length as u32);
        bytes.extend_from_slice(message);
        bytes
    };
    let mut bytes = framed(&batch, batch.len()).repeat(8);
    bytes.extend(framed(&vec![0; 4 << 20], 8 << 20));
    let bytes = Bytes::from(bytes);
    let attacks = join_all((0..CONNECTIONS).map(|_| unheard(target.address(), 4, bytes.clone()))).await;
    let sent: usize = attacks.iter().map(|(sent, _)| sent).sum();
    println!("{} MiB were sent that nobody reads", sent >> 20);
    target.withstands("messages that nobody reads", 500, attacks).await;
}

/// Sessions in which nothing is said: each takes something.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_say_nothing() {
    let target = Target::start().await;
    let (open, attached) = silent_sessions(target.address(), 20, 1000).await;
    assert_eq!(open, 20_000, "there may be 30,000");
    target.withstands("silent sessions", 500, attached).await;
}

/// Small answers that nobody takes, of calls with and without a credential: each keeps its call.
#[tokio::test(flavor = "multi_thread")]
async fn small_answers_that_nobody_takes() {
    const CONNECTIONS: usize = 20;
    let target = Target::start().await;
    // Another tenant than the friend's: one that has thousands of operations under way is refused some.
    target.api().tenant("busy", |_| {}).await;
    let write = write("busy", "small", "v");
    let check = HealthCheckRequest::default();
    let (_, closed, _calls) = unread(target.address(), WRITE, &write, 10).await;
    let writes = join_all((0..CONNECTIONS).map(|_| unread(target.address(), WRITE, &write, 1000))).await;
    let checks = join_all((0..CONNECTIONS).map(|_| unread(target.address(), HEALTH, &check, 1000))).await;
    let of_writes: usize = writes.iter().map(|(count, ..)| *count).sum();
    let of_checks: usize = checks.iter().map(|(count, ..)| *count).sum();
    println!("{of_writes} answers of writes and {of_checks} of checks wait");
    assert!((1..=4096).contains(&of_checks), "{of_checks} checks; there may be 4,096");
    // Whoever takes nothing for half a minute is disconnected.
    tokio::time::timeout(PATIENCE, closed).await.expect("the connection is closed in time").expect("no panic");
    target.withstands("small answers", 400, (writes, checks)).await;
}

/// Pages of keys that nobody takes: each is a megabyte, and asked for with a few bytes.
#[tokio::test(flavor = "multi_thread")]
async fn pages_that_nobody_takes() {
    const PAGES: usize = 600;
    /// A tenant may have as many read at once.
    const AT_A_TIME: usize = 8;
    let target = Target::start().await;
    target.api().tenant("long", |_| {}).await;
    let api = target.api();
    let long = "k".repeat(1000);
    let written = (0..1000).map(async |n| api.write(write("long", &format!("{long}{n}"), "v")).await.expect("written"));
    join_all(written).await;
    let list = ListKeysRequest { tenant_id: "long".to_owned(), page_size: 1000, ..ListKeysRequest::default() };
    let (mut waiting, mut attached) = (0, Vec::new());
    for _ in 0..PAGES / AT_A_TIME {
        for (untaken, running, calls) in
            join_all((0..AT_A_TIME).map(|_| unread(target.address(), LIST, &list, 1))).await
        {
            waiting += untaken;
            attached.push((running, calls));
        }
    }
    // Those that wait for half a minute are given up, and make room for others.
    println!("{waiting} of {PAGES} pages were answered");
    assert!(waiting > 0);
    target.withstands("pages", 450, attached).await;
}

/// Uploads of more than a component may have, and uploads that never end.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_without_an_end() {
    let target = Target::start().await;
    let part = |part| UploadPluginRequest { part: Some(part) };
    let upload = async |chunks: usize, bytes: usize| {
        let manifest = part(Part::Manifest(UploadPluginManifest::default()));
        let chunk = part(Part::Chunk(Bytes::from(vec![7; bytes])));
        let parts = std::iter::once(manifest).chain(std::iter::repeat_n(chunk, chunks));
        let endless = tokio_stream::iter(parts).chain(futures::stream::pending());
        PluginServiceClient::new(channel(target.address())).upload_plugin(endless).await
    };
    // 2 GiB, if all of it was kept. Each is refused as soon as it has more than it, or all large ones together, may have.
    for refused in join_all((0..60).map(|_| upload(33, 1 << 20))).await {
        let refused = refused.expect_err("it is too large");
        let reason = refused.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        assert!(matches!(reason.as_str(), "PLUGIN_REFUSED" | "OVERLOADED"), "{refused}");
    }
    // Smaller ones are kept, as many as there may be; the others are refused.
    let mut open: Vec<_> = (0..80).map(|_| Box::pin(upload(1, 900 << 10))).collect();
    let mut refused = 0;
    while refused < 16 {
        let (ended, _, others) = futures::future::select_all(open).await;
        let status = ended.expect_err("it is refused");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        (refused, open) = (refused + 1, others);
    }
    target.friend.served(20).await;
    let more = tokio::time::timeout(Duration::from_secs(1), futures::future::select_all(open.iter_mut())).await;
    assert!(more.is_err(), "64 are being received");
    drop(open);
    target.withstands("uploads", 250, ()).await;
}

/// Texts that are not what they should be come back shortened, if they are looked at at all.
#[tokio::test(flavor = "multi_thread")]
async fn texts_that_would_be_repeated() {
    let target = Target::start().await;
    let long = |bytes: usize| "\u{1}".repeat(bytes);
    let bind = |bytes| BindPluginRequest { hook: long(bytes), ..BindPluginRequest::default() }.encode_to_vec();
    let large = bind(15 << 20);
    for (status, why) in join_all((0..8).map(|_| whole(target.address(), BIND, &large))).await {
        assert_eq!(status, OUT_OF_RANGE, "{why}");
    }
    let mut level = write("t", "k", "v");
    level.consistency = long(15 << 20);
    let mut reader = read("t", "k");
    reader.consistency = long(900 << 10);
    let messages = [
        (BIND, bind(900 << 10)),
        (WRITE, level.encode_to_vec()),
        ("witan.v1.CoordinatorService/ReadKeyValue", reader.encode_to_vec()),
        ("witan.v1.PluginService/GetPlugin", around(1, long(900 << 10).as_bytes())),
        ("witan.v1.CoordinatorService/GetTenant", around(1, long(900 << 10).as_bytes())),
    ];
    for (method, message) in messages {
        let (status, why) = whole(target.address(), method, &message).await;
        assert_eq!(status, INVALID_ARGUMENT, "{method}: {why}");
        assert!(why.len() < 8 << 10, "{method}: {} bytes", why.len());
    }
    target.withstands("long texts", 100, ()).await;
}

/// A value of one byte in a message of 15 MiB: the value would keep all of it.
#[tokio::test(flavor = "multi_thread")]
async fn values_with_padding() {
    let target = Target::start().await;
    let mut message = write("t", "padded", "v").encode_to_vec();
    message.extend(around(1000, &vec![0; 15 << 20]));
    for (status, why) in join_all((0..8).map(|_| whole(target.address(), WRITE, &message))).await {
        assert_eq!(status, INVALID_ARGUMENT, "{why}");
        assert!(why.contains("leave"), "{why}");
    }
    target.withstands("padding", 200, ()).await;
}

/// A field of this number that contains these bytes.
fn around(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(number << 3 | 2, &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    bytes.put_slice(content);
    bytes
}
