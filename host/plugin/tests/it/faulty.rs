//! Every kind of faulty resolver that tenants have brought so far: what its tenant, the operator and a neighbour see of it.

use witan_kernel::hook::{Asked, FaultKind, Hook, ResolverQuestion, Sibling, Verdict};
use witan_kernel::name::Key;
use witan_plugin::event::EventKind;
use witan_plugin::metrics::Counts;
use witan_plugin::registry::Binding;
use witan_plugin::{Limits, OnFault, Reference};

use crate::guest::Guest;
use crate::{LONG, World, ample, brief, wait_for};

const RESOLVER: Hook = Hook::ConflictResolver;
/// The allocations of guests that grow: one question's siblings may be there already.
const PICK: &str = "(i32.store8 (i32.const 804) (i32.const 0)) (i32.store (i32.const 808) (i32.const 0))";

/// Two siblings of a key.
fn question(key: &str) -> ResolverQuestion {
    let siblings = [1, 2].map(|time| Sibling { value: bytes::Bytes::from(vec![time as u8]), time }).to_vec();
    ResolverQuestion { key: Key::new(key.to_owned()).unwrap(), siblings }
}

/// A key of three bytes, which the guests take for no probe.
fn key(number: u32) -> String {
    format!("k{:02}", number % 100)
}

/// A resolver that does this for one key in a hundred, and keeps all siblings of the others.
fn for_one_in_a_hundred(body: &str) -> Guest {
    let is_k07 = "(i32.eq (i32.load16_u offset=1 (local.get 0)) (i32.const 0x3730))";
    Guest::resolver("bad").when_triggered(&format!("(if {is_k07} (then {body}))"))
}

/// A faulty resolver of one tenant, and a good one of its neighbour.
struct Scene {
    world: World,
}

impl Scene {
    async fn with(limits: Limits, bad: &Guest) -> Self {
        let world = World::with(limits);
        world.put("neighbour", RESOLVER, &Guest::resolver("good").build()).await.unwrap();
        let digest = world.stage(&bad.build()).await.unwrap();
        world.bind_with("tenant", RESOLVER, Reference::Digest(digest), b"", OnFault::Native).await.unwrap();
        Self { world }
    }

    /// Asks the tenant's resolver, and its neighbour's, which must answer.
    async fn ask(&self, key: &str) -> Asked<Verdict> {
        let asked = self.world.hooks("tenant").resolve(question(key)).await;
        let beside = self.world.hooks("neighbour").resolve(question(key)).await;
        assert!(matches!(beside, Asked::Answered { answer: Verdict::KeepAll, .. }), "the neighbour: {beside:?}");
        asked
    }

    async fn verdict(&self, key: &str) -> Verdict {
        match self.ask(key).await {
            Asked::Answered { answer, .. } => answer,
            other => panic!("no verdict: {other:?}"),
        }
    }

    /// What the tenant learns of a question that was not answered.
    async fn fault(&self, key: &str) -> (FaultKind, String) {
        let told = self.ask(key).await.fault().expect("no fault");
        assert!(told.by.starts_with("bad@") && told.reason.starts_with(&*told.by), "{told:?}");
        (told.kind, told.reason)
    }

    fn binding(&self, name: &str) -> Binding {
        let bindings = self.world.host.bindings();
        bindings.into_iter().find(|it| it.record.current.plugin.starts_with(name)).unwrap()
    }

    /// What the operator sees of the tenant's resolver, and nothing of its neighbour's.
    fn counts(&self) -> Counts {
        assert_eq!(self.binding("good").counts.faults, 0);
        assert_eq!(self.binding("good").breakers.tenants, 0);
        self.binding("bad").counts
    }
}

/// Asks about each of a hundred keys, four times: three hundred and ninety-six questions are answered.
async fn fails_for_one_key_in_a_hundred(limits: Limits, body: &str, kind: FaultKind, why: &str) {
    let scene = Scene::with(limits, &for_one_in_a_hundred(body)).await;
    let (_, mut events) = scene.world.host.watch();
    for number in 0..400 {
        let key = key(number);
        if key == "k07" {
            let (told, reason) = scene.fault(&key).await;
            assert!(told == kind && reason.contains(why), "{told:?}: {reason}");
        } else {
            assert_eq!(scene.verdict(&key).await, Verdict::KeepAll, "{key}");
        }
    }
    let counts = scene.counts();
    assert_eq!((counts.faults, counts.unanswered[kind as usize], counts.refused), (4, 4, 0));
    assert_eq!(scene.binding("bad").breakers.tenants, 0, "it goes on answering");
    let event = wait_for(&mut events, |event| event.kind == EventKind::Faulted).await;
    assert!(event.detail.contains(why) && event.tenant == Some(crate::tenant("tenant")), "{event:?}");
    assert!(events.try_recv().is_err(), "one event, not four");
}

