//! Components of plugins.

use bytes::Bytes;
use witan_kernel::class::Class;
use witan_kernel::hook::Hook;
use witan_kernel::port::{Artifact, Component, Digest, Metadata, Source, StoreError};

pub(super) fn component(of: u8, hook: Hook) -> Component {
    let bytes = Bytes::from(vec![of; 1000 + usize::from(of)]);
    let artifact = Artifact {
        digest: Digest([of; 32]),
        name: format!("plugin-{of}"),
        version: "0.1.0".into(),
        hook,
        deterministic: of.is_multiple_of(2),
        size: bytes.len() as u64,
        owner: None,
        staged_at_ms: 5,
        source: if of > 1 { Source::File(format!("plugin-{of}.wasm")) } else { Source::Upload },
        signed_by: None,
        class: Class::Standard,
        class_reason: String::new(),
    };
    Component { artifact, bytes }
}

/// The contract of components. It leaves three behind.
pub(super) async fn all<M: Metadata>(metadata: &M) {
    let hooks = [Hook::ConflictResolver, Hook::ConsistencyPolicy, Hook::RoutingHook];
    for (of, hook) in (1..).zip(hooks) {
        assert_eq!(metadata.put_artifact(component(of, hook)).await, Ok(()));
    }
    let mut other_name = component(1, hooks[0]);
    other_name.artifact.version = "other".into();
    assert_eq!(metadata.put_artifact(other_name).await, Ok(()));
    assert_eq!(
        metadata.artifact(Digest([1; 32])).await,
        Ok(Some(component(1, hooks[0]))),
        "the same bytes stay as they are"
    );
    assert_eq!(metadata.artifact(Digest([9; 32])).await, Ok(None));
    let first = metadata.artifacts(None, 2).await.expect("a page");
    let rest = metadata.artifacts(Some((first[1].digest, None)), 2).await.expect("a page");
    let listed: Vec<_> =
        first.into_iter().chain(rest).map(|entry| (entry.digest.0[0], entry.size, entry.hook)).collect();
    assert_eq!(listed, [(1, 1001, hooks[0]), (2, 1002, hooks[1]), (3, 1003, hooks[2])]);
    assert!(matches!(metadata.remove_artifact(None, Digest([9; 32])).await, Err(StoreError::Missing(_))));
}
