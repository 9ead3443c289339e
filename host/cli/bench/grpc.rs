//! Unary gRPC calls directly over HTTP/2: the load generator shares its cores with the system it measures, and a call through
//! the generated client costs about twice as much.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{AUTHORIZATION, CONTENT_TYPE, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use witan_net::ClientSide;
use witan_wire::weigh::{self, Weighed};

use super::super::client::MESSAGE_BYTES;
use super::super::credential::Shown;

/// The five bytes before a message: a compression flag and the length.
const PREFIX: usize = 5;

/// Why a call returned no message.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server returned a status; the connection can be used again.
    Refused(Box<Status>),
    /// The connection has failed.
    Broken(String),
}

impl From<h2::Error> for CallError {
    fn from(error: h2::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// One method at one server.
#[derive(Debug, Clone)]
pub(super) struct Rpc {
    uri: Uri,
    headers: HeaderMap,
}

impl Rpc {
    /// The method at `path` ("/package.Service/Method") of the server at `endpoint` ("http://host:port"); `timeout` is sent as the
    /// deadline.
    pub(super) fn new(endpoint: &Uri, path: &'static str, timeout: Duration) -> anyhow::Result<Self> {
        let mut parts = endpoint.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static(path));
        let mut headers = HeaderMap::new();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        // The protocol allows eight digits: as milliseconds, more than a day.
        let millis = timeout.as_millis().clamp(1, 99_999_999);
        headers.insert("grpc-timeout", HeaderValue::from_str(&format!("{millis}m"))?);
        Ok(Self { uri: Uri::from_parts(parts)?, headers })
    }

    /// The same, with a credential.
    pub(super) fn showing(mut self, shown: &Shown) -> Self {
        self.headers.extend(shown.header().map(|header| (AUTHORIZATION, header)));
        self
    }

    /// Calls it.
    pub(super) async fn call<A: Message, B: Weighed>(
        &self,
        send: &mut SendRequest<Bytes>,
        message: &A,
    ) -> Result<B, CallError> {
        poll_fn(|context| send.poll_ready(context)).await?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        request.uri_mut().clone_from(&self.uri);
        request.headers_mut().clone_from(&self.headers);
        let (response, mut body) = send.send_request(request, false)?;
        body.send_data(framed(message), true)?;

        let (head, mut body) = response.await?.into_parts();
        if let Some(status) = status_of(&head.headers) {
            return Err(CallError::Refused(Box::new(status)));
        }
        let received = receive(&mut body).await?;
        let trailers = body.trailers().await?.unwrap_or_default();
        match status_of(&trailers) {
            Some(status) if status.code() == Code::Ok => unframed(received),
            Some(status) => Err(CallError::Refused(Box::new(status))),
            None => Err(CallError::Broken("an answer without a status".to_owned())),
        }
    }
}

/// The task that drives a connection; it must be polled (spawn it) for as long as the connection is used.
pub(super) type Running = Pin<Box<dyn Future<Output = ()>>>;

/// Opens a connection.
pub(super) async fn connect(endpoint: &Uri, tls: Option<&ClientSide>) -> anyhow::Result<(SendRequest<Bytes>, Running)> {
    let host = endpoint.host().with_context(|| format!("{endpoint} names no host"))?;
    let port = endpoint.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    match tls {
        Some(tls) => shake_hands(tls.secure(host, socket).await?).await,
        None => shake_hands(socket).await,
    }
}

async fn shake_hands(
    socket: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> anyhow::Result<(SendRequest<Bytes>, Running)> {
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .enable_push(false)
        .handshake(socket)
        .await?;
    // An error here fails every call in flight.
    Ok((send, Box::pin(async move { drop(connection.await) })))
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    // Values are far below 4 GiB.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer has room for it.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

fn unframed<B: Weighed>(mut bytes: Bytes) -> Result<B, CallError> {
    let broken = |what: &str| CallError::Broken(what.to_owned());
    if bytes.len() < PREFIX || bytes[0] != 0 {
        return Err(broken("a response that is not an uncompressed message"));
    }
    let prefix = bytes.split_to(PREFIX);
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if usize::try_from(length) != Ok(bytes.len()) {
        return Err(broken("an answer of another length than it says"));
    }
    weigh::decode(bytes).map_err(|error| CallError::Broken(error.to_string()))
}

async fn receive(body: &mut h2::RecvStream) -> Result<Bytes, CallError> {
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if first.is_empty() && joined.is_empty() {
            first = chunk;
            continue;
        }
        if joined.is_empty() {
            joined.extend_from_slice(&first);
        }
        if joined.len() + chunk.len() > MESSAGE_BYTES {
            return Err(CallError::Broken("an answer that is too large".to_owned()));
        }
        joined.extend_from_slice(&chunk);
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}

/// The status in headers or trailers. The usual one, a plain 0, needs no decoding.
fn status_of(headers: &HeaderMap) -> Option<Status> {
    match headers.get("grpc-status")?.as_bytes() {
        b"0" => Some(Status::new(Code::Ok, "")),
        _ => Status::from_header_map(headers),
    }
}
