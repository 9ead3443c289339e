//! A lane: one stream to one node. Its task connects, sends queued requests, matches answers to them, and reconnects.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use witan_kernel::age::NodeClock;
use witan_kernel::backoff::{self, Backoff};
use witan_kernel::capability;
use witan_kernel::condition::Condition;
use witan_kernel::fault::Fault;
use witan_kernel::limit::SMALL_BYTES;
use witan_kernel::name::StoreId;
use witan_kernel::port::{Clock, StorageNode};
use witan_kernel::replica::{Ask, Outcome, ReplicaError, Request};
use witan_kernel::scan::Trust;
use witan_kernel::weight::Weights;
use witan_wire::COMMITS;
use witan_wire::condition::{STORE_STATE, condition_from_wire};
use witan_wire::frame::{
    BATCH_ITEMS, FRAME_MESSAGE_BYTES, Joiner, PIECE_BYTES, VERSIONS, open_answers, seal_requests_sent,
};
use witan_wire::replica::{answer_from_wire, request_to_wire};
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::{ExchangeRequest, ExchangeResponse, Hello, ReplicaRequest, StoreStanding};

use super::connect::{Connect, reason};
use super::pending::{Pending, Table};
use super::queue::{Outgoing, Receiver, Refused, Sender, queue};
use super::vitals::{Latencies, Vitals};
use super::{admit, fills, weight};

/// Most requests that a node has not answered yet: what it cannot work on anyway waits here, where tenants have their turns, and not
/// there, where all stand in one line. More than a connection of 20 ms takes for 50,000 requests a second.
const UNANSWERED: usize = 1024;
/// Largest span of the table of unanswered requests, from the oldest id to the newest.
const SPAN: usize = 32_768;
/// Most frames that were handed to the stream and are not sent yet.
const FRAMES: usize = 4;
/// A connected node counts as silent when its oldest unanswered request is older than this and than four times its p99 latency.
const SILENCE_MICROS: u64 = 250_000;
/// Interval at which latencies are published, and deadlines and silence checked.
const TICK: Duration = Duration::from_millis(100);
/// How long a node may take for the connection and the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// The first pause between attempts to connect, and the longest.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// What a coordinator names in its hello.
const CAPABILITIES: [&str; 5] =
    [STORE_STATE, capability::NAMES, capability::STANDING, capability::FENCES, capability::AGES];

/// The sending end of a lane. The lane closes when it is dropped.
#[derive(Debug)]
pub(super) struct Lane {
    queue: Sender,
    vitals: Arc<Vitals>,
    node: StorageNode,
}

/// What a lane's task needs to connect and to report.
pub(super) struct Ends<C: Clock, N: Connect> {
    pub(super) node: StorageNode,
    pub(super) coordinator_id: String,
    pub(super) clock: C,
    pub(super) connect: N,
    pub(super) vitals: Arc<Vitals>,
    /// Of tenants, by which their requests have turns.
    pub(super) weights: Arc<ArcSwap<Weights>>,
    /// The lane for large values. The lane that has one is for small values, and reports the node's connection state and latency.
    pub(super) bulk: Option<Arc<Lane>>,
}

/// Opens a lane.
pub(super) fn open<C: Clock, N: Connect>(ends: Ends<C, N>) -> Lane {
    let (queue, waiting) = queue(Arc::clone(&ends.weights));
    let lane = Lane { queue, vitals: Arc::clone(&ends.vitals), node: ends.node.clone() };
    tokio::spawn(run(ends, waiting));
    lane
}

impl Lane {
    /// Queues a request, or answers it with the reason why it cannot be queued.
    pub(super) fn send(&self, outgoing: Outgoing) {
        let refuse = |refused: Outgoing, error| refused.reply.answer(Err(error));
        if !self.vitals.is_connected() {
            return refuse(outgoing, ReplicaError::NotSent(self.node.id.clone()));
        }
        let (refused, why) = self.queue.send(outgoing);
        for outgoing in refused {
            refuse(
                outgoing,
                match why {
                    Refused::Full => ReplicaError::Overloaded,
                    Refused::Closed => ReplicaError::NotSent(self.node.id.clone()),
                },
            );
        }
    }
}

