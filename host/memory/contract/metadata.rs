//! What every metadata store must do.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use witan_kernel::capability::{OF_FOUNDERS, SMALL_RECORDS};
use witan_kernel::hook::Hook;
use witan_kernel::name::{Era, NodeId, StoreId, TenantId, Zone};
use witan_kernel::port::{
    ARTIFACT_BYTES, BINDING_RECORD_BYTES, Changed, Changes, Claim, Commit, Component, Digest, Metadata, NODES,
    NodeOnRecord, NodeStatus, SECRETS, Secret, Secrets, Slot, StorageNode, StoreError, StoreState, Token,
};
use witan_kernel::scan::Trust;
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair, Tenant};

use super::{join_all, poll_once};

mod artifacts;
mod classes;
mod fences;
mod migrations;
mod owners;
mod pushes;
mod upkeep;

use artifacts::component;
pub use upkeep::duties_are_bounded;

/// Lets this many milliseconds pass on the store's clock.
pub type Pass<'a> = &'a dyn Fn(u64) -> Pin<Box<dyn Future<Output = ()>>>;

/// [`Pass`] for a store whose time is the machine's.
pub fn sleep(ms: u64) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(tokio::time::sleep(Duration::from_millis(ms)))
}

/// A tenant with defaults.
pub fn tenant(id: &str) -> Tenant {
    Tenant::with_defaults(TenantId::new(id).expect("valid"), 3, 1_700_000_000_123)
}

fn node(id: &str) -> StorageNode {
    let id = NodeId::new(id).expect("valid");
    let zone = Zone::default();
    StorageNode { id, host: "::1".into(), port: 50052, virtual_nodes: 150, status: NodeStatus::Active, zone }
}

fn slot(tenant: Option<&str>, hook: Hook) -> Slot {
    Slot { tenant: tenant.map(|id| TenantId::new(id).expect("valid")), hook }
}

/// The whole contract, on an empty store.
pub async fn all<M: Metadata>(metadata: &M, pass: Pass<'_>) {
    assert!(metadata.now_ms().await.expect("the time") > 1_700_000_000_000);
    assert_eq!(metadata.schema_version().await, Ok(16));
    secrets(metadata).await;
    tenants(metadata).await;
    pages_of_tenants(metadata).await;
    lost_updates(metadata).await;
    deleted_tenants(metadata).await;
    nodes(metadata).await;
    fences::owed(metadata).await;
    fences::owed_for_bindings(metadata).await;
    leases(metadata, pass).await;
    upkeep::claims(metadata, pass).await;
    artifacts::all(metadata).await;
    owners::all(metadata).await;
    classes::all(metadata).await;
    pushes::all(metadata).await;
    binding_records(metadata).await;
    tokens(metadata).await;
    each_change_is_listed(metadata).await;
    migrations::all(metadata, pass).await;
    bounds(metadata).await;
}

/// The bound on placement changes, after [`all`]. It takes thousands of transactions, so it is not tried on every way to a database.
pub async fn placement_changes_are_bounded<M: Metadata>(metadata: &M) {
    migrations::ends::the_oldest_make_room(metadata).await;
}

async fn tenants<M: Metadata>(metadata: &M) {
    let full = Tenant {
        replication_factor: 5,
        conflict_mode: ConflictMode::Siblings,
        ordering: Ordering::Clock,
        read_repair: ReadRepair::Blocking,
        default_level: Level::All,
        minimum_level: Level::Quorum,
        idempotency_outage: IdempotencyOutage::Proceed,
        idempotency_retention_ms: 61_000,
        updated_at_ms: 1_700_000_000_124,
        ..tenant(&"ü'\"%\u{1F600}".repeat(20))
    };
    assert_eq!(metadata.create_tenant(Tenant { version: 9, ..full.clone() }).await, Ok(full.clone()));
    assert_eq!(metadata.tenant(&full.id).await, Ok(Some(full.clone())));
    let again = metadata.create_tenant(tenant(full.id.as_str())).await;
    assert!(matches!(again, Err(StoreError::Exists(_))));
    assert_eq!(metadata.tenant(&full.id).await, Ok(Some(full)), "the first is kept");
    assert_eq!(metadata.tenant(&tenant("nobody").id).await, Ok(None));
}

