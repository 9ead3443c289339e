//! What a node is in the ring is changed.

use witan_kernel::capability::{MOVES, OF_COORDINATORS, ZONES};

use super::*;
use crate::NodeUpdate;

fn zone(name: &str) -> Zone {
    Zone::new(name).unwrap()
}

fn to_zone(node: &str, name: &str) -> NodeUpdate {
    NodeUpdate { node: id(node), virtual_nodes: None, zone: Some(zone(name)) }
}

fn to_weight(node: &str, virtual_nodes: u32) -> NodeUpdate {
    NodeUpdate { node: id(node), virtual_nodes: Some(virtual_nodes), zone: None }
}

impl Place {
    async fn update(&self, update: NodeUpdate) -> Result<Changed, Refused> {
        self.catalog.update_node(self.turn(), update, 1).await
    }

    /// A live coordinator of an earlier version.
    pub(super) async fn earlier(&self, capabilities: &[&str]) {
        let claim = Claim {
            node_id: id("old"),
            instance: [1; 16],
            address: "here:1".to_owned(),
            version: "0.0.9".to_owned(),
            capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
        };
        self.metadata.hold_lease(claim, 10_000).await.expect("a lease");
    }

    async fn on_record(&self, name: &str) -> (u32, String) {
        let nodes = self.catalog.nodes().await.expect("nodes");
        let node = nodes.into_iter().find(|node| node.id == id(name)).expect("on record");
        (node.virtual_nodes, node.zone.as_str().to_owned())
    }
}

#[tokio::test]
async fn a_node_is_updated_while_data_is_stored_and_what_it_is_already_changes_nothing() {
    let place = Place::new(4, 100, &[3]).await;
    let zoned = place.update(to_zone("n1", "a")).await.expect("recorded");
    assert!(zoned.message.contains("node n1 gets zone a instead of no zone"), "{}", zoned.message);
    assert_eq!(place.here.rings().newest_version(), 1, "it is followed here at once");
    let again = place.update(to_zone("n1", "a")).await.expect("the same");
    let part = place.update(NodeUpdate { virtual_nodes: Some(16), ..to_zone("n1", "a") }).await.expect("the same");
    assert_eq!((number(&again), number(&part)), (number(&zoned), number(&zoned)));
    assert_eq!(place.here.rings().newest_version(), 1, "nothing was made");
    let nodes = place.catalog.nodes().await.expect("nodes");
    let said = place.catalog.comings_and_goings(&nodes).await.expect("known");
    assert!(said[&id("n1")].starts_with("gets another part of the ring: 0 of 0 tenants"), "{said:?}");
    let pending = place.catalog.pending(&[place.tenant("t1").await]).await.expect("known");
    assert_eq!(pending.values().collect::<Vec<_>>(), [&number(&zoned)]);

    // Another one while that waits.
    let lighter = place.update(to_weight("n1", 8)).await.expect("recorded");
    assert!(lighter.message.contains("8 virtual nodes instead of 16"), "{}", lighter.message);
    assert_eq!(place.on_record("n1").await, (8, "a".to_owned()));
    place.move_there("t1").await;
    for of in [&zoned, &lighter] {
        place.note(number(of), MigrationStatus::Completed, 1).await;
    }
    let nothing = place.update(to_zone("n1", "a")).await.expect("it is so already");
    assert_eq!(nothing.migration, None);
    assert!(nothing.message.contains("8 virtual nodes and zone a already; nothing changes"), "{}", nothing.message);
}

#[tokio::test]
async fn an_update_that_cannot_be_is_refused_in_clear_words() {
    let place = Place::new(4, 100, &[3]).await;
    let none = NodeUpdate { virtual_nodes: None, ..to_weight("n1", 1) };
    let empty = place.update(none).await.expect_err("neither");
    assert!(matches!(&empty, Refused::Invalid(error) if error.field == "virtual_nodes"), "{empty}");
    let unknown = place.update(to_zone("n9", "a")).await.expect_err("unknown");
    assert!(matches!(unknown, Refused::Store(StoreError::Missing(_))), "{unknown}");
    let much = place.update(to_weight("n1", 4097)).await.expect_err("out of range");
    assert!(matches!(much, Refused::Store(StoreError::Refused(_))), "{much}");
    let left = place.remove(removal("n4", false, false)).await.expect("recorded");
    let late = place.update(to_zone("n4", "a")).await.expect_err("it leaves");
    assert!(matches!(&late, Refused::MigrationConflict(why) if why.contains("n4 leaves the ring")), "{late}");
    place.cancel(number(&left), false).await.expect("taken back");
    place.update(to_zone("n4", "a")).await.expect("it stays");
}

#[tokio::test]
async fn an_update_that_is_half_done_is_taken_back_only_if_that_is_wanted() {
    let place = Place::new(3, 100, &[3, 3]).await;
    let zoned = number(&place.update(to_zone("n1", "a")).await.expect("recorded"));
    place.note(zoned, MigrationStatus::InProgress, 1).await;
    let unsure = place.cancel(zoned, false).await.expect_err("one has moved");
    assert!(matches!(&unsure, Refused::Invalid(error) if error.field == "confirm_undo"), "{unsure}");
    assert!(place.cancel(zoned, true).await.expect("given up").cancel_requested);
    assert_eq!(place.on_record("n1").await, (16, String::new()));
    assert_eq!(place.here.rings().newest_version(), 2, "followed here at once");
    let anew = place.update(to_zone("n1", "a")).await.expect("recorded");
    assert_ne!(number(&anew), zoned);
    place.add(node("n4")).await.expect("recorded");
    let late = place.cancel(number(&anew), true).await.expect_err("a later change rests on it");
    assert!(matches!(late, Refused::TooLate(_)), "{late}");
}