async fn run<C: Clock, N: Connect>(ends: Ends<C, N>, mut waiting: Receiver) {
    let seed = backoff::seed(&[ends.coordinator_id.as_bytes(), ends.node.id.as_str().as_bytes()]);
    let mut backoff = Backoff::new(RETRY[0], RETRY[1], seed);
    let mut logged = LoggedReasons::default();
    loop {
        match ends.shake_hands().await {
            Ok(stream) => {
                let ended = match Session::new(&ends, stream) {
                    Some(mut session) => {
                        backoff.succeeded();
                        logged = LoggedReasons::default();
                        session.run(&mut waiting).await
                    }
                    None => Ended::Broken("the other connection is still that of the node's earlier store".to_owned()),
                };
                ends.disconnected();
                match ended {
                    Ended::Closed => return,
                    Ended::Broken(reason) if !ends.speaks_for_node() => {
                        tracing::debug!(node = %ends.node.id, %reason, "the connection for large values broke");
                    }
                    Ended::Broken(reason) => {
                        tracing::warn!(node = %ends.node.id, %reason, "the connection to a storage node broke");
                    }
                }
            }
            Err(reason) => {
                ends.disconnected();
                if ends.speaks_for_node() && logged.is_new(&reason) {
                    tracing::warn!(node = %ends.node.id, %reason, "a storage node cannot be reached; retrying");
                }
            }
        }
        if !refuse_for(backoff.failed(), &ends.node, &mut waiting).await {
            return;
        }
    }
}

/// Reasons why a node could not be reached that were logged recently. A refused certificate or secret must be logged, because
/// somebody has to act, but not with every attempt.
#[derive(Default)]
struct LoggedReasons {
    reasons: Vec<String>,
    since: Option<Instant>,
}

/// How long a reason is not logged again.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// Most reasons that are logged within that time.
const REASONS: usize = 8;

impl LoggedReasons {
    fn is_new(&mut self, reason: &str) -> bool {
        if self.since.is_none_or(|since| since.elapsed() >= LOG_AGAIN) {
            self.reasons.clear();
            self.since = Some(Instant::now());
        }
        let is_new = self.reasons.len() < REASONS && !self.reasons.iter().any(|logged| logged == reason);
        if is_new {
            self.reasons.push(reason.to_owned());
        }
        is_new
    }
}

/// Refuses requests for as long as `pause` while there is no connection. False if the lane was closed.
async fn refuse_for(pause: Duration, node: &StorageNode, waiting: &mut Receiver) -> bool {
    let until = Instant::now() + pause;
    while let Ok(outgoing) = tokio::time::timeout_at(until, waiting.recv()).await {
        let Some(outgoing) = outgoing else { return false };
        outgoing.reply.answer(Err(ReplicaError::NotSent(node.id.clone())));
    }
    true
}

/// A stream after its handshake.
struct Stream {
    outbound: mpsc::Sender<ExchangeRequest>,
    inbound: Streaming<ExchangeResponse>,
    store: StoreId,
    commit: u64,
    /// What the store may be used for; decided by the lane that speaks for the node.
    trust: Trust,
    condition: Option<Condition>,
    capabilities: Vec<String>,
    /// Whether the store is on record, as far as the node knows from any coordinator.
    told: bool,
    /// What the node has shown of its clock.
    clock: NodeClock,
}

impl<C: Clock, N: Connect> Ends<C, N> {
    fn speaks_for_node(&self) -> bool {
        self.bulk.is_some()
    }

