//! Sessions: many operations over one stream, batched both ways, answered in any order and matched by id.
//!
//! Operations on one key are carried out one after the other, in the order of the stream: each starts when the previous one has
//! been answered. Operations on different keys run concurrently. An operation's deadline counts from the arrival of its batch: one whose
//! turn has not come by then is answered without having begun. A session has a window: while it is full of operations in flight,
//! nothing is read from the stream, so HTTP/2 flow control slows a fast client down. The bytes of operations that wait, for the window or
//! for an earlier one on their key, are admitted: of the connection, of the tenant, and of all. What finds no room is refused.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::hook::Operation as Kind;
use witan_kernel::name::{Invalid, TenantId};
use witan_kernel::port::{Clock, until};
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;
use witan_wire::v1::{SessionRequest, SessionRequestBatch, SessionResponse, SessionResponseBatch, SessionStatus};
use witan_wire::weigh::SESSION_REQUESTS;

use super::convert::{self, OfKey};
use super::kept::{Kept, Waiting, too_many_waiting};
use super::status::{Report, refusal, report};
use crate::access::caller::Caller;
use crate::access::refusal::Refusal;
use crate::access::scope::Scope;
use witan_coordinate::{Coordinator, Line, Lines, RETRY_AFTER, ReadAnswer, ReadRequest, World, WriteRequest};
use witan_net::Usage;
use witan_origin as origin;

/// Operations of one session that may be in flight or waiting for an earlier one on their key. A batch may have four times
/// as many; the rest of it waits.
const WINDOW: usize = SESSION_REQUESTS / 4;
/// Operations that may be in flight, or answered and not sent yet: the window, and as many again that were not let into it before their
/// deadlines.
const ANSWERS: usize = 2 * WINDOW;
/// The most responses in one batch.
const BATCH: usize = 256;
/// Bytes of values in a response batch after which the next response starts another batch. A batch stays below tonic's default
/// message limit of 4 MiB, unless one response alone is larger.
const BATCH_BYTES: usize = 1 << 20;

/// A response that is ready, and the queue whose next operation may start.
struct Finished {
    response: SessionResponse,
    line: Option<Line>,
    /// What the answer takes until it has been sent; nothing worth counting for one without a value.
    kept: Option<Kept>,
}

enum Job {
    Write(WriteRequest),
    Read(ReadRequest),
}

impl Job {
    fn kind(&self) -> Kind {
        match self {
            Self::Write(request) => request.operation(),
            Self::Read(_) => Kind::Read,
        }
    }

