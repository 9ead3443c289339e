//! Migrations as they are asked for, on a metadata store in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;
use witan_kernel::failure::Failure;
use witan_kernel::hook::{Pending, ReplicaState};
use witan_kernel::name::{StoreId, Zone};
use witan_kernel::port::{
    Claim, LeaseStore, Metadata, MigrationProgress, MigrationStore, MoveTenant, NodeStatus, PlacementStore, Slot,
    TenantStore,
};
use witan_kernel::replica::ReplicaError;
use witan_kernel::ring::Rings;
use witan_kernel::scan::{Fullness, Removed, Standing, Trust};
use witan_memory::MemoryMetadata;
use witan_memory::contract::ManualClock;
use witan_memory::contract::metadata as contract;

mod maintenance;
mod swaps;
mod updates;

use super::*;
use crate::{Cluster, Dropping, FactorChanged, Held, KeysAt, KeysFrom, TurnLimits};

/// A coordinator that can move records, unless it is said that it cannot.
struct Here {
    cannot: AtomicBool,
    lacking: Mutex<Vec<NodeId>>,
    away: Mutex<Vec<NodeId>>,
    shown: Mutex<BTreeMap<NodeId, Standing>>,
    /// Nodes that do not know generations.
    without_generations: Mutex<Vec<NodeId>>,
    given_up: Mutex<Vec<TenantId>>,
    keys: u64,
    rings: Mutex<Arc<Rings>>,
    followed: Mutex<Vec<Tenant>>,
}

fn done() -> Pending<Result<(), StoreError>> {
    Box::pin(std::future::ready(Ok(())))
}

impl Cluster for Here {
    fn tenant_changed(&self, tenant: Tenant) {
        self.followed.lock().unwrap().push(tenant);
    }
    fn tenant_outdated(&self, _: &TenantId) -> Pending<Result<(), StoreError>> {
        done()
    }
    fn tenants_outdated(&self) -> Pending<Result<(), StoreError>> {
        done()
    }
    fn secrets_outdated(&self) -> Pending<Result<(), StoreError>> {
        done()
    }
    fn plugins_outdated(&self, _: Option<Vec<Slot>>) -> Pending<Result<(), StoreError>> {
        done()
    }
    fn tokens_outdated(&self) -> Pending<Result<(), StoreError>> {
        done()
    }
    fn tokens_confirmed(&self) {}
    fn moves(&self) -> bool {
        !self.cannot.load(Ordering::Relaxed) && self.lacking.lock().unwrap().is_empty()
    }
    fn lacks_moves(&self, node: &NodeId) -> bool {
        self.lacking.lock().unwrap().contains(node)
    }
    fn lacks_generations(&self, node: &NodeId) -> bool {
        self.without_generations.lock().unwrap().contains(node)
    }
    fn keys(&self, tenant: &Tenant, from: Option<KeysFrom>) -> Pending<Result<KeysAt, Failure>> {
        Box::pin(std::future::ready(Ok(swaps::page(tenant, from))))
    }
    fn hook_given_up(&self, tenant: &TenantId) -> Pending<()> {
        self.given_up.lock().unwrap().push(tenant.clone());
        Box::pin(std::future::ready(()))
    }
    fn ring(&self) -> Arc<Ring> {
        Arc::clone(self.rings().newest())
    }
    fn rings(&self) -> Arc<Rings> {
        Arc::clone(&self.rings.lock().unwrap())
    }
    fn raise_fence(&self, _: &NodeId, _: Option<&TenantId>, _: u64) -> Pending<Result<(), ReplicaError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn placement_changed(&self, placement: Placement) {
        *self.rings.lock().unwrap() = Arc::new(placement.rings());
    }
    fn state(&self, node: &NodeId) -> ReplicaState {
        let reachable = !self.away.lock().unwrap().contains(node);
        ReplicaState { reachable, latency_p50_us: 0, latency_p99_us: 0, in_flight: 0 }
    }
    fn fullness(&self, _: &NodeId) -> Pending<Option<Fullness>> {
        let fullness =
            Fullness { keys: self.keys, disk_usage_percent: 40.0, bytes: self.keys * 50, reads: 0, mints: 0 };
        Box::pin(std::future::ready(Some(fullness)))
    }
    fn standing(&self, node: &NodeId) -> Option<Standing> {
        let whole = Standing { store: StoreId([1; 16]), trust: Trust::Whole };
        let is_away = self.away.lock().unwrap().contains(node);
        (!is_away).then(|| self.shown.lock().unwrap().get(node).copied().unwrap_or(whole))
    }
    fn stores_changed(&self) -> Pending<()> {
        Box::pin(std::future::ready(()))
    }
    fn remove_records(&self, _: &TenantId, _: Option<Vec<NodeId>>, _: Instant) -> Pending<Removed> {
        Box::pin(std::future::ready(Removed::default()))
    }
    fn hold(&self) -> Pending<Held> {
        Box::pin(std::future::ready(Box::new(()) as Held))
    }
}