async fn pages_of_tenants<M: Metadata>(metadata: &M) {
    let mut ids: Vec<String> = (0..25).map(|of| format!("page-{of:02}")).chain(["Z".into(), "a".into()]).collect();
    ids.push("ü'\"%\u{1F600}".repeat(20));
    for id in &ids[..27] {
        metadata.create_tenant(tenant(id)).await.expect("created");
    }
    ids.sort();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = metadata.tenants(after.as_ref(), 10).await.expect("a page");
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 10);
        after = Some(last.id.clone());
        listed.extend(page.iter().map(|tenant| tenant.id.as_str().to_owned()));
    }
    assert_eq!(listed, ids, "every one once, by its bytes");
    assert_eq!(metadata.tenants(None, 0).await.expect("a page").len(), 1, "a limit of 0 counts as 1");
}

async fn lost_updates<M: Metadata>(metadata: &M) {
    let first = metadata.create_tenant(tenant("updated")).await.expect("created");
    let change = Tenant { read_repair: ReadRepair::Blocking, created_at_ms: 1, updated_at_ms: 99, ..first.clone() };
    let second = metadata.update_tenant(change.clone(), false).await.expect("updated");
    assert_eq!(second, Tenant { version: 2, created_at_ms: first.created_at_ms, ..change.clone() });
    assert_eq!(metadata.tenant(&first.id).await, Ok(Some(second.clone())));
    let late = metadata.update_tenant(change, false).await;
    assert!(matches!(&late, Err(StoreError::Conflict(why)) if why.contains("version 2")), "{late:?}");
    assert!(matches!(metadata.update_tenant(tenant("nobody"), false).await, Err(StoreError::Missing(_))));

    let rivals =
        (1..=5).map(|factor| metadata.update_tenant(Tenant { replication_factor: factor, ..second.clone() }, false));
    let won = join_all(rivals).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1, "of rivals that have read the same version, one wins");
}

async fn deleted_tenants<M: Metadata>(metadata: &M) {
    let there = metadata.create_tenant(tenant("deleted")).await.expect("created");
    let late = metadata.delete_tenant(&there.id, 7, 50, false).await;
    assert!(matches!(&late, Err(StoreError::Conflict(why)) if why.contains("version 1")), "{late:?}");
    let deleted = metadata.delete_tenant(&there.id, 1, 50, false).await.expect("deleted");
    assert_eq!(deleted, Tenant { version: 2, updated_at_ms: 50, deleted_at_ms: Some(50), ..there.clone() });
    assert_eq!(metadata.delete_tenant(&there.id, 1, 60, false).await, Ok(deleted.clone()), "once");
    assert_eq!(metadata.tenant(&there.id).await, Ok(Some(deleted.clone())));
    let listed = metadata.tenants(None, 1000).await.expect("a page");
    assert!(listed.iter().all(|tenant| tenant.id != there.id && tenant.deleted_at_ms.is_none()));
    assert!(matches!(metadata.update_tenant(deleted, false).await, Err(StoreError::Missing(_))));
    let again = metadata.create_tenant(there).await;
    assert!(matches!(&again, Err(StoreError::Exists(why)) if why.contains("deleted")), "{again:?}");
    assert!(matches!(metadata.delete_tenant(&tenant("nobody").id, 1, 50, false).await, Err(StoreError::Missing(_))));
}

