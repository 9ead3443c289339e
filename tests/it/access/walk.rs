//! Every call and every path, with no credential, another tenant's, an expired one, one that only reads, and garbage. The expected
//! responses follow from the table of rules; the table's own tests check that each call has a rule.

use tonic::{Code, Status};
use tonic_types::StatusExt;
use witan::access::scope::{Effect, Need, Scope, Scopes, of_call};

use super::calls::{Call, all};
use super::{Guarded, made_beside, text};
use crate::harness::{channel, get_showing};

const TOKENS: &str = "  tokens: true\n";

/// Refused for lack of a valid credential, with all details that a client needs.
fn assert_unauthenticated(call: &Call, shown: Option<&str>, answer: Result<(), Status>) {
    let status = answer.expect_err(&format!("{} with {shown:?} is served", call.path));
    assert_refused(call, &status, Code::Unauthenticated, "UNAUTHORIZED");
    let message = status.message();
    assert!(
        shown.is_none_or(|shown| shown.len() < 12 || !message.contains(shown)),
        "no credential is repeated: {message}"
    );
}

fn assert_forbidden(call: &Call, who: &str, answer: Result<(), Status>) {
    let status = answer.expect_err(&format!("{} is served to {who}", call.path));
    assert_refused(call, &status, Code::PermissionDenied, "FORBIDDEN");
}

fn assert_refused(call: &Call, status: &Status, code: Code, reason: &str) {
    let path = &call.path;
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{path}: no details: {status}"));
    assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{path}: {status}");
    let outcome = info.metadata.get("outcome").map(String::as_str);
    let expected = (of_call(path).effect != Effect::Nothing).then_some("not-applied");
    assert_eq!(outcome, expected, "{path}: {status}");
    assert!(!status.message().is_empty(), "{path}");
}

/// Admitted: whatever the response is, it is not about access.
fn assert_let_in(call: &Call, who: &str, answer: &Result<(), Status>) {
    if let Err(status) = answer {
        let refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
        assert!(!refused, "{} is not served to {who}: {status}", call.path);
    }
}

#[tokio::test]
async fn nobody_is_served_without_a_good_credential() {
    let guarded = Guarded::start(TOKENS).await;
    let data = guarded.data();
    let revoked = made_beside(&data, &["--scope", "read,write,admin,operator"]);
    let id = revoked["token_id"].as_str().expect("an id").to_owned();
    let request = witan_wire::v1::RevokeTokenRequest { token_id: id.clone() };
    guarded.tokens(&guarded.operator).revoke_token(request).await.expect("revoke");
    let expired = super::life::expired(&data).await;
    // Correct except for its last digit.
    let mut altered = guarded.operator.clone();
    let last = altered.pop().expect("a digit");
    altered.push(if last == '0' { '1' } else { '0' });

    let bearer = |text: &str| format!("Bearer {text}");
    let credentials: Vec<Option<String>> = vec![
        None,
        Some(String::new()),
        Some(bearer("")),
        Some(bearer("garbage")),
        Some(bearer("witan_")),
        Some(bearer(&"x".repeat(4000))),
        Some(bearer("eyJhbGciOiJub25lIn0.eyJzY29wZSI6Im9wZXJhdG9yIiwiZXhwIjo5OTk5OTk5OTk5fQ.")),
        Some("Basic b3BlcmF0b3I6".to_owned()),
        Some(guarded.operator.clone()),
        Some(bearer(&altered)),
        Some(bearer(&expired)),
        Some(bearer(&text(&revoked))),
    ];
    let channel = channel(guarded.address());
    for shown in &credentials {
        let shown = shown.as_deref();
        for call in all() {
            let answer = call.make(&channel, shown, "acme", &id).await;
            match of_call(&call.path).need {
                Need::Nothing => assert_let_in(&call, "everybody", &answer),
                _ => assert_unauthenticated(&call, shown, answer),
            }
        }
        for path in ["/metrics", "/", "/debug", "/nodes", "/livez", "/readyz"] {
            let (status, body) = get_showing(guarded.admin(), path, shown).await.expect("HTTP");
            match path {
                "/livez" => assert_eq!(status, 200, "{path} {shown:?}"),
                "/readyz" => assert!(status == 200 || status == 503, "{path} {shown:?}: {status}"),
                _ => assert_eq!(status, 401, "{path} {shown:?}: {body}"),
            }
        }
    }
}

