//! Sessions: many operations over one stream, batched both ways, answered in any order and matched by id.
//!
//! Operations on one key are carried out one after the other, in the order of the stream: each starts when the previous one has
//! been answered. Operations on different keys run concurrently. A session has a window: while it is full of operations in flight,
//! nothing is read from the stream, so HTTP/2 flow control slows a fast client down and memory stays bounded.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};
use witan_kernel::failure::Failed;
use witan_kernel::name::{Invalid, Key, TenantId};
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;
use witan_wire::v1::{SessionRequest, SessionRequestBatch, SessionResponse, SessionResponseBatch, SessionStatus};

use super::convert;
use super::status::{Report, refusal, report};
use crate::access::caller::Caller;
use crate::access::refusal::Refusal;
use crate::access::scope::Scope;
use witan_coordinate::{Coordinator, ReadRequest, World, WriteRequest};
use witan_origin as origin;

/// Operations of one session that may be in flight or waiting for an earlier one on their key.
const WINDOW: usize = 2048;
/// The most responses in one batch.
const BATCH: usize = 256;
/// Bytes of values in a response batch after which the next response starts another batch. A batch stays below tonic's default
/// message limit of 4 MiB, unless one response alone is larger.
const BATCH_BYTES: usize = 1 << 20;

/// A response that is ready, and the queue whose next operation may start.
struct Finished {
    response: SessionResponse,
    line: Option<Line>,
}

/// Identifies the queue of one session's operations on one record.
type Line = (TenantId, Key);

enum Job {
    Write(WriteRequest),
    Read(ReadRequest),
}

/// The stream of responses. It ends when the client has closed its side and every operation is answered.
pub struct Responses {
    ready: mpsc::Receiver<Finished>,
    freed: mpsc::Sender<Option<Line>>,
    batch: Vec<Finished>,
    left_over: VecDeque<SessionResponse>,
}

/// Opens a session.
pub(super) fn open<W: World>(
    coordinator: Arc<Coordinator<W>>,
    caller: Caller,
    requests: Streaming<SessionRequestBatch>,
    closing: watch::Receiver<bool>,
) -> Responses {
    // Each operation in flight answers once, so neither channel can fill up as long as the window holds.
    let (done, ready) = mpsc::channel(WINDOW);
    let (freed, free) = mpsc::channel(WINDOW);
    let session = Session { coordinator, caller, done, free, under_way: 0, lines: HashMap::new() };
    tokio::spawn(origin::carried("session", session.run(requests, closing)));
    Responses { ready, freed, batch: Vec::with_capacity(BATCH), left_over: VecDeque::new() }
}

struct Session<W: World> {
    coordinator: Arc<Coordinator<W>>,
    caller: Caller,
    done: mpsc::Sender<Finished>,
    free: mpsc::Receiver<Option<Line>>,
    under_way: usize,
    /// Operations that wait for the one in flight on the same record.
    lines: HashMap<Line, VecDeque<(u64, Job)>>,
}

impl<W: World> Session<W> {
    async fn run(mut self, mut requests: Streaming<SessionRequestBatch>, mut closing: watch::Receiver<bool>) {
        // One future for the whole session: a new one in each iteration would register a new waiter each time.
        let closing = async move { _ = closing.wait_for(|closing| *closing).await };
        tokio::pin!(closing);
        let mut incoming: VecDeque<SessionRequest> = VecDeque::new();
        let mut open = true;
        // Set when no further operation may start: builds the reason.
        let mut refused: Option<Box<dyn Fn() -> Report + Send>> = None;
        while open || self.under_way > 0 || !incoming.is_empty() {
            while self.under_way < WINDOW
                && let Some(request) = incoming.pop_front()
            {
                match &refused {
                    None => self.take(request),
                    Some(why) => self.refuse(request.id, why()),
                }
            }
            tokio::select! {
                freed = self.free.recv() => match freed {
                    Some(line) => self.freed(line),
                    // The client is gone. Operations in flight continue without it; queued ones never started.
                    None => return,
                },
                batch = requests.message(), if open && incoming.is_empty() && self.under_way < WINDOW => match batch {
                    Ok(Some(batch)) => {
                        incoming.extend(batch.requests);
                        if let Err(ended) = self.caller.is_still_good() {
                            refused = Some(Box::new(move || refusal(&ended, true)));
                            open = false;
                        }
                    }
                    Ok(None) | Err(_) => open = false,
                },
                // Otherwise the stream would stay open for as long as its client does.
                () = &mut closing, if open => {
                    refused = Some(Box::new(shutting_down));
                    open = false;
                }
            }
        }
    }

