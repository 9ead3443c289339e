//! The node's server over real sockets, spoken to by the generated client.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use witan_kernel::capability;
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::port::{Clock, Randomness};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::siblings::{VersionVector, Write};
use witan_node::batch::{Answers, Deliver, Durability, Item};
use witan_node::driver::QueueLimits;
use witan_node::node::{Node, NodeConfig};
use witan_node::server::{Limits, ServeError};
use witan_wire::frame::{self, Joiner};
use witan_wire::range::{fingerprint_page_from_wire, page_from_wire};
use witan_wire::replica::{answer_from_wire, request_to_wire};
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::{
    ClearPurpose, ClearRangeRequest, DescribeRequest, DigestsRequest, DropTenantRequest, ExchangeRequest,
    ExchangeResponse, Frame, Hello, ReadRequest, RepairRequest, ScanRangeRequest, Welcome,
};

#[derive(Clone)]
struct Now;

impl Clock for Now {
    fn wall_micros(&self) -> u64 {
        WALL
    }

    fn monotonic_micros(&self) -> u64 {
        0
    }
}

const WALL: u64 = 1_000_000;

/// Longest wait for anything that must happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

struct Dice(AtomicU8);

impl Randomness for Dice {
    fn sixteen(&self) -> [u8; 16] {
        // Every start of a node throws others.
        static THROWN: AtomicU8 = AtomicU8::new(0);
        [self.0.load(Ordering::Relaxed).wrapping_add(THROWN.fetch_add(1, Ordering::Relaxed)); 16]
    }
}

type Client = StorageNodeServiceClient<Channel>;

struct Running {
    node: Arc<Node<Now>>,
    client: Client,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServeError>>,
}

fn config(folder: &TempDir) -> NodeConfig {
    let mut config = NodeConfig::new(NodeId::new("node-1").unwrap(), folder.path());
    config.durability = Durability::Os;
    config.shards = 2;
    config.engine.min_free_bytes = 0;
    config
}

async fn run(config: NodeConfig) -> Running {
    let opened = tokio::task::spawn_blocking(|| Node::open(config, Now, &Dice(AtomicU8::new(1)))).await.unwrap();
    let node = Arc::new(opened.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn({
        let node = node.clone();
        async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            node.serve(TcpListenerStream::new(listener), shutdown).await
        }
    });
    let client = Client::connect(format!("http://{address}")).await.unwrap().max_decoding_message_size(64 << 20);
    Running { node, client, stop, serving }
}

impl Running {
    async fn end(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap().unwrap();
        drop(self.client);
        tokio::task::spawn_blocking(move || drop(self.node)).await.unwrap();
    }
}

/// A coordinator's end of a lane.
struct Lane {
    frames: mpsc::Sender<ExchangeRequest>,
    answers: Streaming<ExchangeResponse>,
    joiner: Joiner,
}

fn hello() -> Hello {
    Hello { versions: vec![1, 7], node_id: "node-1".to_owned(), ..Hello::default() }
}

impl Lane {
    async fn open(client: &Client, hello: Hello) -> Result<(Self, Welcome), Status> {
        let (frames, sent) = mpsc::channel(64);
        frames.send(ExchangeRequest { hello: Some(hello), ..ExchangeRequest::default() }).await.unwrap();
        let answers = client.clone().exchange(ReceiverStream::new(sent)).await?.into_inner();
        let mut lane = Self { frames, answers, joiner: Joiner::new() };
        let welcome = lane.answers.message().await?.and_then(|first| first.welcome).expect("a welcome first");
        Ok((lane, welcome))
    }

    async fn send_frames(&self, frames: Vec<Frame>) {
        for frame in frames {
            self.frames.send(ExchangeRequest { frame: Some(frame), ..ExchangeRequest::default() }).await.unwrap();
        }
    }

    async fn send(&self, requests: Vec<(u64, Request)>) {
        let wire = requests.into_iter().map(|(id, request)| request_to_wire(id, request, 0)).collect();
        self.send_frames(frame::seal_requests(wire)).await;
    }

