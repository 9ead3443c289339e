//! Who may try a plugin on a tenant's keys, who sees keys and values then, and who sees what plugins log.

use tonic::{Code, Status};
use tonic_types::StatusExt;
use witan_wire::v1;

use super::{Guarded, made_beside, text};
use crate::harness::{Guest, write};

const HOOK: &str = "consistency-policy";

async fn attempt(guarded: &Guarded, token: &str) -> Result<v1::TryPluginResponse, Status> {
    let (tenant_id, hook, plugin) = ("acme".to_owned(), HOOK.to_owned(), "shared".to_owned());
    let request = v1::TryPluginRequest { tenant_id, hook, plugin, ..v1::TryPluginRequest::default() };
    Ok(guarded.plugins(token).try_plugin(request).await?.into_inner())
}

async fn tail(guarded: &Guarded, token: &str, tenant: &str) -> Result<(), Status> {
    let (tenant_id, hook) = (tenant.to_owned(), HOOK.to_owned());
    let request = v1::TailPluginLogsRequest { tenant_id, hook, follow: false };
    guarded.plugins(token).tail_plugin_logs(request).await.map(drop)
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.expect_err("it is refused");
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

#[tokio::test]
async fn an_administrator_tries_on_its_own_tenant_and_sees_cases_if_it_may_read() {
    let mut guarded = Guarded::start("  tokens: true\n  audit:\n    file: FOLDER/audit.log\n").await;
    for tenant in ["acme", "other"] {
        guarded.tenant(tenant).await;
    }
    let token =
        |tenant: &str, scope: &str| text(&made_beside(&guarded.data(), &["--tenant", tenant, "--scope", scope]));
    let (blind, seeing) = (token("acme", "admin"), token("acme", "admin,read"));
    let (other, reader) = (token("other", "admin,read"), token("acme", "read"));
    let writer = token("acme", "write");
    guarded.client(&writer).write_key_value(write("acme", "secret key", "value")).await.expect("written");
    let component = Guest::policy("shared", 3).build();
    let part = |part| v1::UploadPluginRequest { part: Some(part) };
    let parts = tokio_stream::iter([
        part(v1::upload_plugin_request::Part::Manifest(v1::UploadPluginManifest::default())),
        part(v1::upload_plugin_request::Part::Chunk(component.into())),
    ]);
    guarded.plugins(&guarded.operator).upload_plugin(parts).await.expect("uploaded");

    let forbidden = (Code::PermissionDenied, "FORBIDDEN".to_owned());
    for no_one in [&other, &reader] {
        assert_eq!(refused(attempt(&guarded, no_one).await), forbidden);
        assert_eq!(refused(tail(&guarded, no_one, "acme").await), forbidden);
    }
    assert_eq!(refused(tail(&guarded, &seeing, "").await), forbidden, "a binding for all tenants is the operator's");
    let none = (Code::NotFound, "PLUGIN_NOT_FOUND".to_owned());
    assert_eq!(refused(tail(&guarded, &seeing, "acme").await), none, "nothing is bound");

    // It wants an answer within a second, and the native rule within several.
    let seen = attempt(&guarded, &seeing).await.expect("tried");
    let unseen = attempt(&guarded, &blind).await.expect("tried");
    assert_eq!((seen.asked, unseen.asked), (2, 2), "a read and a write of the key");
    assert_eq!((seen.differing, unseen.differing), (2, 2), "{seen:?}");
    assert_eq!((seen.cases.len(), unseen.cases.len()), (2, 0));
    assert_eq!(&seen.cases[0].key[..], b"secret key");
    attempt(&guarded, &guarded.operator).await.expect("an operator may, for every tenant");

    guarded.coordinator.signal("TERM");
    assert!(guarded.coordinator.ended().await.success());
    let log = std::fs::read_to_string(guarded.folder.path().join("audit.log")).expect("the audit log");
    let of_runs: Vec<&str> = log.lines().filter(|line| line.contains("/TryPlugin")).collect();
    let done = of_runs.iter().filter(|line| line.contains(r#""done""#) && line.contains(r#""acme""#));
    assert_eq!((of_runs.len(), done.count()), (5, 3), "{log}");
    assert!(!log.contains("secret key"));
}