struct Place {
    metadata: Arc<MemoryMetadata>,
    here: Arc<Here>,
    catalog: Arc<Catalog>,
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn node(name: &str) -> StorageNode {
    let (host, status) = (format!("{name}.example"), NodeStatus::Active);
    StorageNode { id: id(name), host, port: 50052, virtual_nodes: 16, status, zone: Zone::default() }
}

fn removal(name: &str, force: bool, accept_loss: bool) -> Removal {
    Removal { node: id(name), force, accept_loss }
}

impl Place {
    /// Nodes n1, n2 and so on, with this number of records each, and tenants t1, t2 and so on with these replication factors.
    async fn new(nodes: u32, keys: u64, factors: &[u8]) -> Self {
        let metadata = Arc::new(MemoryMetadata::new(ManualClock::new()));
        metadata.found_nodes((1..=nodes).map(|n| node(&format!("n{n}"))).collect(), 0).await.expect("founded");
        for (n, factor) in (1..).zip(factors) {
            let tenant = Tenant { replication_factor: *factor, ..contract::tenant(&format!("t{n}")) };
            metadata.create_tenant(tenant).await.expect("created");
        }
        let placement = metadata.placement().await.expect("the placement");
        let here = Arc::new(Here {
            cannot: AtomicBool::new(false),
            lacking: Mutex::default(),
            away: Mutex::default(),
            shown: Mutex::default(),
            without_generations: Mutex::default(),
            given_up: Mutex::default(),
            keys,
            rings: Mutex::new(Arc::new(placement.rings())),
            followed: Mutex::default(),
        });
        let shared: Arc<dyn Metadata> = Arc::clone(&metadata) as _;
        let catalog = Arc::new(Catalog::new(shared, Arc::clone(&here) as _, None, TurnLimits::CHANGES));
        Self { metadata, here, catalog }
    }

    fn turn(&self) -> Turn {
        self.catalog.changes().take(None).expect("a turn")
    }

    async fn add(&self, node: StorageNode) -> Result<Changed, Refused> {
        self.catalog.add_node(self.turn(), node, 1).await
    }

    async fn remove(&self, removal: Removal) -> Result<Changed, Refused> {
        self.catalog.remove_node(self.turn(), removal, 1).await
    }

    async fn replicate(&self, tenant: &str, to: u8) -> Result<FactorChanged, Refused> {
        self.catalog.change_replication_factor(self.turn(), &TenantId::new(tenant).unwrap(), to, 1).await
    }

    async fn cancel(&self, number: u64, undo: bool) -> Result<Migration, Refused> {
        self.catalog.cancel_migration(self.turn(), number, undo, 1).await
    }

    async fn tenant(&self, name: &str) -> Tenant {
        self.catalog.tenant(&TenantId::new(name).unwrap()).await.expect("a tenant")
    }

    /// Moves a tenant to the newest ring, with the factor that it is to have.
    async fn move_there(&self, name: &str) {
        self.move_and_leave(name, MoveTenant::Finish(vec![])).await;
    }