    /// Copies what is smaller than `part` out of the message that it came in. Values are parts of that message, which takes its memory
    /// until the last of them is dropped: those that are a small part of a large one are copied, so that each takes about its own size.
    fn detach(&mut self, part: usize) {
        let copy = |bytes: &mut Bytes| {
            if bytes.len() < part {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        };
        if let Self::Write(request) = self {
            request.value.iter_mut().for_each(copy);
            copy(&mut request.context);
        }
    }
}

/// An operation that waits for an earlier one on its key.
struct Queued {
    id: u64,
    job: Job,
    _room: Option<Waiting>,
}

/// An operation that has arrived.
struct Incoming {
    request: SessionRequest,
    room: Room,
}

/// Room for an operation while the window is full.
enum Room {
    /// It has not had to wait yet.
    NotNeeded,
    Given(Waiting),
    /// There was none: the operation will be refused, and its content has been dropped.
    Refused {
        changes: bool,
    },
}

/// The stream of responses. It ends when the client has closed its side and every operation is answered; when a batch could not be
/// accepted, with the reason.
pub struct Responses {
    ready: mpsc::Receiver<Finished>,
    refused: oneshot::Receiver<Status>,
    freed: mpsc::Sender<Option<Line>>,
    batch: Vec<Finished>,
    left_over: VecDeque<(SessionResponse, Option<Kept>)>,
    /// Of the responses of the last batch, which has been sent once the next one is asked for.
    sending: Vec<Kept>,
}

/// Opens a session.
pub(super) fn open<W: World>(
    coordinator: Arc<Coordinator<W>>,
    caller: Caller,
    usage: Usage,
    requests: Streaming<SessionRequestBatch>,
    closing: watch::Receiver<bool>,
) -> Responses {
    // Each operation answers once, so neither channel can fill up as long as the window holds.
    let (done, ready) = mpsc::channel(ANSWERS);
    let (freed, free) = mpsc::channel(ANSWERS);
    let (refusal, refused) = oneshot::channel();
    let session = Session {
        coordinator,
        caller,
        usage,
        done,
        free,
        under_way: 0,
        lines: Lines::default(),
        incoming: VecDeque::new(),
        incoming_bytes: 0,
        arrived: 0,
        incoming_until: u64::MAX,
        alarm: None,
        refusal: Some(refusal),
    };
    tokio::spawn(origin::carried("session", session.run(requests, closing)));
    let (batch, left_over) = (Vec::with_capacity(BATCH), VecDeque::new());
    Responses { ready, refused, freed, batch, left_over, sending: Vec::new() }
}

struct Session<W: World> {
    coordinator: Arc<Coordinator<W>>,
    caller: Caller,
    /// Of its connection.
    usage: Usage,
    done: mpsc::Sender<Finished>,
    free: mpsc::Receiver<Option<Line>>,
    under_way: usize,
    /// Operations that wait for the one in flight on the same record, with their ids.
    lines: Lines<Queued>,
    /// Operations of the last batch that the window had no room for yet.
    incoming: VecDeque<Incoming>,
    /// The bytes of all operations of that batch.
    incoming_bytes: usize,
    /// When it arrived, in monotonic microseconds.
    arrived: u64,
    /// No operation in `incoming` has its deadline before this.
    incoming_until: u64,
    /// Wakes the session at the earliest deadline of an operation that waits; it may come too early.
    alarm: Option<(u64, Pin<Box<Sleep>>)>,
    /// Takes the status of a batch that could not be accepted, with which the stream of responses ends.
    refusal: Option<oneshot::Sender<Status>>,
}

impl<W: World> Session<W> {
    async fn run(mut self, mut requests: Streaming<SessionRequestBatch>, mut closing: watch::Receiver<bool>) {
        // One future for the whole session: a new one in each iteration would register a new waiter each time.
        let closing = async move { _ = closing.wait_for(|closing| *closing).await };
        tokio::pin!(closing);
        let mut open = true;
        // Set when no further operation may start: builds the reason.
        let mut refused: Option<Box<dyn Fn() -> Report + Send>> = None;
        while open || self.under_way > 0 || !self.incoming.is_empty() {
            while self.under_way < WINDOW
                && let Some(incoming) = self.incoming.pop_front()
            {
                // Others have their turns between many that are refused at once.
                tokio::task::coop::consume_budget().await;
                match &refused {
                    None => self.take(incoming),
                    Some(why) => self.refuse(incoming.request.id, why()),
                }
            }
            self.make_room();
            self.set_alarm();
            tokio::select! {
                freed = self.free.recv() => match freed {
                    Some(line) => self.freed(line),
                    // The client is gone. Operations in flight continue without it; queued ones never started.
                    None => return,
                },
                batch = requests.message(), if open && self.incoming.is_empty() && self.under_way < WINDOW => match batch {
                    Ok(Some(batch)) => {
                        self.arrived = self.now();
                        self.receive(batch);
                        self.incoming_until = self.earliest_incoming();
                        if let Err(ended) = self.caller.is_still_good() {
                            refused = Some(Box::new(move || refusal(&ended, true)));
                            open = false;
                        }
                    }
                    Ok(None) => open = false,
                    Err(status) => {
                        open = false;
                        // A client that has broken its stream off is not there to read it.
                        let _ = self.refusal.take().map(|refusal| refusal.send(status));
                    }
                },
                // Otherwise the stream would stay open for as long as its client does.
                () = &mut closing, if open => {
                    refused = Some(Box::new(shutting_down));
                    open = false;
                }
                () = ring(&mut self.alarm) => self.expire(),
            }
        }
    }

    /// Answers an operation that is not started because the session is ending.
    fn refuse(&mut self, id: u64, why: Report) {
        self.under_way += 1;
        finish(&self.done, Finished { response: failure(id, why), line: None, kept: None });
    }

    /// Accepts a batch.
    fn receive(&mut self, batch: SessionRequestBatch) {
        self.incoming_bytes = batch.requests.iter().map(size).sum();
        let incoming = batch.requests.into_iter().map(|request| Incoming { request, room: Room::NotNeeded });
        self.incoming.extend(incoming);
    }

    /// Admits the bytes of operations that the window has no room for. There is nothing to do for those that have been admitted before.
    fn make_room(&mut self) {
        let (coordinator, usage) = (&self.coordinator, &self.usage);
        let unadmitted = |incoming: &&mut Incoming| matches!(incoming.room, Room::NotNeeded);
        // Those at the front have been admitted first.
        for incoming in self.incoming.iter_mut().rev().take_while(unadmitted) {
            let request = &mut incoming.request;
            // An operation whose tenant's id is not valid will be refused, and counts for nobody.
            let bytes = size(request);
            let room = match TenantId::new(tenant(request)) {
                Ok(tenant) => Waiting::of(coordinator, usage, &tenant, bytes),
                Err(_) => None,
            };
            incoming.room = room.map_or_else(|| Room::Refused { changes: drop_content(request) }, Room::Given);
        }
    }

