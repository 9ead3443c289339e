//! An accepted connection, with or without TLS, and the identity of its peer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use x509_parser::extensions::GeneralName;

use crate::permits::{Permit, Usage};

/// Most names taken from a certificate. They are written to logs.
const NAMES: usize = 16;
/// Longest such name, in bytes; longer ones are ignored.
const NAME_BYTES: usize = 256;

/// The peer of a connection. tonic puts it into the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The identity in its certificate, which was verified against the authorities; `None` without a certificate.
    pub identity: Option<Arc<Identity>>,
    /// The use that is made of the connection.
    pub usage: Usage,
}

/// The names in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The subject alternative names (DNS names and URIs), or the common name if there are none.
    pub names: Vec<String>,
}

impl Identity {
    /// Reads the names in a certificate (DER) that has been verified; `None` if it cannot be parsed.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let alternatives = alternatives.iter().flat_map(|names| &names.value.general_names);
        let mut names: Vec<String> = alternatives
            .filter_map(|name| match name {
                GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect();
        if names.is_empty() {
            let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            names.extend(common.map(ToOwned::to_owned));
        }
        names.retain(|name| name.len() <= NAME_BYTES);
        names.truncate(NAMES);
        Some(Self { names })
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a client has to do before a deadline.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Awaited {
    /// To send this many bytes.
    Bytes(usize),
    /// To make a call, with all its headers.
    Call,
}

/// What a client has to do, and until when.
struct Greeting {
    awaited: Awaited,
    until: Pin<Box<Sleep>>,
}

/// A connection that was accepted.
pub struct Connection {
    io: Io,
    peer: Peer,
    permit: Permit,
    greeting: Option<Greeting>,
    /// It is closed after so long without a call.
    idle: Duration,
    /// Whether it is idle, and whether its client reads its answers, is looked at when this has elapsed.
    look: Pin<Box<Sleep>>,
}

/// How often it is looked whether a client reads its answers.
const LOOK: Duration = Duration::from_secs(5);

impl Connection {
    pub(crate) fn plain(tcp: TcpStream, address: SocketAddr, permit: Permit, idle: Duration) -> Self {
        Self::over(Io::Plain(tcp), address, None, permit, idle)
    }

    pub(crate) fn tls(tls: TlsStream<TcpStream>, address: SocketAddr, permit: Permit, idle: Duration) -> Self {
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.and_then(|certificate| Identity::of(certificate)).map(Arc::new);
        Self::over(Io::Tls(Box::new(tls)), address, identity, permit, idle)
    }

    fn over(io: Io, address: SocketAddr, identity: Option<Arc<Identity>>, permit: Permit, idle: Duration) -> Self {
        let peer = Peer { address, identity, usage: permit.usage() };
        let look = Box::pin(tokio::time::sleep(LOOK.min(idle)));
        Self { io, peer, permit, greeting: None, idle, look }
    }

    /// The same connection, which fails unless the client has done what is awaited at `until`.
    pub(crate) fn greeted(mut self, awaited: Awaited, until: Instant) -> Self {
        self.greeting = Some(Greeting { awaited, until: Box::pin(tokio::time::sleep_until(until)) });
        self
    }

    /// The peer.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// An error if the connection was evicted, its client has done too little before the deadline, or it has been idle for too long.
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.permit.is_evicted(cx) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "silent, and evicted to make room for another",
            ));
        }
        let late = self.greeting.as_mut().is_some_and(|greeting| greeting.until.as_mut().poll(cx).is_ready());
        let greeted = late && self.permit.was_called();
        if greeted {
            self.greeting = None;
        } else if late {
            self.greeting = None;
            self.permit.counts().silent.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client sent too little in time"));
        }
        self.check_use(cx)
    }

    fn check_use(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.look.as_mut().poll(cx).is_ready() {
            let idle = self.permit.idle_for();
            if idle >= self.idle {
                self.permit.counts().idle.fetch_add(1, Ordering::Relaxed);
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client made no call for too long"));
            }
            if self.permit.is_stalled() {
                self.permit.counts().stalled.fetch_add(1, Ordering::Relaxed);
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answers"));
            }
            self.look.as_mut().reset(Instant::now() + LOOK.min(self.idle - idle));
        }
        Ok(())
    }

    fn heard(&mut self, bytes: usize) {
        self.permit.heard();
        if let Some(Greeting { awaited: Awaited::Bytes(missing), .. }) = &mut self.greeting {
            *missing = missing.saturating_sub(bytes);
            if *missing == 0 {
                self.greeting = None;
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        let before = buffer.filled().len();
        match &mut self.io {
            Io::Plain(io) => ready!(Pin::new(io).poll_read(cx, buffer))?,
            Io::Tls(io) => ready!(Pin::new(io).poll_read(cx, buffer))?,
        }
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.heard(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, parts),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
