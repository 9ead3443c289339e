//! The watched folder: files that appear are staged, bindings by name follow them, and half-written files are not staged.

use witan_kernel::hook::Hook;
use witan_plugin::Reference;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;

use crate::guest::Guest;
use crate::{LONG, World, name, place, question, required, tenant, wait_for, wait_for_kind};

const POLICY: Hook = Hook::ConsistencyPolicy;

fn policy(required: u8) -> Vec<u8> {
    Guest::policy("pol", required).build()
}

#[tokio::test]
async fn a_binding_by_name_follows_the_file_and_one_by_digest_does_not() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    let file = world.folder().join("any-name.wasm");
    place(&file, &policy(1));
    wait_for_kind(&mut events, EventKind::Ready).await;
    let first = world.bind("name", POLICY, name("pol")).await.unwrap().record.current.digest;
    world.bind("digest", POLICY, Reference::Digest(first)).await.unwrap();
    place(&file, &policy(3));
    wait_for(&mut events, |event| event.kind == EventKind::Activated && event.digest != Some(first)).await;
    assert_eq!(required(&world.hooks("name").policy(&question(1))), 3);
    assert_eq!(required(&world.hooks("digest").policy(&question(1))), 1);
    // The file that was rolled back from does not undo the rollback; the next file is followed again.
    world.host.rollback(Some(tenant("name")), POLICY, Author::default()).await.unwrap();
    world.host.scan().await.unwrap();
    assert_eq!(required(&world.hooks("name").policy(&question(1))), 1);
    place(&file, &policy(2));
    wait_for_kind(&mut events, EventKind::Activated).await;
    assert_eq!(required(&world.hooks("name").policy(&question(1))), 2);
}

#[tokio::test]
async fn the_content_of_the_folder_is_known_from_the_start() {
    let world = World::new();
    place(&world.folder().join("a.wasm"), &policy(1));
    let world = world.restart();
    world.scanned().await;
    assert_eq!(world.host.artifacts().len(), 1);
    world.bind("a", POLICY, name("pol")).await.unwrap();
    // Replaced between two starts.
    place(&world.folder().join("a.wasm"), &policy(2));
    let world = world.restart();
    world.scanned().await;
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
}

/// Each of these makes whoever opens it wait for ever, or read without an end.
#[tokio::test]
async fn what_is_no_regular_file_holds_up_nothing() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    for (file, required) in [("a.wasm", 1), ("b.wasm", 2)] {
        place(&world.folder().join(file), &policy(required));
        wait_for_kind(&mut events, EventKind::Ready).await;
    }
    let fifo = world.folder().join("0.wasm");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    std::os::unix::fs::symlink("/dev/zero", world.folder().join("1.wasm")).unwrap();
    std::os::unix::fs::symlink(&fifo, world.folder().join("2.wasm")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.folder().join("3.wasm")).unwrap();
    let changes = async {
        world.host.scan().await.unwrap();
        world.bind("a", POLICY, name("pol")).await.unwrap();
        world.put("a", POLICY, &policy(3)).await.unwrap();
        world.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    };
    tokio::time::timeout(LONG, changes).await.expect("changes go on");
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
    let restarted = tokio::task::spawn_blocking(|| world.restart());
    let world = tokio::time::timeout(LONG, restarted).await.expect("it starts").unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
    assert_eq!(world.host.artifacts().len(), 3, "nothing but the regular files and the upload");
}

#[tokio::test]
async fn a_folder_that_hangs_delays_neither_a_change_nor_the_next_start() {
    let world = World::new();
    let (answer, gate) = std::sync::mpsc::channel::<()>();
    let folder = world.folder();
    let hangs = move || witan_file::in_time(&folder, move || Ok(_ = gate.recv()));
    tokio::task::spawn_blocking(hangs).await.unwrap().unwrap_err();
    world.host.scan().await.unwrap();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    world.put("a", POLICY, &policy(2)).await.unwrap();
    world.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    let world = tokio::task::spawn_blocking(|| world.restart()).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
    place(&world.folder().join("a.wasm"), &policy(3));
    world.host.scan().await.unwrap();
    assert_eq!(world.host.artifacts().len(), 2, "it hangs still");
    drop(answer);
    let staged = async {
        while world.host.artifacts().len() == 2 {
            world.host.scan().await.unwrap();
        }
    };
    tokio::time::timeout(LONG, staged).await.expect("it is read once it answers");
}

#[tokio::test]
async fn a_half_written_file_is_refused_and_the_whole_one_staged() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    let (file, whole) = (world.folder().join("a.wasm"), policy(1));
    place(&file, &whole[..whole.len() / 2]);
    let refused = wait_for_kind(&mut events, EventKind::Refused).await;
    assert!(refused.detail.contains("ends early"), "{}", refused.detail);
    place(&file, &whole);
    wait_for_kind(&mut events, EventKind::Ready).await;
}

#[tokio::test]
async fn a_bad_replacement_leaves_the_good_one_in_force() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    let file = world.folder().join("a.wasm");
    place(&file, &policy(1));
    wait_for_kind(&mut events, EventKind::Ready).await;
    world.bind("a", POLICY, name("pol")).await.unwrap();
    for bad in
        [b"(component)".to_vec(), Guest::policy("pol", 2).with(|guest| guest.answer = "unreachable".into()).build()]
    {
        place(&file, &bad);
        wait_for_kind(&mut events, EventKind::Refused).await;
        assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
    }
}

#[tokio::test]
async fn a_routing_hook_never_follows() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    let file = world.folder().join("a.wasm");
    place(&file, &Guest::routing("tags").build());
    wait_for_kind(&mut events, EventKind::Ready).await;
    let first = world.bind("a", Hook::RoutingHook, name("tags")).await.unwrap().record.current.digest;
    place(&file, &Guest::routing("tags").when_triggered("nop").build());
    wait_for_kind(&mut events, EventKind::Ready).await;
    world.host.scan().await.unwrap();
    assert_eq!(world.host.bindings()[0].record.current.digest, first);
}
