//! The contract of placement changes: what is on record of them, of tenants that move, and of what they leave.

use witan_kernel::capability::{MOVES, SMALL_RECORDS};
use witan_kernel::name::{NodeId, StoreId, TenantId, Zone};
use witan_kernel::placement::leader::target;
use witan_kernel::placement::{Moving, Placed, Step};
use witan_kernel::port::{
    Changed, Claim, Metadata, Migration, MigrationProgress, MigrationStatus, MoveTenant, NodeStatus, PlacementChange,
    Published, StorageNode, StoreError, StoreState,
};
use witan_kernel::scan::Trust;
use witan_kernel::tenant::{Level, Tenant};

use super::super::join_all;
use super::{Pass, node, tenant};

pub(super) mod ends;
mod generations;
mod leftovers;
mod replaces;
mod updates;

/// All of it. Tenants and nodes that are on record are removed before.
pub(super) async fn all<M: Metadata>(metadata: &M, pass: Pass<'_>) {
    drained(metadata, pass).await;
    empty(metadata).await;
    for of in 1..=4 {
        metadata.add_node(node(&format!("m-{of}")), 90).await.expect("added");
    }
    let joins = nodes_join(metadata).await;
    let leaves = nodes_leave(metadata).await;
    changes_are_taken_back(metadata, &joins, &leaves).await;
    factors(metadata).await;
    factors_are_taken_back(metadata).await;
    settings_and_moves(metadata).await;
    tenants_move(metadata).await;
    leftovers::all(metadata).await;
    ends::all(metadata).await;
    updates::all(metadata).await;
    replaces::all(metadata).await;
    generations::all(metadata).await;
}

async fn empty<M: Metadata>(metadata: &M) {
    for tenant in metadata.tenants(None, 1000).await.expect("a page") {
        metadata.delete_tenant(&tenant.id, tenant.version, 90, false).await.expect("deleted");
    }
    for known in metadata.nodes().await.expect("nodes") {
        metadata.remove_node(&known.node.id).await.expect("removed");
    }
}

/// The newest version of the ring and its nodes.
async fn ring<M: Metadata>(metadata: &M) -> (u64, Vec<String>) {
    let placement = metadata.placement().await.expect("the placement");
    let newest = placement.rings.last().expect("never empty");
    (newest.version, newest.members.iter().map(|member| member.node.to_string()).collect())
}

async fn versions<M: Metadata>(metadata: &M) -> Vec<u64> {
    let placement = metadata.placement().await.expect("the placement");
    placement.rings.iter().map(|ring| ring.version).collect()
}

async fn status<M: Metadata>(metadata: &M, id: &str) -> Option<NodeStatus> {
    let nodes = metadata.nodes().await.expect("nodes");
    nodes.into_iter().find(|known| known.node.id.as_str() == id).map(|known| known.node.status)
}

async fn revision<M: Metadata>(metadata: &M) -> u64 {
    metadata.changes(u64::MAX).await.expect("the revision").revision
}

async fn stored<M: Metadata>(metadata: &M, id: &TenantId) -> Tenant {
    metadata.tenant(id).await.expect("answered").expect("there")
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

fn zone(name: &str) -> Zone {
    Zone::new(name).expect("valid")
}

fn leaves(name: &str) -> PlacementChange {
    PlacementChange::RemoveNode { node: id(name), force: false }
}

fn factor(tenant: &Tenant, to: u8) -> PlacementChange {
    PlacementChange::ReplicationFactor { tenant: tenant.id.clone(), to }
}

async fn change<M: Metadata>(metadata: &M, change: PlacementChange) -> Migration {
    metadata.change_placement(change, 100).await.expect("recorded")
}

async fn end<M: Metadata>(metadata: &M, of: &Migration, status: MigrationStatus) {
    metadata.note_migration(of.number, status, MigrationProgress::default(), 900).await.expect("noted");
}

async fn step<M: Metadata>(metadata: &M, of: &Tenant, step: MoveTenant) -> Published {
    metadata.move_tenant(&of.id, of.version, step, 300).await.expect("published")
}

/// Moves a tenant to where it is to be.
async fn arrive<M: Metadata>(metadata: &M, of: &Tenant, left: Vec<NodeId>) -> Published {
    let to = target(of, ring(metadata).await.0);
    let mut of = of.clone();
    for next in [MoveTenant::Prepare(to), MoveTenant::DualWrite, MoveTenant::Cutover] {
        of = step(metadata, &of, next).await.tenant;
    }
    step(metadata, &of, MoveTenant::Finish(left)).await
}

fn is_refused<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Refused(_)))
}

