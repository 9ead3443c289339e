//! A listener as a stream of connections that are ready to be served. Handshakes go on beside each other and beside
//! accepting; what is too many, too slow or wrong is dropped and counted, and nobody else waits for it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;

use crate::connection::Connection;
use crate::listen::{Protocol, ServerSide};
use crate::slots::{Slot, Slots};

/// How long a client may take for its handshake and its first words, from the moment it is accepted.
const GREETING: Duration = Duration::from_secs(10);
/// Handshakes at a time; one more, and the oldest is given up. Each may hold a message of 64 KiB: 64 MiB of them.
const HANDSHAKES: usize = 1024;
/// How long nothing is accepted when the process cannot open more files: a loop would only burn the processor.
const PAUSE: Duration = Duration::from_millis(100);
/// What every HTTP/2 client says first.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// The shortest request line of HTTP/1.1 with its end; the rest has a limit of its own in the server.
const REQUEST_LINE: usize = b"GET / HTTP/1.1\r\n".len();

/// Bounds of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at a time.
    pub connections: usize,
    /// How long a client may take for its handshake and its first words.
    pub greeting: Duration,
}

/// [`Bounds::connections`] by default.
pub const CONNECTIONS: usize = 10_000;

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: CONNECTIONS, greeting: GREETING }
    }
}

impl Bounds {
    /// As many connections as are wanted, or as the process may have files open beside those that it needs itself.
    pub fn of(wanted: usize) -> Self {
        let connections = match open_files() {
            Some(most) if most < wanted.saturating_add(OWN_FILES) => {
                let connections = most.saturating_sub(OWN_FILES).max(most / 2).max(1);
                tracing::warn!(
                    wanted,
                    connections,
                    most_files = most,
                    "this process may open too few files for so many connections; raise `ulimit -n` or LimitNOFILE"
                );
                connections
            }
            _ => wanted.max(1),
        };
        Self { connections, ..Self::default() }
    }
}

/// Files that a process opens beside the connections of clients: stores, nodes, databases.
const OWN_FILES: usize = 512;

/// How many files this process may have open, where the system tells.
fn open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// A listener as a stream of connections. It never ends and never fails; it stops listening when it is dropped.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Option<ServerSide>,
    protocol: Protocol,
    bounds: Bounds,
    slots: Arc<Slots>,
    handshakes: JoinSet<Option<Connection>>,
    /// The handshakes, oldest first.
    order: VecDeque<AbortHandle>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// The connections of a listener; with `tls`, only those over TLS.
    pub fn new(listener: TcpListener, tls: Option<ServerSide>, protocol: Protocol, bounds: Bounds) -> Self {
        let slots = Arc::new(Slots::new(bounds.connections));
        let (handshakes, order) = (JoinSet::new(), VecDeque::new());
        Self { listener, tls, protocol, bounds, slots, handshakes, order, pause: None }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What happens to its connections, for metrics.
    pub fn traffic(&self) -> Traffic {
        Traffic(Arc::clone(&self.slots))
    }

    /// The next connection.
    pub async fn next(&mut self) -> Connection {
        std::future::poll_fn(|cx| self.poll_connection(cx)).await
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<Connection> {
        loop {
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(connection)))) => return Poll::Ready(connection),
                // Failed, or given up.
                Poll::Ready(Some(_)) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((tcp, address)) => {
                    if let Some(connection) = self.welcome(tcp, address) {
                        return Poll::Ready(connection);
                    }
                }
                Err(error) => self.rest(&error),
            }
        }
    }

    /// The connection, if it is ready; with TLS, a handshake has begun instead.
    fn welcome(&mut self, tcp: TcpStream, address: SocketAddr) -> Option<Connection> {
        let slot = self.slots.take()?;
        // One that is closed already says so when it is read.
        let _ = tcp.set_nodelay(true);
        let until = Instant::now() + self.bounds.greeting;
        let first = match self.protocol {
            Protocol::Grpc => PREFACE,
            Protocol::Http => REQUEST_LINE,
        };
        let Some(tls) = &self.tls else {
            return Some(Connection::plain(tcp, address, slot).greeted(first, until));
        };
        let acceptor = TlsAcceptor::from(tls.current());
        let shake = shake_hands(acceptor, tcp, address, slot, until);
        let handle = self.handshakes.spawn(async move { Some(shake.await?.greeted(first, until)) });
        self.enlist(handle);
        None
    }

    fn enlist(&mut self, handle: AbortHandle) {
        while self.order.front().is_some_and(AbortHandle::is_finished) {
            self.order.pop_front();
        }
        if self.order.len() >= HANDSHAKES
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
            self.slots.counts.handshake.fetch_add(1, Ordering::Relaxed);
        }
        self.order.push_back(handle);
    }

    fn rest(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        // Those are of one client, that has gone before it was greeted.
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            tracing::warn!(%error, "no connection can be accepted for a moment; too many open files?");
            self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
    slot: Slot,
    until: Instant,
) -> Option<Connection> {
    let failed = match tokio::time::timeout_at(until, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => return Some(Connection::tls(tls, address, slot)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "not in time".to_owned(),
    };
    slot.counts().handshake.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(peer = %address, reason = %failed, "a TLS handshake failed");
    None
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_connection(cx).map(|connection| Some(Ok(connection)))
    }
}

/// What happens to the connections of a listener.
#[derive(Debug, Clone)]
pub struct Traffic(pub(crate) Arc<Slots>);

impl Traffic {
    /// Connections now.
    pub fn open(&self) -> usize {
        self.0.open_now()
    }
}
