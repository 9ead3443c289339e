//! Components that were pushed and that nobody waits for.

use witan_kernel::hook::Hook;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::port::{
    Artifact, Component, Digest, Metadata, PUSH_REASON_BYTES, PUSHES, PushBegun, PushOnRecord, PushState, StoreError,
};

use super::{component, tenant};

fn push(of: u8, worker: &str, state: PushState, reason: &str) -> PushOnRecord {
    let (owner, worker) = (Some(TenantId::new("pushes").expect("valid")), NodeId::new(worker).expect("valid"));
    let (digest, reason) = (Digest([of; 32]), reason.to_owned());
    PushOnRecord { owner, digest, size: 1234, state, reason, worker, since_ms: 0 }
}

fn staged(of: u8, worker: &str) -> PushOnRecord {
    push(of, worker, PushState::Staged, "")
}

/// How far one has come, why, and who works on it.
async fn seen<M: Metadata>(metadata: &M, of: u8) -> Option<(PushState, String, String)> {
    let on_record = metadata.push(staged(of, "c").owner.as_ref(), Digest([of; 32])).await.expect("read")?;
    assert_eq!((on_record.size, on_record.digest), (1234, Digest([of; 32])));
    Some((on_record.state, on_record.reason, on_record.worker.to_string()))
}

fn at(state: PushState, reason: &str, worker: &str) -> Option<(PushState, String, String)> {
    Some((state, reason.to_owned(), worker.to_owned()))
}

/// The contract of pushes. It leaves nothing behind but a deleted tenant.
pub(super) async fn all<M: Metadata>(metadata: &M) {
    metadata.create_tenant(tenant("pushes")).await.expect("created");
    one_works_on_a_component(metadata).await;
    what_is_stored_is_ready(metadata).await;
    what_is_abandoned_says_so(metadata).await;
    they_are_bounded(metadata).await;
    let own = metadata.tenant(&TenantId::new("pushes").expect("valid")).await.expect("read").expect("there");
    metadata.delete_tenant(&own.id, own.version, 9, false).await.expect("deleted");
    assert_eq!(seen(metadata, 1).await, None, "a deleted tenant has none");
}

async fn one_works_on_a_component<M: Metadata>(metadata: &M) {
    assert_eq!(seen(metadata, 1).await, None);
    assert_eq!(metadata.begin_push(staged(1, "one")).await, Ok(PushBegun::Begun));
    assert_eq!(seen(metadata, 1).await, at(PushState::Staged, "", "one"));
    let again = metadata.begin_push(staged(1, "two")).await;
    assert!(matches!(&again, Ok(PushBegun::UnderWay(known)) if known.worker.as_str() == "one"), "{again:?}");
    assert_eq!(metadata.push(None, Digest([1; 32])).await, Ok(None), "each owner has its own");

    assert_eq!(metadata.step_push(push(1, "two", PushState::Refused, "not its own")).await, Ok(false));
    assert_eq!(metadata.step_push(push(1, "one", PushState::Compiling, "")).await, Ok(true));
    assert_eq!(seen(metadata, 1).await, at(PushState::Compiling, "", "one"));
    let long = "x".repeat(PUSH_REASON_BYTES + 1);
    let too_long = metadata.step_push(push(1, "one", PushState::Refused, &long)).await;
    assert!(matches!(too_long, Err(StoreError::Refused(_))), "{too_long:?}");
    assert_eq!(metadata.step_push(push(1, "one", PushState::Refused, "is empty")).await, Ok(true));
    assert_eq!(seen(metadata, 1).await, at(PushState::Refused, "is empty", "one"));
    assert_eq!(metadata.step_push(push(1, "one", PushState::Compiling, "")).await, Ok(false), "it has ended");
    assert_eq!(metadata.begin_push(staged(1, "two")).await, Ok(PushBegun::Begun), "it is pushed again");
    assert_eq!(seen(metadata, 1).await, at(PushState::Staged, "", "two"));
}

async fn what_is_stored_is_ready<M: Metadata>(metadata: &M) {
    let Component { artifact, bytes } = component(61, Hook::ConflictResolver);
    let owner = staged(61, "one").owner;
    metadata.begin_push(staged(61, "one")).await.expect("begun");
    let artifact = Artifact { owner: owner.clone(), ..artifact };
    metadata.put_artifact(Component { artifact, bytes }).await.expect("stored");
    assert_eq!(seen(metadata, 61).await, at(PushState::Ready, "", "one"));
    assert_eq!(metadata.step_push(push(61, "one", PushState::Refused, "late")).await, Ok(false));
    metadata.remove_artifact(owner.as_ref(), Digest([61; 32])).await.expect("removed");
    assert_eq!(metadata.begin_push(staged(61, "one")).await, Ok(PushBegun::Begun), "it may have been removed since");
}

async fn what_is_abandoned_says_so<M: Metadata>(metadata: &M) {
    metadata.begin_push(staged(2, "three")).await.expect("begun");
    metadata.begin_push(staged(3, "one")).await.expect("begun");
    metadata.abandon_pushes(&NodeId::new("three").expect("valid")).await.expect("abandoned");
    let (state, reason, _) = seen(metadata, 2).await.expect("on record");
    assert_eq!(state, PushState::Refused);
    assert!(reason.contains("three was stopped") && reason.contains("push it again"), "{reason}");
    assert_eq!(seen(metadata, 3).await, at(PushState::Staged, "", "one"), "another's");
}

async fn they_are_bounded<M: Metadata>(metadata: &M) {
    let mut begun = 0;
    let refused = loop {
        match metadata.begin_push(staged(100 + begun, "one")).await {
            Ok(PushBegun::Begun) => begun += 1,
            other => break other,
        }
    };
    // Three are under way from before, and one that was abandoned has made room.
    assert_eq!(usize::from(begun) + 3, PUSHES);
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(seen(metadata, 2).await, None);
}
