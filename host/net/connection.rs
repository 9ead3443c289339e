//! An accepted connection, with or without TLS, and the identity of its peer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use x509_parser::extensions::GeneralName;

use crate::permits::Permit;

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

/// The bytes that a client has to send before a deadline.
struct Greeting {
    missing: usize,
    until: Pin<Box<Sleep>>,
}

/// A connection that was accepted.
pub struct Connection {
    io: Io,
    peer: Peer,
    permit: Permit,
    greeting: Option<Greeting>,
}

impl Connection {
    pub(crate) fn plain(tcp: TcpStream, address: SocketAddr, permit: Permit) -> Self {
        Self { io: Io::Plain(tcp), peer: Peer { address, identity: None }, permit, greeting: None }
    }

    pub(crate) fn tls(tls: TlsStream<TcpStream>, address: SocketAddr, permit: Permit) -> Self {
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.and_then(|certificate| Identity::of(certificate)).map(Arc::new);
        Self { io: Io::Tls(Box::new(tls)), peer: Peer { address, identity }, permit, greeting: None }
    }

    /// The same connection, which fails unless it has received `bytes` bytes at `until`.
    pub(crate) fn greeted(mut self, bytes: usize, until: Instant) -> Self {
        self.greeting = Some(Greeting { missing: bytes, until: Box::pin(tokio::time::sleep_until(until)) });
        self
    }

    /// The peer.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// An error if the connection was evicted, or its client has sent too little before the deadline.
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.permit.is_evicted(cx) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "silent, and evicted to make room for another",
            ));
        }
        let late = self.greeting.as_mut().is_some_and(|greeting| greeting.until.as_mut().poll(cx).is_ready());
        if late {
            self.greeting = None;
            self.permit.counts().silent.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client sent too little in time"));
        }
        Ok(())
    }

    fn heard(&mut self, bytes: usize) {
        self.permit.heard();
        if let Some(greeting) = &mut self.greeting {
            greeting.missing = greeting.missing.saturating_sub(bytes);
            if greeting.missing == 0 {
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
