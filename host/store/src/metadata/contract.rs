//! What every metadata store must do, whatever it is made of.

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{NodeStatus, StorageNode, StoreError};
use witan_kernel::tenant::{ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair, Tenant};

use super::{Artifact, Digest, HISTORY, Metadata, Mode, NODES, OnFault, SECRETS, Secret, Slot, Terms};
use crate::testing::join_all;

pub(crate) fn tenant(id: &str) -> Tenant {
    Tenant::with_defaults(TenantId::new(id).expect("valid"), 3, 1_700_000_000_123)
}

fn node(id: &str) -> StorageNode {
    let id = NodeId::new(id).expect("valid");
    StorageNode { id, host: "::1".into(), port: 50052, virtual_nodes: 150, status: NodeStatus::Active }
}

fn artifact(of: u8, hook: Hook) -> Artifact {
    let bytes = Bytes::from(vec![of; 1000 + usize::from(of)]);
    let digest = Digest([of; 32]);
    Artifact { digest, name: format!("plugin-{of}"), version: "0.1.0".into(), hook, bytes, created_at_ms: 5 }
}

fn terms(slot: &Slot, of: u8) -> Terms {
    Terms {
        slot: slot.clone(),
        digest: Digest([of; 32]),
        configuration: Bytes::from_static(b"\x00secret\xff"),
        on_fault: OnFault::Native,
        mode: Mode::Active,
        by_name: None,
        created_at_ms: 6,
    }
}

fn slot(tenant: Option<&str>, hook: Hook) -> Slot {
    Slot { tenant: tenant.map(|id| TenantId::new(id).expect("valid")), hook }
}

/// The whole contract, on an empty store.
pub(crate) async fn all<M: Metadata>(metadata: &M) {
    assert!(metadata.now_ms().await.expect("the time") > 1_700_000_000_000);
    assert_eq!(metadata.schema_version().await, Ok(1));
    tenants(metadata).await;
    pages_of_tenants(metadata).await;
    lost_updates(metadata).await;
    nodes(metadata).await;
    artifacts(metadata).await;
    bindings(metadata).await;
    binding_records(metadata).await;
    a_long_history(metadata).await;
    secrets(metadata).await;
    bounds(metadata).await;
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
        updated_at_ms: 1_700_000_000_124,
        ..tenant(&"ü'\"%\u{1F600}".repeat(20))
    };
    assert_eq!(metadata.create_tenant(Tenant { version: 9, ..full.clone() }).await, Ok(full.clone()));
    assert_eq!(metadata.tenant(&full.id).await, Ok(Some(full.clone())));
    let again = metadata.create_tenant(tenant(full.id.as_str())).await;
    assert!(matches!(again, Err(StoreError::Exists(_))));
    assert_eq!(metadata.tenant(&full.id).await, Ok(Some(full)), "the first stands");
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
    assert_eq!(metadata.tenants(None, 0).await.expect("a page").len(), 1, "no page is empty for want of a limit");
}

async fn lost_updates<M: Metadata>(metadata: &M) {
    let first = metadata.create_tenant(tenant("updated")).await.expect("created");
    let change = Tenant { read_repair: ReadRepair::Blocking, created_at_ms: 1, updated_at_ms: 99, ..first.clone() };
    let second = metadata.update_tenant(change.clone()).await.expect("updated");
    assert_eq!(second, Tenant { version: 2, created_at_ms: first.created_at_ms, ..change.clone() });
    assert_eq!(metadata.tenant(&first.id).await, Ok(Some(second.clone())));
    let late = metadata.update_tenant(change).await;
    assert!(matches!(&late, Err(StoreError::Conflict(why)) if why.contains("version 2")), "{late:?}");
    assert!(matches!(metadata.update_tenant(tenant("nobody")).await, Err(StoreError::Missing(_))));

    let rivals = (1..=5).map(|factor| metadata.update_tenant(Tenant { replication_factor: factor, ..second.clone() }));
    let won = join_all(rivals).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1, "of rivals that have read the same version, one wins");
}

async fn nodes<M: Metadata>(metadata: &M) {
    let stored = |nodes: Vec<super::NodeOnRecord>| nodes.into_iter().map(|n| (n.node, n.store_id)).collect::<Vec<_>>();
    let (one, two) = (node("node-1"), node("node-2"));
    assert_eq!(metadata.add_node(two.clone(), 10).await, Ok(()));
    assert_eq!(metadata.put_node(one.clone(), 11).await, Ok(()));
    assert!(matches!(metadata.add_node(two.clone(), 12).await, Err(StoreError::Exists(_))));

    let told = StoreId([7; 16]);
    assert_eq!(metadata.record_store_id(&one.id, told).await, Ok(told));
    assert_eq!(metadata.record_store_id(&one.id, StoreId([8; 16])).await, Ok(told), "the first is on record");
    let nobody = NodeId::new("nobody").expect("valid");
    assert!(matches!(metadata.record_store_id(&nobody, told).await, Err(StoreError::Missing(_))));

    let moved = StorageNode { host: "db.example".into(), port: 1, status: NodeStatus::Draining, ..one.clone() };
    assert_eq!(metadata.put_node(moved.clone(), 13).await, Ok(()));
    let listed = metadata.nodes().await.expect("nodes");
    assert_eq!((listed[0].created_at_ms, listed[0].updated_at_ms), (11, 13));
    assert_eq!(stored(listed), [(moved, Some(told)), (two.clone(), None)]);

    assert_eq!(metadata.remove_node(&two.id).await, Ok(()));
    assert!(matches!(metadata.remove_node(&two.id).await, Err(StoreError::Missing(_))));
    metadata.remove_node(&one.id).await.expect("removed");
    metadata.add_node(one.clone(), 14).await.expect("added");
    assert_eq!(stored(metadata.nodes().await.expect("nodes")), [(one, None)], "a node that left is forgotten");
}