    /// Answers an operation that is not started because the session is ending.
    fn refuse(&mut self, id: u64, why: Report) {
        self.under_way += 1;
        finish(&self.done, Finished { response: failure(id, why), line: None });
    }

    fn take(&mut self, request: SessionRequest) {
        self.under_way += 1;
        let id = request.id;
        match decode(request) {
            Ok(job) => {
                if let Err(refused) = self.may(&job) {
                    let report = refusal(&refused, matches!(job, Job::Write(_)));
                    return finish(&self.done, Finished { response: failure(id, report), line: None });
                }
                let line = line_of(&job);
                match self.lines.entry(line.clone()) {
                    Entry::Occupied(mut waiting) => waiting.get_mut().push_back((id, job)),
                    Entry::Vacant(empty) => {
                        empty.insert(VecDeque::new());
                        self.start(id, job, line);
                    }
                }
            }
            Err(invalid) => {
                let failed =
                    Failed { failure: invalid.into(), effect: Some(witan_kernel::failure::Effect::NotApplied) };
                finish(&self.done, Finished { response: failure(id, report(failed)), line: None });
            }
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
        let next = self.lines.get_mut(&line).and_then(VecDeque::pop_front);
        match next {
            Some((id, job)) => self.start(id, job, line),
            None => {
                self.lines.remove(&line);
            }
        }
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
            Job::Read(request) => self.coordinator.read(
                request,
                Box::new(move |result| guard.finish(result.map(|answer| Outcome::Read(convert::found(answer, key))))),
            ),
        }
    }
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
            Err(failed) => failure(self.id, report(failed)),
        };
        finish(&self.done, Finished { response, line: self.line.take() });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            let report = Report::new(Code::Internal, "INTERNAL_ERROR", "internal error; see the log");
            finish(&self.done, Finished { response: failure(self.id, report), line: Some(line) });
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

fn decode(request: SessionRequest) -> Result<Job, Invalid> {
    let timeout = (request.timeout_ms > 0).then(|| Duration::from_millis(u64::from(request.timeout_ms)));
    match request.operation {
        Some(Operation::Write(write)) => convert::write(write, timeout).map(Job::Write),
        Some(Operation::Read(read)) => convert::read(read, timeout).map(Job::Read),
        Some(Operation::Delete(delete)) => convert::delete(delete, timeout).map(Job::Write),
        None => Err(Invalid::new("operation", "is missing", "send write, read or delete")),
    }
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
        if this.left_over.is_empty() {
            let received = std::task::ready!(this.ready.poll_recv_many(cx, &mut this.batch, BATCH));
            if received == 0 {
                return Poll::Ready(None);
            }
            for finished in this.batch.drain(..) {
                // Only now is there room for another response in the channel.
                let _ = this.freed.try_send(finished.line);
                this.left_over.push_back(finished.response);
            }
        }
        let mut responses = Vec::with_capacity(this.left_over.len());
        let mut bytes = 0;
        while let Some(response) = this.left_over.pop_front() {
            bytes += weight(&response);
            responses.push(response);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Poll::Ready(Some(Ok(SessionResponseBatch { responses })))
    }
}