    fn take(&mut self, incoming: Incoming) {
        let Incoming { request, room } = incoming;
        if let Room::Refused { changes } = room {
            return self.refuse(request.id, too_many_waiting(changes));
        }
        self.under_way += 1;
        let (id, bytes) = (request.id, size(&request));
        match decode(request, self.arrived) {
            Ok(mut job) => {
                if let Err(refused) = self.may(&job) {
                    let report = refusal(&refused, matches!(job, Job::Write(_)));
                    return finish(&self.done, Finished { response: failure(id, report), line: None, kept: None });
                }
                let line = line_of(&job);
                if let Some(failed) = self.coordinator.turned_away(&line.0, job.kind(), self.arrived) {
                    return finish(&self.done, Finished { response: failed_with(id, failed), line: None, kept: None });
                }
                if self.incoming_bytes > LARGE_BATCH {
                    job.detach(self.incoming_bytes / 4);
                }
                self.enter(id, job, line, room, bytes);
            }
            Err(invalid) => {
                let failed = Failed { failure: invalid.into(), effect: Some(Effect::NotApplied) };
                finish(&self.done, Finished { response: failure(id, report(failed)), line: None, kept: None });
            }
        }
    }

    /// Starts an operation, or lets it wait for an earlier one on its key.
    fn enter(&mut self, id: u64, job: Job, line: Line, room: Room, bytes: usize) {
        let room = match room {
            Room::Given(room) => Some(room),
            _ if !self.lines.is_taken(&line) => None,
            Room::NotNeeded | Room::Refused { .. } => {
                let Some(room) = Waiting::of(&self.coordinator, &self.usage, &line.0, bytes) else {
                    let report = too_many_waiting(matches!(job, Job::Write(_)));
                    return finish(&self.done, Finished { response: failure(id, report), line: None, kept: None });
                };
                Some(room)
            }
        };
        let deadline = self.deadline(&job);
        if let Some(Queued { id, job, .. }) = self.lines.enter(&line, deadline, Queued { id, job, _room: room }) {
            self.start(id, job, line);
        }
    }

    /// Checks scope and tenant of one operation: opening the session checked only for either of two scopes, and no tenant.
    fn may(&self, job: &Job) -> Result<(), Refusal> {
        match job {
            Job::Read(request) => self.caller.may_operate(Scope::Read, &request.tenant, request.key.bytes()),
            Job::Write(request) => self.caller.may_operate(Scope::Write, &request.tenant, request.key.bytes()),
        }
    }

    fn freed(&mut self, line: Option<Line>) {
        self.under_way -= 1;
        let Some(line) = line else { return };
        if let Some(Queued { id, job, .. }) = self.lines.leave(&line) {
            self.start(id, job, line);
        }
    }

    fn now(&self) -> u64 {
        self.coordinator.ports().clock.monotonic_micros()
    }

    fn deadline(&self, job: &Job) -> u64 {
        match job {
            Job::Write(request) => self.coordinator.deadline(request.operation(), self.arrived, request.timeout),
            Job::Read(request) => self.coordinator.deadline(Kind::Read, self.arrived, request.timeout),
        }
    }

    fn earliest_incoming(&self) -> u64 {
        self.incoming.iter().map(|incoming| self.incoming_deadline(incoming)).min().unwrap_or(u64::MAX)
    }

    /// The deadline of an operation that the window had no room for yet.
    fn incoming_deadline(&self, incoming: &Incoming) -> u64 {
        let kind = if incoming.changes() { Kind::Write } else { Kind::Read };
        self.coordinator.deadline(kind, self.arrived, timeout(&incoming.request))
    }

    /// Sets the alarm to the earliest deadline of an operation that waits. It is not put back when that operation begins: it then comes
    /// too early, once.
    fn set_alarm(&mut self) {
        let incoming = if self.incoming.is_empty() { u64::MAX } else { self.incoming_until };
        let earliest = self.lines.earliest().unwrap_or(u64::MAX).min(incoming);
        match (Some(earliest).filter(|at| *at < u64::MAX), &mut self.alarm) {
            (None, alarm) => *alarm = None,
            (Some(at), Some((set_for, _))) if *set_for <= at => {}
            (Some(at), alarm) => {
                let moment = Instant::now() + until(at, self.coordinator.ports().clock.monotonic_micros());
                *alarm = Some((at, Box::pin(tokio::time::sleep_until(moment))));
            }
        }
    }

