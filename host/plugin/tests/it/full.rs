//! A library that is full: what makes room for another component, and what never does.

use witan_kernel::hook::Hook;
use witan_memory::MemoryPlugins;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;
use witan_plugin::limit;
use witan_plugin::registry::Source;

use crate::guest::Guest;
use crate::{World, name, place, question, required, tenant};

const POLICY: Hook = Hook::ConsistencyPolicy;

fn policy(name: &str, required: u8) -> Vec<u8> {
    Guest::policy(name, required).build()
}

fn knows(world: &World, name: &str) -> bool {
    world.host.artifacts().iter().any(|artifact| artifact.name == name)
}

/// The oldest components of all are a file of the watched folder, a bound one, and one that is held for a rollback.
#[tokio::test]
async fn uploads_evict_uploads_that_nothing_needs() {
    let store = MemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    // Known as an upload, and a file of the other host only.
    first.stage(&policy("theirs", 1)).await.unwrap();
    place(&second.folder().join("theirs.wasm"), &policy("theirs", 1));
    second.host.scan().await.unwrap();
    // Bound by the other host, of which this one has not heard.
    first.stage(&policy("elsewhere", 1)).await.unwrap();
    second.bind("c", POLICY, name("elsewhere")).await.unwrap();
    // Uploaded before it was a file, and therefore known as an upload.
    first.stage(&policy("filed", 1)).await.unwrap();
    place(&first.folder().join("filed.wasm"), &policy("filed", 1));
    first.host.scan().await.unwrap();
    first.put("a", POLICY, &policy("held", 1)).await.unwrap();
    first.put("a", POLICY, &policy("bound", 2)).await.unwrap();
    let activated = |world: &World| {
        let (events, _) = world.host.watch();
        events.iter().filter(|event| event.kind == EventKind::Activated).map(|event| event.plugin.clone()).last()
    };
    for number in 0..limit::ARTIFACTS {
        first.stage(&policy(&format!("upload-{number}"), 1)).await.unwrap();
    }
    assert_eq!(first.host.artifacts().len(), limit::ARTIFACTS);
    assert!(!knows(&first, "theirs") && !knows(&first, "upload-0"), "the oldest uploads have made room");
    assert!(knows(&first, "elsewhere"), "the store says that it is needed");
    assert!(knows(&first, "filed") && knows(&first, "held") && knows(&first, "bound"));
    assert_eq!(activated(&first).as_deref(), Some("bound@1.0.0"), "the events say what is in force");
    first.bind("b", POLICY, name("filed")).await.unwrap();
    first.host.rollback(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    assert_eq!(required(&first.hooks("a").policy(&question(1))), 1);

    // The other host learns that it is gone, and has it again after a scan.
    second.host.refresh(None).await.unwrap();
    second.host.scan().await.unwrap();
    assert!(knows(&second, "theirs"));
    first.host.refresh(None).await.unwrap();
    let theirs = first.host.artifacts().iter().find(|artifact| artifact.name == "theirs").cloned();
    assert_eq!(theirs.unwrap().source, Source::File("theirs.wasm".into()), "which goes after all uploads now");
}
