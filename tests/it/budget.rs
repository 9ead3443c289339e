//! The policy `zone-budget`: reads that stay in the zone of their coordinator are content with the replicas there.

use witan_wire::v1;

use crate::harness::{Cluster, Plugins, Setup, eventually, read, write};

/// Puts a node into a zone and waits until that has taken effect.
async fn place(cluster: &Cluster, node: &str, zone: &str) {
    let (node_id, zone) = (node.to_owned(), Some(zone.to_owned()));
    let update = v1::UpdateStorageNodeRequest { node_id, virtual_nodes: None, zone };
    let client = cluster.api().client();
    let begun = client.clone().update_storage_node(update).await.expect("recorded").into_inner();
    eventually("the node is in its zone", async || {
        let get = v1::GetMigrationStatusRequest { migration_id: begun.migration_id.clone() };
        let now = client.clone().get_migration_status(get).await.ok()?.into_inner();
        (now.status == "completed").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_read_that_may_not_leave_its_zone_needs_no_other_one() {
    let settings = vec![("WITAN_SERVER__ZONE", "a".to_owned())];
    let mut cluster = Cluster::with(Setup { settings, ..Setup::default() }).await;
    for (node, zone) in [("node-1", "a"), ("node-2", "b"), ("node-3", "c")] {
        place(&cluster, node, zone).await;
    }
    let (api, plugins) = (cluster.api(), Plugins::new(cluster.address()));
    for (tenant, minimum) in [("relaxed", "one"), ("strict", "quorum")] {
        api.tenant(tenant, |request| request.minimum_level = minimum.to_owned()).await;
        let everywhere = v1::WriteKeyValueRequest { consistency: "all".to_owned(), ..write(tenant, "k", "v") };
        api.write(everywhere).await.expect("write");
    }
    let digest = plugins.upload("zone-budget").await;
    let bind = async |tenant: &str, percent: &str| {
        let bound = plugins.bind_with(tenant, "consistency-policy", &digest, percent).await;
        bound.expect("bind");
    };
    bind("relaxed", "percent = 0").await;
    bind("strict", "percent = 0").await;
    cluster.kill_node(1);
    cluster.kill_node(2);

    // With the other zones gone, only a read that stays is answered.
    let found = api.read(read("relaxed", "k")).await.expect("the zone's own replica is enough");
    assert_eq!(found.value, "v");
    let strict = api.read(read("strict", "k")).await.expect_err("the minimum level is kept");
    assert_eq!(strict.reason, "QUORUM_NOT_REACHED", "{strict:?}");
    bind("relaxed", "percent = 100").await;
    let leaves = api.read(read("relaxed", "k")).await.expect_err("every read may leave, so this one does");
    assert_eq!(leaves.reason, "QUORUM_NOT_REACHED", "{leaves:?}");
    bind("relaxed", "percent = 0\nzone = elsewhere").await;
    let foreign = api.read(read("relaxed", "k")).await.expect_err("no replica is in that zone");
    assert_eq!(foreign.reason, "QUORUM_NOT_REACHED", "{foreign:?}");
    let refused =
        plugins.bind_with("relaxed", "consistency-policy", &digest, "percent = 200").await.expect_err("refused");
    assert!(refused.message().contains("use a number from 0 to 100"), "{refused:?}");
}
