//! Dry runs: a plugin is asked about what a tenant has, before anybody binds it.

use std::time::{Duration, Instant};

use tokio_stream::StreamExt;
use tonic::{Request, Response, Status};
use witan_kernel::hook::Hook;
use witan_kernel::name::{Invalid, TenantId, shown};
use witan_kernel::question::{Found, Question};
use witan_plugin::dry_run::{Case, DryRun, DryRunRequest, Findings};
use witan_wire::v1;

use super::library::info;
use super::{PluginApi, candidates, deadline, own_slot, status};
use crate::access::caller::Caller;
use crate::grpc::guard::caller;
use crate::grpc::kept::{listed, usage};
use crate::grpc::status::invalid;
use crate::grpc::tenants;

/// Questions that are asked if it is not said how many.
const SAMPLE: u32 = 100;
/// Most questions: what a person waits for, and as many as the slowest resolvers answer within a minute.
const MOST: u32 = 1000;
/// How long a dry run takes at most, however long its client would wait.
const LONGEST: Duration = Duration::from_secs(60);
/// How long it takes if its client does not say how long it waits.
const UNSAID: Duration = Duration::from_secs(30);

impl PluginApi {
    pub(super) async fn run_dry(
        &self,
        mut request: Request<v1::TryPluginRequest>,
    ) -> Result<Response<v1::TryPluginResponse>, Status> {
        let (caller, deadline, usage) = (caller(&mut request)?, deadline(&request), usage(&request));
        let request = request.into_inner();
        let (tenant, hook) = tried_slot(&caller, &request.tenant_id, &request.hook)?;
        let sample = sample(request.sample)?;
        if request.plugin.is_empty() {
            return Err(invalid(&Invalid::new("plugin", "is empty", "name the plugin that is to be tried")));
        }
        self.staged(Some(&tenant), &request.plugin, deadline, caller.on_behalf_of(&tenant)).await?;
        let turn = self.dry_runs.take(caller.on_behalf_of(&tenant));
        let _turn = turn.map_err(|refused| tenants::status(&refused))?;
        let until = until(deadline);
        let lookup = self.catalog.lookups().take(caller.on_behalf_of(&tenant));
        let lookup = lookup.map_err(|refused| tenants::status(&refused))?;
        self.catalog.tenant(&tenant).await.map_err(|refused| tenants::status(&refused))?;
        drop(lookup);
        let plugin = self.reference(Some(&tenant), &request.plugin, deadline).await?;
        let request = DryRunRequest { tenant: tenant.clone(), hook, plugin, configuration: request.configuration };
        let mut run =
            Run { dry: self.host.dry_run(request).await.map_err(status)?, left: sample, until, seen: Seen::default() };
        let recent = self.host.recent_questions(&tenant);
        let source = match (hook, recent.is_empty()) {
            (Hook::ConsistencyPolicy, false) => {
                run.ask_recent(recent).await;
                "recent"
            }
            _ => {
                run.ask_found(self, tenant, hook).await?;
                if hook == Hook::ConflictResolver { "conflicts" } else { "keys" }
            }
        };
        let answer = answer(&run, source, candidates::may_read(&caller));
        listed(&*self.answers, &usage, caller.credential().tenant(), answer)
    }
}

/// The slot that is tried, after a check that its caller may change it. There is nothing to ask about for all tenants.
fn tried_slot(caller: &Caller, tenant_id: &str, hook: &str) -> Result<(TenantId, Hook), Status> {
    let (tenant, hook) = own_slot(caller, tenant_id, hook)?;
    let none = || invalid(&Invalid::new("tenant_id", "is empty", "name the tenant about whose keys it is to be asked"));
    Ok((tenant.ok_or_else(none)?, hook))
}

fn sample(wanted: Option<u32>) -> Result<u32, Status> {
    let sample = wanted.unwrap_or(SAMPLE);
    if !(1..=MOST).contains(&sample) {
        let problem = format!("{} is out of range", shown(&sample.to_string()));
        return Err(invalid(&Invalid::new("sample", problem, format!("use 1 to {MOST}"))));
    }
    Ok(sample)
}

/// Until when questions are asked, so that a client with this deadline gets the answer before it.
fn until(deadline: Option<Instant>) -> Instant {
    let now = Instant::now();
    let within = deadline.map_or(UNSAID, |deadline| deadline.saturating_duration_since(now) * 3 / 4);
    now + within.min(LONGEST)
}

/// A dry run that is under way.
struct Run {
    dry: DryRun,
    /// Questions that may still be asked.
    left: u32,
    until: Instant,
    seen: Seen,
}

/// What became of the search for questions.
#[derive(Default)]
struct Seen {
    keys: u64,
    unread: u64,
    unread_reason: String,
    complete: bool,
}

impl Run {
    async fn ask_recent(&mut self, recent: Vec<Question>) {
        for question in recent {
            if !self.ask(question).await {
                return;
            }
        }
        self.seen.complete = true;
    }

    async fn ask_found(&mut self, api: &PluginApi, tenant: TenantId, hook: Hook) -> Result<(), Status> {
        let within = self.until.saturating_duration_since(Instant::now());
        let mut found = api.questions.clone().ask(tenant, hook, within);
        while let Some(found) = found.next().await {
            match found? {
                Found::Keys(keys) => self.seen.keys += keys as u64,
                Found::Unread(reason) => {
                    self.seen.unread += 1;
                    if self.seen.unread_reason.is_empty() {
                        self.seen.unread_reason = reason;
                    }
                }
                Found::Question(question) => {
                    if !self.ask(*question).await {
                        return Ok(());
                    }
                }
                Found::Enough => return Ok(()),
            }
        }
        self.seen.complete = true;
        Ok(())
    }

    /// Asks a question. False if none is to be asked after it.
    async fn ask(&mut self, question: Question) -> bool {
        if !self.dry.ask(question, self.until).await {
            return false;
        }
        self.left -= 1;
        self.seen.complete = self.left == 0;
        self.left > 0
    }
}

fn answer(Run { dry, seen, .. }: &Run, source: &str, with_cases: bool) -> v1::TryPluginResponse {
    let Findings { asked, equal, differing, faulted, refused, moving, latencies, cases, .. } = dry.findings();
    v1::TryPluginResponse {
        plugin: Some(info(dry.artifact())),
        in_force: dry.in_force().map_or_else(String::new, |by| by.to_string()),
        source: source.to_owned(),
        asked: *asked,
        equal: *equal,
        differing: *differing,
        faulted: *faulted,
        refused: *refused,
        moving: *moving,
        p50_us: latencies.at_permille(500),
        p99_us: latencies.at_permille(990),
        keys: seen.keys,
        unread: seen.unread,
        unread_reason: seen.unread_reason.clone(),
        complete: seen.complete,
        cases: if with_cases { cases.iter().map(case).collect() } else { Vec::new() },
    }
}

fn case(case: &Case) -> v1::TriedCase {
    v1::TriedCase {
        key: case.key.bytes().clone(),
        question: case.question.clone(),
        in_force: case.in_force.clone(),
        tried: case.tried.clone(),
    }
}
