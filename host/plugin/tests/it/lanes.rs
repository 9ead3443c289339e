//! What a change waits for, and what it does not: other tenants' probes, compilations and calls of the store.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use witan_kernel::class::Class;
use witan_kernel::hook::{Asked, Hook, Plugins, ResolverQuestion, Sibling};
use witan_kernel::name::{Key, NodeId, TenantId};
use witan_kernel::port::{
    Artifact, BindingOnRecord, CandidateReport, HistoryEntry, Migration, PlacementChange, PluginStore, PushBegun,
    PushOnRecord, RecordText, Saved, SigningKey, Slot, StoreError,
};
use witan_memory::MemoryPlugins;
use witan_plugin::event::{Event, EventKind};
use witan_plugin::history::Author;
use witan_plugin::{
    BindRequest, Digest, LateLoading, Limits, OnFault, PluginError, PluginHost, Reference, Settings, limit,
};

use crate::classes::large;
use crate::guest::Guest;
use crate::{COMPILER, LONG, World, ample, place, question, reason, required, tenant, wait_for, wait_for_kind};

const POLICY: Hook = Hook::ConsistencyPolicy;

/// A policy whose answers take long enough that its probe takes most of a second.
fn slow_to_probe() -> Vec<u8> {
    let spin = "(local $n i32) (loop $again
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $n) (i32.const 4000000))))";
    let guest = Guest::policy("slow", 1);
    guest.with(|guest| guest.answer = format!("{spin} {}", guest.answer)).build()
}

/// A policy that takes a second or more to compile. Each number makes another one.
fn slow_to_compile(number: usize) -> Vec<u8> {
    let sum = "(i32.add (local.get 0) (i32.mul (local.get 0) ".repeat(40) + "(local.get 0)" + &"))".repeat(40);
    let function = format!("(func (param i32) (result i32) {sum})");
    let guest = Guest::policy(&format!("large-{number}"), 1);
    guest.with(|guest| guest.fields += &function.repeat(1500)).build()
}

/// A store that tells when it is called, and can be made to wait in [`PluginStore::keep`].
struct Observed {
    store: MemoryPlugins,
    read: UnboundedSender<Slot>,
    keeping: UnboundedSender<()>,
    gate: Mutex<Option<Receiver<()>>>,
    /// What the next read of a binding waits for.
    reading: Mutex<Option<Receiver<()>>>,
    /// Live coordinators, and whether they know candidates.
    others: Mutex<Vec<(NodeId, bool)>>,
}

impl PluginStore for Observed {
    fn is_shared(&self) -> bool {
        true
    }

    fn components(&self) -> Result<Vec<Artifact>, StoreError> {
        self.store.components()
    }

    fn component(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.store.component(digest)
    }

    fn keep(&self, artifact: &Artifact, bytes: &Bytes) -> Result<(), StoreError> {
        let _ = self.keeping.send(());
        if let Some(gate) = self.gate.lock().unwrap().take() {
            gate.recv().unwrap();
        }
        self.store.keep(artifact, bytes)
    }

    fn forget(&self, owner: Option<&TenantId>, digest: Digest) -> Result<(), StoreError> {
        self.store.forget(owner, digest)
    }

    fn signing_keys(&self) -> Result<Vec<SigningKey>, StoreError> {
        self.store.signing_keys()
    }

    fn has_class(&self, tenant: &TenantId, class: Class) -> Result<bool, StoreError> {
        self.store.has_class(tenant, class)
    }

    fn count_compilation(&self, tenant: &TenantId) -> Result<Option<u64>, StoreError> {
        self.store.count_compilation(tenant)
    }

    fn begin_push(&self, push: PushOnRecord) -> Result<PushBegun, StoreError> {
        self.store.begin_push(push)
    }

    fn step_push(&self, push: PushOnRecord) -> Result<bool, StoreError> {
        self.store.step_push(push)
    }

    fn push(&self, owner: Option<&TenantId>, digest: Digest) -> Result<Option<PushOnRecord>, StoreError> {
        self.store.push(owner, digest)
    }

    fn abandon_pushes(&self, worker: &NodeId) -> Result<(), StoreError> {
        self.store.abandon_pushes(worker)
    }

    fn bindings(&self) -> Result<Vec<BindingOnRecord>, StoreError> {
        self.store.bindings()
    }