async fn artifacts<M: Metadata>(metadata: &M) {
    let hooks = [Hook::ConflictResolver, Hook::ConsistencyPolicy, Hook::RoutingHook];
    for (of, hook) in (1..).zip(hooks) {
        assert_eq!(metadata.put_artifact(artifact(of, hook)).await, Ok(()));
    }
    let other_name = Artifact { name: "other".into(), ..artifact(1, hooks[0]) };
    assert_eq!(metadata.put_artifact(other_name).await, Ok(()));
    assert_eq!(
        metadata.artifact(Digest([1; 32])).await,
        Ok(Some(artifact(1, hooks[0]))),
        "the same bytes stay as they are"
    );
    assert_eq!(metadata.artifact(Digest([9; 32])).await, Ok(None));
    let first = metadata.artifacts(None, 2).await.expect("a page");
    let rest = metadata.artifacts(Some(first[1].digest), 2).await.expect("a page");
    let listed: Vec<_> =
        first.into_iter().chain(rest).map(|entry| (entry.digest.0[0], entry.size, entry.hook)).collect();
    assert_eq!(listed, [(1, 1001, hooks[0]), (2, 1002, hooks[1]), (3, 1003, hooks[2])]);
    assert!(matches!(metadata.remove_artifact(Digest([9; 32])).await, Err(StoreError::Missing(_))));
}

async fn binding_records<M: Metadata>(metadata: &M) {
    let own = slot(Some("cart"), Hook::ConflictResolver);
    let default = slot(None, Hook::ConflictResolver);
    assert_eq!(metadata.binding_records().await, Ok(Vec::new()));
    metadata.save_binding_record(&own, "first".to_owned()).await.expect("stored");
    metadata.save_binding_record(&default, "default".to_owned()).await.expect("stored");
    metadata.save_binding_record(&own, "second".to_owned()).await.expect("stored");
    assert_eq!(metadata.binding_records().await, Ok(vec!["default".to_owned(), "second".to_owned()]));
    metadata.remove_binding_record(&own).await.expect("removed");
    metadata.remove_binding_record(&own).await.expect("nothing to remove is no error");
    assert_eq!(metadata.binding_records().await, Ok(vec!["default".to_owned()]));
}

async fn bindings<M: Metadata>(metadata: &M) {
    let resolver = |of| artifact(of, Hook::ConflictResolver);
    for of in 11..=14 {
        metadata.put_artifact(resolver(of)).await.expect("stored");
    }
    let own = slot(Some("cart"), Hook::ConflictResolver);
    let missing = metadata.bind(terms(&own, 99)).await;
    assert!(matches!(missing, Err(StoreError::Missing(_))));
    let policy = slot(Some("cart"), Hook::ConsistencyPolicy);
    assert!(matches!(metadata.bind(terms(&policy, 11)).await, Err(StoreError::Conflict(_))));
    assert!(matches!(metadata.rollback(&own, 0).await, Err(StoreError::Missing(_))));

    let first = metadata.bind(terms(&own, 11)).await.expect("bound");
    let canary = Terms { mode: Mode::Canary { percent: 10 }, by_name: Some("plugin-12".into()), ..terms(&own, 12) };
    let second = metadata.bind(canary.clone()).await.expect("bound");
    assert_eq!((first.number, first.previous, second.number, second.previous), (1, 0, 2, 1));
    assert_eq!(second.terms, canary);
    for (tenant, hook, of) in
        [(None, Hook::RoutingHook, 3), (None, Hook::ConflictResolver, 1), (Some("b"), Hook::ConsistencyPolicy, 2)]
    {
        metadata.bind(terms(&slot(tenant, hook), of)).await.expect("bound");
    }
    let in_force = |page: Vec<super::Binding>| page.into_iter().map(|b| b.terms.digest.0[0]).collect::<Vec<_>>();
    let page = metadata.bindings(None, 3).await.expect("a page");
    let after = page[2].terms.slot.clone();
    assert_eq!(in_force(page), [1, 3, 2]);
    assert_eq!(in_force(metadata.bindings(Some(&after), 3).await.expect("a page")), [12]);

    // Both the one in force and the one it can be rolled back to are held.
    for of in [11, 12] {
        assert!(matches!(metadata.remove_artifact(Digest([of; 32])).await, Err(StoreError::Conflict(_))));
    }
    assert!(matches!(metadata.rollback(&own, 1).await, Err(StoreError::Conflict(_))), "1 is not in force");
    assert_eq!(metadata.rollback(&own, 2).await, Ok(Some(first.clone())));
    let third = metadata.bind(terms(&own, 13)).await.expect("bound");
    assert_eq!((third.number, third.previous), (3, 1), "no number is given twice; what was in force is the one before");
    assert_eq!(metadata.binding(&own, 2).await, Ok(Some(second.clone())));
    assert_eq!(metadata.binding_history(&own).await, Ok(vec![third, second, first.clone()]));

    metadata.remove_artifact(Digest([12; 32])).await.expect("no longer held");
    assert_eq!(metadata.binding(&own, 2).await, Ok(None), "and what named it is forgotten");
    assert_eq!(metadata.rollback(&own, 3).await, Ok(Some(first)));
    assert_eq!(metadata.rollback(&own, 1).await, Ok(None), "before the first, nothing was bound");
    assert!(matches!(metadata.rollback(&own, 1).await, Err(StoreError::Missing(_))));
    assert_eq!(metadata.bind(terms(&own, 14)).await.map(|b| (b.number, b.previous)), Ok((4, 0)));
}

