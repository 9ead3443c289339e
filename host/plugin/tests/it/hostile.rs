//! Hostile guests: each reaches a limit on purpose and is stopped with a readable reason, while all others are still served.

use witan_kernel::hook::{Hook, Partition, ResolverQuestion, Sibling};
use witan_kernel::name::Key;
use witan_plugin::{Limits, Reference};

use crate::classes::large;
use crate::guest::{Guest, data};
use crate::{World, ample, brief, question, reason, required};

const LOOP: &str = "(loop $again (br $again))";

/// Binds the guest for one tenant and a good plugin for another, makes the guest misbehave, and checks that it was stopped for the
/// reason `why`, that it answers the next question, and that the other tenant was not affected.
async fn policy_is_stopped(guest: Guest, why: &str) {
    policy_is_stopped_by(ample(), guest, why).await;
}

async fn policy_is_stopped_by(limits: Limits, guest: Guest, why: &str) {
    let world = World::with(limits);
    world.put("good", Hook::ConsistencyPolicy, &Guest::policy("good", 3).build()).await.unwrap();
    world.put("bad", Hook::ConsistencyPolicy, &guest.build()).await.unwrap();
    let (good, bad) = (world.hooks("good"), world.hooks("bad"));
    for _ in 0..2 {
        assert_eq!(required(&bad.policy(&question(1))), 2, "good behaviour is answered");
        let reason = reason(bad.policy(&question(666)));
        assert!(reason.contains(why), "{reason:?} does not say {why:?}");
        assert_eq!(required(&good.policy(&question(666))), 3);
    }
    let bindings = world.host.bindings();
    let faults: Vec<u64> = bindings.iter().map(|binding| binding.counts.faults).collect();
    assert_eq!(faults, [2, 0], "bad and good");
}

/// Stages the guest, and binds it if that succeeds: it must be refused for the reason `why`, and not be in force.
async fn is_refused(hook: Hook, component: &[u8], why: &str) {
    is_refused_by(ample(), hook, component, why).await;
}

async fn is_refused_by(limits: Limits, hook: Hook, component: &[u8], why: &str) {
    let world = World::with(limits);
    let error = world.put("", hook, component).await.unwrap_err().to_string();
    assert!(error.contains(why), "{error:?} does not say {why:?}");
    assert!(world.host.bindings().is_empty());
    let (events, _) = world.host.watch();
    assert!(events.iter().any(|event| event.detail.contains(why)), "no event says why");
}

fn bad() -> Guest {
    Guest::policy("bad", 2)
}

#[tokio::test]
async fn an_endless_loop() {
    policy_is_stopped_by(brief(), bad().when_triggered(LOOP), "5 ms of CPU").await;
}

#[tokio::test]
async fn a_memory_bomb() {
    let bomb = "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable";
    policy_is_stopped(bad().when_triggered(bomb), "more than 16777216 bytes of memory").await;
}

#[tokio::test]
async fn a_bomb_of_several_memories() {
    let bomb = "(loop $again
        (drop (memory.grow 0 (i32.const 16)))
        (br_if $again (i32.ne (memory.grow 1 (i32.const 16)) (i32.const -1)))) unreachable";
    let guest = bad().when_triggered(bomb).with(|guest| guest.fields.push_str("(memory 1)"));
    policy_is_stopped(guest, "more than 16777216 bytes of memory").await;
}

#[tokio::test]
async fn a_table_bomb() {
    let bomb = "(loop $again
        (br_if $again (i32.ne (table.grow 0 (ref.null func) (i32.const 999)) (i32.const -1)))) unreachable";
    let guest = bad().when_triggered(bomb).with(|guest| guest.fields.push_str("(table 1 funcref)"));
    policy_is_stopped(guest, "more than 20000 elements in tables").await;
}

#[tokio::test]
async fn endless_recursion() {
    let guest = bad().when_triggered("(call $deeper (i64.const 1)) drop").with(|guest| {
        guest
            .fields
            .push_str("(func $deeper (param i64) (result i64) (i64.add (call $deeper (local.get 0)) (local.get 0)))");
    });
    policy_is_stopped(guest, "bytes of stack").await;
}

