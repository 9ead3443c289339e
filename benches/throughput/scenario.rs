//! The scenarios measured against the baseline, and their bounds.

use std::sync::Arc;

use serde_json::{Value, json};
use witan::cli::bench::load::{Load, Mode};
use witan::cli::bench::measured::Progress;
use witan::cli::bench::pace::{Rate, Until};
use witan::cli::bench::work::Distribution;
use witan::cli::output::{Table, grouped, micros};

use crate::Options;
use crate::cluster::Cluster;
use crate::report::{Section, median};

/// One way of doing the same work.
pub(crate) struct Scenario {
    name: &'static str,
    target: Target,
    mode: Mode,
    /// Required ratio to the baseline's throughput.
    bound: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Baseline,
    Clock,
    Quorum,
    Siblings,
}

const fn scenario(name: &'static str, target: Target, mode: Mode, bound: Option<f64>) -> Scenario {
    Scenario { name, target, mode, bound }
}

/// Measured with `durability: os`. The bounds are those of the project's plan.
pub(crate) const OS: &[Scenario] = &[
    scenario("baseline unary", Target::Baseline, Mode::Unary, None),
    scenario("clock unary", Target::Clock, Mode::Unary, Some(2.0)),
    scenario("clock session", Target::Clock, Mode::Session, Some(4.0)),
    scenario("quorum unary", Target::Quorum, Mode::Unary, Some(1.6)),
    scenario("quorum session", Target::Quorum, Mode::Session, Some(3.0)),
    scenario("siblings unary", Target::Siblings, Mode::Unary, None),
    scenario("siblings session", Target::Siblings, Mode::Session, None),
];

/// Measured with `durability: sync`, without bounds, since the disk decides.
pub(crate) const SYNC: &[Scenario] = &[
    scenario("baseline unary", Target::Baseline, Mode::Unary, None),
    scenario("clock unary", Target::Clock, Mode::Unary, None),
    scenario("clock session", Target::Clock, Mode::Session, None),
    scenario("quorum unary", Target::Quorum, Mode::Unary, None),
    scenario("quorum session", Target::Quorum, Mode::Session, None),
    scenario("siblings session", Target::Siblings, Mode::Session, None),
];

/// The load of a benchmark, at `endpoint` for `tenant`.
pub(crate) fn load(options: &Options, endpoint: String, tenant: &str, mode: Mode) -> Load {
    Load {
        endpoint,
        mode,
        rate: Rate::Closed,
        until: Until::Elapsed(options.duration),
        warm_up: options.warm_up,
        concurrency: options.concurrency,
        connections: options.connections,
        tenant: tenant.to_owned(),
        consistency: "quorum".to_owned(),
        keys: options.keys,
        distribution: Distribution::Uniform,
        read_share: options.read_share,
        value_size: options.value_size,
        contexts: tenant == "siblings",
        ..Load::default()
    }
}

#[derive(Default)]
struct Samples {
    throughput: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    failed: u64,
}

/// Measures scenarios on a cluster of that durability, the first of them being the baseline.
pub(crate) fn section(options: &Options, durability: &str, scenarios: &[Scenario]) -> anyhow::Result<Section> {
    let cluster = Cluster::start(options, durability)?;
    cluster.tenant("clock", "register", "clock")?;
    cluster.tenant("quorum", "register", "quorum")?;
    cluster.tenant("siblings", "siblings", "")?;
    let mut samples: Vec<Samples> = scenarios.iter().map(|_| Samples::default()).collect();
    for round in 0..options.rounds as usize {
        for step in 0..scenarios.len() {
            let at = (round + step) % scenarios.len();
            measure(options, &cluster, &scenarios[at], round, &mut samples[at])?;
            let latest = samples[at].throughput.last().copied().unwrap_or(0.0);
            let name = scenarios[at].name;
            eprintln!("{durability} round {}/{} {name:<17} {:>8}/s", round + 1, options.rounds, whole(latest));
        }
    }
    Ok(summary(durability, scenarios, &samples))
}

fn measure(
    options: &Options,
    cluster: &Cluster,
    scenario: &Scenario,
    round: usize,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let (endpoint, tenant) = match scenario.target {
        // A separate tenant, so that the baseline does not share records.
        Target::Baseline => (cluster.baseline.endpoint(), "baseline"),
        Target::Clock => (cluster.coordinator.endpoint(), "clock"),
        Target::Quorum => (cluster.coordinator.endpoint(), "quorum"),
        Target::Siblings => (cluster.coordinator.endpoint(), "siblings"),
    };
    let load = Load { seed: round as u64 + 1, ..load(options, endpoint, tenant, scenario.mode) };
    let measured = load.measure(&Arc::new(Progress::default()))?;
    samples.throughput.push(measured.throughput());
    let latencies = if measured.writes.is_empty() { &measured.reads } else { &measured.writes };
    samples.p50.push(latencies.value_at_percentile(50.0) as f64);
    samples.p99.push(latencies.value_at_percentile(99.0) as f64);
    samples.failed += measured.failed();
    for (reason, count) in &measured.errors {
        eprintln!("{}: {count} operations failed: {reason}", scenario.name);
    }
    Ok(())
}

fn summary(durability: &str, scenarios: &[Scenario], samples: &[Samples]) -> Section {
    let base = samples.first().map_or(0.0, |samples| median(&samples.throughput));
    let mut table =
        Table::new(["SCENARIO", "OPS/S", "LOWEST", "HIGHEST", "RATIO", "BOUND", "VERDICT", "P50", "P99", "FAILED"]);
    let mut rows: Vec<Value> = Vec::new();
    let mut bounds_hold = true;
    for (scenario, samples) in scenarios.iter().zip(samples) {
        let throughput = median(&samples.throughput);
        let ratio = throughput / base.max(1e-9);
        let holds = scenario.bound.map(|bound| ratio >= bound && samples.failed == 0);
        bounds_hold &= holds != Some(false);
        let extreme = |pick: fn(f64, f64) -> f64| samples.throughput.iter().copied().reduce(pick).unwrap_or(0.0);
        table.row([
            scenario.name.to_owned(),
            whole(throughput),
            whole(extreme(f64::min)),
            whole(extreme(f64::max)),
            format!("{ratio:.2}"),
            scenario.bound.map_or("".to_owned(), |bound| format!("{bound:.1}")),
            holds.map_or("", |holds| if holds { "met" } else { "NOT MET" }).to_owned(),
            micros(median(&samples.p50) as u64),
            micros(median(&samples.p99) as u64),
            grouped(samples.failed),
        ]);
        rows.push(json!({
            "name": scenario.name,
            "throughput": throughput,
            "throughputs": samples.throughput,
            "ratio": ratio,
            "bound": scenario.bound,
            "met": holds,
            "p50_us": median(&samples.p50),
            "p99_us": median(&samples.p99),
            "failed": samples.failed,
        }));
    }
    let text = format!("durability {durability}: medians over the rounds; ratio to the baseline\n{}", table.aligned());
    Section { text, json: Value::Array(rows), bounds_hold }
}

fn whole(number: f64) -> String {
    grouped(number.round() as u64)
}
