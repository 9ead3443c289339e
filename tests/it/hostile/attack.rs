//! The attacks of hostile clients. Every loop is bounded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::join_all;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::harness::PATIENCE;

/// The HTTP/2 preface, with empty settings.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Connections opened at a time, so that the listener's queue does not overflow.
const AT_A_TIME: usize = 200;

/// This number of connections that send these bytes and then nothing.
pub(super) async fn wordless(address: SocketAddr, count: usize, words: &'static [u8]) -> Vec<TcpStream> {
    let mut connected = Vec::with_capacity(count);
    while connected.len() < count {
        let more = (count - connected.len()).min(AT_A_TIME);
        let dialled = join_all((0..more).map(|_| async move {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            stream.write_all(words).await.expect("say something");
            stream
        }));
        connected.extend(tokio::time::timeout(PATIENCE, dialled).await.expect("connections are accepted"));
    }
    connected
}

/// A call that needs a credential, where there are any.
pub(super) const WRITE: &str = "witan.v1.CoordinatorService/WriteKeyValue";
/// A call that needs no credential.
pub(super) const HEALTH: &str = "grpc.health.v1.Health/Check";

fn call(address: SocketAddr, method: &str) -> Request<()> {
    let uri = format!("http://{address}/{method}");
    let request = Request::builder().method(Method::POST).uri(uri).header("te", "trailers");
    request.header("content-type", "application/grpc").body(()).expect("a request")
}

async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let tcp = TcpStream::connect(address).await.expect("connect");
    let (send, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
    (send, tokio::spawn(async move { drop(connection.await) }))
}