    async fn shake_hands(&self) -> Result<Stream, String> {
        // A node may accept the connection and never answer.
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.try_shake_hands());
        handshake.await.map_err(|_| "no handshake in time".to_owned())?
    }

    async fn try_shake_hands(&self) -> Result<Stream, String> {
        // Read before the node is asked: what it shows cannot be less, unless its store was set back.
        let before = self.vitals.commits_known();
        let link = self.connect.connect(&self.node).await.map_err(|error| error.to_string())?;
        let mut client = StorageNodeServiceClient::new(link)
            .max_decoding_message_size(FRAME_MESSAGE_BYTES)
            .max_encoding_message_size(FRAME_MESSAGE_BYTES);
        let (outbound, frames) = mpsc::channel(FRAMES);
        let hello = Hello {
            versions: VERSIONS.to_vec(),
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            coordinator_id: self.coordinator_id.clone(),
            node_id: self.node.id.as_str().to_owned(),
            largest_answer: if self.bulk.is_some() { SMALL_BYTES as u32 } else { 0 },
        };
        let first = ExchangeRequest { hello: Some(hello), ..ExchangeRequest::default() };
        outbound.send(first).await.map_err(|_| "the stream closed at once".to_owned())?;
        let response = client.exchange(ReceiverStream::new(frames)).await.map_err(|status| reason(&status))?;
        let mut inbound = response.into_inner();
        let answer = inbound.message().await.map_err(|status| reason(&status))?;
        let (arrived, mut clock) = (self.clock.monotonic_micros(), NodeClock::default());
        let welcome = answer.and_then(|answer| answer.welcome).ok_or("the node did not answer the handshake")?;
        if !VERSIONS.contains(&welcome.version) {
            return Err(format!("the node speaks version {} of the protocol", welcome.version));
        }
        let store = StoreId::from_slice(&welcome.store_id).ok_or("the node reported no store id")?;
        let commit = welcome.capabilities.iter().any(|named| named == COMMITS).then_some(welcome.commit);
        let trust = if self.speaks_for_node() { self.meet(store, commit, before).await? } else { Trust::Unadmitted };
        self.vitals.fenced(welcome.fence);
        clock.shown(welcome.monotonic_micros, arrived);
        self.vitals.opened(welcome.unsynced_boot);
        let condition = condition_from_wire(welcome.store_state);
        let (capabilities, commit) = (welcome.capabilities, commit.unwrap_or(0));
        let told = !welcome.not_on_record;
        Ok(Stream { outbound, inbound, store, commit, trust, condition, capabilities, told, clock })
    }

    /// Decides what the store may be used for that the node has reported. `commit`: its commit number, if the node knows such.
    /// `known`: the store that it had before, and the commit number that was known of that.
    async fn meet(&self, store: StoreId, commit: Option<u64>, known: Option<(StoreId, u64)>) -> Result<Trust, String> {
        let commit = commit.unwrap_or(u64::MAX);
        let before = known.filter(|(known, _)| *known == store).map_or(0, |(_, commit)| commit);
        let met = self.connect.meet(&self.node.id, store, commit, before).await;
        let met =
            met.map_err(|error| format!("the node's store cannot be compared with the one on record: {error}"))?;
        if met.is_suspect(commit) {
            // Another coordinator may have recorded a later commit since the node answered. The next answer decides.
            self.vitals.expects(store, met.commit);
            return Err("the node's store shows an earlier commit than is on record; asking it again".to_owned());
        }
        Ok(met.trust)
    }

    /// The node has reported the condition of its store.
    fn reported(&self, condition: Option<Condition>) {
        let shown = condition.clone();
        if self.vitals.set_condition(condition) {
            match shown {
                Some(Condition::Failed(reason)) => {
                    tracing::error!(node = %self.node.id, %reason, "the node's store has failed: check \
                    its disk, then restart the node; until then it is asked last")
                }
                Some(Condition::Full) => tracing::warn!(node = %self.node.id, "the node's disk is full"),
                Some(Condition::Serving) | None => {}
            }
        }
    }

    fn disconnected(&self) {
        if self.speaks_for_node() {
            self.vitals.disconnected();
        }
    }
}

/// The request, if its answer may be large: then it is sent again over the lane for large values.
fn may_be_large(request: &Request) -> Option<Request> {
    match request.ask {
        Ask::Read | Ask::Put(_) | Ask::Names { .. } => Some(request.clone()),
        Ask::Stamp { .. } | Ask::Merge { .. } | Ask::Unpin { .. } | Ask::Collect { .. } => None,
    }
}

/// Why a session ended.
enum Ended {
    /// The lane was closed.
    Closed,
    /// The connection broke, for this reason.
    Broken(String),
}

/// The exchange of requests and answers over one stream.
struct Session<'a, C: Clock, N: Connect> {
    ends: &'a Ends<C, N>,
    /// The number of the store that it is connected to: [`Use::store`](super::vitals::Use::store).
    store: u32,
    outbound: mpsc::Sender<ExchangeRequest>,
    inbound: Streaming<ExchangeResponse>,
    table: Table,
    joiner: Joiner,
    latencies: Latencies,
    batch: Vec<Outgoing>,
    ticks: u32,
    p99_us: u64,
    /// The largest number of requests in flight since the last tick.
    peak: usize,
    /// Whether its store is on record, as far as the node knows; `None` if this lane does not inform it.
    told: Option<bool>,
    /// What is known of the node's clock; `None`: it does not show it.
    clock: Option<NodeClock>,
}

impl<C: Clock, N: Connect> Drop for Session<'_, C, N> {
    fn drop(&mut self) {
        if Fault::LostCalledUnsent.is_on() {
            self.table.call_unsent();
        }
        if self.ends.speaks_for_node() {
            self.ends.vitals.set_in_flight(0);
            self.ends.vitals.set_in_flight_peak(0);
        }
    }
}

