//! A store that fails, or is full, as coordinators and probes see it: over a lane, in a description, and in the node's health.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use witan_kernel::capability;
use witan_kernel::condition::Condition;
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::port::{Clock, Randomness};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::siblings::{VersionVector, Write};
use witan_node::batch::Durability;
use witan_node::driver::{QueueLimits, Threads};
use witan_node::engine::simulated::Disk;
use witan_node::server::{Guard, Limits, serve};
use witan_node::store::Store;
use witan_wire::condition::{STORE_STATE, condition_from_wire};
use witan_wire::frame::{Joiner, open_answers, seal_requests};
use witan_wire::replica::{answer_from_wire, request_to_wire};
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::{
    ClearPurpose, ClearRangeRequest, DescribeRequest, ExchangeRequest, ExchangeResponse, Hello, StoreStanding,
};

/// Longest wait for anything that must happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Now;

impl Clock for Now {
    fn wall_micros(&self) -> u64 {
        1_000_000
    }

    fn monotonic_micros(&self) -> u64 {
        0
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
    disk: Disk,
    channel: Channel,
    _stop: oneshot::Sender<()>,
}

async fn run() -> Running {
    let (disk, node) = (Disk::new(), NodeId::new("node-1").unwrap());
    let store = Arc::new(Store::open(Box::new(disk.open()), &node, &Sevens).unwrap());
    let driver = Threads::start(store, Durability::Sync, 1, QueueLimits::default(), 0, Now).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(serve(incoming, node, Arc::new(driver), Now, Limits::default(), Guard::default(), shutdown));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Running { disk, channel, _stop: stop }
}

impl Running {
    async fn described(&self) -> Option<Condition> {
        let answer = StorageNodeServiceClient::new(self.channel.clone()).describe(DescribeRequest {}).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.clock_micros, Now.wall_micros(), "its clock, for coordinators to compare");
        condition_from_wire(answer.store_state)
    }

    /// Waits until the node's health is `wanted`.
    async fn becomes(&self, service: &str, wanted: ServingStatus) {
        let question = HealthCheckRequest { service: service.to_owned() };
        let mut seen = HealthClient::new(self.channel.clone()).watch(question).await.unwrap().into_inner();
        let turned = async { while seen.message().await.unwrap().expect("a health").status() != wanted {} };
        tokio::time::timeout(PATIENCE, turned).await.unwrap_or_else(|_| panic!("{service:?} is not {wanted:?}"));
    }
}

/// A coordinator's end of a lane.
struct Lane {
    frames: mpsc::Sender<ExchangeRequest>,
    answers: Streaming<ExchangeResponse>,
    joiner: Joiner,
    /// Whether the node's store was on record, as far as the node knew, when it opened.
    on_record: bool,
    /// The conditions that the node has reported, in order.
    reported: Vec<Condition>,
}

impl Lane {
    async fn open(node: &Running, capabilities: &[&str]) -> Self {
        Self::for_answers_of(0, node, capabilities).await
    }

    async fn for_answers_of(largest_answer: u32, node: &Running, capabilities: &[&str]) -> Self {
        let (frames, sent) = mpsc::channel(64);
        let capabilities = capabilities.iter().map(|named| (*named).to_owned()).collect();
        let hello = Hello { versions: vec![1], capabilities, largest_answer, ..Hello::default() };
        frames.send(ExchangeRequest { hello: Some(hello), ..ExchangeRequest::default() }).await.unwrap();
        let answers = StorageNodeServiceClient::new(node.channel.clone()).exchange(ReceiverStream::new(sent)).await;
        let mut answers = answers.unwrap().into_inner();
        let welcome = answers.message().await.unwrap().and_then(|first| first.welcome).expect("a welcome first");
        let (on_record, reported) = (!welcome.not_on_record, condition_from_wire(welcome.store_state));
        Self { frames, answers, joiner: Joiner::new(), on_record, reported: reported.into_iter().collect() }
    }

    async fn tell(&self, on_record: bool) {
        let standing = Some(StoreStanding { on_record });
        self.frames.send(ExchangeRequest { standing, ..ExchangeRequest::default() }).await.unwrap();
    }

