//! Nodes that hang, die, come back with or without their data, or run out of disk space: the effect on clients, and the repair.

mod observed;

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;
use witan_wire::v1;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use crate::harness::{Api, Cluster, Disk, NODES, Refusal, Setup, eventually, get, node_client, read, write};
use observed::Load;

fn at(level: &str, request: v1::WriteKeyValueRequest) -> v1::WriteKeyValueRequest {
    v1::WriteKeyValueRequest { consistency: level.to_owned(), ..request }
}

fn read_at(level: &str, key: &str) -> v1::ReadKeyValueRequest {
    v1::ReadKeyValueRequest { consistency: level.to_owned(), ..read("t", key) }
}

/// The record of a node, as text; empty if it has none.
async fn stored(cluster: &Cluster, node: usize, key: &str) -> String {
    let request = v1::ReadRequest { tenant_id: "t".to_owned(), key: key.to_owned(), token: None, render: true };
    let answer = node_client(cluster.node_address(node)).read(request).await.expect("read from a node");
    answer.into_inner().rendering
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_show_which_nodes_answer() {
    let mut cluster = Cluster::with(Setup { synced: false, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.write(at("all", write("t", "k", "v"))).await.expect("every node is there");
    let admin = cluster.admin();
    let reported = async |lines: [&str; 3]| {
        eventually("metrics show it", async || {
            let (_, metrics) = get(admin, "/metrics").await.ok()?;
            lines.iter().all(|line| metrics.contains(line)).then_some(())
        })
        .await;
    };
    let [all, none] = [NODES, 0].map(|count| [count, NODES - count]);
    let states = |[reachable, unreachable]: [usize; 2]| {
        [("reachable", reachable), ("unreachable", unreachable)]
            .map(|(state, count)| format!("\nwitan_storage_nodes{{state=\"{state}\"}} {count}\n"))
    };
    let [reachable, unreachable] = states(all);
    reported([&reachable, &unreachable, "\nwitan_storage_node_disk_usage_ratio{node=\"node-1\"} "]).await;
    reported(["node-1\",quantile=\"0.99\"} ", "node-2\",quantile=\"0.99\"} ", "node-3\",quantile=\"0.99\"} "]).await;
    (0..NODES).for_each(|node| cluster.kill_node(node));
    let [reachable, unreachable] = states(none);
    reported([&reachable, &unreachable, "\nwitan_storage_node_reachable{node=\"node-1\"} 0.0\n"]).await;
    cluster.start_node(0).await;
    reported([
        "\nwitan_storage_nodes{state=\"reachable\"} 1\n",
        "\nwitan_storage_node_reachable{node=\"node-1\"} 1.0\n",
        "\nwitan_storage_node_reachable{node=\"node-2\"} 0.0\n",
    ])
    .await;
}

/// Rounds of a test, of which one must succeed: a test machine that stalls for seconds looks as if everything hung.
const ROUNDS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_costs_a_quorum_nothing() {
    let cluster = Cluster::with(Setup { synced: false, ..Setup::default() }).await;
    let api = cluster.api();
    for (tenant, mode) in [("t", "register"), ("s", "siblings")] {
        api.tenant(tenant, |request| request.conflict_mode = mode.to_owned()).await;
    }
    let mut rounds = Vec::new();
    loop {
        match hangs_once(&cluster).await {
            Ok(()) => break,
            Err(what) => rounds.push(what),
        }
        assert!(rounds.len() < ROUNDS, "a node that hangs is noticed in every round: {rounds:#?}");
        wake(&cluster).await;
    }

    // Eventually the coordinator gives the connection up: from then on, writes at level all fail at once.
    for tenant in ["t", "s"] {
        let mut attempts = 0;
        eventually("the connection is given up", async || {
            attempts += 1;
            let key = format!("given up {attempts}");
            let refusal = api.write(at("all", write(tenant, &key, "v"))).await.expect_err("a node hangs");
            assert_honest(&api, tenant, &key, &refusal).await;
            match (refusal.code, refusal.reason.as_str()) {
                (Code::Unavailable, "QUORUM_NOT_REACHED") => Some(()),
                (Code::DeadlineExceeded, "DEADLINE") => None,
                _ => panic!("{refusal:?}"),
            }
        })
        .await;
    }

    // Until then it waits for the node, up to the client's deadline.
    for tenant in ["t", "s"] {
        let mut rounds = Vec::new();
        loop {
            wake(&cluster).await;
            cluster.node(1).stop().await;
            let key = format!("waited for {}", rounds.len());
            let refusal = refused_within(&api, Duration::from_secs(2), write(tenant, &key, "v")).await;
            assert_honest(&api, tenant, &key, &refusal).await;
            let facts = (refusal.facts["required"].as_str(), refusal.facts["received"].as_str());
            if (refusal.code, refusal.reason.as_str(), facts) == (Code::DeadlineExceeded, "DEADLINE", ("3", "2")) {
                break;
            }
            rounds.push(refusal);
            assert!(rounds.len() < ROUNDS, "nobody waits for a node that hangs: {rounds:#?}");
        }
    }
}

/// Runs a load on three nodes, then pauses one of them: no request may fail, and clients must go on at once, even while the
/// coordinator still waits for the node. The node stays paused.
async fn hangs_once(cluster: &Cluster) -> Result<(), String> {
    // With the coordinator's default deadlines, so that requests waiting for the node fail.
    let api = cluster.api().without_deadline();
    let before = Load::run(&api, Duration::from_secs(2)).await;
    cluster.node(1).stop().await;
    let stopped = Instant::now();
    let during = Load::run(&api, Duration::from_secs(5)).await;
    for (when, observed) in [("three nodes", &before), ("one of three hangs", &during)] {
        println!("{when}: {}", observed.summary());
    }
    let late = during.failures_after(stopped + Duration::from_secs(1));
    if !before.failures().is_empty() {
        return Err(format!("failures while nothing hung: {:?}", before.failures()));
    }
    if !late.is_empty() {
        return Err(format!("failures later than a second after the node hung: {late:?}"));
    }
    if during.count() <= 100 {
        return Err(format!("only {} operations in 5 s, {} in 2 s before", during.count(), before.count()));
    }
    Ok(())
}

/// Resumes the paused node, and waits until it takes part again.
async fn wake(cluster: &Cluster) {
    cluster.node(1).signal("CONT");
    cluster.all_reachable().await;
    for tenant in ["t", "s"] {
        let all = || at("all", write(tenant, "woken", "v"));
        eventually("level all succeeds again", async || cluster.api().write(all()).await.ok()).await;
    }
}

/// A write at level all that must fail; the client waits this long for the response.
async fn refused_within(api: &Api, deadline: Duration, request: v1::WriteKeyValueRequest) -> Refusal {
    match api.session().await.within(deadline, Operation::Write(at("all", request))).await {
        Outcome::Status(status) => status.into(),
        other => panic!("it was not refused: {other:?}"),
    }
}

/// A write reported as not applied must not be there; with any other outcome it may be.
async fn assert_honest(api: &Api, tenant: &str, key: &str, refusal: &Refusal) {
    let (found, _) = api.values(read(tenant, key)).await.expect("read");
    match refusal.outcome.as_str() {
        "not-applied" => assert!(found.is_empty(), "{tenant} {key} was not applied, and is there: {refusal:?}"),
        "in-doubt" => {}
        _ => panic!("nobody says how {tenant} {key} came out: {refusal:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_everything_fails_honestly_and_in_time() {
    let mut cluster = Cluster::with(Setup { synced: false, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    api.write(at("all", write("t", "k", "v"))).await.expect("write");
    cluster.kill_node(0);
    cluster.kill_node(2);
    for tenant in ["t", "s"] {
        let refusal = api.write(write(tenant, "new", "v")).await.expect_err("two of three are dead");
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "QUORUM_NOT_REACHED"));
        assert_eq!(refusal.facts["required"], "2");
        assert!(["not-applied", "in-doubt"].contains(&refusal.outcome.as_str()), "{refusal:?}");
        assert!(refusal.retry_after.is_some());
    }
    let refusal = api.read(read_at("quorum", "k")).await.expect_err("two of three are dead");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "QUORUM_NOT_REACHED"));
    assert_eq!(api.read(read_at("one", "k")).await.expect("one is alive").value, "v");

    // The deadline applies: without it, the connection would eventually be given up, with a different error.
    cluster.node(1).stop().await;
    let mut session = api.session().await;
    let refusal: Refusal = match session.within(Duration::from_millis(300), Operation::Read(read_at("one", "k"))).await
    {
        Outcome::Status(status) => status.into(),
        other => panic!("nobody can have answered: {other:?}"),
    };
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::DeadlineExceeded, "DEADLINE"), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_is_repaired_by_reads() {
    let mut cluster = Cluster::start().await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    for key in ["old", "changed"] {
        api.write(at("all", write("t", key, "1"))).await.expect("write");
    }
    let before = stored(&cluster, 2, "old").await;
    assert!(before.contains("value of 1 bytes \"1\""), "{before}");
    cluster.kill_node(2);
    for key in ["changed", "new"] {
        api.write(write("t", key, "2")).await.expect("a quorum is alive");
    }
    cluster.start_node(2).await;
    cluster.all_reachable().await;
    assert_eq!(stored(&cluster, 2, "old").await, before, "what was acknowledged is still there");
    assert!(stored(&cluster, 2, "changed").await.contains("\"1\""), "it has not been repaired yet");
    repaired(&cluster, 2, &["changed", "new"]).await;
}

/// An empty disk looks as if nothing had ever been written: such a node takes writes, and is not asked for reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_with_an_empty_disk_is_not_believed() {
    let mut cluster = Cluster::start().await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.write(at("all", write("t", "old", "1"))).await.expect("write");
    cluster.kill_node(2);
    std::fs::remove_dir_all(cluster.node_folder(2)).expect("wipe a disk");
    cluster.start_node(2).await;
    eventually("the node's new store is met", async || {
        let (status, body) = get(cluster.admin(), "/readyz").await.ok()?;
        (status == 200 && body.contains("node-3 has another store")).then_some(())
    })
    .await;
    api.write(write("t", "new", "2")).await.expect("a quorum is alive");
    let refusal = api.write(at("all", write("t", "new", "3"))).await.expect_err("its acknowledgement does not count");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "QUORUM_NOT_REACHED"));
    for key in ["old", "new"] {
        assert_eq!(stored(&cluster, 2, key).await, "", "nobody uses a store that no repair has admitted");
    }
    for level in ["one", "quorum"] {
        assert_eq!(api.read(read_at(level, "old")).await.expect("others have it").value, "1");
    }
    let refusal = api.read(read_at("all", "old")).await.expect_err("one cannot be asked");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "QUORUM_NOT_REACHED"));
    let facts = (refusal.facts["required"].as_str(), refusal.facts["received"].as_str());
    assert_eq!(facts, ("3", "2"), "two are well: {refusal:?}");
    cluster.kill_node(0);
    cluster.kill_node(1);
    let refusal = api.read(read_at("one", "old")).await.expect_err("nobody is left who would know");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "QUORUM_NOT_REACHED"));
}

