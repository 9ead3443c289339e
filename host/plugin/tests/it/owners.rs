//! Plugins of tenants: who sees, binds and removes which, and what nobody learns of others.

use bytes::Bytes;
use witan_kernel::hook::Hook;
use witan_kernel::port::owners::{NotOwned, TENANT_ARTIFACTS};
use witan_memory::MemoryPlugins;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;
use witan_plugin::registry::Artifact;
use witan_plugin::{Digest, PluginError, Push, Reference};

use crate::guest::Guest;
use crate::{World, name, place, question, required, tenant};

const POLICY: Hook = Hook::ConsistencyPolicy;

fn policy(name: &str, required: u8) -> Vec<u8> {
    Guest::policy(name, required).build()
}

impl World {
    pub(crate) async fn stage_for(&self, owner: &str, component: &[u8]) -> Result<Artifact, PluginError> {
        let bytes = Bytes::copy_from_slice(component);
        self.host.stage(Push { owner: Some(tenant(owner)), bytes, signature: None }, None).await
    }

    fn sees(&self, by: &str, plugin: &Reference) -> bool {
        self.host.artifact(Some(&tenant(by)), plugin).is_some()
    }
}

fn is_not_found<T: std::fmt::Debug>(result: Result<T, PluginError>) -> String {
    match result {
        Err(PluginError::NotFound(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_tenants_plugin_is_for_that_tenant_alone() {
    let world = World::new();
    let own = world.stage_for("a", &policy("mine", 2)).await.unwrap();
    assert_eq!((own.owner.as_ref(), own.name.as_str()), (Some(&tenant("a")), "mine"));
    let by_digest = Reference::Digest(own.digest);
    for plugin in [&by_digest, &name("mine"), &name("mine@1.0.0")] {
        assert!(world.sees("a", plugin) && !world.sees("b", plugin), "{plugin}");
        assert!(world.host.artifact(None, plugin).is_none(), "{plugin} is not for all tenants");
        let unknown = is_not_found(world.bind("b", POLICY, plugin.clone()).await);
        let nothing = Reference::Digest(Digest::of(b"nothing"));
        let never = is_not_found(world.bind("b", POLICY, nothing.clone()).await);
        assert_eq!(unknown.replace(&plugin.to_string(), ""), never.replace(&nothing.to_string(), ""));
        is_not_found(world.bind("", POLICY, plugin.clone()).await);
        is_not_found(world.host.remove(Some(tenant("b")), plugin.clone()).await);
        is_not_found(world.host.remove(None, plugin.clone()).await);
    }
    world.bind("a", POLICY, name("mine")).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
    let used = world.host.remove(Some(tenant("a")), by_digest.clone()).await.unwrap_err();
    assert!(matches!(used, PluginError::InUse(_)), "{used}");
    world.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    world.host.remove(Some(tenant("a")), by_digest).await.unwrap();
    assert!(world.host.artifacts().is_empty());
    let events = world.host.watch().0;
    let of_own: Vec<_> = events.iter().filter(|event| event.digest == Some(own.digest)).collect();
    assert!(of_own.iter().all(|event| event.tenant == Some(tenant("a"))), "{of_own:?}");
    let last = of_own.last().map(|event| event.kind);
    assert_eq!(last, Some(EventKind::Removed), "{of_own:?}");
}

#[tokio::test]
async fn a_name_is_a_tenants_or_the_operators() {
    let world = World::new();
    world.stage(&policy("shared", 1)).await.unwrap();
    let own = world.stage_for("a", &policy("own", 2)).await.unwrap();
    let theirs = world.stage_for("b", &policy("own", 3)).await.unwrap();
    assert_eq!(world.bind("a", POLICY, name("own")).await.unwrap().record.current.digest, own.digest);
    assert_eq!(world.bind("b", POLICY, name("own")).await.unwrap().record.current.digest, theirs.digest);
    // The operator's, with and without saying so. It is stored as names always were.
    for (plugin, by) in [("shared", "a"), ("operator/shared", "b"), ("operator/shared@1.0.0", "c")] {
        let bound = world.bind(by, POLICY, name(plugin)).await.unwrap();
        assert_eq!(bound.record.current.reference.to_string(), plugin.trim_start_matches("operator/"));
        assert_eq!(required(&world.hooks(by).policy(&question(1))), 1);
    }
    is_not_found(world.bind("a", POLICY, name("operator/own")).await);

    let refused = world.stage_for("a", &policy("shared", 4)).await.unwrap_err();
    assert!(matches!(&refused, PluginError::NotOwned(NotOwned::NameOfOperator { .. })), "{refused}");
    let refused = world.stage(&policy("own", 4)).await.unwrap_err();
    assert!(matches!(&refused, PluginError::NotOwned(NotOwned::NameOfTenant { .. })), "{refused}");
    assert_eq!(world.host.artifacts().len(), 3, "nothing was kept");
    // Nor by way of the folder.
    place(&world.folder().join("own.wasm"), &policy("own", 5));
    world.host.scan().await.unwrap();
    let events = world.host.watch().0;
    let last = events.iter().rfind(|event| event.kind == EventKind::Refused).unwrap();
    assert!(last.detail.contains("has a plugin named own already"), "{last:?}");
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
}

#[tokio::test]
async fn who_pushes_what_another_has_learns_nothing() {
    let world = World::new();
    let component = policy("same", 2);
    let first = world.stage_for("a", &component).await.unwrap();
    world.bind("a", POLICY, name("same")).await.unwrap();
    let before = (world.host.compilations().compiled, world.host.watch().0.len());
    let second = world.stage_for("b", &component).await.unwrap();
    let shown = |artifact: &Artifact| (artifact.digest, artifact.name.clone(), artifact.version.clone(), artifact.size);
    assert_eq!((shown(&first), second.owner.as_ref()), (shown(&second), Some(&tenant("b"))));
    // The same work, and the same events, as the first time.
    assert_eq!(world.host.compilations().compiled, before.0 + 1);
    let events = world.host.watch().0.split_off(before.1);
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Staged, EventKind::Compiled, EventKind::Ready]);
    assert!(events.iter().all(|event| event.tenant == Some(tenant("b"))), "{events:?}");

    // What one has does not depend on the other.
    world.host.remove(Some(tenant("b")), name("same")).await.unwrap();
    assert!(!world.sees("b", &name("same")) && world.sees("a", &name("same")));
    world.stage_for("b", &component).await.unwrap();
    world.bind("b", POLICY, name("same")).await.unwrap();
    world.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    world.host.remove(Some(tenant("a")), name("same")).await.unwrap();
    let world = world.restart();
    assert!(world.sees("b", &name("same")) && !world.sees("a", &name("same")));
    assert_eq!(required(&world.hooks("b").policy(&question(1))), 2);
    let events = world.host.watch().0;
    assert!(events.iter().all(|event| event.kind != EventKind::Compiled), "{events:?}");
}

#[tokio::test]
async fn owners_are_the_same_at_every_coordinator() {
    let store = MemoryPlugins::default();
    let (first, second) = (World::of_cluster(&store), World::of_cluster(&store));
    let own = first.stage_for("a", &policy("own", 2)).await.unwrap();
    // Without a refresh: a name means what was staged last, anywhere.
    assert_eq!(second.bind("a", POLICY, name("own")).await.unwrap().record.current.digest, own.digest);
    is_not_found(second.bind("b", POLICY, name("own")).await);
    let refused = second.stage(&policy("own", 3)).await.unwrap_err();
    assert!(matches!(refused, PluginError::NotOwned(NotOwned::NameOfTenant { .. })), "{refused}");
    first.host.refresh(None).await.unwrap();
    second.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    second.host.remove(Some(tenant("a")), name("own")).await.unwrap();
    // Its bytes have another owner now, and are there for nobody else.
    let operators = second.stage(&policy("own", 2)).await.unwrap();
    assert_eq!(operators, own.digest);
    first.host.refresh(None).await.unwrap();
    let known = first.host.artifacts();
    assert_eq!(known.iter().map(|it| (it.digest, it.owner.clone())).collect::<Vec<_>>(), [(own.digest, None)]);
    first.bind("b", POLICY, name("own")).await.unwrap();
}

#[tokio::test]
async fn a_tenant_has_a_quota_and_takes_no_room_of_others() {
    let world = World::new();
    world.stage(&policy("operators", 1)).await.unwrap();
    world.stage_for("b", &policy("theirs", 1)).await.unwrap();
    for n in 0..TENANT_ARTIFACTS {
        world.stage_for("a", &policy(&format!("own-{n}"), 1)).await.unwrap();
    }
    for _ in 0..2 {
        let refused = world.stage_for("a", &policy("one-more", 1)).await.unwrap_err();
        assert!(matches!(&refused, PluginError::NotOwned(NotOwned::TooMany(_))), "{refused}");
    }
    world.stage_for("a", &policy("own-3", 1)).await.expect("it has this one");
    world.host.remove(Some(tenant("a")), name("own-7")).await.unwrap();
    world.stage_for("a", &policy("one-more", 1)).await.expect("there is room again");
    assert!(world.sees("b", &name("theirs")) && world.sees("b", &name("operators")));
}
