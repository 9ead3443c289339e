//! A listener as a stream of connections that are ready to be served. TLS handshakes run concurrently with each other and with
//! accepting. Connections that are too many, too slow or malformed are dropped and counted, and never delay others.

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

use crate::bounds::Bounds;
use crate::connection::{Awaited, Connection};
use crate::listen::{Protocol, ServerSide};
use crate::permits::{Permit, Permits};

/// Most concurrent handshakes; one more, and the oldest is aborted. Each may buffer a message of 64 KiB, 64 MiB in all.
const HANDSHAKES: usize = 1024;
/// How long accepting pauses when the process cannot open more files: retrying at once would only burn CPU.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of the preface that every HTTP/2 client sends first.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// A listener as a stream of connections. The stream never ends or fails; dropping it closes the listener.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Option<ServerSide>,
    protocol: Protocol,
    bounds: Bounds,
    permits: Arc<Permits>,
    handshakes: JoinSet<Option<Connection>>,
    /// The handshakes, oldest first.
    order: VecDeque<AbortHandle>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// The connections of a listener; with `tls`, every connection must use TLS.
    pub fn new(listener: TcpListener, tls: Option<ServerSide>, protocol: Protocol, bounds: Bounds) -> Self {
        let permits = Arc::new(Permits::new(bounds.clone()));
        let (handshakes, order) = (JoinSet::new(), VecDeque::new());
        Self { listener, tls, protocol, bounds, permits, handshakes, order, pause: None }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Connection counts, for metrics.
    pub fn traffic(&self) -> Traffic {
        Traffic(Arc::clone(&self.permits))
    }

    /// The next connection.
    pub async fn next(&mut self) -> Connection {
        std::future::poll_fn(|cx| self.poll_connection(cx)).await
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<Connection> {
        loop {
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(connection)))) => return Poll::Ready(connection),
                // The handshake failed or was aborted.
                Poll::Ready(Some(_)) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((tcp, address)) => {
                    if let Some(connection) = self.admit(tcp, address) {
                        return Poll::Ready(connection);
                    }
                }
                Err(error) => self.accept_failed(&error),
            }
        }
    }

    /// The connection, if it is ready to be served; with TLS, starts its handshake instead.
    fn admit(&mut self, tcp: TcpStream, address: SocketAddr) -> Option<Connection> {
        let permit = self.permits.take(address.ip())?;
        // An error means that the connection is closed already; reading from it will report that.
        let _ = tcp.set_nodelay(true);
        let until = Instant::now() + self.bounds.greeting;
        let first = match self.protocol {
            Protocol::Grpc => Awaited::Bytes(PREFACE),
            Protocol::Http => Awaited::Call,
        };
        let idle = self.bounds.idle;
        let Some(tls) = &self.tls else {
            return Some(Connection::plain(tcp, address, permit, idle).greeted(first, until));
        };
        let acceptor = TlsAcceptor::from(tls.current());
        let shake = shake_hands(acceptor, tcp, address, permit, until, idle);
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
            self.permits.counts.handshake.fetch_add(1, Ordering::Relaxed);
        }
        self.order.push_back(handle);
    }

    fn accept_failed(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        // These concern a single client, which disconnected before it was accepted.
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            tracing::warn!(%error, "cannot accept connections for a moment; too many open files?");
            self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
    permit: Permit,
    until: Instant,
    idle: Duration,
) -> Option<Connection> {
    let failed = match tokio::time::timeout_at(until, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => return Some(Connection::tls(tls, address, permit, idle)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "not in time".to_owned(),
    };
    permit.counts().handshake.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(peer = %address, reason = %failed, "a TLS handshake failed");
    None
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_connection(cx).map(|connection| Some(Ok(connection)))
    }
}

/// The connection counts of a listener.
#[derive(Debug, Clone)]
pub struct Traffic(pub(crate) Arc<Permits>);

impl Traffic {
    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.0.open_now()
    }
}
