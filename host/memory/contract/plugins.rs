//! What every plugin store must do.

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::name::TenantId;
use witan_kernel::port::{Artifact, Digest, PluginStore, Slot, Source, StoreError};

fn artifact(bytes: &Bytes, source: Source) -> Artifact {
    Artifact {
        digest: Digest::of(bytes),
        name: "set-union".into(),
        version: "1.0.0".into(),
        hook: Hook::ConflictResolver,
        deterministic: true,
        size: bytes.len() as u64,
        staged_at_ms: 5,
        source,
    }
}

fn slot(tenant: Option<&str>) -> Slot {
    Slot { tenant: tenant.map(|id| TenantId::new(id).expect("valid")), hook: Hook::ConflictResolver }
}

/// The whole contract, on an empty store that two plugin hosts share.
pub fn all(one: &dyn PluginStore, other: &dyn PluginStore) {
    assert!(one.is_shared() && other.is_shared());
    components(one, other);
    bindings(one, other);
}

fn components(one: &dyn PluginStore, other: &dyn PluginStore) {
    assert_eq!(one.components(), Ok(Vec::new()));
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    let uploaded = artifact(&first, Source::Upload);
    one.keep(&uploaded, &first).expect("stored");
    other.keep(&Artifact { name: "other".into(), ..uploaded.clone() }, &first).expect("stored already");
    let filed = artifact(&second, Source::File("set-union.wasm".into()));
    one.keep(&filed, &second).expect("stored");
    let mut listed = other.components().expect("components");
    listed.sort_by_key(|artifact| artifact.size);
    assert_eq!(listed, [uploaded.clone(), filed.clone()], "the first description is kept");
    assert_eq!(other.component(uploaded.digest), Ok(Some(first)));
    other.forget(filed.digest).expect("removed");
    other.forget(filed.digest).expect("nothing to remove is no error");
    assert_eq!(one.component(filed.digest), Ok(None));
}

fn bindings(one: &dyn PluginStore, other: &dyn PluginStore) {
    let (own, default) = (slot(Some("cart")), slot(None));
    let digest = Digest::of(b"first");
    let record = |text: &str| format!("{text} {digest}");
    let missing = one.save(&own, record("missing"), Some(Digest::of(b"missing")));
    assert!(matches!(missing, Err(StoreError::Missing(_))), "{missing:?}");
    one.save(&own, record("first"), Some(digest)).expect("stored");
    one.save(&default, record("default"), Some(digest)).expect("stored");
    let stored = one.bindings().expect("bindings");
    let shown: Vec<_> = stored.iter().map(|at| (at.slot.clone(), at.record.clone())).collect();
    assert_eq!(shown, [(default.clone(), record("default")), (own.clone(), record("first"))]);

    let unread = other.save(&own, record("late"), Some(digest));
    assert!(matches!(unread, Err(StoreError::Conflict(_))), "{unread:?}");
    assert!(matches!(other.remove(&own), Err(StoreError::Conflict(_))), "it was not read either");
    other.bindings().expect("bindings");
    assert!(matches!(other.remove(&own), Err(StoreError::Conflict(_))), "a list does not count as reading one");
    assert_eq!(other.binding(&own).expect("a binding").map(|at| at.record), Some(record("first")));
    other.save(&own, record("second"), Some(digest)).expect("stored");
    let outdated = one.save(&own, record("late"), Some(digest));
    assert!(matches!(outdated, Err(StoreError::Conflict(_))), "{outdated:?}");
    assert!(matches!(one.forget(digest), Err(StoreError::Refused(_))), "a binding needs it");

    other.remove(&own).expect("removed");
    assert_eq!(one.binding(&own), Ok(None));
    one.remove(&own).expect("nothing to remove is no error");
    one.save(&own, record("third"), Some(digest)).expect("stored");
    one.remove(&own).expect("removed");
    one.remove(&default).expect("removed");
    one.forget(digest).expect("no binding needs it");
}
