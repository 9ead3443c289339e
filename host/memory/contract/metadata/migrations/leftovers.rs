//! What moves leave on nodes.

use witan_kernel::name::NodeId;
use witan_kernel::placement::Placed;
use witan_kernel::port::{Leftover, Metadata, MoveTenant};
use witan_kernel::tenant::Tenant;

use super::super::tenant;
use super::{arrive, id, revision, ring, step, stored};

pub(super) async fn all<M: Metadata>(metadata: &M) {
    are_left(metadata).await;
    are_cleaned(metadata).await;
    are_none_of_deleted_tenants(metadata).await;
}

async fn shown<M: Metadata>(metadata: &M, of: Option<&Tenant>) -> Vec<(String, String, u64, bool)> {
    let all = metadata.leftovers(of.map(|tenant| &tenant.id), None).await.expect("the leftovers");
    all.into_iter()
        .map(|left| (left.tenant.as_str().to_owned(), left.node.to_string(), left.epoch, left.hand_over))
        .collect()
}

/// By a move that is finished, and by one that is given up, in the transaction that publishes it.
async fn are_left<M: Metadata>(metadata: &M) {
    let one = stored(metadata, &tenant("m-b").id).await;
    assert_eq!(one.ring, 1);
    let newest = Placed { ring: ring(metadata).await.0, replication_factor: 3, generation: 0 };
    let before = one.placed();
    let preparing = step(metadata, &one, MoveTenant::Prepare(newest)).await.tenant;
    let left: Vec<NodeId> = ["m-2", "m-1", "nobody", "m-2"].map(id).to_vec();
    let given_up = step(metadata, &preparing, MoveTenant::GiveUp(left.clone())).await;
    let expected = |name: &str, from, to, hand_over, epoch| Leftover {
        tenant: one.id.clone(),
        node: id(name),
        from,
        to,
        hand_over,
        epoch,
        created_at_ms: 300,
    };
    let of_attempt = |name| expected(name, newest, before, false, given_up.epoch);
    assert_eq!(metadata.leftovers(None, None).await, Ok(vec![of_attempt("m-1"), of_attempt("m-2")]), "of known nodes");
    assert_eq!(given_up.epoch, revision(metadata).await);

    // The same again takes the place of the first: attempts do not add up.
    let preparing = step(metadata, &given_up.tenant, MoveTenant::Prepare(newest)).await.tenant;
    let again = step(metadata, &preparing, MoveTenant::GiveUp(vec![id("m-2")])).await;
    let second = expected("m-2", newest, before, false, again.epoch);
    assert_eq!(metadata.leftovers(None, None).await, Ok(vec![of_attempt("m-1"), second.clone()]));

    // Other rows of the same node are another leftover.
    let done = arrive(metadata, &again.tenant, left).await;
    let handed = |name| expected(name, before, newest, true, done.epoch);
    let all = vec![of_attempt("m-1"), handed("m-1"), second, handed("m-2")];
    assert_eq!(metadata.leftovers(Some(&one.id), None).await, Ok(all.clone()));
    assert_eq!(metadata.leftovers(Some(&tenant("nobody").id), None).await, Ok(Vec::new()));
    assert_eq!(
        metadata.leftovers(None, Some((one.id.clone(), id("m-1")))).await,
        Ok(all[2..].to_vec()),
        "the next page"
    );
    assert_eq!(metadata.leftovers(Some(&one.id), Some((one.id.clone(), id("m-2")))).await, Ok(Vec::new()));
}

/// Each for itself: its rows are others than those of a leftover of another epoch.
async fn are_cleaned<M: Metadata>(metadata: &M) {
    let one = stored(metadata, &tenant("m-b").id).await;
    let all = shown(metadata, None).await;
    let before = revision(metadata).await;
    let newest = all.iter().map(|(_, _, epoch, _)| *epoch).max().expect("some");
    metadata.leftover_cleaned(&one.id, &id("m-1"), newest).await.expect("noted");
    metadata.leftover_cleaned(&one.id, &id("m-1"), newest + 1).await.expect("there is none");
    metadata.leftover_cleaned(&tenant("nobody").id, &id("m-2"), newest).await.expect("there is none");
    assert_eq!(shown(metadata, Some(&one)).await, [all[0].clone(), all[2].clone(), all[3].clone()]);
    for (_, node, epoch, _) in all {
        metadata.leftover_cleaned(&one.id, &id(&node), epoch).await.expect("noted");
    }
    assert_eq!(shown(metadata, None).await, []);
    assert_eq!(revision(metadata).await, before, "that is no change which others follow");
}

async fn are_none_of_deleted_tenants<M: Metadata>(metadata: &M) {
    let one = metadata.create_tenant(tenant("m-left")).await.expect("created");
    let other = stored(metadata, &tenant("m-b").id).await;
    let newest = Placed { ring: ring(metadata).await.0, replication_factor: 3, generation: 0 };
    let mut of = Vec::new();
    for tenant in [&other, &one] {
        let preparing = step(metadata, tenant, MoveTenant::Prepare(newest)).await.tenant;
        of.push(step(metadata, &preparing, MoveTenant::GiveUp(vec![id("m-3")])).await);
    }
    assert_eq!(shown(metadata, None).await.len(), 2);
    let moving = step(metadata, &of[1].tenant, MoveTenant::Prepare(newest)).await.tenant;
    let deleted = metadata.delete_tenant(&one.id, moving.version, 310, true).await.expect("deleted");
    let expected = Tenant {
        moving: None,
        version: moving.version + 1,
        updated_at_ms: 310,
        deleted_at_ms: Some(310),
        ..moving.clone()
    };
    assert_eq!(deleted, expected);
    assert_eq!(stored(metadata, &one.id).await, expected);
    assert_eq!(shown(metadata, None).await, [("m-b".to_owned(), "m-3".to_owned(), of[0].epoch, false)]);
    for late in [MoveTenant::DualWrite, MoveTenant::GiveUp(vec![id("m-3")])] {
        let late = metadata.move_tenant(&one.id, deleted.version, late, 311).await;
        assert!(super::is_missing(&late), "it is deleted: {late:?}");
    }
    let owed = metadata.owed_removals(310, None).await.expect("the owed removals");
    let nodes = metadata.nodes().await.expect("nodes").len();
    assert_eq!(owed.iter().filter(|(of, _)| *of == one.id).count(), nodes);
    metadata.leftover_cleaned(&other.id, &id("m-3"), of[0].epoch).await.expect("noted");
}
