//! Messages that are small on the wire and would take gigabytes once they are decoded.

use futures::future::join_all;
use prost::encoding::encode_varint;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use witan_wire::frame::seal_requests;
use witan_wire::v1::replica_request::Ask;
use witan_wire::v1::{ExchangeRequest, Hello, PutAsk, ReplicaRequest, VersionVectorEntry};

use super::attack::whole;
use super::friend::Friend;
use super::{INVALID_ARGUMENT, Target, peak_mib};
use crate::harness::{Cluster, node_client};

const SESSION: &str = "witan.v1.CoordinatorService/Session";
const CREATE_TOKEN: &str = "witan.v1.AccessService/CreateToken";
const EXCHANGE: &str = "witan.v1.StorageNodeService/Exchange";

/// This number of bytes of empty items of the field with this key, two bytes each.
fn empty_items(key: u8, bytes: usize) -> Vec<u8> {
    [key, 0].repeat(bytes / 2)
}

/// A field that contains these bytes.
fn around(key: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![key];
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

/// Two at a time: a batch of a session of 16 MiB took 2.9 GiB, and a request for a token of 1 MiB 37 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_grow_when_they_are_decoded() {
    let target = Target::start().await;
    let session = empty_items(0x0a, 16 << 20);
    let token = empty_items(0x12, 1 << 20);
    for (method, message) in [(SESSION, &session), (CREATE_TOKEN, &token)] {
        let statuses = join_all((0..2).map(|_| whole(target.address(), method, message))).await;
        for (status, why) in statuses {
            assert_eq!(status, INVALID_ARGUMENT, "{method}: {why}");
            assert!(why.contains("send"), "{method}: it says what to do: {why}");
        }
        target.friend.served(20).await;
    }
    target.withstands("heavy requests", 100, ()).await;
}

/// The same for a storage node: in the first message of a lane, and in a batch of a lane that is open.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_grow_when_they_are_decoded() {
    let cluster = Cluster::start().await;
    cluster.api().tenant("t", |_| {}).await;
    let friend = Friend::start(cluster.address());
    friend.served(20).await;
    let (node, process) = (cluster.node_address(0), cluster.node(0).id());
    let before = peak_mib(process);

    let hello = around(0x0a, &empty_items(0x12, 16 << 20));
    let (status, why) = whole(node, EXCHANGE, &hello).await;
    assert_eq!(status, INVALID_ARGUMENT, "{why}");
    friend.served(20).await;

    // A put after a million writes of no store, two bytes each.
    let put = PutAsk { seen: vec![VersionVectorEntry::default(); 1 << 20], ..PutAsk::default() };
    let request = ReplicaRequest { ask: Some(Ask::Put(put)), ..ReplicaRequest::default() };
    let (sender, receiver) = mpsc::channel(16);
    let hello = Hello { versions: vec![1], coordinator_id: "hostile".to_owned(), ..Hello::default() };
    sender.send(ExchangeRequest { hello: Some(hello), ..ExchangeRequest::default() }).await.expect("send a hello");
    for frame in seal_requests(vec![request]) {
        sender.send(ExchangeRequest { frame: Some(frame), ..ExchangeRequest::default() }).await.expect("send a frame");
    }
    let mut answers = node_client(node).exchange(ReceiverStream::new(receiver)).await.expect("a lane").into_inner();
    assert!(answers.message().await.expect("a welcome").expect("a welcome").welcome.is_some());
    let refused = answers.message().await.expect_err("the lane ends");
    assert_eq!(refused.code(), Code::DataLoss);
    assert!(refused.message().contains("RequestBatch"), "{refused}");
    friend.served(20).await;

    let grown = peak_mib(process).saturating_sub(before);
    println!("heavy lanes: {grown} MiB more, {}", friend.end().await);
    assert!(grown <= 100, "the node's memory grew by {grown} MiB");
}
