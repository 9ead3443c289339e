//! The contract of what storage nodes owe.

use witan_kernel::hook::Hook;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{Metadata, OwedFence};
use witan_kernel::tenant::{Level, ReadRepair, Tenant};

use super::{node, slot, tenant};

/// A change that needs fences is recorded with what every node owes for it; what a node has is forgotten.
pub(super) async fn owed<M: Metadata>(metadata: &M) {
    let tenant = metadata.create_tenant(tenant("fenced")).await.expect("created");
    metadata.add_node(node("node-9"), 15).await.expect("added");
    let owed = async |of: Option<&TenantId>| {
        let owed = metadata.owed_fences(of, None).await.expect("the owed fences");
        owed.into_iter().map(|owed| (owed.node.to_string(), owed.epoch, owed.level)).collect::<Vec<_>>()
    };
    let newest = async || metadata.changes(u64::MAX).await.expect("the revision").revision;
    assert_eq!(owed(None).await, []);

    // Without fences, or where no promise depends on it, nothing is owed.
    let with = |of: &Tenant, level| Tenant { minimum_level: level, ..of.clone() };
    let second = metadata.update_tenant(with(&tenant, Level::Quorum), false).await.expect("updated");
    let other = Tenant { default_level: Level::All, read_repair: ReadRepair::Blocking, ..second };
    let third = metadata.update_tenant(other, true).await.expect("updated");
    assert_eq!(owed(None).await, []);

    let fourth = metadata.update_tenant(with(&third, Level::All), true).await.expect("updated");
    let first_change = newest().await;
    let both = |epoch, level| ["node-1", "node-9"].map(|node| (node.to_owned(), epoch, level)).to_vec();
    assert_eq!(owed(Some(&tenant.id)).await, both(first_change, Level::Quorum));

    // A later change is owed in place of the first, with the least level of both.
    let fifth = metadata.update_tenant(with(&fourth, Level::One), true).await.expect("updated");
    let second_change = newest().await;
    assert_eq!(owed(None).await, both(second_change, Level::Quorum));
    let (one, nine) = (NodeId::new("node-1").expect("valid"), NodeId::new("node-9").expect("valid"));
    metadata.fence_raised(Some(&tenant.id), &one, first_change).await.expect("noted");
    assert_eq!(owed(None).await, both(second_change, Level::Quorum), "that of the earlier change is not enough");
    metadata.fence_raised(Some(&tenant.id), &one, second_change).await.expect("noted");
    assert_eq!(owed(None).await, [("node-9".to_owned(), second_change, Level::Quorum)]);
    assert_eq!(newest().await, second_change, "that is no change which others follow");

    let deleted = metadata.delete_tenant(&tenant.id, fifth.version, 60, true).await.expect("deleted");
    assert_eq!(owed(None).await, both(newest().await, Level::One));
    let removals = async |by| metadata.owed_removals(by, None).await.expect("the owed removals");
    let owing = |node: &NodeId| (tenant.id.clone(), node.clone());
    assert_eq!(removals(59).await, [], "it was deleted later");
    assert_eq!(removals(60).await, [owing(&one), owing(&nine)]);
    assert_eq!(metadata.owed_removals(60, Some(owing(&one))).await, Ok(vec![owing(&nine)]), "the next page");
    let next = metadata.owed_fences(None, Some((Some(tenant.id.clone()), one.clone()))).await.expect("the next page");
    assert_eq!(next.iter().map(|owed| &owed.node).collect::<Vec<_>>(), [&nine]);
    assert_eq!(metadata.owed_fences(None, Some((Some(tenant.id.clone()), nine.clone()))).await, Ok(Vec::new()));
    metadata.records_removed(&tenant.id, &one).await.expect("noted");
    assert_eq!(removals(u64::MAX >> 1).await, [owing(&nine)]);
    assert_eq!(metadata.delete_tenant(&tenant.id, deleted.version, 61, true).await, Ok(deleted), "once");
    let nobody = TenantId::new("nobody").expect("valid");
    assert_eq!(owed(Some(&nobody)).await, []);
    metadata.remove_node(&nine).await.expect("removed");
    let left = owed(Some(&tenant.id)).await;
    assert_eq!(left.len(), 1, "a removed node owes nothing: {left:?}");
    assert_eq!(removals(60).await, []);
    metadata.fence_raised(Some(&tenant.id), &one, newest().await).await.expect("noted");
    assert_eq!(owed(None).await, []);
}

