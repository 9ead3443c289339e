//! The life cycle of tokens, web tokens, rate limits, the audit log, and the settings with which a coordinator refuses to start.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use witan::access::scope::{Scope, Scopes};
use witan::access::token::{Grant, make};
use witan_kernel::port::TokenStore;
use witan_store::metadata::SqliteMetadata;
use witan_wire::v1;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use super::{Guarded, made_beside, object, text};
use crate::harness::{PATIENCE, Process, Refusal, eventually, get_showing, own_address, read, write};

const TOKENS: &str = "  tokens: true\n";

/// Stores an expired token in a coordinator's store.
pub(super) async fn expired(data: &Path) -> String {
    let scopes = Scopes::ALL;
    let grant = Grant { tenant: None, scopes, label: "old".to_owned(), expires_at_ms: Some(2) };
    let fresh = make(grant, rand::random(), rand::random(), 1);
    let store = SqliteMetadata::open(data.join("metadata.db")).await.expect("open the store");
    store.create_token(fresh.token, None).await.expect("store a token");
    store.close().await;
    fresh.text
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[tokio::test]
async fn a_token_lives_until_it_is_revoked() {
    let guarded = Guarded::start(TOKENS).await;
    guarded.tenant("acme").await;
    let file = guarded.folder.path().join("operator.token");
    std::fs::write(&file, format!("{}\n", guarded.operator)).expect("write a file");
    let endpoint = format!("http://{}", guarded.address());
    let witan = |arguments: &[&str]| {
        let mut command = Process::witan();
        command.args(["--endpoint", &endpoint, "--output", "json", "--timeout", "60s", "--token-file"]).arg(&file);
        object(command.args(arguments))
    };
    let made = witan(&[
        "token",
        "create",
        "--tenant",
        "acme",
        "--scope",
        "read,write",
        "--label",
        "ci",
        "--expires-in",
        "90d",
    ]);
    assert_eq!((&made["tenant_id"], &made["scopes"]), (&json!("acme"), &json!(["read", "write"])));
    let ends = made["expires_at"].as_u64().expect("an end");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(ends.abs_diff(now + 90 * 86_400) < 600, "{ends}");

    let token = text(&made);
    let mut client = guarded.client(&token);
    client.write_key_value(write("acme", "k", "v")).await.expect("write");
    let found = client.read_key_value(read("acme", "k")).await.expect("read").into_inner();
    assert_eq!(found.value, "v");
    let mut put = Process::witan();
    put.args(["--endpoint", &endpoint, "kv", "get", "-t", "acme", "k"]).env("WITAN_TOKEN", &token);
    assert_eq!(put.output().expect("run witan").stdout, b"v");

    let listed = witan(&["token", "list"]);
    assert_eq!(listed["tokens"].as_array().map(Vec::len), Some(2));
    let secret = token.rsplit('_').next().expect("a secret");
    assert!(!listed.to_string().contains(secret));

    // An open session ends with its token.
    let (requests, sent) = tokio::sync::mpsc::channel(4);
    let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut session = client.session(stream).await.expect("open a session").into_inner();
    let ask = |id| v1::SessionRequestBatch {
        requests: vec![v1::SessionRequest { id, operation: Some(Operation::Read(read("acme", "k"))), timeout_ms: 0 }],
    };
    requests.send(ask(1)).await.expect("send");
    let answer = session.message().await.expect("a stream").expect("an answer");
    assert!(matches!(answer.responses[0].result, Some(Outcome::Read(_))), "{answer:?}");

    witan(&["token", "revoke", made["token_id"].as_str().expect("an id")]);
    requests.send(ask(2)).await.expect("send");
    let answer = session.message().await.expect("a stream").expect("an answer");
    match &answer.responses[0].result {
        Some(Outcome::Status(status)) => assert_eq!(Code::from_i32(status.code), Code::Unauthenticated),
        other => panic!("{other:?}"),
    }
    assert!(session.message().await.expect("a stream").is_none(), "the session has ended");
    let refused = client.read_key_value(read("acme", "k")).await.expect_err("it is revoked");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "UNAUTHORIZED"));
}