fn is_conflict<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict(_)))
}

fn is_missing<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Missing(_)))
}

/// Up to which revision a coordinator's operations have ended is kept as long as its lease is; and that placement changes are required.
async fn drained<M: Metadata>(metadata: &M, pass: Pass<'_>) {
    let claim = |of: u8, capabilities: &[&str]| Claim {
        node_id: id("coordinator-7"),
        instance: [of; 16],
        address: "10.0.0.7:50051".into(),
        version: "0.1.0".into(),
        capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
    };
    let known = async || {
        let all = metadata.coordinators().await.expect("coordinators");
        all.into_iter().find(|at| at.claim.node_id == id("coordinator-7")).map(|at| at.drained)
    };
    let note = async |of: u8, revision| {
        metadata.note_drained(&id("coordinator-7"), [of; 16], revision).await.expect("noted");
    };
    note(1, 5).await;
    assert_eq!(known().await, None, "it holds no lease");
    metadata.hold_lease(claim(1, &[]), 600_000).await.expect("granted");
    assert_eq!(known().await, Some(0));
    let before = revision(metadata).await;
    note(1, 7).await;
    note(1, 6).await;
    note(2, 99).await;
    assert_eq!((known().await, revision(metadata).await), (Some(7), before), "the highest, of the holder alone");
    metadata.hold_lease(claim(1, &[]), 600_000).await.expect("renewed");
    let moved = Claim { version: "0.2.0".into(), ..claim(1, &[]) };
    metadata.hold_lease(moved, 600_000).await.expect("renewed");
    assert_eq!(known().await, Some(7), "renewals leave it");

    assert!(is_conflict(&metadata.require(MOVES).await), "this coordinator does not know it");
    metadata.release_lease(&id("coordinator-7"), [1; 16]).await.expect("released");
    note(1, 8).await;
    assert_eq!(known().await, Some(7), "its lease has ended");
    metadata.hold_lease(claim(2, &[MOVES]), 1).await.expect("granted");
    assert_eq!(known().await, Some(0), "another instance has not said so");
    pass(20).await;
    note(2, 9).await;
    assert_eq!(known().await, Some(0), "its lease has expired");
    metadata.hold_lease(claim(2, &[MOVES]), 600_000).await.expect("granted");
    assert_eq!(metadata.require(MOVES).await, Ok(false), "it was not before");
    assert_eq!(metadata.require(MOVES).await, Ok(true));
    assert_eq!(metadata.require(SMALL_RECORDS).await, Ok(true), "that is required with it");
    metadata.release_lease(&id("coordinator-7"), [2; 16]).await.expect("released");
}

async fn nodes_join<M: Metadata>(metadata: &M) -> Migration {
    assert_eq!(ring(metadata).await, (0, ["m-1", "m-2", "m-3", "m-4"].map(str::to_owned).to_vec()));
    let to = Placed { ring: 9, replication_factor: 1, generation: 0 };
    let moving = Some(Moving { to, step: Step::Cutover, prepared: 1, since: 1 });
    let odd = Tenant { ring: 7, wanted_factor: Some(1), moving, ..tenant("m-a") };
    assert_eq!(metadata.create_tenant(odd).await, Ok(tenant("m-a")), "a new one is where the newest ring says");
    assert_eq!(metadata.tenant(&tenant("m-a").id).await, Ok(Some(tenant("m-a"))));

    let before = revision(metadata).await;
    let five = StorageNode { virtual_nodes: 7, zone: zone("z-5"), ..node("m-5") };
    let joins = change(metadata, PlacementChange::AddNode(five.clone())).await;
    let expected = Migration {
        number: before + 1,
        change: PlacementChange::AddNode(five.clone()),
        ring: 1,
        before: 0,
        was: None,
        status: MigrationStatus::Pending,
        cancel_requested: false,
        progress: MigrationProgress::default(),
        created_at_ms: 100,
        started_at_ms: None,
        finished_at_ms: None,
    };
    assert_eq!(joins, expected);
    assert_eq!(metadata.migration(joins.number).await, Ok(expected));
    let changes = metadata.changes(before).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (joins.number, &[Changed::Nodes][..]));
    let placement = metadata.placement().await.expect("the placement");
    assert_eq!((placement.epoch, placement.rings.len(), placement.rings[0].version), (joins.number, 2, 0));
    assert_eq!(placement.rings[0].members, ["m-1", "m-2", "m-3", "m-4"].map(|name| node(name).member()));
    assert_eq!((placement.rings[1].version, &placement.rings[1].members[4]), (1, &five.member()));
    let record = placement.nodes.iter().find(|known| known.node.id == five.id).expect("on record");
    assert_eq!((&record.node, record.store_id, record.created_at_ms), (&five, None, 100));

    for again in [five.clone(), StorageNode { status: NodeStatus::Draining, ..five.clone() }] {
        let again = metadata.change_placement(PlacementChange::AddNode(again), 105).await;
        assert_eq!((again, revision(metadata).await), (Ok(joins.clone()), joins.number), "it is on record");
    }
    for other in [StorageNode { port: 1, ..five }, node("m-1")] {
        let other = metadata.change_placement(PlacementChange::AddNode(other), 105).await;
        assert!(matches!(&other, Err(StoreError::Exists(_))), "{other:?}");
    }
    let wrong = StorageNode { virtual_nodes: 0, ..node("m-6") };
    assert!(is_refused(&metadata.change_placement(PlacementChange::AddNode(wrong), 105).await));
    assert_eq!((revision(metadata).await, ring(metadata).await.0), (joins.number, 1), "nothing has changed");
    assert_eq!(metadata.create_tenant(tenant("m-b")).await.expect("created").ring, 1);
    assert_eq!(metadata.forget_rings(106).await, Ok(false), "each version has a tenant");
    joins
}