    /// The same, up to a last step, which leaves rows.
    async fn move_and_leave(&self, name: &str, last: MoveTenant) {
        let mut tenant = self.tenant(name).await;
        let ring = self.here.rings().newest_version();
        let replication_factor = tenant.wanted_factor.unwrap_or(tenant.replication_factor);
        let to = Placed { ring, replication_factor, ..tenant.placed() };
        for step in [MoveTenant::Prepare(to), MoveTenant::DualWrite, MoveTenant::Cutover, last] {
            let moved = self.metadata.move_tenant(&tenant.id, tenant.version, step, 1).await.expect("a step");
            tenant = moved.tenant;
        }
    }

    /// Names of tenants and nodes with leftovers, page after page of about this size.
    async fn left(&self, tenant: Option<&str>, node: Option<&str>, limit: u32) -> Vec<Vec<String>> {
        let (tenant, node) = (tenant.map(|name| TenantId::new(name).unwrap()), node.map(id));
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let found = self.catalog.leftovers(tenant.as_ref(), node.as_ref(), after, limit).await.expect("leftovers");
            pages.push(found.page.iter().map(|left| format!("{} {}", left.tenant, left.node)).collect());
            after = found.next;
            if after.is_none() {
                return pages;
            }
        }
    }

    async fn give_up(&self, name: &str, tenant: Option<&str>, accept_loss: bool) -> Result<u64, Refused> {
        let tenant = tenant.map(|name| TenantId::new(name).unwrap());
        self.catalog.drop_leftovers(self.turn(), Dropping { node: id(name), tenant, accept_loss }).await
    }

    async fn note(&self, number: u64, status: MigrationStatus, tenants_done: u64) {
        let progress = MigrationProgress { tenants_done, tenants_total: 2, ..MigrationProgress::default() };
        self.metadata.note_migration(number, status, progress, 1).await.expect("noted");
    }
}

fn number(changed: &Changed) -> u64 {
    changed.migration.as_ref().expect("a migration").number
}

#[tokio::test]
async fn a_node_joins_while_data_is_stored_and_only_once() {
    let place = Place::new(3, 100, &[3]).await;
    place.here.away.lock().unwrap().push(id("n4"));
    let added = place.add(node("n4")).await.expect("recorded");
    assert!(added.message.contains("has not been reached yet"), "{}", added.message);
    assert_eq!(place.here.ring().len(), 4, "it is followed here at once");
    let again = place.add(node("n4")).await.expect("the same change");
    assert_eq!(number(&again), number(&added));
    let taken = StorageNode { host: node("n2").host, ..node("n5") };
    let refused = place.add(taken).await.expect_err("the address of n2").to_string();
    assert!(refused.contains("n2.example:50052 is the address of node n2"), "{refused}");
    let known = place.add(node("n2")).await.expect_err("it is a member already");
    assert!(matches!(known, Refused::Store(StoreError::Exists(_))), "{known}");

    let listed = place.catalog.nodes().await.expect("nodes");
    let said = place.catalog.comings_and_goings(&listed).await.expect("known");
    assert!(said[&id("n4")].contains("joins: 0 of 0 tenants"), "{said:?}");
    let pending = place.catalog.pending(&[place.tenant("t1").await]).await.expect("known");
    assert_eq!(pending.values().collect::<Vec<_>>(), [&number(&added)]);
}

