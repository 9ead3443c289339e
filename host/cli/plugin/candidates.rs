//! `witan plugin promote`, `discard`, `history` and `report`: what is tried beside a binding, and what has become of it.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use witan_kernel::hook::Hook;
use witan_wire::v1::{
    BindPluginResponse, BindingHistoryEntry, Candidate, CandidateBounds, CandidateReport, DiscardCandidateRequest,
    FaultCount, GetBindingHistoryRequest, GetBindingReportRequest, GetBindingReportResponse, NotAsking, PluginCounts,
    PromoteBindingRequest,
};

use super::{Bind, bound, plugin_of, short};
use crate::cli::Global;
use crate::cli::choice::{self, spelling};
use crate::cli::client::{self, Problem, within, within_long};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output, Table, grouped};

pub(super) const PROMOTE_EXAMPLES: &str = "\
The candidate answers for all keys, and the plugin that was in force is one rollback away.

Examples:
  witan plugin promote conflict-resolver --tenant carts
  witan plugin promote consistency-policy --reason 'a day without findings'";

pub(super) const DISCARD_EXAMPLES: &str = "\
The plugin in force answers for all keys again, from the next request on.

Examples:
  witan plugin discard conflict-resolver --tenant carts
  witan plugin discard consistency-policy --reason 'slower than expected'";

pub(super) const HISTORY_EXAMPLES: &str = "\
The newest first, of the last hundred changes. It outlives the binding.

Examples:
  witan plugin history conflict-resolver --tenant carts
  witan plugin history consistency-policy --output json";

pub(super) const REPORT_EXAMPLES: &str = "\
Counts of the plugin in force are those of the coordinator that answers; a candidate is judged by what all coordinators have seen within \
its window. Differing answers may hold values, and are shown to those who may read the tenant's keys. With --watch, the report is printed \
again every second until Ctrl-C or until the trial has ended.

Examples:
  witan plugin report conflict-resolver --tenant carts
  witan plugin report consistency-policy --watch";

/// A slot.
#[derive(Debug, clap::Args)]
pub struct Of {
    /// The hook
    #[arg(value_parser = choice::hook())]
    pub hook: Hook,
    /// The tenant [default: the binding for all tenants]
    #[arg(short, long)]
    pub tenant: Option<String>,
}

