//! The administrator of one tenant takes everything that is counted: others find room.

use futures::future::join_all;
use serde_json::Value;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;
use witan_wire::v1;
use witan_wire::v1::CoordinatorServiceRepairRequest as RepairRequest;

use super::{Target, peak_mib};
use crate::access::{Guarded, made_beside, text};
use crate::harness::{get_showing, write};

/// A coordinator with two tenants, and the token of the first one's administrator.
async fn guarded(config: &str) -> (Guarded, String) {
    let guarded = Guarded::start(config).await;
    guarded.tenant("acme").await;
    guarded.tenant("other").await;
    let admin = made_beside(&guarded.data(), &["--tenant", "acme", "--scope", "read,write,admin"]);
    let admin = text(&admin);
    // Only a few calls at a time look up a token that is not known yet.
    let known = v1::GetTenantRequest { tenant_id: "acme".to_owned() };
    guarded.client(&admin).get_tenant(known).await.expect("the token is known now");
    (guarded, admin)
}

/// What the coordinator has taken at most: next to nothing, since what was sent is small.
fn took_little(what: &str, guarded: &Guarded) {
    let peak = peak_mib(guarded.coordinator.id());
    println!("{what}: {peak} MiB at most");
    assert!(peak < 200, "{what}: {peak} MiB");
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_one_tenant() {
    let (guarded, admin) = guarded("  tokens: true\ntenants:\n  max_tokens: 5\n").await;
    let token = |tenant: &str| v1::CreateTokenRequest {
        tenant_id: tenant.to_owned(),
        scopes: vec!["read".to_owned()],
        ..v1::CreateTokenRequest::default()
    };
    let mut refused = Vec::new();
    for _ in 0..20 {
        refused.extend(guarded.tokens(&admin).create_token(token("acme")).await.err());
    }
    assert_eq!(refused.len(), 16, "four, beside its own");
    for refused in refused {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("revoke some"), "{refused}");
    }
    guarded.tokens(&guarded.operator).create_token(token("other")).await.expect("another tenant's");
    guarded.tokens(&guarded.operator).create_token(token("acme")).await.expect("an operator makes more");
    took_little("tokens", &guarded);
}

/// The last report of a repair.
async fn done(mut reports: Streaming<v1::CoordinatorServiceRepairResponse>) -> Result<bool, Status> {
    loop {
        match reports.message().await? {
            Some(report) if report.phase == "done" => return Ok(report.complete),
            Some(_) => {}
            None => panic!("a repair ended without a result"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repairs_of_one_tenant() {
    let (guarded, admin) = guarded("  tokens: true\n").await;
    let mut client = guarded.client(&admin);
    for n in 0..200 {
        client.write_key_value(write("acme", &format!("k{n}"), "v")).await.expect("written");
    }
    // At this rate it would take minutes.
    let slow = RepairRequest { tenant_id: "acme".to_owned(), records_per_second: 1, ..RepairRequest::default() };
    let mut first = client.repair(slow.clone()).await.expect("the first repair").into_inner();
    assert_eq!(first.message().await.expect("a stream").expect("a report").phase, "scanning");
    let refused = client.repair(slow).await.expect_err("one of a tenant");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    let repaired = guarded.client(&guarded.operator).repair(RepairRequest::default()).await.expect("an operator's");
    assert!(done(repaired.into_inner()).await.expect("it ends"));
    drop(first);
    took_little("repairs", &guarded);
}

/// Changes that are made one after the other, cancelled or not.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_one_tenant() {
    let (guarded, admin) = guarded("  tokens: true\n").await;
    let change = v1::UpdateReplicationFactorRequest { tenant_id: "acme".to_owned(), new_replication_factor: 1 };
    let client = guarded.client(&admin);
    let flood = join_all((0..500).map(async |_| client.clone().update_replication_factor(change.clone()).await));
    let (changed, ()) = tokio::join!(flood, guarded.tenant("newcomer"));
    let refused: Vec<Status> = changed.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty(), "only a few may wait");
    for refused in &refused {
        assert_eq!((refused.code(), reason(refused).as_str()), (Code::ResourceExhausted, "OVERLOADED"), "{refused}");
    }
    let shown = format!("Bearer {}", guarded.operator);
    let (_, metrics) = get_showing(guarded.admin(), "/metrics", Some(&shown)).await.expect("metrics");
    let counted = format!("witan_catalog_changes_refused_total {}\n", refused.len());
    assert!(metrics.contains(&counted), "{counted}{metrics}");
    took_little("changes", &guarded);
}

/// Calls that fail, and calls that are cancelled before they have begun, do not push what did happen out of the audit log.
#[tokio::test(flavor = "multi_thread")]
async fn failures_in_the_audit_log() {
    const CALLS: usize = 2000;
    let (mut guarded, admin) = guarded("  tokens: true\n  audit:\n    file: FOLDER/audit.log\n").await;
    let client = guarded.client(&admin);
    let wrong = v1::UpdateTenantRequest {
        tenant_id: "acme".to_owned(),
        ordering: "nonsense".to_owned(),
        ..v1::UpdateTenantRequest::default()
    };
    for _ in 0..CALLS / 100 {
        for refused in join_all((0..100).map(async |_| client.clone().update_tenant(wrong.clone()).await)).await {
            assert_eq!(refused.expect_err("it is nonsense").code(), Code::InvalidArgument);
        }
    }
    guarded.tenant("newcomer").await;
    took_little("failures in the audit log", &guarded);
    guarded.coordinator.signal("TERM");
    assert!(guarded.coordinator.ended().await.success());

    let log = std::fs::read_to_string(guarded.folder.path().join("audit.log")).expect("the audit log");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    let failed = lines.iter().filter(|line| line["reason"] == "INVALID_REQUEST").count();
    assert_eq!(failed + usize::try_from(left_out).expect("a few"), CALLS);
    assert!(lines.len() < 200, "{} lines", lines.len());
    let created = |id: &str| {
        let is = |line: &&Value| line["tenant"] == id && line["outcome"] == "done";
        lines.iter().filter(is).count()
    };
    assert_eq!(["acme", "other", "newcomer"].map(created), [1, 1, 1]);
}

/// Many listings of keys at once: the pages of another tenant do not wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn listings_of_one_tenant() {
    let target = Target::start().await;
    let api = target.api();
    api.tenant("quiet", |_| {}).await;
    for tenant in ["t", "quiet"] {
        join_all((0..500).map(async |n| api.write(write(tenant, &format!("k{n}"), "v")).await.expect("written"))).await;
    }
    let list = async |tenant: &str| {
        let request = v1::ListKeysRequest { tenant_id: tenant.to_owned(), page_size: 1000, ..Default::default() };
        api.client().list_keys(request).await
    };
    let flood = join_all((0..500).map(|_| list("t")));
    let quiet = async {
        for _ in 0..10 {
            list("quiet").await.expect("another tenant's page");
        }
    };
    let (listed, ()) = tokio::join!(flood, quiet);
    let refused: Vec<Status> = listed.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty(), "only a few pages are read at a time");
    for refused in &refused {
        assert_eq!((refused.code(), reason(refused).as_str()), (Code::ResourceExhausted, "OVERLOADED"), "{refused}");
    }
    println!("{} of 500 pages were refused", refused.len());
    target.withstands("listings", 100, ()).await;
}