#[tokio::test]
async fn a_stream_of_events_ends_with_the_token_that_opened_it() {
    let guarded = Guarded::start(TOKENS).await;
    let mut tokens = guarded.tokens(&guarded.operator);
    // One is revoked, one expires.
    let mut watch = async |expires_in: Option<Duration>| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let request = v1::CreateTokenRequest {
            scopes: vec![Scope::Operator.as_str().to_owned()],
            expires_at: expires_in.map_or(0, |length| (now + length).as_secs() as i64),
            ..v1::CreateTokenRequest::default()
        };
        let made = tokens.create_token(request).await.expect("an operator makes tokens").into_inner();
        let mut watcher = PluginServiceClient::new(guarded.link(&made.token));
        let request = v1::WatchPluginEventsRequest::default();
        (
            made.info.expect("a response").token_id,
            watcher.watch_plugin_events(request).await.expect("watch").into_inner(),
        )
    };
    let (revoked, mut first) = watch(None).await;
    let (_, mut second) = watch(Some(Duration::from_secs(3))).await;
    let request = v1::RevokeTokenRequest { token_id: revoked };
    guarded.tokens(&guarded.operator).revoke_token(request).await.expect("revoked");
    for events in [&mut first, &mut second] {
        let cut = events.message().await.expect_err("the stream has ended with its token");
        assert_eq!((cut.code(), reason(&cut).as_str()), (Code::Unauthenticated, "UNAUTHORIZED"));
    }
}

#[tokio::test]
async fn a_session_asks_for_each_operations_scope_and_tenant() {
    let guarded = Guarded::start(TOKENS).await;
    guarded.tenant("acme").await;
    guarded.client(&guarded.operator).write_key_value(write("acme", "k", "v")).await.expect("write");
    let reader = text(&made_beside(&guarded.data(), &["--tenant", "acme", "--scope", "read"]));
    let operations = [
        Operation::Read(read("acme", "k")),
        Operation::Write(write("acme", "k", "changed")),
        Operation::Delete(crate::harness::delete("acme", "k")),
        Operation::Read(read("other", "k")),
        Operation::Write(write("other", "k", "v")),
    ];
    let count = operations.len();
    let requests = operations.into_iter().zip(0..).map(|(operation, id)| v1::SessionRequest {
        id,
        operation: Some(operation),
        timeout_ms: 0,
    });
    let batch = v1::SessionRequestBatch { requests: requests.collect() };
    let mut client = guarded.client(&reader);
    let mut session = client.session(tokio_stream::once(batch)).await.expect("open a session").into_inner();
    let mut answers = Vec::new();
    while answers.len() < count {
        answers.extend(session.message().await.expect("a stream").expect("an answer").responses);
    }
    for answer in answers {
        match (answer.id, answer.result) {
            (0, Some(Outcome::Read(found))) => assert_eq!(found.value, "v"),
            (id, Some(Outcome::Status(status))) if id > 0 => {
                let refusal = Refusal::from(status);
                let outcome = if id == 3 { "" } else { "not-applied" };
                assert_eq!(refusal.summary(), (Code::PermissionDenied, "FORBIDDEN", outcome, ""), "operation {id}");
            }
            other => panic!("{other:?}"),
        }
    }
    let found = guarded.client(&guarded.operator).read_key_value(read("acme", "k")).await.expect("read").into_inner();
    assert_eq!(found.value, "v");
}

#[tokio::test]
async fn an_administrator_makes_tokens_of_its_tenant() {
    let guarded = Guarded::start(TOKENS).await;
    let admin = text(&made_beside(&guarded.data(), &["--tenant", "acme", "--scope", "admin,read"]));
    let mut tokens = guarded.tokens(&admin);
    let request = |tenant: &str, scope: Scope| v1::CreateTokenRequest {
        tenant_id: tenant.to_owned(),
        scopes: vec![scope.as_str().to_owned()],
        ..Default::default()
    };
    tokens.create_token(request("acme", Scope::Read)).await.expect("its own");
    for (tenant, scope) in
        [("acme", Scope::Write), ("acme", Scope::Operator), ("other", Scope::Read), ("", Scope::Read)]
    {
        let refused = tokens.create_token(request(tenant, scope)).await.expect_err("more than its own");
        let code = refused.code();
        assert!(matches!(code, Code::PermissionDenied | Code::InvalidArgument), "{tenant} {scope:?}: {refused}");
    }
    // Without `read`: an administrator can read the tenant it created, but none of its keys.
    let admin = text(&made_beside(&guarded.data(), &["--scope", "admin"]));
    let mut client = guarded.client(&admin);
    let made = v1::CreateTenantRequest { tenant_id: "new".to_owned(), replication_factor: 1, ..Default::default() };
    client.create_tenant(made).await.expect("make a tenant");
    let wanted = v1::GetTenantRequest { tenant_id: "new".to_owned() };
    client.get_tenant(wanted).await.expect("look at it");
    let refused = client.read_key_value(read("new", "k")).await.expect_err("it may not read");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let listed = tokens.list_tokens(v1::ListTokensRequest::default()).await.expect("list").into_inner().tokens;
    assert!(listed.len() == 2 && listed.iter().all(|token| token.tenant_id == "acme"), "{listed:?}");
}

