//! The life of a plugin: bound, replaced, rolled back, unbound, removed; kept over a restart; no longer asked when it keeps failing.

use std::time::Duration;

use witan_kernel::hook::{Asked, FaultKind, Hook, Partition};
use witan_kernel::name::Key;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;
use witan_plugin::registry::Source;
use witan_plugin::{Limits, OnFault, PluginError, Reference};

use crate::guest::Guest;
use crate::{LONG, World, ample, name, question, reason, required, tenant, wait_for, wait_for_kind};

const POLICY: Hook = Hook::ConsistencyPolicy;

fn policy(required: u8) -> Vec<u8> {
    Guest::policy("pol", required).build()
}

#[tokio::test]
async fn nothing_bound_is_unbound() {
    let world = World::new();
    let hooks = world.hooks("a");
    assert_eq!(hooks.policy(&question(1)), Asked::Unbound);
    assert!(!hooks.has_policy() && !hooks.has_resolver());
    world.put("b", POLICY, &policy(1)).await.unwrap();
    assert_eq!(world.hooks("a").policy(&question(1)), Asked::Unbound, "another tenant's");
}

#[tokio::test]
async fn a_tenants_own_binding_goes_before_the_default() {
    let world = World::new();
    world.put("", POLICY, &policy(1)).await.unwrap();
    world.put("own", POLICY, &policy(3)).await.unwrap();
    assert_eq!(required(&world.hooks("any").policy(&question(1))), 1);
    assert_eq!(required(&world.hooks("own").policy(&question(1))), 3);
    world.host.unbind(Some(tenant("own")), POLICY, Author::default()).await.unwrap();
    assert_eq!(required(&world.hooks("own").policy(&question(1))), 1);
}

#[tokio::test]
async fn a_request_keeps_the_snapshot_that_it_took() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    let before = world.hooks("a");
    world.put("a", POLICY, &policy(2)).await.unwrap();
    assert_eq!(required(&before.policy(&question(1))), 1);
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
    drop(before);
    let drained = wait_for_kind(&mut events, EventKind::Drained).await;
    assert!(drained.detail.contains("version 1"), "{}", drained.detail);
}

#[tokio::test]
async fn rollbacks_go_back_one_version_each() {
    let world = World::new();
    for required in 1..=3 {
        let binding = world.put("a", POLICY, &policy(required)).await.unwrap();
        assert_eq!(binding.record.current.number, u64::from(required));
    }
    for (number, wanted) in [(4, 2), (5, 1)] {
        let binding = world.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
        assert_eq!(binding.record.current.number, number);
        assert_eq!(required(&world.hooks("a").policy(&question(1))), wanted);
    }
    let error = world.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap_err();
    assert!(matches!(error, PluginError::Invalid(_)), "{error}");
    let error = world.host.rollback(None, POLICY, Author::default()).await.unwrap_err();
    assert!(matches!(error, PluginError::NotFound(_)), "{error}");
}

#[tokio::test]
async fn binding_what_is_in_force_changes_nothing() {
    let world = World::new();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    let binding = world.put("a", POLICY, &policy(1)).await.unwrap();
    assert_eq!((binding.record.current.number, binding.record.previous.len()), (1, 0));
}

#[tokio::test]
async fn names_mean_the_newest() {
    let world = World::new();
    let old = world.stage(&policy(1)).await.unwrap();
    let new = world.stage(&policy(2)).await.unwrap();
    assert_eq!(world.bind("a", POLICY, name("pol")).await.unwrap().record.current.digest, new);
    assert_eq!(world.bind("b", POLICY, name("pol@1.0.0")).await.unwrap().record.current.digest, new);
    let error = world.bind("c", POLICY, name("pol@2.0.0")).await.unwrap_err();
    assert!(matches!(error, PluginError::NotFound(_)), "{error}");
    let listed: Vec<_> = world.host.artifacts().iter().map(|artifact| artifact.digest).collect();
    assert_eq!(listed, [new, old]);
    assert_eq!(world.host.artifacts()[0].source, Source::Upload);
}

