//! What a cluster does by itself: nobody reads, and nobody runs `witan repair`.

use witan_wire::v1;

use crate::harness::{Api, Cluster, NODES, Setup, delete, eventually, get, node_client, write};

/// Number of keys of each tenant.
const KEYS: usize = 40;
const TENANTS: [&str; 2] = ["t", "s"];

/// A coordinator that heals soon after its start, and compares nothing routinely meanwhile once it has done so.
fn healing(admit_after: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![
        ("WITAN_HEALING__BEGIN_AFTER", "100ms"),
        ("WITAN_HEALING__COMPARE_EVERY", "720h"),
        ("WITAN_HEALING__ADMIT_AFTER", admit_after),
    ]
}

async fn cluster(admit_after: &'static str) -> Cluster {
    Cluster::with(Setup { synced: false, environment: healing(admit_after), ..Setup::default() }).await
}

async fn tenants(api: &Api) {
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
}

async fn write_all(api: &Api, value: &'static str) {
    for n in 0..KEYS {
        for tenant in TENANTS {
            api.write(write(tenant, &format!("key-{n}"), value)).await.expect("written");
        }
    }
}

/// A record as a node itself has it.
async fn record(cluster: &Cluster, node: usize, tenant: &str, key: &str) -> Option<bytes::Bytes> {
    let request = v1::ReadRequest { tenant_id: tenant.to_owned(), key: key.to_owned(), token: None, render: false };
    let answer = node_client(cluster.node_address(node)).read(request).await.expect("read from a node");
    answer.into_inner().record.map(|record| record.into())
}

/// The number of keys whose record a node has otherwise than the first one.
async fn differing(cluster: &Cluster, node: usize) -> usize {
    let mut differing = 0;
    for n in 0..KEYS {
        for tenant in TENANTS {
            let key = format!("key-{n}");
            let own = record(cluster, node, tenant, &key).await;
            differing += usize::from(own.is_none() || own != record(cluster, 0, tenant, &key).await);
        }
    }
    differing
}

/// The value of a metric with these labels; 0 if it is not there.
async fn metric(cluster: &Cluster, name: &str) -> f64 {
    let (_, metrics) = get(cluster.admin(), "/metrics").await.expect("metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().expect("a number"))
}

/// Waits until passes of this kind have ended completely, this number of them in all.
async fn passes(cluster: &Cluster, kind: &str, count: f64) {
    let name = format!("witan_healing_passes_total{{kind=\"{kind}\",result=\"complete\"}}");
    eventually(&format!("{count} passes: {kind}"), async || (metric(cluster, &name).await >= count).then_some(()))
        .await;
}

/// Waits until the coordinator reaches this number of nodes.
async fn reaches(api: &Api, nodes: usize) {
    eventually("the coordinator has noticed", async || {
        let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.ok()?.into_inner();
        (listed.nodes.iter().filter(|node| node.reachable).count() == nodes).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_is_level_again_without_reads_and_without_a_repair() {
    let mut cluster = cluster("15m").await;
    let api = cluster.api();
    tenants(&api).await;
    write_all(&api, "before").await;
    // The routine comparison is over before the node goes: what it misses is found because it was away, and not by chance.
    passes(&cluster, "compare", 16.0).await;
    cluster.kill_node(2);
    reaches(&api, NODES - 1).await;
    write_all(&api, "meanwhile").await;
    api.delete(delete("t", "key-0")).await.expect("deleted");
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    assert!(differing(&cluster, 2).await > 0, "it has missed something");

    passes(&cluster, "catch-up", 1.0).await;
    eventually("the node is level", async || (differing(&cluster, 2).await == 0).then_some(())).await;
    assert!(metric(&cluster, "witan_healing_repaired_total{kind=\"catch-up\"}").await >= KEYS as f64);
    let (_, ready) = get(cluster.admin(), "/readyz").await.expect("an answer");
    assert_eq!(ready, "ok\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_folder_is_filled_once_it_has_waited_and_never_if_that_is_turned_off() {
    let mut cluster = cluster("0").await;
    let api = cluster.api();
    tenants(&api).await;
    write_all(&api, "v").await;
    cluster.kill_node(2);
    std::fs::remove_dir_all(cluster.node_folder(2)).expect("remove a folder");
    cluster.start_node(2).await;
    let told = eventually("the list says what becomes of the store", async || {
        let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.ok()?.into_inner();
        let third = listed.nodes.into_iter().nth(2).filter(|node| node.store_use == "unadmitted")?;
        third.state_message.contains("on record is").then_some(third.state_message)
    })
    .await;
    assert!(told.contains("healing.admit_after is 0") && told.contains("witan repair"), "{told}");
    let (_, ready) = get(cluster.admin(), "/readyz").await.expect("an answer");
    assert!(ready.contains(&told), "{ready}");

    cluster.kill_coordinator();
    cluster.set_environment(healing("1s"));
    cluster.start_coordinator().await;
    cluster.all_reachable().await;
    passes(&cluster, "fill", 1.0).await;
    assert_eq!(differing(&cluster, 2).await, 0);
    // What it has is asked for again: with another node away, it is needed for each quorum.
    cluster.kill_node(1);
    eventually("a quorum of two reads everything", async || {
        for n in 0..KEYS {
            let found = api.read(crate::harness::read("t", &format!("key-{n}"))).await.ok()?;
            assert_eq!(found.value, "v".as_bytes());
        }
        Some(())
    })
    .await;
}