async fn leases<M: Metadata>(metadata: &M, pass: Pass<'_>) {
    let claim = |of: u8| Claim {
        node_id: NodeId::new("coordinator-1").expect("valid"),
        instance: [of; 16],
        address: format!("10.0.0.{of}:50051"),
        version: "0.1.0".into(),
        capabilities: vec!["names".into(), format!("of-{of}")],
    };
    assert_eq!(metadata.founded_with().await.expect("answered"), OF_FOUNDERS, "this program has created it");
    let first = metadata.hold_lease(claim(1), 600_000).await.expect("granted");
    assert_eq!(first.until_ms - first.now_ms, 600_000);
    let refused = metadata.hold_lease(claim(2), 600_000).await;
    assert!(matches!(&refused, Err(StoreError::Conflict(why)) if why.contains("10.0.0.1:50051")), "{refused:?}");
    let renewed = metadata.hold_lease(claim(1), 700_000).await.expect("renewed");
    assert!(renewed.until_ms > first.until_ms && renewed.fence == first.fence);
    let moved = Claim { version: "0.2.0".into(), ..claim(1) };
    assert_eq!(metadata.hold_lease(moved.clone(), 600_000).await.expect("renewed").fence, first.fence);
    let id = NodeId::new("coordinator-0").expect("valid");
    let other_id = Claim { node_id: id, capabilities: Vec::new(), ..claim(2) };
    let other = metadata.hold_lease(other_id.clone(), 600_000).await.expect("granted");
    assert!(other.fence > first.fence, "no fence is given twice in a cluster");
    let listed = metadata.coordinators().await.expect("coordinators");
    let shown: Vec<_> = listed.iter().map(|at| (at.claim.clone(), at.fence, at.is_live())).collect();
    assert_eq!(shown, [(other_id.clone(), other.fence, true), (moved.clone(), first.fence, true)]);

    metadata.release_lease(&moved.node_id, [9; 16]).await.expect("nothing to release");
    assert!(metadata.hold_lease(claim(2), 600_000).await.is_err(), "an instance cannot release another's lease");
    metadata.release_lease(&moved.node_id, moved.instance).await.expect("released");
    let listed = metadata.coordinators().await.expect("coordinators");
    assert_eq!((listed.len(), listed[1].is_live()), (2, false), "an ended one is still listed");
    let taken = metadata.hold_lease(claim(2), 1).await.expect("granted");
    assert!(taken.fence > other.fence);
    pass(20).await;
    let again = metadata.hold_lease(claim(2), 1).await.expect("granted");
    assert!(again.fence > taken.fence, "a holder's own expired lease is granted anew");
    pass(20).await;
    let rivals = join_all((3..8).map(|of| metadata.hold_lease(claim(of), 600_000))).await;
    assert_eq!(rivals.iter().filter(|result| result.is_ok()).count(), 1, "of rivals for an expired lease, one wins");
    metadata.release_lease(&other_id.node_id, other_id.instance).await.expect("released");
    assert!(metadata.hold_lease(claim(9), 0).await.is_err() && metadata.hold_lease(claim(9), u64::MAX).await.is_err());
    requirements(metadata, claim(1)).await;
}

/// What a live coordinator lacks is not required; who lacks it and comes later finds it required.
async fn requirements<M: Metadata>(metadata: &M, claim: Claim) {
    assert!(matches!(metadata.require("nothing").await, Err(StoreError::Refused(_))));
    let lacking = metadata.require(SMALL_RECORDS).await;
    assert!(matches!(&lacking, Err(StoreError::Conflict(why)) if why.contains("coordinator-1")), "{lacking:?}");
    let listed = metadata.coordinators().await.expect("coordinators");
    for live in listed.iter().filter(|at| at.is_live()) {
        metadata.release_lease(&live.claim.node_id, live.claim.instance).await.expect("released");
    }
    let able = Claim { capabilities: vec![SMALL_RECORDS.to_owned()], ..claim };
    metadata.hold_lease(able.clone(), 600_000).await.expect("granted");
    assert_eq!(metadata.require(SMALL_RECORDS).await, Ok(false), "it was not before");
    assert_eq!(metadata.require(SMALL_RECORDS).await, Ok(true));
    metadata.release_lease(&able.node_id, able.instance).await.expect("released");
    let unable = Claim { instance: [77; 16], capabilities: Vec::new(), ..able };
    metadata.hold_lease(unable.clone(), 600_000).await.expect("it is on record, and did not start on a real store");
    assert_eq!(metadata.require(SMALL_RECORDS).await, Ok(true));
    metadata.release_lease(&unable.node_id, unable.instance).await.expect("released");
}

