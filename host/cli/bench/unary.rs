//! The load as unary calls: a task per operation in flight, many on each connection, all on one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Uri;
use tokio::task::JoinSet;
use tokio::time;
use witan_net::ClientSide;
use witan_wire::v1::{ReadKeyValueResponse, WriteKeyValueResponse};

use super::grpc::{self, CallError, Rpc};
use super::load::{Load, Share};
use super::measured::Recorder;
use super::pace::{Next, counts_from};
use super::reason;
use super::work::Kind;

/// Time after its deadline for which a response is still awaited, so that the server reports the timeout first.
const GRACE: Duration = Duration::from_secs(1);
/// Time between attempts to reconnect to a server.
const RECONNECT: Duration = Duration::from_millis(100);

/// A connection, and the most operations in flight on it.
pub(super) struct Connection {
    endpoint: Uri,
    tls: Option<ClientSide>,
    send: SendRequest<Bytes>,
    slots: u32,
    calls: Calls,
}

#[derive(Clone)]
struct Calls {
    write: Rpc,
    read: Rpc,
    patience: Duration,
}

impl Connection {
    /// Opens one.
    pub(super) async fn open(load: &Load, endpoint: &Uri, slots: u32) -> anyhow::Result<Self> {
        let calls = Calls {
            write: Rpc::new(endpoint, "/witan.v1.CoordinatorService/WriteKeyValue", load.timeout)?.showing(&load.shown),
            read: Rpc::new(endpoint, "/witan.v1.CoordinatorService/ReadKeyValue", load.timeout)?.showing(&load.shown),
            patience: load.timeout + GRACE,
        };
        let send = connect(endpoint, load.tls.as_ref(), load.timeout).await?;
        Ok(Self { endpoint: endpoint.clone(), tls: load.tls.clone(), send, slots, calls })
    }
}

async fn connect(endpoint: &Uri, tls: Option<&ClientSide>, timeout: Duration) -> anyhow::Result<SendRequest<Bytes>> {
    let (send, connection) = time::timeout(timeout, grpc::connect(endpoint, tls)).await??;
    tokio::task::spawn_local(connection);
    Ok(send)
}

/// Does one thread's share. Must run in a `LocalSet`.
pub(super) async fn run(load: &Load, connections: Vec<Connection>, share: Share) -> Recorder {
    let share = Rc::new(RefCell::new(share));
    let mut running = JoinSet::new();
    for connection in connections {
        running.spawn_local(keep(connection, Rc::clone(&share), load.timeout));
    }
    running.join_all().await;
    match Rc::try_unwrap(share) {
        Ok(share) => share.into_inner().recorder,
        Err(_) => unreachable!("every task that shared it has ended"),
    }
}

/// Keeps one connection busy until the end, reopening it when it breaks.
async fn keep(mut connection: Connection, share: Rc<RefCell<Share>>, timeout: Duration) {
    loop {
        let mut slots = JoinSet::new();
        for _ in 0..connection.slots {
            slots.spawn_local(work(connection.send.clone(), connection.calls.clone(), Rc::clone(&share)));
        }
        let ended = slots.join_all().await;
        if ended.into_iter().all(|ended| ended == Ended::Done) {
            return;
        }
        loop {
            time::sleep(RECONNECT).await;
            match connect(&connection.endpoint, connection.tls.as_ref(), timeout).await {
                Ok(send) => break connection.send = send,
                // The operation that would have been next counts as failed, in a closed loop as in an open one.
                Err(_) => match share.borrow_mut().miss() {
                    Ended::Done => return,
                    Ended::Broken => {}
                },
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The load has ended.
    Done,
    /// The connection has ended.
    Broken,
}

impl Share {
    /// Counts the next operation as failed, because there is no connection.
    pub(super) fn miss(&mut self) -> Ended {
        let now = Instant::now();
        match self.pace.next(now) {
            Next::Done => Ended::Done,
            Next::At(_) => {
                self.recorder.failed("UNREACHABLE", now, now);
                Ended::Broken
            }
        }
    }
}

async fn work(mut send: SendRequest<Bytes>, calls: Calls, share: Rc<RefCell<Share>>) -> Ended {
    loop {
        let now = Instant::now();
        let Next::At(intended) = share.borrow_mut().pace.next(now) else { return Ended::Done };
        let idle = intended > now;
        if idle {
            time::sleep_until(intended.into()).await;
        }
        let from = counts_from(intended, Instant::now(), idle);
        let outcome = time::timeout(calls.patience, one(&mut send, &calls, &share, from)).await;
        let failure = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(failure)) => failure,
            Err(_) => CallError::Broken("no answer in time".to_owned()),
        };
        let (why, ended) = match &failure {
            CallError::Refused(status) => (reason::of_status(status), None),
            CallError::Broken(why) => (format!("connection: {why}"), Some(Ended::Broken)),
        };
        share.borrow_mut().recorder.failed(&why, from, Instant::now());
        if let Some(ended) = ended {
            return ended;
        }
    }
}

/// One operation.
async fn one(
    send: &mut SendRequest<Bytes>,
    calls: &Calls,
    share: &RefCell<Share>,
    from: Instant,
) -> Result<(), CallError> {
    let operation = share.borrow_mut().work.choose();
    let context = match operation.kind {
        Kind::Write => {
            let message = share.borrow_mut().work.write(operation.key);
            let answer: WriteKeyValueResponse = calls.write.call(send, &message).await?;
            answer.context
        }
        Kind::Read => {
            let message = share.borrow().work.read(operation.key);
            match calls.read.call::<_, ReadKeyValueResponse>(send, &message).await {
                Ok(answer) => answer.context,
                // Finding no value is a success.
                Err(CallError::Refused(status)) if reason::is_missing_key(&status) => Bytes::new(),
                Err(error) => return Err(error),
            }
        }
    };
    let mut share = share.borrow_mut();
    share.work.learn(operation.key, context);
    share.recorder.ended(operation.kind, from, Instant::now());
    Ok(())
}