impl<'a, C: Clock, N: Connect> Session<'a, C, N> {
    /// A session with the node's present store. `None` for a lane that does not speak for its node, and has found another store than
    /// the lane that does.
    fn new(ends: &'a Ends<C, N>, stream: Stream) -> Option<Self> {
        let uses = if ends.speaks_for_node() {
            ends.reported(stream.condition);
            ends.vitals.set_capabilities(&stream.capabilities);
            let uses = ends.vitals.connected(stream.store, stream.commit, stream.trust);
            tracing::info!(node = %ends.node.id, "connected to a storage node");
            if stream.trust != Trust::Whole {
                admit::log(&ends.node.id, stream.trust);
            }
            uses
        } else {
            ends.vitals.uses_of(stream.store)?
        };
        let names = |capability| stream.capabilities.iter().any(|named| named == capability);
        let tells = ends.speaks_for_node() && names(capability::STANDING);
        let clock = Some(stream.clock).filter(|_| names(capability::AGES));
        let mut session = Self {
            store: uses.store,
            ends,
            outbound: stream.outbound,
            inbound: stream.inbound,
            table: Table::default(),
            joiner: Joiner::new(),
            latencies: Latencies::default(),
            batch: Vec::with_capacity(BATCH_ITEMS),
            ticks: 0,
            p99_us: 0,
            peak: 0,
            told: tells.then_some(stream.told),
            clock,
        };
        session.tell_standing();
        Some(session)
    }

    /// Informs the node whether its store is on record, if it does not know.
    fn tell_standing(&mut self) {
        let uses = self.ends.vitals.uses();
        let Some(told) = self.told.as_mut().filter(|_| uses.store == self.store) else { return };
        let on_record = uses.trust == Trust::Whole;
        if *told != on_record {
            let message = ExchangeRequest { standing: Some(StoreStanding { on_record }), ..ExchangeRequest::default() };
            // If the stream has no room now, it is tried again at the next tick.
            if self.outbound.try_send(message).is_ok() {
                *told = on_record;
            }
        }
    }

    /// Asks the node for its clock, if it has not shown it for long.
    fn ask_clock(&mut self, now: u64) {
        if self.clock.as_mut().is_some_and(|clock| clock.asks(now)) {
            // If the stream has no room now, frames are on their way, whose answers show the clock.
            let _ = self.outbound.try_send(ExchangeRequest { clock: true, ..ExchangeRequest::default() });
        }
    }

    async fn run(&mut self, waiting: &mut Receiver) -> Ended {
        let outbound = self.outbound.clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut frames = std::collections::VecDeque::new();
        loop {
            let room = UNANSWERED.saturating_sub(self.table.len()).min(BATCH_ITEMS);
            tokio::select! {
                biased;
                answer = self.inbound.message() => match answer {
                    Ok(Some(answer)) => if let Err(reason) = self.answered(answer) { return Ended::Broken(reason) },
                    Ok(None) => return Ended::Broken("the node closed the stream".to_owned()),
                    Err(status) => return Ended::Broken(status.to_string()),
                },
                permit = outbound.reserve(), if !frames.is_empty() => match permit {
                    Ok(permit) => if let Some(frame) = frames.pop_front() {
                        permit.send(ExchangeRequest { frame: Some(frame), ..ExchangeRequest::default() });
                    },
                    Err(_) => return Ended::Broken("the stream closed".to_owned()),
                },
                received = waiting.recv_many(&mut self.batch, room), if frames.is_empty() && room > 0 => {
                    if received == 0 {
                        return Ended::Closed;
                    }
                    self.seal(&mut frames);
                }
                _ = tick.tick() => self.tick(),
            }
        }
    }

    /// Encodes queued requests into frames. Requests whose deadline has passed, and those for which the table has no room, are
    /// refused here.
    fn seal(&mut self, frames: &mut std::collections::VecDeque<witan_wire::v1::Frame>) {
        let now = self.ends.clock.monotonic_micros();
        // A node refuses what was sent when its clock was not known, and shows its clock with that.
        let sent_at = self.clock.and_then(|clock| clock.least(now)).map_or(0, |least| least.max(1));
        let mut sealed = Vec::with_capacity(self.batch.len());
        let mut size = 0;
        for outgoing in std::mem::take(&mut self.batch) {
            if !self.ends.vitals.uses().permits(fills(&outgoing.request)) {
                outgoing.reply.answer(Err(ReplicaError::Incomplete(self.ends.node.id.clone())));
                continue;
            }
            if outgoing.deadline <= now {
                outgoing.reply.answer(Err(ReplicaError::NotSent(self.ends.node.id.clone())));
                continue;
            }
            if self.table.span() >= SPAN {
                outgoing.reply.answer(Err(ReplicaError::Overloaded));
                continue;
            }
            let left_ms = ((outgoing.deadline - now) / 1000).clamp(1, u64::from(u32::MAX)) as u32;
            let Outgoing { request, deadline, reply, traced, bytes } = outgoing;
            let is_traced = traced.is_some();
            let again = self.ends.bulk.as_ref().and_then(|_| may_be_large(&request));
            let id = self.table.enter(Pending { reply, sent: now, deadline, traced, again });
            sealed.push(ReplicaRequest { traced: is_traced, ..request_to_wire(id, request, left_ms) });
            size += bytes;
            if size >= PIECE_BYTES {
                frames.extend(seal_requests_sent(std::mem::take(&mut sealed), sent_at));
                size = 0;
            }
        }
        if !sealed.is_empty() {
            frames.extend(seal_requests_sent(sealed, sent_at));
        }
        self.count();
    }