#[tokio::test]
async fn a_credential_opens_its_scopes_and_its_tenant_and_nothing_else() {
    let guarded = Guarded::start(TOKENS).await;
    guarded.tenant("acme").await;
    let data = guarded.data();
    let made = |arguments: &[&str]| text(&made_beside(&data, arguments));
    let victim = made_beside(&data, &["--tenant", "acme", "--scope", "read"]);
    let victim = victim["token_id"].as_str().expect("an id");
    let reader = format!("Bearer {}", made(&["--tenant", "acme", "--scope", "read"]));
    let other = format!("Bearer {}", made(&["--tenant", "other", "--scope", "read,write,admin"]));
    let bare = format!("Bearer {}", made(&["--label", "prometheus"]));

    let channel = channel(guarded.address());
    for call in all() {
        let need = of_call(&call.path).need;
        let answer = call.make(&channel, Some(&reader), "acme", victim).await;
        match need {
            Need::OneOf(scopes) if !scopes.has(Scope::Read) => assert_forbidden(&call, "a reader", answer),
            _ => assert_let_in(&call, "a reader", &answer),
        }
        // Without a scope, only calls that need none.
        let answer = call.make(&channel, Some(&bare), "acme", victim).await;
        match need {
            Need::OneOf(_) => assert_forbidden(&call, "a credential without scopes", answer),
            _ => assert_let_in(&call, "a credential without scopes", &answer),
        }
        let answer = call.make(&channel, Some(&other), "acme", victim).await;
        let is_operators = matches!(need, Need::OneOf(scopes) if scopes == Scopes::only(Scope::Operator));
        match call.path.as_str() {
            // Objects of others look as if they did not exist.
            "/witan.v1.AccessService/RevokeToken" => {
                assert_eq!(answer.expect_err("it is another tenant's").code(), Code::NotFound);
            }
            _ if is_operators || call.names_tenant() => assert_forbidden(&call, "another tenant", answer),
            _ => assert_let_in(&call, "another tenant", &answer),
        }
        // A tenant's credential is not valid for all tenants at once.
        let lists_own = ["/witan.v1.AccessService/ListTokens", "/witan.v1.PluginService/ListPlugins"];
        if call.names_tenant() && !lists_own.contains(&call.path.as_str()) {
            let answer = call.make(&channel, Some(&other), "", victim).await;
            let code = answer.expect_err(&format!("{} is served for all tenants", call.path)).code();
            assert!(matches!(code, Code::PermissionDenied | Code::InvalidArgument), "{}: {code:?}", call.path);
        }
    }
    for (shown, expected) in [(&reader, 403), (&other, 403), (&bare, 200)] {
        let (status, body) = get_showing(guarded.admin(), "/metrics", Some(shown)).await.expect("HTTP");
        assert_eq!(status, expected, "{body}");
    }
    // After all this, nothing has changed.
    let tenant = witan_wire::v1::GetTenantRequest { tenant_id: "acme".to_owned() };
    let tenant = guarded.client(&guarded.operator).get_tenant(tenant).await.expect("it is there").into_inner();
    assert_eq!(tenant.version, 1);
    let listed = guarded.tokens(&guarded.operator).list_tokens(witan_wire::v1::ListTokensRequest::default()).await;
    assert_eq!(listed.expect("list tokens").into_inner().tokens.len(), 5);
}

#[tokio::test]
async fn each_call_is_opened_by_each_scope_of_its_rule_and_by_no_other() {
    let guarded = Guarded::start(TOKENS).await;
    let data = guarded.data();
    let channel = channel(guarded.address());
    for scope in Scope::ALL {
        let shown = format!("Bearer {}", text(&made_beside(&data, &["--scope", scope.as_str()])));
        for (number, call) in all().into_iter().enumerate() {
            // A tenant for each call, so that successful calls do not affect others.
            let tenant = format!("{}-{number}", scope.as_str());
            let answer = call.make(&channel, Some(&shown), &tenant, "nobody").await;
            match of_call(&call.path).need {
                Need::OneOf(scopes) if !scopes.has(scope) => assert_forbidden(&call, scope.as_str(), answer),
                _ => assert_let_in(&call, scope.as_str(), &answer),
            }
        }
    }
}
