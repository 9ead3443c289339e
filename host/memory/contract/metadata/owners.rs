//! Whose plugins are, and the keys with which they are signed.

use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Component, Digest, Metadata, SigningKey, StoreError};

use super::{component, slot, tenant};

fn id(tenant: &str) -> TenantId {
    TenantId::new(tenant).expect("valid")
}

/// A component of a tenant, or of the operator for `""`, signed with this key if it has a name.
fn owned(of: u8, owner: &str, key: &str) -> Component {
    let mut owned = component(of, Hook::ConflictResolver);
    owned.artifact.owner = (!owner.is_empty()).then(|| id(owner));
    owned.artifact.source = witan_kernel::port::Source::Upload;
    owned.artifact.signed_by = (!key.is_empty()).then(|| key.to_owned());
    owned
}

/// The contract of owners and of signing keys, on a store with artifacts of the operator alone. It leaves nothing behind.
pub(super) async fn all<M: Metadata>(metadata: &M) {
    each_owner_has_its_own(metadata).await;
    a_binding_needs_what_its_slot_may_have(metadata).await;
    a_deleted_tenant_owns_nothing(metadata).await;
    signing_keys(metadata).await;
}

/// The artifacts of tenants, as digest, owner and key.
async fn of_tenants<M: Metadata>(metadata: &M) -> Vec<(u8, String, Option<String>)> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = metadata.artifacts(after, 2).await.expect("a page");
        let Some(last) = page.last() else { break };
        after = Some((last.digest, last.owner.clone()));
        all.extend(page);
    }
    let of_tenants = all.into_iter().filter_map(|it| Some((it.digest.0[0], it.owner?.to_string(), it.signed_by)));
    of_tenants.collect()
}

async fn each_owner_has_its_own<M: Metadata>(metadata: &M) {
    let put = |component| metadata.put_artifact(component);
    put(owned(50, "b", "release")).await.expect("stored");
    put(owned(50, "a", "")).await.expect("another tenant does not notice");
    put(owned(51, "a", "")).await.expect("stored");
    let key = Some("release".to_owned());
    let listed = [(50, "a".to_owned(), None), (50, "b".to_owned(), key.clone()), (51, "a".to_owned(), None)];
    assert_eq!(of_tenants(metadata).await, listed);
    for refused in [owned(50, "", ""), owned(1, "a", "")] {
        let refused = put(refused).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "a name is the operator's or tenants': {refused:?}");
    }
    put(owned(50, "a", "first")).await.expect("signed");
    put(owned(50, "a", "second")).await.expect("signed again");
    put(owned(50, "a", "")).await.expect("it remains signed");
    let mut operators = component(1, Hook::ConflictResolver);
    operators.artifact.signed_by = key.clone();
    put(operators).await.expect("signed");
    let first = metadata.artifact(Digest([1; 32])).await.expect("read").expect("there");
    assert_eq!((first.artifact.owner, first.artifact.signed_by), (None, key));

    let remove = |owner: Option<&'static str>, of| {
        let owner = owner.map(id);
        async move { metadata.remove_artifact(owner.as_ref(), Digest([of; 32])).await }
    };
    for (owner, of) in [(Some("c"), 50), (Some("b"), 51), (None, 50), (Some("a"), 1)] {
        let missing = remove(owner, of).await;
        assert!(matches!(missing, Err(StoreError::Missing(_))), "{owner:?} does not have {of}: {missing:?}");
    }
    remove(Some("a"), 50).await.expect("removed");
    assert!(metadata.artifact(Digest([50; 32])).await.expect("read").is_some(), "another owner has it");
    remove(Some("b"), 50).await.expect("removed");
    assert_eq!(metadata.artifact(Digest([50; 32])).await, Ok(None), "nobody has it");
    remove(Some("a"), 51).await.expect("removed");
}

