//! `witan dev`: a whole cluster in one process, which is stopped, killed, and started again.

use witan_wire::v1;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use crate::harness::{Api, Dev, delete, eventually, get, read, write};

#[tokio::test]
async fn everything_is_found_again_after_an_interrupt_and_after_a_kill() {
    let folder = tempfile::tempdir().expect("make a folder");
    let mut dev = Dev::start_in(folder.path()).await;
    let api = dev.api();
    api.tenant("registers", |_| {}).await;
    api.siblings_tenant("siblings").await;
    fill(&api, "first").await;
    dev.process().signal("INT");
    let status = dev.process().ended().await;
    assert!(status.success(), "Ctrl-C ends with {status}");

    let mut dev = Dev::start_in(folder.path()).await;
    let api = dev.api();
    check(&api, "first").await;
    fill(&api, "second").await;
    dev.process().kill();

    let dev = Dev::start_in(folder.path()).await;
    let api = dev.api();
    check(&api, "first").await;
    check(&api, "second").await;
    let tenant = v1::GetTenantRequest { tenant_id: "siblings".to_owned() };
    let tenant = api.client().get_tenant(tenant).await.expect("get a tenant").into_inner();
    assert_eq!(tenant.conflict_mode, "siblings");
}

/// An unused connection must not delay a shutdown.
#[tokio::test]
async fn an_idle_session_does_not_hold_up_the_end() {
    let mut dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    let _session = api.session().await;
    dev.process().signal("TERM");
    let status = dev.process().ended().await;
    assert!(status.success(), "SIGTERM ends with {status}");
}

/// A session has no natural end: unless the coordinator ends it, it would delay the shutdown to the limit and then be aborted.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_session_ends_with_the_coordinator_and_nothing_is_left_unsaid() {
    const SENT: u64 = 8000;
    let mut dev = Dev::start().await;
    dev.api().tenant("t", |_| {}).await;
    let mut session = dev.api().session().await;
    // More than a session has in flight at a time; the coordinator reads them as soon as the first response is sent.
    let one = |id: u64| {
        let operation = Operation::Write(write("t", &format!("k{id}"), "v"));
        v1::SessionRequest { id, operation: Some(operation), timeout_ms: 0 }
    };
    session.send((0..SENT).map(one).collect()).await;
    let (mut answered, mut refused) = (0, 0);
    while let Some(responses) = session.next().await {
        if answered == 0 {
            dev.process().signal("TERM");
        }
        answered += responses.len() as u64;
        for response in responses {
            if let Some(Outcome::Status(status)) = response.result {
                assert!(status.message.contains("shutting down"), "{status:?}");
                refused += 1;
            }
        }
    }
    assert_eq!(answered, SENT, "{refused} of them refused");
    println!("{answered} answered, {refused} of them refused");
    assert!(dev.process().ended().await.success());
}

#[tokio::test]
async fn health_and_metrics_are_served_and_nothing_is_kept_elsewhere() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    api.write(write("t", "k", "v")).await.expect("write");
    for path in ["/livez", "/readyz"] {
        // A node with an overdue response counts as unreachable, which may happen briefly on a busy machine.
        eventually(path, async || {
            (get(dev.admin(), path).await.expect(path) == (200, "ok\n".to_owned())).then_some(())
        })
        .await;
    }
    let (status, metrics) = get(dev.admin(), "/metrics").await.expect("metrics");
    assert_eq!(status, 200);
    let counted = r#"coordinator_requests_total{operation="write",status="ok"} 1"#;
    assert!(metrics.contains(counted), "no {counted} in\n{metrics}");
    assert!(dev.data().is_dir());
    assert_eq!(dev.nodes().len(), 3);
}

async fn fill(api: &Api, name: &str) {
    let present = |tenant: &str, value: &str| v1::WriteKeyValueRequest {
        idempotency_key: format!("{name} {tenant} {value}"),
        ..write(tenant, name, value.to_owned())
    };
    api.write(present("registers", "value")).await.expect("write");
    for value in ["a", "b"] {
        api.write(present("siblings", value)).await.expect("write");
    }
    for tenant in ["registers", "siblings"] {
        let key = format!("{name} deleted");
        api.write(write(tenant, &key, "gone")).await.expect("write");
        api.delete(delete(tenant, &key)).await.expect("delete");
    }
}

async fn check(api: &Api, name: &str) {
    for (tenant, values) in [("registers", ["value"].as_slice()), ("siblings", ["a", "b"].as_slice())] {
        let (found, context) = api.values(read(tenant, name)).await.expect("read");
        assert_eq!(found, values, "{name} of {tenant}");
        assert!(!context.is_empty());
        let (found, _) = api.values(read(tenant, &format!("{name} deleted"))).await.expect("read");
        assert!(found.is_empty(), "{name} of {tenant} is deleted");
        // The idempotency store has survived, too.
        for value in values {
            let again = v1::WriteKeyValueRequest {
                idempotency_key: format!("{name} {tenant} {value}"),
                ..write(tenant, name, (*value).to_owned())
            };
            assert!(api.write(again).await.expect("write again").is_duplicate);
        }
    }
}