/// Reads at `all` find the newest value, and afterwards the node has it, too.
async fn repaired(cluster: &Cluster, node: usize, keys: &[&str]) {
    for key in keys {
        let found = cluster.api().read(read_at("all", key)).await.expect("read");
        assert_eq!(found.value, "2");
        eventually("a read repairs", async || {
            let rendered = stored(cluster, node, key).await;
            rendered.contains("value of 1 bytes \"2\"").then_some(())
        })
        .await;
    }
}

/// A node refuses writes while less than half a gibibyte is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_costs_a_quorum_nothing() {
    let mut disks = vec![Disk::Folder; NODES];
    disks[1] = Disk::Small(700);
    let cluster = Cluster::with(Setup { disks, synced: false, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    for tenant in ["t", "s"] {
        api.write(at("all", write(tenant, "k", "1"))).await.expect("there is room");
    }
    // The file system that only the node sees, accessed through its process.
    let seen = format!("/proc/{}/root{}", cluster.node(1).id(), cluster.node_folder(1).display());
    let filler = std::path::Path::new(&seen).join("filler");
    std::fs::write(&filler, vec![1; 250 << 20]).expect("fill a disk");
    for (tenant, key) in [("t", "k"), ("s", "k"), ("t", "new"), ("s", "new")] {
        let written = api.write(write(tenant, key, "2")).await.expect("a quorum has room");
        assert!(written.replica_count >= 2);
        let refusal = api.write(at("all", write(tenant, key, "3"))).await.expect_err("one has no room");
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "STORAGE_FULL"), "{refusal:?}");
        assert_eq!(refusal.outcome, "in-doubt", "two have stored it: {refusal:?}");
    }
    // Reads need no space, and no stored data is lost.
    assert!(api.values(read("t", "k")).await.expect("read").0.contains(&"3".into()));
    std::fs::remove_file(&filler).expect("make room");
    for tenant in ["t", "s"] {
        eventually("there is room again", async || api.write(at("all", write(tenant, "k", "4"))).await.ok()).await;
    }
}
