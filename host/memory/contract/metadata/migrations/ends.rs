//! How placement changes end: what is kept of them, what is forgotten, and what is never used again.

use witan_kernel::name::StoreId;
use witan_kernel::placement::Placed;
use witan_kernel::port::{
    Changed, MIGRATION_TEXT_BYTES, MIGRATIONS, Metadata, MigrationProgress, MigrationStatus, MoveTenant, NodeStatus,
    PlacementChange, StorageNode, StoreError, StoreState,
};
use witan_kernel::scan::Trust;
use witan_kernel::tenant::Tenant;

use super::super::{node, tenant};
use super::{
    arrive, change, end, factor, id, is_conflict, is_missing, leaves, reported, revision, ring, state, status, step,
    stored, versions, zone,
};

pub(super) async fn all<M: Metadata>(metadata: &M) {
    progress_is_kept(metadata).await;
    unused_rings_are_forgotten(metadata).await;
    lost_nodes(metadata).await;
    nodes_that_are_lost_while_they_leave(metadata).await;
    nodes_without_data(metadata).await;
}

async fn progress_is_kept<M: Metadata>(metadata: &M) {
    let of = change(metadata, PlacementChange::AddNode(node("m-7"))).await;
    let before = revision(metadata).await;
    let note =
        |status, progress: &MigrationProgress, now| metadata.note_migration(of.number, status, progress.clone(), now);
    let some = MigrationProgress {
        tenants_done: 1,
        tenants_total: 2,
        keys_done: 30,
        keys_total: 20,
        bytes_done: 500,
        message: format!("x{}", "ü".repeat(MIGRATION_TEXT_BYTES)),
    };
    let missing = metadata.note_migration(u64::MAX >> 1, MigrationStatus::InProgress, some.clone(), 400).await;
    assert!(is_missing(&missing), "{missing:?}");
    note(MigrationStatus::InProgress, &some, 400).await.expect("noted");
    let less = MigrationProgress { bytes_done: 499, message: String::new(), ..MigrationProgress::default() };
    let cut = MigrationProgress { keys_total: 30, message: format!("x{}", "ü".repeat(249)), ..some.clone() };
    let known = metadata.migration(of.number).await.expect("on record");
    assert_eq!((known.status, known.started_at_ms, &known.progress), (MigrationStatus::InProgress, Some(400), &cut));
    note(MigrationStatus::Pending, &less, 401).await.expect("noted");
    let known = metadata.migration(of.number).await.expect("on record");
    let kept = MigrationProgress { message: String::new(), ..cut };
    assert_eq!((known.status, known.started_at_ms, &known.progress), (MigrationStatus::InProgress, Some(400), &kept));
    note(MigrationStatus::Completed, &less, 402).await.expect("noted");
    let known = metadata.migration(of.number).await.expect("on record");
    assert_eq!((known.status, known.finished_at_ms), (MigrationStatus::Completed, Some(402)));
    note(MigrationStatus::Cancelled, &some, 403).await.expect("it has ended");
    assert_eq!(metadata.migration(of.number).await, Ok(known.clone()), "and stays as it is");
    assert_eq!(revision(metadata).await, before, "that is no change which others follow");

    let listed = metadata.migrations(None, 1000).await.expect("the changes");
    assert_eq!(listed.first(), Some(&known));
    assert!(listed.len() > 5 && listed.windows(2).all(|pair| pair[0].number > pair[1].number), "the newest first");
    assert_eq!(metadata.migrations(None, 2).await, Ok(listed[..2].to_vec()));
    assert_eq!(metadata.migrations(Some(listed[1].number), 2).await, Ok(listed[2..4].to_vec()));
    assert_eq!(metadata.migrations(None, 0).await.map(|page| page.len()), Ok(1), "a limit of 0 counts as 1");
    assert_eq!(metadata.migrations(Some(0), 2).await, Ok(Vec::new()));

    // Who has seen it complete has not seen that it was taken back.
    let raced = change(metadata, leaves("m-7")).await;
    metadata.cancel_migration(raced.number, 404).await.expect("taken back");
    end(metadata, &raced, MigrationStatus::Completed).await;
    assert_eq!(metadata.migration(raced.number).await.map(|of| of.status), Ok(MigrationStatus::Pending));
    end(metadata, &raced, MigrationStatus::Cancelled).await;
    assert_eq!(metadata.migration(raced.number).await.map(|of| of.status), Ok(MigrationStatus::Cancelled));
}