    async fn hear(&mut self, count: usize) -> Result<Vec<(u64, Outcome)>, Status> {
        let mut heard = Vec::new();
        while heard.len() < count {
            let message = self.answers.message().await?.expect("the lane is still open");
            let Some(batch) = self.joiner.push(message.frame.unwrap()).unwrap() else { continue };
            heard.extend(
                frame::open_answers(batch).unwrap().into_iter().map(|answer| answer_from_wire(answer).unwrap()),
            );
        }
        heard.sort_by_key(|(id, _)| *id);
        Ok(heard)
    }

    async fn ask(&mut self, requests: Vec<(u64, Request)>) -> Vec<(u64, Outcome)> {
        let count = requests.len();
        self.send(requests).await;
        tokio::time::timeout(PATIENCE, self.hear(count)).await.expect("answers in time").unwrap()
    }
}

fn request(key: &str, ask: Ask) -> Request {
    let tenant = TenantId::new("t").unwrap();
    let key = Key::new(key.to_owned()).unwrap();
    let token = witan_kernel::ring::token(&tenant, key.bytes());
    Request { place: Place { token, space: tenant.into(), key }, epoch: 1, ask }
}

fn register(stamp: u64, value: Bytes) -> Encoded {
    Record::Register(Register::written(Stamp(WALL + stamp), WriteId([1; 16]), Some(value))).encode()
}

fn put(n: u8) -> Ask {
    Ask::Put(Arc::new(Write {
        write_id: WriteId([n; 16]),
        started: WALL,
        again: false,
        asked: false,
        seen: VersionVector::default(),
        ids: Vec::new(),
        newest: 0,
        value: Some(Bytes::from_static(b"value")),
    }))
}

#[tokio::test]
async fn hands_are_shaken_or_refused_with_a_reason() {
    let folder = TempDir::new().unwrap();
    let node = run(config(&folder)).await;
    let (_lane, welcome) = Lane::open(&node.client, hello()).await.unwrap();
    assert_eq!((welcome.version, welcome.node_id.as_str()), (1, "node-1"));
    assert_eq!(&welcome.store_id[..], node.node.store_id().0);
    assert!(welcome.capabilities.contains(&"siblings".to_owned()));
    assert!(Lane::open(&node.client, Hello { node_id: String::new(), ..hello() }).await.is_ok());

    let refused = |hello| async { Lane::open(&node.client, hello).await.err().unwrap() };
    let status = refused(Hello { node_id: "node-2".to_owned(), ..hello() }).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("node-1") && status.message().contains("node-2"), "{status}");
    let status = refused(Hello { versions: vec![2, 3], ..hello() }).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("[1]") && status.message().contains("[2, 3]"), "{status}");

    let frame = frame::seal_requests(Vec::new()).remove(0);
    let first = tokio_stream::once(ExchangeRequest { frame: Some(frame), ..ExchangeRequest::default() });
    let mut answers = node.client.clone().exchange(first).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    node.end().await;
}

#[tokio::test]
async fn a_mixed_batch_is_answered_by_id() {
    let folder = TempDir::new().unwrap();
    let node = run(config(&folder)).await;
    let (mut lane, _) = Lane::open(&node.client, hello()).await.unwrap();
    let mut batch = vec![
        (1, request("a", Ask::Merge { record: register(1, Bytes::from_static(b"x")) })),
        (2, request("a", Ask::Stamp { write_id: WriteId([1; 16]) })),
        (3, request("b", put(2))),
        (4, request("b", Ask::Stamp { write_id: WriteId([1; 16]) })),
        (5, request("a", Ask::Read)),
        (6, request("nothing", Ask::Read)),
    ];
    batch.extend((100..350).map(|n| (n, request(&format!("key-{n}"), Ask::Read))));
    let heard = lane.ask(batch).await;
    let stamp = Some(Stamp(WALL + 1));
    assert_eq!(heard[0].1, Ok(Answer::Merged { superseded: false, told: Vec::new() }));
    assert_eq!(heard[1].1, Ok(Answer::Stamp { stands: stamp, known: stamp }));
    assert!(matches!(&heard[2].1, Ok(Answer::Put { applied_already: false, record }) if record.decode().is_ok()));
    assert_eq!(heard[3].1, Err(ReplicaError::WrongMode));
    assert_eq!(heard[4].1, Ok(Answer::Record(Some(register(1, Bytes::from_static(b"x"))))));
    assert_eq!(heard[5].1, Ok(Answer::Record(None)));
    assert_eq!(heard.len(), 256);

    let malformed = witan_wire::v1::ReplicaRequest { id: 9, ..Default::default() };
    lane.send_frames(frame::seal_requests(vec![malformed])).await;
    let heard = lane.hear(1).await.unwrap();
    assert!(matches!(&heard[0], (9, Err(ReplicaError::Broken(reason))) if reason.contains("tenant")), "{heard:?}");
    node.end().await;
}