    /// Answers every operation whose deadline has passed before its turn.
    fn expire(&mut self) {
        self.alarm = None;
        let now = self.now();
        for Queued { id, job, .. } in self.lines.expired(now) {
            finish(
                &self.done,
                Finished { response: failure(id, not_begun(matches!(job, Job::Write(_)))), line: None, kept: None },
            );
        }
        for incoming in std::mem::take(&mut self.incoming) {
            if self.under_way < ANSWERS && self.incoming_deadline(&incoming) <= now {
                self.refuse(incoming.request.id, not_begun(incoming.changes()));
            } else {
                self.incoming.push_back(incoming);
            }
        }
        // With a client that reads no answers there may be no room for them: then there is nothing to be done in time.
        let room = self.under_way < ANSWERS;
        self.incoming_until = if room { self.earliest_incoming() } else { u64::MAX };
    }

    fn start(&self, id: u64, job: Job, line: Line) {
        let key = String::from_utf8_lossy(line.1.bytes()).into_owned();
        let guard = Guard { done: self.done.clone(), id, line: Some(line) };
        match job {
            Job::Write(request) => self.coordinator.write(
                request,
                Box::new(move |result| {
                    guard.finish(result.map(|written| Outcome::Write(convert::written(written, key))))
                }),
            ),
            Job::Read(request) => {
                let (coordinator, usage, tenant) =
                    (Arc::clone(&self.coordinator), self.usage.clone(), request.tenant.clone());
                let respond = move |result: Result<ReadAnswer, Failed>| match result {
                    Ok(answer) => match Kept::of(&coordinator, &usage, &tenant, answer.bytes()) {
                        Ok(kept) => guard.keep(Outcome::Read(convert::found(answer, key)), kept),
                        Err(overloaded) => guard.refuse(overloaded),
                    },
                    Err(failed) => guard.finish(Err(failed)),
                };
                self.coordinator.read(request, Box::new(respond));
            }
        }
    }
}

impl Incoming {
    fn changes(&self) -> bool {
        match self.room {
            Room::Refused { changes } => changes,
            Room::NotNeeded | Room::Given(_) => !matches!(self.request.operation, Some(Operation::Read(_))),
        }
    }
}

/// A batch of more bytes is large.
const LARGE_BATCH: usize = 256 << 10;

/// The bytes of an operation while it waits.
fn size(request: &SessionRequest) -> usize {
    let content = match &request.operation {
        Some(Operation::Write(write)) => {
            let texts = write.tenant_id.len() + write.key.len() + write.consistency.len() + write.idempotency_key.len();
            texts + write.value.len() + write.context.len()
        }
        Some(Operation::Read(read)) => read.tenant_id.len() + read.key.len() + read.consistency.len(),
        Some(Operation::Delete(delete)) => {
            let texts = delete.tenant_id.len() + delete.key.len() + delete.consistency.len();
            texts + delete.idempotency_key.len() + delete.context.len()
        }
        None => 0,
    };
    size_of::<Queued>() + content
}

fn tenant(request: &SessionRequest) -> &str {
    match &request.operation {
        Some(Operation::Write(write)) => &write.tenant_id,
        Some(Operation::Read(read)) => &read.tenant_id,
        Some(Operation::Delete(delete)) => &delete.tenant_id,
        None => "",
    }
}

/// Drops everything but the id of an operation that will be refused. Returns whether it would have changed something.
fn drop_content(request: &mut SessionRequest) -> bool {
    !matches!(request.operation.take(), Some(Operation::Read(_)))
}

/// Answers exactly once, even when an operation's task dies.
struct Guard {
    done: mpsc::Sender<Finished>,
    id: u64,
    line: Option<Line>,
}

impl Guard {
    fn finish(mut self, result: Result<Outcome, Failed>) {
        let response = match result {
            Ok(outcome) => SessionResponse { id: self.id, result: Some(outcome) },
            Err(failed) => failed_with(self.id, failed),
        };
        finish(&self.done, Finished { response, line: self.line.take(), kept: None });
    }

    /// As [`Self::finish`], with what the answer takes until it has been sent.
    fn keep(mut self, outcome: Outcome, kept: Kept) {
        let response = SessionResponse { id: self.id, result: Some(outcome) };
        finish(&self.done, Finished { response, line: self.line.take(), kept: Some(kept) });
    }

