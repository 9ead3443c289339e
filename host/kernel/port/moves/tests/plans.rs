//! What is written for each placement change, and for taking it back.

use super::*;

impl Place {
    /// The plan of a change that is about this tenant.
    fn plan_of(&self, tenant: Option<&Tenant>, change: PlacementChange) -> Result<Plan, StoreError> {
        match (OnRecord { tenant, ..self.at() }).plan(change, 9)? {
            Planned::Write(plan) => Ok(*plan),
            Planned::Known(known) => panic!("on record already: {known:?}"),
        }
    }

    /// The plan of taking a change back that is about this tenant.
    fn plan_back(&self, tenant: Option<&Tenant>, of: &Migration) -> Result<Plan, StoreError> {
        let plan = OnRecord { tenant, ..self.at() }.plan_taking_back(of, 9)?;
        Ok(plan.expect("something is to be written"))
    }
}

fn members(names: &[&str]) -> Vec<Member> {
    names.iter().map(|name| node(name).member()).collect()
}

fn draining(name: &str) -> Option<StorageNode> {
    Some(StorageNode { status: NodeStatus::Draining, ..node(name) })
}

fn removal(name: &str, force: bool) -> PlacementChange {
    PlacementChange::RemoveNode { node: id(name), force }
}

fn of_tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn factor(name: &str, to: u8) -> PlacementChange {
    PlacementChange::ReplicationFactor { tenant: of_tenant(name), to }
}

fn generation(name: &str, generation: u32) -> PlacementChange {
    PlacementChange::Generation { tenant: of_tenant(name), generation }
}

fn on_record(number: u64, change: PlacementChange) -> Migration {
    Migration { number, ..Migration::pending(change, 3, 1) }
}

/// The words of an error: what it is, and what it says.
fn said<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    format!("{:?}", result.expect_err("an error"))
}

#[track_caller]
fn assert_says<T: std::fmt::Debug>(result: Result<T, StoreError>, kind: &str, what: &str) {
    let said = said(result);
    assert!(said.starts_with(kind) && said.contains(what), "{said}");
}

#[test]
fn a_node_joins_as_an_active_member_of_the_next_ring_and_leaves_it_again() {
    let mut place = Place::new();
    let joins = StorageNode { status: NodeStatus::Inactive, ..node("aa") };
    let plan = place.plan_of(None, PlacementChange::AddNode(joins.clone())).unwrap();
    assert_eq!(plan.node, Some(node("aa")));
    assert_eq!(plan.ring, Some((4, members(&["a", "aa", "b"]))), "by their ids");
    assert_eq!((&plan.lost, &plan.tenant, &plan.store), (&None, &None, &None));
    assert_eq!((plan.migration.ring, plan.migration.created_at_ms), (4, 9));
    assert_eq!(plan.remaining(&place.placement), None, "they get more");

    let first = place.change(PlacementChange::AddNode(joins.clone())).unwrap();
    assert_eq!(place.change(PlacementChange::AddNode(joins.clone())), Ok(first), "the same once more");
    let plan = place.plan_back(None, &place.open[0]).unwrap();
    assert_eq!((&plan.ring, &plan.node), (&Some((5, members(&["a", "b"]))), &draining("aa")));
    assert_eq!((plan.migration.ring, plan.migration.cancel_requested), (4, true));
    assert_eq!(plan.remaining(&place.placement), Some(2));
    // It has left by another change: there is nothing to undo, and the next same call is not this one.
    place.change(removal("aa", false)).unwrap();
    place.open[1].status = MigrationStatus::Completed;
    let first = Migration { number: 9, ..place.open[0].clone() };
    let plan = place.plan_back(None, &first).unwrap();
    assert_eq!((plan.ring, plan.node, plan.migration.cancel_requested), (None, None, true));
    assert_says(place.change(PlacementChange::AddNode(joins)), "Exists", "aa");
}

