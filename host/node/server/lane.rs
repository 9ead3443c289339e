//! The node's end of a lane: batches of requests arrive, and batches of answers leave as soon as they are ready.
//!
//! One task reads frames and submits the requests of each batch; the response stream collects the answers that shards have
//! delivered into frames. Requests in flight are bounded by permits, which the stream returns as answers leave.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tonic::{Status, Streaming};
use witan_kernel::condition::Condition;
use witan_kernel::fault::Fault;
use witan_kernel::name::NodeId;
use witan_kernel::replica::{Answer, Outcome, ReplicaError};
use witan_kernel::siblings::Name;
use witan_kernel::sync::lock;
use witan_kernel::{age, capability};
use witan_wire::condition::{STORE_STATE, condition_to_wire};
use witan_wire::frame::{self, BATCH_ITEMS, Joiner, PIECE_BYTES, VERSIONS};
use witan_wire::replica::{Arrived, answer_to_wire, malformed_to_wire};
use witan_wire::v1::{ExchangeRequest, ExchangeResponse, Frame, Hello, ReplicaAnswer, ReplicaRequest, Welcome};

use super::{CAPABILITIES, Storage};
use crate::batch::{Answers, Deliver, Durability, Item};
use crate::driver::{Driver, Time};
use crate::store::Store;

/// How long a coordinator may take to send its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Approximate size of an answer on the wire without its record, in bytes.
const ANSWER_BYTES: usize = 16;

/// Events from the reading half, and from the shards, to the answering half.
enum Event {
    Welcome(Welcome),
    /// The store's condition has changed.
    State(Condition),
    /// The coordinator asks for the node's clock.
    Clock,
    Answers(Answers),
    Malformed(Vec<ReplicaAnswer>),
    End(Status),
}

/// Passes answers that shards deliver on to the lane's stream.
struct Out {
    events: mpsc::UnboundedSender<Event>,
    unsent: Arc<Unsent>,
}

/// What waits to be sent: the bytes of answers.
#[derive(Default)]
struct Unsent {
    bytes: AtomicUsize,
    sent: Notify,
    /// The node's clock, too. Asked for again before it is sent, it is sent once.
    clock: AtomicBool,
}

impl Unsent {
    async fn below(&self, limit: usize) {
        loop {
            let sent = self.sent.notified();
            if self.bytes.load(Ordering::Acquire) < limit {
                return;
            }
            sent.await;
        }
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.sent.notify_one();
    }
}

/// Arrival times of the requests of traced operations, of which there are few, and never more than may be in flight.
#[derive(Default)]
struct Timings {
    count: AtomicUsize,
    /// Ids and arrival times in monotonic microseconds.
    arrived: Mutex<Vec<(u64, u64)>>,
}