/// The life of a node's stores, at the end of which `first` is on record again (as if by an operator's hand: under a new node).
async fn stores<M: Metadata>(metadata: &M, id: &NodeId, first: StoreId) {
    let (new, third) = (StoreId([9; 16]), StoreId([8; 16]));
    let meet = async |store, commit, before| metadata.meet_store(id, store, commit, before).await.expect("met");
    let met = async |store, commit| meet(store, commit, commit).await.trust;
    let state = async |store| {
        let all = metadata.stores().await.expect("stores");
        all.into_iter().find(|known| known.store == store).map(|known| (known.state, known.commit, known.keys))
    };
    let admit = async |from, store| metadata.admit_store(id, from, store).await;
    let replace = async |from, to| metadata.replace_store(id, from, to).await;

    let nobody = NodeId::new("nobody").expect("valid");
    assert!(matches!(metadata.meet_store(&nobody, first, 0, 0).await, Err(StoreError::Missing(_))));
    assert!(matches!(metadata.admit_store(&nobody, first, new).await, Err(StoreError::Missing(_))));
    assert!(matches!(metadata.replace_store(&nobody, first, new).await, Err(StoreError::Missing(_))));
    assert!(matches!(admit(first, new).await, Err(StoreError::Conflict(_))), "none is on record");

    let revision = async || metadata.changes(0).await.expect("changes").revision;
    let before = revision().await;
    assert_eq!(met(first, 5).await, Trust::Whole, "the first one goes on record");
    let recorded = revision().await;
    assert!(recorded > before, "others follow that");
    metadata
        .note_commits(vec![
            Commit { store: first, commit: 7, keys: Some(70) },
            Commit { store: first, commit: 6, keys: None },
            Commit { store: third, commit: 1, keys: Some(1) },
        ])
        .await
        .expect("noted");
    assert_eq!(state(first).await, Some((StoreState::Reported, 7, 70)), "the highest one is kept");
    assert_eq!(state(third).await, None, "nobody has met it");
    assert_eq!((met(first, 7).await, met(first, 8).await, revision().await), (Trust::Whole, Trust::Whole, recorded));

    // Another one serves nobody until it is admitted, and the first one ends that when it is back.
    assert_eq!(met(new, 0).await, Trust::Unadmitted);
    assert_eq!(state(new).await, None, "nothing is remembered of a store that nobody uses");
    assert!(matches!(replace(first, new).await, Err(StoreError::Conflict(_))), "it was not admitted");
    assert!(matches!(admit(third, new).await, Err(StoreError::Conflict(_))), "that is not on record");
    assert_eq!(admit(first, new).await, Ok(()));
    assert_eq!(
        (met(new, 0).await, state(new).await.map(|(state, ..)| state)),
        (Trust::Filling, Some(StoreState::Filling))
    );
    assert_eq!(met(first, 7).await, Trust::Whole);
    assert_eq!(met(new, 0).await, Trust::Unadmitted);
    assert!(matches!(replace(first, new).await, Err(StoreError::Conflict(_))), "it is not admitted any more");

    // At most one is admitted.
    assert_eq!((admit(first, third).await, admit(first, new).await), (Ok(()), Ok(())));
    assert_eq!((met(third, 0).await, met(new, 0).await), (Trust::Unadmitted, Trust::Filling));
    let before = revision().await;
    assert_eq!((replace(first, new).await, replace(first, new).await), (Ok(()), Ok(())), "once or twice");
    assert!(revision().await > before);
    assert_eq!((met(new, 3).await, met(first, 9).await), (Trust::Whole, Trust::Unadmitted));
    assert_eq!(state(first).await.map(|(state, ..)| state), Some(StoreState::Retired));
    assert!(matches!(admit(new, first).await, Err(StoreError::Refused(_))), "it was replaced");

    set_back(metadata, id, new, third).await;

    // A removed node's stores are forgotten.
    let node = metadata.nodes().await.expect("nodes").into_iter().find(|known| known.node.id == *id).expect("there");
    metadata.remove_node(id).await.expect("removed");
    assert_eq!(metadata.stores().await.expect("stores"), []);
    metadata.put_node(node.node, 11).await.expect("added");
    assert_eq!(met(first, 0).await, Trust::Whole);
}

