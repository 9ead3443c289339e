//! Who may use which class of limits of plugins, and how often components are compiled for a tenant.

use witan_kernel::class::Class;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::{ClassGrant, Metadata, StoreError, TENANT_COMPILATIONS, TENANT_COMPILATIONS_MS};

use super::{component, tenant};

fn grant(tenant: &str, granted_at_ms: u64) -> ClassGrant {
    ClassGrant { tenant: TenantId::new(tenant).expect("valid"), class: Class::Interpreted, granted_at_ms }
}

/// The contract of classes. It leaves nothing behind but deleted tenants.
pub(super) async fn all<M: Metadata>(metadata: &M) {
    grants(metadata).await;
    compilations(metadata).await;
    an_artifact_keeps_its_class(metadata).await;
}

async fn grants<M: Metadata>(metadata: &M) {
    for id in ["classy", "other"] {
        metadata.create_tenant(tenant(id)).await.expect("created");
    }
    metadata.grant_class(grant("other", 2)).await.expect("granted");
    metadata.grant_class(grant("classy", 3)).await.expect("granted");
    metadata.grant_class(grant("classy", 4)).await.expect("granted already");
    assert_eq!(metadata.class_grants().await, Ok(vec![grant("classy", 3), grant("other", 2)]));
    let refused = metadata.grant_class(ClassGrant { class: Class::Standard, ..grant("classy", 5) }).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    let missing = metadata.grant_class(grant("nobody-has-this", 5)).await;
    assert!(matches!(missing, Err(StoreError::Missing(_))), "{missing:?}");
    metadata.revoke_class(&grant("other", 0).tenant, Class::Interpreted).await.expect("revoked");
    metadata.revoke_class(&grant("other", 0).tenant, Class::Interpreted).await.expect("revoked already");
    assert_eq!(metadata.class_grants().await, Ok(vec![grant("classy", 3)]));
    let classy = metadata.tenant(&grant("classy", 0).tenant).await.expect("read").expect("there");
    metadata.delete_tenant(&classy.id, classy.version, 9, false).await.expect("deleted");
    assert_eq!(metadata.class_grants().await, Ok(Vec::new()), "a deleted tenant has none");
    let missing = metadata.grant_class(grant("classy", 5)).await;
    assert!(matches!(missing, Err(StoreError::Missing(_))), "nor gets one: {missing:?}");
}

async fn compilations<M: Metadata>(metadata: &M) {
    let (one, two) = (TenantId::new("one-compiles").expect("valid"), TenantId::new("two-compiles").expect("valid"));
    for _ in 0..TENANT_COMPILATIONS {
        assert_eq!(metadata.count_compilation(&one).await, Ok(None));
    }
    for _ in 0..2 {
        let later = metadata.count_compilation(&one).await.expect("counted").expect("not now");
        assert!((1..=TENANT_COMPILATIONS_MS).contains(&later), "{later}");
    }
    assert_eq!(metadata.count_compilation(&two).await, Ok(None), "each tenant has its own");
}

async fn an_artifact_keeps_its_class<M: Metadata>(metadata: &M) {
    let mut wide = component(90, Hook::ConflictResolver);
    (wide.artifact.class, wide.artifact.class_reason) = (Class::Interpreted, "has 17 core instances".to_owned());
    let digest = wide.artifact.digest;
    metadata.put_artifact(wide.clone()).await.expect("stored");
    assert_eq!(metadata.artifact(digest).await, Ok(Some(wide)));
    metadata.remove_artifact(None, digest).await.expect("removed");
}