#[test]
fn a_node_that_is_known_or_wrong_or_one_too_many_does_not_join() {
    let mut place = Place::new();
    let add = |name| PlacementChange::AddNode(node(name));
    assert_says(place.plan_of(None, add("a")), "Exists", "storage node a");
    assert_says(place.plan_of(None, add("c")), "Exists", "storage node c");
    let wrong = StorageNode { virtual_nodes: 0, ..node("d") };
    assert_says(place.plan_of(None, PlacementChange::AddNode(wrong)), "Refused", "virtual_nodes");
    let like = place.placement.nodes[0].clone();
    let more = (4..NODES).map(|n| NodeOnRecord { node: node(&format!("n{n}")), ..like.clone() });
    place.placement.nodes.extend(more);
    assert!(place.plan_of(None, add("last")).is_ok());
    place.placement.nodes.push(NodeOnRecord { node: node("last"), ..like });
    assert_eq!(place.placement.nodes.len(), NODES);
    assert_says(place.plan_of(None, add("more")), "Refused", "1000 storage nodes");
}

#[test]
fn a_node_leaves_the_ring_and_one_that_leaves_can_still_be_lost() {
    let mut place = Place::new();
    for force in [false, true] {
        let plan = place.plan_of(None, removal("b", force)).unwrap();
        assert_eq!((&plan.ring, &plan.node), (&Some((4, members(&["a"]))), &draining("b")));
        assert_eq!((plan.lost.is_some(), plan.migration.ring), (force, 4));
        assert_eq!(plan.remaining(&place.placement), Some(1));
    }
    assert_says(place.plan_of(None, removal("c", false)), "Missing", "node c in the newest ring");
    let plan = place.plan_of(None, removal("c", true)).unwrap();
    assert_eq!((&plan.ring, &plan.node, &plan.lost), (&None, &draining("c"), &Some(id("c"))));
    assert_eq!((plan.migration.ring, plan.remaining(&place.placement)), (3, None));
    for force in [false, true] {
        assert_says(place.plan_of(None, removal("d", force)), "Missing", "storage node d");
    }
    let update = place.plan_of(None, update("b", Some(9), None)).unwrap();
    assert_eq!(update.remaining(&place.placement), None, "as many as before");

    let first = place.change(removal("b", false)).unwrap();
    assert_eq!(place.change(removal("b", false)), Ok(first), "the same once more");
    assert_ne!(place.change(removal("b", true)), Ok(first), "lost meanwhile");
}

#[test]
fn a_removal_is_taken_back_unless_the_node_is_lost_or_gone() {
    let mut place = Place::new();
    place.change(removal("b", false)).unwrap();
    let of = place.open[0].clone();
    let plan = place.plan_back(None, &of).unwrap();
    assert_eq!((plan.ring, plan.node), (Some((5, members(&["a", "b"]))), Some(node("b"))));
    let lost = on_record(1, removal("b", true));
    assert_says(place.plan_back(None, &lost), "Conflict", "storage node b was taken for lost");
    place.placement.nodes.retain(|known| known.node.id != id("b"));
    assert_says(place.plan_back(None, &of), "Conflict", "storage node b has left already");
    // It has joined again.
    let plan = Place::new().plan_back(None, &of).unwrap();
    assert_eq!((plan.ring, plan.node, plan.migration.cancel_requested), (None, None, true));
}

#[test]
fn an_update_of_what_is_gone_is_taken_back_by_doing_nothing() {
    let mut place = Place::new();
    place.change(update("b", Some(9), None)).unwrap();
    let of = place.open[0].clone();
    let nothing = |place: &Place, of: &Migration| {
        let plan = place.plan_back(None, of).unwrap();
        assert_eq!((plan.ring, plan.node, plan.migration.cancel_requested), (None, None, true));
    };
    nothing(&place, &Migration { was: None, ..of.clone() });
    place.placement.rings.push(RingOnRecord { version: 5, members: members(&["a"]) });
    nothing(&place, &of);
}

#[test]
fn what_has_ended_or_was_taken_back_is_not_taken_back_again() {
    let place = Place::new();
    let of = on_record(1, factor("t", 1));
    for done in [
        Migration { status: MigrationStatus::Completed, ..of.clone() },
        Migration { cancel_requested: true, ..of.clone() },
        Migration { status: MigrationStatus::Failed, cancel_requested: true, ..of },
    ] {
        assert_eq!(place.at().plan_taking_back(&done, 9), Ok(None));
    }
}

