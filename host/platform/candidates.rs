//! Candidates, as calls: what is tried beside the version in force, its report, and the history of a slot.

use tonic::{Code, Status};
use witan_kernel::candidate::{Bounds, Latencies, Mode, Seen, Trial};
use witan_kernel::hook::FaultKind;
use witan_kernel::name::{Invalid, NodeId, shown};
use witan_plugin::binding::CandidateRecord;
use witan_plugin::history::{Author, Entry};
use witan_plugin::metrics::Counts;
use witan_plugin::registry::{CandidateView, ReportView};
use witan_wire::v1;

use crate::access::caller::Caller;
use crate::access::scope::Scope;
use crate::grpc::status::{invalid, refused};

/// How a binding is to be made.
pub(super) enum How {
    InForce,
    Tried { mode: Mode, percent: Option<u8>, bounds: Bounds, promote_after_s: Option<u32> },
}

/// How a request wants its plugin to be bound.
pub(super) fn how(request: &v1::BindPluginRequest) -> Result<How, Status> {
    let mode = match request.mode.as_str() {
        "" | "active" => None,
        text => Some(Mode::parse(text).ok_or_else(|| {
            let problem = format!("{} is not known", shown(text));
            invalid(&Invalid::new("mode", problem, "use \"active\", \"shadow\" or \"canary\""))
        })?),
    };
    let Some(mode) = mode else {
        let given = [
            ("percent", request.percent.is_some()),
            ("bounds", request.bounds.is_some()),
            ("promote_after_seconds", request.promote_after_seconds.is_some()),
        ];
        return match given.iter().find(|(_, is_given)| *is_given) {
            Some((field, _)) => {
                let remedy = "leave it out, or use the mode \"shadow\" or \"canary\"";
                Err(invalid(&Invalid::new(field, "is only for candidates", remedy)))
            }
            None => Ok(How::InForce),
        };
    };
    if request.plugin.is_empty() {
        let remedy = "name the plugin that is to be tried; to end a trial, call DiscardCandidate";
        return Err(invalid(&Invalid::new("plugin", "is empty", remedy)));
    }
    let bounds = bounds(request.bounds.as_ref())?;
    let percent = request.percent.map(|percent| small("percent", percent)).transpose()?;
    Ok(How::Tried { mode, percent, bounds, promote_after_s: request.promote_after_seconds })
}

fn small(field: &'static str, number: u32) -> Result<u8, Status> {
    let remedy = "use a percentage of at most 100";
    u8::try_from(number).map_err(|_| invalid(&Invalid::new(field, format!("{number} is out of range"), remedy)))
}

/// The bounds that are asked for; what is absent has its default.
fn bounds(asked: Option<&v1::CandidateBounds>) -> Result<Bounds, Status> {
    let (asked, default) = (asked.cloned().unwrap_or_default(), Bounds::default());
    Ok(Bounds {
        fault_permille: asked.fault_permille.unwrap_or(default.fault_permille),
        refused_permille: asked.refused_permille.unwrap_or(default.refused_permille),
        p99_us: asked.p99_us.or(default.p99_us),
        differing_permille: asked.differing_permille.unwrap_or(default.differing_permille),
        window_s: asked.window_seconds.unwrap_or(default.window_s),
        least_answers: asked.least_answers.unwrap_or(default.least_answers),
        steps: asked.steps.into_iter().map(|step| small("bounds.steps", step)).collect::<Result<_, _>>()?,
    })
}

/// Who makes a call, for the history of what it changes.
pub(super) fn author(caller: &Caller, reason: &str) -> Author {
    Author { who: caller.credential().id().to_owned(), reason: reason.to_owned() }
}

/// Whether a caller may see keys and values of the tenant.
pub(super) fn may_read(caller: &Caller) -> bool {
    caller.credential().scopes().has(Scope::Read)
}

