//! How a replacement of a store ends: as the stores on record say, whoever has filled it.

use witan_kernel::port::{MigrationProgress, MigrationStatus, MigrationStore, PlacementChange, PlacementStore};

use crate::nodes::store;
use crate::world::{Cluster, id};
use crate::{KEYS, lead};

async fn replaced(cluster: &Cluster, number: u8) -> u64 {
    let (node, from, to) = (id(1), store(&id(1), 0), store(&id(1), number));
    cluster.change(PlacementChange::ReplaceStore { node, from, to, accept_loss: false }).await
}

#[tokio::test(start_paused = true)]
async fn a_replacement_ends_as_the_stores_on_record_say() {
    let cluster = Cluster::new(3, 3).await;
    cluster.fill(KEYS).await;
    let leading = lead(cluster.leader(1).await);
    let says = async |number: u64, text: &str| {
        cluster.wait_until(text, async |cluster| cluster.migration(number).await.progress.message.contains(text)).await;
    };
    let first = replaced(&cluster, 1).await;
    says(first, "waits for a coordinator that fills the store").await;
    cluster.nodes.set_away(&id(1), true);
    says(first, "waits for node").await;
    cluster.nodes.set_away(&id(1), false);

    // How far it is, says who fills it; the leader leaves that as it is, and moves no tenant because of it.
    let progress = MigrationProgress {
        keys_done: 7,
        keys_total: 60,
        bytes_done: 9,
        message: "it is filled".to_owned(),
        ..Default::default()
    };
    cluster.metadata.note_migration(first, MigrationStatus::InProgress, progress, 5).await.expect("noted");
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let now = cluster.migration(first).await;
    assert_eq!((now.status, &*now.progress.message), (MigrationStatus::InProgress, "it is filled"));
    assert!(cluster.tenant().await.moving.is_none());
    cluster.metadata.replace_store(&id(1), store(&id(1), 0), store(&id(1), 1)).await.expect("filled");
    let done = cluster.wait_for(first, MigrationStatus::Completed).await;
    assert_eq!((done.progress.keys_done, done.progress.keys_total, &*done.progress.message), (60, 60, ""));

    // The store on record is back.
    let (node, from, to) = (id(1), store(&id(1), 1), store(&id(1), 2));
    let change = PlacementChange::ReplaceStore { node: node.clone(), from, to, accept_loss: false };
    let second = cluster.change(change.clone()).await;
    says(second, "waits for a coordinator").await;
    cluster.metadata.meet_store(&node, from, 0, 0).await.expect("met");
    let ended = cluster.wait_for(second, MigrationStatus::Cancelled).await;
    assert!(ended.progress.message.contains("used again"), "{ended:?}");

    // An operator has given it up.
    let third = cluster.change(change).await;
    cluster.metadata.cancel_migration(third, 6).await.expect("given up");
    let ended = cluster.wait_for(third, MigrationStatus::Cancelled).await;
    assert!(ended.cancel_requested && ended.progress.message.is_empty(), "{ended:?}");
    leading.abort();
}