#[test]
fn only_later_changes_of_nodes_that_stand_rest_on_one() {
    let mut place = Place::new();
    place.change(update("b", Some(9), None)).unwrap();
    let of = Migration { number: 5, ..place.open[0].clone() };
    let rests = |other: Migration| {
        let place = Place { placement: place.placement.clone(), stores: vec![], open: vec![of.clone(), other] };
        place.plan_back(None, &of).is_err()
    };
    let other = on_record(6, update("a", Some(9), None));
    assert!(rests(other.clone()));
    assert!(rests(Migration { status: MigrationStatus::Completed, ..other.clone() }), "also one that is done");
    assert!(!rests(Migration { status: MigrationStatus::Cancelled, ..other.clone() }));
    assert!(!rests(Migration { cancel_requested: true, ..other.clone() }));
    assert!(!rests(Migration { number: 4, ..other }), "an earlier one");
    assert!(!rests(on_record(6, factor("t", 1))), "it is not about nodes");
}

#[test]
fn who_has_more_replicas_than_nodes_remain_is_told_what_to_do() {
    let mut place = Place::new();
    let plan = place.plan_of(None, removal("b", false)).unwrap();
    let refused: Result<(), _> = Err(plan.too_few(1, &of_tenant("t")));
    assert_says(refused, "Refused", "tenant t has, or is to have, more replicas than the 1 nodes");
    place.change(PlacementChange::AddNode(node("d"))).unwrap();
    let back = place.plan_back(None, &place.open[0]).unwrap();
    assert_says::<()>(Err(back.too_few(2, &of_tenant("t"))), "Conflict", "more replicas than the 2 nodes");
}

#[test]
fn a_factor_is_wished_for_within_the_limits_and_one_at_a_time() {
    let mut place = Place::new();
    let one = tenant(1);
    let plan = place.plan_of(Some(&one), factor("t", 2)).unwrap();
    assert_eq!(plan.tenant, Some(Tenant { wanted_factor: Some(2), updated_at_ms: 9, ..one.clone() }));
    assert_eq!((plan.migration.before, plan.migration.ring, plan.ring), (1, 3, None));
    let same = place.plan_of(Some(&one), factor("t", 1)).unwrap().tenant.unwrap();
    assert_eq!(same.wanted_factor, None, "as it is");
    assert_says(place.plan_of(None, factor("t", 2)), "Missing", "tenant t");
    for wrong in [0, 6] {
        assert_says(place.plan_of(Some(&one), factor("t", wrong)), "Refused", &format!("is {wrong}; use 1..=5"));
    }
    assert_says(place.plan_of(Some(&one), factor("t", 3)), "Refused", "the ring has 2 nodes");

    place.open = vec![on_record(6, factor("u", 1)), on_record(7, generation("t", 1))];
    assert!(place.plan_of(Some(&one), factor("t", 2)).is_ok(), "of another tenant, and something else");
    place.open.push(on_record(8, factor("t", 1)));
    assert_says(place.plan_of(Some(&one), factor("t", 2)), "Conflict", "under way, number 8");
    place.open[2].cancel_requested = true;
    assert_says(place.plan_of(Some(&one), factor("t", 1)), "Conflict", "under way, number 8");
    place.open[2] = Migration { status: MigrationStatus::Completed, ..on_record(8, factor("t", 1)) };
    assert!(place.plan_of(Some(&one), factor("t", 2)).is_ok());
    assert!(place.plan_of(Some(&one), factor("t", 1)).is_ok(), "the same as one that has ended is a new one");
}

#[test]
fn a_factor_is_taken_back_if_there_are_still_enough_nodes() {
    let place = Place::new();
    let of = |before| Migration { before, ..on_record(1, factor("t", 1)) };
    let three = Tenant { wanted_factor: Some(1), ..tenant(2) };
    let plan = place.plan_back(Some(&three), &of(2)).unwrap();
    assert_eq!(plan.tenant, Some(Tenant { wanted_factor: None, updated_at_ms: 9, ..three.clone() }));
    assert_says(place.plan_back(Some(&three), &of(3)), "Conflict", "had 3 replicas before, and the ring has only 2");
    assert_eq!(place.plan_back(None, &of(3)).unwrap().tenant, None, "it was deleted");
}