impl Timings {
    fn begin(&self, id: u64, now: u64) {
        lock(&self.arrived).push((id, now));
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Microseconds since the request arrived, at least 1; 0 if it is not traced.
    fn end(&self, id: u64, clock: &dyn Time) -> u32 {
        if self.count.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let mut arrived = lock(&self.arrived);
        let Some(at) = arrived.iter().position(|(timed, _)| *timed == id) else { return 0 };
        let (_, since) = arrived.swap_remove(at);
        self.count.fetch_sub(1, Ordering::AcqRel);
        u32::try_from(clock.monotonic().saturating_sub(since)).unwrap_or(u32::MAX).max(1)
    }
}

fn size(outcome: &Outcome) -> usize {
    let content = match outcome {
        Ok(Answer::Put { record, .. } | Answer::Record(Some(record))) => record.0.len(),
        Ok(Answer::Merged { told, .. }) => told.len() * size_of::<Name>(),
        Ok(Answer::Stamp { .. } | Answer::Record(None) | Answer::Collected { .. }) | Err(_) => 0,
    };
    content + ANSWER_BYTES
}

impl Deliver for Out {
    fn deliver(&self, answers: Answers) {
        let bytes = answers.iter().map(|(_, outcome)| size(outcome)).sum();
        self.unsent.bytes.fetch_add(bytes, Ordering::AcqRel);
        // An error means that the lane has ended, and nobody waits for its answers.
        let _ = self.events.send(Event::Answers(answers));
    }
}

/// Starts a lane on a stream of requests, and returns the stream of answers.
pub(super) fn start(inbound: Streaming<ExchangeRequest>, storage: &Storage) -> Answering {
    // The number of answers in this channel is bounded by the permits.
    let (events, received) = mpsc::unbounded_channel();
    let unsent = Arc::new(Unsent::default());
    let most = storage.limits.lane_requests.max(BATCH_ITEMS);
    let permits = Arc::new(Semaphore::new(most));
    let timings = Arc::new(Timings::default());
    let reading = Reading {
        inbound,
        joiner: Joiner::new(),
        node: storage.node.clone(),
        driver: storage.driver.clone(),
        clock: storage.clock.clone(),
        permits: permits.clone(),
        answer_bytes: storage.limits.lane_answer_bytes,
        stopped: storage.stopped.clone(),
        out: Arc::new(Out { events, unsent: unsent.clone() }),
        timings: timings.clone(),
        changes: None,
        largest_answer: usize::MAX,
        counts_any: true,
        is_aged: false,
    };
    tokio::spawn(reading.run());
    let clock = storage.clock.clone();
    Answering {
        received,
        waiting: VecDeque::new(),
        frames: VecDeque::new(),
        end: None,
        ended: false,
        permits,
        unsent,
        timings,
        clock,
        store: storage.driver.store().clone(),
    }
}

/// The half of a lane that reads.
struct Reading {
    inbound: Streaming<ExchangeRequest>,
    joiner: Joiner,
    node: NodeId,
    driver: Arc<dyn Driver>,
    clock: Arc<dyn Time>,
    permits: Arc<Semaphore>,
    answer_bytes: usize,
    stopped: watch::Receiver<bool>,
    out: Arc<Out>,
    timings: Arc<Timings>,
    /// Notified when the store's condition changes, for a coordinator that is sent its changes.
    changes: Option<Arc<Notify>>,
    /// Most bytes of a record that an answer may carry.
    largest_answer: usize,
    /// The coordinator may count what a store acknowledges that is not on record.
    counts_any: bool,
    /// The coordinator says when it has sent each batch.
    is_aged: bool,
}

/// Waits for the next change, for ever if there is none to wait for.
async fn changed(changes: Option<&Notify>) {
    match changes {
        Some(changes) => changes.notified().await,
        None => std::future::pending().await,
    }
}

impl Reading {
    /// Reads until the coordinator closes the stream, the node stops, or a message is invalid. Requests in flight are still
    /// answered: the stream of answers ends when the last of them has dropped its reference to `out`.
    async fn run(mut self) {
        if let Err(status) = self.read().await {
            let _ = self.out.events.send(Event::End(status));
        }
    }