#[tokio::test]
async fn whoever_is_too_old_is_named_and_what_is_empty_changes_at_once() {
    let place = Place::new(3, 100, &[3]).await;
    let claim = Claim {
        node_id: id("old"),
        instance: [1; 16],
        address: "here:1".to_owned(),
        version: "0.0.9".to_owned(),
        capabilities: Vec::new(),
    };
    place.metadata.hold_lease(claim, 10_000).await.expect("a lease");
    place.here.lacking.lock().unwrap().push(id("n2"));
    // Also if it is noticed only by the metadata store.
    for lacking in [vec![id("n2")], vec![]] {
        place.here.lacking.lock().unwrap().clone_from(&lacking);
        for refused in [
            place.add(node("n4")).await.expect_err("records have to move"),
            place.remove(removal("n3", true, false)).await.expect_err("records have to move"),
            place.replicate("t1", 2).await.expect_err("records have to move"),
        ] {
            let Refused::TooOld { who, .. } = &refused else { panic!("{refused}") };
            assert!(who.contains("coordinator old (version 0.0.9)"), "{who}");
            assert_eq!(who.contains("storage node n2"), !lacking.is_empty(), "{who}");
        }
    }
    let empty = Place::new(3, 0, &[3]).await;
    empty.here.cannot.store(true, Ordering::Relaxed);
    assert_eq!(empty.add(node("n4")).await.expect("nothing has to move").migration, None);
    assert_eq!(empty.remove(removal("n4", false, false)).await.expect("nothing has to move").migration, None);
    assert_eq!(empty.replicate("t1", 2).await.expect("nothing has to move").after.replication_factor, 2);
}

#[tokio::test]
async fn a_node_leaves_unless_too_few_would_remain() {
    let place = Place::new(4, 100, &[2, 4]).await;
    let unknown = place.remove(removal("n9", false, false)).await.expect_err("unknown");
    assert!(matches!(unknown, Refused::Store(StoreError::Missing(_))), "{unknown}");
    let needed = place.remove(removal("n4", false, false)).await.expect_err("t2 needs it");
    assert!(matches!(&needed, Refused::NodeInUse(why) if why.contains("tenant t2 wants 4")), "{needed}");
    let misplaced = place.remove(removal("n4", false, true)).await.expect_err("only with force");
    assert!(matches!(&misplaced, Refused::Invalid(error) if error.field == "accept_loss"), "{misplaced}");
    place.replicate("t2", 3).await.expect("recorded");
    let needed = place.remove(removal("n4", false, false)).await.expect_err("t2 has four until it has moved");
    assert!(matches!(needed, Refused::NodeInUse(_)), "{needed}");
    place.move_there("t2").await;
    let left = place.remove(removal("n4", false, false)).await.expect("recorded");
    assert!(left.message.contains("keep it running"), "{}", left.message);
    let more = place.replicate("t1", 4).await.expect_err("three are left");
    assert!(matches!(more, Refused::TooFewNodes { wanted: 4, nodes: 3 }), "{more}");

    // It dies on its way out.
    place.here.away.lock().unwrap().push(id("n4"));
    let forced = place.remove(removal("n4", true, false)).await.expect("recorded");
    assert_ne!(number(&forced), number(&left));
    assert_eq!(place.here.ring().len(), 3);
    let late = place.cancel(number(&forced), true).await.expect_err("its store is retired");
    assert!(matches!(late, Refused::TooLate(_)), "{late}");
}

/// Its configuration names the nodes of the first start, and is not always changed when one has left.
#[tokio::test]
async fn a_coordinator_starts_with_a_node_in_its_configuration_that_was_removed() {
    let place = Place::new(4, 100, &[3]).await;
    let configured: Vec<StorageNode> = (1..=4).map(|n| node(&format!("n{n}"))).collect();
    place.remove(removal("n4", false, false)).await.expect("recorded");
    crate::register(place.metadata.as_ref(), &configured, 2).await.expect("it is on record still");
    place.move_there("t1").await;
    assert!(place.metadata.forget_rings(2).await.expect("forgotten"));
    assert_eq!(place.catalog.nodes().await.expect("nodes").len(), 3);
    crate::register(place.metadata.as_ref(), &configured, 2).await.expect("it was removed");
    let stranger = [&configured[..], &[node("n9")]].concat();
    let refused = crate::register(place.metadata.as_ref(), &stranger, 2).await.expect_err("never a member");
    assert!(matches!(&refused, Refused::UnknownNode(unknown) if *unknown == id("n9")), "{refused}");
}

