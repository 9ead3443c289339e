//! Sessions: many operations over one stream, batched both ways, answered in any order and matched by id.
//!
//! Operations on one key are carried out one after the other, in the order of the stream: each starts when the previous one has
//! been answered. Operations on different keys run concurrently. An operation's deadline counts from the arrival of its batch: one whose
//! turn has not come by then is answered without having begun. A session has a window: while it is full of operations in flight,
//! nothing is read from the stream, so HTTP/2 flow control slows a fast client down. The same goes for a client that takes no answers, once
//! all those that have not been sent are too many. The bytes of operations that wait, for the window or for an earlier one on their key,
//! are admitted: of the connection, of the tenant, and of all. What finds no room is refused.

mod answers;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, Streaming};
use witan_kernel::failure::{Effect, Failed};
use witan_kernel::hook::Operation as Kind;
use witan_kernel::name::{Invalid, TenantId};
use witan_kernel::port::{Clock, until};
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;
use witan_wire::v1::{SessionRequest, SessionRequestBatch, SessionResponse};
use witan_wire::weigh::SESSION_REQUESTS;

use super::convert::{self, OfKey};
use super::kept::{Kept, Waiting, too_many_waiting};
use super::status::{Report, refusal, report};
use super::unsent::OfSession;
use crate::access::caller::Caller;
use crate::access::refusal::Refusal;
use crate::access::scope::Scope;
use answers::{Done, answers, failed_with, failure, not_begun};
use witan_coordinate::{Coordinator, Line, Lines, ReadAnswer, ReadRequest, World, WriteRequest};
use witan_net::Usage;
use witan_origin as origin;

pub use answers::Responses;

/// Operations of one session that may be in flight or waiting for an earlier one on their key. A batch may have four times
/// as many; the rest of it waits.
const WINDOW: usize = SESSION_REQUESTS / 4;
/// Operations that may be in flight, or answered and not sent yet: the window, and as many again that were not let into it before their
/// deadlines.
const ANSWERS: usize = 2 * WINDOW;
/// Operations that are turned away, one after the other, for which a session takes one of its 128 units of a turn: each takes a few
/// microseconds, so that a turn ends within a few milliseconds.
const A_TURN: u32 = 8;

/// Operations that have been answered, and leave the window at once.
const FREED: usize = 64;

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
    /// Its room, if the window was full.
    room: Option<Waiting>,
}

/// Opens a session.
pub(super) fn open<W: World>(
    coordinator: Arc<Coordinator<W>>,
    caller: Caller,
    usage: Usage,
    unsent: Arc<OfSession>,
    requests: Streaming<SessionRequestBatch>,
    closing: watch::Receiver<bool>,
) -> Responses {
    // Each operation answers once, so neither channel can fill up as long as the window holds.
    let (freed, free) = mpsc::channel(ANSWERS);
    let (refusal, refused) = oneshot::channel();
    let (done, responses) = answers(ANSWERS, Arc::clone(&unsent), refused, freed);
    let session = Session {
        coordinator,
        caller,
        usage,
        done,
        unsent,
        free,
        under_way: 0,
        lines: Lines::default(),
        incoming: VecDeque::new(),
        turned_away: VecDeque::new(),
        incoming_bytes: 0,
        arrived: 0,
        incoming_until: u64::MAX,
        alarm: None,
        refusal: Some(refusal),
    };
    tokio::spawn(origin::carried("session", session.run(requests, closing)));
    responses
}

