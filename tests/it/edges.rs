//! What a call must be before it is carried out, as clients see it that write their own frames: its content type, and its deadline. And
//! what a client sends to whom.

use std::net::SocketAddr;
use std::process::Stdio;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use witan_servers::Authority;
use witan_wire::v1;

use crate::harness::{Api, Dev, PATIENCE, Process, Version, read, write};

const WRITE: &str = "witan.v1.CoordinatorService/WriteKeyValue";
const READ: &str = "witan.v1.CoordinatorService/ReadKeyValue";
const CREATE: &str = "witan.v1.CoordinatorService/CreateTenant";
const DELETE: &str = "witan.v1.CoordinatorService/DeleteTenant";

/// A message in its frame.
fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).expect("a short message"));
    message.encode(&mut bytes).expect("room");
    bytes.freeze()
}

/// The answer to a call: its status of HTTP, and all its headers and trailers.
struct Answer {
    http: StatusCode,
    headers: HeaderMap,
}

impl Answer {
    /// The status of gRPC, with reason and outcome.
    fn summary(&self) -> (Code, String, Option<String>) {
        let status = Status::from_header_map(&self.headers).expect("a status of gRPC");
        let info = status.get_details_error_info();
        let outcome = info.as_ref().and_then(|info| info.metadata.get("outcome").cloned());
        (status.code(), info.map(|info| info.reason).unwrap_or_default(), outcome)
    }
}

async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(address).await.expect("connect");
    let (send, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
    tokio::spawn(connection);
    send.ready().await.expect("the connection takes calls")
}