    fn binding(&self, slot: &Slot) -> Result<Option<BindingOnRecord>, StoreError> {
        let _ = self.read.send(slot.clone());
        let gate = self.reading.lock().unwrap().take();
        if let Some(gate) = gate {
            gate.recv().unwrap();
        }
        self.store.binding(slot)
    }

    fn save(&self, slot: &Slot, saved: Saved) -> Result<(), StoreError> {
        self.store.save(slot, saved)
    }

    fn save_and_move(
        &self,
        slot: &Slot,
        saved: Saved,
        change: PlacementChange,
        now_ms: u64,
    ) -> Result<Migration, StoreError> {
        self.store.save_and_move(slot, saved, change, now_ms)
    }

    fn history(&self, slot: &Slot) -> Result<Vec<HistoryEntry>, StoreError> {
        self.store.history(slot)
    }

    fn report(&self, report: CandidateReport) -> Result<(), StoreError> {
        self.store.report(report)
    }

    fn reports(&self, slot: &Slot, number: u64, since_ms: u64) -> Result<Vec<CandidateReport>, StoreError> {
        self.store.reports(slot, number, since_ms)
    }

    fn prepare(&self, slot: &Slot, version: Option<RecordText>) -> Result<(), StoreError> {
        self.store.prepare(slot, version)
    }

    fn prepared(&self, slot: &Slot) -> Result<Option<RecordText>, StoreError> {
        self.store.prepared(slot)
    }

    fn coordinators(&self) -> Result<Vec<(NodeId, bool)>, StoreError> {
        Ok(self.others.lock().unwrap().clone())
    }

    fn require_candidates(&self) -> Result<(), StoreError> {
        self.store.require_candidates()
    }
}

/// A host on an observed store, with a binding of tenant "quick" that can be rolled back twice.
struct Scene {
    dir: TempDir,
    host: PluginHost,
    store: Arc<Observed>,
    read: UnboundedReceiver<Slot>,
    keeping: UnboundedReceiver<()>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(ample()).await
    }

    async fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ((read, reads), (keeping, keeps)) = (unbounded_channel(), unbounded_channel());
        let store = MemoryPlugins::default().seat();
        let store = Arc::new(Observed {
            store,
            read,
            keeping,
            gate: Mutex::default(),
            reading: Mutex::default(),
            others: Mutex::default(),
        });
        let settings = Settings { folder: None, ..crate::settings(&dir, limits, COMPILER) };
        let host = PluginHost::start(settings, store.clone()).unwrap();
        let mut scene = Self { dir, host, store, read: reads, keeping: keeps };
        for required in 1..=3 {
            let digest = scene.stage(Guest::policy("pol", required).build()).await;
            scene.host.bind(bind("quick", digest)).await.unwrap();
        }
        while scene.read.try_recv().is_ok() {}
        while scene.keeping.try_recv().is_ok() {}
        scene
    }

    async fn stage(&self, component: Vec<u8>) -> Digest {
        self.host.stage(Bytes::from(component), None).await.unwrap().digest
    }

    async fn roll_back_and_unbind(&self) {
        let changes = async {
            self.host.rollback(Some(tenant("quick")), POLICY, Author::default()).await.unwrap();
            self.host.rollback(Some(tenant("quick")), POLICY, Author::default()).await.unwrap();
            self.host.unbind(Some(tenant("quick")), POLICY, Author::default()).await.unwrap();
        };
        tokio::time::timeout(LONG, changes).await.expect("the way back waits for nothing");
    }

    fn is_bound(&self, id: &str) -> bool {
        self.host.bindings().iter().any(|binding| binding.record.tenant == Some(tenant(id)))
    }
}

