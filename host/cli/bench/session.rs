//! The load as sessions: one stream per connection, driven by one task. All requests that are ready are sent in one batch, without a
//! timer: responses that arrive together free slots together, so the next requests are sent together.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use witan_wire::v1::coordinator_service_client::CoordinatorServiceClient;
use witan_wire::v1::session_response::Result as Answer;
use witan_wire::v1::{SessionRequest, SessionRequestBatch, SessionResponse, SessionResponseBatch};

use super::super::client::{self, Link, MESSAGE_BYTES};
use super::load::{Load, Share};
use super::measured::Recorder;
use super::pace::{Next, counts_from};
use super::reason;
use super::unary::Ended;
use super::work::Operation;

/// Most requests in one batch.
const BATCH_ITEMS: usize = 256;
/// Most bytes of values in one batch, roughly: below the usual message limit of 4 MiB. A larger value is sent alone.
const BATCH_BYTES: usize = 1 << 20;
/// Batches of responses read before new requests are sent.
const DRAINED: usize = 16;
/// Time after an operation's deadline for which a response is still awaited.
const GRACE: Duration = Duration::from_secs(2);
/// Time between attempts to reconnect to a server.
const RECONNECT: Duration = Duration::from_millis(100);

/// A connection, and the most operations in flight on it.
pub(super) struct Connection {
    client: CoordinatorServiceClient<Link>,
    slots: u32,
    value_size: usize,
    timeout: Duration,
}

impl Connection {
    /// Opens one.
    pub(super) async fn open(load: &Load, slots: u32) -> anyhow::Result<Self> {
        let channel = client::connect(&load.endpoint, load.timeout, load.tls.clone()).await?;
        let link = Link::new(channel, load.shown.clone());
        let client = CoordinatorServiceClient::new(link).max_decoding_message_size(MESSAGE_BYTES);
        Ok(Self { client, slots, value_size: load.value_size, timeout: load.timeout })
    }
}

/// Does one thread's share. Must run in a `LocalSet`.
pub(super) async fn run(_: &Load, connections: Vec<Connection>, share: Share) -> Recorder {
    let share = Rc::new(RefCell::new(share));
    let mut running = JoinSet::new();
    for connection in connections {
        running.spawn_local(keep(connection, Rc::clone(&share)));
    }
    running.join_all().await;
    match Rc::try_unwrap(share) {
        Ok(share) => share.into_inner().recorder,
        Err(_) => unreachable!("every task that shared it has ended"),
    }
}

/// Keeps one session busy until the end, reopening it when it breaks.
async fn keep(mut connection: Connection, share: Rc<RefCell<Share>>) {
    loop {
        let (requests, sent) = mpsc::channel(connection.slots.max(1) as usize);
        let opened = connection.client.session(ReceiverStream::new(sent)).await;
        let ended = match opened {
            Ok(answers) => Session::new(&connection, &share, requests).drive(answers.into_inner()).await,
            Err(_) => share.borrow_mut().miss(),
        };
        if ended == Ended::Done {
            return;
        }
        time::sleep(RECONNECT).await;
    }
}

/// An operation in flight.
#[derive(Debug, Clone, Copy)]
struct Flying {
    operation: Operation,
    from: Instant,
}

/// One stream.
struct Session<'a> {
    share: &'a RefCell<Share>,
    requests: mpsc::Sender<SessionRequestBatch>,
    /// By id.
    flying: Vec<Option<Flying>>,
    free: Vec<u32>,
    /// The next operation, claimed but not due yet.
    held: Option<Instant>,
    done: bool,
    batch_items: usize,
    timeout_ms: u32,
    patience: Duration,
}

impl<'a> Session<'a> {
    fn new(connection: &Connection, share: &'a RefCell<Share>, requests: mpsc::Sender<SessionRequestBatch>) -> Self {
        Self {
            share,
            requests,
            flying: vec![None; connection.slots as usize],
            free: (0..connection.slots).rev().collect(),
            held: None,
            done: false,
            batch_items: (BATCH_BYTES / connection.value_size.max(1)).clamp(1, BATCH_ITEMS),
            timeout_ms: u32::try_from(connection.timeout.as_millis()).unwrap_or(u32::MAX),
            patience: connection.timeout + GRACE,
        }
    }