#[tokio::test]
async fn large_values_travel_in_pieces() {
    let folder = TempDir::new().unwrap();
    let node = run(config(&folder)).await;
    let (mut lane, _) = Lane::open(&node.client, hello()).await.unwrap();
    let value = |n: u8| Bytes::from(vec![n; 3 << 20]);
    let merges =
        (0..4).map(|n| (u64::from(n), request(&format!("large-{n}"), Ask::Merge { record: register(1, value(n)) })));
    let merged = lane.ask(merges.collect()).await;
    assert!(merged.iter().all(|(_, outcome)| *outcome == Ok(Answer::Merged { superseded: false, told: Vec::new() })));
    let heard = lane.ask((0..4).map(|n| (n, request(&format!("large-{n}"), Ask::Read))).collect()).await;
    for (n, (_, outcome)) in (0_u8..4).zip(heard) {
        assert_eq!(outcome, Ok(Answer::Record(Some(register(1, value(n))))));
    }
    node.end().await;
}

#[tokio::test]
async fn a_damaged_frame_ends_its_lane_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let node = run(config(&folder)).await;
    let (mut damaged, _) = Lane::open(&node.client, hello()).await.unwrap();
    let (mut sound, _) = Lane::open(&node.client, hello()).await.unwrap();
    let mut frames = frame::seal_requests(vec![request_to_wire(1, request("a", Ask::Read), 0)]);
    frames[0].checksum ^= 1;
    damaged.send_frames(frames).await;
    let status = damaged.hear(1).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    assert!(status.message().contains("checksum"), "{status}");
    assert_eq!(sound.ask(vec![(1, request("a", Ask::Read))]).await, [(1, Ok(Answer::Record(None)))]);
    node.end().await;
}

#[tokio::test]
async fn what_the_queue_does_not_hold_is_refused_at_once() {
    let folder = TempDir::new().unwrap();
    let mut config = config(&folder);
    config.shards = 1;
    config.queue = QueueLimits { items: 1, bytes: 1 << 20 };
    let node = run(config).await;
    let (mut lane, _) = Lane::open(&node.client, hello()).await.unwrap();
    // Delivering this answer blocks the shard's thread, so that nothing leaves the queue.
    let (taken, took) = oneshot::channel();
    let (go_on, keeps) = std::sync::mpsc::channel();
    let keeper = Keeper(Mutex::new(Some((taken, keeps))));
    let first = Item {
        tag: 0,
        request: request("first", Ask::Read),
        deadline: u64::MAX,
        largest_answer: usize::MAX,
        is_aged: true,
    };
    node.node.driver().submit(vec![first], Arc::new(keeper));
    tokio::time::timeout(PATIENCE, took).await.expect("the shard answers").unwrap();

    for id in 0..10 {
        lane.send(vec![(id, request("queued", Ask::Read))]).await;
    }
    let refused = lane.hear(9).await.unwrap();
    assert!(refused.iter().map(|(id, _)| *id).eq(1..10), "the first one finds room: {refused:?}");
    assert!(refused.iter().all(|(_, outcome)| *outcome == Err(ReplicaError::Overloaded)), "{refused:?}");
    go_on.send(()).unwrap();
    assert_eq!(lane.hear(1).await.unwrap(), [(0, Ok(Answer::Record(None)))], "what is queued is still done");
    node.end().await;
}