/// A store that was set back is not used again, and may be replaced. `on_record` is the node's, and `next` takes its place.
async fn set_back<M: Metadata>(metadata: &M, id: &NodeId, on_record: StoreId, next: StoreId) {
    let (new, third) = (on_record, next);
    let meet = async |store, commit, before| metadata.meet_store(id, store, commit, before).await.expect("met");
    let met = async |store, commit| meet(store, commit, commit).await.trust;
    let state = async |store| {
        let all = metadata.stores().await.expect("stores");
        all.into_iter().find(|known| known.store == store).map(|known| (known.state, known.commit, known.keys))
    };
    let admit = async |from, store| metadata.admit_store(id, from, store).await;
    let replace = async |from, to| metadata.replace_store(id, from, to).await;
    metadata.note_commits(vec![Commit { store: new, commit: 4, keys: None }]).await.expect("noted");
    let suspect = meet(new, 3, 3).await;
    assert!(suspect.is_suspect(3) && suspect.trust == Trust::Unadmitted && suspect.commit == 4, "{suspect:?}");
    assert_eq!(met(new, 4).await, Trust::Whole, "nothing is decided before the node was asked again");
    assert_eq!((meet(new, 3, 4).await.trust, met(new, 5).await), (Trust::Unadmitted, Trust::Unadmitted));
    assert_eq!(state(new).await.map(|(state, ..)| state), Some(StoreState::SetBack));
    assert!(matches!(admit(new, new).await, Err(StoreError::Refused(_))));
    metadata.begin_era(Era([2; 16]), [40; 32], 0, 7).await.expect("begun");
    assert_eq!(
        (met(new, 3).await, state(new).await),
        (Trust::Whole, Some((StoreState::Reported, 0, 0))),
        "a restored copy"
    );
    metadata.note_commits(vec![Commit { store: new, commit: 4, keys: None }]).await.expect("noted");
    assert_eq!(meet(new, 3, 4).await.trust, Trust::Unadmitted);
    assert_eq!((admit(new, third).await, replace(new, third).await), (Ok(()), Ok(())));
    assert_eq!(met(third, 0).await, Trust::Whole);
}

async fn nodes<M: Metadata>(metadata: &M) {
    let stored = |nodes: Vec<NodeOnRecord>| nodes.into_iter().map(|n| (n.node, n.store_id)).collect::<Vec<_>>();
    let (one, two) = (node("node-1"), node("node-2"));
    let epoch = async || metadata.placement().await.expect("the placement").epoch;
    let before = epoch().await;
    assert!(before > 0);

    // All or nothing, and once.
    let twice = metadata.found_nodes(vec![one.clone(), two.clone(), one.clone()], 8).await;
    assert!(matches!(twice, Err(StoreError::Exists(_))), "{twice:?}");
    assert_eq!(stored(metadata.nodes().await.expect("nodes")), []);
    let founding = |nodes: [&StorageNode; 2]| metadata.found_nodes(nodes.map(Clone::clone).to_vec(), 9);
    let three = node("node-3");
    let (first, second) = tokio::join!(founding([&one, &two]), founding([&two, &three]));
    assert_eq!((first, second), (Ok(()), Ok(())));
    let founders: Vec<StorageNode> =
        metadata.nodes().await.expect("nodes").into_iter().map(|on_record| on_record.node).collect();
    assert!(founders == [one.clone(), two.clone()] || founders == [two.clone(), three], "{founders:?}");
    assert!(epoch().await > before);
    for founder in founders {
        metadata.remove_node(&founder.id).await.expect("removed");
    }
    let before = epoch().await;
    assert_eq!(metadata.add_node(two.clone(), 10).await, Ok(()));
    assert_eq!(metadata.put_node(one.clone(), 11).await, Ok(()));
    assert!(matches!(metadata.add_node(two.clone(), 12).await, Err(StoreError::Exists(_))));

    let with_both = epoch().await;
    assert!(with_both > before, "nodes have joined");

    let first = StoreId([7; 16]);
    stores(metadata, &one.id, first).await;

    let with_both = epoch().await;
    assert_eq!(metadata.meet_store(&one.id, StoreId([6; 16]), 0, 0).await.map(|met| met.trust), Ok(Trust::Unadmitted));
    assert_eq!(metadata.admit_store(&one.id, first, StoreId([6; 16])).await, Ok(()));
    assert_eq!(epoch().await, with_both, "another disk places no key elsewhere");
    let zone = Zone::new("eu-1.a_b").expect("valid");
    let moved = StorageNode { host: "db.example".into(), port: 1, status: NodeStatus::Draining, zone, ..one.clone() };
    assert_eq!(metadata.put_node(moved.clone(), 13).await, Ok(()));
    let listed = metadata.nodes().await.expect("nodes");
    assert_eq!((listed[0].created_at_ms, listed[0].updated_at_ms), (11, 13));
    assert_eq!(stored(listed), [(moved, Some(first)), (two.clone(), None)]);

    let moved_at = epoch().await;
    assert_eq!(metadata.remove_node(&two.id).await, Ok(()));
    assert!(epoch().await > moved_at && moved_at > with_both);
    assert!(matches!(metadata.remove_node(&two.id).await, Err(StoreError::Missing(_))));
    metadata.remove_node(&one.id).await.expect("removed");
    metadata.add_node(one.clone(), 14).await.expect("added");
    assert_eq!(stored(metadata.nodes().await.expect("nodes")), [(one, None)], "a removed node's store id is forgotten");
}

