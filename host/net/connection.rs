//! A connection that was accepted: with or without TLS, and who is at its other end.

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

use crate::slots::Slot;

/// Names that are taken from a certificate, and bytes of each: they go into logs.
const NAMES: usize = 16;
const NAME_BYTES: usize = 256;

/// Who is at the other end of a connection. Found in the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Who its certificate says it is, where one was asked for; it was checked against the authorities.
    pub identity: Option<Arc<Identity>>,
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its alternative names (DNS names and URIs); without any, its common name.
    pub names: Vec<String>,
}

impl Identity {
    /// Reads a certificate, whose signature has been checked.
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

/// What must have come by when.
struct Greeting {
    missing: usize,
    until: Pin<Box<Sleep>>,
}

/// A connection that was accepted.
pub struct Connection {
    io: Io,
    peer: Peer,
    slot: Slot,
    greeting: Option<Greeting>,
}

impl Connection {
    pub(crate) fn plain(tcp: TcpStream, address: SocketAddr, slot: Slot) -> Self {
        Self { io: Io::Plain(tcp), peer: Peer { address, identity: None }, slot, greeting: None }
    }

    pub(crate) fn tls(tls: TlsStream<TcpStream>, address: SocketAddr, slot: Slot) -> Self {
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.and_then(|certificate| Identity::of(certificate)).map(Arc::new);
        Self { io: Io::Tls(Box::new(tls)), peer: Peer { address, identity }, slot, greeting: None }
    }

    /// The same connection, which fails unless so many bytes have come by then.
    pub(crate) fn greeted(mut self, bytes: usize, until: Instant) -> Self {
        self.greeting = Some(Greeting { missing: bytes, until: Box::pin(tokio::time::sleep_until(until)) });
        self
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// An error when the connection must end whatever comes.
    fn goes_on(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.slot.must_go(cx) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "silent, and others need its place"));
        }
        let late = self.greeting.as_mut().is_some_and(|greeting| greeting.until.as_mut().poll(cx).is_ready());
        if late {
            self.greeting = None;
            self.slot.counts().silent.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said in time"));
        }
        Ok(())
    }

    fn heard(&mut self, bytes: usize) {
        self.slot.heard();
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
        self.goes_on(cx)?;
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
