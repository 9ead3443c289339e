//! Guests of every released version of the interface, and what the second one brings.

use bytes::Bytes;
use witan_kernel::hook::{Asked, Hook, Partition, ReadReplica, ReplicaState, ResolverQuestion, Sibling, Verdict};
use witan_kernel::name::{Key, NodeId, Zone};

use crate::guest::{ANSWER, Guest, data};
use crate::{World, question, required};

const VERSIONS: [&str; 2] = ["0.1.0", "0.2.0"];

fn asked() -> ResolverQuestion {
    let sibling = |value| Sibling { value: Bytes::from_static(value), time: 1 };
    ResolverQuestion { key: Key::new("k").unwrap(), siblings: vec![sibling(b"a"), sibling(b"b")] }
}

#[tokio::test]
async fn guests_of_every_version_answer_every_hook() {
    for version in VERSIONS {
        let world = World::new();
        let policy = Guest::policy("policy", 3).of_version(version).build();
        world.put("a", Hook::ConsistencyPolicy, &policy).await.unwrap();
        assert_eq!(required(&world.hooks("a").policy(&question(1))), 3, "{version}");
        let resolver = Guest::resolver("resolver").of_version(version).build();
        world.put("a", Hook::ConflictResolver, &resolver).await.unwrap();
        let verdict = world.hooks("a").resolve(asked()).await;
        assert!(matches!(verdict, Asked::Answered { answer: Verdict::KeepAll, .. }), "{version}: {verdict:?}");
        let routing = Guest::routing("routing").of_version(version).build();
        world.put("", Hook::RoutingHook, &routing).await.unwrap();
        let partition = world.hooks("a").partition_key(0, &Key::new("k").unwrap());
        assert!(matches!(&partition, Partition::By { key, .. } if key == "p"), "{version}: {partition:?}");
    }
}

#[tokio::test]
async fn a_binding_is_swapped_between_versions() {
    let world = World::new();
    for (version, answer) in [("0.1.0", 1), ("0.2.0", 3), ("0.1.0", 2)] {
        let policy = Guest::policy("policy", answer).of_version(version).build();
        world.put("a", Hook::ConsistencyPolicy, &policy).await.unwrap();
        assert_eq!(required(&world.hooks("a").policy(&question(1))), answer);
    }
}

#[tokio::test]
async fn several_verdicts_at_once_must_be_those_of_one_after_the_other() {
    let world = World::new();
    let stage = async |many: &str| {
        let guest = Guest::resolver("resolver").of_version("0.2.0").with(|guest| guest.many = many.to_owned());
        let bound = world.put("a", Hook::ConflictResolver, &guest.build()).await;
        bound.unwrap_err().to_string()
    };
    let none = stage("(i32.store (i32.const 604) (i32.const 0)) (i32.const 600)").await;
    assert!(none.contains("gave 0 answers to 8 questions, asked 8 questions at once"), "{none}");
    // Zeros are verdicts that pick the first sibling.
    let others =
        "(i32.store (i32.const 600) (i32.const 50000)) (i32.store (i32.const 604) (local.get 1)) (i32.const 600)";
    let others = stage(others).await;
    assert!(others.contains("another verdict in another instance"), "{others}");
    let beyond = stage("(i32.store (i32.const 600) (i32.const -1)) (i32.const 600)").await;
    assert!(beyond.contains("asked 8 questions at once"), "{beyond}");
    assert!(matches!(world.hooks("a").resolve(asked()).await, Asked::Unbound), "nothing was bound");
}

/// The partition key of this guest is the value of the first attribute of its tenant.
#[tokio::test]
async fn a_guest_knows_its_tenant() {
    let world = World::new();
    let guest = Guest::routing("routing").of_version("0.2.0").with(|guest| {
        guest.imports = r#"(import "witan:plugin/host@0.2.0" "tenant" (func $tenant (param i32)))"#.into();
        guest.answer = format!(
            r#"(call $tenant (i32.const 700))
               (if (i32.load (i32.const 704)) (then
                 (i32.store (i32.const {}) (i32.load offset=8 (i32.load (i32.const 700))))
                 (i32.store (i32.const {}) (i32.load offset=12 (i32.load (i32.const 700))))))
               (i32.const {ANSWER})"#,
            ANSWER + 4,
            ANSWER + 8
        );
    });
    world.put("", Hook::RoutingHook, &guest.build()).await.unwrap();
    for tenant in ["first", "second"] {
        let partition = world.hooks(tenant).partition_key(0, &Key::new("k").unwrap());
        assert!(matches!(&partition, Partition::By { key, .. } if key == tenant), "{partition:?}");
    }
}

/// This guest prefers the replica whose index is the number of attributes of the first candidate, its zone and its load, less one, and the
/// coordinator's attributes.
#[tokio::test]
async fn a_preference_is_asked_with_zones() {
    let world = World::new();
    let guest = Guest::routing("routing").of_version("0.2.0").with(|guest| {
        guest.fields += &data(800, &[0, 0, 0, 0, 0x84, 3, 0, 0, 1, 0, 0, 0]);
        guest.prefer = "(i32.store8 (i32.const 900) (i32.add (local.get 5)
                          (i32.sub (i32.load offset=28 (local.get 2)) (i32.const 1)))) (i32.const 800)"
            .to_owned();
    });
    world.put("", Hook::RoutingHook, &guest.build()).await.unwrap();
    let state = ReplicaState { reachable: true, latency_p50_us: 1, latency_p99_us: 2, in_flight: 3 };
    let candidates = |zone: &Option<Zone>| {
        ["n1", "n2", "n3"].map(|node| ReadReplica {
            node: NodeId::new(node).unwrap(),
            state,
            load: 2,
            zone: zone.clone(),
        })
    };
    let (zone, key) = (Some(Zone::new("here").unwrap()), Key::new("k").unwrap());
    let hooks = world.hooks("a");
    assert!(hooks.has_routing());
    for (of_candidates, own, expected) in [(&None, &None, 0), (&zone, &None, 1), (&None, &zone, 1), (&zone, &zone, 2)] {
        let asked = hooks.prefer(&key, &candidates(of_candidates), own.as_ref());
        assert!(matches!(&asked, Asked::Answered { answer, .. } if *answer == [expected]), "{expected}: {asked:?}");
    }
}
