//! The plugins of `plugins/`, built from source, inside the host.

use bytes::Bytes;
use witan_kernel::hook::{
    Asked, Hook, Operation, Partition, PolicyQuestion, ResolverQuestion, Shortfall, Sibling, Verdict,
};
use witan_kernel::name::{Key, Zone};
use witan_plugin::OnFault;

use crate::{World, brief, built, name, question, required};

async fn resolve(world: &World, values: &[&'static str]) -> Verdict {
    resolve_bytes(world, values.iter().map(|value| Bytes::from_static(value.as_bytes())).collect()).await
}

async fn resolve_bytes(world: &World, values: Vec<Bytes>) -> Verdict {
    let siblings = values.into_iter().map(|value| Sibling { value, time: 1 }).collect();
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
async fn counter() {
    let world = World::new();
    world.put("", Hook::ConflictResolver, &built("counter")).await.unwrap();
    let both = merged(r#"{"laptop":{"up":5,"down":2},"phone":3}"#);
    assert_eq!(resolve(&world, &[r#"{"phone":3}"#, r#"{"laptop":{"up":5,"down":2}}"#]).await, both);
    assert_eq!(resolve(&world, &[r#"{"phone":3}"#, r#"{"phone":-3}"#]).await, Verdict::KeepAll);
}

#[tokio::test]
async fn add_wins_set() {
    let world = World::new();
    world.put("", Hook::ConflictResolver, &built("add-wins-set")).await.unwrap();
    let (removed, added) = (r#"{"elements":{},"seen":{"a":1}}"#, r#"{"elements":{"x":{"a":2}},"seen":{"a":2}}"#);
    assert_eq!(resolve(&world, &[r#"{"elements":{"x":{"a":1}},"seen":{"a":1}}"#, removed]).await, merged(removed));
    assert_eq!(resolve(&world, &[removed, added]).await, merged(added));
    assert_eq!(resolve(&world, &[removed, r#"["x"]"#]).await, Verdict::KeepAll);
}

#[tokio::test]
async fn register_map() {
    let world = World::new();
    world.put("", Hook::ConflictResolver, &built("register-map")).await.unwrap();
    let maps =
        [r#"{"a":{"value":1.0,"time":2},"b":{"time":5}}"#, r#"{"a":{"value":2,"time":1},"b":{"value":3,"time":4}}"#];
    assert_eq!(resolve(&world, &maps).await, merged(maps[0]));
    assert_eq!(resolve(&world, &[maps[0], r#"{"a":1}"#]).await, Verdict::KeepAll);
}

#[tokio::test]
async fn newest_field() {
    let world = World::new();
    world.put("", Hook::ConflictResolver, &built("newest-field")).await.unwrap();
    assert_eq!(resolve(&world, &[r#"{"updated":9}"#, r#"{"updated":10}"#]).await, Verdict::Pick(1));
    assert_eq!(resolve(&world, &[r#"{"updated":9}"#, r#"{"at":10}"#]).await, Verdict::KeepAll);
    let bind = |configuration| {
        world.bind_with("a", Hook::ConflictResolver, name("newest-field"), configuration, OnFault::Native)
    };
    bind(b"field = at\nmissing = oldest").await.unwrap();
    assert_eq!(resolve(&world, &[r#"{"at":11}"#, r#"{"updated":9}"#, r#"{"at":10}"#]).await, Verdict::Pick(0));
    let error = bind(b"missing = newest").await.unwrap_err().to_string();
    assert!(error.contains("missing") && error.contains("keep-all or oldest"), "{error}");
}

#[tokio::test]
async fn text_lines() {
    let world = World::new();
    world.put("", Hook::ConflictResolver, &built("text-lines")).await.unwrap();
    assert_eq!(resolve(&world, &["b\na\n", "c\r\na"]).await, merged("a\nb\nc\n"));
}

/// The largest values that each resolver looks into, made of as many parts as fit, of which each takes as much work as can be; and
/// deeper nesting and longer numbers than a client of good will writes. Under the CPU time that a resolver has.
fn heavy(plugin: &str) -> [Vec<Bytes>; 3] {
    let bytes = if plugin == "newest-field" { 1 << 20 } else { 256 << 10 };
    let many = |part: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        for number in 0.. {
            let part = part(number);
            if text.len() + part.len() + 100 > bytes / 2 {
                break;
            }
            text += &part;
        }
        text
    };
    let object = |members: String| format!("{{{}}}", members.trim_end_matches(','));
    let value = |side: &str| match plugin {
        "counter" => object(many(&|n| format!("\"{side}{n:x}\":1,"))),
        "add-wins-set" => format!(
            "{{\"elements\":{},\"seen\":{{\"{side}\":1}}}}",
            object(many(&|n| format!("\"{side}{n:x}\":{{\"{side}\":1}},")))
        ),
        "register-map" => object(many(&|n| format!("\"{side}{n:x}\":{{\"time\":1}},"))),
        "newest-field" => object(many(&|n| format!("\"{side}{n:x}\":1,")) + "\"updated\":1"),
        _ => many(&|n| format!("{side}{n:x}\n")),
    };
    let deep = format!("{}{}", "{\"updated\":".repeat(50_000), "}".repeat(50_000));
    let digits = format!("{{\"updated\":{}}}", "9".repeat(500_000));
    [vec![value("a").into(), value("b").into()], vec![deep.clone().into(), deep.into()], vec![digits.into(); 2]]
}

#[tokio::test]
async fn no_value_makes_a_resolver_fail() {
    for plugin in ["counter", "add-wins-set", "register-map", "newest-field", "text-lines"] {
        let world = World::with(brief());
        world.put("", Hook::ConflictResolver, &built(plugin)).await.unwrap();
        let [large, deep, long] = heavy(plugin);
        assert!(large.iter().map(Bytes::len).sum::<usize>() > 250_000, "{plugin}");
        // An answer of any kind, rather than a fault.
        assert_ne!(resolve_bytes(&world, large).await, Verdict::KeepAll, "{plugin} merges as much as it says");
        _ = resolve_bytes(&world, deep).await;
        _ = resolve_bytes(&world, long).await;
        _ = resolve_bytes(&world, vec![Bytes::from(vec![b'a'; 9 << 20]), Bytes::from(vec![b'['; 9 << 20])]).await;
        let counts = world.host.counts();
        let (_, counts) = counts.iter().find(|(hook, _)| *hook == Hook::ConflictResolver).unwrap();
        // The first question is put to another instance as well.
        assert_eq!((counts.calls - counts.repeated, counts.faults), (4, 0), "{plugin}");
        println!("{plugin}: {} us for the slowest four", counts.nanos / 1000);
    }
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

#[tokio::test]
async fn a_component_of_the_first_released_version_goes_on_working() {
    let world = World::new();
    let info = world.host.stage(Bytes::from(built("released-0-1")), None).await.unwrap();
    assert_eq!((info.name.as_str(), info.hook), ("released-0-1", Hook::ConflictResolver));
    world.bind("", Hook::ConflictResolver, name("released-0-1")).await.unwrap();
    assert_eq!(resolve(&world, &["b", "c", "a"]).await, Verdict::Pick(1));
}

#[tokio::test]
async fn zone_budget() {
    let world = World::new();
    world.stage(&built("zone-budget")).await.unwrap();
    let bind = |configuration| {
        world.bind_with("a", Hook::ConsistencyPolicy, name("zone-budget"), configuration, OnFault::Native)
    };
    bind(b"percent = 25").await.unwrap();
    let own = Zone::new("near").unwrap();
    let zones = [Some(own.clone()), Some(Zone::new("far").unwrap()), None];
    let read = PolicyQuestion { operation: Operation::Read, zones: &zones, zone: Some(&own), ..question(0) };
    let hooks = world.hooks("a");
    let left = (0..100).filter(|_| required(&hooks.policy(&read)) == 2).count();
    assert_eq!(left, 25, "of a hundred reads");
    let elsewhere = PolicyQuestion { zone: None, ..read.clone() };
    assert_eq!(required(&hooks.policy(&elsewhere)), 2, "without a zone nothing is saved");
    let error = bind(b"percent = 101").await.unwrap_err().to_string();
    assert!(error.contains("percent") && error.contains("0 to 100"), "{error}");
}
