//! Pushes that nobody waits for: what is known of them, on every host that shares the store, and that each component is staged once.

use bytes::Bytes;
use tokio::sync::oneshot;
use witan_kernel::port::{PluginStore, PushOnRecord, PushState};
use witan_memory::MemoryPlugins;
use witan_plugin::registry::Pushed;
use witan_plugin::{Digest, PluginError, Push};

use crate::guest::Guest;
use crate::{LONG, World, ample, coordinator, start, tenant};

/// A policy that takes a second or more to compile.
fn slow_to_compile() -> Vec<u8> {
    let sum = "(i32.add (local.get 0) (i32.mul (local.get 0) ".repeat(40) + "(local.get 0)" + &"))".repeat(40);
    let function = format!("(func (param i32) (result i32) {sum})");
    Guest::policy("slow", 1).with(|guest| guest.fields += &function.repeat(1500)).build()
}

/// Pushes a component for all tenants; the receiver hears when the work on it has ended.
async fn push(world: &World, component: &[u8]) -> (Result<Pushed, PluginError>, oneshot::Receiver<()>) {
    let (held, ended) = oneshot::channel::<()>();
    (world.host.push(Bytes::copy_from_slice(component), held).await, ended)
}

async fn end(ended: oneshot::Receiver<()>) {
    // The sender is dropped.
    tokio::time::timeout(LONG, ended).await.expect("it ends").expect_err("nothing is sent");
}

fn under_way(pushed: Result<Pushed, PluginError>) -> PushOnRecord {
    match pushed {
        Ok(Pushed::UnderWay(push)) => push,
        other => panic!("it is not under way: {other:?}"),
    }
}

fn seen(world: &World, digest: Digest) -> (PushState, String) {
    let push = world.store.push(None, digest).unwrap().expect("on record");
    (push.state, push.reason)
}

#[tokio::test]
async fn a_push_is_answered_at_once_and_goes_on() {
    let world = World::new();
    let component = slow_to_compile();
    let (answer, ended) = push(&world, &component).await;
    let begun = under_way(answer);
    assert_eq!(
        (begun.state, begun.digest, begun.size),
        (PushState::Staged, Digest::of(&component), component.len() as u64)
    );
    assert!(world.host.artifacts().is_empty(), "nothing waits for it to be compiled");
    end(ended).await;
    assert_eq!(seen(&world, begun.digest), (PushState::Ready, String::new()));
    assert_eq!(world.host.artifacts()[0].digest, begun.digest);
    let (again, ended) = push(&world, &component).await;
    assert!(matches!(again, Ok(Pushed::Ready(ready)) if ready.digest == begun.digest));
    end(ended).await;
}

#[tokio::test]
async fn a_refused_push_says_why_until_it_is_pushed_again() {
    let store = MemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    let (answer, ended) = push(&first, b"\0asm\x0d\0\x01\0").await;
    let digest = under_way(answer).digest;
    end(ended).await;
    let (state, reason) = seen(&second, digest);
    assert_eq!(state, PushState::Refused);
    let waited = first.stage(b"\0asm\x0d\0\x01\0").await.unwrap_err();
    assert_eq!(reason, waited.to_string(), "as who waits reads");
    let (again, ended) = push(&second, b"\0asm\x0d\0\x01\0").await;
    assert_eq!(under_way(again).worker, coordinator(&second.dir), "another attempt, of another coordinator");
    end(ended).await;
}

#[tokio::test]
async fn the_same_component_is_staged_once_in_the_cluster() {
    let store = MemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    let component = slow_to_compile();
    let (begun, ended) = push(&first, &component).await;
    let begun = under_way(begun);
    for world in [&first, &second] {
        let (same, not_begun) = push(world, &component).await;
        assert_eq!(under_way(same).worker, begun.worker);
        end(not_begun).await;
    }
    end(ended).await;
    assert_eq!(seen(&second, begun.digest).0, PushState::Ready);
    let compiled = [&first, &second].map(|world| world.host.compilations().compiled);
    assert_eq!(compiled, [1, 0], "one of them has compiled it, once");
    second.host.learn().await.unwrap();
    assert_eq!(second.host.artifacts()[0].digest, begun.digest);
}

#[tokio::test]
async fn owners_do_not_notice_each_others_pushes() {
    let world = World::new();
    let component = Bytes::from(Guest::policy("own", 1).build());
    let of = |owner: &str| Push { owner: Some(tenant(owner)), bytes: component.clone(), signature: None };
    for owner in ["a", "b"] {
        let (held, ended) = oneshot::channel::<()>();
        let begun = under_way(world.host.push(of(owner), held).await);
        assert_eq!((begun.state, begun.owner), (PushState::Staged, Some(tenant(owner))));
        assert_eq!(world.store.push(None, begun.digest), Ok(None));
        end(ended).await;
    }
}

#[tokio::test]
async fn what_a_stop_has_interrupted_is_given_up_at_the_next_start() {
    let world = World::new();
    let digest = Digest::of(b"interrupted");
    let push = |worker| PushOnRecord {
        owner: None,
        digest,
        size: 11,
        state: PushState::Staged,
        reason: String::new(),
        worker,
        since_ms: 0,
    };
    let own = coordinator(&world.dir);
    world.store.begin_push(push(own.clone())).unwrap();
    assert!(world.store.step_push(PushOnRecord { state: PushState::Compiling, ..push(own) }).unwrap());
    let World { dir, store, host } = world;
    drop(host);
    let host = start(&dir, &store, ample());
    let world = World { dir, store, host };
    let (state, reason) = seen(&world, digest);
    assert_eq!(state, PushState::Refused);
    assert!(reason.contains("was stopped") && reason.contains("push it again"), "{reason}");
}