/// Reports that it has received an answer, then blocks the delivering thread until it is released.
struct Keeper(Mutex<Option<(oneshot::Sender<()>, std::sync::mpsc::Receiver<()>)>>);

impl Deliver for Keeper {
    fn deliver(&self, _: Answers) {
        if let Some((taken, keeps)) = self.0.lock().unwrap().take() {
            taken.send(()).unwrap();
            // An error means that the test is over.
            let _ = keeps.recv();
        }
    }
}

#[tokio::test]
async fn a_lane_never_has_more_in_flight_than_it_may_and_still_gets_all_answers() {
    let folder = TempDir::new().unwrap();
    let mut config = config(&folder);
    config.limits = Limits { lane_requests: 256, lane_answer_bytes: 1 << 20, ..Limits::default() };
    let node = run(config).await;
    let (mut lane, _) = Lane::open(&node.client, hello()).await.unwrap();
    lane.ask(vec![(0, request("a", Ask::Merge { record: register(1, Bytes::from(vec![1; 64 << 10])) }))]).await;
    for batch in 0..40_u64 {
        lane.send((0..100).map(|n| (batch * 100 + n, request("a", Ask::Read))).collect()).await;
    }
    let heard = lane.hear(4000).await.unwrap();
    assert!(heard.iter().enumerate().all(|(n, (id, outcome))| n as u64 == *id && outcome.is_ok()));
    node.end().await;
}

#[tokio::test]
async fn unary_calls_for_people_and_tools() {
    let folder = TempDir::new().unwrap();
    let node = run(config(&folder)).await;
    let mut client = node.client.clone();
    let (tenant_id, key) = ("t".to_owned(), "a".to_owned());
    let read = ReadRequest { tenant_id: tenant_id.clone(), key: key.clone(), token: None, render: true };
    assert_eq!(client.read(read.clone()).await.unwrap().into_inner().record, None);

    let record = register(1, Bytes::from_static(b"hello")).0;
    let repair = RepairRequest { tenant_id, key, record: record.clone(), token: None };
    assert!(!client.repair(repair.clone()).await.unwrap().into_inner().superseded);
    assert!(client.repair(repair.clone()).await.unwrap().into_inner().superseded);
    let answer = client.read(read.clone()).await.unwrap().into_inner();
    assert_eq!(answer.record, Some(record));
    assert!(answer.rendering.contains("hello") && answer.rendering.contains("stamp 1000001"), "{}", answer.rendering);

    let damaged = RepairRequest { record: Bytes::from_static(b"?"), ..repair.clone() };
    assert_eq!(client.repair(damaged).await.unwrap_err().code(), Code::InvalidArgument);
    let nameless = ReadRequest { tenant_id: "a:b".to_owned(), ..read };
    let status = client.read(nameless).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("tenant_id"), "{status}");

    let (mut lane, _) = Lane::open(&client, hello()).await.unwrap();
    assert!(
        matches!(lane.ask(vec![(1, request("a", Ask::Read))]).await[0].1, Ok(Answer::Record(Some(_)))),
        "one place"
    );

    let described = client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((described.node_id.as_str(), described.keys_count), ("node-1", 1));
    assert!(described.disk_bytes > 0 && (0.0..=100.0).contains(&described.disk_usage_percent));
    node.end().await;
}