    fn refuse(mut self, why: Report) {
        finish(&self.done, Finished { response: failure(self.id, why), line: self.line.take(), kept: None });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            let report = Report::new(Code::Internal, "INTERNAL_ERROR", "internal error; see the log");
            finish(&self.done, Finished { response: failure(self.id, report), line: Some(line), kept: None });
        }
    }
}

fn finish(done: &mpsc::Sender<Finished>, finished: Finished) {
    // Closed: the client is gone. Full: impossible, because the window bounds the operations in flight.
    let _ = done.try_send(finished);
}

fn failure(id: u64, report: Report) -> SessionResponse {
    let (code, message, details) = report.encode();
    let status = SessionStatus { code: code as i32, message, details };
    SessionResponse { id, result: Some(Outcome::Status(status)) }
}

/// The response to an operation that has failed. That of an overload is made once: there may be very many.
fn failed_with(id: u64, failed: Failed) -> SessionResponse {
    static OVERLOADED: LazyLock<[SessionResponse; 2]> = LazyLock::new(|| {
        let overloaded = Failure::Overloaded { retry_after: RETRY_AFTER };
        [failure(0, report(overloaded.clone().not_applied())), failure(0, report(overloaded.of_read()))]
    });
    let Failed { failure: Failure::Overloaded { retry_after: RETRY_AFTER }, effect } = failed else {
        return failure(id, report(failed));
    };
    match effect {
        Some(Effect::NotApplied) => SessionResponse { id, ..OVERLOADED[0].clone() },
        None => SessionResponse { id, ..OVERLOADED[1].clone() },
        Some(Effect::InDoubt) => failure(id, report(failed)),
    }
}

/// Waits until the alarm rings; for ever when it is not set.
async fn ring(alarm: &mut Option<(u64, Pin<Box<Sleep>>)>) {
    match alarm {
        Some((_, sleep)) => sleep.await,
        None => std::future::pending().await,
    }
}

/// The report of an operation whose deadline has passed before its turn.
fn not_begun(changes: bool) -> Report {
    report(if changes { Failure::NotBegun.not_applied() } else { Failure::NotBegun.of_read() })
}

fn timeout(request: &SessionRequest) -> Option<Duration> {
    (request.timeout_ms > 0).then(|| Duration::from_millis(u64::from(request.timeout_ms)))
}

fn decode(request: SessionRequest, arrived: u64) -> Result<Job, Invalid> {
    let timeout = timeout(&request);
    let mut job = match request.operation {
        Some(Operation::Write(write)) => convert::write(write, timeout).map(Job::Write),
        Some(Operation::Read(read)) => convert::read(read, timeout).map(Job::Read),
        Some(Operation::Delete(delete)) => convert::delete(delete, timeout).map(Job::Write),
        None => Err(Invalid::new("operation", "is missing", "send write, read or delete")),
    }?;
    match &mut job {
        Job::Write(request) => request.arrived_at(arrived),
        Job::Read(request) => request.arrived_at(arrived),
    }
    Ok(job)
}

fn shutting_down() -> Report {
    let what = "this coordinator is shutting down; send the operation to another one";
    Report::new(Code::Unavailable, "SHUTTING_DOWN", what).not_applied().retry_after(Duration::from_millis(200))
}

fn line_of(job: &Job) -> Line {
    match job {
        Job::Write(request) => (request.tenant.clone(), request.key.clone()),
        Job::Read(request) => (request.tenant.clone(), request.key.clone()),
    }
}

fn weight(response: &SessionResponse) -> usize {
    match &response.result {
        Some(Outcome::Read(read)) => {
            read.value.len() + read.siblings.iter().map(|sibling| sibling.value.len()).sum::<usize>() + 128
        }
        Some(Outcome::Write(_) | Outcome::Status(_)) | None => 256,
    }
}

impl Stream for Responses {
    type Item = Result<SessionResponseBatch, Status>;

    /// Puts all ready responses into one batch; none is delayed to fill a batch.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.sending.clear();
        if this.left_over.is_empty() {
            let received = std::task::ready!(this.ready.poll_recv_many(cx, &mut this.batch, BATCH));
            if received == 0 {
                return Poll::Ready(this.refused.try_recv().ok().map(Err));
            }
            for finished in this.batch.drain(..) {
                // Only now is there room for another response in the channel.
                let _ = this.freed.try_send(finished.line);
                this.left_over.push_back((finished.response, finished.kept));
            }
        }
        let mut responses = Vec::with_capacity(this.left_over.len());
        let mut bytes = 0;
        while let Some((response, kept)) = this.left_over.pop_front() {
            this.sending.extend(kept);
            bytes += weight(&response);
            responses.push(response);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Poll::Ready(Some(Ok(SessionResponseBatch { responses })))
    }
}
