//! A store is replaced, and nodes are drained.

use witan_kernel::capability::{MAINTENANCE, OF_COORDINATORS};
use witan_kernel::port::moves::replaces::{Fate, fate};
use witan_kernel::port::{Commit, Duty, StoreState, UpkeepClaims};

use super::*;
use crate::Replacement;

const OLD: StoreId = StoreId([7; 16]);
const NEW: StoreId = StoreId([8; 16]);

impl Place {
    async fn replace(&self, name: &str, accept_loss: bool) -> Result<Changed, Refused> {
        self.catalog.replace_store(self.turn(), Replacement { node: id(name), accept_loss }, 1).await
    }

    async fn drain(&self, name: &str, drained: bool) -> Result<String, Refused> {
        let done = self.catalog.drain_node(self.turn(), id(name), drained, 1).await?;
        assert!(done.migration.is_none(), "nothing moves");
        Ok(done.message)
    }

    /// A node shows this store, which may be used for this.
    fn shows(&self, name: &str, store: StoreId, trust: Trust) {
        self.here.shown.lock().unwrap().insert(id(name), Standing { store, trust });
    }

    /// A node had a store with records, and comes with an empty one.
    async fn disk_replaced(&self, name: &str) {
        self.metadata.meet_store(&id(name), OLD, 0, 0).await.expect("met");
        self.metadata.note_commits(vec![Commit { store: OLD, commit: 3, keys: Some(70) }]).await.expect("noted");
        self.shows(name, NEW, Trust::Unadmitted);
    }

    async fn plan(&self, name: &str) -> crate::Plan {
        let of = Replacement { node: id(name), accept_loss: false };
        self.catalog.plan_replacement(&of).await.expect("planned")
    }

    fn away(&self, names: &[&str]) {
        *self.here.away.lock().unwrap() = names.iter().map(|name| id(name)).collect();
    }
}

#[tokio::test]
async fn a_new_store_is_admitted_and_asked_for_at_once_and_only_once() {
    let place = Place::new(4, 100, &[3, 2]).await;
    place.disk_replaced("n2").await;
    let plan = place.plan("n2").await;
    assert_eq!(plan.problems, Vec::<String>::new());
    let fill = plan.fill.expect("a fill");
    assert_eq!((fill.keys, fill.bytes_per_key), (70, 50));
    let from: Vec<&str> = fill.sources.iter().map(|source| source.node.as_str()).collect();
    assert_eq!(from, ["n1", "n3", "n4"]);
    assert!(fill.sources.iter().all(|source| source.reachable && source.keys < 70), "{fill:?}");
    let received: Vec<u64> = plan.nodes.iter().map(|node| node.received).collect();
    assert_eq!(received, [0, 70, 0, 0]);
    assert!(place.metadata.migrations(None, 10).await.expect("read").is_empty(), "a plan changes nothing");

    let begun = place.replace("n2", false).await.expect("begun");
    for part in [&NEW.to_string(), &OLD.to_string(), "about 70 records"] {
        assert!(begun.message.contains(part), "{}", begun.message);
    }
    assert!(
        place
            .metadata
            .stores()
            .await
            .expect("read")
            .iter()
            .any(|it| it.store == NEW && it.state == StoreState::Filling)
    );
    let duties = place.metadata.duties().await.expect("read").duties;
    assert!(duties.iter().any(|known| known.duty == Duty::fill() && known.wanted_ms > 0), "{duties:?}");
    place.shows("n2", NEW, Trust::Filling);
    assert_eq!(number(&place.replace("n2", false).await.expect("the same")), number(&begun));

    // It can be given up until it is whole.
    let given_up = place.cancel(number(&begun), false).await.expect("given up");
    assert!(given_up.cancel_requested);
    place.shows("n2", NEW, Trust::Unadmitted);
    let again = place.replace("n2", false).await.expect("begun anew");
    assert!(number(&again) > number(&begun));
    place.metadata.replace_store(&id("n2"), OLD, NEW).await.expect("filled");
    let too_late = place.cancel(number(&again), true).await.expect_err("too late");
    assert!(matches!(&too_late, Refused::TooLate(why) if why.contains("retired")), "{too_late}");
    let (nodes, stores) = (place.metadata.nodes().await.expect("read"), place.metadata.stores().await.expect("read"));
    let change = again.migration.expect("recorded").change;
    assert_eq!(fate(&change, &nodes, &stores), Fate::Whole);
}

fn number(changed: &Changed) -> u64 {
    changed.migration.as_ref().expect("a migration").number
}

