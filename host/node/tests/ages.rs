//! Deadlines count from when a request was sent: over real lanes, on a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::Streaming;
use tonic::transport::Channel;
use witan_kernel::capability::AGES;
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::port::{Clock, Randomness};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_node::batch::Durability;
use witan_node::driver::{QueueLimits, Threads};
use witan_node::engine::simulated::Disk;
use witan_node::server::{Guard, Limits, serve};
use witan_node::store::Store;
use witan_wire::frame::{Joiner, open_answers, seal_requests_sent};
use witan_wire::replica::{answer_from_wire, request_to_wire};
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::{ExchangeRequest, ExchangeResponse, Hello, RepairRequest};

/// Longest wait for anything that must happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
const SECOND: u64 = 1_000_000;

/// A clock whose monotonic time the test moves.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn pass(&self, micros: u64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn wall_micros(&self) -> u64 {
        SECOND
    }

    fn monotonic_micros(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

struct Sevens;

impl Randomness for Sevens {
    fn sixteen(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// A node on a simulated disk.
struct Running {
    store: Arc<Store>,
    clock: Hands,
    channel: Channel,
    _stop: oneshot::Sender<()>,
}

async fn run() -> Running {
    let (disk, node, clock) = (Disk::new(), NodeId::new("node-1").unwrap(), Hands::default());
    clock.pass(7000 * SECOND);
    let store = Arc::new(Store::open(Box::new(disk.open()), &node, &Sevens).unwrap());
    let driver =
        Threads::start(Arc::clone(&store), Durability::Sync, 1, QueueLimits::default(), 0, clock.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let (incoming, driver) = (TcpListenerStream::new(listener), Arc::new(driver));
    tokio::spawn(serve(incoming, node, driver, clock.clone(), Limits::default(), Guard::default(), shutdown));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Running { store, clock, channel, _stop: stop }
}

/// A coordinator's end of a lane.
struct Lane {
    frames: mpsc::Sender<ExchangeRequest>,
    answers: Streaming<ExchangeResponse>,
    joiner: Joiner,
    /// What the node has shown of its clock last.
    shown: u64,
}

impl Lane {
    async fn open(node: &Running, capabilities: &[&str]) -> Self {
        let (frames, sent) = mpsc::channel(64);
        let capabilities = capabilities.iter().map(|named| (*named).to_owned()).collect();
        let hello = Hello { versions: vec![1], capabilities, ..Hello::default() };
        frames.send(ExchangeRequest { hello: Some(hello), ..ExchangeRequest::default() }).await.unwrap();
        let answers = StorageNodeServiceClient::new(node.channel.clone()).exchange(ReceiverStream::new(sent)).await;
        let mut answers = answers.unwrap().into_inner();
        let welcome = answers.message().await.unwrap().and_then(|first| first.welcome).expect("a welcome first");
        assert!(welcome.capabilities.iter().any(|named| named == AGES));
        Self { frames, answers, joiner: Joiner::new(), shown: welcome.monotonic_micros }
    }

    async fn message(&mut self) -> ExchangeResponse {
        let message = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("a message in time");
        let message = message.unwrap().expect("the lane is open");
        self.shown = message.monotonic_micros;
        message
    }

    /// Asks with a deadline of this many milliseconds after `sent_at`.
    async fn ask(&mut self, ask: Ask, deadline_ms: u32, sent_at: u64) -> Outcome {
        let request = request_to_wire(1, Request { place: place(), epoch: 1, ask }, deadline_ms);
        for frame in seal_requests_sent(vec![request], sent_at) {
            self.frames.send(ExchangeRequest { frame: Some(frame), ..ExchangeRequest::default() }).await.unwrap();
        }
        let frame = self.message().await.frame.expect("a frame");
        let mut answers = open_answers(self.joiner.push(frame).unwrap().expect("whole")).unwrap();
        answer_from_wire(answers.pop().expect("an answer")).unwrap().1
    }
}

fn place() -> Place {
    Place { token: 1, space: TenantId::new("t").unwrap().into(), key: Key::new("k").unwrap() }
}

fn record(stamp: u64) -> Record {
    let value = Some(Bytes::from_static(b"value"));
    Record::Register(Register::written(Stamp(stamp), WriteId([1; 16]), value))
}

fn merge(stamp: u64) -> Ask {
    Ask::Merge { record: record(stamp).encode() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_held_back_on_its_way_is_refused() {
    let node = run().await;
    let mut lane = Lane::open(&node, &[AGES]).await;
    let sent_at = lane.shown;
    assert_eq!(sent_at, 7000 * SECOND, "the welcome shows the node's clock");
    node.clock.pass(11 * SECOND);
    for ask in [merge(1), Ask::Read] {
        assert_eq!(lane.ask(ask, 10_000, sent_at).await, Err(ReplicaError::Late));
    }
    assert_eq!(node.store.load(&witan_node::row::key(&place())).unwrap(), None, "nothing is stored");
    assert_eq!(lane.shown, sent_at + 11 * SECOND, "every frame shows the node's clock");

    assert!(lane.ask(merge(2), 1000, lane.shown).await.is_ok());
    assert!(lane.ask(merge(3), 1000, lane.shown - SECOND / 2).await.is_ok(), "it has half of its time left");
    assert_eq!(lane.ask(merge(4), 1000, lane.shown - SECOND).await, Err(ReplicaError::Late));
    assert_eq!(lane.ask(merge(5), 60_000, lane.shown - 10 * SECOND).await, Err(ReplicaError::Late), "10 s at most");
    assert_eq!(lane.ask(merge(6), 1000, 0).await, Err(ReplicaError::Late), "nobody knows when it was sent");
    let stored = lane.ask(Ask::Read, 1000, lane.shown + 100 * SECOND).await;
    assert_eq!(stored, Ok(Answer::Record(Some(record(3).encode()))), "an estimate that is wrong is not believed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_is_shown_when_it_is_asked_for() {
    let node = run().await;
    let mut lane = Lane::open(&node, &[AGES]).await;
    node.clock.pass(42 * SECOND);
    lane.frames.send(ExchangeRequest { clock: true, ..ExchangeRequest::default() }).await.unwrap();
    let shown = lane.message().await;
    assert_eq!(shown, ExchangeResponse { monotonic_micros: 7042 * SECOND, ..ExchangeResponse::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_collection_has_begun_coordinators_that_know_no_ages_are_refused() {
    let node = run().await;
    let (mut new, mut old) = (Lane::open(&node, &[AGES]).await, Lane::open(&node, &[]).await);
    assert!(old.ask(merge(1), 1000, 0).await.is_ok(), "as before");
    node.store.require_ages().unwrap();
    for ask in [merge(2), Ask::Read] {
        assert_eq!(old.ask(ask, 1000, 0).await, Err(ReplicaError::StaleEpoch));
    }
    assert!(new.ask(merge(3), 1000, new.shown).await.is_ok());
    let mut later = Lane::open(&node, &[]).await;
    assert_eq!(later.ask(merge(4), 1000, 0).await, Err(ReplicaError::StaleEpoch));

    let tool =
        RepairRequest { tenant_id: "t".to_owned(), key: "k".to_owned(), record: record(5).encode().0, token: Some(1) };
    StorageNodeServiceClient::new(node.channel.clone()).repair(tool).await.expect("a person's tool has no age");
    assert_eq!(new.ask(Ask::Read, 1000, new.shown).await, Ok(Answer::Record(Some(record(5).encode()))));
}