#[test]
fn a_generation_is_wished_for_once_and_is_the_next_one() {
    let mut place = Place::new();
    let at = Tenant { generation: 1, generations: 3, ..tenant(1) };
    let plan = place.plan_of(Some(&at), generation("t", 4)).unwrap();
    let wanted = Tenant { wanted_generation: Some(4), generations: 4, updated_at_ms: 9, ..at.clone() };
    assert_eq!(plan.tenant.as_ref(), Some(&wanted));
    assert_says(place.plan_of(None, generation("t", 4)), "Missing", "tenant t");
    for wrong in [0, 2, 3, 5] {
        assert_says(place.plan_of(Some(&at), generation("t", wrong)), "Conflict", "whose highest was 3");
    }
    assert_says(place.plan_of(Some(&wanted), generation("t", 5)), "Conflict", "whose highest was 4");
    let last = Tenant { generations: u32::MAX, ..at.clone() };
    assert_says(place.plan_of(Some(&last), generation("t", 0)), "Conflict", "is not the next one");

    place.open = vec![on_record(6, generation("u", 4)), on_record(7, factor("t", 1))];
    assert!(place.plan_of(Some(&at), generation("t", 4)).is_ok(), "of another tenant, and something else");
    place.open.push(on_record(8, generation("t", 3)));
    assert_says(place.plan_of(Some(&at), generation("t", 4)), "Conflict", "under way, number 8");
    place.open[2].status = MigrationStatus::Failed;
    assert!(place.plan_of(Some(&at), generation("t", 4)).is_ok());
}

#[test]
fn a_generation_is_taken_back_until_the_records_have_it() {
    let place = Place::new();
    let of = on_record(1, generation("t", 4));
    let at = |generation, wanted| Tenant { generation, generations: 4, wanted_generation: wanted, ..tenant(1) };
    let wanted = at(3, Some(4));
    let plan = place.plan_back(Some(&wanted), &of).unwrap();
    assert_eq!(plan.tenant, Some(Tenant { wanted_generation: None, updated_at_ms: 9, ..wanted }));
    for other in [None, Some(5)] {
        assert_eq!(place.plan_back(Some(&at(3, other)), &of).unwrap().tenant, None, "nobody wants it any longer");
    }
    for there in [4, 5] {
        assert_says(place.plan_back(Some(&at(there, None)), &of), "Conflict", "have been moved already");
    }
    assert_eq!(place.plan_back(None, &of).unwrap().tenant, None, "it was deleted");
}

#[test]
fn a_change_says_what_it_is_about() {
    let changes = [
        (PlacementChange::AddNode(node("b")), true, true),
        (removal("b", false), true, true),
        (update("b", None, None), true, true),
        (replacing("b", false), true, false),
        (factor("t", 1), false, false),
        (generation("t", 1), false, false),
    ];
    for (change, of_node, changes_ring) in changes {
        assert_eq!(change.node(), of_node.then(|| id("b")).as_ref(), "{change:?}");
        assert_eq!(change.tenant(), (!of_node).then(|| of_tenant("t")).as_ref(), "{change:?}");
        assert_eq!(change.changes_ring(), changes_ring, "{change:?}");
    }
}

#[test]
fn a_replacement_of_another_store_is_another_change() {
    let with = |to, accept_loss| PlacementChange::ReplaceStore { node: id("b"), from: OLD, to, accept_loss };
    let third = StoreId([3; 16]);
    for (change, other, includes) in [
        (with(NEW, true), with(NEW, true), true),
        (with(NEW, true), with(NEW, false), true),
        (with(NEW, false), with(NEW, true), false),
        (with(NEW, false), with(NEW, false), true),
        (with(NEW, true), with(third, false), false),
        (with(NEW, true), with(third, true), false),
        (with(NEW, true), replacing("a", true), false),
        (with(NEW, true), factor("t", 1), false),
    ] {
        assert_eq!(change.includes(&other), includes, "{change:?}, {other:?}");
    }
}

