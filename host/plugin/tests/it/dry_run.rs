//! Dry runs: a version is asked, compared, and leaves nothing behind.

use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_kernel::hook::{Hook, ReadReplica, ReplicaState, ResolverQuestion, Sibling};
use witan_kernel::name::{Key, NodeId};
use witan_kernel::question::{Question, RoutingQuestion};
use witan_plugin::dry_run::{DryRun, DryRunRequest};
use witan_plugin::{PluginError, Reference};

use crate::guest::Guest;
use crate::{LONG, World, brief, question, required, tenant};

impl World {
    async fn dry(&self, hook: Hook, component: &[u8]) -> DryRun {
        let plugin = Reference::Digest(self.stage(component).await.unwrap());
        self.host.dry_run(request(hook, plugin)).await.unwrap()
    }
}

fn request(hook: Hook, plugin: Reference) -> DryRunRequest {
    DryRunRequest { tenant: tenant("a"), hook, plugin, configuration: Bytes::new() }
}

fn key(name: &'static str) -> Key {
    Key::new(name).unwrap()
}

fn conflict(name: &'static str, values: [&'static str; 2]) -> Question {
    let sibling = |value: &'static str| Sibling { value: Bytes::from_static(value.as_bytes()), time: 1 };
    Question::Resolver(ResolverQuestion { key: key(name), siblings: values.map(sibling).into() })
}

fn policy_question(value_bytes: u32) -> Question {
    Question::Policy { key: key("k"), question: question(value_bytes).kept() }
}

/// Picks the first sibling if it has seven bytes, and otherwise keeps all. No value of the probe's own has seven.
fn sevens() -> Vec<u8> {
    let resolver = Guest::resolver("sevens").with(|guest| {
        let sevens = "(i32.eq (i32.load offset=4 (local.get 2)) (i32.const 7))";
        guest.answer = format!("(if (result i32) {sevens} (then (i32.const 700)) (else {}))", guest.answer);
    });
    resolver.build()
}

fn soon() -> Instant {
    Instant::now() + LONG
}