/// Calls that are reset as soon as they are made, on this number of connections at once; returns how many there were until the server
/// closed the connections.
pub(super) async fn rapid_resets(address: SocketAddr, connections: usize, each: usize) -> usize {
    let attack = async |_| {
        let (send, _running) = connect(address).await;
        let mut resets = 0;
        while resets < each {
            let Ok(mut ready) = send.clone().ready().await else { break };
            let Ok((_, mut body)) = ready.send_request(call(address, WRITE), false) else { break };
            body.send_reset(Reason::CANCEL);
            resets += 1;
            if resets % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        resets
    };
    let attacks = join_all((0..connections).map(attack));
    tokio::time::timeout(PATIENCE, attacks).await.expect("an attack ends").into_iter().sum()
}

fn frame(kind: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(9 + payload.len());
    bytes.put_uint(payload.len() as u64, 3);
    bytes.put_u8(kind);
    // No flags: neither the headers nor the stream end here.
    bytes.put_u8(0);
    bytes.put_u32(stream);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// A block of headers that goes on until the server closes the connection; returns the number of bytes that it accepted.
pub(super) async fn continuation_flood(address: SocketAddr, most: usize) -> usize {
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let mut stream = TcpStream::connect(address).await.expect("connect");
    // ":method: POST", ":scheme: http", ":path: /", from the static table.
    let first = [PREFACE, &frame(HEADERS, 1, &[0x83, 0x86, 0x84])].concat();
    stream.write_all(&first).await.expect("begin");
    // "x: yyy...", a literal that is not indexed, over and over.
    let mut header = vec![0, 1, b'x', 100];
    header.resize(4 + 100, b'y');
    let piece = frame(CONTINUATION, 1, &header.repeat(150));
    let mut sent = 0;
    let flood = async {
        let (mut reading, mut writing) = stream.split();
        let mut words = [0; 1024];
        let ended = async { while matches!(reading.read(&mut words).await, Ok(1..)) {} };
        let flooding = async {
            while sent < most && writing.write_all(&piece).await.is_ok() {
                sent += piece.len();
            }
        };
        tokio::select! {
            () = ended => {}
            () = flooding => {}
        }
    };
    tokio::time::timeout(PATIENCE, flood).await.expect("a flood ends");
    sent
}

/// Watches the health of the server this often on each of this number of connections. Returns how many of the streams stay open, and what
/// keeps them open.
pub(super) async fn watchers(address: SocketAddr, connections: usize, each: usize) -> (usize, impl Sized) {
    const WATCH: &str = "grpc.health.v1.Health/Watch";
    let mut kept = Vec::new();
    for _ in 0..connections {
        let (send, running) = connect(address).await;
        let watch = async |_| {
            let mut ready = send.clone().ready().await.expect("the connection takes calls");
            let (response, mut body) = ready.send_request(call(address, WATCH), false).expect("a call");
            body.send_data(Bytes::from_static(&[0; 5]), true).expect("an empty message");
            let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("a response");
            (!response.headers().contains_key("grpc-status")).then_some(response)
        };
        let open: Vec<_> = join_all((0..each).map(watch)).await.into_iter().flatten().collect();
        kept.push((open, running));
    }
    (kept.iter().map(|(open, _)| open.len()).sum(), kept)
}

/// Makes a call this often on one connection whose client takes no byte of any answer, and waits until each is answered. Returns how many
/// answers have something to take, what ends when the server has closed the connection, and the calls.
pub(super) async fn unread(
    address: SocketAddr,
    method: &str,
    message: &impl Message,
    calls: usize,
) -> (usize, JoinHandle<()>, impl Sized) {
    let tcp = TcpStream::connect(address).await.expect("connect");
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(tcp).await.expect("HTTP/2");
    let running = tokio::spawn(async move { drop(connection.await) });
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.encoded_len() as u32);
    message.encode(&mut framed).expect("there is room");
    let framed = framed.freeze();
    let mut answers = Vec::new();
    for _ in 0..calls {
        let mut ready = send.clone().ready().await.expect("the connection takes calls");
        let (response, mut body) = ready.send_request(call(address, method), false).expect("a call");
        body.send_data(framed.clone(), true).expect("a message");
        answers.push(response);
    }
    let answers = tokio::time::timeout(PATIENCE, join_all(answers)).await.expect("answers in time");
    let untaken = |answer: &&Result<http::Response<h2::RecvStream>, h2::Error>| {
        answer.as_ref().is_ok_and(|answer| !answer.headers().contains_key("grpc-status"))
    };
    (answers.iter().filter(untaken).count(), running, (answers, send))
}

/// A session.
const SESSION: &str = "witan.v1.CoordinatorService/Session";

/// Opens sessions, and says nothing in them: this number on each of this number of connections. Returns how many are open, and what keeps
/// them open.
pub(super) async fn silent_sessions(address: SocketAddr, connections: usize, each: usize) -> (usize, impl Sized) {
    let mut kept = Vec::new();
    for _ in 0..connections {
        let (send, running) = connect(address).await;
        let mut open = Vec::new();
        for _ in 0..each {
            let mut ready = send.clone().ready().await.expect("the connection takes calls");
            open.push(ready.send_request(call(address, SESSION), false).expect("a call"));
        }
        let begun = join_all(open.into_iter().map(async |(response, body)| {
            let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").expect("a response");
            (!response.headers().contains_key("grpc-status")).then_some((response, body))
        }));
        kept.push((begun.await.into_iter().flatten().collect::<Vec<_>>(), running));
    }
    (kept.iter().map(|(open, _)| open.len()).sum(), kept)
}

/// Sessions on one connection whose client takes no answers and goes on sending: what the server does not read any more stays in the
/// buffers of the connection. Returns how many bytes the server let it send within a few seconds, and what keeps the connection open.
pub(super) async fn unheard(address: SocketAddr, sessions: usize, each: Bytes) -> (usize, impl Sized) {
    let tcp = TcpStream::connect(address).await.expect("connect");
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(tcp).await.expect("HTTP/2");
    let running = tokio::spawn(async move { drop(connection.await) });
    let mut kept = Vec::new();
    for _ in 0..sessions {
        let mut ready = send.clone().ready().await.expect("the connection takes calls");
        let (response, body) = ready.send_request(call(address, SESSION), false).expect("a call");
        kept.push((response, body, each.clone()));
    }
    let sending = kept.iter_mut().map(async |(_, body, rest)| {
        let mut sent = 0;
        while !rest.is_empty() {
            body.reserve_capacity(rest.len().min(1 << 16));
            // A session whose client does not read is closed at some time.
            let granted =
                tokio::time::timeout(Duration::from_secs(3), std::future::poll_fn(|cx| body.poll_capacity(cx)));
            let Ok(Some(Ok(granted))) = granted.await else { break };
            let part = rest.split_to(granted.min(rest.len()));
            sent += part.len();
            if body.send_data(part, false).is_err() {
                break;
            }
        }
        sent
    });
    let sent = join_all(sending).await.into_iter().sum();
    (sent, (kept, running, send))
}

/// An HTTP client at this address that sends a byte of its headers now and then, until it is closed.
pub(super) async fn drip(address: SocketAddr, from: IpAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from, 0)).expect("every address of 127.0.0.0/8 is this machine's");
    let Ok(mut stream) = socket.connect(address).await else { return };
    let mut words = [0; 64];
    for byte in b"GET /livez HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'y')) {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        let heard = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut words)).await;
        if matches!(heard, Ok(Ok(0) | Err(_))) {
            return;
        }
    }
}