struct Session<W: World> {
    coordinator: Arc<Coordinator<W>>,
    caller: Caller,
    /// Of its connection.
    usage: Usage,
    done: Done,
    /// Answers that are ready and have not been sent.
    unsent: Arc<OfSession>,
    free: mpsc::Receiver<Option<Line>>,
    under_way: usize,
    /// Operations that wait for the one in flight on the same record, with their ids.
    lines: Lines<Queued>,
    /// Operations of the last batch that the window had no room for yet.
    incoming: VecDeque<Incoming>,
    /// Those for which there was no room either, and whether each would have changed something: all that is kept of them until they are
    /// answered.
    turned_away: VecDeque<(u64, bool)>,
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
        let mut turned_away = 0;
        let mut freed = Vec::with_capacity(FREED);
        // Set when no further operation may start: builds the reason.
        let mut refused: Option<Box<dyn Fn() -> Report + Send>> = None;
        while open || self.under_way > 0 || self.has_more() {
            while self.under_way < WINDOW && self.unsent.may_go_on() && self.has_more() {
                // Others have their turns between many, and later where most are refused: if those that are carried out had most of the
                // processor, what a client sends beyond them would wait here to be refused.
                let begun = self.next(refused.as_deref());
                turned_away = if begun { 0 } else { turned_away + 1 };
                if turned_away % A_TURN == 0 {
                    tokio::task::coop::consume_budget().await;
                }
            }
            self.make_room();
            self.set_alarm();
            tokio::select! {
                count = self.free.recv_many(&mut freed, FREED) => {
                    if count == 0 {
                        // The client is gone. Operations in flight continue without it; queued ones never started.
                        return;
                    }
                    freed.drain(..).for_each(|line| self.freed(line));
                }
                batch = requests.message(), if open && !self.has_more() && self.under_way < WINDOW => match batch {
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
                () = self.unsent.may_go_on_again() => {}
                () = ring(&mut self.alarm) => self.expire(),
            }
        }
    }

    /// Whether there are operations of the last batch that have not been let into the window.
    fn has_more(&self) -> bool {
        !self.turned_away.is_empty() || !self.incoming.is_empty()
    }

    /// Lets the next one in, if it is not refused. Returns whether it may begin.
    fn next(&mut self, refused: Option<&(dyn Fn() -> Report + Send)>) -> bool {
        if let Some((id, changes)) = self.turned_away.pop_front() {
            self.refuse(id, refused.map_or_else(|| too_many_waiting(changes), |why| why()));
            return false;
        }
        match (self.incoming.pop_front(), refused) {
            (Some(incoming), None) => self.take(incoming),
            (Some(incoming), Some(why)) => {
                self.refuse(incoming.request.id, why());
                false
            }
            (None, _) => false,
        }
    }

    /// Answers an operation that is not started.
    fn refuse(&mut self, id: u64, why: Report) {
        self.under_way += 1;
        self.done.finish(failure(id, why), None, None);
    }

    /// Accepts a batch.
    fn receive(&mut self, batch: SessionRequestBatch) {
        self.incoming_bytes = batch.requests.iter().map(size).sum();
        let incoming = batch.requests.into_iter().map(|request| Incoming { request, room: None });
        self.incoming.extend(incoming);
    }

    /// Admits the bytes of operations that the window has no room for. There is nothing to do for those that have been admitted before.
    fn make_room(&mut self) {
        // Those at the front have been admitted first.
        let unadmitted = self.incoming.iter().rev().take_while(|incoming| incoming.room.is_none()).count();
        if unadmitted == 0 {
            return;
        }
        let before = self.turned_away.len();
        for Incoming { request, .. } in self.incoming.split_off(self.incoming.len() - unadmitted) {
            // An operation whose tenant's id is not valid will be refused, and counts for nobody.
            let tenant = TenantId::new(tenant(&request)).ok();
            let room = tenant.and_then(|tenant| Waiting::of(&self.coordinator, &self.usage, &tenant, size(&request)));
            match room {
                Some(room) => self.incoming.push_back(Incoming { request, room: Some(room) }),
                None => self.turned_away.push_back((request.id, changes(&request))),
            }
        }
        if self.turned_away.len() > before {
            self.incoming.shrink_to_fit();
        }
    }