pub(super) fn candidate(CandidateRecord { version, trial }: &CandidateRecord) -> v1::Candidate {
    let (name, number) = version.name_and_version();
    let Trial { mode, percent, bounds, promote_after_s, began_ms, step_ms } = trial;
    v1::Candidate {
        digest: version.digest.to_string(),
        name: name.to_owned(),
        version: number.to_owned(),
        configuration: version.configuration.clone(),
        mode: mode.as_str().to_owned(),
        percent: u32::from(*percent),
        bounds: Some(v1::CandidateBounds {
            fault_permille: Some(bounds.fault_permille),
            refused_permille: Some(bounds.refused_permille),
            p99_us: bounds.p99_us,
            differing_permille: Some(bounds.differing_permille),
            window_seconds: Some(bounds.window_s),
            least_answers: Some(bounds.least_answers),
            steps: bounds.steps.iter().map(|step| u32::from(*step)).collect(),
        }),
        began_at_ms: moment(*began_ms),
        step_at_ms: moment(*step_ms),
        promote_after_seconds: *promote_after_s,
    }
}

fn moment(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

pub(super) fn entry(entry: Entry) -> v1::BindingHistoryEntry {
    v1::BindingHistoryEntry {
        number: entry.number,
        at_ms: moment(entry.at_ms),
        who: entry.who,
        what: entry.what,
        digest: entry.digest,
        name: entry.name,
        version: entry.version,
        mode: entry.mode,
        reason: entry.reason,
        outcome: entry.outcome,
    }
}

/// A report, with examples if the caller may see keys and values.
pub(super) fn report(view: ReportView, binding: v1::Binding, with_examples: bool) -> v1::GetBindingReportResponse {
    let ReportView { binding: bound, latencies, candidate } = view;
    v1::GetBindingReportResponse {
        binding: Some(binding),
        active: Some(counts(&bound.counts, &latencies, bound.gauges)),
        candidate: candidate.map(|candidate| candidate_report(candidate, with_examples)),
    }
}

fn candidate_report(view: CandidateView, with_examples: bool) -> v1::CandidateReport {
    let CandidateView { window, total, missing, counts: counted, gauges, examples, .. } = view;
    let Seen { faulted, refused, compared, differing, undetermined, .. } = window;
    let example = |example: witan_plugin::candidate::Example| v1::DifferingAnswer {
        key: example.key.bytes().clone(),
        in_force: example.in_force,
        candidate: example.candidate,
    };
    v1::CandidateReport {
        counts: Some(counts(&counted, &total.latencies, gauges)),
        asked: window.asked(),
        faulted,
        refused,
        compared,
        differing,
        undetermined,
        p50_us: window.latencies.at_permille(500),
        p99_us: window.latencies.at_permille(990),
        missing: missing.into_iter().map(not_asking).collect(),
        examples: if with_examples { examples.into_iter().map(example).collect() } else { Vec::new() },
    }
}

fn not_asking((coordinator, reason): (NodeId, String)) -> v1::NotAsking {
    v1::NotAsking { coordinator: coordinator.to_string(), reason }
}

fn counts(counts: &Counts, latencies: &Latencies, gauges: Vec<(String, f64)>) -> v1::PluginCounts {
    let unanswered = FaultKind::ALL.into_iter().zip(counts.unanswered);
    let counted = |(kind, count): (FaultKind, u64)| v1::FaultCount { kind: kind.as_str().to_owned(), count };
    v1::PluginCounts {
        calls: counts.calls,
        faults: unanswered.filter(|(_, count)| *count > 0).map(counted).collect(),
        declined: counts.declined,
        refused: counts.refused,
        remembered: counts.remembered,
        p50_us: latencies.at_permille(500),
        p99_us: latencies.at_permille(990),
        instances_started: counts.instances,
        lines_dropped: counts.lines_dropped,
        gauges: gauges.into_iter().map(|(name, value)| v1::PluginGauge { name, value }).collect(),
    }
}

/// The status of a call about a candidate that there is not.
pub(super) fn no_candidate(message: String) -> Status {
    refused(Code::NotFound, "CANDIDATE_NOT_FOUND", message)
}
