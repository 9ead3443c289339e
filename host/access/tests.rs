use super::caller::Origin;
use super::scope::Scopes;
use super::testing::memory;
use super::token::{Fresh, Grant, make};
use super::*;

const READ: &str = "/witan.v1.CoordinatorService/ReadKeyValue";
const WRITE: &str = "/witan.v1.CoordinatorService/WriteKeyValue";
const SESSION: &str = "/witan.v1.CoordinatorService/Session";
const DELETE_TENANT: &str = "/witan.v1.CoordinatorService/DeleteTenant";
const NODES: &str = "/witan.v1.CoordinatorService/ListStorageNodes";

fn tenant(id: &str) -> witan_kernel::name::TenantId {
    witan_kernel::name::TenantId::new(id).unwrap()
}

fn fresh(tenant_id: Option<&str>, scopes: &str, expires_at_ms: Option<u64>) -> Fresh {
    let scopes = Scopes::among(scopes.split(','));
    let grant = Grant { tenant: tenant_id.map(tenant), scopes, label: String::new(), expires_at_ms };
    make(grant, rand::random(), rand::random(), 0)
}

async fn access(settings: Security, tokens: &[&Fresh]) -> Arc<Access> {
    let metadata: Arc<dyn Metadata> = memory();
    for fresh in tokens {
        metadata.create_token(fresh.token.clone(), None).await.unwrap();
    }
    Arc::new(Access::open(&settings, metadata, || 1000).await.unwrap())
}

fn with_tokens() -> Security {
    Security { tokens: true, ..Security::default() }
}

/// The result for a call with a token that is known.
fn call(access: &Arc<Access>, path: &str, shown: Option<&str>) -> Result<Caller, Refusal> {
    let origin = Origin { peer: "127.0.0.1:9".parse().ok(), ..Origin::default() };
    access.admit(scope::of_call(path), shown.map(str::as_bytes), &origin).expect("it is known")
}

fn bearer_of(fresh: &Fresh) -> String {
    format!("Bearer {}", fresh.text)
}

#[tokio::test]
async fn a_token_opens_what_its_scopes_say() {
    let reader = fresh(Some("acme"), "read", None);
    let operator = fresh(None, "operator", None);
    let access = access(with_tokens(), &[&reader, &operator]).await;
    let shown = bearer_of(&reader);
    let caller = call(&access, READ, Some(&shown)).unwrap();
    assert_eq!(caller.may(&tenant("acme")), Ok(()));
    assert_eq!(caller.may(&tenant("other")), Err(Refusal::Tenant { tenant: tenant("other") }));
    assert!(matches!(call(&access, WRITE, Some(&shown)), Err(Refusal::Scope { .. })));
    assert!(matches!(call(&access, NODES, Some(&shown)), Err(Refusal::Scope { .. })));
    assert!(matches!(call(&access, "/witan.v1.New/Call", Some(&shown)), Err(Refusal::Scope { .. })));

    let shown = bearer_of(&operator);
    assert!(call(&access, NODES, Some(&shown)).is_ok());
    assert!(call(&access, "/witan.v1.New/Call", Some(&shown)).is_ok());
    assert!(matches!(call(&access, READ, Some(&shown)), Err(Refusal::Scope { .. })), "an operator reads no keys");
}

#[tokio::test]
async fn a_session_is_opened_by_either_scope_and_asks_for_each() {
    let reader = fresh(Some("acme"), "read", None);
    let access = access(with_tokens(), &[&reader]).await;
    let session = call(&access, SESSION, Some(&bearer_of(&reader))).unwrap();
    assert_eq!(session.may_operate(Scope::Read, &tenant("acme"), b"k"), Ok(()));
    let wrong = session.may_operate(Scope::Write, &tenant("acme"), b"k");
    assert_eq!(wrong, Err(Refusal::Scope { needs: Scopes::only(Scope::Write) }));
    assert!(session.may_operate(Scope::Read, &tenant("other"), b"k").is_err());
}

#[tokio::test]
async fn without_a_credential_nothing_is_served() {
    let ended = fresh(None, "read", Some(1000));
    let access = access(with_tokens(), &[&ended]).await;
    let refused = |shown: Option<&str>| call(&access, READ, shown).err();
    assert_eq!(refused(None), Some(Refusal::NoCredential));
    assert_eq!(refused(Some(&bearer_of(&ended))), Some(Refusal::Expired));
    for garbage in
        ["", "Bearer", "Bearer ", "Basic eDp5", "Bearer x", "Bearer witan_", "Bearer \u{1F600}", "Bearer a.b.c"]
    {
        assert_eq!(refused(Some(garbage)), Some(Refusal::Malformed), "{garbage:?}");
    }
    assert!(access.admit(scope::of_call(READ), Some(&[0xff, b' ', 1]), &Origin::default()).unwrap().is_err());
}

#[test]
fn two_credentials_are_none() {
    let mut headers = http::HeaderMap::new();
    assert_eq!(shown(&headers), None);
    headers.append("authorization", "Bearer a".parse().unwrap());
    assert_eq!(shown(&headers), Some(&b"Bearer a"[..]));
    headers.append("authorization", "Bearer b".parse().unwrap());
    assert_eq!(bearer(shown(&headers)), Some(Err(Refusal::Malformed)));
}