    fn answered(&mut self, answer: ExchangeResponse) -> Result<(), String> {
        if let Some(condition) = condition_from_wire(answer.state).filter(|_| self.ends.speaks_for_node()) {
            self.ends.reported(Some(condition));
        }
        let now = self.ends.clock.monotonic_micros();
        if let Some(clock) = self.clock.as_mut().filter(|_| answer.monotonic_micros > 0) {
            clock.shown(answer.monotonic_micros, now);
        }
        let Some(frame) = answer.frame else { return Ok(()) };
        let Some(batch) = self.joiner.push(frame).map_err(|error| error.to_string())? else { return Ok(()) };
        if self.ends.speaks_for_node() {
            self.ends.vitals.committed(answer.commit);
        }
        for answer in open_answers(batch).map_err(|error| error.to_string())? {
            let took_us = answer.took_us;
            let (id, outcome) = answer_from_wire(answer).map_err(|error| error.to_string())?;
            // An unknown id belongs to a request that has expired.
            if let Some(mut pending) = self.table.take(id) {
                if outcome == Err(ReplicaError::Large)
                    && let (Some(bulk), Some(request)) = (&self.ends.bulk, pending.again.take())
                {
                    let Pending { reply, deadline, traced, .. } = pending;
                    bulk.send(Outgoing { bytes: weight(&request), request, deadline, reply, traced });
                    continue;
                }
                self.latencies.record(now.saturating_sub(pending.sent));
                if let Some(traced) = pending.traced.filter(|_| took_us > 0) {
                    traced.record("storage node", Duration::from_micros(took_us.into()), self.ends.node.id.as_str());
                }
                if outcome.is_err() && Fault::ReplyForgotten.is_on() {
                    std::mem::forget(pending.reply);
                    continue;
                }
                pending.reply.answer(self.counted(outcome));
            }
        }
        if self.ends.speaks_for_node() {
            self.ends.vitals.set_silent(false);
        }
        self.count();
        Ok(())
    }

    /// What an answer comes to: nothing that a store acknowledges counts while it is being filled, or once it may not be used.
    fn counted(&self, outcome: Outcome) -> Outcome {
        let uses = self.ends.vitals.uses();
        let node = || self.ends.node.id.clone();
        match uses.trust {
            Trust::Whole if uses.store == self.store => outcome,
            Trust::Filling if Fault::FillingStoreCounted.is_on() => outcome,
            Trust::Unadmitted if Fault::UnadmittedStoreCounted.is_on() => outcome,
            Trust::Filling if uses.store == self.store => outcome.and_then(|_| Err(ReplicaError::Filling(node()))),
            // It was used when the request was sent, so the request may have been carried out.
            _ => outcome.and_then(|_| Err(ReplicaError::Lost(node()))),
        }
    }

    fn tick(&mut self) {
        let now = self.ends.clock.monotonic_micros();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(10) {
            self.table.expire(now);
            self.count();
        }
        self.ask_clock(now);
        if !self.ends.speaks_for_node() {
            return;
        }
        self.tell_standing();
        if let Some((p50, p99)) = self.latencies.publish() {
            self.ends.vitals.set_latency(p50, p99);
            self.ends.vitals.usual.note(now, p99);
            self.p99_us = u64::from(p99);
        }
        self.ends.vitals.set_in_flight_peak(std::mem::replace(&mut self.peak, self.table.len()));
        let unanswered_for = self.table.oldest().map_or(0, |sent| now.saturating_sub(sent));
        if unanswered_for > SILENCE_MICROS.max(4 * self.p99_us) {
            self.ends.vitals.set_silent(true);
        }
    }

    fn count(&mut self) {
        self.peak = self.peak.max(self.table.len());
        if self.ends.speaks_for_node() {
            self.ends.vitals.set_in_flight(self.table.len());
        }
    }
}