#[tokio::test]
async fn a_replacement_is_refused_with_what_is_to_be_done() {
    let place = Place::new(4, 100, &[3]).await;
    let refusal = async |accept_loss| place.replace("n2", accept_loss).await.expect_err("refused");
    assert!(matches!(place.replace("nobody", false).await, Err(Refused::Store(StoreError::Missing(_)))));
    place.metadata.meet_store(&id("n2"), OLD, 0, 0).await.expect("met");
    place.shows("n2", OLD, Trust::Whole);
    let nothing = refusal(true).await;
    assert!(matches!(&nothing, Refused::NothingToReplace(why) if why.contains("move its folder aside")), "{nothing}");
    assert_eq!(place.plan("n2").await.problems, [nothing.to_string()]);
    place.away(&["n2"]);
    let away = refusal(true).await;
    assert!(matches!(&away, Refused::NodeAway(why) if why.contains("start it under the same id")), "{away}");

    // Too few others are left to read what it has to hold.
    place.disk_replaced("n2").await;
    place.away(&["n1", "n3"]);
    let few = refusal(false).await;
    assert!(
        matches!(&few, Refused::SourcesUnreachable(why) if why.contains("n1, n3") && why.contains("accept_loss")),
        "{few}"
    );
    assert!(place.plan("n2").await.problems.iter().any(|why| why.contains("other whole replicas")));
    place.replace("n2", true).await.expect("with loss");
    place.away(&[]);

    // A store that was replaced, and one of another node.
    place.metadata.replace_store(&id("n2"), OLD, NEW).await.expect("filled");
    place.shows("n2", OLD, Trust::Unadmitted);
    let retired = refusal(true).await;
    assert!(matches!(&retired, Refused::StoreRefused(why) if why.contains("was replaced before")), "{retired}");

    // A node that changes its place.
    place.shows("n2", StoreId([9; 16]), Trust::Unadmitted);
    let update = crate::NodeUpdate { node: id("n2"), virtual_nodes: Some(8), zone: None };
    place.catalog.update_node(place.turn(), update, 1).await.expect("recorded");
    let conflict = refusal(true).await;
    assert!(matches!(&conflict, Refused::MigrationConflict(why) if why.contains("m-")), "{conflict}");
    place.remove(removal("n2", false, false)).await.expect("recorded");
    let leaving = refusal(true).await;
    assert!(matches!(&leaving, Refused::MigrationConflict(why) if why.contains("leaves")), "{leaving}");
}

#[tokio::test]
async fn one_replica_alone_cannot_be_filled_without_loss() {
    let place = Place::new(3, 100, &[3, 1]).await;
    place.disk_replaced("n1").await;
    let refused = place.replace("n1", false).await.expect_err("refused");
    assert!(matches!(&refused, Refused::SourcesUnreachable(why) if why.contains("keys with 1 replicas")), "{refused}");
    place.replace("n1", true).await.expect("accepted");
}

#[tokio::test]
async fn a_drained_node_is_on_record_and_it_is_said_who_needs_it() {
    let place = Place::new(3, 100, &[3]).await;
    let message = place.drain("n1", true).await.expect("drained");
    assert!(!message.contains("tenants"), "two others are enough: {message}");
    let drained = async || place.metadata.placement().await.expect("read").drained();
    assert_eq!(drained().await.into_iter().collect::<Vec<_>>(), [id("n1")]);
    assert!(place.drain("n1", true).await.expect("the same").contains("already"));
    let second = place.drain("n2", true).await.expect("drained");
    assert!(second.contains("1 tenants, such as t1 (3 replicas)"), "{second}");
    assert!(place.drain("n1", false).await.expect("back").contains("in service"));
    assert_eq!(drained().await.into_iter().collect::<Vec<_>>(), [id("n2")]);
    assert!(matches!(place.drain("nobody", true).await, Err(Refused::Store(StoreError::Missing(_)))));
}

#[tokio::test]
async fn an_earlier_coordinator_that_would_not_do_its_part_stands_in_the_way() {
    let place = Place::new(4, 100, &[3]).await;
    let before: Vec<&str> = OF_COORDINATORS.into_iter().filter(|name| *name != MAINTENANCE).collect();
    place.earlier(&before).await;
    place.disk_replaced("n2").await;
    for refused in [place.replace("n2", false).await.map(drop), place.drain("n1", true).await.map(drop)] {
        let refused = refused.expect_err("refused");
        assert!(matches!(&refused, Refused::NoMaintenance { who, .. } if who.contains("old")), "{refused}");
    }
    assert!(place.plan("n2").await.problems.iter().any(|why| why.contains("coordinator old")));
    assert!(place.metadata.placement().await.expect("read").drained().is_empty());
    place.metadata.release_lease(&id("old"), [1; 16]).await.expect("released");
    place.drain("n1", true).await.expect("drained");
    assert_eq!(place.metadata.require(MAINTENANCE).await, Ok(true), "earlier versions do not start any more");
}
