//! Nodes whose files were damaged: they do not start, and the others go on. Nodes that lost power: they start.

use std::path::Path;

use witan_wire::v1;

use crate::harness::{Api, Cluster, eventually, read, write};

const KEYS: usize = 40;

async fn filled(cluster: &Cluster) -> Api {
    let api = cluster.api();
    api.tenant("t", |_| {}).await;
    api.siblings_tenant("s").await;
    for n in 0..KEYS {
        for tenant in ["t", "s"] {
            let request = write(tenant, &format!("k-{n}"), format!("{tenant} {n}"));
            let request = v1::WriteKeyValueRequest { consistency: "all".to_owned(), ..request };
            api.write(request).await.expect("every node is there");
        }
    }
    api
}

async fn everything_is_there(api: &Api) {
    for n in 0..KEYS {
        for tenant in ["t", "s"] {
            let found =
                api.read(read(tenant, &format!("k-{n}"))).await.unwrap_or_else(|error| panic!("{n}: {error:?}"));
            assert_eq!(found.value, format!("{tenant} {n}").as_bytes());
        }
    }
}

/// The journal without the zeros at its end.
fn journal(folder: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(folder.join("0.jnl")).expect("the journal");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty") + 1;
    bytes.truncate(used);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_damaged_journal_does_not_start_and_is_filled_like_a_replaced_disk() {
    let mut cluster = Cluster::start().await;
    let api = filled(&cluster).await;
    let folder = cluster.node_folder(2);
    cluster.kill_node(2);
    let mut damaged = journal(&folder);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    std::fs::write(folder.join("0.jnl"), &damaged).expect("damage the journal");
    for _ in 0..2 {
        let log = cluster.node_that_does_not_start(2).await;
        for part in ["0.jnl", "damaged", "move the folder aside", "witan repair"] {
            assert!(log.contains(part), "{part:?} is not in {log}");
        }
        assert_eq!(std::fs::read(folder.join("0.jnl")).expect("the journal"), damaged, "it is kept as it is");
    }
    everything_is_there(&api).await;
    api.write(write("t", "new", "1")).await.expect("a quorum is there");

    std::fs::rename(&folder, folder.with_extension("damaged")).expect("move the folder aside");
    cluster.start_node(2).await;
    eventually("a repair makes it whole", async || {
        let request = v1::CoordinatorServiceRepairRequest::default();
        let mut reports = api.client().repair(request).await.ok()?.into_inner();
        let mut restored = Vec::new();
        while let Some(report) = reports.message().await.ok()? {
            restored.extend(report.restored_nodes);
        }
        restored.contains(&"node-3".to_owned()).then_some(())
    })
    .await;
    cluster.kill_node(0);
    everything_is_there(&api).await;
}

/// The power of the whole room fails while every node is writing: each journal ends in the middle of a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_comes_back_from_a_power_failure() {
    let mut cluster = Cluster::start().await;
    let api = filled(&cluster).await;
    for node in 0..3 {
        cluster.kill_node(node);
        let folder = cluster.node_folder(node);
        let mut torn = journal(&folder);
        let (start, length) = (torn.len(), 300 + 100 * node);
        // The beginning of an earlier batch, and then what the disk had not written yet.
        torn.extend_from_within(..length);
        torn[start + 120..].fill(0);
        torn.extend([7; 5000]);
        std::fs::write(folder.join("0.jnl"), &torn).expect("tear the journal");
    }
    for node in 0..3 {
        cluster.start_node(node).await;
    }
    cluster.all_reachable().await;
    everything_is_there(&api).await;
    api.write(write("t", "new", "1")).await.expect("and goes on");
}
