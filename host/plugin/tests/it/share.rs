//! Hosts that share a store: what one takes in, binds, rolls back or removes holds for all.

use witan_kernel::hook::{Asked, Hook};
use witan_plugin::event::EventKind;
use witan_plugin::{InMemoryPlugins, PluginError, Reference};

use crate::guest::Guest;
use crate::{World, name, place, question, required, tenant, wait_for_kind};

const POLICY: Hook = Hook::ConsistencyPolicy;

fn policy(required: u8) -> Vec<u8> {
    Guest::policy("pol", required).build()
}

fn answer(world: &World) -> u8 {
    required(&world.hooks("a").policy(&question(1)))
}

#[tokio::test]
async fn what_one_takes_in_another_binds_before_it_was_told() {
    let store = InMemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    let digest = first.stage(&policy(1)).await.unwrap();
    second.bind("a", POLICY, Reference::Digest(digest)).await.unwrap();
    assert_eq!(answer(&second), 1);
    assert_eq!(first.hooks("a").policy(&question(1)), Asked::Unbound, "it was not told");
    let (_, mut events) = first.host.watch();
    first.host.refresh(Some(vec![(Some(tenant("a")), POLICY)])).await.unwrap();
    wait_for_kind(&mut events, EventKind::Activated).await;
    assert_eq!(answer(&first), 1);
    // By name, the newest of all is meant, wherever it came in.
    second.stage(&policy(2)).await.unwrap();
    first.bind("a", POLICY, name("pol")).await.unwrap();
    assert_eq!(answer(&first), 2);
    // Told more than once, or with nothing new, nothing is swapped.
    let before = first.host.counts()[POLICY as usize].1.swaps;
    first.host.refresh(None).await.unwrap();
    assert_eq!(first.host.counts()[POLICY as usize].1.swaps, before);
}

#[tokio::test]
async fn a_change_starts_from_what_holds_and_not_from_what_was_heard() {
    let store = InMemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    first.put("a", POLICY, &policy(1)).await.unwrap();
    second.put("a", POLICY, &policy(2)).await.unwrap();
    let third = first.put("a", POLICY, &policy(3)).await.unwrap();
    assert_eq!(third.record.current.number, 3, "it has seen the second");
    // One that has heard of none of it goes one back, and that is the second.
    let back = second.host.rollback(Some(tenant("a")), POLICY).await.unwrap();
    assert_eq!((back.record.current.number, answer(&second)), (4, 2));
    first.host.unbind(Some(tenant("a")), POLICY).await.unwrap();
    let gone = second.host.rollback(Some(tenant("a")), POLICY).await.unwrap_err();
    assert!(matches!(gone, PluginError::NotFound(_)), "{gone}");
    assert_eq!(second.hooks("a").policy(&question(1)), Asked::Unbound);
}

#[tokio::test]
async fn a_host_with_an_empty_disk_finds_everything_in_the_store() {
    let store = InMemoryPlugins::default();
    let first = World::of_cluster(&store);
    first.put("a", POLICY, &policy(1)).await.unwrap();
    first.put("a", POLICY, &policy(2)).await.unwrap();
    drop(first);
    let second = World::of_cluster(&store);
    assert_eq!((second.host.artifacts().len(), answer(&second)), (2, 2));
    second.host.rollback(Some(tenant("a")), POLICY).await.unwrap();
    assert_eq!(answer(&second), 1);
}

#[tokio::test]
async fn what_another_has_bound_is_not_removed_and_what_it_has_removed_is_gone() {
    let store = InMemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    let digest = first.stage(&policy(1)).await.unwrap();
    second.bind("a", POLICY, Reference::Digest(digest)).await.unwrap();
    let refused = first.host.remove(Reference::Digest(digest)).await.unwrap_err();
    assert!(matches!(refused, PluginError::InUse(_)), "{refused}");
    first.host.unbind(Some(tenant("a")), POLICY).await.unwrap();
    first.host.remove(Reference::Digest(digest)).await.unwrap();
    second.host.refresh(None).await.unwrap();
    assert_eq!((second.host.artifacts().len(), second.host.bindings().len()), (0, 0));
    let refused = second.bind("a", POLICY, Reference::Digest(digest)).await.unwrap_err();
    assert!(matches!(refused, PluginError::NotFound(_)), "{refused}");
}

#[tokio::test]
async fn folders_that_differ_do_not_pull_a_binding_to_and_fro() {
    let store = InMemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    for world in [&first, &second] {
        place(&world.folder().join("p.wasm"), &policy(1));
        world.host.scan().await.unwrap();
    }
    first.bind("a", POLICY, name("pol")).await.unwrap();
    second.host.refresh(None).await.unwrap();
    let (_, mut events) = first.host.watch();
    place(&first.folder().join("p.wasm"), &policy(2));
    wait_for_kind(&mut events, EventKind::Activated).await;
    second.host.refresh(None).await.unwrap();
    second.host.scan().await.unwrap();
    assert_eq!(answer(&second), 2, "the other's file is newer than what lies here");
    // Nor does a start with the older file; one with a newer file is followed.
    let second = second.restart();
    assert_eq!(answer(&second), 2);
    place(&second.folder().join("p.wasm"), &policy(3));
    let second = second.restart();
    assert_eq!(answer(&second), 3);
    first.host.refresh(None).await.unwrap();
    first.host.scan().await.unwrap();
    assert_eq!(answer(&first), 3);
}

#[tokio::test]
async fn the_same_file_in_every_folder_is_followed_once() {
    let store = InMemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    for world in [&first, &second] {
        place(&world.folder().join("p.wasm"), &policy(1));
        world.host.scan().await.unwrap();
    }
    first.bind("a", POLICY, name("pol")).await.unwrap();
    second.host.refresh(None).await.unwrap();
    for world in [&first, &second] {
        place(&world.folder().join("p.wasm"), &policy(2));
        world.host.scan().await.unwrap();
    }
    let number = |world: &World| world.host.bindings()[0].record.current.number;
    second.host.refresh(None).await.unwrap();
    first.host.refresh(None).await.unwrap();
    assert_eq!((number(&first), number(&second)), (2, 2), "one change, not two");
    assert_eq!((answer(&first), answer(&second)), (2, 2));
}