#[tokio::test]
async fn what_may_be_lost_with_a_node_is_said_before() {
    let place = Place::new(5, 100, &[3, 1]).await;
    let lossy = place.remove(removal("n1", true, false)).await.expect_err("t2 has one replica");
    assert!(matches!(&lossy, Refused::SourcesUnreachable(why) if why.contains("tenant t2 has 1 replicas")), "{lossy}");
    let plan = place.catalog.plan(&PlacementChange::RemoveNode { node: id("n1"), force: true }).await.expect("a plan");
    assert!(plan.problems.iter().any(|problem| problem.contains("tenant t2")), "{:?}", plan.problems);
    let forced = place.remove(removal("n1", true, true)).await.expect("accepted");
    assert!(forced.message.contains("although it can be reached"), "{}", forced.message);

    // One of three replicas may be lost; with the second, a quorum of some keys is.
    let place = Place::new(5, 100, &[3]).await;
    place.remove(removal("n1", true, false)).await.expect("two of three are left");
    let lossy = place.remove(removal("n2", true, false)).await.expect_err("one of three is left");
    assert!(matches!(&lossy, Refused::SourcesUnreachable(why) if why.contains("and 1 others")), "{lossy}");
    let moved = place.tenant("t1").await;
    place.move_there("t1").await;
    assert_ne!(place.tenant("t1").await.ring, moved.ring);
    place.remove(removal("n2", true, false)).await.expect("its records are on others now");
}

#[tokio::test]
async fn a_factor_is_wanted_until_the_records_have_moved() {
    let place = Place::new(3, 100, &[2]).await;
    let many = place.replicate("t1", 4).await.expect_err("three nodes");
    assert!(matches!(many, Refused::TooFewNodes { wanted: 4, nodes: 3 }), "{many}");
    assert_eq!(place.replicate("t1", 2).await.expect("it has two").migration, None);
    let asked = place.replicate("t1", 3).await.expect("recorded");
    let migration = asked.migration.expect("a migration");
    assert_eq!((asked.before.replication_factor, asked.after.replication_factor, migration.before), (2, 3, 2));
    let followed = place.here.followed.lock().unwrap().last().cloned().expect("followed here at once");
    assert_eq!((followed.replication_factor, followed.wanted_factor), (2, Some(3)));
    let pending = place.catalog.pending(&[followed]).await.expect("known");
    assert_eq!(pending.into_values().collect::<Vec<_>>(), [migration.number]);
    assert_eq!(place.replicate("t1", 3).await.expect("the same").migration.map(|it| it.number), Some(migration.number));
    let other = place.replicate("t1", 1).await.expect_err("another one is under way");
    assert!(matches!(other, Refused::MigrationConflict(_)), "{other}");

    place.move_there("t1").await;
    let unsure = place.cancel(migration.number, false).await.expect_err("it has moved");
    assert!(matches!(&unsure, Refused::Invalid(error) if error.field == "confirm_undo"), "{unsure}");
    assert!(place.cancel(migration.number, true).await.expect("moves back").cancel_requested);
    assert_eq!(place.tenant("t1").await.wanted_factor, Some(2));
}

#[tokio::test]
async fn what_has_moved_moves_back_only_if_that_is_wanted() {
    let place = Place::new(3, 100, &[3, 3]).await;
    let added = number(&place.add(node("n4")).await.expect("recorded"));
    place.note(added, MigrationStatus::InProgress, 1).await;
    let unsure = place.cancel(added, false).await.expect_err("one has moved");
    assert!(unsure.to_string().contains("1 of 2 tenants have been moved already"), "{unsure}");
    assert!(place.cancel(added, true).await.expect("given up").cancel_requested);
    assert_eq!(place.here.ring().len(), 3, "followed here at once");
    assert!(place.cancel(added, false).await.expect("as it is").cancel_requested);
    place.note(added, MigrationStatus::Cancelled, 2).await;
    assert_eq!(place.cancel(added, false).await.expect("as it is").status, MigrationStatus::Cancelled);
    let unknown = place.cancel(added + 1000, false).await.expect_err("unknown");
    assert!(matches!(unknown, Refused::Store(StoreError::Missing(_))), "{unknown}");
}