    /// Returns whether the operation was let in.
    fn take(&mut self, incoming: Incoming) -> bool {
        let Incoming { request, room } = incoming;
        self.under_way += 1;
        let (id, bytes) = (request.id, size(&request));
        match decode(request, self.arrived) {
            Ok(mut job) => {
                if let Err(refused) = self.may(&job) {
                    let report = refusal(&refused, matches!(job, Job::Write(_)));
                    self.done.finish(failure(id, report), None, None);
                    return false;
                }
                let line = line_of(&job);
                if let Some(failed) = self.coordinator.turned_away(&line.0, job.kind(), self.arrived) {
                    self.done.finish(failed_with(id, failed), None, None);
                    return false;
                }
                if self.incoming_bytes > LARGE_BATCH {
                    job.detach(self.incoming_bytes / 4);
                }
                self.enter(id, job, line, room, bytes);
                true
            }
            Err(invalid) => {
                let failed = Failed { failure: invalid.into(), effect: Some(Effect::NotApplied) };
                self.done.finish(failure(id, report(failed)), None, None);
                false
            }
        }
    }

    /// Starts an operation, or lets it wait for an earlier one on its key.
    fn enter(&mut self, id: u64, job: Job, line: Line, mut room: Option<Waiting>, bytes: usize) {
        if room.is_none() && self.lines.is_taken(&line) {
            room = Waiting::of(&self.coordinator, &self.usage, &line.0, bytes);
            if room.is_none() {
                let report = too_many_waiting(matches!(job, Job::Write(_)));
                return self.done.finish(failure(id, report), None, None);
            }
        }
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
        let kind = if changes(&incoming.request) { Kind::Write } else { Kind::Read };
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
            self.done.finish(not_begun(id, matches!(job, Job::Write(_))), None, None);
        }
        for incoming in std::mem::take(&mut self.incoming) {
            if self.may_answer() && self.incoming_deadline(&incoming) <= now {
                self.under_way += 1;
                self.done.finish(not_begun(incoming.request.id, changes(&incoming.request)), None, None);
            } else {
                self.incoming.push_back(incoming);
            }
        }
        // With a client that reads no answers there may be no room for them: then there is nothing to be done in time.
        self.incoming_until = if self.may_answer() { self.earliest_incoming() } else { u64::MAX };
    }

    /// Whether an operation that was not let into the window may be answered.
    fn may_answer(&self) -> bool {
        self.under_way < ANSWERS && self.unsent.may_go_on()
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
                    Ok(answer) => match Kept::of(&*coordinator, &usage, &tenant, answer.bytes()) {
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
    // As it arrives or as it waits, whichever is more.
    size_of::<Queued>().max(size_of::<Incoming>()) + content
}

fn tenant(request: &SessionRequest) -> &str {
    match &request.operation {
        Some(Operation::Write(write)) => &write.tenant_id,
        Some(Operation::Read(read)) => &read.tenant_id,
        Some(Operation::Delete(delete)) => &delete.tenant_id,
        None => "",
    }
}

/// Whether an operation changes something, as far as can be seen.
fn changes(request: &SessionRequest) -> bool {
    !matches!(request.operation, Some(Operation::Read(_)))
}

/// Answers exactly once, even when an operation's task dies.
struct Guard {
    done: Done,
    id: u64,
    line: Option<Line>,
}

impl Guard {
    fn finish(mut self, result: Result<Outcome, Failed>) {
        let response = match result {
            Ok(outcome) => SessionResponse { id: self.id, result: Some(outcome) },
            Err(failed) => failed_with(self.id, failed),
        };
        self.done.finish(response, self.line.take(), None);
    }

    /// As [`Self::finish`], with what the answer takes until it has been sent.
    fn keep(mut self, outcome: Outcome, kept: Kept) {
        let response = SessionResponse { id: self.id, result: Some(outcome) };
        self.done.finish(response, self.line.take(), Some(kept));
    }

    fn refuse(mut self, why: Report) {
        self.done.finish(failure(self.id, why), self.line.take(), None);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            let report = Report::new(Code::Internal, "INTERNAL_ERROR", "internal error; see the log");
            self.done.finish(failure(self.id, report), Some(line), None);
        }
    }
}

/// Waits until the alarm rings; for ever when it is not set.
async fn ring(alarm: &mut Option<(u64, Pin<Box<Sleep>>)>) {
    match alarm {
        Some((_, sleep)) => sleep.await,
        None => std::future::pending().await,
    }
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