fn bind(id: &str, digest: Digest) -> BindRequest {
    let (plugin, configuration) = (Reference::Digest(digest), Bytes::new());
    BindRequest {
        tenant: Some(tenant(id)),
        hook: POLICY,
        plugin,
        configuration,
        on_fault: OnFault::Native,
        author: Author::default(),
    }
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_another_tenants_probe() {
    let mut scene = Scene::new().await;
    let digest = scene.stage(slow_to_probe()).await;
    let host = scene.host.clone();
    let slow = tokio::spawn(async move { host.bind(bind("slow", digest)).await });
    // What the bind asks the store last before it probes.
    while scene.read.recv().await.unwrap().tenant != Some(tenant("slow")) {}
    scene.roll_back_and_unbind().await;
    assert!(!scene.is_bound("slow"), "it is still being probed");
    slow.await.unwrap().unwrap();
    assert!(scene.is_bound("slow"));
}

/// A rollback of the very binding for which another version is being probed.
#[tokio::test]
async fn a_rollback_does_not_wait_for_a_probe_for_the_same_binding() {
    let mut scene = Scene::new().await;
    let digest = scene.stage(slow_to_probe()).await;
    let host = scene.host.clone();
    let slow = tokio::spawn(async move { host.bind(bind("quick", digest)).await });
    scene.read.recv().await.unwrap();
    let back = scene.host.rollback(Some(tenant("quick")), POLICY, Author::default()).await.unwrap().record;
    assert_eq!((back.current.number, back.previous.len()), (4, 1), "the new version is not in force yet");
    // The change that was asked for is made on top of the rollback.
    let bound = slow.await.unwrap().unwrap().record;
    assert_eq!((bound.current.number, bound.current.digest), (5, digest));
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_compilations() {
    let scene = Scene::new().await;
    let (_, mut events) = scene.host.watch();
    let uploads: Vec<_> = [1, 2].map(|number| upload(&scene.host, slow_to_compile(number), None)).into();
    for _ in &uploads {
        wait_for_kind(&mut events, EventKind::Staged).await;
    }
    scene.roll_back_and_unbind().await;
    let since: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    assert!(since.iter().any(|event| event.kind == EventKind::Unbound), "{since:?}");
    assert!(since.iter().all(|event| event.kind != EventKind::Compiled), "they are still being compiled: {since:?}");
    for upload in uploads {
        upload.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_another_call_of_the_store() {
    let mut scene = Scene::new().await;
    let (open, gate) = channel();
    *scene.store.gate.lock().unwrap() = Some(gate);
    let slow = upload(&scene.host, Guest::policy("other", 1).build(), None);
    scene.keeping.recv().await.unwrap();
    scene.roll_back_and_unbind().await;
    assert!(scene.host.artifacts().iter().all(|artifact| artifact.name != "other"), "it is not stored yet");
    open.send(()).unwrap();
    slow.await.unwrap().unwrap();
}

type Upload = tokio::task::JoinHandle<Result<Artifact, PluginError>>;

fn upload(host: &PluginHost, component: Vec<u8>, deadline: Option<Instant>) -> Upload {
    let host = host.clone();
    tokio::spawn(async move { host.stage(Bytes::from(component), deadline).await })
}

#[tokio::test]
async fn while_others_compile_a_file_waits_and_an_upload_waits_for_its_deadline() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    let uploads: Vec<_> = [1, 2].map(|number| upload(&world.host, slow_to_compile(number), None)).into();
    for _ in &uploads {
        wait_for_kind(&mut events, EventKind::Staged).await;
    }
    let file = Guest::policy("file", 1).build();
    place(&world.folder().join("file.wasm"), &file);
    let late = upload(&world.host, Guest::policy("late", 1).build(), Some(Instant::now())).await.unwrap();
    let error = late.unwrap_err();
    assert!(matches!(error, PluginError::HostBusy(_)) && error.to_string().contains("try again"), "{error}");
    let refused = Cell::new(false);
    wait_for(&mut events, |event| {
        refused.set(refused.get() || event.kind == EventKind::Refused);
        event.kind == EventKind::Ready && event.digest == Some(Digest::of(&file))
    })
    .await;
    assert!(!refused.get(), "busy is not refused");
    world.stage(&Guest::policy("late", 1).build()).await.unwrap();
    for upload in uploads {
        upload.await.unwrap().unwrap();
    }
}

/// What another coordinator says of the version that it is to load, once it is on record.
async fn say(store: &Observed, slot: &Slot, missing: &str) {
    let prepared = loop {
        match store.prepared(slot).unwrap() {
            Some(prepared) => break prepared.0,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let number = prepared.split("\"number\":").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    let text = format!(
        "{{\"missing\":\"{missing}\",\"answered\":0,\"faulted\":0,\"refused\":0,\"compared\":0,\"differing\":0,\"undetermined\":0,\
         \"latencies\":[]}}"
    );
    let coordinator = NodeId::new("other").unwrap();
    store.report(CandidateReport { slot: slot.clone(), number, coordinator, at_ms: number, text }).unwrap();
}

#[tokio::test]
async fn a_version_is_put_in_force_when_every_live_coordinator_has_loaded_it() {
    let scene = Scene::new().await;
    let slot = Slot { tenant: Some(tenant("quick")), hook: POLICY };
    *scene.store.others.lock().unwrap() = vec![(NodeId::new("other").unwrap(), true)];
    let digest = scene.stage(Guest::policy("next", 1).build()).await;
    let in_force = |scene: &Scene| scene.host.bindings()[0].record.current.digest;

    let refused = tokio::join!(scene.host.bind(bind("quick", digest)), say(&scene.store, &slot, "no room")).0;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("coordinator other cannot load it: no room"), "{why}");
    assert_ne!(in_force(&scene), digest, "nothing has changed");
    assert_eq!(scene.store.prepared(&slot), Ok(None));

    tokio::join!(scene.host.bind(bind("quick", digest)), say(&scene.store, &slot, "")).0.expect("all have loaded it");
    assert_eq!(in_force(&scene), digest);
    assert_eq!(scene.store.prepared(&slot), Ok(None));
    scene.host.rollback(Some(tenant("quick")), POLICY, Author::default()).await.expect("it waits for nobody");

    // One that does not know what it is to load is not waited for.
    *scene.store.others.lock().unwrap() = vec![(NodeId::new("old").unwrap(), false)];
    scene.host.bind(bind("quick", digest)).await.expect("bound");
}

#[tokio::test]
async fn coordinators_that_do_not_load_a_version_in_time_are_named() {
    let scene = Scene::with(Limits { ready: Duration::from_millis(100), ..ample() }).await;
    *scene.store.others.lock().unwrap() = vec![(NodeId::new("silent").unwrap(), true)];
    let digest = scene.stage(Guest::policy("next", 1).build()).await;
    let refused = scene.host.bind(bind("quick", digest)).await.unwrap_err();
    assert!(matches!(&refused, PluginError::NotReady(why) if why.contains("silent")), "{refused:?}");
    assert_ne!(scene.host.bindings()[0].record.current.digest, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_wait_for_a_large_plugin_and_its_questions_do() {
    let scene = Scene::new().await;
    scene.store.store.set_class(&tenant("wide"), Class::Interpreted, true);
    let digest = scene.stage(large(Guest::resolver("wide"), 2 << 20).build()).await;
    let resolver = BindRequest { hook: Hook::ConflictResolver, ..bind("wide", digest) };
    scene.host.bind(resolver).await.unwrap();
    let Scene { dir, host, store, .. } = scene;
    drop(host);
    let (open, gate) = channel();
    *store.reading.lock().unwrap() = Some(gate);
    let settings = Settings { folder: None, ..crate::settings(&dir, ample(), COMPILER) };
    let host = PluginHost::start(settings, store.clone()).unwrap();
    let sibling = |value: &'static [u8]| Sibling { value: value.into(), time: 1 };
    let conflict = || ResolverQuestion { key: Key::new("any").unwrap(), siblings: vec![sibling(b"a"), sibling(b"b")] };
    let ask = || host.hooks(&tenant("wide")).resolve(conflict());

    assert_eq!(host.late(), LateLoading { left: 1, of: 1 });
    assert_eq!(required(&host.hooks(&tenant("quick")).policy(&question(1))), 3, "others are in force");
    let broken = |host: &PluginHost| host.bindings().iter().filter_map(|binding| binding.broken.clone()).next();
    assert!(broken(&host).is_some_and(|why| why.contains("still being loaded")));
    let began = Instant::now();
    let early = reason(ask().await);
    assert!(began.elapsed() >= limit::LATE_WAIT && early.contains("still being loaded"), "{early}");
    let waits = ask();
    open.send(()).unwrap();
    let mut asked = waits.await;
    // On a machine that is very busy it takes longer than a question waits.
    while matches!(asked, Asked::Faulted { .. }) && began.elapsed() < LONG {
        asked = ask().await;
    }
    assert!(matches!(asked, Asked::Answered { .. }), "{asked:?}");
    assert_eq!((broken(&host), host.late().left), (None, 0));
}