/// A slot with a candidate whose trial is to end.
#[derive(Debug, clap::Args)]
pub struct Tried {
    #[command(flatten)]
    pub of: Of,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// A slot of which a report is wanted.
#[derive(Debug, clap::Args)]
pub struct Reported {
    #[command(flatten)]
    pub of: Of,
    /// Print it every second until the trial has ended
    #[arg(long)]
    pub watch: bool,
}

/// How often a report is printed that is watched.
const EVERY: Duration = Duration::from_secs(1);

/// The mode that a binding asks for.
pub(super) fn mode(bind: &Bind) -> String {
    let mode = if bind.shadow.is_some() {
        "shadow"
    } else if bind.canary.is_some() {
        "canary"
    } else {
        ""
    };
    mode.to_owned()
}

/// The bounds that a binding asks for.
pub(super) fn bounds(bind: &Bind) -> Option<CandidateBounds> {
    let bounds = CandidateBounds {
        fault_permille: bind.trial.max_faults,
        refused_permille: bind.trial.max_refused,
        p99_us: bind.trial.max_p99,
        differing_permille: bind.trial.max_differing,
        window_seconds: bind.trial.window,
        least_answers: bind.trial.least_answers,
        steps: bind.trial.steps.clone(),
    };
    (bounds != CandidateBounds::default()).then_some(bounds)
}

pub(super) async fn promote(global: &Global, Tried { of, reason }: Tried) -> anyhow::Result<ExitCode> {
    let (tenant_id, hook) = (of.tenant.unwrap_or_default(), spelling(Some(of.hook)));
    let request = PromoteBindingRequest { tenant_id, hook, reason: reason.unwrap_or_default() };
    let answer = client::plugins(global).await?.promote_binding(within_long(global, request)).await;
    let answer = answer.map_err(Problem::of(Deed::Bind))?.into_inner();
    bound(global, "promoted", &answer, None).await
}

pub(super) async fn discard(global: &Global, Tried { of, reason }: Tried) -> anyhow::Result<ExitCode> {
    let (tenant_id, hook) = (of.tenant.unwrap_or_default(), spelling(Some(of.hook)));
    let request = DiscardCandidateRequest { tenant_id, hook, reason: reason.unwrap_or_default() };
    let answer = client::plugins(global).await?.discard_candidate(within(global, request)).await;
    let answer = answer.map_err(Problem::of(Deed::Bind))?.into_inner();
    bound(global, "discarded", &answer, None).await
}

/// What is tried, after the binding that it is tried beside; "": nothing.
pub(super) fn beside(response: &BindPluginResponse) -> String {
    let Some(candidate) = response.binding.as_ref().and_then(|binding| binding.candidate.as_deref()) else {
        return String::new();
    };
    format!("; {}", described(candidate))
}

fn described(candidate: &Candidate) -> String {
    let Candidate { name, version, digest, percent, mode, .. } = candidate;
    let of = if mode == "canary" { "of the keys" } else { "of the questions" };
    format!("{name}@{version} ({}) is tried as a {mode} on {percent} % {of}", short(digest))
}

pub(super) async fn history(global: &Global, of: Of) -> anyhow::Result<ExitCode> {
    let (tenant_id, hook) = (of.tenant.unwrap_or_default(), spelling(Some(of.hook)));
    let request = within(global, GetBindingHistoryRequest { tenant_id, hook });
    let answer = client::plugins(global).await?.get_binding_history(request).await.map_err(Problem::query)?;
    let entries = answer.into_inner().entries;
    match global.output {
        Output::Json => {
            output::object(&json!({ "entries": entries.iter().map(entry_json).collect::<Vec<_>>() }))?;
        }
        Output::Text => {
            let mut table = Table::new(["AT", "WHAT", "PLUGIN", "MODE", "BY", "WHY", "SINCE THEN"]);
            for entry in &entries {
                table.row([
                    output::moment(entry.at_ms.saturating_mul(1000)),
                    entry.what.clone(),
                    format!("{}@{} ({})", entry.name, entry.version, short(&entry.digest)),
                    entry.mode.clone(),
                    entry.who.clone(),
                    entry.reason.clone(),
                    entry.outcome.clone(),
                ]);
            }
            table.print("nothing was ever bound")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn entry_json(entry: &BindingHistoryEntry) -> Value {
    json!({
        "number": entry.number,
        "at_ms": entry.at_ms,
        "who": entry.who,
        "what": entry.what,
        "digest": entry.digest,
        "name": entry.name,
        "version": entry.version,
        "mode": entry.mode,
        "reason": entry.reason,
        "outcome": entry.outcome,
    })
}

pub(super) async fn report(global: &Global, Reported { of, watch }: Reported) -> anyhow::Result<ExitCode> {
    let (tenant_id, hook) = (of.tenant.unwrap_or_default(), spelling(Some(of.hook)));
    loop {
        let request = GetBindingReportRequest { tenant_id: tenant_id.clone(), hook: hook.clone() };
        let answer = client::plugins(global).await?.get_binding_report(within(global, request)).await;
        let report = answer.map_err(Problem::query)?.into_inner();
        match global.output {
            Output::Json if watch => output::record(&report_json(&report))?,
            Output::Json => output::object(&report_json(&report))?,
            Output::Text => report_text(&report).iter().try_for_each(|line| output::line(line))?,
        }
        if !watch || report.candidate.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn report_text(report: &GetBindingReportResponse) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(binding), Some(counts)) = (&report.binding, &report.active) {
        lines.push(format!("in force: {}, {}", plugin_of(binding), counts_text(counts)));
    }
    let candidate = report.binding.as_ref().and_then(|binding| binding.candidate.as_deref());
    if let (Some(candidate), Some(seen)) = (candidate, &report.candidate) {
        lines.extend([described(candidate), format!("  {}", seen_text(seen))]);
        for NotAsking { coordinator, reason } in &seen.missing {
            lines.push(format!("  coordinator {coordinator} does not ask it: {reason}"));
        }
        for example in &seen.examples {
            let key = output::value_fields(&example.key);
            lines.push(format!("  {}: {} in force, {} tried", key["value"], example.in_force, example.candidate));
        }
    }
    lines
}

fn counts_text(counts: &PluginCounts) -> String {
    let PluginCounts { calls, remembered, p50_us, p99_us, .. } = counts;
    let faults: u64 = counts.faults.iter().map(|fault| fault.count).sum();
    let kinds: Vec<_> = counts.faults.iter().map(|FaultCount { kind, count }| format!("{kind} {count}")).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    format!(
        "{} calls, p50 {p50_us} us, p99 {p99_us} us, {} remembered, {faults} without an answer{kinds}",
        grouped(*calls),
        grouped(*remembered),
    )
}

fn seen_text(seen: &CandidateReport) -> String {
    let CandidateReport { asked, faulted, refused, compared, differing, undetermined, p50_us, p99_us, .. } = seen;
    let compared = if *compared > 0 { format!(", {differing} of {compared} answers differ") } else { String::new() };
    let undetermined = if *undetermined > 0 { format!(", {undetermined} not determined") } else { String::new() };
    format!(
        "within its window, all coordinators: {} asked, {faulted} faults, {refused} refused{compared}{undetermined}, p50 {p50_us} us, \
         p99 {p99_us} us",
        grouped(*asked),
    )
}

/// An object of names and values.
fn named<V: Into<Value>>(pairs: impl Iterator<Item = (String, V)>) -> Value {
    Value::Object(pairs.map(|(name, value)| (name, value.into())).collect())
}

/// A candidate, for programs.
pub(super) fn json(candidate: &Candidate) -> Value {
    let configuration = output::value_fields(&candidate.configuration);
    let bounds = candidate.bounds.clone().unwrap_or_default();
    json!({
        "digest": candidate.digest,
        "name": candidate.name,
        "version": candidate.version,
        "configuration": configuration["value"],
        "configuration_encoding": configuration["value_encoding"],
        "mode": candidate.mode,
        "percent": candidate.percent,
        "bounds": {
            "fault_permille": bounds.fault_permille,
            "refused_permille": bounds.refused_permille,
            "p99_us": bounds.p99_us,
            "differing_permille": bounds.differing_permille,
            "window_seconds": bounds.window_seconds,
            "least_answers": bounds.least_answers,
            "steps": bounds.steps,
        },
        "began_at_ms": candidate.began_at_ms,
        "step_at_ms": candidate.step_at_ms,
        "promote_after_seconds": candidate.promote_after_seconds,
    })
}

fn report_json(report: &GetBindingReportResponse) -> Value {
    json!({
        "binding": report.binding.as_ref().map(super::binding_json),
        "active": report.active.as_ref().map(counts_json),
        "candidate": report.candidate.as_ref().map(|seen| json!({
            "counts": seen.counts.as_ref().map(counts_json),
            "asked": seen.asked,
            "faulted": seen.faulted,
            "refused": seen.refused,
            "compared": seen.compared,
            "differing": seen.differing,
            "undetermined": seen.undetermined,
            "p50_us": seen.p50_us,
            "p99_us": seen.p99_us,
            "missing": named(seen.missing.iter().map(|it| (it.coordinator.clone(), it.reason.clone()))),
            "examples": seen.examples.iter().map(|example| json!({
                "key": output::value_fields(&example.key)["value"],
                "in_force": example.in_force,
                "candidate": example.candidate,
            })).collect::<Vec<_>>(),
        })),
    })
}

fn counts_json(counts: &PluginCounts) -> Value {
    json!({
        "calls": counts.calls,
        "faults": named(counts.faults.iter().map(|fault| (fault.kind.clone(), fault.count))),
        "declined": counts.declined,
        "refused": counts.refused,
        "remembered": counts.remembered,
        "p50_us": counts.p50_us,
        "p99_us": counts.p99_us,
        "instances_started": counts.instances_started,
        "lines_dropped": counts.lines_dropped,
        "gauges": named(counts.gauges.iter().map(|gauge| (gauge.name.clone(), gauge.value))),
    })
}