#[tokio::test]
async fn a_trap() {
    policy_is_stopped(bad().when_triggered("unreachable"), "trapped").await;
    policy_is_stopped(bad().when_triggered("(drop (i32.load (i32.const -4)))"), "out of bounds").await;
    policy_is_stopped(bad().when_triggered("(return (i32.const -4))"), "bad").await;
}

/// A guest that logs this many lines when triggered.
fn logging(lines: u32) -> Guest {
    let body = format!(
        "(local.set 0 (i32.const {lines}))
         (loop $again
           (call $log (i32.const 1) (i32.const 200) (i32.const 3))
           (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))"
    );
    bad().when_triggered(&body).with(|guest| {
        guest.imports = r#"(import "witan:plugin/host@0.1.0" "log" (func $log (param i32 i32 i32)))"#.into();
    })
}

#[tokio::test]
async fn logging_without_end() {
    let guest = logging(1000);
    let world = World::new();
    world.put("", Hook::ConsistencyPolicy, &guest.build()).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(666))), 2);
    assert!(world.host.bindings()[0].counts.lines_dropped >= 900);
}

#[tokio::test]
async fn logging_from_many_instances() {
    let guest = logging(8);
    let world = World::new();
    world.put("", Hook::ConsistencyPolicy, &guest.build()).await.unwrap();
    // Each tenant has its own instance; the limit on lines is one of the binding.
    for tenant in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(required(&world.hooks(tenant).policy(&question(666))), 2);
    }
    // Ten in one second, and twenty if the next second has begun.
    assert!(world.host.bindings()[0].counts.lines_dropped >= 6 * 8 - 20);
}

#[tokio::test]
async fn a_loop_before_the_first_question() {
    let describing = bad().with(|guest| guest.describe = format!("{LOOP} unreachable"));
    let configuring = bad().with(|guest| guest.configure = format!("{LOOP} unreachable"));
    let starting = bad().with(|guest| guest.fields.push_str(&format!("(func $main {LOOP}) (start $main)")));
    let always = bad().with(|guest| guest.answer = format!("{LOOP} unreachable"));
    for guest in [describing, configuring, starting, always] {
        is_refused_by(brief(), Hook::ConsistencyPolicy, &guest.build(), "5 ms of CPU").await;
    }
}

#[tokio::test]
async fn more_than_it_may_start_with() {
    // More than in any class that is for policies.
    let memory = bad().with(|guest| guest.pages = 1100);
    is_refused(Hook::ConsistencyPolicy, &memory.build(), "bytes of memory").await;
    let memories = bad().with(|guest| guest.fields.push_str("(memory 600) (memory 600)"));
    is_refused(Hook::ConsistencyPolicy, &memories.build(), "bytes of memory").await;
    let table = bad().with(|guest| guest.fields.push_str("(table 70000 funcref)"));
    is_refused(Hook::ConsistencyPolicy, &table.build(), "elements in tables").await;
    let function = bad().with(|guest| guest.fields.push_str(&format!("(func {})", "nop ".repeat(600_000))));
    is_refused(Hook::ConsistencyPolicy, &function.build(), "function of").await;
    // A quarter of a megabyte for which the compiler would need tens of gigabytes.
    let tangled = format!("(func (local {}) {})", "i32 ".repeat(36_000), "(loop) ".repeat(43_000));
    let tangle = bad().with(|guest| guest.fields.push_str(&tangled));
    is_refused(Hook::ConsistencyPolicy, &tangle.build(), "times branches").await;
    let functions = bad().with(|guest| guest.fields.push_str(&"(func)".repeat(70_000)));
    is_refused(Hook::ConsistencyPolicy, &functions.build(), "functions").await;
    let bytes = large(bad(), 8 << 20).build();
    is_refused(Hook::ConsistencyPolicy, &bytes, "at most 8388608 are").await;
}