    async fn read(&mut self) -> Result<(), Status> {
        self.shake_hands().await?;
        while let Some(message) = self.next().await? {
            if let Some(standing) = message.standing {
                self.set_standing(standing.on_record);
                continue;
            }
            if message.clock {
                if !self.out.unsent.clock.swap(true, Ordering::AcqRel) {
                    let _ = self.out.events.send(Event::Clock);
                }
                continue;
            }
            let frame = message.frame.ok_or_else(|| Status::invalid_argument("a message without a frame"))?;
            let joined = self.joiner.push(frame).map_err(damaged)?;
            let Some(batch) = joined else { continue };
            // It counts from here, however long it waits for its turn.
            let arrived = self.clock.monotonic();
            let (requests, sent_at) = frame::open_requests_sent(batch).map_err(damaged)?;
            if !self.admit(requests.len()).await {
                return Ok(());
            }
            self.submit(requests, sent_at, arrived);
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<ExchangeRequest>, Status> {
        loop {
            tokio::select! {
                // In this order, so that a simulation runs the same each time. A change is rare, and must not wait behind requests.
                biased;
                _ = self.stopped.wait_for(|stopped| *stopped) => return Ok(None),
                () = changed(self.changes.as_deref()) => {
                    let _ = self.out.events.send(Event::State(self.driver.store().condition()));
                }
                message = self.inbound.message() => return message,
            }
        }
    }

    async fn shake_hands(&mut self) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(first) = first else { return Ok(()) };
        let hello = first.hello.ok_or_else(|| Status::invalid_argument("the first message must be a hello"))?;
        // From here on: a change after the welcome is not missed.
        let changes = self.driver.store().watch();
        let welcome = welcome(&hello, &self.node, &*self.driver, &*self.clock)?;
        let names = |capability| hello.capabilities.iter().any(|named| named == capability);
        self.changes = names(STORE_STATE).then_some(changes);
        self.counts_any = !names(capability::STANDING);
        self.is_aged = names(capability::AGES);
        let largest = usize::try_from(hello.largest_answer).ok().filter(|bytes| *bytes > 0);
        self.largest_answer = largest.unwrap_or(usize::MAX);
        tracing::debug!(coordinator = hello.coordinator_id, version = welcome.version, "lane opened");
        let _ = self.out.events.send(Event::Welcome(welcome));
        Ok(())
    }

    /// The coordinator says whether this is the node's store on record.
    fn set_standing(&self, on_record: bool) {
        if self.driver.store().set_on_record(on_record) {
            self.driver.spawn(Box::new(|store| store.note_standing()));
        }
    }

    /// Waits until `requests` more requests may be in flight. False if the coordinator has closed the stream.
    async fn admit(&self, requests: usize) -> bool {
        // This cannot fail: a batch has at most `BATCH_ITEMS` requests.
        let Ok(permits) = u32::try_from(requests) else { return false };
        let Ok(permits) = self.permits.acquire_many(permits).await else { return false };
        permits.forget();
        tokio::select! {
            // Checked first: a lane whose coordinator has disconnected accepts nothing.
            biased;
            () = self.out.events.closed() => false,
            () = self.out.unsent.below(self.answer_bytes) => true,
        }
    }

    /// `sent_at`: the least that the node's clock can have shown when the requests were sent; 0: not known. `now`: when they have arrived.
    fn submit(&self, requests: Vec<ReplicaRequest>, sent_at: u64, now: u64) {
        let mut items = Vec::with_capacity(requests.len());
        let mut malformed = Vec::new();
        for request in requests {
            let (id, traced) = (request.id, request.traced);
            match Arrived::try_from(request) {
                Ok(arrived) => {
                    if traced {
                        self.timings.begin(id, now);
                    }
                    items.push(self.item(arrived, sent_at, now));
                }
                Err(error) => malformed.push(malformed_to_wire(id, &error)),
            }
        }
        if !malformed.is_empty() {
            let _ = self.out.events.send(Event::Malformed(malformed));
        }
        if items.is_empty() {
            return;
        }
        if self.counts_any && !self.driver.store().is_on_record() {
            // To a coordinator of before this means that nothing was done.
            self.out.deliver(items.iter().map(|item| (item.tag, Err(ReplicaError::StaleEpoch))).collect());
        } else {
            self.driver.submit(items, self.out.clone());
        }
    }

    fn item(&self, arrived: Arrived, sent_at: u64, now: u64) -> Item {
        let deadline = match sent_at {
            _ if Fault::LateAccepted.is_on() => age::until(None, now, arrived.deadline_ms),
            // What a coordinator sends that knows of ages, but not of this node's clock, may be of any age.
            0 if self.is_aged => 0,
            0 => age::until(None, now, arrived.deadline_ms),
            sent_at => age::until(Some(sent_at), now, arrived.deadline_ms),
        };
        let (largest_answer, is_aged) = (self.largest_answer, self.is_aged);
        self.driver.store().served().count(&arrived.request.ask);
        Item { tag: arrived.id, request: arrived.request, deadline, largest_answer, is_aged }
    }
}

fn damaged(error: frame::Damaged) -> Status {
    Status::data_loss(error.to_string())
}

fn welcome(hello: &Hello, node: &NodeId, driver: &dyn Driver, clock: &dyn Time) -> Result<Welcome, Status> {
    if !hello.node_id.is_empty() && hello.node_id != node.as_str() {
        let message = format!("this is node {node}, not {:?}", hello.node_id);
        return Err(Status::failed_precondition(message));
    }
    let version = VERSIONS.into_iter().filter(|version| hello.versions.contains(version)).max();
    let version = version.ok_or_else(|| {
        let message = format!(
            "no protocol version in common: this node speaks {VERSIONS:?}, the coordinator {:?}",
            hello.versions
        );
        Status::failed_precondition(message)
    })?;
    Ok(Welcome {
        version,
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        node_id: node.to_string(),
        store_id: driver.store().id().0.to_vec().into(),
        commit: driver.store().commit(),
        store_state: Some(condition_to_wire(&driver.store().condition())),
        not_on_record: !driver.store().is_on_record(),
        fence: driver.store().fences().highest(),
        monotonic_micros: shown(clock),
        unsynced_boot: match driver.durability() {
            Durability::Sync => 0,
            Durability::Os => driver.store().boot(),
        },
    })
}

/// The node's clock, as it is shown: never 0, which says that it is not.
fn shown(clock: &dyn Time) -> u64 {
    clock.monotonic().max(1)
}

/// The half of a lane that answers: a stream of frames.
pub(crate) struct Answering {
    received: mpsc::UnboundedReceiver<Event>,
    /// Answers that are not in a frame yet, with the size of each in bytes.
    waiting: VecDeque<(usize, ReplicaAnswer)>,
    /// Frames of the batch that is being sent.
    frames: VecDeque<Frame>,
    /// The status with which the stream ends once all answers are sent.
    end: Option<Status>,
    ended: bool,
    permits: Arc<Semaphore>,
    unsent: Arc<Unsent>,
    timings: Arc<Timings>,
    clock: Arc<dyn Time>,
    store: Arc<Store>,
}

impl Answering {
    /// Takes delivered answers until a frame is full or none are left. Returns a message of another kind if there is one to send.
    fn gather(&mut self, context: &mut Context<'_>) -> Option<ExchangeResponse> {
        while !self.ended && self.waiting.len() < BATCH_ITEMS {
            match self.received.poll_recv(context) {
                Poll::Pending => return None,
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Event::Welcome(welcome))) => {
                    return Some(ExchangeResponse { welcome: Some(welcome), ..ExchangeResponse::default() });
                }
                Poll::Ready(Some(Event::State(condition))) => {
                    let state = Some(condition_to_wire(&condition));
                    return Some(ExchangeResponse { state, ..ExchangeResponse::default() });
                }
                Poll::Ready(Some(Event::Clock)) => {
                    self.unsent.clock.store(false, Ordering::Release);
                    let monotonic_micros = shown(&*self.clock);
                    return Some(ExchangeResponse { monotonic_micros, ..ExchangeResponse::default() });
                }
                Poll::Ready(Some(Event::Malformed(answers))) => {
                    self.waiting.extend(answers.into_iter().map(|answer| (0, answer)));
                }
                Poll::Ready(Some(Event::End(status))) => self.end = Some(status),
                Poll::Ready(Some(Event::Answers(answers))) => {
                    let wire = |(id, outcome)| {
                        let took_us = self.timings.end(id, &*self.clock);
                        (size(&outcome), ReplicaAnswer { took_us, ..answer_to_wire(id, outcome) })
                    };
                    self.waiting.extend(answers.into_iter().map(wire));
                }
            }
        }
        None
    }

