//! Hosts that share a store: components and bindings that one of them changes change for all.

use witan_kernel::hook::{Asked, Hook};
use witan_kernel::port::Slot;
use witan_memory::MemoryPlugins;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;
use witan_plugin::{PluginError, Reference};

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
async fn a_component_staged_by_one_host_can_be_bound_by_another_at_once() {
    let store = MemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    let digest = first.stage(&policy(1)).await.unwrap();
    second.bind("a", POLICY, Reference::Digest(digest)).await.unwrap();
    assert_eq!(answer(&second), 1);
    assert_eq!(first.hooks("a").policy(&question(1)), Asked::Unbound, "it has not been notified");
    let (_, mut events) = first.host.watch();
    first.host.refresh(Some(vec![Slot { tenant: Some(tenant("a")), hook: POLICY }])).await.unwrap();
    wait_for_kind(&mut events, EventKind::Activated).await;
    assert_eq!(answer(&first), 1);
    // A name means the newest component, whichever host staged it.
    second.stage(&policy(2)).await.unwrap();
    first.bind("a", POLICY, name("pol")).await.unwrap();
    assert_eq!(answer(&first), 2);
    // A notification without a change swaps nothing.
    let before = first.host.counts()[POLICY as usize].1.swaps;
    first.host.refresh(None).await.unwrap();
    assert_eq!(first.host.counts()[POLICY as usize].1.swaps, before);
}

#[tokio::test]
async fn a_change_starts_from_the_stored_binding_and_not_from_the_last_notification() {
    let store = MemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    first.put("a", POLICY, &policy(1)).await.unwrap();
    second.put("a", POLICY, &policy(2)).await.unwrap();
    let third = first.put("a", POLICY, &policy(3)).await.unwrap();
    assert_eq!(third.record.current.number, 3, "it has seen the second");
    // A host that was notified of none of this rolls back to the second version.
    let back = second.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    assert_eq!((back.record.current.number, answer(&second)), (4, 2));
    first.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    let gone = second.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap_err();
    assert!(matches!(gone, PluginError::NotFound(_)), "{gone}");
    assert_eq!(second.hooks("a").policy(&question(1)), Asked::Unbound);
}

#[tokio::test]
async fn a_host_with_an_empty_disk_finds_everything_in_the_store() {
    let store = MemoryPlugins::default();
    let first = World::of_cluster(&store);
    first.put("a", POLICY, &policy(1)).await.unwrap();
    first.put("a", POLICY, &policy(2)).await.unwrap();
    drop(first);
    let second = World::of_cluster(&store);
    assert_eq!((second.host.artifacts().len(), answer(&second)), (2, 2));
    second.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    assert_eq!(answer(&second), 1);
}

#[tokio::test]
async fn a_plugin_bound_elsewhere_is_not_removed_and_one_removed_elsewhere_is_not_found() {
    let store = MemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    let digest = first.stage(&policy(1)).await.unwrap();
    second.bind("a", POLICY, Reference::Digest(digest)).await.unwrap();
    let refused = first.host.remove(None, Reference::Digest(digest)).await.unwrap_err();
    assert!(matches!(refused, PluginError::InUse(_)), "{refused}");
    first.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    first.host.remove(None, Reference::Digest(digest)).await.unwrap();
    second.host.refresh(None).await.unwrap();
    assert_eq!((second.host.artifacts().len(), second.host.bindings().len()), (0, 0));
    let refused = second.bind("a", POLICY, Reference::Digest(digest)).await.unwrap_err();
    assert!(matches!(refused, PluginError::NotFound(_)), "{refused}");
}

#[tokio::test]
async fn different_folders_do_not_make_a_binding_alternate() {
    let store = MemoryPlugins::default();
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
    assert_eq!(answer(&second), 2, "the other host's file is newer than this one's");
    // A start with the older file does not change that; a newer file is followed.
    let second = second.restart();
    second.scanned().await;
    assert_eq!(answer(&second), 2);
    place(&second.folder().join("p.wasm"), &policy(3));
    let second = second.restart();
    second.scanned().await;
    assert_eq!(answer(&second), 3);
    first.host.refresh(None).await.unwrap();
    first.host.scan().await.unwrap();
    assert_eq!(answer(&first), 3);
}

#[tokio::test]
async fn the_same_file_in_every_folder_is_followed_once() {
    let store = MemoryPlugins::default();
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