#[tokio::test]
async fn web_tokens_are_taken_by_their_issuers_key() {
    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    let folder = tempfile::tempdir().expect("make a folder");
    let key = folder.path().join("key");
    std::fs::write(&key, SECRET).expect("write a file");
    let jwt = format!(
        "  tokens: true\n  jwt:\n    algorithm: HS256\n    key_file: {}\n    issuer: us\n    audience: witan\n",
        key.display()
    );
    let guarded = Guarded::start(&jwt).await;
    guarded.tenant("acme").await;
    let signed = |secret: &[u8], change: fn(&mut Value)| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let mut claims = json!({
            "iss": "us", "aud": "witan", "sub": "ci", "exp": now + 600, "scope": "openid read write", "tenant": "acme"
        });
        change(&mut claims);
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret)).expect("a web token")
    };
    let good = signed(SECRET, |_| ());
    guarded.client(&good).write_key_value(write("acme", "k", "v")).await.expect("write");
    guarded.client(&good).read_key_value(read("acme", "k")).await.expect("read");
    let refused = |token: String| {
        let mut client = guarded.client(&token);
        async move { client.read_key_value(read("acme", "k")).await.expect_err("it is refused").code() }
    };
    assert_eq!(refused(signed(SECRET, |claims| claims["tenant"] = json!("other"))).await, Code::PermissionDenied);
    assert_eq!(refused(signed(SECRET, |claims| claims["scope"] = json!("openid"))).await, Code::PermissionDenied);
    assert_eq!(refused(signed(SECRET, |claims| claims["exp"] = json!(1000))).await, Code::Unauthenticated);
    assert_eq!(refused(signed(b"another secret of thirty-two bytes", |_| ())).await, Code::Unauthenticated);

    // A new key in the file replaces the old one; an invalid one does not.
    const NEXT: &[u8] = b"fedcba9876543210fedcba9876543210";
    std::fs::write(folder.path().join("next"), NEXT).expect("write a file");
    std::fs::rename(folder.path().join("next"), &key).expect("replace a file");
    let next = signed(NEXT, |_| ());
    eventually("the new key is taken", async || guarded.client(&next).read_key_value(read("acme", "k")).await.ok())
        .await;
    assert_eq!(refused(good).await, Code::Unauthenticated);
    std::fs::write(&key, "short").expect("write a file");
    eventually("the broken key is met", async || {
        guarded.coordinator.tail().contains("the previous key stays in use").then_some(())
    })
    .await;
    guarded.client(&next).read_key_value(read("acme", "k")).await.expect("the last good key stays");
}

#[tokio::test]
async fn a_tenant_that_asks_too_often_is_told_when_to_come_back() {
    let guarded = Guarded::start("  tokens: true\n  rate_limits:\n    write: 1\n").await;
    guarded.tenant("acme").await;
    guarded.tenant("other").await;
    let mut client = guarded.client(&guarded.operator);
    // Two in one second exceed the limit; a slow machine may need more attempts to send them within one.
    let refused =
        eventually("a write is refused", async || client.write_key_value(write("acme", "k", "v")).await.err()).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMIT_EXCEEDED"));
    let refusal = Refusal::from(refused);
    assert_eq!(refusal.outcome, "not-applied");
    let wait = refusal.retry_after.expect("a delay");
    assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
    client.write_key_value(write("other", "k", "v")).await.expect("another tenant has a second of its own");
    client.read_key_value(read("acme", "k")).await.expect("reads are not limited");
    let requests = (0..3).map(|id| v1::SessionRequest {
        id,
        operation: Some(Operation::Write(write("acme", &id.to_string(), "v"))),
        timeout_ms: 0,
    });
    let batch = v1::SessionRequestBatch { requests: requests.collect() };
    let mut session = client.session(tokio_stream::once(batch)).await.expect("open a session").into_inner();
    let mut limited = 0;
    while let Some(answers) = session.message().await.expect("a stream") {
        let statuses = answers.responses.iter().filter_map(|answer| match &answer.result {
            Some(Outcome::Status(status)) => Some(Code::from_i32(status.code)),
            _ => None,
        });
        limited += statuses.filter(|code| *code == Code::ResourceExhausted).count();
    }
    assert!(limited >= 2, "operations of a session count one by one: {limited}");
}