#[tokio::test]
async fn a_second_start_finds_data_and_identity_and_draws_new_births() {
    let folder = TempDir::new().unwrap();
    let mut config = config(&folder);
    config.durability = Durability::Sync;
    let mut stores = Vec::new();
    let mut births = Vec::new();
    for round in 0..3_u8 {
        let node = run(config.clone()).await;
        stores.push(node.node.store_id());
        let (mut lane, _) = Lane::open(&node.client, hello()).await.unwrap();
        for before in 0..round {
            let heard = lane.ask(vec![(1, request(&format!("key-{before}"), Ask::Read))]).await;
            assert!(matches!(heard[0].1, Ok(Answer::Record(Some(_)))));
        }
        let heard = lane.ask(vec![(1, request(&format!("key-{round}"), put(round)))]).await;
        let Ok(Answer::Put { record, .. }) = &heard[0].1 else { panic!("{heard:?}") };
        let Record::Siblings(siblings) = record.decode().unwrap() else { panic!("siblings") };
        births.extend(siblings.seen.entries.iter().map(|(actor, _)| actor.birth));
        drop(lane);
        node.end().await;
    }
    assert!(stores.windows(2).all(|pair| pair[0] == pair[1]));
    let distinct: std::collections::BTreeSet<u64> = births.iter().copied().collect();
    assert_eq!(distinct.len(), births.len(), "{births:?}");
}

#[tokio::test]
async fn shutdown_ends_open_lanes_in_order() {
    let folder = TempDir::new().unwrap();
    let mut config = config(&folder);
    config.limits.drain = 10 * PATIENCE;
    let node = run(config).await;
    let (mut lane, _) = Lane::open(&node.client, hello()).await.unwrap();
    lane.ask(vec![(1, request("a", Ask::Read))]).await;
    let ended = tokio::time::timeout(PATIENCE, node.end());
    let (ended, last) = tokio::join!(ended, lane.answers.message());
    ended.expect("well before the hard deadline");
    assert!(matches!(last, Ok(None)), "{last:?}");
}