#[tokio::test]
async fn a_giant_result() {
    // A partition key of 2 GiB, of 32 KiB, of 2,000 bytes, and an empty one.
    for (bytes, why) in
        [(0x7fff_ffff_u32, ""), (32 << 10, "more bytes than one call may"), (2000, "1 to 1024"), (0, "1 to 1024")]
    {
        let result = [&[0, 0, 0, 0][..], &0_u32.to_le_bytes(), &bytes.to_le_bytes()].concat();
        let guest = Guest::routing("bad")
            .when_triggered("(return (i32.const 800))")
            .with(|guest| guest.fields.push_str(&data(800, &result)));
        let world = World::new();
        world.put("", Hook::RoutingHook, &guest.build()).await.unwrap();
        let hooks = world.hooks("a");
        let Partition::Faulted { reason, .. } = hooks.partition_key(0, &Key::new("abc").unwrap()) else {
            panic!("{why}")
        };
        assert!(reason.contains(why), "{reason}");
        assert!(matches!(hooks.partition_key(0, &Key::new("a").unwrap()), Partition::By { .. }));
    }
}

/// 2,000 strings of 60 KB each, all at the same address: 120 MB from a guest of 64 KB.
#[tokio::test]
async fn aliased_results() {
    let fill = "(local i32 i32)
        (local.set 2 (i32.const 8192))
        (loop $again
          (i32.store offset=4 (local.get 2) (i32.const 60000))
          (i32.store offset=12 (local.get 2) (i32.const 60000))
          (local.set 2 (i32.add (local.get 2) (i32.const 16)))
          (br_if $again (i32.lt_u (local.get 2) (i32.const 40192))))
        (i32.store (i32.const 800) (i32.const 1))
        (i32.store (i32.const 804) (i32.const 8192))
        (i32.store (i32.const 808) (i32.const 2000))
        (i32.const 800)";
    let issues = bad().with(|guest| guest.configure = fill.into());
    is_refused(Hook::ConsistencyPolicy, &issues.build(), "more bytes than one call may").await;
    let samples = Guest::resolver("bad").with(|guest| {
        // As list<list<u8>>: pairs of 8 bytes, without a discriminant.
        guest.samples = fill
            .replace("(local i32 i32)", "(local i32 i32 i32)")
            .replace("(i32.const 800) (i32.const 1)", "(i32.const 796) (i32.const 1)")
            .replace("(i32.const 804) (i32.const 8192)", "(i32.const 800) (i32.const 8192)")
            .replace("(i32.const 808) (i32.const 2000)", "(i32.const 804) (i32.const 4000)");
    });
    is_refused(Hook::ConflictResolver, &samples.build(), "more bytes than one call may").await;
}

#[tokio::test]
async fn foreign_imports() {
    let wasi = wat::parse_str(
        r#"(component
             (import "wasi:cli/environment@0.2.0" (instance))
             (import "wasi:clocks/wall-clock@0.2.0" (instance)))"#,
    );
    let wasi = wasi.unwrap();
    is_refused(Hook::ConsistencyPolicy, &wasi, "wasi:cli/environment@0.2.0, wasi:clocks/wall-clock@0.2.0").await;
    is_refused(Hook::ConsistencyPolicy, &wasi, "WASI is not linked").await;
    let other = wat::parse_str(r#"(component (import "acme:db/query" (func)))"#).unwrap();
    is_refused(Hook::ConsistencyPolicy, &other, "imports acme:db/query").await;
}

#[tokio::test]
async fn bytes_that_are_no_component() {
    let good = bad().build();
    is_refused(Hook::ConsistencyPolicy, b"(component)", "text").await;
    is_refused(Hook::ConsistencyPolicy, b"", "empty").await;
    is_refused(Hook::ConsistencyPolicy, b"#!/bin/sh\nrm -rf /", "not WebAssembly").await;
    is_refused(Hook::ConsistencyPolicy, &wat::parse_str("(module)").unwrap(), "core module").await;
    is_refused(Hook::ConsistencyPolicy, &wat::parse_str("(component)").unwrap(), "exports nothing").await;
    is_refused(Hook::ConsistencyPolicy, &vec![0; 33 << 20], "at most 33554432 are").await;
    // Half-written, at many lengths.
    let world = World::new();
    for end in (1..good.len()).step_by(61) {
        let error = world.stage(&good[..end]).await.unwrap_err().to_string();
        assert!(!error.is_empty());
    }
    is_refused(Hook::ConsistencyPolicy, &good[..good.len() / 2], "ends early").await;
}

