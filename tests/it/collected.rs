//! What is left of deleted keys, by real processes whose wall clocks are days ahead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use witan_wire::v1;

use crate::harness::{Cluster, NODES, Setup, delete, eventually, node_client, read, write};

/// Keys of each tenant: few, since each part of the ring that has a deleted one takes 15 s.
const KEYS: usize = 2;
const TENANTS: [&str; 2] = ["t", "s"];
/// A comparison of all parts begins every minute, and each part with a deleted key takes 15 s. The second one finds what the first one has
/// made level.
const COLLECTED: Duration = Duration::from_secs(400);

/// Compiles the library with which wall clocks are ahead, with the C compiler that linking Rust programs takes anyway.
fn clock_that_is_ahead(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("later.c"), folder.join("later.so"));
    std::fs::write(&source, include_str!("collected/later.c")).expect("write a file");
    let mut cc = Command::new("cc");
    let built = cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(built.expect("run cc").success(), "the library cannot be compiled");
    library
}

/// The numbers of a tenant's rows on each node.
async fn rows(cluster: &Cluster, tenant: &str) -> Vec<usize> {
    let mut rows = Vec::new();
    for node in 0..NODES {
        let request = v1::ScanRangeRequest { tenant_id: tenant.to_owned(), ..v1::ScanRangeRequest::default() };
        let page = node_client(cluster.node_address(node)).scan_range(request).await.expect("scanned").into_inner();
        rows.push(page.records.len());
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_keys_that_were_deleted_days_ago() {
    let folder = tempfile::tempdir().expect("make a folder");
    let library = clock_that_is_ahead(folder.path());
    let settings =
        vec![("WITAN_HEALING__BEGIN_AFTER", "100ms".to_owned()), ("WITAN_HEALING__COMPARE_EVERY", "1m".to_owned())];
    let mut cluster = Cluster::with(Setup { synced: false, settings, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    for tenant in TENANTS {
        for n in 0..KEYS {
            api.write(write(tenant, &format!("key-{n}"), "value")).await.expect("written");
        }
        api.write(write(tenant, "kept", "value")).await.expect("written");
        api.delete(delete(tenant, "key-0")).await.expect("deleted");
    }
    eventually("all nodes have everything", async || {
        let all = [rows(&cluster, "t").await, rows(&cluster, "s").await].concat();
        all.into_iter().all(|rows| rows == KEYS + 1).then_some(())
    })
    .await;
    // The third node does not hear of the other deletions.
    cluster.kill_node(2);
    for tenant in TENANTS {
        eventually("it is deleted on two nodes", async || api.delete(delete(tenant, "key-1")).await.ok()).await;
    }

    cluster.kill_coordinator();
    (0..2).for_each(|node| cluster.kill_node(node));
    cluster.preload(&library, "LATER_SECONDS", 37 * 3600);
    for node in 0..NODES {
        cluster.start_node(node).await;
    }
    cluster.start_coordinator().await;
    cluster.all_reachable().await;
    let began = Instant::now();
    loop {
        let left = [rows(&cluster, "t").await, rows(&cluster, "s").await].concat();
        if left.iter().all(|rows| *rows == 1) {
            break;
        }
        assert!(began.elapsed() < COLLECTED, "rows of the tenants on the nodes: {left:?}");
        sleep(Duration::from_secs(1)).await;
    }
    let api = cluster.api();
    for tenant in TENANTS {
        for n in 0..KEYS {
            let key = format!("key-{n}");
            assert_eq!(api.read(read(tenant, &key)).await.expect_err("it is deleted").code, tonic::Code::NotFound);
            api.write(write(tenant, &key, "again")).await.expect("written");
            assert_eq!(api.read(read(tenant, &key)).await.expect("read").value, "again");
        }
        assert_eq!(api.read(read(tenant, "kept")).await.expect("read").value, "value");
    }
}
