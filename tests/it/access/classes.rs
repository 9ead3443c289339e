//! Classes of limits of plugins: who grants them, and how a tenant without one is refused.

use tonic::Code;
use witan_wire::v1;

use super::plugins::{Scene, because, refused};
use crate::harness::Guest;

/// A policy of a megabyte and a half: one chunk of an upload has two at most.
fn wide(name: &str) -> Vec<u8> {
    let data = format!(r#"(data (i32.const 65536) "{}")"#, "x".repeat(3 << 19));
    Guest::policy(name, 2).with(|guest| (guest.pages, guest.fields) = (40, format!("{} {data}", guest.fields))).build()
}

fn grant(tenant: &str, class: &str, granted: bool) -> v1::GrantPluginClassRequest {
    v1::GrantPluginClassRequest { tenant_id: tenant.to_owned(), class: class.to_owned(), granted }
}

#[tokio::test]
async fn an_operator_grants_a_class_and_takes_it_again() {
    let Scene { guarded: _guarded, acme, other, operator } = Scene::start("").await;
    let not_granted = || because(Code::FailedPrecondition, "PLUGIN_CLASS_NOT_GRANTED");
    let own = wide("own");
    let status = acme.upload("acme", &own).await.expect_err("it has no class for that");
    assert!(status.message().contains("witan plugin grant --tenant acme interpreted"), "{status}");
    assert_eq!(refused::<()>(Err(status)), not_granted());
    let granting = acme.0.clone().grant_plugin_class(grant("acme", "interpreted", true)).await;
    assert_eq!(refused(granting).0, Code::PermissionDenied, "nobody grants a class to itself");

    let mut operators = operator.0.clone();
    operators.grant_plugin_class(grant("acme", "interpreted", true)).await.expect("granted");
    operators.grant_plugin_class(grant("acme", "interpreted", true)).await.expect("granted already");
    for (tenant, class) in [("", "interpreted"), ("acme", "standard"), ("acme", "wide"), ("a:b", "interpreted")] {
        let refusal = refused(operators.grant_plugin_class(grant(tenant, class, true)).await);
        assert_eq!(refusal, because(Code::InvalidArgument, "INVALID_REQUEST"), "{tenant} {class}");
    }
    let nobody = refused(operators.grant_plugin_class(grant("nobody", "interpreted", true)).await);
    assert_eq!(nobody, because(Code::NotFound, "TENANT_NOT_FOUND"));

    let plugin = acme.upload("acme", &own).await.expect("uploaded");
    assert_eq!(plugin.class, "interpreted");
    assert!(plugin.class_reason.ends_with("at most 1048576 are allowed in class standard"), "{}", plugin.class_reason);
    assert_eq!(acme.get("acme", "own").await.expect("shown").class_reason, plugin.class_reason);
    acme.bind("acme", "own").await.expect("bound");
    let seen = async |by: &super::plugins::Seen| {
        let listed = by.0.clone().list_plugins(v1::ListPluginsRequest::default()).await.expect("listed").into_inner();
        assert_eq!(listed.grants_unknown, "");
        listed.grants.into_iter().map(|grant| (grant.tenant_id, grant.class)).collect::<Vec<_>>()
    };
    let granted = vec![("acme".to_owned(), "interpreted".to_owned())];
    assert_eq!((seen(&operator).await, seen(&acme).await, seen(&other).await), (granted.clone(), granted, vec![]));

    // The operator needs no grant to upload, and a tenant's binding does.
    let shared = operator.upload("", &wide("shared")).await.expect("uploaded");
    assert_eq!(shared.class, "interpreted");
    assert_eq!(refused(other.bind("other", "shared").await), not_granted());
    operators.grant_plugin_class(grant("acme", "interpreted", false)).await.expect("revoked");
    assert_eq!(refused(acme.bind("acme", "shared").await), not_granted());
    assert_eq!(refused(acme.upload("acme", &wide("more")).await), not_granted());
    assert_eq!(acme.get("acme", "own").await.expect("it stays").class, "interpreted");
}