async fn nodes_leave<M: Metadata>(metadata: &M) -> Migration {
    assert!(is_missing(&metadata.change_placement(leaves("nobody"), 110).await));
    let before = revision(metadata).await;
    let left = change(metadata, leaves("m-1")).await;
    assert_eq!((left.number, left.ring, &left.change), (before + 1, 2, &leaves("m-1")));
    assert_eq!(ring(metadata).await, (2, ["m-2", "m-3", "m-4", "m-5"].map(str::to_owned).to_vec()));
    assert_eq!(
        status(metadata, "m-1").await,
        Some(NodeStatus::Draining),
        "it is on record until its rows are elsewhere"
    );
    assert_eq!(metadata.placement().await.expect("the placement").epoch, left.number);
    assert_eq!(metadata.change_placement(leaves("m-1"), 111).await, Ok(left.clone()));

    let wide = metadata.create_tenant(Tenant { replication_factor: 4, ..tenant("m-wide") }).await.expect("created");
    let refused = metadata.change_placement(leaves("m-2"), 112).await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("m-wide")), "{refused:?}");
    assert_eq!((ring(metadata).await.0, status(metadata, "m-2").await), (2, Some(NodeStatus::Active)));

    // Who leaves owes what all owe.
    let stricter = Tenant { minimum_level: Level::Quorum, ..wide };
    let wide = metadata.update_tenant(stricter, true).await.expect("updated");
    let owed = metadata.owed_fences(Some(&wide.id), None).await.expect("the owed fences");
    assert_eq!(owed.len(), 5, "{owed:?}");
    for owed in owed {
        metadata.fence_raised(Some(&wide.id), &owed.node, owed.epoch).await.expect("noted");
    }
    metadata.delete_tenant(&wide.id, wide.version, 113, false).await.expect("deleted");
    let removals = metadata.owed_removals(113, None).await.expect("the owed removals");
    assert!(removals.contains(&(wide.id.clone(), id("m-1"))), "{removals:?}");

    // It stays one that leaves if it is reached elsewhere.
    let known = metadata.nodes().await.expect("nodes").swap_remove(0).node;
    metadata.put_node(StorageNode { port: 77, ..known }, 114).await.expect("put");
    assert_eq!((ring(metadata).await.1.len(), status(metadata, "m-1").await), (4, Some(NodeStatus::Draining)));
    left
}

