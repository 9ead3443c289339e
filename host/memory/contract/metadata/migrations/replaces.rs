//! A store is replaced because an operator has asked for it; and nodes are drained.

use witan_kernel::capability::MAINTENANCE;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::moves::replaces::{Fate, fate};
use witan_kernel::port::{Changed, Commit, Metadata, MigrationStatus, PlacementChange, StoreState};
use witan_kernel::scan::Trust;

use super::super::node;
use super::{change, end, id, is_conflict, is_missing, is_refused, leaves, reported, revision, state, zone};

/// The nodes "m-1", "m-2" and "m-4" are on record, and members of the newest ring.
pub(super) async fn all<M: Metadata>(metadata: &M) {
    assert_eq!(metadata.require(MAINTENANCE).await, Ok(false), "all name it");
    assert_eq!((metadata.require(MAINTENANCE).await, metadata.require("zones").await), (Ok(true), Ok(true)));
    replaced(metadata).await;
    drained(metadata).await;
}

async fn fate_of<M: Metadata>(metadata: &M, of: &PlacementChange) -> Fate {
    let (nodes, stores) = (metadata.nodes().await.expect("nodes"), metadata.stores().await.expect("stores"));
    fate(of, &nodes, &stores)
}

async fn replaced<M: Metadata>(metadata: &M) {
    metadata.add_node(node("m-9"), 900).await.expect("added");
    let nine = id("m-9");
    let (old, new, third) = (reported(metadata, "m-9", 90).await, StoreId([91; 16]), StoreId([92; 16]));
    metadata.note_commits(vec![Commit { store: old, commit: 7, keys: Some(70) }]).await.expect("noted");
    let replacing = |node: &NodeId, from, to, accept_loss| PlacementChange::ReplaceStore {
        node: node.clone(),
        from,
        to,
        accept_loss,
    };
    let (before, epoch) = (revision(metadata).await, metadata.placement().await.expect("the placement").epoch);
    let of = change(metadata, replacing(&nine, old, new, false)).await;
    assert_eq!((of.number, of.status, of.created_at_ms), (before + 1, MigrationStatus::Pending, 100));
    assert_eq!(metadata.migration(of.number).await, Ok(of.clone()), "as it was recorded");
    let changes = metadata.changes(before).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (of.number, &[Changed::Nodes][..]));
    assert_eq!(metadata.placement().await.expect("the placement").epoch, epoch, "no key is placed elsewhere");
    assert_eq!(state(metadata, new).await, Some(StoreState::Filling));
    assert_eq!(metadata.meet_store(&nine, new, 0, 0).await.map(|met| met.trust), Ok(Trust::Filling));
    assert_eq!(metadata.change_placement(of.change.clone(), 801).await, Ok(of.clone()), "it is on record");

    let before = revision(metadata).await;
    assert!(is_missing(&metadata.change_placement(replacing(&id("nobody"), old, new, false), 802).await));
    assert!(
        is_conflict(&metadata.change_placement(replacing(&nine, third, new, false), 802).await),
        "that is not on record"
    );
    let of_another = reported(metadata, "m-1", 93).await;
    assert!(is_refused(&metadata.change_placement(replacing(&nine, old, of_another, false), 802).await));
    assert_eq!(fate_of(metadata, &of.change).await, Fate::Filling);
    assert!(revision(metadata).await <= before + 1, "only the store of m-1 may have been met for the first time");

    // The disk is replaced once more while it is filled: the first one takes nobody's place any longer.
    let again = change(metadata, replacing(&nine, old, third, true)).await;
    assert_eq!(
        (state(metadata, new).await, state(metadata, third).await),
        (Some(StoreState::Reported), Some(StoreState::Filling))
    );
    assert!(matches!(fate_of(metadata, &of.change).await, Fate::GivenUp(_)));
    end(metadata, &of, MigrationStatus::Cancelled).await;
    assert_eq!(metadata.migration(again.number).await.map(|it| it.change), Ok(again.change.clone()));

    // Given up, and asked for anew.
    let given_up = metadata.cancel_migration(again.number, 803).await.expect("given up");
    assert!(given_up.cancel_requested && state(metadata, third).await == Some(StoreState::Reported));
    assert_eq!(metadata.meet_store(&nine, third, 0, 0).await.map(|met| met.trust), Ok(Trust::Unadmitted));
    assert_eq!(metadata.meet_store(&nine, old, 7, 7).await.map(|met| met.trust), Ok(Trust::Whole));
    end(metadata, &again, MigrationStatus::Cancelled).await;
    let last = change(metadata, replacing(&nine, old, third, false)).await;
    assert!(last.number > again.number);
    assert_eq!(metadata.replace_store(&nine, old, third).await, Ok(()));
    assert_eq!(fate_of(metadata, &last.change).await, Fate::Whole);
    assert!(is_conflict(&metadata.cancel_migration(last.number, 804).await), "the old one is retired");
    end(metadata, &last, MigrationStatus::Completed).await;
    assert!(is_refused(&metadata.change_placement(replacing(&nine, third, old, false), 805).await), "never used again");

    // Not while the node changes its place.
    let fourth = StoreId([94; 16]);
    let zoned = change(
        metadata,
        PlacementChange::UpdateNode { node: nine.clone(), virtual_nodes: None, zone: Some(zone("r-9")) },
    )
    .await;
    assert!(is_conflict(&metadata.change_placement(replacing(&nine, third, fourth, false), 806).await));
    end(metadata, &zoned, MigrationStatus::Completed).await;
    let filling = change(metadata, replacing(&nine, third, fourth, false)).await;
    let left = change(metadata, leaves("m-9")).await;
    assert!(is_refused(&metadata.change_placement(replacing(&nine, third, StoreId([95; 16]), false), 807).await));
    let lost = change(metadata, PlacementChange::RemoveNode { node: nine.clone(), force: true }).await;
    assert!(matches!(fate_of(metadata, &filling.change).await, Fate::GivenUp(_)), "its node is lost");
    for (of, status) in [
        (&filling, MigrationStatus::Cancelled),
        (&left, MigrationStatus::Completed),
        (&lost, MigrationStatus::Completed),
    ] {
        end(metadata, of, status).await;
    }
}

async fn drained<M: Metadata>(metadata: &M) {
    let one = id("m-1");
    let known = async || {
        let placement = metadata.placement().await.expect("the placement");
        let known = placement.nodes.into_iter().find(|known| known.node.id == one).expect("on record");
        (placement.epoch, known)
    };
    let (epoch, before) = known().await;
    assert!(!before.drained);
    let at = revision(metadata).await;
    assert_eq!(metadata.drain_node(&one, true, 950).await, Ok(()));
    let changes = metadata.changes(at).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (at + 1, &[Changed::Nodes][..]), "others follow that");
    let (same, now) = known().await;
    assert_eq!((same, now.drained, now.updated_at_ms), (epoch, true, 950));
    assert_eq!((now.node, now.store_id), (before.node, before.store_id));
    assert_eq!(metadata.drain_node(&one, true, 951).await, Ok(()));
    assert_eq!(revision(metadata).await, at + 1, "it is so already");
    metadata.readdress_node(&one, "elsewhere", 9, 952).await.expect("readdressed");
    assert!(known().await.1.drained, "also at another address");
    assert_eq!(metadata.drain_node(&one, false, 953).await, Ok(()));
    assert!(!known().await.1.drained);
    assert!(is_missing(&metadata.drain_node(&id("nobody"), true, 954).await));
}