    async fn message(&mut self) -> Vec<(u64, Outcome)> {
        let message = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("a message in time");
        let message = message.unwrap().expect("the lane is open");
        self.reported.extend(condition_from_wire(message.state));
        let batch = message.frame.and_then(|frame| self.joiner.push(frame).unwrap());
        let answers = batch.map(|batch| open_answers(batch).unwrap()).unwrap_or_default();
        answers.into_iter().map(|answer| answer_from_wire(answer).unwrap()).collect()
    }

    async fn ask(&mut self, key: &'static str, ask: Ask) -> Outcome {
        let tenant = TenantId::new("t").unwrap();
        let place = Place { token: 1, space: tenant.into(), key: Key::new(key).unwrap() };
        let request = request_to_wire(1, Request { place, epoch: 1, ask }, 0);
        for frame in seal_requests(vec![request]) {
            self.frames.send(ExchangeRequest { frame: Some(frame), ..ExchangeRequest::default() }).await.unwrap();
        }
        loop {
            if let Some((_, outcome)) = self.message().await.pop() {
                return outcome;
            }
        }
    }

    /// Waits until the node has reported `count` conditions.
    async fn reports(&mut self, count: usize) -> &[Condition] {
        while self.reported.len() < count {
            assert!(self.message().await.is_empty(), "an answer that nobody has asked for");
        }
        &self.reported
    }
}

