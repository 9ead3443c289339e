//! Candidates: asked beside the version in force, taken back or promoted, and never to the harm of a request.

use std::time::Duration;

use witan_kernel::candidate::{Bounds, Mode};
use witan_kernel::hook::{Asked, Hook, Hooks, PolicyAnswer, ResolverQuestion, Sibling};
use witan_kernel::name::Key;
use witan_memory::MemoryPlugins;
use witan_plugin::event::EventKind;
use witan_plugin::history::Author;
use witan_plugin::{BindRequest, OnFault, PluginError, Reference, TryRequest};

use crate::guest::Guest;
use crate::{LONG, World, question, required, tenant, wait_for_kind};

const POLICY: Hook = Hook::ConsistencyPolicy;

fn policy(required: u8) -> Vec<u8> {
    Guest::policy("pol", required).build()
}

/// Fails on questions about 666 bytes.
fn trapping(required: u8) -> Vec<u8> {
    Guest::policy("pol", required).when_triggered("unreachable").build()
}

fn bounds() -> Bounds {
    Bounds { least_answers: 10, window_s: 5, ..Bounds::default() }
}

fn key(number: usize) -> Key {
    Key::new(format!("key-{number}")).unwrap()
}

/// Asks as a coordinator does.
fn ask(hooks: &dyn Hooks, key: &Key, bytes: u32) -> Asked<PolicyAnswer> {
    let question = question(bytes);
    hooks.policy_tried(key, &question).unwrap_or_else(|| {
        let asked = hooks.policy(&question);
        hooks.policy_answered(key, &question, &asked);
        asked
    })
}

fn author(who: &str) -> Author {
    Author { who: who.to_owned(), reason: "a test".to_owned() }
}

impl World {
    async fn try_with(
        &self,
        component: &[u8],
        (mode, percent): (Mode, u8),
        bounds: Bounds,
        promote_after_s: Option<u32>,
    ) -> Result<witan_plugin::registry::Binding, PluginError> {
        let plugin = Reference::Digest(self.stage(component).await?);
        let (tenant, hook) = (Some(tenant("a")), POLICY);
        let bind = BindRequest {
            tenant,
            hook,
            plugin,
            configuration: bytes::Bytes::new(),
            on_fault: OnFault::Native,
            author: author("tester"),
        };
        let percent = Some(percent);
        self.host.try_beside(TryRequest { bind, mode, percent, bounds, promote_after_s }).await
    }

    /// What the policy requires for each of the keys of a round.
    fn asks(&self, bytes: u32) -> Vec<u8> {
        let hooks = self.hooks("a");
        (0..200).map(|number| required(&ask(&*hooks, &key(number), bytes))).collect()
    }

    async fn story(&self) -> Vec<(String, String)> {
        let history = self.host.history(Some(tenant("a")), POLICY).await.unwrap();
        history.into_iter().map(|entry| (entry.what, entry.mode)).collect()
    }
}

fn story(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    entries.iter().map(|(what, mode)| ((*what).to_owned(), (*mode).to_owned())).collect()
}

#[tokio::test]
async fn a_canary_answers_for_the_same_keys_everywhere_and_is_promoted_and_rolled_back() {
    let store = MemoryPlugins::default();
    let (one, other) = (World::of_cluster(&store), World::of_cluster(&store));
    one.put("a", POLICY, &policy(1)).await.unwrap();
    one.try_with(&policy(3), (Mode::Canary, 30), bounds(), None).await.unwrap();
    other.host.refresh(None).await.unwrap();
    let answers = one.asks(1);
    let by_canary = answers.iter().filter(|required| **required == 3).count();
    assert!((30..90).contains(&by_canary), "{by_canary} of 200");
    assert_eq!(answers, other.asks(1));

    // Counted on one coordinator, reported by both.
    assert!(!one.host.tend().await.unwrap() && !other.host.tend().await.unwrap());
    let report = other.host.report(Some(tenant("a")), POLICY).await.unwrap().candidate.unwrap();
    assert_eq!(report.window.answered, 2 * by_canary as u64, "{report:?}");
    assert_eq!(report.total.answered, by_canary as u64);

    other.host.promote(Some(tenant("a")), POLICY, author("operator")).await.unwrap();
    one.host.refresh(None).await.unwrap();
    assert!(one.asks(1).iter().all(|required| *required == 3));
    let again = other.host.promote(Some(tenant("a")), POLICY, author("operator")).await;
    assert!(matches!(again, Err(PluginError::NoCandidate(_))), "{again:?}");
    one.host.rollback(Some(tenant("a")), POLICY, author("operator")).await.unwrap();
    assert!(one.asks(1).iter().all(|required| *required == 1));
    let expected = [("rolled_back", "active"), ("promoted", "active"), ("tried", "canary"), ("bound", "active")];
    assert_eq!(one.story().await, story(&expected));
    let history = one.host.history(Some(tenant("a")), POLICY).await.unwrap();
    assert_eq!((&*history[2].who, &*history[2].reason), ("tester", "a test"));
    assert_eq!((&*history[2].name, &*history[2].version), ("pol", "1.0.0"));
    assert!(history[2].outcome.contains("30 %"), "{}", history[2].outcome);
}