#[tokio::test]
async fn changes_and_refusals_are_on_record() {
    let mut guarded = Guarded::start("  tokens: true\n  audit:\n    file: FOLDER/audit.log\n").await;
    guarded.tenant("acme").await;
    let reader = text(&made_beside(&guarded.data(), &["--tenant", "acme", "--scope", "read"]));
    guarded
        .client(&reader)
        .write_key_value(write("acme", "secret key", "secret value"))
        .await
        .expect_err("it only reads");
    let mut request = tonic::Request::new(read("other", "secret key"));
    request.metadata_mut().insert("x-request-id", "r-17".parse().expect("a header"));
    guarded.client(&reader).read_key_value(request).await.expect_err("it is another tenant's");
    let delete = v1::DeleteTenantRequest { tenant_id: "acme".into(), confirm: "acme".into(), ..Default::default() };
    guarded.client(&guarded.operator).delete_tenant(delete.clone()).await.expect("delete");
    guarded
        .client(&guarded.operator)
        .delete_tenant(v1::DeleteTenantRequest {
            tenant_id: "nobody".into(),
            confirm: "nobody".into(),
            ..Default::default()
        })
        .await
        .expect_err("there is none");
    // Recorded entries are written before the process ends.
    guarded.coordinator.signal("TERM");
    assert!(guarded.coordinator.ended().await.success());

    let log = std::fs::read_to_string(guarded.folder.path().join("audit.log")).expect("the audit log");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let fields = |line: &Value| {
        let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let rpc = field("rpc");
        (rpc.rsplit('/').next().unwrap_or_default().to_owned(), field("tenant"), field("outcome"), field("reason"))
    };
    let expected = [
        ("CreateTenant", "acme", "done", ""),
        ("WriteKeyValue", "", "refused", "FORBIDDEN"),
        ("ReadKeyValue", "other", "refused", "FORBIDDEN"),
        ("DeleteTenant", "acme", "done", ""),
        ("DeleteTenant", "nobody", "failed", "TENANT_NOT_FOUND"),
    ];
    let expected = expected.map(|(rpc, tenant, outcome, reason)| {
        (rpc.to_owned(), tenant.to_owned(), outcome.to_owned(), reason.to_owned())
    });
    assert_eq!(lines.iter().map(fields).collect::<Vec<_>>(), expected, "{log}");
    assert_eq!(lines[2]["request_id"], "r-17");
    assert!(lines[2]["key_hash"].is_string() && lines[2]["peer"].as_str().is_some_and(|peer| peer.starts_with("127.")));
    for secret in ["secret key", "secret value", reader.rsplit('_').next().expect("a secret")] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn whoever_shows_nothing_is_served_where_that_is_written_down() {
    let guarded = Guarded::start("  tokens: true\n  allow_anonymous: true\n").await;
    guarded.tenant("acme").await;
    let api = crate::harness::Api::new(guarded.address());
    api.write(write("acme", "k", "v")).await.expect("nothing is asked for");
    let refused = guarded.client("witan_bad").read_key_value(read("acme", "k")).await.expect_err("a bad token");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(get_showing(guarded.admin(), "/metrics", None).await.expect("HTTP").0, 200);
}

#[tokio::test]
async fn metrics_tell_of_refusals() {
    let guarded = Guarded::start(TOKENS).await;
    crate::harness::Api::new(guarded.address()).read(read("acme", "k")).await.expect_err("nothing is shown");
    let shown = format!("Bearer {}", guarded.operator);
    let (status, body) = get_showing(guarded.admin(), "/metrics", Some(&shown)).await.expect("HTTP");
    assert_eq!(status, 200);
    assert!(body.contains("witan_access_refusals_total{reason=\"no_credential\"} 1"), "{body}");
    assert!(body.contains("witan_access_tokens 1"), "{body}");
    // Every client sees whether it is ready; only permitted ones see why not.
    let (status, open) = get_showing(guarded.admin(), "/readyz", None).await.expect("HTTP");
    assert!(status == 200 && open == "ok\n", "{status} {open}");
}

#[tokio::test]
async fn an_open_door_to_the_network_is_refused_at_the_start() {
    for (listen, admin, key) in [("0.0.0.0:0", "127.0.0.1:0", "--listen"), ("127.0.0.1:0", "[::]:0", "--admin-listen")]
    {
        let folder = tempfile::tempdir().expect("make a folder");
        let mut command = Process::witan();
        command.args(["serve", "--listen", listen, "--admin-listen", admin, "--data-dir"]).arg(folder.path());
        let output = command.output().expect("run witan");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{listen} {admin}");
        for named in [key, "security.allow_anonymous: true", "security.tokens: true"] {
            assert!(said.contains(named), "{named:?} is not in {said}");
        }
    }
    // With tokens, the same address is served.
    let folder = tempfile::tempdir().expect("make a folder");
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "security:\n  tokens: true\n").expect("write a file");
    let mut command = Process::witan();
    command.args(["serve", "--listen", "0.0.0.0:0", "--admin-listen", &format!("{}:0", own_address()), "--config"]);
    command.arg(&config).arg("--data-dir").arg(folder.path().join("data"));
    let mut served = Process::start("open", command, folder.path());
    tokio::time::timeout(PATIENCE, served.ready()).await.expect("it serves");
}