async fn binding_records<M: Metadata>(metadata: &M) {
    let own = slot(Some("cart"), Hook::ConflictResolver);
    let default = slot(None, Hook::RoutingHook);
    assert_eq!(metadata.binding_records().await, Ok(Vec::new()));
    let save = |slot: &Slot, expected, record: &str| {
        metadata.save_binding_record(slot, expected, record.to_owned(), None, false)
    };
    let first = save(&own, 0, "first").await.expect("stored");
    let theirs = save(&own, 0, "late").await;
    assert!(
        matches!(&theirs, Err(StoreError::Conflict(why)) if why.contains(&format!("version {first}"))),
        "{theirs:?}"
    );
    let of_default = save(&default, 0, "default").await.expect("stored");
    let second = save(&own, first, "second").await.expect("stored");
    assert!(second > first);
    assert!(matches!(save(&own, first, "late").await, Err(StoreError::Conflict(_))));
    let stored = metadata.binding_records().await.expect("records");
    let shown: Vec<_> = stored.iter().map(|at| (at.slot.clone(), at.version, at.record.as_str())).collect();
    assert_eq!(shown, [(default.clone(), of_default, "default"), (own.clone(), second, "second")]);
    assert!(!format!("{stored:?}").contains("second"), "it may hold a secret");
    assert_eq!(metadata.binding_record(&own).await, Ok(Some(stored[1].clone())));

    assert!(matches!(metadata.remove_binding_record(&own, first, false).await, Err(StoreError::Conflict(_))));
    metadata.remove_binding_record(&own, second, false).await.expect("removed");
    metadata.remove_binding_record(&own, second, false).await.expect("nothing to remove is no error");
    assert_eq!(metadata.binding_record(&own).await, Ok(None));
    assert!(matches!(save(&own, second, "late").await, Err(StoreError::Conflict(_))), "it was removed");
    let anew = save(&own, 0, "anew").await.expect("stored");
    assert!(anew > second, "no version comes twice");
    let rivals = join_all((0..5).map(|of| save(&own, anew, &format!("of {of}")))).await;
    assert_eq!(rivals.iter().filter(|result| result.is_ok()).count(), 1, "one wins");
    let large = "x".repeat(BINDING_RECORD_BYTES + 1);
    assert!(matches!(save(&own, 0, &large).await, Err(StoreError::Refused(_))));

    // A record requires the artifacts that it names, and protects them.
    let (there, missing) = (Digest([1; 32]), Digest([99; 32]));
    let now = metadata.binding_record(&own).await.expect("a record").expect("the winner's").version;
    let naming = format!("{{\"digest\":\"{there}\"}}");
    let save = |expected, digest| metadata.save_binding_record(&own, expected, naming.clone(), Some(digest), false);
    assert!(matches!(save(now, missing).await, Err(StoreError::Missing(_))));
    let naming_it = save(now, there).await.expect("it is there");
    assert!(matches!(metadata.remove_artifact(None, there).await, Err(StoreError::Refused(_))));
    metadata.save_binding_record(&own, naming_it, "anew".into(), None, false).await.expect("stored");
    metadata.remove_artifact(None, there).await.expect("no record names it");
}

