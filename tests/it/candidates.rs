//! Versions of plugins that are tried beside the one in force: on two coordinators with one PostgreSQL, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::{Code, Status};
use witan_wire::v1;

use crate::harness::{Api, Company, Guest, Plugins, Refusal, eventually, read, write};

const HOOK: &str = "consistency-policy";
const TENANT: &str = "shop";

/// Reads and writes through one coordinator, of which none may fail. One write in fifty has a value that triggers faulty plugins.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(apis: &[Api]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let worker = |(number, api): (usize, &Api)| {
            let (api, stop, done) = (api.clone(), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let key = format!("{number}-{}", round % 500);
                    let value = if round % 50 == 0 { "x".repeat(666) } else { format!("value {round}") };
                    api.write(write(TENANT, &key, value)).await.expect("no request fails because of a candidate");
                    api.read(read(TENANT, &key)).await.expect("no request fails because of a candidate");
                    done.fetch_add(2, Ordering::Relaxed);
                    // The servers of this test share the machine.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        };
        let workers = apis.iter().enumerate().map(worker).collect();
        Self { stop, done, workers }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.expect("no request failed");
        }
        self.done.load(Ordering::Relaxed)
    }
}

struct Scene {
    company: Company,
}

impl Scene {
    fn plugins(&self, of: usize) -> Plugins {
        Plugins::new(self.company.coordinators[of].address)
    }

    /// Tries a component beside the one in force, through the second coordinator.
    async fn attempt(&self, component: Vec<u8>, mode: &str, percent: u32, bounds: v1::CandidateBounds) -> String {
        let uploaded = eventually("uploaded", async || self.plugins(1).send(component.clone()).await.ok()).await;
        let digest = uploaded.digest;
        let bounds = v1::CandidateBounds { window_seconds: Some(5), least_answers: Some(20), ..bounds };
        let request = v1::BindPluginRequest {
            tenant_id: TENANT.to_owned(),
            hook: HOOK.to_owned(),
            plugin: digest.clone(),
            mode: mode.to_owned(),
            percent: Some(percent),
            bounds: Some(bounds),
            reason: "a test".to_owned(),
            ..v1::BindPluginRequest::default()
        };
        let bound = self.plugins(1).client().bind_plugin(request).await.expect("tried").into_inner();
        let candidate = bound.binding.expect("a binding").candidate.expect("a candidate");
        assert_eq!((&*candidate.digest, &*candidate.mode, candidate.percent), (&*digest, mode, percent));
        digest
    }

    async fn report(&self, of: usize) -> v1::GetBindingReportResponse {
        let request = v1::GetBindingReportRequest { tenant_id: TENANT.to_owned(), hook: HOOK.to_owned() };
        self.plugins(of).client().get_binding_report(request).await.expect("a report").into_inner()
    }

    async fn history(&self, of: usize) -> Vec<v1::BindingHistoryEntry> {
        let request = v1::GetBindingHistoryRequest { tenant_id: TENANT.to_owned(), hook: HOOK.to_owned() };
        self.plugins(of).client().get_binding_history(request).await.expect("a history").into_inner().entries
    }

    /// Waits until the newest entry of the history is about this version, and says that.
    async fn told(&self, what: &str, digest: &str) -> v1::BindingHistoryEntry {
        eventually(what, async || {
            let newest = self.history(0).await.into_iter().next()?;
            (newest.what == what && newest.digest == digest).then_some(newest)
        })
        .await
    }

    /// Waits until both coordinators are asked by, and report of, this version.
    async fn in_force_everywhere(&self, digest: &str) {
        for of in [0, 1] {
            eventually("it answers at both", async || {
                let binding = self.report(of).await.binding?;
                (binding.digest == digest && binding.candidate.is_none()).then_some(())
            })
            .await;
        }
    }

    async fn promote(&self) -> Result<v1::BindPluginResponse, Status> {
        let request = v1::PromoteBindingRequest {
            tenant_id: TENANT.to_owned(),
            hook: HOOK.to_owned(),
            reason: "it did well".to_owned(),
        };
        self.plugins(0).client().promote_binding(request).await.map(|answer| answer.into_inner())
    }