async fn changes_are_taken_back<M: Metadata>(metadata: &M, joins: &Migration, left: &Migration) {
    assert!(is_missing(&metadata.cancel_migration(u64::MAX >> 1, 120).await));
    let early = metadata.cancel_migration(joins.number, 120).await;
    let named = left.number.to_string();
    assert!(matches!(&early, Err(StoreError::Conflict(why)) if why.contains(&named)), "{early:?}");

    let before = revision(metadata).await;
    let back = metadata.cancel_migration(left.number, 121).await.expect("taken back");
    assert_eq!(back, Migration { cancel_requested: true, ..left.clone() });
    assert_eq!(metadata.migration(left.number).await, Ok(back.clone()));
    assert_eq!(ring(metadata).await, (3, ["m-1", "m-2", "m-3", "m-4", "m-5"].map(str::to_owned).to_vec()));
    assert_eq!(status(metadata, "m-1").await, Some(NodeStatus::Active));
    let changes = metadata.changes(before).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (before + 1, &[Changed::Nodes][..]));
    assert_eq!(metadata.placement().await.expect("the placement").epoch, before + 1);
    assert_eq!(metadata.cancel_migration(left.number, 122).await, Ok(back), "once");
    assert_eq!((revision(metadata).await, ring(metadata).await.0), (before + 1, 3));

    // What is being taken back is not the same any more.
    let again = change(metadata, leaves("m-1")).await;
    assert!(again.number > left.number && again.ring == 4, "{again:?}");
    metadata.cancel_migration(again.number, 123).await.expect("taken back");

    // Nothing rests on the addition now, unless a tenant needs as many nodes.
    let wide = metadata.create_tenant(Tenant { replication_factor: 5, ..tenant("m-wide-2") }).await.expect("created");
    let needed = metadata.cancel_migration(joins.number, 124).await;
    assert!(matches!(&needed, Err(StoreError::Conflict(why)) if why.contains("m-wide-2")), "{needed:?}");
    metadata.delete_tenant(&wide.id, wide.version, 124, false).await.expect("deleted");
    let back = metadata.cancel_migration(joins.number, 125).await.expect("taken back");
    assert!(back.cancel_requested && back.status == MigrationStatus::Pending && back.ring == 1, "{back:?}");
    assert_eq!(ring(metadata).await, (6, ["m-1", "m-2", "m-3", "m-4"].map(str::to_owned).to_vec()));
    assert_eq!(status(metadata, "m-5").await, Some(NodeStatus::Draining));
    let anew = metadata.change_placement(PlacementChange::AddNode(node("m-5")), 126).await;
    assert!(matches!(&anew, Err(StoreError::Exists(_))), "it has not left yet: {anew:?}");

    // What has ended is returned as it is.
    let ended = change(metadata, PlacementChange::AddNode(node("m-6"))).await;
    end(metadata, &ended, MigrationStatus::Completed).await;
    let ended = metadata.migration(ended.number).await.expect("on record");
    let before = revision(metadata).await;
    assert_eq!(metadata.cancel_migration(ended.number, 127).await, Ok(ended.clone()));
    assert_eq!((revision(metadata).await, ring(metadata).await.0), (before, 7));
    let left = change(metadata, leaves("m-6")).await;
    assert!(left.number > ended.number && ring(metadata).await.0 == 8, "{left:?}");
    for of in [joins.number, again.number, left.number] {
        let of = metadata.migration(of).await.expect("on record");
        end(metadata, &of, MigrationStatus::Cancelled).await;
    }
}