fn merge(stamp: u64) -> Ask {
    let value = Some(Bytes::from_static(b"value"));
    Ask::Merge { record: Record::Register(Register::written(Stamp(stamp), WriteId([1; 16]), value)).encode() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_is_reported_on_the_lane_and_in_health() {
    let node = run().await;
    let (mut lane, mut plain) = (Lane::open(&node, &[STORE_STATE]).await, Lane::open(&node, &[]).await);
    assert_eq!(lane.reported, [Condition::Serving]);
    assert_eq!(node.described().await, Some(Condition::Serving));
    assert!(lane.ask("k", merge(1)).await.is_ok());

    node.disk.set_failing_syncs(true);
    let refused = lane.ask("k", merge(2)).await;
    assert!(matches!(refused, Err(ReplicaError::Broken(_))), "{refused:?}");
    let failed = lane.reports(2).await[1].clone();
    assert!(failed.is_failed() && failed.reason().contains("Input/output error"), "{failed:?}");
    assert_eq!(node.described().await, Some(failed.clone()));
    for service in ["", "witan.v1.StorageNodeService"] {
        node.becomes(service, ServingStatus::NotServing).await;
    }

    node.disk.set_failing_syncs(false);
    assert!(lane.ask("k", merge(3)).await.is_err(), "it stays failed until the node is started again");
    assert_eq!(lane.reported.len(), 2);
    assert!(plain.ask("other", merge(1)).await.is_err());
    assert_eq!(plain.reported, [Condition::Serving], "a coordinator that does not ask for it gets no state frame");
    assert_eq!(Lane::open(&node, &[]).await.reported, [failed], "but every welcome has it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_not_on_record_refuses_coordinators_that_may_count_it() {
    let node = run().await;
    let (mut new, mut old) = (Lane::open(&node, &[capability::STANDING]).await, Lane::open(&node, &[]).await);
    assert!(new.on_record && old.ask("k", merge(1)).await.is_ok(), "nobody has said otherwise");
    new.tell(false).await;
    assert!(new.ask("k", merge(2)).await.is_ok(), "this coordinator knows what it may be used for");
    assert_eq!(old.ask("k", merge(3)).await, Err(ReplicaError::StaleEpoch));
    assert_eq!(old.ask("k", Ask::Read).await, Err(ReplicaError::StaleEpoch));
    assert!(!Lane::open(&node, &[]).await.on_record, "every coordinator learns it");
    new.tell(true).await;
    assert!(new.ask("k", merge(4)).await.is_ok() && old.ask("k", merge(5)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_not_on_record_drops_nothing_for_a_placement_change() {
    let node = run().await;
    let mut lane = Lane::open(&node, &[capability::STANDING]).await;
    assert!(lane.ask("k", merge(1)).await.is_ok());
    let mut client = StorageNodeServiceClient::new(node.channel.clone());
    let enter = ClearRangeRequest {
        tenant_id: "t".to_owned(),
        epoch: 7,
        purpose: ClearPurpose::Enter.into(),
        ranges: vec![0, u64::MAX],
        ..ClearRangeRequest::default()
    };
    // An answer on the lane shows that the node has taken what came before the question.
    for (on_record, epoch) in [(false, 7), (true, 8)] {
        lane.tell(on_record).await;
        assert!(matches!(lane.ask("k", Ask::Read).await, Ok(Answer::Record(Some(_)))), "nothing was dropped");
        for purpose in [ClearPurpose::Leave, ClearPurpose::Enter] {
            let request = ClearRangeRequest { epoch, purpose: purpose.into(), ..enter.clone() };
            let answer = client.clear_range(request).await;
            match answer {
                Ok(answer) => assert!(on_record && answer.into_inner().done),
                Err(refused) => {
                    assert!(!on_record && refused.code() == Code::FailedPrecondition, "{refused}");
                    assert!(refused.message().contains("not the one on record"), "{refused}");
                }
            }
        }
    }
    assert_eq!(lane.ask("k", Ask::Read).await, Err(ReplicaError::StaleEpoch), "by now it is fenced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lane_does_not_take_is_refused_before_it_is_done() {
    let node = run().await;
    let (mut small, mut any) = (Lane::for_answers_of(1000, &node, &[]).await, Lane::open(&node, &[]).await);
    let put = |id: u8, bytes: usize| {
        let value = Some(Bytes::from(vec![id; bytes]));
        let (write_id, seen) = (WriteId([id; 16]), VersionVector::default());
        let (started, ids) = (u64::from(id), Vec::new());
        Ask::Put(Arc::new(Write { write_id, started, again: false, asked: false, seen, ids, newest: 0, value }))
    };
    assert!(small.ask("k", put(1, 100)).await.is_ok());
    assert_eq!(
        small.ask("k", put(2, 1000)).await,
        Err(ReplicaError::Large),
        "it would be answered with the whole record"
    );
    let Ok(Answer::Record(Some(stored))) = small.ask("k", Ask::Read).await else { panic!("it is small") };
    let Ok(Record::Siblings(siblings)) = stored.decode() else { panic!("a record of siblings") };
    assert_eq!(siblings.versions.len(), 1, "the second one was not stored");

    assert!(any.ask("k", put(2, 1000)).await.is_ok());
    let names = Ask::Names { write_id: WriteId([3; 16]), started: 1 };
    for ask in [Ask::Read, put(4, 1), names] {
        assert_eq!(small.ask("k", ask.clone()).await, Err(ReplicaError::Large), "{ask:?}");
        assert!(any.ask("k", ask).await.is_ok());
    }
    let Ok(Answer::Record(Some(large))) = any.ask("k", Ask::Read).await else { panic!("it is stored") };
    assert!(small.ask("k", Ask::Merge { record: large }).await.is_ok(), "a merge is answered with no record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_read_is_reported() {
    let node = run().await;
    let mut lane = Lane::open(&node, &[STORE_STATE]).await;
    node.disk.set_failing_reads(true);
    assert!(matches!(lane.ask("k", Ask::Read).await, Err(ReplicaError::Broken(_))));
    assert!(lane.reports(2).await[1].is_failed());
    node.becomes("", ServingStatus::NotServing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_reported_and_so_is_room() {
    let node = run().await;
    let mut lane = Lane::open(&node, &[STORE_STATE]).await;
    node.disk.set_full(true);
    assert_eq!(lane.ask("k", merge(1)).await, Err(ReplicaError::StorageFull));
    assert_eq!(lane.reports(2).await[1], Condition::Full);
    // It serves reads.
    node.becomes("", ServingStatus::Serving).await;
    assert_eq!(node.described().await, Some(Condition::Full));
    node.disk.set_full(false);
    assert_eq!(node.described().await, Some(Condition::Serving), "noticed although nobody writes");
    assert_eq!(lane.reports(3).await[2], Condition::Serving);
}