    /// Encodes waiting answers into frames, up to the limits of one batch, and returns their permits.
    fn seal(&mut self) {
        let mut bytes = 0;
        let mut answers = Vec::with_capacity(self.waiting.len().min(BATCH_ITEMS));
        while answers.len() < BATCH_ITEMS && bytes < PIECE_BYTES {
            let Some((size, answer)) = self.waiting.pop_front() else { break };
            bytes += size;
            answers.push(answer);
        }
        if !Fault::PermitsKept.is_on() {
            self.permits.add_permits(answers.len());
        }
        self.unsent.release(bytes);
        self.frames.extend(frame::seal_answers(answers));
    }
}

impl Stream for Answering {
    type Item = Result<ExchangeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                // Read after the answers in the frame have become durable.
                let commit = self.store.commit();
                return Poll::Ready(Some(Ok(ExchangeResponse {
                    frame: Some(frame),
                    commit,
                    monotonic_micros: shown(&*self.clock),
                    ..ExchangeResponse::default()
                })));
            }
            if let Some(message) = self.gather(context) {
                return Poll::Ready(Some(Ok(message)));
            }
            if self.waiting.is_empty() {
                return if self.ended { Poll::Ready(self.end.take().map(Err)) } else { Poll::Pending };
            }
            self.seal();
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // The coordinator has disconnected: the reading half must not wait for permits that nobody will return.
        self.permits.close();
    }
}