#[tokio::test]
async fn what_is_stored_is_walked_by_pages_and_a_tenant_can_be_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let running = run(config(&folder)).await;
    let mut client = running.client.clone();
    for (tenant, count) in [("t", 5_u8), ("gone", 3)] {
        for n in 0..count {
            let (tenant_id, key) = (tenant.to_owned(), format!("k-{n}"));
            let id = WriteId([n; 16]);
            let record = Record::Register(Register::written(Stamp(1), id, Some(Bytes::from(vec![n; 100])))).encode();
            let request = RepairRequest { tenant_id, key, record: record.0, token: Some(u64::from(n)) };
            client.repair(request).await.unwrap();
        }
    }
    let ask = ScanRangeRequest { page_size: 3, node_id: "node-1".to_owned(), ..ScanRangeRequest::default() };
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let request = ScanRangeRequest { after, ..ask.clone() };
        let page = client.scan_range(request).await.unwrap().into_inner();
        assert_eq!(page.store_id, Bytes::from(running.node.store_id().0.to_vec()));
        found.extend(page.records.into_iter().map(|stored| stored.position.unwrap()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let tokens: Vec<u64> = found.iter().map(|position| position.token).collect();
    assert_eq!(tokens, [0, 0, 1, 1, 2, 2, 3, 4]);

    let abridged = ScanRangeRequest { tenant_id: "t".to_owned(), abridged: true, page_size: 0, ..ask.clone() };
    let page = client.scan_range(abridged).await.unwrap().into_inner();
    assert_eq!((page.records.len(), page.next), (5, None));
    assert!(page.records.iter().all(|stored| stored.record.as_ref().unwrap().len() < 100));
    let whole = ScanRangeRequest { tenant_id: "t".to_owned(), page_size: 0, ..ask.clone() };
    let fingerprints = ScanRangeRequest { fingerprints: true, ..whole.clone() };
    let whole = page_from_wire(client.scan_range(whole).await.unwrap().into_inner()).unwrap();
    let page = client.scan_range(fingerprints).await.unwrap().into_inner();
    assert!(page.records.iter().all(|stored| stored.record.is_none() && stored.fingerprint.is_some()));
    assert_eq!(fingerprint_page_from_wire(page), Ok(whole.fingerprints()));
    let elsewhere = ScanRangeRequest { node_id: "node-2".to_owned(), ..ask.clone() };
    assert_eq!(client.scan_range(elsewhere).await.unwrap_err().code(), Code::FailedPrecondition);
    let bad = ScanRangeRequest { tenant_id: "a:b".to_owned(), ..ask.clone() };
    assert_eq!(client.scan_range(bad).await.unwrap_err().code(), Code::InvalidArgument);

    let gone = DropTenantRequest { tenant_id: "gone".to_owned(), ..DropTenantRequest::default() };
    let dropped = client.drop_tenant(gone.clone()).await.unwrap().into_inner();
    assert_eq!((dropped.records, dropped.next), (3, None));
    assert_eq!(client.drop_tenant(gone).await.unwrap().into_inner().records, 0);
    let left = client.scan_range(ScanRangeRequest { page_size: 0, ..ask }).await.unwrap().into_inner();
    assert_eq!(left.records.len(), 5);
    drop(client);
    running.end().await;
}

#[tokio::test]
async fn nodes_with_the_same_records_answer_the_same_digests() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let nodes = [run(config(&folders[0])).await, run(config(&folders[1])).await];
    let merge = |n: u64, stamp: u64| {
        request(&format!("key-{n}"), Ask::Merge { record: register(stamp, Bytes::from_static(b"x")) })
    };
    let mut answers = Vec::new();
    for (of, node) in nodes.iter().enumerate() {
        let (mut lane, welcome) = Lane::open(&node.client, hello()).await.unwrap();
        assert!(welcome.capabilities.contains(&capability::DIGESTS.to_owned()));
        let mut client = node.client.clone();
        let ask = DigestsRequest { node_id: "node-1".to_owned(), ..DigestsRequest::default() };
        if of == 0 {
            // One counts while it has little, the other when it has everything.
            let none = client.digests(ask.clone()).await.unwrap().into_inner();
            assert_eq!((none.leaves.len(), none.to_token, none.read_records), (0, u64::MAX, 0));
        }
        for n in 0..40 {
            assert!(lane.ask(vec![(n, merge(n, 1))]).await[0].1.is_ok());
        }
        let answer = client.digests(ask.clone()).await.unwrap().into_inner();
        assert_eq!(&answer.store_id[..], node.node.store_id().0);
        assert_eq!(answer.leaves.iter().map(|leaf| leaf.count).sum::<u32>(), 40);
        assert_eq!(answer.read_records, if of == 0 { 0 } else { 40 });
        let elsewhere = DigestsRequest { node_id: "node-2".to_owned(), ..ask.clone() };
        assert_eq!(client.digests(elsewhere).await.unwrap_err().code(), Code::FailedPrecondition);
        let backwards = DigestsRequest { from_token: 9, to_token: Some(8), ..ask.clone() };
        assert_eq!(client.digests(backwards).await.unwrap_err().code(), Code::InvalidArgument);
        let others = DigestsRequest { tenant_id: "other".to_owned(), ..ask.clone() };
        assert_eq!(client.digests(others).await.unwrap().into_inner().leaves, []);
        if of == 1 {
            assert!(lane.ask(vec![(40, merge(7, 2))]).await[0].1.is_ok());
            let changed = client.digests(ask).await.unwrap().into_inner();
            let differ = changed.leaves.iter().zip(&answer.leaves).filter(|(now, before)| now != before);
            assert_eq!(differ.count(), 1, "the slice of the record that was changed");
        }
        answers.push(answer.leaves);
    }
    assert_eq!(answers[0], answers[1]);
    for node in nodes {
        node.end().await;
    }
}