#[tokio::test]
async fn a_canary_that_faults_harms_no_request_and_is_taken_back() {
    let world = World::new();
    let (_, mut events) = world.host.watch();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    world.try_with(&trapping(3), (Mode::Canary, 50), bounds(), None).await.unwrap();
    assert!(world.asks(666).iter().all(|required| *required == 1), "the version in force answers instead");
    wait_for_kind(&mut events, EventKind::CandidateTripped).await;
    assert!(world.asks(1).iter().all(|required| *required == 1), "it is not asked any longer");
    assert!(world.host.tend().await.unwrap());
    let taken_back = wait_for_kind(&mut events, EventKind::TakenBack).await;
    assert!(taken_back.detail.contains("it failed on"), "{}", taken_back.detail);
    assert_eq!(world.host.bindings()[0].candidate, None);
    assert_eq!(world.story().await, story(&[("taken_back", "canary"), ("tried", "canary"), ("bound", "active")]));
    let discarded = world.host.discard(Some(tenant("a")), POLICY, author("operator")).await;
    assert!(matches!(discarded, Err(PluginError::NoCandidate(_))), "{discarded:?}");
}

#[tokio::test]
async fn a_shadow_answers_for_nobody_and_is_compared() {
    let world = World::new();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    let differing = Bounds { differing_permille: 100, ..bounds() };
    world.try_with(&policy(3), (Mode::Shadow, 100), differing, None).await.unwrap();
    let compared = async {
        loop {
            assert!(world.asks(1).iter().all(|required| *required == 1));
            let report = world.host.report(Some(tenant("a")), POLICY).await.unwrap().candidate.unwrap();
            if report.total.differing >= 10 {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let report = tokio::time::timeout(LONG, compared).await.expect("shadows are asked");
    assert_eq!(report.total.compared, report.total.differing);
    let example = &report.examples[0];
    assert!(example.in_force.contains("required: 1") && example.candidate.contains("required: 3"), "{example:?}");
    assert!(world.host.tend().await.unwrap(), "it is taken back");
    assert_eq!(world.story().await[0], ("taken_back".to_owned(), "shadow".to_owned()));
}

#[tokio::test]
async fn a_restart_keeps_the_trial_and_any_change_of_the_binding_ends_it() {
    let world = World::new();
    world.put("a", POLICY, &policy(1)).await.unwrap();
    world.try_with(&policy(3), (Mode::Canary, 50), bounds(), None).await.unwrap();
    let before = world.asks(1);
    let digest = world.stage(&policy(3)).await.unwrap();
    let in_use = world.host.remove(None, Reference::Digest(digest)).await;
    assert!(matches!(in_use, Err(PluginError::InUse(_))), "{in_use:?}");
    let world = world.restart();
    assert_eq!(world.asks(1), before);
    world.put("a", POLICY, &policy(2)).await.unwrap();
    assert!(world.asks(1).iter().all(|required| *required == 2));
    assert_eq!(world.host.bindings()[0].candidate, None);
    world.host.remove(None, Reference::Digest(digest)).await.expect("nothing needs it");
}

#[tokio::test]
async fn a_candidate_that_cannot_be_tried_changes_nothing() {
    let world = World::new();
    let unbound = world.try_with(&policy(3), (Mode::Canary, 50), bounds(), None).await;
    assert!(matches!(unbound, Err(PluginError::NotFound(_))), "{unbound:?}");
    world.put("a", POLICY, &policy(1)).await.unwrap();
    let in_force = world.try_with(&policy(1), (Mode::Canary, 50), bounds(), None).await;
    assert!(matches!(in_force, Err(PluginError::Invalid(_))), "{in_force:?}");
    for (mode, percent, bounds, field) in [
        (Mode::Canary, 100, bounds(), "percent"),
        (Mode::Shadow, 0, bounds(), "percent"),
        (Mode::Canary, 50, Bounds { window_s: 1, ..bounds() }, "bounds.window_seconds"),
    ] {
        let refused = world.try_with(&policy(3), (mode, percent), bounds, None).await;
        assert!(matches!(&refused, Err(PluginError::Field(invalid)) if invalid.field == field), "{refused:?}");
    }
    assert_eq!(required(&ask(&*world.hooks("a"), &key(1), 1)), 1);
    assert_eq!(world.story().await, story(&[("bound", "active")]));
    assert_eq!(world.host.bindings()[0].candidate, None);
}

/// What waits for the shadow keeps the siblings in memory after the reads have been answered.
#[tokio::test]
async fn a_shadow_is_not_asked_about_more_than_a_megabyte() {
    let world = World::new();
    // With four mebibytes of memory.
    let roomy = |name: &str| Guest::resolver(name).with(|guest| guest.pages = 64).build();
    world.put("a", Hook::ConflictResolver, &roomy("one")).await.unwrap();
    let plugin = Reference::Digest(world.stage(&roomy("other")).await.unwrap());
    let bind = BindRequest {
        tenant: Some(tenant("a")),
        hook: Hook::ConflictResolver,
        plugin,
        configuration: bytes::Bytes::new(),
        on_fault: OnFault::Native,
        author: author("tester"),
    };
    let (mode, percent) = (Mode::Shadow, Some(100));
    let request = TryRequest { bind, mode, percent, bounds: bounds(), promote_after_s: None };
    world.host.try_beside(request).await.unwrap();
    let ask = async |bytes: usize| {
        let sibling = |time| Sibling { value: vec![b'x'; bytes].into(), time };
        let question = ResolverQuestion { key: key(1), siblings: vec![sibling(1), sibling(2)] };
        let asked = world.hooks("a").resolve(question).await;
        assert!(matches!(asked, Asked::Answered { .. }), "{asked:?}");
    };
    for bytes in [600_000, 600_000, 600_000, 400_000] {
        ask(bytes).await;
    }
    let seen = async {
        loop {
            let view = world.host.report(Some(tenant("a")), Hook::ConflictResolver).await.unwrap();
            let seen = view.candidate.unwrap().total;
            if seen.compared > 0 {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Its one thread takes them in order: those before would have been counted.
    let seen = tokio::time::timeout(LONG, seen).await.expect("the last one is asked");
    assert_eq!((seen.asked(), seen.compared, seen.differing), (1, 1, 0), "{seen:?}");
}
