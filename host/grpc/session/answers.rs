//! A session's answers on their way to its client: a stream of batches. What is ready is counted until it has been sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::Status;
use witan_coordinate::{Line, RETRY_AFTER};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_wire::v1::session_response::Result as Outcome;
use witan_wire::v1::{SessionResponse, SessionResponseBatch, SessionStatus};

use crate::grpc::kept::Kept;
use crate::grpc::status::{Report, report};
use crate::grpc::unsent::{OfSession, Ready};

/// The most responses in one batch.
const BATCH: usize = 256;
/// Bytes of values in a response batch after which the next response starts another batch. A batch stays below tonic's default
/// message limit of 4 MiB, unless one response alone is larger.
const BATCH_BYTES: usize = 1 << 20;

/// A response that is ready, and the queue whose next operation may start.
struct Finished {
    response: SessionResponse,
    line: Option<Line>,
    counted: Counted,
}

/// What an answer takes until it has been sent.
struct Counted {
    _ready: Ready,
    /// Its value.
    _kept: Option<Kept>,
}

/// Where the session and its operations put their answers.
#[derive(Clone)]
pub(super) struct Done {
    // In a box, since a channel that is empty has room for 32 of them, and there may be very many sessions.
    ready: mpsc::Sender<Box<Finished>>,
    unsent: Arc<OfSession>,
}

/// The stream of responses. It ends when the client has closed its side and every operation is answered; when a batch could not be
/// accepted, with the reason.
pub struct Responses {
    ready: mpsc::Receiver<Box<Finished>>,
    refused: oneshot::Receiver<Status>,
    freed: mpsc::Sender<Option<Line>>,
    left_over: VecDeque<(SessionResponse, Counted)>,
    /// Of the responses of the last batch, which has been sent once the next one is asked for.
    sending: Vec<Counted>,
}

/// The two ends of a session's answers, of which there may be this many. The session learns through `freed` that one is on its way, and
/// ends the stream through `refused`.
pub(super) fn answers(
    most: usize,
    unsent: Arc<OfSession>,
    refused: oneshot::Receiver<Status>,
    freed: mpsc::Sender<Option<Line>>,
) -> (Done, Responses) {
    let (sender, ready) = mpsc::channel(most);
    let responses = Responses { ready, refused, freed, left_over: VecDeque::new(), sending: Vec::new() };
    (Done { ready: sender, unsent }, responses)
}

impl Done {
    /// An operation is answered. The value of the answer, if it has one, is kept.
    pub(super) fn finish(&self, response: SessionResponse, line: Option<Line>, kept: Option<Kept>) {
        let ready = self.unsent.ready(size_of::<Finished>() + content(&response));
        let finished = Finished { response, line, counted: Counted { _ready: ready, _kept: kept } };
        // Closed: the client is gone. Full: impossible, because the window bounds the operations in flight.
        let _ = self.ready.try_send(Box::new(finished));
    }
}

/// What a response takes beyond itself. Values are counted when they are kept.
fn content(response: &SessionResponse) -> usize {
    match &response.result {
        Some(Outcome::Status(status)) => status.message.len() + status.details.len(),
        Some(Outcome::Write(written)) => written.key.len() + written.context.len(),
        Some(Outcome::Read(read)) => read.key.len() + read.context.len(),
        None => 0,
    }
}

/// The response to an operation that is not carried out.
pub(super) fn failure(id: u64, report: Report) -> SessionResponse {
    let (code, message, details) = report.encode();
    let status = SessionStatus { code: code as i32, message, details };
    SessionResponse { id, result: Some(Outcome::Status(status)) }
}

/// The responses for a failure of a change and of a read that did nothing, made once: there may be very many.
fn both(failure_of: &Failure) -> [SessionResponse; 2] {
    [failure(0, report(failure_of.clone().not_applied())), failure(0, report(failure_of.clone().of_read()))]
}

/// The response to an operation that has failed.
pub(super) fn failed_with(id: u64, failed: Failed) -> SessionResponse {
    static OVERLOADED: LazyLock<[SessionResponse; 2]> =
        LazyLock::new(|| both(&Failure::Overloaded { retry_after: RETRY_AFTER }));
    let Failed { failure: Failure::Overloaded { retry_after: RETRY_AFTER }, effect } = failed else {
        return failure(id, report(failed));
    };
    match effect {
        Some(Effect::NotApplied) => SessionResponse { id, ..OVERLOADED[0].clone() },
        None => SessionResponse { id, ..OVERLOADED[1].clone() },
        Some(Effect::InDoubt) => failure(id, report(failed)),
    }
}

/// The response to an operation whose deadline has passed before its turn.
pub(super) fn not_begun(id: u64, changes: bool) -> SessionResponse {
    static NOT_BEGUN: LazyLock<[SessionResponse; 2]> = LazyLock::new(|| both(&Failure::NotBegun));
    SessionResponse { id, ..NOT_BEGUN[usize::from(!changes)].clone() }
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
        // Their memory is given back, too: there may be very many sessions that have nothing to say.
        this.sending = Vec::new();
        if this.left_over.is_empty() {
            let mut batch = Vec::new();
            let received = ready!(this.ready.poll_recv_many(cx, &mut batch, BATCH));
            if received == 0 {
                return Poll::Ready(this.refused.try_recv().ok().map(Err));
            }
            this.left_over = VecDeque::with_capacity(received);
            for finished in batch {
                // Only now is there room for another response in the channel.
                let _ = this.freed.try_send(finished.line);
                this.left_over.push_back((finished.response, finished.counted));
            }
        }
        let mut responses = Vec::with_capacity(this.left_over.len());
        let mut bytes = 0;
        while let Some((response, counted)) = this.left_over.pop_front() {
            this.sending.push(counted);
            bytes += weight(&response);
            responses.push(response);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Poll::Ready(Some(Ok(SessionResponseBatch { responses })))
    }
}