#[test]
fn the_fate_of_a_replacement_depends_on_its_own_node_and_stores() {
    let mut place = Place::new();
    let fate_of = |place: &Place, change| fate(&change, &place.placement.nodes, &place.stores);
    assert!(matches!(fate_of(&place, factor("t", 1)), Fate::GivenUp(why) if why.contains("no store")));
    let store = |store, state| StoreOnRecord { store, node: id("b"), state, commit: 0, keys: 0 };
    place.placement.nodes[0].store_id = Some(NEW);
    place.placement.nodes[1].store_id = Some(OLD);
    place.stores = vec![store(OLD, StoreState::Retired), store(NEW, StoreState::Filling)];
    assert_eq!(fate_of(&place, replacing("b", false)), Fate::Filling);
    place.placement.nodes[1].store_id = Some(StoreId([3; 16]));
    assert!(matches!(fate_of(&place, replacing("b", false)), Fate::GivenUp(why) if why.contains("third")));
    assert!(Fate::Filling.is_open() && !Fate::Whole.is_open() && !Fate::GivenUp("").is_open());
}

#[test]
fn a_store_is_filled_from_as_many_others_as_share_every_quorum() {
    let ring = |names: &[&str]| crate::ring::Ring::of(&members(names), 1);
    let three = ring(&["a", "b", "c"]);
    let only = |names: &'static [&'static str]| move |node: &NodeId| names.contains(&node.as_str());
    assert_eq!(fewest_others(&three, 3, &id("a"), |_| true), Some(2));
    assert_eq!(fewest_others(&three, 3, &id("a"), only(&["a", "b"])), Some(1), "itself does not count");
    assert_eq!(fewest_others(&three, 2, &id("a"), only(&["b"])), Some(0), "somewhere the other one is c");
    assert_eq!(fewest_others(&three, 1, &id("a"), |_| true), Some(0));
    assert_eq!(fewest_others(&three, 3, &id("d"), |_| true), None);
    assert_eq!(too_few_sources(&three, 3, &id("a"), |_| true), None);
    assert_eq!(too_few_sources(&three, 3, &id("a"), only(&["b"])), Some((1, 2)));
    assert_eq!(too_few_sources(&three, 3, &id("a"), |_| false), Some((0, 2)));
    assert_eq!(too_few_sources(&three, 3, &id("d"), |_| false), None, "there is nothing to fill it with");
}

#[test]
fn a_store_is_replaced_while_other_changes_of_nodes_go_on() {
    let mut place = Place::new();
    for other in [update("a", Some(9), None), replacing("b", false), factor("t", 1)] {
        place.open = vec![on_record(1, other)];
        assert!(place.plan_of(None, replacing("b", true)).is_ok(), "{:?}", place.open);
    }
}

#[test]
fn the_same_rows_are_left_once() {
    let left = Leftover {
        tenant: of_tenant("t"),
        node: id("a"),
        from: placed(1, 3),
        to: placed(2, 3),
        hand_over: true,
        epoch: 5,
        created_at_ms: 6,
    };
    assert!(left.is_same(&Leftover { epoch: 7, created_at_ms: 8, ..left.clone() }));
    for other in [
        Leftover { tenant: of_tenant("u"), ..left.clone() },
        Leftover { node: id("b"), ..left.clone() },
        Leftover { from: placed(0, 3), ..left.clone() },
        Leftover { to: placed(3, 3), ..left.clone() },
        Leftover { hand_over: false, ..left.clone() },
    ] {
        assert!(!left.is_same(&other), "{other:?}");
    }
}

