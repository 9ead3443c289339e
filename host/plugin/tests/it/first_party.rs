//! The plugins of `plugins/`, built from source, inside the host.

use bytes::Bytes;
use witan_kernel::hook::{Asked, Hook, Partition, ResolverQuestion, Shortfall, Sibling, Verdict};
use witan_kernel::name::Key;
use witan_plugin::OnFault;

use crate::{World, built, name, question, required};

async fn resolve(world: &World, values: &[&'static str]) -> Verdict {
    let siblings =
        values.iter().map(|value| Sibling { value: Bytes::from_static(value.as_bytes()), time: 1 }).collect();
    let question = ResolverQuestion { key: Key::new("cart").unwrap(), siblings };
    match world.hooks("a").resolve(question).await {
        Asked::Answered { answer, .. } => answer,
        other => panic!("{other:?}"),
    }
}

fn merged(text: &'static str) -> Verdict {
    Verdict::Merged(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn set_union() {
    let world = World::new();
    world.put("", Hook::ConflictResolver, &built("set-union")).await.unwrap();
    assert_eq!(resolve(&world, &[r#"["b","a"]"#, r#"["c","a"]"#]).await, merged(r#"["a","b","c"]"#));
    assert_eq!(resolve(&world, &[r#"["b"]"#, "not json"]).await, Verdict::KeepAll);
}

#[tokio::test]
async fn shopping_cart() {
    let world = World::new();
    world.put("", Hook::ConflictResolver, &built("shopping-cart")).await.unwrap();
    let carts = [r#"{"items":{"milk":2}}"#, r#"{"items":{"milk":1,"bread":1}}"#];
    assert_eq!(resolve(&world, &carts).await, merged(r#"{"items":{"bread":1,"milk":2}}"#));
}

#[tokio::test]
async fn hash_tag() {
    let world = World::new();
    world.put("", Hook::RoutingHook, &built("hash-tag")).await.unwrap();
    let hooks = world.hooks("a");
    let partition = |key: &str| match hooks.partition_key(0, &Key::new(key.to_owned()).unwrap()) {
        Partition::By { key, .. } => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(partition("{user1000}.following"), "user1000");
    assert_eq!(partition("plain"), "plain");
}

#[tokio::test]
async fn adaptive_latency() {
    let world = World::new();
    world.stage(&built("adaptive-latency")).await.unwrap();
    world.bind("", Hook::ConsistencyPolicy, name("adaptive-latency")).await.unwrap();
    match world.hooks("a").policy(&question(10)) {
        Asked::Answered { answer, by } => {
            assert_eq!((answer.required, answer.shortfall), (2, Shortfall::Accept(1)));
            assert!(by.starts_with("adaptive-latency@"), "{by}");
        }
        other => panic!("{other:?}"),
    }
    // Replicas of 900 us are slow for this tenant.
    let bind = |configuration| {
        world.bind_with("b", Hook::ConsistencyPolicy, name("adaptive-latency"), configuration, OnFault::Native)
    };
    bind(b"slow-us = 500").await.unwrap();
    assert_eq!(required(&world.hooks("b").policy(&question(10))), 1);
    let error = bind(b"slow-us = soon").await.unwrap_err().to_string();
    assert!(error.contains("slow-us") && error.contains("soon"), "{error}");
}