async fn a_long_history<M: Metadata>(metadata: &M) {
    let place = slot(Some("busy"), Hook::ConflictResolver);
    let most = HISTORY as u64;
    for number in 1..=most + 5 {
        assert_eq!(metadata.bind(terms(&place, 13)).await.map(|binding| binding.number), Ok(number));
    }
    let history = metadata.binding_history(&place).await.expect("a history");
    assert_eq!((history.len(), history[0].number, history[HISTORY - 1].number), (HISTORY, most + 5, 6));
    for number in (6..=most + 5).rev().take(HISTORY - 1) {
        assert!(metadata.rollback(&place, number).await.is_ok());
    }
    assert!(matches!(metadata.rollback(&place, 6).await, Err(StoreError::Missing(_))), "5 has been forgotten");
    assert_eq!(metadata.bind(terms(&place, 13)).await.map(|b| (b.number, b.previous)), Ok((most + 6, 6)));
}

async fn secrets<M: Metadata>(metadata: &M) {
    let starts = join_all((1..=5).map(|of| metadata.secrets([of; 32], 7))).await;
    let first = starts[0].clone().expect("secrets");
    assert_eq!((first.len(), first[0].id), (1, 1));
    assert!(starts.into_iter().all(|told| told.as_ref() == Ok(&first)), "all that start at once have the same");
    assert_eq!(metadata.secrets([99; 32], 8).await, Ok(first.clone()));
    let rotated = metadata.rotate_secret([50; 32], 9).await.expect("rotated");
    assert_eq!((rotated[0].id, rotated[0].key, &rotated[1]), (2, [50; 32], &first[0]));
    for of in 0..SECRETS as u8 {
        metadata.rotate_secret([of; 32], 9).await.expect("rotated");
    }
    let kept = metadata.secrets([99; 32], 10).await.expect("secrets");
    assert_eq!((kept.len(), kept[0].id), (SECRETS, SECRETS as u32 + 2));
    assert!(!format!("{:?}", Secret { key: [77; 32], ..kept[0].clone() }).contains("77"));
    let shown = format!("{:?}", terms(&slot(None, Hook::RoutingHook), 1));
    assert!(!shown.contains("secret\\") && shown.contains("configuration_bytes: 8"), "{shown}");
}

async fn bounds<M: Metadata>(metadata: &M) {
    let refused = |told: Result<(), StoreError>| assert!(matches!(told, Err(StoreError::Refused(_))), "{told:?}");
    refused(metadata.create_tenant(Tenant { replication_factor: 6, ..tenant("six") }).await.map(drop));
    refused(metadata.add_node(StorageNode { host: "x".repeat(256), ..node("long") }, 1).await);
    refused(metadata.put_node(StorageNode { virtual_nodes: 0, ..node("none") }, 1).await);
    refused(metadata.put_artifact(Artifact { bytes: Bytes::new(), ..artifact(20, Hook::RoutingHook) }).await);
    let large = Bytes::from(vec![0; super::ARTIFACT_BYTES + 1]);
    refused(metadata.put_artifact(Artifact { bytes: large, ..artifact(20, Hook::RoutingHook) }).await);
    let place = slot(None, Hook::RoutingHook);
    let configuration = Bytes::from(vec![0; super::CONFIGURATION_BYTES + 1]);
    refused(metadata.bind(Terms { configuration, ..terms(&place, 3) }).await.map(drop));
    refused(metadata.bind(Terms { mode: Mode::Canary { percent: 101 }, ..terms(&place, 3) }).await.map(drop));
    let there = metadata.nodes().await.expect("nodes").len();
    for of in there..NODES {
        metadata.add_node(node(&format!("many-{of}")), 1).await.expect("room");
    }
    refused(metadata.add_node(node("one-more"), 1).await);
    refused(metadata.put_node(node("one-more"), 1).await);
    assert_eq!(metadata.put_node(node("many-500"), 2).await, Ok(()), "one that is there can change");
}