#[tokio::test]
async fn a_restart_finds_everything_and_compiles_nothing() {
    let world = World::new();
    world.put("", POLICY, &policy(1)).await.unwrap();
    world.put("", POLICY, &policy(3)).await.unwrap();
    let world = world.restart();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 3);
    world.host.rollback(None, POLICY, Author::default()).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
    let (events, _) = world.host.watch();
    assert!(events.iter().all(|event| event.kind != EventKind::Compiled), "{events:?}");
}

#[tokio::test]
async fn a_missing_component_faults_and_does_not_prevent_a_start() {
    let world = World::new();
    let binding = world.put("a", POLICY, &policy(1)).await.unwrap();
    world.put("b", POLICY, &policy(2)).await.unwrap();
    let digest = binding.record.current.digest;
    std::fs::remove_file(world.dir.path().join(format!("data/components/{digest}.wasm"))).unwrap();
    let world = world.restart();
    let reason = reason(world.hooks("a").policy(&question(1)));
    assert!(reason.contains("cannot be loaded"), "{reason}");
    assert!(reason.starts_with(&format!("pol@{}", &digest.to_string()[..8])), "{reason}");
    assert!(world.host.bindings().iter().any(|binding| binding.broken.is_some()));
    assert_eq!(required(&world.hooks("b").policy(&question(1))), 2);
    // Once another component is staged, the tenant can be bound again.
    world.put("a", POLICY, &policy(3)).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 3);
}

#[tokio::test]
async fn what_is_bound_is_not_removed() {
    let world = World::new();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    world.put("a", POLICY, &policy(2)).await.unwrap();
    for artifact in world.host.artifacts().iter() {
        let error = world.host.remove(None, Reference::Digest(artifact.digest)).await.unwrap_err();
        assert!(matches!(error, PluginError::InUse(_)), "{error}");
    }
    world.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    world.host.remove(None, name("pol")).await.unwrap();
    assert_eq!(world.host.artifacts().len(), 1);
}

#[tokio::test]
async fn a_refused_change_leaves_the_old_binding_in_force() {
    let world = World::new();
    world.put("a", POLICY, &policy(2)).await.unwrap();
    let trap = Guest::policy("pol", 1).with(|guest| guest.answer = "unreachable".into()).build();
    let error = world.put("a", POLICY, &trap).await.unwrap_err().to_string();
    assert!(error.contains("trapped") && error.contains("0 replicas"), "{error}");
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
    assert_eq!(world.host.bindings()[0].record.current.number, 1);
}

fn quick_breaker() -> Limits {
    Limits { breaker_calls: 3, cool_down: Duration::from_millis(50), ..ample() }
}

fn trapping(required: u8) -> Vec<u8> {
    Guest::policy("pol", required).when_triggered("unreachable").build()
}

#[tokio::test]
async fn after_enough_faults_the_previous_version_answers() {
    let world = World::with(Limits { cool_down: Duration::from_secs(600), ..quick_breaker() });
    let (_, mut events) = world.host.watch();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    world.put("a", POLICY, &trapping(2)).await.unwrap();
    let hooks = world.hooks("a");
    (0..3).for_each(|_| _ = reason(hooks.policy(&question(666))));
    assert_eq!(world.host.bindings()[0].breakers.tenants, 1);
    let opened = wait_for_kind(&mut events, EventKind::BreakerOpened).await;
    assert!(opened.detail.contains("answers instead"), "{}", opened.detail);
    assert_eq!(required(&hooks.policy(&question(666))), 1, "the version before");
}