async fn tokens<M: Metadata>(metadata: &M) {
    let token = |id: &str| Token {
        id: id.into(),
        hash: [id.len() as u8; 32],
        tenant: Some(tenant("ü").id),
        scopes: u32::MAX,
        label: "für Ünal".into(),
        created_at_ms: 5,
        expires_at_ms: Some(6),
    };
    let bare = Token { tenant: None, label: String::new(), expires_at_ms: None, ..token("a-0") };
    metadata.create_token(token("a-1"), None).await.expect("created");
    metadata.create_token(bare.clone(), None).await.expect("created");
    metadata.create_token(token("b"), None).await.expect("created");
    assert!(matches!(metadata.create_token(token("b"), None).await, Err(StoreError::Exists(_))));
    assert_eq!(metadata.token("b").await, Ok(Some(token("b"))));
    assert_eq!(metadata.token("nobody").await, Ok(None));
    assert_eq!(metadata.tokens(None, 2).await, Ok(vec![bare, token("a-1")]));
    assert_eq!(metadata.tokens(Some("a-1"), 2).await, Ok(vec![token("b")]));
    metadata.remove_token("b").await.expect("removed");
    assert!(matches!(metadata.remove_token("b").await, Err(StoreError::Missing(_))));
    assert_eq!(metadata.token("b").await, Ok(None));
    // A share counts the tokens of the same tenant alone.
    assert!(matches!(metadata.create_token(token("c"), Some(1)).await, Err(StoreError::Refused(_))));
    metadata.create_token(Token { tenant: Some(tenant("other").id), ..token("d") }, Some(1)).await.expect("another's");
    metadata.create_token(token("c"), Some(2)).await.expect("within the share");
    metadata.create_token(Token { tenant: None, ..token("e") }, Some(0)).await.expect("of no tenant");
    for added in ["c", "d", "e"] {
        metadata.remove_token(added).await.expect("removed");
    }
    for wrong in ["", "A", "a_b", &"x".repeat(65)] {
        assert!(matches!(metadata.create_token(token(wrong), None).await, Err(StoreError::Refused(_))), "{wrong:?}");
    }
    let long = Token { label: "x".repeat(129), ..token("long") };
    assert!(matches!(metadata.create_token(long, None).await, Err(StoreError::Refused(_))));
    assert!(!format!("{:?}", token("b")).contains("hash"));
}

async fn each_change_is_listed<M: Metadata>(metadata: &M) {
    let start = metadata.changes(u64::MAX).await.expect("the revision");
    assert!(!start.complete && start.changed.is_empty(), "a future revision has no changes");
    let mut hint = metadata.hint();
    let one = tenant("listed");
    metadata.create_tenant(one.clone()).await.expect("created");
    assert!(poll_once(&mut hint.given()).await.is_some(), "own changes are hinted at once");
    let updated = metadata.update_tenant(one.clone(), false).await.expect("updated");
    metadata.add_node(node("listed"), 1).await.expect("added");
    metadata.delete_tenant(&one.id, updated.version, 9, false).await.expect("deleted");
    metadata.put_artifact(component(77, Hook::RoutingHook)).await.expect("stored");
    let place = slot(Some("listed"), Hook::RoutingHook);
    let version = metadata.save_binding_record(&place, 0, "{}".into(), None, false).await.expect("stored");
    metadata
        .save_binding_record(&slot(None, Hook::RoutingHook), version, "{}".into(), None, false)
        .await
        .expect_err("conflict");
    metadata.rotate_secret([3; 32], 1).await.expect("rotated");
    let token = Token {
        id: "listed".into(),
        hash: [0; 32],
        tenant: None,
        scopes: 0,
        label: String::new(),
        created_at_ms: 0,
        expires_at_ms: None,
    };
    metadata.create_token(token, None).await.expect("created");
    let listed = metadata.changes(start.revision).await.expect("changes");
    let expected = Changes {
        revision: start.revision + 8,
        complete: true,
        changed: vec![
            Changed::Nodes,
            Changed::Tenant(one.id.clone()),
            Changed::Artifacts,
            Changed::Binding(place.clone()),
            Changed::Secrets,
            Changed::Tokens,
        ],
    };
    assert_eq!(listed, expected, "each once, in the order of its last change, without what was refused");
    let nothing = metadata.changes(listed.revision).await.expect("changes");
    assert_eq!((nothing.revision, nothing.complete, nothing.changed), (listed.revision, true, vec![]));

    // What changes nothing is no change.
    metadata.delete_tenant(&one.id, 1, 9, false).await.expect("deleted already");
    metadata.put_artifact(component(77, Hook::RoutingHook)).await.expect("there already");
    metadata.secrets([1; 32], 1).await.expect("secrets");
    metadata.meet_store(&node("listed").id, StoreId([1; 16]), 0, 0).await.expect("recorded");
    metadata.meet_store(&node("listed").id, StoreId([1; 16]), 0, 0).await.expect("there already");
    metadata.remove_artifact(None, Digest([77; 32])).await.expect("removed");
    metadata.remove_binding_record(&place, version, false).await.expect("removed");
    metadata.remove_binding_record(&place, version, false).await.expect("there is none");
    metadata.remove_node(&node("listed").id).await.expect("removed");
    metadata.remove_token("listed").await.expect("removed");
    let listed = metadata.changes(listed.revision).await.expect("changes");
    let expected = [Changed::Artifacts, Changed::Binding(place), Changed::Nodes, Changed::Tokens];
    assert_eq!((listed.revision, &listed.changed[..]), (nothing.revision + 5, &expected[..]));
}