#[tokio::test]
async fn anonymous_clients_are_served_where_that_is_written_down_and_bad_tokens_nowhere() {
    let settings = Security { allow_anonymous: true, ..with_tokens() };
    let access = access(settings, &[]).await;
    let anybody = call(&access, DELETE_TENANT, None).unwrap();
    assert_eq!((anybody.credential().id(), anybody.may(&tenant("any"))), ("anonymous", Ok(())));
    assert!(call(&access, DELETE_TENANT, Some("Bearer witan_bad")).is_err());

    let nobody_asks = self::access(Security::default(), &[]).await;
    assert!(call(&nobody_asks, DELETE_TENANT, None).is_ok());
    assert!(call(&nobody_asks, DELETE_TENANT, Some("Bearer of news")).is_ok(), "what cannot be checked means nothing");
}

#[tokio::test]
async fn rates_are_per_tenant_and_scope_and_operations_count() {
    let rate_limits = RateLimits { read: 1, operator: 1, ..RateLimits::default() };
    let access = access(Security { rate_limits, ..Security::default() }, &[]).await;
    let session = call(&access, SESSION, None).unwrap();
    assert_eq!(session.may_operate(Scope::Read, &tenant("a"), b"k"), Ok(()));
    let refused = session.may_operate(Scope::Read, &tenant("a"), b"k").unwrap_err();
    assert!(matches!(&refused, Refusal::Rate { scope: Scope::Read, .. }), "{refused}");
    assert!(call(&access, READ, None).unwrap().may(&tenant("a")).is_err(), "single calls count as well");
    assert_eq!(session.may_operate(Scope::Read, &tenant("b"), b"k"), Ok(()));
    assert!((0..100).all(|_| session.may_operate(Scope::Write, &tenant("a"), b"k").is_ok()));
    assert!(call(&access, NODES, None).is_ok());
    assert!(matches!(call(&access, NODES, None), Err(Refusal::Rate { tenant: None, .. })));

    access.set_rate_limits(RateLimits::default());
    assert_eq!(session.may_operate(Scope::Read, &tenant("a"), b"k"), Ok(()), "other limits hold at once");
}

#[tokio::test]
async fn a_rate_is_taken_before_a_request_is_decoded() {
    let admin = fresh(Some("acme"), "admin", None);
    let settings = Security { rate_limits: RateLimits { admin: 2, ..RateLimits::default() }, ..with_tokens() };
    let access = access(settings, &[&admin]).await;
    let shown = bearer_of(&admin);
    let first = call(&access, DELETE_TENANT, Some(&shown)).unwrap();
    assert_eq!(first.may(&tenant("acme")), Ok(()), "it has been counted already");
    // The second call's request is never looked at: it counts nevertheless.
    call(&access, DELETE_TENANT, Some(&shown)).unwrap();
    let refused = call(&access, DELETE_TENANT, Some(&shown)).map(|_| ());
    assert!(matches!(&refused, Err(Refusal::Rate { tenant: Some(of), .. }) if *of == tenant("acme")), "{refused:?}");
}

#[tokio::test]
async fn refusals_and_changes_are_on_record_and_secrets_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.log");
    let audit = config::Audit { file: file.clone(), max_bytes: 1 << 20, keep: 1 };
    let admin = fresh(Some("acme"), "read,admin", None);
    let access = access(Security { audit: Some(audit), ..with_tokens() }, &[&admin]).await;
    let shown = bearer_of(&admin);

    let reader = call(&access, READ, Some(&shown)).unwrap();
    assert!(!reader.is_recorded());
    assert!(reader.may_on(&tenant("other"), Some(b"the key")).is_err());
    let change = call(&access, DELETE_TENANT, Some(&shown)).unwrap();
    change.may(&tenant("acme")).unwrap();
    change.changed(change.place().await.unwrap(), "done", None);
    assert!(call(&access, WRITE, Some(&shown)).is_err());
    assert!(call(&access, WRITE, None).is_err());
    Arc::clone(&access).close().await;

    let text = std::fs::read_to_string(file).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let entries: Vec<_> = lines.iter().map(|line| (line["rpc"].as_str(), line["outcome"].as_str())).collect();
    let expected = [(READ, "refused"), (DELETE_TENANT, "done"), (WRITE, "refused"), (WRITE, "refused")];
    assert_eq!(entries, expected.map(|(rpc, outcome)| (Some(rpc), Some(outcome))));
    assert_eq!((lines[0]["reason"].as_str(), lines[0]["tenant"].as_str()), (Some("FORBIDDEN"), Some("other")));
    assert_eq!(lines[0]["key_hash"].as_str().map(str::len), Some(16));
    assert_eq!(lines[0]["credential"], format!("token:{}", admin.token.id));
    assert_eq!((lines[1]["tenant"].as_str(), lines[3]["credential"].as_str()), (Some("acme"), Some("none")));
    let secret = token::split(&admin.text).unwrap().1;
    assert!(!text.contains(secret) && !text.contains("the key"));
}

#[tokio::test]
async fn what_is_refused_is_counted() {
    let access = access(with_tokens(), &[]).await;
    assert!(call(&access, READ, None).is_err());
    let mut registry = Registry::default();
    access.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("witan_access_refusals_total{reason=\"no_credential\"} 1"), "{text}");
    assert!(text.contains("witan_access_tokens 0") && text.contains("witan_audit_dropped_total 0"), "{text}");
}