#[tokio::test]
async fn without_a_previous_version_the_binding_decides() {
    for on_fault in [OnFault::Native, OnFault::Fail] {
        let world = World::with(quick_breaker());
        let (_, mut events) = world.host.watch();
        let digest = world.stage(&trapping(2)).await.unwrap();
        world.bind_with("a", POLICY, Reference::Digest(digest), b"", on_fault).await.unwrap();
        let hooks = world.hooks("a");
        for _ in 0..5 {
            let asked = hooks.policy(&question(666));
            assert!(matches!(asked, Asked::Faulted { fail, .. } if fail == (on_fault == OnFault::Fail)), "{asked:?}");
        }
        wait_for_kind(&mut events, EventKind::BreakerOpened).await;
        // After the cool-down some calls try it. They are answered, and then all are made again.
        let closed = async {
            while world.host.bindings()[0].breakers.tenants > 0 {
                let asked = hooks.policy(&question(1));
                assert!(
                    matches!(asked, Asked::Answered { .. } | Asked::Faulted { kind: FaultKind::Breaker, .. }),
                    "{asked:?}"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, closed).await.unwrap();
        assert_eq!(required(&hooks.policy(&question(1))), 2);
        wait_for_kind(&mut events, EventKind::BreakerClosed).await;
    }
}

#[tokio::test]
async fn partition_keys_never_come_from_another_version() {
    let world = World::with(Limits { cool_down: Duration::from_secs(600), ..quick_breaker() });
    world.put("a", Hook::RoutingHook, &Guest::routing("good").build()).await.unwrap();
    world.put("a", Hook::RoutingHook, &Guest::routing("bad").when_triggered("unreachable").build()).await.unwrap();
    let hooks = world.hooks("a");
    for _ in 0..5 {
        let asked = hooks.partition_key(0, &Key::new("abc").unwrap());
        assert!(matches!(asked, Partition::Faulted { .. }), "{asked:?}");
    }
}

#[tokio::test]
async fn each_tenant_has_its_own_instances() {
    // Requires one more replica each time it is asked.
    let counting = Guest::policy("pol", 0).with(|guest| {
        guest.answer = "(global.set $state (i32.add (global.get $state) (i32.const 1)))
            (i32.store8 (i32.const 504) (global.get $state)) (i32.const 500)"
            .into();
    });
    let world = World::new();
    // It is not deterministic, and declares so.
    let component = counting.with(|guest| {
        guest.describe = "(i32.store8 (i32.const 124) (i32.const 0)) (i32.const 100)".into();
    });
    world.put("", POLICY, &component.build()).await.unwrap();
    let ask = |tenant: &str| required(&world.hooks(tenant).policy(&question(1)));
    assert_eq!((ask("a"), ask("a"), ask("a")), (1, 2, 3));
    assert_eq!(ask("b"), 1);
}

#[tokio::test]
async fn a_configuration_that_the_plugin_refuses_is_not_bound() {
    // One issue: at "a", problem "no".
    let issue = [1, 0, 0, 0, 0x2c, 3, 0, 0, 1, 0, 0, 0]; // list at 812
    let text = [0x3c, 3, 0, 0, 1, 0, 0, 0, 0x3d, 3, 0, 0, 2, 0, 0, 0, b'a', b'n', b'o']; // texts at 828
    let picky = Guest::policy("pol", 1).with(|guest| {
        guest.configure = "(if (local.get 1) (then (return (i32.const 800)))) (i32.const 400)".into();
        guest.fields.push_str(&crate::guest::data(800, &issue));
        guest.fields.push_str(&crate::guest::data(812, &text));
    });
    let world = World::new();
    let digest = Reference::Digest(world.stage(&picky.build()).await.unwrap());
    let error = world.bind_with("a", POLICY, digest.clone(), b"x", OnFault::Native).await.unwrap_err().to_string();
    assert!(error.contains("refuses its configuration: a: no"), "{error}");
    world.bind("a", POLICY, digest).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
}

#[tokio::test]
async fn events_report_every_step() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    for kind in [EventKind::Staged, EventKind::Compiled, EventKind::Ready, EventKind::Activated] {
        wait_for(&mut events, |event| event.kind == kind).await;
    }
    let (_, counts) = world.host.counts()[0];
    assert_eq!(counts.swaps, 1);
}
