use witan_kernel::name::Zone;
use witan_kernel::placement::{Moving, Placed, Step};
use witan_kernel::port::{NodeStatus, StorageNode};

use super::*;

fn id(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn tenant(name: &str, ring: u64, replication_factor: u8) -> Tenant {
    Tenant { ring, ..Tenant::with_defaults(id(name), replication_factor, 1) }
}

fn added() -> Migration {
    let node = StorageNode {
        id: NodeId::new("n").unwrap(),
        host: "here".to_owned(),
        port: 1,
        virtual_nodes: 1,
        status: NodeStatus::Active,
        zone: Zone::default(),
    };
    Migration { number: 9, ..Migration::pending(PlacementChange::AddNode(node), 1, 0) }
}

fn factor() -> Migration {
    let change = PlacementChange::ReplicationFactor { tenant: id("a"), to: 5 };
    Migration { change, before: 3, ..added() }
}

fn left(name: &str, from: u64, to: u64) -> Leftover {
    let placed = |ring| Placed { ring, replication_factor: 3, generation: 0 };
    Leftover {
        tenant: id(name),
        node: NodeId::new("n").unwrap(),
        from: placed(from),
        to: placed(to),
        hand_over: true,
        epoch: 1,
        created_at_ms: 0,
    }
}

fn far(
    migration: &Migration,
    tenants: &[Tenant],
    leftovers: &[Leftover],
    newest_ring: u64,
) -> (MigrationStatus, u64, u64) {
    let view =
        View { tenants: tenants.to_vec(), leftovers: leftovers.to_vec(), newest_ring, stores: Vec::new(), keys: 0 };
    let Far { status, done, total } = view.far(migration);
    (status, done, total)
}

#[test]
fn a_node_has_joined_when_every_tenant_is_there_and_nothing_is_left_over() {
    use MigrationStatus::{Completed, InProgress, Pending};
    let (before, after) = (tenant("a", 0, 3), tenant("b", 1, 3));
    let moving = Moving { to: after.placed(), step: Step::Preparing, prepared: 1, since: 1 };
    let begun = Tenant { moving: Some(moving), ..before.clone() };
    assert_eq!(far(&added(), &[before.clone(), after.clone()], &[], 1), (Pending, 1, 2), "b was created on it");
    assert_eq!(far(&added(), &[begun, after.clone()], &[], 1), (InProgress, 1, 2));
    let under_way = Migration { status: InProgress, ..added() };
    assert_eq!(far(&under_way, &[before, after.clone()], &[], 1), (InProgress, 1, 2), "it never goes back");
    let all = [tenant("a", 2, 3), after];
    assert_eq!(far(&under_way, &all, &[left("a", 0, 2)], 2), (InProgress, 2, 2));
    assert_eq!(far(&under_way, &all, &[left("a", 1, 2)], 2), (Completed, 2, 2), "that is of the next change");
    assert_eq!(far(&added(), &[], &[], 1), (Completed, 0, 0), "there is no tenant");
}

#[test]
fn a_change_was_given_up_when_everything_is_back() {
    use MigrationStatus::{Cancelled, InProgress};
    let taken_back = Migration { cancel_requested: true, status: InProgress, ..added() };
    assert_eq!(far(&taken_back, &[tenant("a", 1, 3)], &[], 2), (InProgress, 0, 1));
    assert_eq!(far(&taken_back, &[tenant("a", 2, 3)], &[left("a", 1, 2)], 2), (InProgress, 1, 1));
    assert_eq!(far(&taken_back, &[tenant("a", 2, 3)], &[], 2), (Cancelled, 1, 1));
}

#[test]
fn a_factor_is_a_matter_of_one_tenant() {
    use MigrationStatus::{Cancelled, Completed, InProgress, Pending};
    let wishes = Tenant { wanted_factor: Some(5), ..tenant("a", 0, 3) };
    let other = tenant("b", 0, 3);
    assert_eq!(far(&factor(), &[wishes.clone(), other.clone()], &[left("b", 0, 1)], 1), (Pending, 0, 1));
    assert_eq!(far(&factor(), &[tenant("a", 0, 5), other.clone()], &[], 1), (Completed, 1, 1));
    assert_eq!(far(&factor(), &[tenant("a", 0, 5)], &[left("a", 0, 0)], 1), (InProgress, 1, 1));
    assert_eq!(far(&factor(), &[other], &[], 1), (Cancelled, 0, 0), "its tenant was deleted");
    let taken_back = Migration { cancel_requested: true, ..factor() };
    assert_eq!(far(&taken_back, &[wishes], &[], 1), (Pending, 0, 1), "it still wants it");
    let moving = Moving {
        to: Placed { ring: 0, replication_factor: 5, generation: 0 },
        step: Step::Cutover,
        prepared: 1,
        since: 2,
    };
    let late = Tenant { moving: Some(moving), ..tenant("a", 0, 3) };
    assert_eq!(far(&taken_back, &[late], &[], 1), (InProgress, 0, 1), "it gets there, and then back");
    assert_eq!(far(&taken_back, &[tenant("a", 0, 3)], &[], 1), (Cancelled, 1, 1));
}

fn everything() -> Vec<Both> {
    vec![Both { tokens: (0, u64::MAX), old: Vec::new(), new: Vec::new() }]
}

#[test]
fn what_is_done_is_said_before_what_is_waited_for() {
    let board = Board::default();
    let about = |name: &str| lock(&board.0).about(|tenant| *tenant == id(name));
    assert_eq!(about("a"), (String::new(), 0));
    board.left(BTreeMap::from([((id("a"), NodeId::new("n1").unwrap()), "it cannot be reached".to_owned())]));
    let one = "waits until node n1 has dropped what it has lost of tenant a: it cannot be reached";
    assert_eq!(about("a").0, one);
    let node = |name| NodeId::new(name).unwrap();
    let left = [("a", "n1"), ("a", "n2"), ("b", "n1"), ("b", "n2")];
    let left = left.map(|(tenant, name)| ((id(tenant), node(name)), "it cannot be reached".to_owned()));
    board.left(left.into());
    assert_eq!(about("a").0, format!("{one} (and 1 more: witan migration leftovers)"));
    let of_nodes = lock(&board.0).about(|_| true);
    assert_eq!(of_nodes.0, format!("{one} (and 3 more: witan migration leftovers)"));
    board.left(BTreeMap::from([((id("a"), node("n1")), "it cannot be reached".to_owned())]));
    board.waits(&id("a"), "waits for node n4: it cannot be reached".to_owned());
    assert_eq!(about("a").0, "tenant a: waits for node n4: it cannot be reached");
    board.copies(&id("a"), &everything(), true);
    board.walked(&id("a"), 41_200, 7, (1 << 62) - 1);
    assert_eq!(about("a"), ("copies tenant a: 41,200 of about 164,800 records".to_owned(), 123_600));
    assert_eq!(about("b"), (String::new(), 0));
    assert_eq!(lock(&board.0).moved[&id("a")], (41_200, 7));
    board.copies(&id("a"), &everything(), false);
    board.walked(&id("a"), 41_200, 7, (1 << 62) - 1);
    assert_eq!(lock(&board.0).moved[&id("a")], (41_200, 14), "the same records again");
    board.rests(&id("a"));
    assert_eq!(about("a").0, "waits until node n1 has dropped what it has lost of tenant a: it cannot be reached");
}

#[test]
fn numbers_are_grouped() {
    let all = [0, 7, 999, 1000, 41_200, 1_234_567].map(grouped);
    assert_eq!(all, ["0", "7", "999", "1,000", "41,200", "1,234,567"]);
}
