//! Signed plugins: what is refused where they must be, by upload, by the folder and when they are bound.

use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use witan_kernel::hook::Hook;
use witan_kernel::port::SigningKey;
use witan_memory::MemoryPlugins;
use witan_plugin::event::EventKind;
use witan_plugin::registry::Artifact;
use witan_plugin::signature::{Mode, Signature, SignatureError, Signatures, Statement, public_key};
use witan_plugin::{Digest, PluginError, PluginHost, Push, inspect};

use crate::guest::Guest;
use crate::{COMPILER, World, ample, name, place, question, required, settings, tenant};

const POLICY: Hook = Hook::ConsistencyPolicy;
const PRIVATE: [u8; 32] = [5; 32];

fn policy(required: u8) -> Vec<u8> {
    Guest::policy("pol", required).build()
}

fn key(owner: &str, id: &str, private: &[u8; 32]) -> SigningKey {
    let owner = (!owner.is_empty()).then(|| tenant(owner));
    SigningKey { owner, id: id.to_owned(), public: public_key(private), added_at_ms: 0 }
}

/// A signature of a component under the name that it has.
fn signed(component: &[u8], owner: &str) -> Signature {
    let owner = (!owner.is_empty()).then(|| tenant(owner));
    let digest = Digest::of(component);
    let said = Statement { digest, name: "pol", version: "1.0.0", owner: owner.as_ref() };
    said.sign(&PRIVATE, "release").unwrap()
}

impl World {
    /// A host that goes by signatures in this way; the operator's key is in its configuration.
    fn signing(mode: Mode) -> Self {
        Self::signing_in(TempDir::new().unwrap(), Arc::default(), mode)
    }

    fn signing_in(dir: TempDir, store: Arc<MemoryPlugins>, mode: Mode) -> Self {
        let signatures = Signatures { mode, keys: vec![key("", "release", &PRIVATE)] };
        let settings = witan_plugin::Settings { signatures, ..settings(&dir, ample(), COMPILER) };
        let host = PluginHost::start(settings, store.clone()).unwrap();
        host.watch_folder().unwrap();
        Self { dir, store, host }
    }

    async fn push(&self, owner: &str, component: &[u8], signature: Option<Signature>) -> Result<Artifact, PluginError> {
        let owner = (!owner.is_empty()).then(|| tenant(owner));
        self.host.stage(Push { owner, bytes: Bytes::copy_from_slice(component), signature }, None).await
    }
}