/// Versions of the ring go when nothing refers to them, and with them the nodes that have left. Their stores do not come back.
async fn unused_rings_are_forgotten<M: Metadata>(metadata: &M) {
    let (first, second) = (reported(metadata, "m-7", 70).await, StoreId([71; 16]));
    assert_eq!(metadata.admit_store(&id("m-7"), first, second).await, Ok(()));
    let one = metadata.create_tenant(tenant("m-ring")).await.expect("created");
    let left = change(metadata, leaves("m-7")).await;
    let newest = ring(metadata).await.0;
    for tenant in metadata.tenants(None, 1000).await.expect("a page") {
        if tenant.id != one.id && tenant.ring < newest {
            arrive(metadata, &tenant, vec![]).await;
        }
    }
    // A tenant, its move and its leftover each keep the versions that they name, and so their nodes.
    let before = revision(metadata).await;
    assert_eq!(metadata.forget_rings(500).await, Ok(true));
    assert_eq!(versions(metadata).await, [one.ring, newest]);
    let changes = metadata.changes(before).await.expect("changes");
    assert_eq!((changes.revision, &changes.changed[..]), (before + 1, &[Changed::Nodes][..]));
    assert_eq!(metadata.placement().await.expect("the placement").epoch, before + 1);
    assert_eq!((status(metadata, "m-5").await, status(metadata, "m-6").await), (None, None), "they had left before");
    assert_eq!(status(metadata, "m-7").await, Some(NodeStatus::Draining));
    let done = arrive(metadata, &one, vec![id("m-7")]).await;
    assert_eq!(metadata.forget_rings(501).await, Ok(false), "a leftover is of it");
    metadata.leftover_cleaned(&one.id, &id("m-7"), done.epoch).await.expect("noted");
    let back = Placed { ring: one.ring, replication_factor: 3, generation: 0 };
    let moving = step(metadata, &done.tenant, MoveTenant::Prepare(back)).await.tenant;
    assert_eq!(metadata.forget_rings(502).await, Ok(false), "a move goes there");
    let settled = step(metadata, &moving, MoveTenant::GiveUp(vec![])).await.tenant;
    assert_eq!(settled.ring, newest);

    let lower = Tenant { minimum_level: witan_kernel::tenant::Level::Quorum, ..settled };
    metadata.update_tenant(lower, true).await.expect("updated");
    let owing = async || {
        let fences = metadata.owed_fences(None, None).await.expect("the owed fences");
        let removals = metadata.owed_removals(u64::MAX >> 1, None).await.expect("the owed removals");
        (
            fences.iter().filter(|owed| owed.node == id("m-7")).count(),
            removals.iter().filter(|(_, node)| *node == id("m-7")).count(),
        )
    };
    metadata.delete_tenant(&one.id, stored(metadata, &one.id).await.version, 503, true).await.expect("deleted");
    assert_eq!(owing().await, (1, 1));
    assert_eq!(metadata.forget_rings(504).await, Ok(true));
    assert_eq!((versions(metadata).await, status(metadata, "m-7").await), (vec![newest], None));
    assert_eq!(owing().await, (0, 0), "it owes nothing any longer");
    assert_eq!(metadata.forget_rings(505).await, Ok(false), "the newest is kept");
    let late = metadata.cancel_migration(left.number, 506).await;
    assert!(is_conflict(&late), "it has left: {late:?}");
    end(metadata, &left, MigrationStatus::Completed).await;

    // Under the same name, another disk is welcome, and those of before are not.
    for gone in [first, second] {
        assert_eq!(state(metadata, gone).await, Some(StoreState::Retired));
    }
    change(metadata, PlacementChange::AddNode(node("m-7"))).await;
    for gone in [first, second] {
        let met = metadata.meet_store(&id("m-7"), gone, 9, 0).await.expect("met");
        assert_eq!((met.trust, met.state), (Trust::Unadmitted, StoreState::Retired));
    }
    let met = metadata.meet_store(&id("m-1"), first, 9, 0).await.expect("met");
    assert_eq!(met.trust, Trust::Unadmitted, "nor at another node");
    reported(metadata, "m-7", 72).await;
    let met = metadata.meet_store(&id("m-7"), first, 9, 0).await.expect("met");
    assert_eq!(met.trust, Trust::Unadmitted);
    let admitted = metadata.admit_store(&id("m-7"), StoreId([72; 16]), first).await;
    assert!(matches!(admitted, Err(StoreError::Refused(_))), "{admitted:?}");
}