#[tokio::test]
async fn a_trap_for_one_key_in_a_hundred() {
    fails_for_one_key_in_a_hundred(ample(), "unreachable", FaultKind::Trap, "trapped").await;
}

#[tokio::test]
async fn a_loop_for_one_key_in_a_hundred() {
    fails_for_one_key_in_a_hundred(brief(), "(loop $again (br $again))", FaultKind::Time, "50 ms of CPU").await;
}

#[tokio::test]
async fn a_trap_for_every_key() {
    let limits = Limits { cool_down: std::time::Duration::from_secs(600), ..ample() };
    let scene = Scene::with(limits, &Guest::resolver("bad").when_triggered("unreachable")).await;
    for number in 0..20 {
        assert_eq!(scene.fault(&key(number)).await.0, FaultKind::Trap);
    }
    let (kind, reason) = scene.fault("k20").await;
    assert!(kind == FaultKind::Breaker && reason.contains("failed too often"), "{kind:?}: {reason}");
    let counts = scene.counts();
    assert_eq!((counts.faults, counts.refused, counts.unanswered[FaultKind::Breaker as usize]), (20, 1, 1));
    let open = scene.binding("bad").breakers;
    assert_eq!((open.tenants, open.admitted_permille), (1, 0));
    let per_hook = scene.world.host.open_breakers().map(|(_, open)| open);
    assert_eq!(per_hook, [0, 1, 0]);
}

/// Of a binding for all tenants, the breaker of each tenant is its own.
#[tokio::test]
async fn a_trap_for_the_keys_of_two_tenants() {
    let limits = Limits { cool_down: std::time::Duration::from_secs(600), ..ample() };
    let world = World::with(limits);
    world.put("", RESOLVER, &Guest::resolver("bad").when_triggered("unreachable").build()).await.unwrap();
    for (tenant, questions) in [("a", 20), ("b", 20), ("c", 19)] {
        for number in 0..questions {
            let asked = world.hooks(tenant).resolve(question(&key(number))).await;
            assert!(matches!(asked, Asked::Faulted { kind: FaultKind::Trap, .. }), "{asked:?}");
        }
    }
    assert_eq!(world.host.bindings()[0].breakers.tenants, 2);
    let series = world.host.tenant_counts();
    let of = |tenant: &str| {
        let mut series = series.iter().filter(|it| it.hook == RESOLVER && it.tenant == tenant);
        series.next().map(|it| (it.plugin.clone(), it.counts.calls, it.counts.faults))
    };
    assert_eq!((of("a"), of("c")), (Some(("bad".into(), 20, 20)), Some(("bad".into(), 19, 19))));
    assert_eq!(of("other"), Some(("other".into(), 0, 0)));
}

/// It picks another sibling when it is asked for the first time than later.
#[tokio::test]
async fn verdicts_that_depend_on_earlier_questions() {
    let body = format!(
        "{PICK}
         (if (i32.ge_u (global.get $state) (i32.const 1)) (then (i32.store (i32.const 808) (i32.const 1))))
         (global.set $state (i32.add (global.get $state) (i32.const 1)))
         (return (i32.const 800))"
    );
    let scene = Scene::with(ample(), &Guest::resolver("bad").when_triggered(&body)).await;
    let (_, mut events) = scene.world.host.watch();
    // The first question is put to two instances that were asked nothing before.
    assert_eq!(scene.verdict("k00").await, Verdict::Pick(0));
    for number in 1..=64 {
        assert_eq!(scene.verdict(&key(number)).await, Verdict::Pick(1));
    }
    let event = wait_for(&mut events, |event| event.kind == EventKind::Undetermined).await;
    let said = ["picked sibling 1", "picked sibling 0"].iter().all(|what| event.detail.contains(what));
    assert!(said && event.tenant == Some(crate::tenant("tenant")), "{event:?}");
    // Each of its neighbour's questions was answered alike.
    let counts = scene.counts();
    assert_eq!((counts.repeated, counts.unanswered[FaultKind::Undetermined as usize], counts.faults), (2, 1, 1));
    // The last one is counted after its first answer was given.
    let both = async {
        while scene.binding("good").counts.repeated < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, both).await.expect("repeated twice");
}

#[tokio::test]
async fn memory_that_grows_with_every_question() {
    // A mebibyte each.
    let scene =
        Scene::with(ample(), &Guest::resolver("bad").when_triggered("(drop (memory.grow (i32.const 16)))")).await;
    for number in 0..100 {
        assert_eq!(scene.verdict(&key(number)).await, Verdict::KeepAll);
    }
    let counts = scene.counts();
    assert_eq!(counts.faults, 0);
    assert!(counts.instances >= 100 / 10, "instances are replaced: {counts:?}");
}

