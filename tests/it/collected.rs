//! What is left of deleted keys, by real processes whose wall clocks go ahead by days.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use witan_wire::v1;

use crate::harness::{Cluster, NODES, Setup, delete, eventually, node_client, read, write};

/// Keys that are written and deleted in each round: few, since each part of the ring that has a deleted one takes 15 s.
const KEYS: usize = 2;
const TENANTS: [&str; 2] = ["t", "s"];
/// How often everything is written and deleted.
const ROUNDS: u64 = 3;
/// Longer than the default grace of 36 hours.
const DAYS: u64 = 37 * 3600;
/// A comparison of all parts is due at once, and each part with a deleted key takes 15 s. The second one finds what the first one has made
/// level.
const COLLECTED: Duration = Duration::from_secs(400);
/// Of a deleted record, so that what is left of it would be seen.
const BYTES: usize = 64 << 10;

/// Wall clocks of processes, ahead of that of the machine.
struct Clocks {
    library: PathBuf,
    ahead: PathBuf,
}

impl Clocks {
    /// Compiles the library with which they are, by the C compiler that linking Rust programs takes anyway.
    fn new(folder: &Path) -> Self {
        let clocks = Self { library: folder.join("later.so"), ahead: folder.join("ahead") };
        let source = folder.join("later.c");
        fs::write(&source, include_str!("collected/later.c")).expect("write a file");
        let mut cc = Command::new("cc");
        let built = cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&clocks.library).arg(&source).arg("-ldl").status();
        assert!(built.expect("run cc").success(), "the library cannot be compiled");
        clocks.go_to(0);
        clocks
    }

    /// All of them are ahead by this number of seconds from now on.
    fn go_to(&self, seconds: u64) {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.ahead);
        let written = file.and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0));
        written.expect("write a file");
    }

    /// Variables with which a process has such a clock.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().expect("a path").to_owned();
        vec![("LD_PRELOAD", text(&self.library)), ("LATER_FILE", text(&self.ahead))]
    }
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

async fn all_rows(cluster: &Cluster) -> Vec<usize> {
    [rows(cluster, "t").await, rows(cluster, "s").await].concat()
}

/// Waits until nothing is left but the keys that were never deleted.
async fn collected(cluster: &Cluster, round: u64) {
    let began = Instant::now();
    loop {
        let left = all_rows(cluster).await;
        if left.iter().all(|rows| *rows == 1) {
            return;
        }
        assert!(began.elapsed() < COLLECTED, "round {round}: rows of the tenants on the nodes: {left:?}");
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_keys_that_were_deleted_days_ago() {
    let folder = tempfile::tempdir().expect("make a folder");
    let clocks = Clocks::new(folder.path());
    let settings =
        vec![("WITAN_HEALING__BEGIN_AFTER", "100ms".to_owned()), ("WITAN_HEALING__COMPARE_EVERY", "1m".to_owned())];
    let setup = Setup { synced: false, settings, environment: clocks.environment(), ..Setup::default() };
    let mut cluster = Cluster::with(setup).await;
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    for tenant in TENANTS {
        api.write(write(tenant, "kept", "value")).await.expect("written");
    }
    for round in 1..=ROUNDS {
        for tenant in TENANTS {
            for n in 0..KEYS {
                let key = format!("key-{n}");
                let before = api.read(read(tenant, &key)).await.expect_err("it is deleted, or was never there");
                assert_eq!(before.code, tonic::Code::NotFound, "round {round}");
                api.write(write(tenant, &key, vec![b'v'; BYTES])).await.expect("written");
            }
            api.delete(delete(tenant, "key-0")).await.expect("deleted");
        }
        eventually("all nodes have everything", async || {
            all_rows(&cluster).await.into_iter().all(|rows| rows == KEYS + 1).then_some(())
        })
        .await;
        // A node does not hear of the other deletions.
        let away = (round % NODES as u64) as usize;
        cluster.kill_node(away);
        for tenant in TENANTS {
            eventually("it is deleted on two nodes", async || api.delete(delete(tenant, "key-1")).await.ok()).await;
        }
        cluster.start_node(away).await;
        cluster.all_reachable().await;
        clocks.go_to(round * DAYS);
        collected(&cluster, round).await;
    }
    for tenant in TENANTS {
        for n in 0..KEYS {
            let refusal = api.read(read(tenant, &format!("key-{n}"))).await.expect_err("it is deleted");
            assert_eq!(refusal.code, tonic::Code::NotFound);
        }
        assert_eq!(api.read(read(tenant, "kept")).await.expect("read").value, "value");
    }
}