#[tokio::test]
async fn a_resolver_is_compared_with_the_native_rule_and_with_what_is_bound() {
    let world = World::new();
    for bound in [false, true] {
        let mut dry = world.dry(Hook::ConflictResolver, &sevens()).await;
        for (name, values) in [("one", ["a", "b"]), ("two", ["seven-1", "seven-2"]), ("three", ["c", "d"])] {
            assert!(dry.ask(conflict(name, values), soon()).await);
        }
        let found = dry.findings();
        assert_eq!((found.asked, found.equal, found.differing, found.faulted), (3, 2, 1, 0), "{found:?}");
        assert_eq!((found.cases.len(), &found.cases[0].key, found.latencies.count()), (1, &key("two"), 3));
        let case = &found.cases[0];
        assert_eq!((&*case.in_force, &*case.tried), ("keeps all", r#"picks "seven-1""#));
        assert_eq!(case.question, r#"2 values: "seven-1", "seven-2""#);
        assert_eq!(dry.in_force().is_some(), bound);
        assert_eq!(world.host.bindings().len(), usize::from(bound));
        // And once more, compared with a resolver that keeps all.
        if !bound {
            world.put("a", Hook::ConflictResolver, &Guest::resolver("keeps").build()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_policy_is_asked_what_was_asked_last_and_nobody_counts_it() {
    let world = World::new();
    world.put("a", Hook::ConsistencyPolicy, &Guest::policy("pol", 1).build()).await.unwrap();
    assert_eq!(world.host.recent_questions(&tenant("a")), []);
    let hooks = world.hooks("a");
    let asked = hooks.policy(&question(10));
    hooks.policy_answered(&key("k"), &question(10), &asked);
    let recent = world.host.recent_questions(&tenant("a"));
    assert_eq!(recent, [policy_question(10)]);
    assert_eq!(world.host.recent_questions(&tenant("b")), [], "another tenant's");

    let mut dry = world.dry(Hook::ConsistencyPolicy, &Guest::policy("pol", 3).build()).await;
    let (before, (events, _)) = (world.host.bindings(), world.host.watch());
    for question in recent {
        assert!(dry.ask(question, soon()).await);
    }
    let found = dry.findings();
    assert_eq!((found.asked, found.differing), (1, 1), "{found:?}");
    let case = &found.cases[0];
    assert!(case.in_force.starts_with("requires 1") && case.tried.starts_with("requires 3"), "{case:?}");
    assert!(case.question.starts_with("write at level quorum, 10 bytes"), "{case:?}");
    assert_eq!(world.host.bindings(), before, "no call is counted");
    assert_eq!(world.host.watch().0, events);
    assert_eq!(required(&world.hooks("a").policy(&question(10))), 1);
}

#[tokio::test]
async fn of_a_routing_hook_it_is_said_how_many_keys_would_move() {
    let world = World::new();
    let state = ReplicaState { reachable: true, latency_p50_us: 1, latency_p99_us: 1, in_flight: 0 };
    let replica = |node: &str| ReadReplica { node: NodeId::new(node).unwrap(), state, load: 0, zone: None };
    let about = |name: &'static str| {
        Question::Routing(RoutingQuestion {
            key: key(name),
            partition: key(name).bytes().clone(),
            replicas: ["x", "y"].map(replica).into(),
            zone: None,
            native: vec![1, 0],
        })
    };
    // All keys are in the partition 'p', and so is that key now.
    let mut dry = world.dry(Hook::RoutingHook, &Guest::routing("all-in-p").build()).await;
    for name in ["p", "q", "rs"] {
        assert!(dry.ask(about(name), soon()).await);
    }
    let found = dry.findings();
    assert_eq!((found.asked, found.equal, found.differing, found.moving), (3, 1, 2, 2), "{found:?}");
    assert_eq!(found.cases[0].tried, r#"partition "p", read from y, x"#);
}

/// Each question may take as long as any call, and they are spread over time.
#[tokio::test]
async fn a_guest_that_never_ends_is_stopped_and_told_and_the_run_ends_in_time() {
    let world = World::with(brief());
    let endless = Guest::policy("endless", 2).when_triggered("(loop $again (br $again))").build();
    let mut dry = world.dry(Hook::ConsistencyPolicy, &endless).await;
    let (events, _) = world.host.watch();
    assert!(dry.ask(policy_question(666), soon()).await);
    let found = dry.findings().clone();
    assert_eq!((found.asked, found.faulted), (1, 1), "{found:?}");
    assert_eq!(found.cases[0].tried, "ran longer than 5 ms of CPU time");
    assert!(found.cases[0].in_force.starts_with("requires 2"), "the native rule");

    // Far fewer than there are, since they have a tenth of a core.
    let until = Instant::now() + Duration::from_secs(2);
    while dry.ask(policy_question(666), until).await {
        assert!(dry.findings().asked < 200, "it may use the CPU as it likes");
    }
    assert!(Instant::now() >= until);
    let found = dry.findings();
    assert!(found.asked == found.faulted && found.cases.len() <= 16, "{found:?}");
    assert_eq!(world.host.watch().0, events, "nobody else hears of it");
    // And a question that does not trigger it is answered all the same.
    assert!(dry.ask(policy_question(1), soon()).await);
    assert_eq!(dry.findings().differing + dry.findings().equal, 1);
}

#[tokio::test]
async fn what_cannot_be_bound_is_not_tried_either() {
    let world = World::new();
    let digest = world.stage(&Guest::policy("pol", 1).build()).await.unwrap();
    let other_hook = world.host.dry_run(request(Hook::ConflictResolver, Reference::Digest(digest))).await;
    assert!(
        matches!(&other_hook, Err(PluginError::Invalid(why)) if why.contains("is a consistency-policy")),
        "{other_hook:?}"
    );
    let unknown = Reference::parse("nobody@1.0.0").unwrap();
    let unknown = world.host.dry_run(request(Hook::ConsistencyPolicy, unknown)).await;
    assert!(matches!(unknown, Err(PluginError::NotFound(_))), "{unknown:?}");
    let configuration = Bytes::from(vec![b'x'; (64 << 10) + 1]);
    let large = DryRunRequest { configuration, ..request(Hook::ConsistencyPolicy, Reference::Digest(digest)) };
    let large = world.host.dry_run(large).await;
    assert!(matches!(&large, Err(PluginError::Invalid(why)) if why.contains("65536")), "{large:?}");
    assert_eq!(world.host.bindings(), []);
}