async fn secrets<M: Metadata>(metadata: &M) {
    let starts = join_all((1..=5).map(|of| metadata.secrets([of; 32], 7))).await;
    let first = starts[0].clone().expect("secrets");
    assert_eq!((first.era, first.keys.len(), first.keys[0].id), (Era::default(), 1, 1));
    assert!(starts.into_iter().all(|answer| answer.as_ref() == Ok(&first)), "all that start at once have the same");
    assert_eq!(metadata.secrets([99; 32], 8).await, Ok(first.clone()));
    let rotated = metadata.rotate_secret([50; 32], 9).await.expect("rotated");
    assert_eq!((rotated.keys[0].id, rotated.keys[0].key, &rotated.keys[1]), (2, [50; 32], &first.keys[0]));
    for of in 0..SECRETS as u8 {
        metadata.rotate_secret([of; 32], 9).await.expect("rotated");
    }
    let kept = metadata.secrets([99; 32], 10).await.expect("secrets");
    assert_eq!((kept.keys.len(), kept.keys[0].id), (SECRETS, SECRETS as u32 + 2));
    assert!(!format!("{:?}", Secret { key: [77; 32], ..kept.keys[0].clone() }).contains("77"));

    let before = metadata.changes(0).await.expect("changes").revision;
    metadata.begin_era(Era([3; 16]), [60; 32], 0, 11).await.expect("begun");
    let only = Secret { id: SECRETS as u32 + 3, key: [60; 32] };
    assert_eq!(metadata.secrets([99; 32], 12).await, Ok(Secrets { era: Era([3; 16]), keys: vec![only.clone()] }));
    let changed = metadata.changes(before).await.expect("changes").changed;
    assert!(changed.contains(&Changed::Secrets) && changed.contains(&Changed::Nodes), "{changed:?}");
    let rotated = metadata.rotate_secret([61; 32], 13).await.expect("rotated");
    assert_eq!((rotated.era, &rotated.keys[1]), (Era([3; 16]), &only), "an era outlives its secrets");

    // Above what nodes are fenced at.
    let newest = metadata.changes(u64::MAX).await.expect("the revision").revision;
    metadata.begin_era(Era([4; 16]), [62; 32], newest + 1000, 14).await.expect("begun");
    let missed = metadata.changes(newest).await.expect("changes");
    assert!(missed.revision > newest + 1000 && missed.complete, "{missed:?}");
    assert!(missed.changed.contains(&Changed::Secrets), "{missed:?}");
}

async fn bounds<M: Metadata>(metadata: &M) {
    let refused = |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Refused(_))), "{result:?}");
    refused(metadata.create_tenant(Tenant { replication_factor: 6, ..tenant("six") }).await.map(drop));
    refused(metadata.add_node(StorageNode { host: "x".repeat(256), ..node("long") }, 1).await);
    refused(metadata.put_node(StorageNode { virtual_nodes: 0, ..node("none") }, 1).await);
    refused(metadata.put_artifact(Component { bytes: Bytes::new(), ..component(20, Hook::RoutingHook) }).await);
    let large = Bytes::from(vec![0; ARTIFACT_BYTES + 1]);
    refused(metadata.put_artifact(Component { bytes: large, ..component(20, Hook::RoutingHook) }).await);
    let there = metadata.nodes().await.expect("nodes").len();
    for of in there..NODES {
        metadata.add_node(node(&format!("many-{of}")), 1).await.expect("room");
    }
    refused(metadata.add_node(node("one-more"), 1).await);
    refused(metadata.put_node(node("one-more"), 1).await);
    assert_eq!(metadata.put_node(node("many-500"), 2).await, Ok(()), "one that is there can change");
}