    async fn discard(&self, of: usize) -> Result<v1::BindPluginResponse, Status> {
        let (tenant_id, hook, reason) = (TENANT.to_owned(), HOOK.to_owned(), String::new());
        let request = v1::DiscardCandidateRequest { tenant_id, hook, reason };
        self.plugins(of).client().discard_candidate(request).await.map(|answer| answer.into_inner())
    }
}

fn reason(refused: &Status) -> String {
    Refusal::from(refused.clone()).reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_tried_promoted_and_rolled_back_and_bad_ones_are_taken_back_by_themselves() {
    let scene = Scene { company: Company::of(2).await };
    scene.company.api(0).tenant(TENANT, |_| {}).await;
    let steady = scene.plugins(0).send(Guest::policy("steady", 2).build()).await.expect("uploaded").digest;
    scene.plugins(0).bind(TENANT, HOOK, &steady).await.expect("bound");
    let load = Load::begin(&[scene.company.api(0), scene.company.api(1)]);

    // A good one: shadow, canary, promoted, rolled back.
    let next = scene.attempt(Guest::policy("next", 2).build(), "shadow", 100, v1::CandidateBounds::default()).await;
    let seen = eventually("answers are compared", async || {
        let report = scene.report(0).await.candidate?;
        (report.compared >= 20).then_some(report)
    })
    .await;
    assert_eq!((seen.differing, seen.faulted, seen.missing.len()), (0, 0, 0), "{seen:?}");
    let steps = v1::CandidateBounds { steps: vec![50], ..v1::CandidateBounds::default() };
    assert_eq!(scene.attempt(Guest::policy("next", 2).build(), "canary", 10, steps).await, next);
    let stepped = scene.told("stepped", &next).await;
    assert!(stepped.who.starts_with("coordinator ") && stepped.outcome.contains("50 %"), "{stepped:?}");
    scene.promote().await.expect("promoted");
    scene.in_force_everywhere(&next).await;
    let again = scene.promote().await.expect_err("there is none any longer");
    assert_eq!((again.code(), reason(&again)), (Code::NotFound, "CANDIDATE_NOT_FOUND".to_owned()), "{again}");
    scene.plugins(1).roll_back(TENANT, HOOK).await.expect("rolled back");
    scene.in_force_everywhere(&steady).await;

    // One that fails on a write in fifty, one that is slow, and one that answers differently.
    let faulty = Guest::policy("faulty", 2).when_triggered("unreachable").build();
    // It is asked about reads, too: of all questions it fails on one in a hundred, which is what the default still allows.
    let few = v1::CandidateBounds { fault_permille: Some(5), ..v1::CandidateBounds::default() };
    let faulty = scene.attempt(faulty, "canary", 60, few).await;
    let found = scene.told("taken_back", &faulty).await;
    assert!(found.reason.contains("it failed on") && found.outcome.contains("steady"), "{found:?}");
    scene.in_force_everywhere(&steady).await;
    let spin = "(local $n i32) (loop $again (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $n) (i32.const 600000))))";
    let slow = Guest::policy("slow", 2).with(|guest| guest.answer = format!("{spin} {}", guest.answer)).build();
    // Whether it is too slow, or uses up its share of the CPU, depends on the machine: it is found either way.
    let slow = scene.attempt(slow, "canary", 60, v1::CandidateBounds { p99_us: Some(50), ..Default::default() }).await;
    scene.told("taken_back", &slow).await;
    let bounds = v1::CandidateBounds { differing_permille: Some(100), ..v1::CandidateBounds::default() };
    let other = scene.attempt(Guest::policy("other", 3).build(), "shadow", 100, bounds).await;
    let found = scene.told("taken_back", &other).await;
    assert!(found.reason.contains("answers differ"), "{found:?}");
    let nothing = scene.discard(1).await.expect_err("it was taken back");
    assert_eq!(reason(&nothing), "CANDIDATE_NOT_FOUND");

    assert!(load.end().await > 0);
    let told: Vec<_> = scene.history(1).await.into_iter().map(|entry| (entry.what, entry.mode)).collect();
    let expected = [
        ("taken_back", "shadow"),
        ("tried", "shadow"),
        ("taken_back", "canary"),
        ("tried", "canary"),
        ("taken_back", "canary"),
        ("tried", "canary"),
        ("rolled_back", "active"),
        ("promoted", "active"),
        ("stepped", "canary"),
        ("tried", "canary"),
        ("tried", "shadow"),
        ("bound", "active"),
    ];
    let told: Vec<_> = told.iter().map(|(what, mode)| (&**what, &**mode)).collect();
    assert_eq!(told, expected, "the same at both coordinators");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_cannot_be_made_says_which_field_is_wrong_and_changes_nothing() {
    let scene = Scene { company: Company::of(1).await };
    scene.company.api(0).tenant(TENANT, |_| {}).await;
    let steady = scene.plugins(0).send(Guest::policy("steady", 2).build()).await.expect("uploaded").digest;
    let next = scene.plugins(0).send(Guest::policy("next", 2).build()).await.expect("uploaded").digest;
    let request = |mode: &str, percent: Option<u32>, bounds: Option<v1::CandidateBounds>| v1::BindPluginRequest {
        tenant_id: TENANT.to_owned(),
        hook: HOOK.to_owned(),
        plugin: next.clone(),
        mode: mode.to_owned(),
        percent,
        bounds,
        ..v1::BindPluginRequest::default()
    };
    let refused = async |request| scene.plugins(0).client().bind_plugin(request).await.expect_err("refused");
    let unbound = refused(request("canary", None, None)).await;
    assert_eq!(unbound.code(), Code::NotFound, "nothing is in force beside which it could be tried: {unbound}");
    scene.plugins(0).bind(TENANT, HOOK, &steady).await.expect("bound");
    let bounds = |change: fn(&mut v1::CandidateBounds)| {
        let mut bounds = v1::CandidateBounds::default();
        change(&mut bounds);
        Some(bounds)
    };
    for (request, field) in [
        (request("later", None, None), "mode"),
        (request("active", Some(5), None), "percent"),
        (request("", None, bounds(|_| {})), "bounds"),
        (request("canary", Some(0), None), "percent"),
        (request("canary", Some(100), None), "percent"),
        (request("canary", Some(300), None), "percent"),
        (request("shadow", Some(101), None), "percent"),
        (request("shadow", None, bounds(|it| it.steps = vec![20])), "bounds.steps"),
        (request("canary", None, bounds(|it| it.steps = vec![50, 20])), "bounds.steps"),
        (request("canary", None, bounds(|it| it.fault_permille = Some(1001))), "bounds.fault_permille"),
        (request("canary", None, bounds(|it| it.window_seconds = Some(0))), "bounds.window_seconds"),
        (request("canary", None, bounds(|it| it.least_answers = Some(0))), "bounds.least_answers"),
        (request("canary", None, bounds(|it| it.p99_us = Some(0))), "bounds.p99_us"),
        (
            v1::BindPluginRequest { promote_after_seconds: Some(0), ..request("canary", None, None) },
            "promote_after_seconds",
        ),
        (v1::BindPluginRequest { plugin: String::new(), ..request("canary", None, None) }, "plugin"),
    ] {
        let refused = refused(request.clone()).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}: {refused}");
        assert!(refused.message().contains(field), "{request:?}: {refused}");
    }
    let nobody = v1::BindPluginRequest { tenant_id: "nobody".to_owned(), ..request("canary", None, None) };
    assert_eq!(refused(nobody).await.code(), Code::NotFound);
    for refused in [scene.promote().await.expect_err("none"), scene.discard(0).await.expect_err("none")] {
        assert_eq!(reason(&refused), "CANDIDATE_NOT_FOUND", "{refused}");
    }
    let told: Vec<_> = scene.history(0).await.into_iter().map(|entry| entry.what).collect();
    assert_eq!(told, ["bound"]);
}
