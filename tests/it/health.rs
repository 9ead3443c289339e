//! What clients and operators learn of a node that is not well: of a disk that fails under a running node, and of operations that wait
//! for slow ones.

use std::process::Command;
use std::time::{Duration, Instant};

use tonic::Code;
use witan_wire::v1;
use witan_wire::v1::session_request::Operation;
use witan_wire::v1::session_response::Result as Outcome;

use crate::harness::{Cluster, Disk, NODES, Process, Refusal, Setup, eventually, get, read, write};

/// What `witan nodes list` or another subcommand prints, and whether it succeeds.
fn witan(endpoint: std::net::SocketAddr, arguments: &[&str]) -> (String, bool) {
    let mut command: Command = Process::witan();
    let output =
        command.args(arguments).args(["--endpoint", &format!("http://{endpoint}")]).output().expect("run witan");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

/// A file system that becomes read-only under a running node, as ext4 does after an error of its device.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_is_seen_by_everybody() {
    let mut disks = vec![Disk::Folder; NODES];
    disks[1] = Disk::Failing;
    let mut cluster = Cluster::with(Setup { disks, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    let all = |key: &str| v1::WriteKeyValueRequest { consistency: "all".to_owned(), ..write("t", key, "1") };
    api.write(all("k")).await.expect("every disk is well");
    let (listed, _) = witan(cluster.address(), &["nodes", "list"]);
    assert!(!listed.contains("failed"), "{listed}");
    assert!(witan(cluster.node_address(1), &["health"]).1);

    cluster.fail_disk(1);
    for key in ["a", "b"] {
        assert_eq!(api.write(write("t", key, "2")).await.expect("the others are well").consistency, "quorum");
    }
    let listed = eventually("the node's store is listed as failed", async || {
        let (listed, _) = witan(cluster.address(), &["nodes", "list"]);
        listed.contains("store failed").then_some(listed)
    })
    .await;
    assert!(listed.contains("the store of node node-2 has failed: "), "{listed}");
    let (health, serves) = witan(cluster.node_address(1), &["health"]);
    assert_eq!((health.trim(), serves), ("not serving", false));
    let (status, ready) = get(cluster.admin(), "/readyz").await.expect("an answer");
    assert_eq!(status, 200, "{ready}");
    assert!(ready.contains("the store of storage node node-2 has failed"), "{ready}");
    let (_, metrics) = get(cluster.admin(), "/metrics").await.expect("an answer");
    for line in ["witan_storage_node_store_failed{node=\"node-2\"} 1", "witan_storage_nodes{state=\"failed\"} 1"] {
        assert!(metrics.contains(line), "{line} is not there");
    }
    assert_eq!(api.read(read("t", "a")).await.expect("the others are well").value, "2");

    let status = cluster.end_node(1).await;
    assert!(!status.success(), "it has not ended well");
}

/// Two of three nodes hang: every write takes its whole time. One with little time, behind others on its key, is answered in its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_waits_in_line_is_answered_by_its_own_deadline() {
    let cluster = Cluster::with(Setup { synced: false, ..Setup::default() }).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.write(write("t", "k", "0")).await.expect("every node is there");
    cluster.node(0).stop().await;
    cluster.node(1).stop().await;
    let mut session = api.session().await;
    let operation = |id, timeout_ms| {
        let operation = Some(Operation::Write(write("t", "k", "1")));
        v1::SessionRequest { id, operation, timeout_ms }
    };
    let begun = Instant::now();
    session.send(vec![operation(1, 1500), operation(2, 1500), operation(3, 1500), operation(4, 300)]).await;
    let first = session.take(1).await.remove(0);
    let took = begun.elapsed();
    assert_eq!(first.id, 4, "it had the least time");
    assert!(took < Duration::from_millis(1400), "answered after {took:?}");
    let Some(Outcome::Status(status)) = first.result else { panic!("nobody can have stored it") };
    let refusal: Refusal = status.into();
    assert_eq!(refusal.summary(), (Code::DeadlineExceeded, "DEADLINE", "not-applied", ""));
    let rest = session.take(3).await;
    assert!(begun.elapsed() < Duration::from_millis(2900), "all had their time at once: {:?}", begun.elapsed());
    assert_eq!(rest.len(), 3);
}