    async fn drive(mut self, mut answers: Streaming<SessionResponseBatch>) -> Ended {
        // True when the timer of an open loop fired last: then nothing else has delayed the operations that are due.
        let mut idle = false;
        loop {
            if !self.issue(idle) {
                return self.broken("SESSION_ENDED");
            }
            if self.done && self.free.len() == self.flying.len() {
                return Ended::Done;
            }
            let due = self.held.filter(|_| !self.free.is_empty());
            tokio::select! {
                answered = time::timeout(self.patience, answers.next()), if self.free.len() < self.flying.len() => {
                    idle = false;
                    match answered {
                        Ok(Some(Ok(batch))) => self.take(batch),
                        Ok(Some(Err(status))) => return self.broken(&reason::of_status(&status)),
                        Ok(None) => return self.broken("SESSION_ENDED"),
                        Err(_) => return self.broken("NO_ANSWER"),
                    }
                    if let Some(ended) = self.drain(&mut answers) {
                        return ended;
                    }
                }
                () = time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => idle = true,
            }
        }
    }

    /// Reads the responses that have already arrived.
    fn drain(&mut self, answers: &mut Streaming<SessionResponseBatch>) -> Option<Ended> {
        for _ in 0..DRAINED {
            match answers.next().now_or_never() {
                None => return None,
                Some(Some(Ok(batch))) => self.take(batch),
                Some(Some(Err(status))) => return Some(self.broken(&reason::of_status(&status))),
                Some(None) => return Some(self.broken("SESSION_ENDED")),
            }
        }
        None
    }

    /// Sends every operation that is due and has a slot. False: the stream has ended.
    fn issue(&mut self, idle: bool) -> bool {
        loop {
            let requests = self.due(idle);
            if requests.is_empty() {
                return true;
            }
            // The channel has room for one batch per operation in flight.
            if self.requests.try_send(SessionRequestBatch { requests }).is_err() {
                return false;
            }
        }
    }

    fn due(&mut self, idle: bool) -> Vec<SessionRequest> {
        let share = &mut *self.share.borrow_mut();
        let now = Instant::now();
        let mut requests = Vec::with_capacity(self.free.len().min(self.batch_items));
        while requests.len() < self.batch_items && !self.done {
            let Some(&slot) = self.free.last() else { break };
            let intended = match self.held.take().map_or_else(|| share.pace.next(now), Next::At) {
                Next::At(intended) if intended > now => {
                    self.held = Some(intended);
                    break;
                }
                Next::At(intended) => intended,
                Next::Done => {
                    self.done = true;
                    break;
                }
            };
            self.free.pop();
            let operation = share.work.choose();
            self.flying[slot as usize] = Some(Flying { operation, from: counts_from(intended, now, idle) });
            let wire = share.work.wire(operation);
            requests.push(SessionRequest { id: u64::from(slot), operation: Some(wire), timeout_ms: self.timeout_ms });
        }
        requests
    }

    fn take(&mut self, batch: SessionResponseBatch) {
        let share = &mut *self.share.borrow_mut();
        let now = Instant::now();
        for SessionResponse { id, result } in batch.responses {
            let slot = usize::try_from(id).ok().and_then(|id| self.flying.get_mut(id));
            let Some(Flying { operation, from }) = slot.and_then(Option::take) else {
                share.recorder.failed("ANSWER_TO_NOTHING", now, now);
                continue;
            };
            // An id is the index of a slot, which is a u32.
            self.free.push(u32::try_from(id).unwrap_or(0));
            let status = match result {
                Some(Answer::Write(answer)) => Ok(answer.context),
                Some(Answer::Read(answer)) => Ok(answer.context),
                Some(Answer::Status(status)) => Err(reason::status(status)),
                None => Err(tonic::Status::unknown("an empty answer")),
            };
            match status {
                Ok(context) => {
                    share.work.learn(operation.key, context);
                    share.recorder.ended(operation.kind, from, now);
                }
                Err(status) if reason::is_missing_key(&status) => share.recorder.ended(operation.kind, from, now),
                Err(status) => share.recorder.failed(&reason::of_status(&status), from, now),
            }
        }
    }

    /// Counts every operation in flight as failed, because the stream has ended.
    fn broken(&mut self, why: &str) -> Ended {
        let share = &mut *self.share.borrow_mut();
        let now = Instant::now();
        for flying in self.flying.iter_mut().filter_map(Option::take) {
            share.recorder.failed(why, flying.from, now);
        }
        if self.done { Ended::Done } else { Ended::Broken }
    }
}