async fn a_binding_needs_what_its_slot_may_have<M: Metadata>(metadata: &M) {
    metadata.put_artifact(owned(50, "a", "")).await.expect("stored");
    metadata.put_artifact(owned(50, "b", "")).await.expect("stored");
    let digest = Digest([50; 32]);
    let save = |tenant: Option<&str>, digest: Digest| {
        let slot = slot(tenant, Hook::ConflictResolver);
        metadata.save_binding_record(&slot, 0, format!("of {digest}"), Some(digest), false)
    };
    for tenant in [None, Some("c")] {
        let missing = save(tenant, digest).await;
        assert!(matches!(missing, Err(StoreError::Missing(_))), "{tenant:?}: {missing:?}");
    }
    let version = save(Some("a"), digest).await.expect("its own");
    let needed = metadata.remove_artifact(Some(&id("a")), digest).await;
    assert!(matches!(needed, Err(StoreError::Refused(_))), "{needed:?}");
    metadata.remove_artifact(Some(&id("b")), digest).await.expect("no binding of this tenant needs it");
    let of_operator = Digest([2; 32]);
    let theirs = save(Some("b"), of_operator).await.expect("the operator's are for all");
    let needed = metadata.remove_artifact(None, of_operator).await;
    assert!(matches!(needed, Err(StoreError::Refused(_))), "{needed:?}");
    for (tenant, version) in [("a", version), ("b", theirs)] {
        let slot = slot(Some(tenant), Hook::ConflictResolver);
        metadata.remove_binding_record(&slot, version, false).await.expect("removed");
    }
    metadata.remove_artifact(Some(&id("a")), digest).await.expect("removed");
}

async fn a_deleted_tenant_owns_nothing<M: Metadata>(metadata: &M) {
    let gone = metadata.create_tenant(tenant("owner")).await.expect("created");
    for of in [50, 51] {
        metadata.put_artifact(owned(of, "owner", "")).await.expect("stored");
    }
    metadata.put_artifact(owned(50, "stays", "")).await.expect("stored");
    metadata.delete_tenant(&gone.id, gone.version, 9, false).await.expect("deleted");
    assert_eq!(of_tenants(metadata).await, [(50, "stays".to_owned(), None)]);
    assert_eq!(metadata.artifact(Digest([51; 32])).await, Ok(None));
    metadata.remove_artifact(Some(&id("stays")), Digest([50; 32])).await.expect("removed");
}

async fn signing_keys<M: Metadata>(metadata: &M) {
    let key = |owner: &str, id: &str, of: u8| SigningKey {
        owner: (!owner.is_empty()).then(|| self::id(owner)),
        id: id.to_owned(),
        public: [of; 32],
        added_at_ms: u64::from(of),
    };
    assert_eq!(metadata.signing_keys().await, Ok(Vec::new()));
    let longest = "k".repeat(64);
    for added in [key("b", "release", 2), key("", "release", 1), key("b", &longest, 3)] {
        metadata.add_signing_key(added).await.expect("added");
    }
    metadata.add_signing_key(key("", "release", 1)).await.expect("the same");
    let other = metadata.add_signing_key(key("", "release", 9)).await;
    assert!(matches!(other, Err(StoreError::Exists(_))), "{other:?}");
    for wrong in ["", "a b", "a\n", "\u{e9}", &format!("{longest}k")] {
        let refused = metadata.add_signing_key(key("", wrong, 9)).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{wrong:?}: {refused:?}");
    }
    let all = vec![key("", "release", 1), key("b", &longest, 3), key("b", "release", 2)];
    assert_eq!(metadata.signing_keys().await, Ok(all));
    let remove = async |owner: Option<TenantId>, id: &str| metadata.remove_signing_key(owner.as_ref(), id).await;
    let missing = remove(Some(id("a")), "release").await;
    assert!(matches!(missing, Err(StoreError::Missing(_))), "{missing:?}");
    for (owner, id) in [(None, "release"), (Some(id("b")), "release"), (Some(id("b")), &*longest)] {
        remove(owner, id).await.expect("removed");
    }
    assert_eq!(metadata.signing_keys().await, Ok(Vec::new()));
}