/// A coordinator that does not know zones would place keys elsewhere.
#[tokio::test]
async fn no_zone_comes_before_every_coordinator_knows_zones() {
    let place = Place::new(4, 100, &[3]).await;
    let before: Vec<&str> = OF_COORDINATORS.into_iter().filter(|name| *name != ZONES).collect();
    place.earlier(&before).await;
    let zoned = StorageNode { zone: zone("a"), ..node("n5") };
    for refused in [
        place.update(to_zone("n1", "a")).await.expect_err("it does not know zones"),
        place.update(to_weight("n1", 8)).await.expect_err("nor updates"),
        place.add(zoned.clone()).await.expect_err("nor zones of new nodes"),
    ] {
        let Refused::NoZones { who, .. } = &refused else { panic!("{refused}") };
        assert_eq!(who, "coordinator old (version 0.0.9)");
    }
    assert_eq!(place.here.rings().newest_version(), 0, "nothing was made");
    let change = to_zone("n1", "a").change();
    let plan = place.catalog.plan(&change).await.expect("a plan");
    assert!(plan.problems[0].contains("old (version 0.0.9) does not know zones"), "{:?}", plan.problems);
    place.add(node("n5")).await.expect("that needs no zones");
    assert_eq!(place.metadata.require(MOVES).await, Ok(true));

    let empty = Place::new(3, 0, &[3]).await;
    empty.here.cannot.store(true, Ordering::Relaxed);
    empty.earlier(&before).await;
    assert_eq!(empty.update(to_weight("n1", 8)).await.expect("nothing has to move").migration, None);
    assert_eq!((empty.on_record("n1").await.0, empty.here.ring().len()), (8, 3));
    let refused = empty.update(to_zone("n1", "a")).await.expect_err("it would place keys elsewhere later");
    assert!(matches!(refused, Refused::NoZones { .. }), "{refused}");
    empty.metadata.release_lease(&id("old"), [1; 16]).await.expect("released");
    assert_eq!(empty.update(to_zone("n1", "a")).await.expect("nothing has to move").migration, None);
    assert_eq!(empty.on_record("n1").await, (8, "a".to_owned()));
}

#[tokio::test]
async fn a_cluster_may_be_founded_with_zones_if_every_coordinator_knows_them() {
    let configured = |zones: [&str; 3]| -> Vec<StorageNode> {
        (1..).zip(zones).map(|(n, name)| StorageNode { zone: zone(name), ..node(&format!("n{n}")) }).collect()
    };
    let place = Place::new(0, 0, &[]).await;
    place.earlier(&[MOVES]).await;
    let refused = crate::register(place.metadata.as_ref(), &configured(["a", "b", ""]), 1).await.expect_err("too old");
    assert!(matches!(&refused, Refused::NoZones { who, .. } if who.contains("coordinator old")), "{refused}");
    assert_eq!(place.catalog.nodes().await.expect("nodes"), []);
    place.metadata.release_lease(&id("old"), [1; 16]).await.expect("released");
    crate::register(place.metadata.as_ref(), &configured(["a", "b", ""]), 1).await.expect("founded");
    assert_eq!(place.metadata.require(ZONES).await, Ok(true), "earlier versions do not start any more");
    crate::register(place.metadata.as_ref(), &configured(["b", "c", "d"]), 2).await.expect("known");
    assert_eq!(place.on_record("n1").await, (16, "a".to_owned()), "what a configuration says later does not count");
}

#[tokio::test]
async fn a_plan_of_an_update_says_what_it_would_do() {
    let place = Place::new(6, 1000, &[3, 3]).await;
    let plan = place.catalog.plan(&to_weight("n1", 8).change()).await.expect("a plan");
    assert!(plan.problems.is_empty() && plan.zones.is_empty() && plan.tenants == 2, "{plan:?}");
    let of = |name: &str| plan.nodes.iter().find(|node| node.node == id(name)).expect("planned");
    assert!(of("n1").dropped > 0 && of("n1").received == 0 && of("n2").received > 0, "{plan:?}");
    assert!(plan.least_share > 0.05 && plan.moved_share < plan.least_share * 2.0, "{plan:?}");
    let alone = place.catalog.plan(&to_zone("n1", "a").change()).await.expect("a plan");
    let n1 = alone.nodes.iter().find(|node| node.node == id("n1")).expect("planned");
    assert!(
        (n1.share_after - 1.0 / 3.0).abs() < 1e-9,
        "the only one of its zone has a replica of every key: {alone:?}"
    );
    assert_eq!(alone.zones.iter().map(|it| it.zone.as_str()).collect::<Vec<_>>(), ["", "a"]);
    for (change, why) in [
        (to_zone("n9", "a").change(), "node n9"),
        (to_weight("n1", 16).change(), "node n1 has 16 virtual nodes and no zone already"),
    ] {
        let problems = place.catalog.plan(&change).await.expect("a plan").problems.join("; ");
        assert!(problems.contains(why), "{problems}");
    }
}
