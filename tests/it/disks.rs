//! Nodes that come back with another disk, or with an earlier copy of their own.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tonic::Code;
use witan_wire::v1;
use witan_wire::v1::{CoordinatorServiceRepairRequest, CoordinatorServiceRepairResponse};

use crate::harness::{Api, Cluster, NODES, eventually, get, read, write};

/// Number of keys of each tenant.
const KEYS: usize = 20;

async fn tenants(api: &Api) {
    api.tenant("t", |_| {}).await;
    api.tenant("c", |request| request.ordering = "clock".to_owned()).await;
    api.siblings_tenant("s").await;
}

/// Tries to write every key of every tenant, and returns those that were acknowledged.
async fn write_all(api: &Api, name: &str) -> Vec<(&'static str, String)> {
    let mut acknowledged = Vec::new();
    for n in 0..KEYS {
        for tenant in ["t", "c", "s"] {
            let key = format!("{name}-{n}");
            match api.write(write(tenant, &key, key.clone())).await {
                Ok(_) => acknowledged.push((tenant, key)),
                Err(refused) => assert_eq!(refused.reason, "QUORUM_NOT_REACHED", "{refused:?}"),
            }
        }
    }
    acknowledged
}

/// Every acknowledged write must be found, or refused for lack of a quorum; never answered with "not found". Returns how many were found.
async fn found(api: &Api, acknowledged: &[(&str, String)]) -> usize {
    let mut found = 0;
    for (tenant, key) in acknowledged {
        match api.read(read(tenant, key)).await {
            Ok(answer) => {
                assert_eq!(answer.value, key.as_bytes());
                found += 1;
            }
            Err(refused) => {
                assert_eq!((refused.code, &refused.reason[..]), (Code::Unavailable, "QUORUM_NOT_REACHED"), "{key}")
            }
        }
    }
    found
}

/// Waits until /readyz says this of a node's store, or that all is well.
async fn readiness(cluster: &Cluster, says: &str) {
    eventually("the coordinator has met the node's store", async || {
        let (status, body) = get(cluster.admin(), "/readyz").await.ok()?;
        (status == 200 && body.contains(says)).then_some(())
    })
    .await;
}

async fn repair(api: &Api) -> CoordinatorServiceRepairResponse {
    let mut reports =
        api.client().repair(CoordinatorServiceRepairRequest::default()).await.expect("repair").into_inner();
    let mut last = None;
    while let Some(report) = reports.message().await.expect("a report") {
        last = Some(report);
    }
    last.expect("a last report")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("make a folder");
    for entry in std::fs::read_dir(from).expect("list a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copy a file");
        }
    }
}

/// A node's folder under another name.
fn aside(cluster: &Cluster, node: usize) -> PathBuf {
    cluster.node_folder(node).with_extension("aside")
}

fn put_aside(cluster: &Cluster, node: usize) {
    std::fs::rename(cluster.node_folder(node), aside(cluster, node)).expect("move a folder");
}