/// Calls `method` with these headers. `complete` says whether the request ends after `body`, or the rest of it never comes.
async fn call(address: SocketAddr, method: &str, headers: &[(&str, &str)], body: Bytes, complete: bool) -> Answer {
    let mut send = connect(address).await;
    let mut request = Request::builder().method(Method::POST).uri(format!("http://{address}/{method}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answered = async {
        let (response, mut sending) = send.send_request(request.body(()).expect("a request"), false).expect("a call");
        // The server may have answered, and ended the stream, before all of it is sent.
        let _ = sending.send_data(body, complete);
        let (head, mut content) = response.await.expect("an answer").into_parts();
        let mut headers = head.headers;
        while let Some(Ok(_)) = content.data().await {}
        if let Ok(Some(trailers)) = content.trailers().await {
            headers.extend(trailers);
        }
        drop(sending);
        Answer { http: head.status, headers }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("every call is answered")
}

async fn with_tenant() -> (Dev, Api) {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    (dev, api)
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn what_is_not_grpc_is_not_carried_out() {
    let (dev, api) = with_tenant().await;
    let body = framed(&write("t", "k", "v"));
    for wrong in
        ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text", "application/grpc+json"]
    {
        let answer = call(dev.address(), WRITE, &[("content-type", wrong)], body.clone(), true).await;
        assert_eq!(answer.http, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{wrong}");
        assert_eq!(answer.headers["accept"], "application/grpc", "{wrong}");
    }
    assert_eq!(call(dev.address(), WRITE, &[], body.clone(), true).await.http, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let gone = api.read(read("t", "k")).await.expect_err("nothing was written");
    assert_eq!(gone.reason, "KEY_NOT_FOUND");

    // What a page of another site can make a browser send, with the certificate of its user.
    let forged = v1::CreateTenantRequest { tenant_id: "forged".to_owned(), ..v1::CreateTenantRequest::default() };
    let headers = [("content-type", "text/plain"), ("origin", "https://elsewhere.example")];
    let answer = call(dev.address(), CREATE, &headers, framed(&forged), true).await;
    assert_eq!(answer.http, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let request = v1::GetTenantRequest { tenant_id: "forged".to_owned() };
    assert_eq!(api.client().get_tenant(request).await.expect_err("no tenant").code(), Code::NotFound);

    let node = dev.nodes()[0];
    for path in ["witan.v1.StorageNodeService/Describe", "grpc.health.v1.Health/Check"] {
        let answer = call(node, path, &[("content-type", "text/plain")], framed(&v1::DescribeRequest {}), true).await;
        assert_eq!(answer.http, StatusCode::UNSUPPORTED_MEDIA_TYPE, "a node: {path}");
    }
    for right in ["application/grpc+proto", "application/grpc; charset=utf-8"] {
        let answer = call(dev.address(), WRITE, &[("content-type", right)], body.clone(), true).await;
        assert_eq!((answer.http, answer.summary().0), (StatusCode::OK, Code::Ok), "{right}");
    }
}

#[tokio::test]
async fn compressed_messages_are_refused_with_the_remedy() {
    let (dev, api) = with_tenant().await;
    let (mut gzip, plain) = (BytesMut::from(&framed(&write("t", "k", "v"))[..]), framed(&write("t", "k", "v")));
    gzip[0] = 1;
    for (method, outcome) in [(WRITE, Some("not-applied")), (READ, None), ("grpc.health.v1.Health/Check", None)] {
        let answer = call(dev.address(), method, &[GRPC, ("grpc-encoding", "gzip")], gzip.clone().freeze(), true).await;
        let expected = (Code::Unimplemented, "COMPRESSION_UNSUPPORTED".to_owned(), outcome.map(str::to_owned));
        assert_eq!(answer.summary(), expected, "{method}");
        assert_eq!(answer.headers["grpc-accept-encoding"], "identity", "{method}");
        let message = Status::from_header_map(&answer.headers).expect("a status").message().to_owned();
        assert!(message.contains("gzip") && message.contains("turn compression off"), "{message}");
    }
    assert_eq!(api.read(read("t", "k")).await.expect_err("nothing was written").reason, "KEY_NOT_FOUND");
    let identity = [GRPC, ("grpc-encoding", "identity"), ("grpc-accept-encoding", "gzip, identity")];
    assert_eq!(call(dev.address(), WRITE, &identity, plain, true).await.summary().0, Code::Ok);
}

#[tokio::test]
async fn a_deadline_that_has_passed_says_what_became_of_the_call() {
    let (dev, api) = with_tenant().await;
    let body = framed(&write("t", "k", "v"));
    let late = |outcome: Option<&str>| (Code::DeadlineExceeded, "DEADLINE".to_owned(), outcome.map(str::to_owned));
    for timeout in ["0n", "1u", "1m", "20m", "300m"] {
        let headers = [GRPC, ("grpc-timeout", timeout)];
        // Often, since timers of the same moment could fire in either order.
        for _ in 0..8 {
            let slow = call(dev.address(), WRITE, &headers, body.slice(..body.len() - 1), false).await;
            assert_eq!(slow.summary(), late(Some("not-applied")), "{timeout}: the message is not complete");
            if timeout == "300m" {
                break;
            }
        }
        let endless = call(dev.address(), WRITE, &headers, body.clone(), false).await;
        assert_eq!(endless.summary(), late(Some("not-applied")), "{timeout}: the request does not end");
        let slow = call(dev.address(), READ, &headers, Bytes::new(), false).await;
        assert_eq!(slow.summary(), late(None), "{timeout}: a read has no outcome");
    }
    let gone = api.read(read("t", "k")).await.expect_err("nothing was written");
    assert_eq!(gone.reason, "KEY_NOT_FOUND");
    for (timeout, method) in [("0n", WRITE), ("0S", CREATE)] {
        let answer = call(dev.address(), method, &[GRPC, ("grpc-timeout", timeout)], body.clone(), true).await;
        assert_eq!(answer.summary(), late(Some("not-applied")), "{method}: it does not begin");
    }

    let node = dev.nodes()[0];
    let headers = [GRPC, ("grpc-timeout", "20m")];
    let answer = call(node, "witan.v1.StorageNodeService/Read", &headers, Bytes::new(), false).await;
    assert_eq!(answer.summary().0, Code::DeadlineExceeded, "a node");
}

#[tokio::test]
async fn a_deadline_beyond_all_clocks_is_only_a_long_one() {
    let (dev, api) = with_tenant().await;
    api.write(write("t", "k", "v")).await.expect("write");
    let list = v1::ListKeysRequest { tenant_id: "t".to_owned(), ..v1::ListKeysRequest::default() };
    let remove = v1::DeleteTenantRequest {
        tenant_id: "t".to_owned(),
        confirm: "t".to_owned(),
        ..v1::DeleteTenantRequest::default()
    };
    let calls = [
        (READ, framed(&read("t", "k"))),
        (WRITE, framed(&write("t", "k", "w"))),
        ("witan.v1.CoordinatorService/ListKeys", framed(&list)),
        (DELETE, framed(&remove)),
    ];
    for (method, body) in calls {
        for timeout in ["18446744073709551615S", "99999999H"] {
            let answer = call(dev.address(), method, &[GRPC, ("grpc-timeout", timeout)], body.clone(), true).await;
            let found = answer.summary().0;
            let again = method == DELETE && found == Code::NotFound;
            assert!(found == Code::Ok || again, "{method}: {timeout}: {:?}", answer.summary());
        }
    }
}

/// A token that must not be seen.
const SECRET: &str = "witan_k3jd72qpx4ma_secret";

/// A command that sends a token, to this endpoint.
fn sends(endpoint: &str) -> tokio::process::Command {
    let mut command = Process::witan();
    command.args(["kv", "get", "-t", "t", "k", "--timeout", "60s", "--endpoint", endpoint]).env("WITAN_TOKEN", SECRET);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    command
}

#[tokio::test]
async fn a_scheme_in_capitals_speaks_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let folder = tempfile::tempdir().expect("make a folder");
    let authority = Authority::new(folder.path(), "ca").file();
    for scheme in ["HTTPS", "Https", "https"] {
        let endpoint = format!("{scheme}://{}", listener.local_addr().expect("an address"));
        let mut client = sends(&endpoint).arg("--ca-file").arg(&authority).spawn().expect("start witan");
        let heard = async {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            connection.read_u8().await.expect("it speaks first")
        };
        let first = tokio::time::timeout(PATIENCE, heard).await.expect("the client connects");
        // The first record of a handshake (RFC 8446, section 5.1); HTTP/2 in plain text begins with "PRI".
        assert_eq!(first, 22, "{scheme}");
        client.kill().await.expect("end the client");
    }
}

#[tokio::test]
async fn a_token_is_sent_to_nobody_who_is_not_meant() {
    // An address for documentation (RFC 5737): nobody has it.
    let far = "192.0.2.1:50051";
    for (endpoint, says) in [
        (format!("http://{far}"), "--allow-plaintext-token"),
        (format!("HTTP://{far}"), "--allow-plaintext-token"),
        (format!("grpcs://{far}"), "https:// (TLS)"),
        (format!("tls://{far}"), "https:// (TLS)"),
        (format!("httpss://{far}"), "https:// (TLS)"),
        (far.to_owned(), "or https://192.0.2.1:50051 for TLS"),
    ] {
        let ended = tokio::time::timeout(PATIENCE, sends(&endpoint).output()).await;
        let ended = ended.expect("it is refused without a connection").expect("run witan");
        let error = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && error.contains(says) && !error.contains(SECRET), "{endpoint}: {error}");
        assert!(!error.contains("cannot reach"), "{endpoint}: nothing was sent: {error}");
    }
    let (dev, _) = with_tenant().await;
    // A coordinator on this machine without access control: the token goes there, and is not needed.
    let ended = sends(&format!("http://{}", dev.address())).output().await.expect("run witan");
    assert_eq!(ended.status.code(), Some(3), "no such key: {}", String::from_utf8_lossy(&ended.stderr));
}

#[tokio::test]
async fn new_ids_are_visible_and_ids_of_before_go_on() {
    let hidden = "shop\u{200b}";
    let folder = tempfile::tempdir().expect("make a folder");
    let before = Dev::of_version(Version::Previous, folder.path()).await;
    before.api().tenant(hidden, |_| {}).await;
    before.api().write(write(hidden, "k", "v")).await.expect("write");
    drop(before);

    let dev = Dev::of_version(Version::This, folder.path()).await;
    let api = dev.api();
    let found = api.read(read(hidden, "k")).await.expect("read");
    assert_eq!(found.value, "v");
    api.write(write(hidden, "k", "w")).await.expect("write");
    for id in ["shop\u{200c}", "\u{202e}pohs", "shop\u{2028}", "shop\u{feff}"] {
        let request = v1::CreateTenantRequest { tenant_id: id.to_owned(), ..v1::CreateTenantRequest::default() };
        let refused = api.client().create_tenant(request).await.expect_err(id);
        assert_eq!(refused.code(), Code::InvalidArgument, "{id:?}");
        let info = refused.get_details_error_info().expect("a reason");
        assert_eq!((info.reason.as_str(), info.metadata["outcome"].as_str()), ("INVALID_REQUEST", "not-applied"));
        assert_eq!(refused.get_details_bad_request().expect("a field").field_violations[0].field, "tenant_id");
    }
}