#[tokio::test]
async fn rows_are_dropped_for_a_placement_change_and_requests_of_before_it_are_refused() {
    let folder = TempDir::new().unwrap();
    let node = run(config(&folder)).await;
    let (mut lane, welcome) = Lane::open(&node.client, hello()).await.unwrap();
    assert!(welcome.capabilities.contains(&capability::MOVES.to_owned()));
    let keys: Vec<String> = (0..20).map(|n| format!("key-{n}")).collect();
    let merge = |key: &String| request(key, Ask::Merge { record: register(1, Bytes::from_static(b"x")) });
    for (id, key) in (0..).zip(&keys) {
        assert!(lane.ask(vec![(id, merge(key))]).await[0].1.is_ok());
    }
    let mut client = node.client.clone();
    let enter = ClearRangeRequest {
        node_id: "node-1".to_owned(),
        tenant_id: "t".to_owned(),
        epoch: 7,
        purpose: ClearPurpose::Enter.into(),
        ranges: vec![0, u64::MAX / 2],
    };
    let cleared = client.clear_range(enter.clone()).await.unwrap().into_inner();
    assert_eq!(&cleared.store_id[..], node.node.store_id().0);
    let below = keys.iter().filter(|key| request(key, Ask::Read).place.token <= u64::MAX / 2).count() as u64;
    assert!((1..20).contains(&below));
    assert_eq!((cleared.already, cleared.records, cleared.done), (false, below, true));
    let again = client.clear_range(enter.clone()).await.unwrap().into_inner();
    assert_eq!((again.already, again.records, again.done), (true, 0, true));

    // Of before the change: refused. Of the change: all that is left.
    assert_eq!(lane.ask(vec![(1, merge(&keys[0]))]).await[0].1, Err(ReplicaError::StaleEpoch));
    let scan = ScanRangeRequest { tenant_id: "t".to_owned(), epoch: 7, ..ScanRangeRequest::default() };
    assert_eq!(client.scan_range(scan.clone()).await.unwrap().into_inner().records.len() as u64, 20 - below);
    let code = |status: Status| (status.code(), status.message().to_owned());
    let stale = code(client.scan_range(ScanRangeRequest { epoch: 6, ..scan.clone() }).await.unwrap_err());
    assert!(stale.0 == Code::Aborted && stale.1.contains("before a change"), "{stale:?}");
    let leave = ClearRangeRequest { epoch: 6, purpose: ClearPurpose::Leave.into(), ..enter.clone() };
    for late in [leave, ClearRangeRequest { epoch: 6, ..enter.clone() }] {
        assert_eq!(client.clear_range(late).await.unwrap_err().code(), Code::Aborted);
    }

    for (wrong, says) in [
        (ClearRangeRequest { ranges: vec![1, 2, 2, 3], ..enter.clone() }, "ranges: "),
        (ClearRangeRequest { ranges: vec![1], ..enter.clone() }, "ranges: "),
        (ClearRangeRequest { ranges: (0..140_000).collect(), ..enter.clone() }, "ranges"),
        (ClearRangeRequest { purpose: 0, ..enter.clone() }, "purpose: "),
        (ClearRangeRequest { epoch: 0, ..enter.clone() }, "epoch: "),
        (ClearRangeRequest { tenant_id: String::new(), ..enter.clone() }, "tenant_id: "),
    ] {
        let refused = code(client.clear_range(wrong).await.unwrap_err());
        assert!(refused.0 == Code::InvalidArgument && refused.1.contains(says), "{refused:?} does not say {says:?}");
    }
    let everywhere = ScanRangeRequest { tenant_id: String::new(), ..scan };
    assert_eq!(client.scan_range(everywhere).await.unwrap_err().code(), Code::InvalidArgument);
    let elsewhere = ClearRangeRequest { node_id: "node-2".to_owned(), ..enter };
    assert_eq!(client.clear_range(elsewhere).await.unwrap_err().code(), Code::FailedPrecondition);
    drop((lane, client));
    node.end().await;
}

#[tokio::test]
async fn what_a_node_has_entered_it_remembers_across_a_start() {
    let folder = TempDir::new().unwrap();
    let enter = ClearRangeRequest {
        tenant_id: "t".to_owned(),
        epoch: 7,
        purpose: ClearPurpose::Enter.into(),
        ranges: vec![0, u64::MAX],
        ..ClearRangeRequest::default()
    };
    for (boot, already) in [(1, false), (2, true), (3, true)] {
        let node = run(config(&folder)).await;
        let (lane, welcome) = Lane::open(&node.client, hello()).await.unwrap();
        assert_eq!(welcome.fence, if already { 7 } else { 0 });
        assert_eq!(welcome.unsynced_boot, boot, "it may have lost something each time");
        let answer = node.client.clone().clear_range(enter.clone()).await.unwrap().into_inner();
        assert_eq!((answer.already, answer.done), (already, true));
        drop(lane);
        node.end().await;
    }
}