#[tokio::test]
async fn a_phase_is_the_step_of_the_tenant_that_moves() {
    let place = Place::new(3, 100, &[3]).await;
    let added = number(&place.add(node("n4")).await.expect("recorded"));
    let phase = async || {
        let migration = place.catalog.migration(added).await.expect("on record");
        place.catalog.phases(&[migration]).await.expect("known").into_values().next()
    };
    assert_eq!(phase().await, None, "it is pending");
    place.note(added, MigrationStatus::InProgress, 0).await;
    let mut seen = vec![phase().await];
    let mut tenant = place.tenant("t1").await;
    let to = Placed { ring: place.here.rings().newest_version(), replication_factor: 3, generation: 0 };
    for step in [MoveTenant::Prepare(to), MoveTenant::DualWrite, MoveTenant::Cutover, MoveTenant::Finish(vec![])] {
        if step == MoveTenant::Cutover {
            let progress = MigrationProgress { keys_done: 7, tenants_total: 1, ..MigrationProgress::default() };
            let status = MigrationStatus::InProgress;
            place.metadata.note_migration(added, status, progress, 1).await.expect("noted");
            seen.push(phase().await);
        }
        tenant = place.metadata.move_tenant(&tenant.id, tenant.version, step, 1).await.expect("a step").tenant;
        seen.push(phase().await);
    }
    place.note(added, MigrationStatus::InProgress, 2).await;
    seen.push(phase().await);
    let seen: Vec<&str> = seen.into_iter().map(|phase| phase.expect("in progress")).collect();
    let before = ["dual_write", "dual_write", "dual_write", "data_copy", "cutover"];
    assert_eq!((&seen[..5], seen.last()), (&before[..], Some(&"cleanup")), "{seen:?}");
}

/// A coordinator that does not know of a change may be at any step of a move.
#[tokio::test]
async fn a_fence_is_needed_where_records_are_and_where_they_move() {
    let place = Place::new(3, 100, &[3]).await;
    place.add(node("n4")).await.expect("recorded");
    let (settled, newest) = (place.tenant("t1").await, place.here.rings().newest_version());
    let to = Placed { ring: newest, replication_factor: 3, generation: 0 };
    let step = MoveTenant::Prepare(to);
    let moving = place.metadata.move_tenant(&settled.id, settled.version, step, 1).await.expect("a step").tenant;
    let lacking = |name: &str| [(id(name), "away".to_owned())].into();
    let tolerated = |tenant: &Tenant, name: &str| place.catalog.tolerated(tenant, Level::One, &lacking(name));
    assert!(tolerated(&settled, "n4") && !tolerated(&settled, "n3"));
    assert!(!tolerated(&moving, "n4") && !tolerated(&moving, "n3"));
    let unknown = Tenant { ring: newest + 7, ..settled };
    assert!(!tolerated(&unknown, "n4") && place.catalog.tolerated(&unknown, Level::One, &BTreeMap::new()));

    // A node that leaves may hold records still.
    place.remove(removal("n1", false, false)).await.expect("recorded");
    assert_eq!(place.here.ring().len(), 3);
    assert_eq!(place.catalog.every_node("why").len(), 4);
}

#[tokio::test]
async fn a_plan_says_what_moves_and_what_is_in_the_way() {
    let place = Place::new(3, 1000, &[3, 3]).await;
    let change = PlacementChange::AddNode(node("n4"));
    let plan = place.catalog.plan(&change).await.expect("a plan");
    assert_eq!((plan.tenants, &plan.problems[..]), (2, &[][..]));
    let of = |name: &str| plan.nodes.iter().find(|node| node.node == id(name)).expect("planned");
    let received: u64 = plan.nodes.iter().map(|node| node.received).sum();
    let dropped: u64 = plan.nodes.iter().map(|node| node.dropped).sum();
    assert_eq!(of("n4").received, received);
    assert!(received.abs_diff(dropped) <= 4 && received.abs_diff(750) < 300, "of 3,000: {plan:?}");
    assert!(of("n1").disk_percent_after < of("n1").disk_percent, "{plan:?}");
    place.here.away.lock().unwrap().push(id("n2"));
    place.here.lacking.lock().unwrap().push(id("n3"));
    let taken = PlacementChange::AddNode(StorageNode { host: node("n1").host, ..node("n4") });
    let problems = place.catalog.plan(&taken).await.expect("a plan").problems.join("; ");
    for expected in ["storage node n3 cannot move records", "is the address of node n1", "n2 cannot be reached"] {
        assert!(problems.contains(expected), "{problems}");
    }
}