/// A change of what decides about levels or about what is stored is recorded with what every node owes for it, of a tenant or of all.
pub(super) async fn owed_for_bindings<M: Metadata>(metadata: &M) {
    let strict = Tenant { minimum_level: Level::Quorum, ..tenant("bound") };
    let strict = metadata.create_tenant(strict).await.expect("created");
    let save = async |tenant, hook, expected, fenced| {
        let saved = metadata.save_binding_record(&slot(tenant, hook), expected, "{}".to_owned(), None, fenced).await;
        saved.expect("stored")
    };
    let owed = async |of: Option<&TenantId>| metadata.owed_fences(of, None).await.expect("the owed fences");
    let shown = |owed: &OwedFence| (owed.tenant.clone(), owed.node.to_string(), owed.epoch, owed.level);
    let name = |text: &str| Some(TenantId::new(text).expect("valid"));
    assert_eq!(owed(None).await, []);

    let unfenced = save(Some("bound"), Hook::ConsistencyPolicy, 0, false).await;
    let routing = save(Some("bound"), Hook::RoutingHook, 0, true).await;
    assert_eq!(owed(None).await, [], "without fences, and where nothing is decided about levels");

    let policy = save(Some("bound"), Hook::ConsistencyPolicy, unfenced, true).await;
    let of_nobody = save(Some("nobody-yet"), Hook::ConflictResolver, 0, true).await;
    let of_all = save(None, Hook::ConflictResolver, 0, true).await;
    let node = || "node-1".to_owned();
    let expected = [
        (None, node(), of_all, Level::One),
        (name("bound"), node(), policy, Level::Quorum),
        (name("nobody-yet"), node(), of_nobody, Level::One),
    ];
    let found: Vec<_> = owed(None).await.iter().map(shown).collect();
    assert_eq!(found, expected, "those for all tenants first");
    assert_eq!(owed(Some(&strict.id)).await.iter().map(shown).collect::<Vec<_>>(), expected[1..2]);
    let one = NodeId::new("node-1").expect("valid");
    let next = metadata.owed_fences(None, Some((None, one.clone()))).await.expect("the next page");
    assert_eq!(next.iter().map(shown).collect::<Vec<_>>(), expected[1..]);

    metadata.remove_binding_record(&slot(Some("bound"), Hook::ConsistencyPolicy), policy, true).await.expect("removed");
    let newest = metadata.changes(u64::MAX).await.expect("the revision").revision;
    let again = metadata.remove_binding_record(&slot(Some("bound"), Hook::ConsistencyPolicy), policy, true).await;
    again.expect("nothing to remove is no error");
    let left = owed(Some(&strict.id)).await;
    assert_eq!(left.iter().map(shown).collect::<Vec<_>>(), [(name("bound"), node(), newest, Level::Quorum)], "once");

    for (of, epoch) in [(None, of_all), (name("bound"), newest), (name("nobody-yet"), of_nobody)] {
        metadata.fence_raised(of.as_ref(), &one, epoch - 1).await.expect("noted");
        assert!(owed(None).await.iter().any(|owed| owed.tenant == of), "that of an earlier change is not enough");
        metadata.fence_raised(of.as_ref(), &one, epoch).await.expect("noted");
        assert!(owed(None).await.iter().all(|owed| owed.tenant != of));
    }
    assert_eq!(owed(None).await, []);
    let left = [
        (slot(Some("bound"), Hook::RoutingHook), routing),
        (slot(Some("nobody-yet"), Hook::ConflictResolver), of_nobody),
        (slot(None, Hook::ConflictResolver), of_all),
    ];
    for (slot, version) in left {
        metadata.remove_binding_record(&slot, version, false).await.expect("removed");
    }
    assert_eq!(owed(None).await, [], "without fences");
}