/// A node that is taken for lost is waited for by nobody, and its store is never used again.
async fn lost_nodes<M: Metadata>(metadata: &M) {
    let (disk, filling) = (StoreId([72; 16]), StoreId([73; 16]));
    assert_eq!(metadata.admit_store(&id("m-7"), disk, filling).await, Ok(()));
    let one = metadata.create_tenant(tenant("m-lost")).await.expect("created");
    let newest = ring(metadata).await.0;
    let to = Placed { ring: newest, replication_factor: 3, generation: 0 };
    let preparing = step(metadata, &one, MoveTenant::Prepare(to)).await.tenant;
    let one = step(metadata, &preparing, MoveTenant::GiveUp(["m-1", "m-7"].map(id).to_vec())).await.tenant;
    let nodes_left = async || {
        let all = metadata.leftovers(Some(&one.id), None).await.expect("the leftovers");
        all.into_iter().map(|left| (left.node.to_string(), left.hand_over)).collect::<Vec<_>>()
    };
    assert_eq!(nodes_left().await.len(), 2);
    let lost = PlacementChange::RemoveNode { node: id("m-7"), force: true };
    let lost = metadata.change_placement(lost.clone(), 600).await.expect("recorded");
    assert_eq!(lost.change, PlacementChange::RemoveNode { node: id("m-7"), force: true });
    assert_eq!(metadata.migration(lost.number).await, Ok(lost.clone()));
    assert_eq!(status(metadata, "m-7").await, Some(NodeStatus::Draining));
    assert_eq!(nodes_left().await, [("m-1".to_owned(), false)], "what it has is not waited for");
    for store in [disk, filling] {
        assert_eq!(state(metadata, store).await, Some(StoreState::Retired));
        let met = metadata.meet_store(&id("m-7"), store, 9, 0).await.expect("met");
        assert_eq!((met.trust, met.state), (Trust::Unadmitted, StoreState::Retired));
    }
    let back = metadata.cancel_migration(lost.number, 601).await;
    assert!(is_conflict(&back), "{back:?}");

    // Neither a move that is given up nor one that is finished leaves anything there.
    let to = Placed { ring: ring(metadata).await.0, ..to };
    let preparing = step(metadata, &one, MoveTenant::Prepare(to)).await.tenant;
    let one = step(metadata, &preparing, MoveTenant::GiveUp(vec![id("m-7")])).await.tenant;
    arrive(metadata, &one, ["m-1", "m-7"].map(id).to_vec()).await;
    assert_eq!(nodes_left().await, [("m-1".to_owned(), false), ("m-1".to_owned(), true)]);
    for left in metadata.leftovers(None, None).await.expect("the leftovers") {
        metadata.leftover_cleaned(&left.tenant, &left.node, left.epoch).await.expect("noted");
    }
    for tenant in metadata.tenants(None, 1000).await.expect("a page") {
        if tenant.ring < to.ring {
            arrive(metadata, &tenant, vec![]).await;
        }
    }
    assert_eq!(metadata.forget_rings(602).await, Ok(true));
    assert_eq!(status(metadata, "m-7").await, None);
    assert_eq!(state(metadata, disk).await, Some(StoreState::Retired));
    end(metadata, &lost, MigrationStatus::Completed).await;
}

/// One that leaves, and will not come back, is waited for no longer.
async fn nodes_that_are_lost_while_they_leave<M: Metadata>(metadata: &M) {
    let again = change(metadata, PlacementChange::AddNode(node("m-7"))).await;
    let same = metadata.migrations(None, 1000).await.expect("the changes");
    let same: Vec<_> = same.iter().filter(|of| of.change == again.change && !of.status.has_ended()).collect();
    assert!(same.len() > 1, "the one of before has not ended, and the node has left since: {same:?}");
    assert_eq!(status(metadata, "m-7").await, Some(NodeStatus::Active));
    let disk = reported(metadata, "m-7", 74).await;
    let one = metadata.create_tenant(tenant("m-leaving")).await.expect("created");
    let left = change(metadata, leaves("m-7")).await;
    assert!(is_missing(&metadata.change_placement(leaves("nobody"), 650).await));
    arrive(metadata, &one, ["m-1", "m-7"].map(id).to_vec()).await;
    let before = ring(metadata).await;
    let joins = metadata.change_placement(PlacementChange::AddNode(node("m-7")), 650).await;
    assert!(matches!(&joins, Err(StoreError::Exists(_))), "it is leaving: {joins:?}");
    let lost = change(metadata, PlacementChange::RemoveNode { node: id("m-7"), force: true }).await;
    assert_eq!((ring(metadata).await, lost.ring), (before.clone(), before.0), "it is no member already");
    assert_eq!(state(metadata, disk).await, Some(StoreState::Retired));
    let leftovers = metadata.leftovers(Some(&one.id), None).await.expect("the leftovers");
    assert_eq!(leftovers.iter().map(|left| &left.node).collect::<Vec<_>>(), [&id("m-1")]);
    let back = metadata.cancel_migration(left.number, 651).await;
    assert!(is_conflict(&back), "it does not come back: {back:?}");
    metadata.leftover_cleaned(&one.id, &id("m-1"), leftovers[0].epoch).await.expect("noted");
    for tenant in metadata.tenants(None, 1000).await.expect("a page") {
        if tenant.ring < before.0 {
            arrive(metadata, &tenant, vec![]).await;
        }
    }
    assert_eq!(metadata.forget_rings(652).await, Ok(true));
    assert_eq!(status(metadata, "m-7").await, None);
    let forced = PlacementChange::RemoveNode { node: id("m-7"), force: true };
    for of in [lost, left] {
        end(metadata, &of, MigrationStatus::Completed).await;
    }
    assert!(is_missing(&metadata.change_placement(forced, 653).await), "it has left");
}