#[tokio::test]
async fn memory_without_end() {
    let bomb = "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 64)) (i32.const -1)))) unreachable";
    let scene = Scene::with(ample(), &for_one_in_a_hundred(bomb)).await;
    let (kind, reason) = scene.fault("k07").await;
    assert!(kind == FaultKind::Memory && reason.contains("134217728 bytes of memory"), "{reason}");
    assert_eq!(scene.verdict("k08").await, Verdict::KeepAll);
    assert_eq!(scene.counts().unanswered[FaultKind::Memory as usize], 1);
}

#[tokio::test]
async fn a_flood_of_log_lines() {
    let flood = "(local.set $i (i32.const 1000))
        (loop $again
          (call $log (i32.const 1) (i32.const 200) (i32.const 3))
          (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))";
    let guest = Guest::resolver("bad").when_triggered(flood).with(|guest| {
        guest.imports = r#"(import "witan:plugin/host@0.1.0" "log" (func $log (param i32 i32 i32)))"#.into();
    });
    let scene = Scene::with(ample(), &guest).await;
    assert_eq!(scene.verdict("k00").await, Verdict::KeepAll);
    // Those of the repeated question are its own as well.
    assert!(scene.counts().lines_dropped >= 900, "{:?}", scene.counts());
}

/// Answers that it merged to this many bytes, from address 0, with as much memory.
fn merging_to(bytes: u32) -> String {
    let pages = bytes.div_ceil(65_536);
    format!(
        "(if (i32.lt_u (memory.size) (i32.const {pages})) (then (drop (memory.grow (i32.const {pages})))))
         (i32.store8 (i32.const 804) (i32.const 1))
         (i32.store (i32.const 808) (i32.const 0))
         (i32.store (i32.const 812) (i32.const {bytes}))
         (return (i32.const 800))"
    )
}

#[tokio::test]
async fn a_result_of_100_mb() {
    let scene = Scene::with(ample(), &for_one_in_a_hundred(&merging_to(100_000_000))).await;
    let (kind, reason) = scene.fault("k07").await;
    assert!(kind == FaultKind::Answer && reason.contains("more bytes than one call may"), "{reason}");
    assert_eq!(scene.verdict("k08").await, Verdict::KeepAll);
    assert_eq!(scene.counts().unanswered[FaultKind::Answer as usize], 1);
}

#[tokio::test]
async fn an_index_out_of_range() {
    let nine =
        "(i32.store8 (i32.const 804) (i32.const 0)) (i32.store (i32.const 808) (i32.const 9)) (return (i32.const 800))";
    let scene = Scene::with(ample(), &for_one_in_a_hundred(nine)).await;
    let (kind, reason) = scene.fault("k07").await;
    assert!(kind == FaultKind::Answer && reason.contains("picked sibling 9 of 2"), "{reason}");
    assert_eq!(scene.verdict("k08").await, Verdict::KeepAll);
    assert_eq!(scene.counts().unanswered[FaultKind::Answer as usize], 1);
}

/// The largest value that there may be: it is no fault.
#[tokio::test]
async fn results_of_10_mib() {
    let scene = Scene::with(ample(), &for_one_in_a_hundred(&merging_to(10 << 20))).await;
    for _ in 0..5 {
        let Verdict::Merged(value) = scene.verdict("k07").await else { panic!("not merged") };
        assert_eq!(value.len(), 10 << 20);
    }
    assert_eq!(scene.counts().faults, 0);
}

#[tokio::test]
async fn twelve_million_iterations() {
    let body = "(local.set $i (i32.const 12000000))
        (loop $again (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))";
    let guest = Guest::resolver("bad").when_triggered(body);
    let scene = Scene::with(ample(), &guest).await;
    assert_eq!(scene.verdict("k00").await, Verdict::KeepAll, "it is slow, and no fault");
    // Beyond its share of the CPU, its questions keep all siblings until the next second. One that begins just then is answered.
    let mut limits = ample();
    limits.standard.resolver.share = 1;
    let scene = Scene::with(limits, &guest).await;
    let (kind, reason) = loop {
        if let Some(told) = scene.world.hooks("tenant").resolve(question("k00")).await.fault() {
            break (told.kind, told.reason);
        }
    };
    assert!(kind == FaultKind::Share && reason.contains("share of the CPU"), "{reason}");
    assert!(scene.binding("bad").counts.unanswered[FaultKind::Share as usize] > 0);
}
