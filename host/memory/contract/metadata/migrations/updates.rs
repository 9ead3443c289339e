//! What a node is in the ring, its virtual nodes and its zone, is changed and changed back.

use witan_kernel::capability::ZONES;
use witan_kernel::name::{NodeId, Zone};
use witan_kernel::port::{Changed, Claim, Metadata, Migration, MigrationStatus, PlacementChange, StoreError};
use witan_kernel::ring::Member;

use super::super::{node, tenant};
use super::{change, end, id, is_conflict, is_missing, is_refused, leaves, revision, zone};

/// The only node on record is "m-1".
pub(super) async fn all<M: Metadata>(metadata: &M) {
    required(metadata).await;
    for of in 2..=4 {
        metadata.add_node(node(&format!("m-{of}")), 800).await.expect("added");
    }
    metadata.create_tenant(tenant("m-zones")).await.expect("created");
    updated_and_taken_back(metadata).await;
}

/// Programs that do not know zones refuse to start from when they are required.
async fn required<M: Metadata>(metadata: &M) {
    let claim = |of: u8, capabilities: &[&str]| Claim {
        node_id: id("coordinator-9"),
        instance: [of; 16],
        address: "10.0.0.9:50051".into(),
        version: "0.1.0".into(),
        capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
    };
    metadata.hold_lease(claim(1, &["moves"]), 600_000).await.expect("granted");
    let lacking = metadata.require(ZONES).await;
    assert!(matches!(&lacking, Err(StoreError::Conflict(why)) if why.contains("coordinator-9")), "{lacking:?}");
    metadata.release_lease(&id("coordinator-9"), [1; 16]).await.expect("released");
    metadata.hold_lease(claim(2, &[ZONES]), 600_000).await.expect("granted");
    assert_eq!(metadata.require(ZONES).await, Ok(false), "it was not before");
    assert_eq!((metadata.require(ZONES).await, metadata.require("moves").await), (Ok(true), Ok(true)));
    metadata.release_lease(&id("coordinator-9"), [2; 16]).await.expect("released");
}

/// The newest version of the ring, and what a node is in it; on record it is the same.
async fn member<M: Metadata>(metadata: &M, of: &NodeId) -> (u64, Member) {
    let placement = metadata.placement().await.expect("the placement");
    let newest = placement.rings.last().expect("never empty");
    let member = newest.members.iter().find(|member| member.node == *of).expect("a member");
    let on_record = placement.nodes.iter().find(|known| known.node.id == *of).expect("on record");
    assert_eq!(on_record.node.member(), *member);
    (newest.version, member.clone())
}

fn update(name: &str, virtual_nodes: Option<u32>, zone: Option<Zone>) -> PlacementChange {
    PlacementChange::UpdateNode { node: id(name), virtual_nodes, zone }
}

async fn updated_and_taken_back<M: Metadata>(metadata: &M) {
    let two = id("m-2");
    let (version, was) = member(metadata, &two).await;
    let before = revision(metadata).await;
    let zoned = change(metadata, update("m-2", None, Some(zone("z-2")))).await;
    assert_eq!((zoned.number, zoned.ring, &zoned.was), (before + 1, version + 1, &Some(was.clone())));
    assert_eq!(metadata.migration(zoned.number).await, Ok(zoned.clone()), "as it was recorded");
    let changes = metadata.changes(before).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (zoned.number, &[Changed::Nodes][..]));
    let in_zone = Member { zone: zone("z-2"), ..was.clone() };
    assert_eq!(member(metadata, &two).await, (version + 1, in_zone.clone()));
    let rings = metadata.placement().await.expect("the placement").rings;
    let older = rings.iter().find(|ring| ring.version == version).expect("on record");
    assert!(older.members.contains(&was), "the version of before is as it was: {older:?}");
    assert_eq!(metadata.change_placement(zoned.change.clone(), 801).await, Ok(zoned.clone()), "it is on record");

    let lighter = change(metadata, update("m-2", Some(75), None)).await;
    assert_eq!(lighter.was, Some(in_zone.clone()));
    assert_eq!(metadata.migration(lighter.number).await, Ok(lighter.clone()));
    assert_eq!(member(metadata, &two).await, (version + 2, Member { virtual_nodes: 75, ..in_zone.clone() }));

    let before = revision(metadata).await;
    for nothing in [update("m-2", Some(75), Some(zone("z-2"))), update("m-2", None, None)] {
        assert!(is_refused(&metadata.change_placement(nothing, 802).await));
    }
    assert!(is_refused(&metadata.change_placement(update("m-2", Some(4097), None), 802).await));
    assert!(is_missing(&metadata.change_placement(update("nobody", Some(1), None), 802).await));
    assert!(is_conflict(&metadata.cancel_migration(zoned.number, 803).await), "another one rests on it");
    assert_eq!(revision(metadata).await, before, "nothing has changed");

    // A node that has moved stays what it is in the ring.
    let now = member(metadata, &two).await;
    metadata.readdress_node(&two, "elsewhere", 9, 803).await.expect("readdressed");
    assert_eq!(member(metadata, &two).await, now);
    let on_record = metadata.nodes().await.expect("nodes").into_iter().find(|known| known.node.id == two);
    let (moved, at) = on_record.map(|known| (known.node, known.updated_at_ms)).expect("on record");
    assert_eq!((&*moved.host, moved.port, at), ("elsewhere", 9, 803));
    assert!(is_refused(&metadata.readdress_node(&two, "", 9, 804).await));
    assert!(is_missing(&metadata.readdress_node(&id("nobody"), "elsewhere", 9, 804).await));

    let both = change(metadata, update("m-2", Some(9), Some(Zone::default()))).await;
    assert_eq!(member(metadata, &two).await.1, Member { virtual_nodes: 9, ..was.clone() });
    for (of, is) in [(both, Member { virtual_nodes: 75, ..in_zone.clone() }), (lighter, in_zone), (zoned, was)] {
        let back = metadata.cancel_migration(of.number, 804).await.expect("taken back");
        assert_eq!(back, Migration { cancel_requested: true, ..of.clone() });
        assert_eq!((metadata.migration(of.number).await, member(metadata, &two).await.1), (Ok(back), is));
        end(metadata, &of, MigrationStatus::Cancelled).await;
    }
    let left = change(metadata, leaves("m-3")).await;
    assert!(is_refused(&metadata.change_placement(update("m-3", Some(9), None), 805).await), "it leaves");
    end(metadata, &left, MigrationStatus::Completed).await;
}
