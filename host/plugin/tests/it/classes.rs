//! Classes of limits: what is beyond class standard is served under limits of its own, which are reached here.

use witan_kernel::hook::{Asked, Hook, ResolverQuestion, Sibling, Verdict};
use witan_kernel::name::Key;
use witan_plugin::history::Author;
use witan_plugin::trial::{self, Trial};
use witan_plugin::{Class, Limits, OnFault, PluginError};

use crate::guest::Guest;
use crate::{COMPILER, World, ample, name, place, question, required, tenant};

const POLICY: Hook = Hook::ConsistencyPolicy;
const RESOLVER: Hook = Hook::ConflictResolver;

/// A guest with this many bytes of data, and the memory for them.
pub(crate) fn large(guest: Guest, bytes: usize) -> Guest {
    const BELOW: usize = 1 << 16;
    guest.with(|guest| {
        guest.pages = (BELOW + bytes).div_ceil(1 << 16) as u32;
        guest.fields.push_str(&format!(r#"(data (i32.const {BELOW}) "{}")"#, "x".repeat(bytes)));
    })
}

fn class(component: &[u8]) -> Class {
    Limits::default().needs(&trial::inspect(component).unwrap()).unwrap().class
}

fn resolver() -> Guest {
    Guest::resolver("wide")
}

fn with(fields: &str) -> Guest {
    resolver().with(|guest| guest.fields += fields)
}

/// A question that triggers a test guest.
fn conflict() -> ResolverQuestion {
    let sibling = |value: &'static [u8]| Sibling { value: value.into(), time: 1 };
    ResolverQuestion { key: Key::new("any").unwrap(), siblings: vec![sibling(b"a"), sibling(b"b")] }
}

/// What a resolver that needs class interpreted says to a conflict once it is bound.
async fn asked(guest: &Guest) -> Asked<Verdict> {
    let component = guest.build();
    assert_eq!(class(&component), Class::Interpreted);
    let world = World::new();
    world.grant("a", true);
    world.put("a", RESOLVER, &component).await.unwrap();
    world.hooks("a").resolve(conflict()).await
}

async fn refused(hook: Hook, component: &[u8]) -> String {
    let world = World::new();
    world.grant("a", true);
    match world.put("a", hook, component).await.unwrap_err() {
        PluginError::Refused(why) => why.to_string(),
        other => panic!("not a refusal: {other}"),
    }
}

#[tokio::test]
async fn what_is_beyond_class_standard_is_served_in_class_interpreted() {
    let many = |count: usize, field: &str| field.repeat(count);
    let wide = [
        large(resolver(), 2 << 20),
        with(&many(17, "(memory 1)")),
        with(&many(17, "(table 1 funcref)")),
        with(&many(21_000, "(func)")),
        with(&format!("(func {})", many(300_000, "nop "))),
        with("(memory 2200)"),
    ];
    for guest in wide {
        let asked = asked(&guest).await;
        assert!(matches!(asked, Asked::Answered { answer: Verdict::KeepAll, .. }), "{asked:?}");
    }
    assert_eq!(class(&resolver().build()), Class::Standard);
}

#[tokio::test]
async fn every_limit_of_class_interpreted_is_one() {
    let limits = Limits::default().interpreted;
    let many = |count: usize, field: &str| field.repeat(count);
    let beyond = [
        (with(&many(limits.resolver.items, "(memory 1)")), "49 memories; at most 48"),
        (with(&many(limits.resolver.items + 1, "(table 1 funcref)")), "49 tables; at most 48"),
        (with(&format!("(table {} funcref)", limits.resolver.elements + 1)), "elements in tables; at most 20000"),
        (with(&many(limits.functions, "(func)")), "functions; at most"),
        (with(&format!("(func {})", many(limits.function_bytes, "nop "))), "a function of"),
        (with("(memory 4096)"), "bytes of memory; at most"),
    ];
    for (guest, words) in beyond {
        let why = refused(RESOLVER, &guest.build()).await;
        assert!(why.contains(words), "{words}: {why}");
    }
}

#[tokio::test]
async fn a_call_in_class_interpreted_may_use_more_and_not_all() {
    let grow = |pages: usize, then: &str| {
        let grow = format!("(if (i32.eq (memory.grow 0 (i32.const {pages})) (i32.const -1)) (then {then}))");
        large(resolver(), 2 << 20).when_triggered(&grow)
    };
    // 150 MiB are too much in class standard.
    let more = asked(&grow(2400, "unreachable")).await;
    assert!(matches!(more, Asked::Answered { .. }), "{more:?}");
    let all = asked(&grow(5000, "unreachable")).await;
    assert!(matches!(&all, Asked::Faulted { reason, .. } if reason.contains("268435456 bytes of memory")), "{all:?}");
    let table = "(if (i32.eq (table.grow 0 (ref.null func) (i32.const 20000)) (i32.const -1)) (then unreachable))";
    let tables = with("(table 1 funcref)").with(|guest| *guest = large(guest.clone(), 2 << 20).when_triggered(table));
    let tables = asked(&tables).await;
    assert!(matches!(&tables, Asked::Faulted { reason, .. } if reason.contains("elements in tables")), "{tables:?}");
}

#[test]
fn time_is_that_of_the_class() {
    let limits = || {
        let mut limits = crate::brief();
        limits.interpreted.resolver.cpu = std::time::Duration::from_millis(70);
        limits.interpreted.resolver.start = std::time::Duration::from_millis(90);
        limits
    };
    let endless = "(loop $again (br $again))";
    let prepare = |guest: Guest| Trial::prepare(&guest.build(), &limits(), COMPILER.as_ref());
    let trial = prepare(large(resolver(), 2 << 20).when_triggered(endless)).unwrap();
    let late = trial.configured(b"").unwrap().resolve(&conflict()).unwrap_err().to_string();
    assert_eq!(late, "ran longer than 70 ms of CPU time");
    let starts = large(with(&format!("(func $main {endless}) (start $main)")), 2 << 20);
    let late = prepare(starts).unwrap_err().to_string();
    assert!(late.contains("ran longer than 90 ms of CPU time"), "{late}");
}

#[tokio::test]
async fn a_runtime_answers_as_a_policy_and_no_interpreter_does() {
    let policy = |bytes| large(Guest::policy("wide", 2), bytes).build();
    let world = World::new();
    // As large as what Go makes.
    let runtime = policy(4_400_000);
    assert_eq!(class(&runtime), Class::Interpreted);
    world.grant("a", true);
    world.put("a", POLICY, &runtime).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
    let why = refused(POLICY, &policy(12_000_000)).await;
    assert!(why.contains("at most 8388608"), "{why}");
    let why = refused(Hook::RoutingHook, &large(Guest::routing("wide"), 2 << 20).build()).await;
    assert!(why.contains("at most 1048576"), "{why}");
}

const MIB: usize = 1 << 20;

/// A world in which a policy and a routing hook of 4 MiB each are bound for all tenants.
async fn warm(of_tenant: usize, of_all: usize) -> World {
    let world = World::with(Limits { warm_tenant: of_tenant, warm: of_all, ..ample() });
    let four = |guest: Guest| guest.with(|guest| guest.pages = 64).build();
    world.put("", POLICY, &four(Guest::policy("warm", 1))).await.unwrap();
    world.put("", Hook::RoutingHook, &four(Guest::routing("warm-too"))).await.unwrap();
    world
}

/// Instances that were started since `world` was made.
fn started(world: &World) -> u64 {
    world.host.bindings().iter().map(|binding| binding.counts.instances).sum()
}

#[tokio::test]
async fn the_warm_instances_of_all_are_bounded_by_their_bytes() {
    let world = warm(10 * MIB, 24 * MIB).await;
    // No two questions are equal, since the answer to an equal one is remembered.
    let ask = |tenant: &str, bytes: u32| assert_eq!(required(&world.hooks(tenant).policy(&question(bytes))), 1);
    for tenant in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        ask(tenant, 1);
    }
    let kept = world.host.warm_bytes() as usize;
    assert!((16 * MIB..=24 * MIB).contains(&kept), "{kept}");
    let before = started(&world);
    ask("h", 2);
    assert_eq!(started(&world), before, "the last one is warm");
    ask("a", 2);
    assert_eq!(started(&world), before + 1, "the first one is not");
}

#[tokio::test]
async fn the_warm_instances_of_a_tenant_are_bounded_by_their_bytes() {
    for (bound, more) in [(10 * MIB, 0), (6 * MIB, 1)] {
        let world = warm(bound, 100 * MIB).await;
        let hooks = world.hooks("a");
        assert_eq!(required(&hooks.policy(&question(1))), 1);
        hooks.partition_key(0, &Key::new("key").unwrap());
        let before = started(&world);
        assert_eq!(required(&hooks.policy(&question(2))), 1);
        assert_eq!(started(&world) - before, more, "of {bound} bytes");
    }
}

impl World {
    pub(crate) fn grant(&self, to: &str, granted: bool) {
        self.store.set_class(&tenant(to), Class::Interpreted, granted);
    }
}

fn not_granted<T: std::fmt::Debug>(result: Result<T, PluginError>) -> String {
    match result {
        Err(error @ PluginError::ClassNotGranted { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn wide(name: &str) -> Vec<u8> {
    large(Guest::policy(name, 2), 2 << 20).build()
}

#[tokio::test]
async fn a_tenant_needs_the_class_of_what_it_uploads_and_binds() {
    let world = World::new();
    let own = wide("own");
    let why = not_granted(world.stage_for("a", &own).await);
    assert!(why.contains("needs class interpreted") && why.contains("at most 1048576"), "{why}");
    assert!(why.contains("witan plugin grant --tenant a interpreted"), "{why}");
    assert_eq!(world.host.compilations().compiled, 0, "it was not compiled");
    world.grant("a", true);
    let staged = world.stage_for("a", &own).await.unwrap();
    let reason = format!("has {} bytes; at most 1048576 are allowed in class standard", own.len());
    assert_eq!((staged.class, staged.class_reason), (Class::Interpreted, reason));
    world.bind("a", POLICY, name("own")).await.unwrap();
    // What is bound goes on answering after the class was taken, also after a restart; nothing new is bound.
    world.grant("a", false);
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
    let world = world.restart();
    world.loaded().await;
    assert_eq!(required(&world.hooks("a").policy(&question(2))), 2);
    not_granted(world.bind_with("a", POLICY, name("own"), b"other", OnFault::Native).await);
    world.host.unbind(Some(tenant("a")), POLICY, Author::default()).await.unwrap();
    not_granted(world.bind("a", POLICY, name("own")).await);
    assert_eq!(world.host.artifact(Some(&tenant("a")), &name("own")).map(|it| it.class), Some(Class::Interpreted));
}

#[tokio::test]
async fn the_operators_plugins_need_no_grant_and_a_tenants_binding_does() {
    let world = World::new();
    world.stage(&wide("shared")).await.unwrap();
    let why = not_granted(world.bind("a", POLICY, name("shared")).await);
    assert!(why.starts_with("shared@1.0.0 needs class interpreted"), "{why}");
    world.grant("a", true);
    world.bind("a", POLICY, name("shared")).await.unwrap();
    not_granted(world.bind("b", POLICY, name("shared")).await);
    // For all tenants, by an operator.
    world.bind("", POLICY, name("shared")).await.unwrap();
    assert_eq!(required(&world.hooks("b").policy(&question(1))), 2);
}

#[tokio::test]
async fn what_a_binding_follows_must_be_of_a_class_that_its_tenant_has() {
    let world = World::new();
    place(&world.folder().join("followed.wasm"), &Guest::policy("followed", 1).build());
    world.scanned().await;
    world.host.scan().await.unwrap();
    world.bind("a", POLICY, name("followed")).await.unwrap();
    place(&world.folder().join("followed.wasm"), &wide("followed"));
    world.host.scan().await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 1, "the version of before goes on");
    let events = world.host.watch().0;
    assert!(events.iter().any(|event| event.detail.contains("needs class interpreted")), "{events:?}");
}

#[tokio::test]
async fn a_tenant_has_four_compilations_of_class_interpreted_an_hour() {
    let world = World::new();
    world.grant("a", true);
    world.grant("b", true);
    for wanted in ["one", "two", "three", "four"] {
        world.stage_for("a", &wide(wanted)).await.unwrap();
    }
    let compiled = world.host.compilations().compiled;
    let why = match world.stage_for("a", &wide("five")).await {
        Err(error @ PluginError::Rate { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(why.contains("4 components of class interpreted") && why.contains("minutes"), "{why}");
    assert_eq!(world.host.compilations().compiled, compiled);
    world.stage_for("a", &wide("one")).await.expect("it is there already");
    world.stage_for("a", &Guest::policy("small", 1).build()).await.expect("class standard is not counted");
    world.stage_for("b", &wide("five")).await.expect("nor another tenant");
}