async fn factors<M: Metadata>(metadata: &M) {
    let one = metadata.create_tenant(Tenant { replication_factor: 2, ..tenant("m-factor") }).await.expect("created");
    assert!(is_missing(&metadata.change_placement(factor(&tenant("nobody"), 3), 130).await));
    assert!(is_missing(&metadata.change_placement(factor(&tenant("m-wide"), 3), 130).await), "it is deleted");
    for wrong in [0, 5, 6] {
        let wrong = metadata.change_placement(factor(&one, wrong), 130).await;
        assert!(is_refused(&wrong), "the ring has four nodes: {wrong:?}");
    }
    let before = revision(metadata).await;
    let wider = change(metadata, factor(&one, 4)).await;
    assert_eq!((wider.number, wider.ring, wider.before), (before + 1, 8, 2));
    assert_eq!(metadata.migration(wider.number).await, Ok(wider.clone()));
    let changes = metadata.changes(before).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (before + 1, &[Changed::Tenant(one.id.clone())][..]));
    let wishing = stored(metadata, &one.id).await;
    let expected = Tenant { wanted_factor: Some(4), version: 2, updated_at_ms: 100, ..one.clone() };
    assert_eq!(wishing, expected, "it has what it had");
    assert_eq!(metadata.owed_fences(Some(&one.id), None).await, Ok(Vec::new()));
    assert_eq!(ring(metadata).await.0, 8);

    assert_eq!(metadata.change_placement(factor(&one, 4), 131).await, Ok(wider.clone()));
    assert!(is_conflict(&metadata.change_placement(factor(&one, 3), 131).await), "one has not ended");
    let refused = metadata.change_placement(leaves("m-4"), 131).await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("m-factor")), "{refused:?}");
    let other = Tenant { replication_factor: 3, ..wishing.clone() };
    assert!(is_conflict(&metadata.update_tenant(other, false).await), "not by this way meanwhile");
    assert_eq!(revision(metadata).await, before + 1);

    let done = arrive(metadata, &wishing, vec![]).await.tenant;
    assert_eq!((done.replication_factor, done.wanted_factor, done.moving), (4, None, None));
    assert!(is_conflict(&metadata.change_placement(factor(&one, 3), 132).await), "that is to be noted first");
    end(metadata, &wider, MigrationStatus::Completed).await;
    let less = change(metadata, factor(&one, 3)).await;
    assert_eq!((less.before, stored(metadata, &one.id).await.wanted_factor), (4, Some(3)));
    let done = arrive(metadata, &stored(metadata, &one.id).await, vec![]).await.tenant;
    assert_eq!((done.replication_factor, done.wanted_factor), (3, None));
    end(metadata, &less, MigrationStatus::Completed).await;
    let same = change(metadata, factor(&one, 3)).await;
    assert_eq!(stored(metadata, &one.id).await.wanted_factor, None, "it has that already");
    end(metadata, &same, MigrationStatus::Completed).await;
}

async fn factors_are_taken_back<M: Metadata>(metadata: &M) {
    let one = stored(metadata, &tenant("m-factor").id).await;
    let wider = change(metadata, factor(&one, 4)).await;
    let before = revision(metadata).await;
    let back = metadata.cancel_migration(wider.number, 141).await.expect("taken back");
    assert_eq!(back, Migration { cancel_requested: true, ..wider.clone() });
    let changes = metadata.changes(before).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (before + 1, &[Changed::Tenant(one.id.clone())][..]));
    let kept = stored(metadata, &one.id).await;
    assert_eq!((kept.replication_factor, kept.wanted_factor, kept.version), (3, None, one.version + 2));
    let again = metadata.change_placement(factor(&one, 4), 142).await;
    assert!(is_conflict(&again), "the first has not ended: {again:?}");
    end(metadata, &wider, MigrationStatus::Cancelled).await;

    // What has moved already moves back.
    let wider = change(metadata, factor(&one, 4)).await;
    let moved = arrive(metadata, &stored(metadata, &one.id).await, vec![]).await.tenant;
    assert_eq!(moved.replication_factor, 4);
    metadata.cancel_migration(wider.number, 143).await.expect("taken back");
    let wishing = stored(metadata, &one.id).await;
    assert_eq!((wishing.replication_factor, wishing.wanted_factor), (4, Some(3)));
    end(metadata, &wider, MigrationStatus::Cancelled).await;
    let back = arrive(metadata, &wishing, vec![]).await.tenant;
    assert_eq!((back.replication_factor, back.wanted_factor), (3, None));

    // Of a deleted tenant there is nothing to take back.
    let wider = change(metadata, factor(&one, 4)).await;
    let deleted = stored(metadata, &one.id).await;
    metadata.delete_tenant(&one.id, deleted.version, 144, false).await.expect("deleted");
    let deleted = stored(metadata, &one.id).await;
    let back = metadata.cancel_migration(wider.number, 145).await.expect("asked for");
    assert!(back.cancel_requested);
    assert_eq!(stored(metadata, &one.id).await, deleted);
    end(metadata, &wider, MigrationStatus::Cancelled).await;
}

/// Where a tenant's records are is not among the settings that are updated.
async fn settings_and_moves<M: Metadata>(metadata: &M) {
    let one = metadata.create_tenant(tenant("m-settings")).await.expect("created");
    let to = Placed { ring: 8, replication_factor: 3, generation: 0 };
    let moving = step(metadata, &one, MoveTenant::Prepare(to)).await.tenant;
    let odd = Tenant { ring: 1, moving: None, wanted_factor: Some(2), default_level: Level::All, ..moving.clone() };
    let updated = metadata.update_tenant(odd, true).await.expect("updated");
    assert_eq!(updated, Tenant { default_level: Level::All, version: 3, ..moving.clone() });
    assert_eq!(stored(metadata, &one.id).await, updated);
    let fewer = metadata.update_tenant(Tenant { replication_factor: 2, ..updated.clone() }, true).await;
    assert!(is_conflict(&fewer), "{fewer:?}");
    let settled = step(metadata, &updated, MoveTenant::GiveUp(vec![])).await.tenant;
    let fewer = metadata.update_tenant(Tenant { replication_factor: 2, ..settled }, false).await.expect("updated");
    assert_eq!((fewer.replication_factor, fewer.moving), (2, None), "nothing moves");
}