/// Calls on one connection with 15 KiB of headers each, whose message never arrives. Returns how many are refused within a few seconds, and
/// what keeps the others open.
pub(super) async fn long_headers(address: SocketAddr, calls: usize) -> (usize, impl Sized) {
    let (send, running) = connect(address).await;
    let mut open = Vec::new();
    for _ in 0..calls {
        let mut ready = send.clone().ready().await.expect("the connection takes calls");
        let mut request = call(address, WRITE);
        request.headers_mut().insert("x-long", HeaderValue::from_str(&"y".repeat(15 << 10)).expect("a header"));
        open.push(ready.send_request(request, false).expect("a call"));
    }
    let refused =
        open.iter_mut().map(async |(response, _)| tokio::time::timeout(Duration::from_secs(5), response).await.is_ok());
    let refused = join_all(refused).await.into_iter().filter(|refused| *refused).count();
    (refused, (open, running))
}

/// A connection that pings twice a second and makes no call, until it is closed.
pub(super) async fn ping(address: SocketAddr) {
    const PING: u8 = 6;
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    let (mut reading, mut writing) = stream.split();
    let mut words = [0; 1024];
    let ended = async { while matches!(reading.read(&mut words).await, Ok(1..)) {} };
    let pinging = async {
        let mut sent = writing.write_all(PREFACE).await;
        while sent.is_ok() {
            sent = writing.write_all(&frame(PING, 0, &[7; 8])).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = ended => {}
        () = pinging => {}
    }
}

/// A call with one whole message, of any bytes, on a connection of its own; returns its status and that status's message.
pub(super) async fn whole(address: SocketAddr, method: &str, message: &[u8]) -> (u32, String) {
    whole_within(address, method, message, None).await
}

/// The same, with this header `grpc-timeout`.
pub(super) async fn whole_within(
    address: SocketAddr,
    method: &str,
    message: &[u8],
    timeout: Option<&'static str>,
) -> (u32, String) {
    let (send, _running) = connect(address).await;
    let mut ready = send.ready().await.expect("the connection takes calls");
    let mut request = call(address, method);
    if let Some(timeout) = timeout {
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static(timeout));
    }
    let (response, mut body) = ready.send_request(request, false).expect("a call");
    let mut bytes = BytesMut::with_capacity(5 + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).expect("a message's length"));
    bytes.put_slice(message);
    // As far as the windows allow: the rest follows as they open.
    let _ = body.send_data(bytes.freeze(), true);
    let ended = async {
        let (head, mut answers) = response.await.expect("a response").into_parts();
        if head.headers.contains_key("grpc-status") {
            return head.headers;
        }
        while let Some(piece) = answers.data().await {
            let _ = answers.flow_control().release_capacity(piece.expect("a piece of the answer").len());
        }
        answers.trailers().await.expect("the end of the answer").expect("trailers")
    };
    let headers = tokio::time::timeout(PATIENCE, ended).await.expect("in time");
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    (text("grpc-status").parse().expect("a status"), text("grpc-message").to_owned())
}

/// Calls of one connection whose message is not complete.
pub(super) struct Half {
    /// The status of each, once it is known.
    pub(super) statuses: Vec<oneshot::Receiver<u32>>,
    _running: JoinHandle<()>,
}

/// This number of calls on one connection, each with a message of `length` bytes of which `sent` are sent, as far as the server accepts
/// them within a few seconds.
pub(super) async fn half_sent(
    address: SocketAddr,
    method: &'static str,
    calls: usize,
    length: u32,
    sent: usize,
) -> Half {
    let (send, running) = connect(address).await;
    let (mut statuses, mut sending) = (Vec::new(), Vec::new());
    for _ in 0..calls {
        let mut ready = send.clone().ready().await.expect("the connection takes calls");
        let (response, mut body) = ready.send_request(call(address, method), false).expect("a call");
        let (sender, receiver) = oneshot::channel();
        statuses.push(receiver);
        let mut message = BytesMut::with_capacity(5 + sent);
        message.put_u8(0);
        message.put_u32(length);
        message.resize(5 + sent, 0);
        sending.push(tokio::spawn(async move {
            // Waits for the flow-control window of the stream, which is kept until the status arrives.
            let taken = body.send_data(message.freeze(), false);
            let status = response
                .await
                .ok()
                .and_then(|response| response.headers().get("grpc-status")?.to_str().ok()?.parse().ok());
            // The receiver may be gone.
            let _ = status.map(|status| sender.send(status));
            drop((taken, body));
        }));
    }
    // Until it stops, or somewhat longer than a loopback needs.
    let flowing = tokio::time::timeout(Duration::from_secs(3), join_all(&mut sending));
    drop(flowing.await);
    Half { statuses, _running: running }
}