fn put_back(cluster: &Cluster, node: usize) {
    std::fs::remove_dir_all(cluster.node_folder(node)).expect("remove a folder");
    std::fs::rename(aside(cluster, node), cluster.node_folder(node)).expect("move a folder");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_not_mounted_serves_nobody_and_loses_nothing_when_it_is_back() {
    let mut cluster = Cluster::start().await;
    let api = cluster.api();
    tenants(&api).await;
    let mut acknowledged = write_all(&api, "before").await;
    assert_eq!(acknowledged.len(), 3 * KEYS);

    cluster.kill_node(2);
    put_aside(&cluster, 2);
    cluster.start_node(2).await;
    readiness(&cluster, "node-3 has another store").await;
    let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.expect("listed").into_inner();
    let third = &listed.nodes[2];
    assert!(third.write_only && !third.reachable && third.store_use == "unadmitted", "{third:?}");

    // With one whole node, nothing is acknowledged: what the empty one stored would be lost.
    cluster.kill_node(0);
    assert_eq!(write_all(&api, "while it is empty").await, []);
    assert_eq!(found(&api, &acknowledged).await, 0);
    cluster.start_node(0).await;
    acknowledged.extend(write_all(&api, "on the other two").await);

    cluster.kill_node(2);
    put_back(&cluster, 2);
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    readiness(&cluster, "ok\n").await;
    cluster.kill_node(1);
    assert_eq!(found(&api, &acknowledged).await, acknowledged.len());
    acknowledged.extend(write_all(&api, "with its own disk").await);
    cluster.start_node(1).await;
    cluster.kill_node(0);
    cluster.kill_node(2);
    cluster.start_node(2).await;
    // Once the coordinator is connected to both again, each quorum has one of those that acknowledged the write.
    eventually("the two nodes that are left have everything", async || {
        (found(&api, &acknowledged).await == acknowledged.len()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_replaced_is_never_used_again() {
    let mut cluster = Cluster::start().await;
    let api = cluster.api();
    tenants(&api).await;
    let mut acknowledged = write_all(&api, "before").await;
    cluster.kill_node(2);
    put_aside(&cluster, 2);
    cluster.start_node(2).await;
    readiness(&cluster, "node-3 has another store").await;
    let report = repair(&api).await;
    assert_eq!(report.restored_nodes, ["node-3"], "{report:?}");
    assert_eq!(report.admitted_stores.len(), 1);
    assert_ne!(report.admitted_stores[0].store_id, report.admitted_stores[0].replaces_store_id);
    readiness(&cluster, "ok\n").await;

    // These are on the new store and one other node.
    cluster.kill_node(0);
    acknowledged.extend(write_all(&api, "on the new disk").await);
    assert_eq!(acknowledged.len(), 6 * KEYS);
    cluster.start_node(0).await;

    cluster.kill_node(2);
    let new = cluster.node_folder(2).with_extension("new");
    std::fs::rename(cluster.node_folder(2), &new).expect("move a folder");
    std::fs::rename(aside(&cluster, 2), cluster.node_folder(2)).expect("move a folder");
    cluster.start_node(2).await;
    readiness(&cluster, "node-3 has another store").await;
    let report = repair(&api).await;
    assert!(report.restored_nodes.is_empty(), "{report:?}");
    assert!(report.write_only_nodes[0].reason.contains("was replaced before"), "{report:?}");
    cluster.kill_node(1);
    assert_eq!(found(&api, &acknowledged).await, 0, "one whole node is left");
    cluster.start_node(1).await;

    cluster.kill_node(2);
    std::fs::remove_dir_all(cluster.node_folder(2)).expect("remove a folder");
    std::fs::rename(new, cluster.node_folder(2)).expect("move a folder");
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    cluster.kill_node(1);
    assert_eq!(found(&api, &acknowledged).await, acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_set_back_is_noticed_and_filled_like_a_new_one() {
    let mut cluster = Cluster::start().await;
    let api = cluster.api();
    tenants(&api).await;
    let mut acknowledged = write_all(&api, "in the copy").await;
    cluster.kill_node(2);
    copy(&cluster.node_folder(2), &aside(&cluster, 2));
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    cluster.kill_node(0);
    acknowledged.extend(write_all(&api, "after the copy").await);
    assert_eq!(acknowledged.len(), 6 * KEYS);
    cluster.start_node(0).await;

    cluster.kill_node(2);
    put_back(&cluster, 2);
    cluster.start_node(2).await;
    readiness(&cluster, "node-3 has another store").await;
    cluster.kill_node(1);
    assert_eq!(found(&api, &acknowledged).await, 0, "one whole node is left");
    cluster.start_node(1).await;
    // It is still not used by a coordinator that has just been started.
    cluster.kill_coordinator();
    cluster.start_coordinator().await;
    readiness(&cluster, "node-3 has another store").await;

    let report = repair(&api).await;
    assert!(report.write_only_nodes[0].reason.contains("set back"), "{report:?}");
    cluster.kill_node(2);
    std::fs::remove_dir_all(cluster.node_folder(2)).expect("remove a folder");
    cluster.start_node(2).await;
    readiness(&cluster, "node-3 has another store").await;
    assert_eq!(repair(&api).await.restored_nodes, ["node-3"]);
    cluster.all_reachable().await;
    cluster.kill_node(1);
    assert_eq!(found(&api, &acknowledged).await, acknowledged.len());
}

/// The values of a key, and its context.
async fn values(api: &Api) -> (Vec<Bytes>, Bytes) {
    api.values(read("s", "x")).await.expect("read")
}

fn after(context: &Bytes, value: &'static str) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { context: context.clone(), ..write("s", "x", value) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_of_all_nodes_what_clients_have_of_before_is_refused_or_done_again() {
    let mut cluster = Cluster::start().await;
    let api = cluster.api();
    api.siblings_tenant("s").await;
    let base = api.write(write("s", "x", "base")).await.expect("written").context;
    for node in 0..NODES {
        cluster.kill_node(node);
        copy(&cluster.node_folder(node), &aside(&cluster, node));
        cluster.start_node(node).await;
    }
    cluster.all_reachable().await;
    let named = v1::WriteKeyValueRequest { idempotency_key: "of A1".to_owned(), ..write("s", "y", "A1") };
    api.write(after(&base, "A1")).await.expect("written");
    api.write(named.clone()).await.expect("written");
    let (found, seen) = values(&api).await;
    assert_eq!(found, ["A1"]);

    for node in 0..NODES {
        cluster.kill_node(node);
        put_back(&cluster, node);
    }
    for node in 0..NODES {
        cluster.start_node(node).await;
    }
    // The nodes lack what this coordinator has seen them acknowledge.
    readiness_of_none(&cluster).await;
    let unsure = v1::DeclareRestoredRequest { confirm: "yes".to_owned() };
    assert_eq!(api.client().declare_restored(unsure).await.expect_err("refused").code(), Code::InvalidArgument);
    let declared = v1::DeclareRestoredRequest { confirm: "restored".to_owned() };
    api.client().declare_restored(declared).await.expect("declared");
    cluster.all_reachable().await;
    for (context, value) in [(&base, "B1"), (&seen, "A2")] {
        let refused = api.write(after(context, value)).await.expect_err("a context of the lost era");
        assert_eq!(
            (refused.code, &refused.reason[..], &refused.outcome[..]),
            (Code::Aborted, "VERSION_CONFLICT", "not-applied"),
            "{refused:?}"
        );
        assert!(refused.message.contains("read the key again"), "{refused:?}");
    }
    let (found, now) = values(&api).await;
    assert_eq!(found, ["base"]);
    api.write(after(&now, "B1")).await.expect("written");
    assert_eq!(values(&api).await.0, ["B1"]);
    // The idempotency store was not restored, and remembers that it was done.
    assert!(!api.write(named).await.expect("written").is_duplicate, "what was lost is done again");
    assert_eq!(api.values(read("s", "y")).await.expect("read").0, ["A1"]);
}

/// Waits until the coordinator uses no node.
async fn readiness_of_none(cluster: &Cluster) {
    eventually("no node is used", async || {
        let request = v1::ListStorageNodesRequest {};
        let listed = cluster.api().client().list_storage_nodes(request).await.ok()?.into_inner();
        listed.nodes.iter().all(|node| node.store_use == "unadmitted").then_some(())
    })
    .await;
}