#[tokio::test]
async fn leftovers_are_listed_in_pages_none_of_which_ends_within_those_of_a_node() {
    let place = Place::new(4, 100, &[3, 3]).await;
    assert_eq!(place.left(None, None, 1).await, [Vec::<String>::new()]);
    for new in ["n5", "n6"] {
        place.add(node(new)).await.expect("recorded");
        for tenant in ["t1", "t2"] {
            place.move_and_leave(tenant, MoveTenant::Finish(vec![id("n1"), id("n2")])).await;
        }
    }
    let each = |names: &[&str]| names.iter().map(|name| vec![(*name).to_owned(); 2]).collect::<Vec<_>>();
    let all = each(&["t1 n1", "t1 n2", "t2 n1", "t2 n2"]);
    assert_eq!(place.left(None, None, 1).await, all);
    assert_eq!(place.left(None, None, 3).await, [all[..2].concat(), all[2..].concat()]);
    assert_eq!(place.left(None, None, 8).await, [all.concat()]);
    assert_eq!(place.left(None, Some("n2"), 1).await, each(&["t1 n2", "t2 n2"]));
    assert_eq!(place.left(Some("t2"), Some("n1"), 1).await, each(&["t2 n1"]));
    assert_eq!(place.left(Some("t2"), Some("n3"), 1).await, [Vec::<String>::new()]);
}

/// A node that is away, and stays a member, would be waited for as long as it is away.
#[tokio::test]
async fn leftovers_are_given_up_only_by_somebody_who_accepts_what_that_loses() {
    let place = Place::new(3, 100, &[3, 3]).await;
    place.add(node("n4")).await.expect("recorded");
    for tenant in ["t1", "t2"] {
        place.move_and_leave(tenant, MoveTenant::Finish(vec![id("n1"), id("n2")])).await;
    }
    assert!(!place.metadata.forget_rings(2).await.expect("answered"), "leftovers refer to the ring of before");
    let unsure = place.give_up("n1", None, false).await.expect_err("it may have the only copies");
    assert!(matches!(&unsure, Refused::Invalid(error) if error.field == "accept_loss"), "{unsure}");
    assert!(unsure.to_string().contains("tenant t1"), "{unsure}");
    assert_eq!(place.left(None, Some("n1"), 9).await, [["t1 n1", "t2 n1"]], "nothing was forgotten");
    assert_eq!(place.give_up("n1", Some("t2"), true).await.expect("accepted"), 1);
    assert_eq!(place.left(None, None, 9).await, [["t1 n1", "t1 n2", "t2 n2"]]);
    assert_eq!(place.give_up("n1", None, true).await.expect("accepted"), 1);
    assert_eq!(place.give_up("n1", None, false).await.expect("there are none any longer"), 0);
    assert_eq!(place.give_up("n9", None, false).await.expect("it has never been there"), 0);
    assert_eq!(place.give_up("n2", None, true).await.expect("accepted"), 2);
    assert!(place.metadata.forget_rings(2).await.expect("answered"), "nothing refers to it any longer");
}

/// What a move has copied before it was given up counts nowhere.
#[tokio::test]
async fn leftovers_of_a_move_that_was_given_up_lose_nothing() {
    let place = Place::new(3, 100, &[3]).await;
    place.add(node("n4")).await.expect("recorded");
    place.move_and_leave("t1", MoveTenant::GiveUp(vec![id("n4")])).await;
    assert_eq!(place.left(None, None, 9).await, [["t1 n4"]]);
    assert_eq!(place.give_up("n4", None, false).await.expect("nothing is lost"), 1);
}