/// A good component with one byte changed, for many of its bytes: refused or still good, and never a panic.
#[tokio::test]
async fn malformed_bytes() {
    let good = bad().build();
    // Some of the results loop.
    let world = World::with(brief());
    let mut refused = 0;
    for at in (8..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        match world.stage(&bytes).await {
            Err(_) => refused += 1,
            Ok(digest) => _ = world.bind("", Hook::ConsistencyPolicy, Reference::Digest(digest)).await,
        }
    }
    assert!(refused > 10);
    world.put("a", Hook::ConsistencyPolicy, &good).await.unwrap();
    assert_eq!(required(&world.hooks("a").policy(&question(1))), 2);
}

#[tokio::test]
async fn a_plugin_that_is_not_what_it_says() {
    let wrong = bad().calling_itself_a("routing-hook");
    is_refused(Hook::ConsistencyPolicy, &wrong.build(), "says that it is a \"routing-hook\"").await;
    is_refused(Hook::ConsistencyPolicy, &Guest::policy("../etc", 1).build(), "does not name itself").await;
    is_refused(Hook::RoutingHook, &bad().build(), "cannot be bound as a routing-hook").await;
}

/// The sum of the values' first bytes: commutative and associative, but not idempotent.
const SUM: &str = "
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get 3)))
      (if (i32.load offset=4 (i32.add (local.get 2) (i32.mul (local.get $i) (i32.const 16)))) (then
        (local.set $sum (i32.add (local.get $sum)
          (i32.load8_u (i32.load (i32.add (local.get 2) (i32.mul (local.get $i) (i32.const 16)))))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i32.store8 (i32.const 900) (local.get $sum))
    (i32.store8 (i32.const 804) (i32.const 1))
    (i32.store (i32.const 808) (i32.const 900))
    (i32.store (i32.const 812) (i32.const 1))
    (i32.const 800)";

/// Picks another sibling each time it is asked.
const ALTERNATING: &str = "
    (global.set $state (i32.add (global.get $state) (i32.const 1)))
    (i32.store8 (i32.const 804) (i32.const 0))
    (i32.store (i32.const 808) (i32.and (global.get $state) (i32.const 1)))
    (i32.const 800)";

#[tokio::test]
async fn resolvers_that_break_a_law() {
    let resolver = |answer: &str| Guest::resolver("bad").with(|guest| guest.answer = answer.into()).build();
    is_refused(Hook::ConflictResolver, &resolver(SUM), "not idempotent").await;
    is_refused(Hook::ConflictResolver, &resolver(ALTERNATING), "not deterministic").await;
    let first = ALTERNATING.replace("(i32.and (global.get $state) (i32.const 1))", "(i32.const 0)");
    is_refused(Hook::ConflictResolver, &resolver(&first), "not commutative").await;
    let ninth = ALTERNATING.replace("(i32.and (global.get $state) (i32.const 1))", "(i32.const 9)");
    is_refused(Hook::ConflictResolver, &resolver(&ninth), "picked sibling 9 of 2").await;
}

#[tokio::test]
async fn a_resolver_that_fails_keeps_all_siblings() {
    // Merges to 11 MiB; a value has at most 10.
    let giant = "(if (i32.lt_s (memory.size) (i32.const 200)) (then (drop (memory.grow (i32.const 200)))))
        (i32.store8 (i32.const 804) (i32.const 1))
        (i32.store (i32.const 808) (i32.const 0))
        (i32.store (i32.const 812) (i32.const 11534336))
        (return (i32.const 800))";
    for (limits, body, why) in [
        (brief(), LOOP, "50 ms of CPU"),
        (ample(), giant, "more bytes than one call may"),
        (ample(), "unreachable", "trapped"),
    ] {
        let world = World::with(limits);
        let guest = Guest::resolver("bad").when_triggered(body);
        world.put("", Hook::ConflictResolver, &guest.build()).await.unwrap();
        let siblings = [1, 2].map(|time| Sibling { value: bytes::Bytes::from(vec![time as u8]), time }).to_vec();
        let question = ResolverQuestion { key: Key::new("k").unwrap(), siblings };
        match world.hooks("a").resolve(question).await {
            witan_kernel::hook::Asked::Faulted { reason, fail, .. } => {
                assert!(reason.contains(why), "{reason}");
                assert!(!fail);
            }
            other => panic!("{other:?}"),
        }
    }
}