async fn tenants_move<M: Metadata>(metadata: &M) {
    let one = stored(metadata, &tenant("m-a").id).await;
    assert_eq!((one.ring, one.version), (0, 1));
    let to = Placed { ring: 8, replication_factor: 3, generation: 0 };
    let try_step = |version, step| metadata.move_tenant(&one.id, version, step, 300);

    for early in [MoveTenant::DualWrite, MoveTenant::Cutover, MoveTenant::Finish(vec![]), MoveTenant::GiveUp(vec![])] {
        let early = try_step(1, early).await;
        assert!(is_refused(&early), "{early:?}");
    }
    assert!(is_conflict(&try_step(2, MoveTenant::Prepare(to)).await));
    assert!(is_refused(&try_step(1, MoveTenant::Prepare(Placed { ring: 99, ..to })).await), "no such ring");
    assert!(is_refused(&try_step(1, MoveTenant::Prepare(Placed { replication_factor: 6, ..to })).await));
    let nobody = tenant("nobody").id;
    assert!(is_missing(&metadata.move_tenant(&nobody, 1, MoveTenant::Prepare(to), 300).await));
    let deleted = tenant("m-wide").id;
    assert!(is_missing(&metadata.move_tenant(&deleted, 3, MoveTenant::Prepare(to), 300).await));

    // Each step is one change of the tenant, whose revision is its epoch; of rivals one wins, and nobody owes a fence.
    let (mut version, mut prepared) = (1, 0);
    for (step, is) in [
        (MoveTenant::Prepare(to), Some(Step::Preparing)),
        (MoveTenant::Prepare(to), Some(Step::Preparing)),
        (MoveTenant::DualWrite, Some(Step::DualWrite)),
        (MoveTenant::Prepare(to), Some(Step::Preparing)),
        (MoveTenant::DualWrite, Some(Step::DualWrite)),
        (MoveTenant::Cutover, Some(Step::Cutover)),
        (MoveTenant::Finish(vec![]), None),
    ] {
        let before = revision(metadata).await;
        let mut rivals = join_all((0..3).map(|_| try_step(version, step.clone()))).await;
        rivals.sort_by_key(Result::is_err);
        let published = rivals[0].clone().expect("one wins");
        assert!(is_conflict(&rivals[1]) && is_conflict(&rivals[2]), "{rivals:?}");
        version += 1;
        prepared = if is == Some(Step::Preparing) { before + 1 } else { prepared };
        let moving = is.map(|step| Moving { to, step, prepared, since: before + 1 });
        let ring = if is.is_some() { 0 } else { 8 };
        let expected = Tenant { ring, moving, version, updated_at_ms: 300, ..one.clone() };
        assert_eq!(published, Published { tenant: expected.clone(), epoch: before + 1 });
        assert_eq!(stored(metadata, &one.id).await, expected);
        let listed = metadata.tenants(None, 1000).await.expect("a page");
        assert!(listed.contains(&expected));
        let changes = metadata.changes(before).await.expect("changes");
        assert_eq!((changes.revision, &changes.changed[..]), (before + 1, &[Changed::Tenant(one.id.clone())][..]));
    }
    assert_eq!(metadata.owed_fences(Some(&one.id), None).await, Ok(Vec::new()));
    assert_eq!(metadata.leftovers(None, None).await, Ok(Vec::new()));
}

/// A node whose store, this one, has been reported.
async fn reported<M: Metadata>(metadata: &M, name: &str, store: u8) -> StoreId {
    let store = StoreId([store; 16]);
    let met = metadata.meet_store(&id(name), store, 0, 0).await.expect("met");
    assert_eq!(met.trust, Trust::Whole);
    store
}

async fn state<M: Metadata>(metadata: &M, store: StoreId) -> Option<StoreState> {
    let all = metadata.stores().await.expect("stores");
    all.into_iter().find(|known| known.store == store).map(|known| known.state)
}