fn why(result: Result<Artifact, PluginError>) -> SignatureError {
    match result {
        Err(PluginError::Signature(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_signed_for_its_owner_is_refused_and_changes_nothing() {
    let world = World::signing(Mode::Required);
    let component = policy(1);
    let missing = why(world.push("", &component, None).await);
    assert!(matches!(missing, SignatureError::Missing { .. }), "{missing}");
    assert!(missing.to_string().contains("witan plugin sign"), "{missing}");
    let of_another = why(world.push("", &component, Some(signed(&policy(2), ""))).await);
    assert!(matches!(of_another, SignatureError::Wrong { .. }), "{of_another}");
    let of_tenant = why(world.push("", &component, Some(signed(&component, "a"))).await);
    assert!(matches!(of_tenant, SignatureError::Wrong { .. }), "{of_tenant}");
    let renamed = Statement { digest: Digest::of(&component), name: "other", version: "1.0.0", owner: None };
    let renamed = why(world.push("", &component, Some(renamed.sign(&PRIVATE, "release").unwrap())).await);
    assert!(matches!(renamed, SignatureError::Wrong { .. }), "{renamed}");
    // The operator's key signs nothing of a tenant's.
    let unknown = why(world.push("a", &component, Some(signed(&component, "a"))).await);
    assert!(matches!(unknown, SignatureError::UnknownKey { .. }), "{unknown}");
    assert!(world.host.artifacts().is_empty());
    let refused = world.host.watch().0.iter().filter(|event| event.kind == EventKind::Refused).count();
    assert_eq!(refused, 5);

    let good = world.push("", &component, Some(signed(&component, ""))).await.unwrap();
    assert_eq!(good.signed_by.as_deref(), Some("release"));
    world.bind("a", POLICY, name("pol")).await.unwrap();
    let again = why(world.push("", &component, None).await);
    assert!(matches!(again, SignatureError::Missing { .. }), "even if it is known: {again}");
    world.store.set_signing_keys(vec![key("a", "release", &PRIVATE)]);
    let of_tenant = Guest::policy("own", 2).build();
    let said = Statement { digest: Digest::of(&of_tenant), name: "own", version: "1.0.0", owner: Some(&tenant("a")) };
    world.push("a", &of_tenant, Some(said.sign(&PRIVATE, "release").unwrap())).await.unwrap();
    world.bind("a", POLICY, name("own")).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);

    // A key that is removed: what it has signed stays in force, and is not bound again.
    world.store.set_signing_keys(Vec::new());
    let removed = world.bind("a", POLICY, name("own@1.0.0")).await.unwrap_err();
    assert!(matches!(removed, PluginError::Signature(SignatureError::UnknownKey { .. })), "{removed}");
    let refused = why(world.push("a", &of_tenant, Some(said.sign(&PRIVATE, "release").unwrap())).await);
    assert!(matches!(refused, SignatureError::UnknownKey { .. }), "{refused}");
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
}

#[tokio::test]
async fn what_was_there_before_must_be_signed_to_be_bound() {
    let world = World::signing(Mode::Off);
    let component = policy(1);
    let before = world.push("", &component, Some(signed(&policy(9), ""))).await.unwrap();
    assert_eq!(before.signed_by, None, "it was not looked at");
    world.bind("a", POLICY, name("pol")).await.unwrap();
    let World { dir, store, host } = world;
    drop(host);
    let world = World::signing_in(dir, store, Mode::Required);
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1, "it stays in force");
    let refused = world.bind("b", POLICY, name("pol")).await.unwrap_err();
    assert!(matches!(refused, PluginError::Signature(SignatureError::Missing { .. })), "{refused}");
    let signed = world.push("", &component, Some(signed(&component, ""))).await.unwrap();
    assert_eq!(signed.signed_by.as_deref(), Some("release"));
    world.bind("b", POLICY, name("pol")).await.unwrap();
    let kept = world.restart();
    assert_eq!(kept.host.artifacts()[0].signed_by.as_deref(), Some("release"));
}

#[tokio::test]
async fn a_warning_refuses_only_what_is_signed_wrongly() {
    let world = World::signing(Mode::Warn);
    world.push("", &policy(1), None).await.unwrap();
    let wrong = why(world.push("", &policy(1), Some(signed(&policy(2), ""))).await);
    assert!(matches!(wrong, SignatureError::Wrong { .. }), "{wrong}");
    world.bind("a", POLICY, name("pol")).await.unwrap();
}

#[tokio::test]
async fn a_file_has_its_signature_beside_it() {
    let world = World::signing(Mode::Required);
    let component = policy(1);
    let (file, beside) = (world.folder().join("pol.wasm"), world.folder().join("pol.wasm.sig"));
    let last = |world: &World| {
        let events = world.host.watch().0;
        events.into_iter().rfind(|event| event.kind == EventKind::Refused).map(|event| event.detail)
    };
    place(&file, &component);
    world.host.scan().await.unwrap();
    assert!(last(&world).unwrap().contains("is not signed"), "{:?}", last(&world));
    for wrong in [b"garbage".to_vec(), vec![0xff; 2000], signed(&policy(2), "").to_string().into_bytes()] {
        place(&beside, &wrong);
        world.host.scan().await.unwrap();
        assert!(last(&world).unwrap().contains("signature"), "{:?}", last(&world));
        assert!(world.host.artifacts().is_empty());
    }
    place(&beside, format!("{}\n", signed(&component, "")).as_bytes());
    world.host.scan().await.unwrap();
    let known = world.host.artifacts();
    assert_eq!(known[0].signed_by.as_deref(), Some("release"));
    world.bind("a", POLICY, name("pol")).await.unwrap();
    // The binding follows what is signed, and nothing else.
    place(&file, &policy(3));
    world.host.scan().await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1);
    place(&beside, signed(&policy(3), "").to_string().as_bytes());
    world.host.scan().await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 3);
}

#[test]
fn a_tool_sees_what_a_component_says_of_itself() {
    let component = policy(1);
    let described = inspect(COMPILER.as_ref(), &component).unwrap();
    let (name, version) = (described.name.as_str(), described.version.as_str());
    assert_eq!((described.digest, name, version, described.hook), (Digest::of(&component), "pol", "1.0.0", POLICY));
    assert!(inspect(COMPILER.as_ref(), b"garbage").is_err());
}