#[test]
fn a_fault_of_the_hook_stays_and_makes_the_change_fail() {
    use MigrationStatus::{Cancelled, Completed, Failed, InProgress, Pending};
    let new = on_record(1, generation("t", 1));
    let progress = |message: &str| MigrationProgress { message: message.into(), ..MigrationProgress::default() };
    assert_eq!(new.clone().noted(Pending, progress(""), 5).started_at_ms, None);
    assert_eq!(new.clone().noted(Pending, progress(""), 5).status, Pending);
    assert_eq!(new.clone().noted(InProgress, progress("a\0b"), 5).progress.message, "a b");
    let faults = format!("{HOOK_FAULTS}k");
    let faulted = new.clone().noted(InProgress, progress(&faults), 5);
    let later = faulted.noted(InProgress, progress("copies"), 6);
    assert_eq!(later.progress.message, faults);
    for (end, is) in [(Cancelled, Failed), (Failed, Failed), (Completed, Completed)] {
        let ended = later.clone().noted(end, progress("ends"), 7);
        assert_eq!((ended.status, ended.finished_at_ms), (is, Some(7)), "{end:?}");
    }
    assert_eq!(new.clone().noted(Failed, progress(""), 7).status, Failed);
    assert_eq!(new.noted(Cancelled, progress(&faults), 7).status, Cancelled, "it had ended before");
}

#[test]
fn every_number_of_a_progress_is_kept() {
    let of = |n, message: &str| MigrationProgress {
        tenants_done: n,
        tenants_total: n + 1,
        keys_done: n,
        keys_total: n,
        bytes_done: n + 2,
        message: message.into(),
    };
    assert_eq!(of(1, "x").then(of(5, "y")), of(5, "y"));
    assert_eq!(of(5, "x").then(of(1, "y")), of(5, "y"));
}

#[test]
fn a_move_goes_where_the_ring_is_on_record_and_the_factor_allowed() {
    let placement = Place::new().placement;
    for factor in 1..=5 {
        assert_eq!(may_move(placed(3, factor), &placement), Ok(()));
    }
    assert_says(may_move(placed(2, 3), &placement), "Refused", "version 2 of the ring");
    for factor in [0, 6] {
        assert_says(may_move(placed(3, factor), &placement), "Refused", &format!("replication_factor is {factor}"));
    }
    assert_says::<()>(Err(no_migration(7)), "Missing", "placement change 7");
}

#[test]
fn a_tenants_place_is_not_among_its_settings() {
    let (to, factor) = (Placed { generation: 6, ..placed(4, 2) }, 3);
    let moving = Some(Moving { to, step: Step::DualWrite, prepared: 1, since: 2 });
    let stored = Tenant {
        ring: 3,
        moving,
        wanted_factor: Some(2),
        generation: 5,
        generations: 7,
        wanted_generation: Some(6),
        created_at_ms: 8,
        ..tenant(factor)
    };
    let settings =
        Tenant { created_at_ms: 99, deleted_at_ms: Some(9), updated_at_ms: 10, version: 4, ..tenant(factor) };
    let replaced = Tenant { updated_at_ms: 10, version: 4, ..stored.clone() };
    assert_eq!(settings.replacing(&stored), Ok(replaced));
    let swapping = Tenant { wanted_generation: Some(1), ..tenant(3) };
    assert_says(tenant(2).replacing(&swapping), "Conflict", "the records of tenant t are being moved");

    let anew = stored.clone().placed_anew(11);
    assert_eq!(anew, Tenant { ring: 11, created_at_ms: 8, ..tenant(factor) });
    let deleted = Tenant { moving: None, updated_at_ms: 12, deleted_at_ms: Some(12), ..stored.clone() };
    assert_eq!(stored.deleted(12), deleted);
    let most = |wanted_factor| Tenant { wanted_factor, ..tenant(3) }.most_replicas();
    assert_eq!((most(None), most(Some(2)), most(Some(5))), (3, 3, 5));
}

#[test]
fn a_wish_for_a_generation_outlives_a_move_to_another_ring() {
    let moving = Some(Moving { to: placed(4, 3), step: Step::Cutover, prepared: 1, since: 2 });
    let cutover = Tenant { moving, wanted_generation: Some(1), generations: 1, ..tenant(3) };
    let done = cutover.moved(&MoveTenant::Finish(vec![]), 9).unwrap();
    assert_eq!(done, Tenant { ring: 4, moving: None, ..cutover.clone() });
    for step in [MoveTenant::Prepare(placed(4, 3)), MoveTenant::DualWrite, MoveTenant::Cutover] {
        assert_eq!(cutover.left_over(&step, 9, 9), [], "{step:?}");
    }
    assert_eq!(tenant(3).left_over(&MoveTenant::Finish(vec![id("a")]), 9, 9), []);
}
