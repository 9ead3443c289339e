//! Maintenance: listing keys, comparing and repairing replicas, refilling wiped nodes, removing tenants.

use std::collections::BTreeSet;

use tonic::Code;
use witan_wire::v1;
use witan_wire::v1::{CoordinatorServiceRepairRequest, CoordinatorServiceRepairResponse};

use crate::harness::{Api, Cluster, Dev, Refusal, Setup, delete, eventually, get, node_client, read, write};

fn at(level: &str, request: v1::WriteKeyValueRequest) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { consistency: level.to_owned(), ..request }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> Refusal {
    result.expect_err("refused").into()
}

async fn cluster() -> Cluster {
    Cluster::with(Setup { synced: false, ..Setup::default() }).await
}

/// Runs a repair, and returns the last report.
async fn repair(api: &Api, request: CoordinatorServiceRepairRequest) -> CoordinatorServiceRepairResponse {
    let mut reports = api.client().repair(request).await.expect("repair").into_inner();
    let mut last = None;
    while let Some(report) = reports.message().await.expect("a report") {
        last = Some(report);
    }
    let last = last.expect("a last report");
    assert_eq!(last.phase, "done");
    last
}

fn everything() -> CoordinatorServiceRepairRequest {
    CoordinatorServiceRepairRequest::default()
}

fn of_tenant(tenant: &str) -> CoordinatorServiceRepairRequest {
    CoordinatorServiceRepairRequest { tenant_id: tenant.to_owned(), ..everything() }
}

/// Whether a node itself has a record of a key.
async fn has(cluster: &Cluster, node: usize, tenant: &str, key: &str) -> bool {
    let request = v1::ReadRequest { tenant_id: tenant.to_owned(), key: key.to_owned(), token: None, render: false };
    let answer = node_client(cluster.node_address(node)).read(request).await.expect("read from a node");
    answer.into_inner().record.is_some()
}

/// All keys of a tenant, read in pages of this size; keys with siblings are marked with a star.
async fn keys(api: &Api, tenant: &str, prefix: &str, page_size: i32) -> Result<BTreeSet<String>, Refusal> {
    let mut listed = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request =
            v1::ListKeysRequest { tenant_id: tenant.to_owned(), page_size, page_token, prefix: prefix.to_owned() };
        let page = api.client().list_keys(request).await?.into_inner();
        assert!(page.keys.len() <= usize::try_from(page_size).expect("positive"));
        for info in page.keys {
            let shown = if info.siblings { format!("{}*", info.key) } else { info.key };
            assert!(listed.insert(shown.clone()), "{shown} came twice");
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(listed);
        }
    }
}