/// As long as nothing is stored, nodes join and leave in place, whatever versions of the ring there were.
async fn nodes_without_data<M: Metadata>(metadata: &M) {
    change(metadata, PlacementChange::AddNode(node("m-8"))).await;
    let (newest, before) = ring(metadata).await;
    assert_eq!(versions(metadata).await.len(), 2);
    let older = async || metadata.placement().await.expect("the placement").rings[0].members.clone();
    let members_before = older().await;
    metadata.add_node(node("m-9"), 700).await.expect("added");
    assert_eq!(ring(metadata).await, (newest, [&before[..], &["m-9".to_owned()]].concat()));
    metadata.put_node(node("m-91"), 700).await.expect("put");
    let one = StorageNode { virtual_nodes: 9, zone: zone("z-1"), ..node("m-1") };
    metadata.put_node(one.clone(), 701).await.expect("put");
    let members = metadata.placement().await.expect("the placement").rings[1].members.clone();
    assert!(members.contains(&one.member()) && members.contains(&node("m-91").member()), "{members:?}");
    assert_eq!(older().await, members_before, "in place is in the newest");

    metadata.remove_node(&id("m-1")).await.expect("removed");
    let members = metadata.placement().await.expect("the placement").rings;
    let gone = members.iter().all(|ring| ring.members.iter().all(|member| member.node != id("m-1")));
    assert!(gone, "it is a member of none: {members:?}");
    for known in metadata.nodes().await.expect("nodes") {
        metadata.remove_node(&known.node.id).await.expect("removed");
    }
    assert_eq!(ring(metadata).await, (newest, vec![]), "a version is not used twice");
    let twice = metadata.found_nodes(vec![node("m-1"), node("m-1")], 702).await;
    assert!(matches!(&twice, Err(StoreError::Exists(_))), "{twice:?}");
    assert_eq!(ring(metadata).await, (newest, vec![]), "all or nothing");
    metadata.found_nodes(vec![node("m-1")], 702).await.expect("founded");
    assert_eq!(ring(metadata).await, (newest, vec!["m-1".to_owned()]));
    assert_eq!(metadata.create_tenant(tenant("m-new")).await.expect("created").ring, newest);
}

/// One that has not ended is kept, however old it is.
pub(in crate::contract::metadata) async fn the_oldest_make_room<M: Metadata>(metadata: &M) {
    let (one, other) = (tenant("m-many"), tenant("m-open"));
    for of in [&one, &other] {
        metadata.create_tenant(of.clone()).await.expect("created");
    }
    let wish = |of: &Tenant| metadata.change_placement(factor(of, 1), 800);
    let open = wish(&other).await.expect("recorded");
    let mut last = open.clone();
    for _ in 0..MIGRATIONS {
        last = wish(&one).await.expect("recorded");
        end(metadata, &last, MigrationStatus::Completed).await;
    }
    let listed = metadata.migrations(None, 1000).await.expect("the changes");
    assert_eq!((listed.len(), listed[0].number), (MIGRATIONS, last.number));
    let older: Vec<_> = listed.iter().filter(|of| of.number <= open.number).collect();
    assert!(older.contains(&&open) && older.iter().all(|of| !of.status.has_ended()), "{older:?}");
    let number = open.number + 1;
    assert!(is_missing(&metadata.migration(number).await), "the oldest that have ended are gone");
}
