//! What a cluster does by itself: nobody reads, and nobody runs `witan repair`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use witan_wire::v1;

use crate::harness::{Api, Cluster, Company, NODES, Setup, Version, delete, eventually, get, node_client, write};

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

async fn cluster(admit_after: &'static str, synced: bool) -> Cluster {
    let settings = healing(admit_after).into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    Cluster::with(Setup { synced, settings, ..Setup::default() }).await
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
async fn record(node: SocketAddr, tenant: &str, key: &str) -> Option<bytes::Bytes> {
    let request = v1::ReadRequest { tenant_id: tenant.to_owned(), key: key.to_owned(), token: None, render: false };
    let answer = node_client(node).read(request).await.expect("read from a node");
    answer.into_inner().record
}

/// The number of keys whose record the third node has otherwise than the first one.
async fn differing(cluster: &Cluster) -> usize {
    differing_of(cluster.node_address(0), cluster.node_address(2)).await
}

async fn differing_of(first: SocketAddr, third: SocketAddr) -> usize {
    let mut differing = 0;
    for n in 0..KEYS {
        for tenant in TENANTS {
            let key = format!("key-{n}");
            let own = record(third, tenant, &key).await;
            differing += usize::from(own.is_none() || own != record(first, tenant, &key).await);
        }
    }
    differing
}

/// The value of a metric with these labels; 0 if it is not there.
async fn metric(admin: SocketAddr, name: &str) -> f64 {
    let (_, metrics) = get(admin, "/metrics").await.expect("metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().expect("a number"))
}

/// Waits until passes of this kind have ended completely, this number of them in all.
async fn passes(admin: SocketAddr, kind: &str, count: f64) {
    let name = format!("witan_healing_passes_total{{kind=\"{kind}\",result=\"complete\"}}");
    eventually(&format!("{count} passes: {kind}"), async || (metric(admin, &name).await >= count).then_some(())).await;
}

async fn listed(api: &Api) -> v1::ListStorageNodesResponse {
    api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.expect("listed").into_inner()
}

/// What is on record that the third node has missed.
async fn owed(api: &Api) -> Option<v1::HealingDuty> {
    listed(api).await.healing.into_iter().find(|duty| duty.kind == "missed" && duty.range == "node-3")
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
    let mut cluster = cluster("15m", true).await;
    let api = cluster.api();
    tenants(&api).await;
    write_all(&api, "before").await;
    // The routine comparison is over before the node goes: what it misses is found because it was away, and not by chance.
    passes(cluster.admin(), "compare", 16.0).await;
    passes(cluster.admin(), "scrub", 16.0).await;
    cluster.kill_node(2);
    reaches(&api, NODES - 1).await;
    write_all(&api, "meanwhile").await;
    api.delete(delete("t", "key-0")).await.expect("deleted");
    let third = listed(&api).await.nodes.remove(2);
    assert!(
        third.state_message.contains("catching up: ") && third.state_message.contains(" of 65536 slices missed"),
        "{third:?}"
    );
    let duty = eventually("it is on record", async || owed(&api).await).await;
    assert!(duty.wanted && !duty.coordinator_id.is_empty(), "{duty:?}");
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    assert!(differing(&cluster).await > 0, "it has missed something");

    passes(cluster.admin(), "missed", 1.0).await;
    eventually("the node is level", async || (differing(&cluster).await == 0).then_some(())).await;
    eventually("it is off the record", async || owed(&api).await.is_none().then_some(())).await;
    assert_eq!(listed(&api).await.nodes.remove(2).state_message, "");
    assert!(metric(cluster.admin(), "witan_healing_repaired_total{kind=\"missed\"}").await >= KEYS as f64);
    assert_eq!(metric(cluster.admin(), "witan_missed_slices{node=\"node-3\"}").await, 0.0);
    let (_, ready) = get(cluster.admin(), "/readyz").await.expect("an answer");
    assert_eq!(ready, "ok\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_replicas_that_are_level_nothing_is_read_until_they_are_scrubbed() {
    let settings = |anti_entropy: &'static str, scrub_every: &'static str| {
        let mut settings = healing("15m");
        settings.extend([("WITAN_HEALING__ANTI_ENTROPY", anti_entropy), ("WITAN_HEALING__SCRUB_EVERY", scrub_every)]);
        settings
    };
    let owned = settings("false", "0").into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    let mut cluster = Cluster::with(Setup { synced: false, settings: owned, ..Setup::default() }).await;
    let api = cluster.api();
    tenants(&api).await;
    write_all(&api, "v").await;
    eventually("all replicas have everything", async || (differing(&cluster).await == 0).then_some(())).await;

    cluster.kill_coordinator();
    cluster.set_environment(settings("true", "0"));
    cluster.start_coordinator().await;
    cluster.all_reachable().await;
    passes(cluster.admin(), "compare", 16.0).await;
    let value = async |name: &str, kind: &str| metric(cluster.admin(), &format!("{name}{{kind=\"{kind}\"}}")).await;
    assert_eq!(value("witan_healing_records_total", "compare").await, 0.0);
    assert_eq!(value("witan_healing_read_bytes_total", "compare").await, 0.0);
    assert!(value("witan_healing_level_slices_total", "compare").await >= 65_536.0);
    assert_eq!(value("witan_healing_unknown_slices_total", "compare").await, 0.0);
    assert_eq!(value("witan_healing_read_bytes_total", "scrub").await, 0.0);

    cluster.kill_coordinator();
    cluster.set_environment(settings("true", "168h"));
    cluster.start_coordinator().await;
    cluster.all_reachable().await;
    passes(cluster.admin(), "scrub", 16.0).await;
    let read = (KEYS * TENANTS.len()) as f64;
    assert_eq!(metric(cluster.admin(), "witan_healing_records_total{kind=\"scrub\"}").await, read);
    assert_eq!(metric(cluster.admin(), "witan_healing_sent_bytes_total{kind=\"scrub\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_folder_is_filled_once_it_has_waited_and_never_if_that_is_turned_off() {
    let mut cluster = cluster("0", false).await;
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
    passes(cluster.admin(), "fill", 1.0).await;
    assert_eq!(differing(&cluster).await, 0);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_coordinator_goes_on_when_the_one_that_began_has_died() {
    let mut company = Company::with_environment(2, healing("15m")).await;
    let (api, first) = (company.api(0), company.coordinators[0].admin);
    let second = company.coordinators[1].admin;
    tenants(&api).await;
    write_all(&api, "before").await;
    let name = "witan_healing_passes_total{kind=\"compare\",result=\"complete\"}";
    eventually("each part is compared by one of them", async || {
        (metric(first, name).await + metric(second, name).await >= 16.0).then_some(())
    })
    .await;
    company.end_node(2).await;
    for coordinator in 0..2 {
        reaches(&company.api(coordinator), NODES - 1).await;
    }
    write_all(&api, "meanwhile").await;
    company.start_node(2, Version::This).await;
    let (one, three) = (company.nodes[0].1, company.nodes[2].1);
    assert!(differing_of(one, three).await > 0, "it has missed something");
    // Whatever it has claimed by now, or was about to claim.
    company.coordinators[0].process = None;
    passes(second, "missed", 1.0).await;
    eventually("the node is level", async || (differing_of(one, three).await == 0).then_some(())).await;
    assert_eq!(metric(second, "witan_missed_taken_over_total{extent=\"full\"}").await, 1.0);
}

/// Keys that are there, of which few are written while a node is away, and the bytes of a value.
const MANY: usize = 2000;
const FEW: usize = 30;
const VALUE: usize = 1000;

/// For how long the node is away: 20 s, or `WITAN_IT_AWAY_SECONDS`.
fn away() -> Duration {
    let given = std::env::var("WITAN_IT_AWAY_SECONDS").ok().map(|seconds| seconds.parse().expect("a number"));
    Duration::from_secs(given.unwrap_or(20))
}

/// The bytes of the records that the third node has otherwise than the first one, as the first one has them.
async fn bytes_differing(cluster: &Cluster) -> usize {
    let mut bytes = 0;
    for n in 0..FEW {
        let key = format!("many-{n}");
        let here = record(cluster.node_address(0), "t", &key).await;
        if record(cluster.node_address(2), "t", &key).await != here {
            bytes += here.map_or(0, |record| record.len());
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_for_a_while_gets_what_it_has_missed_and_nothing_else_is_read() {
    let mut cluster = cluster("15m", false).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    for n in 0..MANY {
        api.write(write("t", &format!("many-{n}"), vec![7; VALUE])).await.expect("written");
    }
    passes(cluster.admin(), "compare", 16.0).await;
    passes(cluster.admin(), "scrub", 16.0).await;
    let compared = |what: &'static str, kind: &'static str| {
        let (admin, name) = (cluster.admin(), format!("witan_healing_{what}_total{{kind=\"{kind}\"}}"));
        async move { metric(admin, &name).await }
    };
    let repaired = compared("repaired", "missed").await;
    cluster.node(2).stop().await;
    let (began, mut round) = (Instant::now(), 0_u8);
    while began.elapsed() < away() {
        for n in 0..FEW {
            // The first ones may wait for the node that hangs.
            drop(api.write(write("t", &format!("many-{n}"), vec![round; VALUE])).await);
        }
        round = round.wrapping_add(1);
    }
    cluster.node(2).signal("CONT");
    cluster.all_reachable().await;
    let back = Instant::now();
    let differed = bytes_differing(&cluster).await;
    assert!(differed >= (FEW - 2) * VALUE, "{differed} bytes differ");
    eventually("the node is level", async || (bytes_differing(&cluster).await == 0).then_some(())).await;
    let level = back.elapsed();
    eventually("it is off the record", async || owed(&api).await.is_none().then_some(())).await;

    let (scanned, read) = (compared("records", "missed").await, compared("read_bytes", "missed").await);
    let (sent, full) = (compared("sent_bytes", "missed").await, compared("read_bytes", "scrub").await);
    let repaired = compared("repaired", "missed").await - repaired;
    println!(
        "away for {:?}: {differed} bytes differed, level {level:?} after it was back: {scanned} records scanned, {read} bytes read, {sent} \
         bytes sent in {repaired} merges; a scrub has read {full} bytes",
        away()
    );
    assert!(sent <= 2.0 * differed as f64, "{sent} bytes sent, {differed} differed");
    assert!(read * 10.0 <= full, "{read} bytes read, a full pass reads {full}");
    assert!(scanned <= 4.0 * FEW as f64, "{scanned} records scanned");

    // It acknowledges before it syncs: started again, it may lack what nobody has noted.
    cluster.kill_node(2);
    cluster.start_node(2).await;
    passes(cluster.admin(), "catch-up", 1.0).await;
    assert_eq!(bytes_differing(&cluster).await, 0);
}