fn named(names: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    names.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_listed_by_pages_without_what_is_deleted_or_anothers() {
    let mut cluster = cluster().await;
    let api = cluster.api();
    for tenant in ["t", "other"] {
        api.tenant(tenant, |_| {}).await;
    }
    api.siblings_tenant("s").await;
    for n in 0..50 {
        api.write(write("t", &format!("user:{n}"), vec![7; 100])).await.expect("write");
        api.write(write("other", &format!("other:{n}"), "v")).await.expect("write");
    }
    for n in 0..10 {
        api.write(write("t", &format!("cart:{n}"), "v")).await.expect("write");
        api.delete(delete("t", &format!("user:{n}"))).await.expect("delete");
    }
    for (key, values) in [("one", vec!["v"]), ("same", vec!["v", "v"]), ("two", vec!["v", "w"])] {
        for value in values {
            api.write(write("s", key, value)).await.expect("write");
        }
    }
    let users = named((10..50).map(|n| format!("user:{n}")));
    let carts = named((0..10).map(|n| format!("cart:{n}")));
    let all: BTreeSet<String> = users.union(&carts).cloned().collect();
    for page_size in [1, 7, 1000] {
        assert_eq!(keys(&api, "t", "", page_size).await.expect("listed"), all);
    }
    assert_eq!(keys(&api, "t", "user:", 7).await.expect("listed"), users);
    assert_eq!(keys(&api, "t", "nobody:", 7).await.expect("listed"), BTreeSet::new());
    assert_eq!(keys(&api, "s", "", 7).await.expect("listed"), named(["one", "same", "two*"].map(str::to_owned)));

    let list = |change: &dyn Fn(&mut v1::ListKeysRequest)| {
        let mut request = v1::ListKeysRequest { tenant_id: "t".to_owned(), page_size: 1, ..Default::default() };
        change(&mut request);
        let api = api.clone();
        async move { api.client().list_keys(request).await }
    };
    let token = list(&|_| {}).await.expect("listed").into_inner().next_page_token;
    let bad = |field| (Code::InvalidArgument, "INVALID_REQUEST", "not-applied", field);
    let other = |request: &mut v1::ListKeysRequest| {
        request.tenant_id = "other".to_owned();
        request.page_token.clone_from(&token);
    };
    assert_eq!(refusal(list(&other).await).summary(), bad("page_token"));
    assert_eq!(refusal(list(&|request| request.page_token = "made up".to_owned()).await).summary(), bad("page_token"));
    assert_eq!(refusal(list(&|request| request.page_size = 1001).await).summary(), bad("page_size"));
    assert_eq!(refusal(list(&|request| request.tenant_id = "nobody".to_owned()).await).reason, "TENANT_NOT_FOUND");

    cluster.kill_node(1);
    assert_eq!(keys(&api, "t", "", 7).await.expect("a quorum is left"), all);
    cluster.kill_node(0);
    let failed = keys(&api, "t", "", 7).await.expect_err("no quorum is left");
    assert_eq!((failed.code, failed.reason.as_str()), (Code::Unavailable, "QUORUM_NOT_REACHED"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_brings_a_node_that_was_away_what_nobody_reads() {
    let mut cluster = cluster().await;
    let api = cluster.api();
    for tenant in ["t", "u"] {
        api.tenant(tenant, |_| {}).await;
    }
    api.siblings_tenant("s").await;
    for n in 0..20 {
        api.write(at("all", write("t", &format!("old-{n}"), "v"))).await.expect("write");
    }
    cluster.kill_node(2);
    for n in 0..20 {
        for tenant in ["t", "s", "u"] {
            api.write(write(tenant, &format!("new-{n}"), "v")).await.expect("a quorum is left");
        }
        api.delete(delete("t", &format!("old-{n}"))).await.expect("a quorum is left");
    }
    let away = repair(&api, of_tenant("t")).await;
    assert!(!away.complete && away.ranges_incomplete > 0, "{away:?}");
    assert_eq!(away.unreachable_nodes.iter().map(|node| node.node_id.as_str()).collect::<Vec<_>>(), ["node-3"]);

    cluster.start_node(2).await;
    cluster.all_reachable().await;
    let report = repair(&api, of_tenant("t")).await;
    assert!(report.complete && report.unreachable_nodes.is_empty(), "{report:?}");
    assert_eq!((report.scanned, report.repaired, report.failed), (40, 40, 0), "{report:?}");
    for n in 0..20 {
        assert!(has(&cluster, 2, "t", &format!("new-{n}")).await);
        assert!(!has(&cluster, 2, "u", &format!("new-{n}")).await, "another tenant's");
    }
    let level = repair(&api, CoordinatorServiceRepairRequest { by_digests: true, ..of_tenant("t") }).await;
    assert!(level.complete && (level.scanned, level.bytes, level.repaired) == (0, 0, 0), "{level:?}");
    let again = repair(&api, of_tenant("t")).await;
    assert_eq!((again.scanned, again.repaired, again.complete), (40, 0, true), "{again:?}");

    // Half of the ring, then the rest, from the cursor at the end of the first half.
    let middle = 1 << 63;
    let half = repair(&api, CoordinatorServiceRepairRequest { to_token: Some(middle - 1), ..everything() }).await;
    let rest = CoordinatorServiceRepairRequest { from_token: Some(middle), ..everything() };
    let rest = repair(&api, rest).await;
    assert_eq!((half.scanned + rest.scanned, half.repaired + rest.repaired), (80, 40), "{half:?} {rest:?}");
    let behind = CoordinatorServiceRepairRequest { cursor: half.cursor, ..everything() };
    assert_eq!(repair(&api, behind).await.scanned, rest.scanned, "a cursor goes on after the last record");
    // Deleted keys stay deleted, even where only the repaired node and one other remain.
    cluster.kill_node(0);
    for n in 0..20 {
        let gone = api.read(read("t", &format!("old-{n}"))).await.expect_err("deleted");
        assert_eq!(gone.reason, "KEY_NOT_FOUND");
        assert_eq!(api.read(read("s", &format!("new-{n}"))).await.expect("repaired").value, "v");
    }
}

/// Waits until the coordinator has noticed the new store of a node.
async fn met(cluster: &Cluster, node: &str) {
    eventually("the new store is met", async || {
        let (status, body) = get(cluster.admin(), "/readyz").await.ok()?;
        (status == 200 && body.contains(&format!("{node} has another store"))).then_some(())
    })
    .await;
}

/// Some writes are only on the wiped node and one other, some on the other two, some arrive during the repair: any two remaining
/// nodes must have all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_made_whole_and_nothing_acknowledged_is_lost() {
    let mut cluster = cluster().await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    let mut expected = Vec::new();
    let mut write_all = async |name: &str| {
        for n in 0..15 {
            for tenant in ["t", "s"] {
                let key = format!("{name}-{n}");
                api.write(write(tenant, &key, format!("{name} {n}"))).await.expect("a quorum is there");
                expected.push((tenant, key, format!("{name} {n}")));
            }
        }
    };
    write_all("everywhere").await;
    cluster.kill_node(1);
    write_all("not on node-2").await;
    cluster.start_node(1).await;
    cluster.all_reachable().await;
    cluster.kill_node(2);
    std::fs::remove_dir_all(cluster.node_folder(2)).expect("wipe a disk");
    write_all("not on node-3").await;
    cluster.start_node(2).await;
    met(&cluster, "node-3").await;
    write_all("while node-3 is not used").await;

    let nodes = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.expect("list").into_inner().nodes;
    assert_eq!(nodes.iter().map(|node| node.write_only).collect::<Vec<_>>(), [false, false, true]);

    // A repair of a part proves nothing about the rest.
    let part = repair(&api, of_tenant("t")).await;
    assert!(!part.complete && part.restored_nodes.is_empty() && part.admitted_stores.is_empty(), "{part:?}");
    assert!(part.unreachable_nodes[0].reason.contains("only a repair of everything admits"), "{part:?}");
    let report = repair(&api, everything()).await;
    assert!(report.complete && report.write_only_nodes.is_empty(), "{report:?}");
    assert_eq!((report.restored_nodes, report.scanned), (vec!["node-3".to_owned()], expected.len() as u64));
    cluster.all_reachable().await;
    let (_, ready) = get(cluster.admin(), "/readyz").await.expect("ready");
    assert_eq!(ready, "ok\n");

    for lost in [0, 1] {
        cluster.kill_node(lost);
        for (tenant, key, value) in &expected {
            let found = api.read(read(tenant, key)).await.unwrap_or_else(|error| panic!("{key}: {error:?}"));
            assert_eq!(found.value, value.as_bytes(), "{key}");
        }
        cluster.start_node(lost).await;
        cluster.all_reachable().await;
    }
    // That survives a restart of the coordinator.
    cluster.kill_coordinator();
    cluster.start_coordinator().await;
    cluster.all_reachable().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_too_few_others_can_fill_is_believed_only_with_loss() {
    let mut cluster = cluster().await;
    let api = cluster.api();
    api.tenant("single", |request| request.replication_factor = 1).await;
    for n in 0..30 {
        api.write(write("single", &format!("k-{n}"), "v")).await.expect("write");
    }
    cluster.kill_node(2);
    std::fs::remove_dir_all(cluster.node_folder(2)).expect("wipe a disk");
    cluster.start_node(2).await;
    met(&cluster, "node-3").await;
    let report = repair(&api, everything()).await;
    assert!(report.restored_nodes.is_empty(), "{report:?}");
    assert_eq!(report.write_only_nodes.len(), 1);
    assert!(report.write_only_nodes[0].reason.contains("1 replicas"), "{report:?}");

    let of_a_part = CoordinatorServiceRepairRequest { accept_loss: true, ..of_tenant("single") };
    assert_eq!(refusal(api.client().repair(of_a_part).await).summary().3, "accept_loss");
    let report = repair(&api, CoordinatorServiceRepairRequest { accept_loss: true, ..everything() }).await;
    assert_eq!(report.restored_nodes, ["node-3"], "{report:?}");
    cluster.all_reachable().await;
    let listed = keys(&api, "single", "", 100).await.expect("listed");
    assert!(!listed.is_empty() && listed.len() < 30, "what only the lost disk had is gone: {listed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_keeps_its_pace_is_bounded_and_stops_with_its_client() {
    let dev = Dev::start().await;
    let api = dev.api();
    api.tenant("t", |_| {}).await;
    for n in 0..50 {
        api.write(write("t", &format!("k-{n}"), "v")).await.expect("write");
    }
    // At this rate it would take most of a minute.
    let slow = CoordinatorServiceRepairRequest { records_per_second: 1, ..everything() };
    let mut first = api.client().repair(slow.clone()).await.expect("repair").into_inner();
    let second = api.client().repair(slow.clone()).await.expect("repair").into_inner();
    let report = first.message().await.expect("a report").expect("progress");
    assert!(report.phase == "scanning" && report.scanned < 50, "{report:?}");
    let refused = refusal(api.client().repair(slow.clone()).await);
    assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    drop((first, second));
    eventually("the repairs have stopped", async || {
        let quick = api.client().repair(everything()).await.ok()?.into_inner();
        drop(quick);
        Some(())
    })
    .await;
    let backwards = CoordinatorServiceRepairRequest { from_token: Some(2), to_token: Some(1), ..everything() };
    assert_eq!(refusal(api.client().repair(backwards).await).summary().3, "to_token");
    let made_up = CoordinatorServiceRepairRequest { cursor: "made up".into(), ..everything() };
    assert_eq!(refusal(api.client().repair(made_up).await).summary().3, "cursor");
    let nobody = refusal(api.client().repair(of_tenant("nobody")).await);
    assert_eq!(nobody.reason, "TENANT_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tenant_is_gone_at_once_and_its_records_go_from_every_node() {
    let mut cluster = cluster().await;
    let api = cluster.api();
    for tenant in ["gone", "kept"] {
        api.tenant(tenant, |_| {}).await;
        for n in 0..20 {
            api.write(at("all", write(tenant, &format!("k-{n}"), "v"))).await.expect("write");
        }
    }
    let request = |confirm: &str, version| v1::DeleteTenantRequest {
        tenant_id: "gone".to_owned(),
        version,
        confirm: confirm.to_owned(),
    };
    let unsure = refusal(api.client().delete_tenant(request("", 0)).await);
    assert_eq!(unsure.summary(), (Code::InvalidArgument, "INVALID_REQUEST", "not-applied", "confirm"));
    let stale = refusal(api.client().delete_tenant(request("gone", 7)).await);
    assert_eq!(stale.summary(), (Code::Aborted, "VERSION_CONFLICT", "not-applied", ""));
    assert_eq!(api.read(read("gone", "k-0")).await.expect("nothing has happened").value, "v");

    cluster.kill_node(2);
    let answer = api.client().delete_tenant(request("gone", 0)).await.expect("deleted").into_inner();
    assert_eq!(answer.records_removed, 40, "{answer:?}");
    assert_eq!(answer.incomplete_nodes.iter().map(|node| node.node_id.as_str()).collect::<Vec<_>>(), ["node-3"]);
    for refusal in [
        api.read(read("gone", "k-0")).await.expect_err("gone"),
        api.write(write("gone", "k-0", "v")).await.expect_err("gone"),
        keys(&api, "gone", "", 10).await.expect_err("gone"),
        refusal(api.client().get_tenant(v1::GetTenantRequest { tenant_id: "gone".to_owned() }).await),
    ] {
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::NotFound, "TENANT_NOT_FOUND"), "{refusal:?}");
    }
    let again = v1::CreateTenantRequest { tenant_id: "gone".to_owned(), ..v1::CreateTenantRequest::default() };
    assert_eq!(refusal(api.client().create_tenant(again).await).reason, "TENANT_EXISTS", "an id is used once");

    // A node that was down still has it; a repair does not spread it.
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    assert!(has(&cluster, 2, "gone", "k-0").await);
    let repaired = repair(&api, everything()).await;
    assert_eq!((repaired.scanned, repaired.skipped, repaired.repaired), (20, 20, 0), "{repaired:?}");
    assert!(!has(&cluster, 0, "gone", "k-0").await);
    let answer = api.client().delete_tenant(request("gone", 0)).await.expect("the rest").into_inner();
    assert_eq!((answer.records_removed, answer.incomplete_nodes.len()), (20, 0), "{answer:?}");
    assert!(!has(&cluster, 2, "gone", "k-0").await);
    for n in 0..20 {
        assert_eq!(api.read(read("kept", &format!("k-{n}"))).await.expect("another tenant's").value, "v");
    }
    let nobody = v1::DeleteTenantRequest { tenant_id: "nobody".to_owned(), confirm: "nobody".to_owned(), version: 0 };
    assert_eq!(refusal(api.client().delete_tenant(nobody).await).reason, "TENANT_NOT_FOUND");
}
