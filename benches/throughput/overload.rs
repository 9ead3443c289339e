//! More load than the cluster can carry, of one tenant, beside another with a few calls.
//!
//! The measured processes share one core, and the load generator has the other: the peak is measured in the same way, in a closed loop.
//! Then the busy tenant's operations start on a fixed schedule at a multiple of it, whatever is answered.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use witan::cli::bench::load::{Load, Mode};
use witan::cli::bench::measured::{Measured, Progress};
use witan::cli::bench::pace::{Rate, Until};
use witan::cli::output::{Table, grouped, micros};

use crate::Options;
use crate::cluster::Cluster;
use crate::report::{Section, median};
use crate::scenario::load;

/// Calls a second of the quiet tenant.
const QUIET: f64 = 50.0;
/// Most operations of the busy tenant in flight: more than a coordinator admits.
const IN_FLIGHT: u32 = 30_000;
/// Multiples of the peak, and the share of it that has to be carried out.
const OFFERED: [(f64, f64); 2] = [(2.0, 0.9), (5.0, 0.7)];
/// What the other tenant's load may add to the quiet tenant's 99th percentile, unless twice that is more.
const SLOWER: f64 = 20_000.0;
/// How soon a refusal must arrive, the median, in microseconds.
const REFUSED_WITHIN: f64 = 10_000.0;
/// Growth of the coordinator's memory over that at the peak.
const MEMORY: f64 = 1.5;
/// Until a coordinator no longer counts a tenant among those that are there.
const GONE: Duration = Duration::from_secs(3);
/// The cores of the measured processes, and of the generator.
pub(crate) const CORES: [&str; 2] = ["0", "1"];

/// What one multiple of the peak came to, one number a round.
#[derive(Default)]
struct Samples {
    offered: Vec<f64>,
    goodput: Vec<f64>,
    quiet_p99: Vec<f64>,
    refused: Vec<f64>,
    memory: Vec<f64>,
    quiet_failed: u64,
    /// Failures of the busy tenant other than OVERLOADED.
    other_failures: u64,
}

pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    let cluster = Cluster::start(options, "os")?;
    for process in cluster.measured() {
        pin(process, CORES[0])?;
    }
    pin(std::process::id(), CORES[1])?;
    cluster.tenant("busy", "register", "quorum")?;
    cluster.tenant("quiet", "register", "quorum")?;
    let (mut peaks, mut alone) = (Vec::new(), Vec::new());
    let mut samples: [Samples; OFFERED.len()] = Default::default();
    for round in 0..options.rounds {
        let seed = u64::from(round) + 1;
        let quiet = Load { rate: Rate::Open(QUIET), seed, ..of(options, &cluster, "quiet", Mode::Unary) };
        let busy = Load { seed, ..of(options, &cluster, "busy", Mode::Session) };
        alone.push(p99(&measure(&quiet)?));
        // Nobody has to give way to a tenant that has gone.
        std::thread::sleep(GONE);
        let peak = measure(&busy)?;
        anyhow::ensure!(peak.failed() == 0, "operations failed at the peak: {:?}", peak.errors);
        peaks.push(peak.throughput());
        let resident = cluster.coordinator.resident_kib()? as f64;
        for ((times, _), samples) in OFFERED.iter().zip(&mut samples) {
            let rate = times * peak.throughput();
            let busy = Load { rate: Rate::Open(rate), concurrency: IN_FLIGHT, ..busy.clone() };
            let (busy, quiet) = both(&busy, &quiet)?;
            let ended = busy.writes.len() + busy.failed();
            samples.offered.push(ended as f64 / busy.elapsed.as_secs_f64() / peak.throughput());
            samples.goodput.push((busy.throughput() + quiet.throughput()) / peak.throughput());
            samples.quiet_p99.push(p99(&quiet));
            samples.refused.push(busy.failures.value_at_quantile(0.5) as f64);
            samples.memory.push(cluster.coordinator.resident_kib()? as f64 / resident);
            samples.quiet_failed += quiet.failed();
            samples.other_failures += busy.failed() - busy.errors.get("OVERLOADED").copied().unwrap_or(0);
            for (reason, count) in busy.errors.iter().filter(|(reason, _)| *reason != "OVERLOADED").chain(&quiet.errors)
            {
                eprintln!("at {times} times the peak, {count} operations failed: {reason}");
            }
        }
    }
    Ok(report(&peaks, &alone, &samples))
}

fn report(peaks: &[f64], alone: &[f64], samples: &[Samples]) -> Section {
    let (peak, alone) = (median(peaks), median(alone));
    let slowest = (2.0 * alone).max(alone + SLOWER);
    let mut table = Table::new([
        "OFFERED",
        "REACHED",
        "GOODPUT",
        "BOUND",
        "QUIET P99",
        "QUIET FAILED",
        "REFUSED IN",
        "OTHER FAILURES",
        "MEMORY",
        "VERDICT",
    ]);
    let mut rows: Vec<Value> = Vec::new();
    let mut bounds_hold = true;
    for ((times, bound), of) in OFFERED.iter().zip(samples) {
        let (goodput, quiet_p99, refused, memory) =
            (median(&of.goodput), median(&of.quiet_p99), median(&of.refused), median(&of.memory));
        let met = goodput >= *bound
            && quiet_p99 <= slowest
            && refused <= REFUSED_WITHIN
            && memory <= MEMORY
            && of.quiet_failed + of.other_failures == 0;
        bounds_hold &= met;
        table.row([
            format!("{times:.0} times"),
            format!("{:.2}", median(&of.offered)),
            format!("{goodput:.2}"),
            format!("{bound:.1}"),
            micros(quiet_p99 as u64),
            grouped(of.quiet_failed),
            micros(refused as u64),
            grouped(of.other_failures),
            format!("{memory:.2}"),
            if met { "met" } else { "NOT MET" }.to_owned(),
        ]);
        rows.push(json!({
            "times": times, "offered": of.offered, "goodput": of.goodput, "bound": bound, "quiet_p99_us": of.quiet_p99,
            "quiet_failed": of.quiet_failed, "refused_p50_us": of.refused, "other_failures": of.other_failures,
            "memory": of.memory, "met": met,
        }));
    }
    let text = format!(
        "overload: medians over the rounds; peak {} operations a second, the quiet tenant's p99 alone {}; its bound {}, that of a \
         refusal {}, that of memory {MEMORY} times\n{}",
        grouped(peak.round() as u64),
        micros(alone as u64),
        micros(slowest as u64),
        micros(REFUSED_WITHIN as u64),
        table.aligned()
    );
    Section { text, json: json!({ "peaks": peaks, "quiet_alone_p99_us": alone, "rows": rows }), bounds_hold }
}

fn of(options: &Options, cluster: &Cluster, tenant: &str, mode: Mode) -> Load {
    let load = load(options, cluster.coordinator.endpoint(), tenant, mode);
    Load { until: Until::Elapsed(options.duration), timeout: Duration::from_secs(2), ..load }
}

fn measure(load: &Load) -> anyhow::Result<Measured> {
    load.measure(&Arc::new(Progress::default()))
}

/// Two loads at the same time.
fn both(one: &Load, other: &Load) -> anyhow::Result<(Measured, Measured)> {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| measure(one));
        let other = measure(other)?;
        let one = running.join().map_err(|_| anyhow::anyhow!("a load panicked"))??;
        Ok((one, other))
    })
}

fn p99(measured: &Measured) -> f64 {
    let latencies = if measured.writes.is_empty() { &measured.reads } else { &measured.writes };
    p99_of(latencies)
}

/// The 99th percentile, microseconds.
pub(crate) fn p99_of(latencies: &Histogram<u64>) -> f64 {
    latencies.value_at_quantile(0.99) as f64
}

/// Confines a process, with all of its threads, to a core.
pub(crate) fn pin(process: u32, core: &str) -> anyhow::Result<()> {
    let pinned =
        Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", core, &process.to_string()]).output();
    let pinned = pinned.context("taskset, of the package util-linux, is needed to give each side a core of its own")?;
    anyhow::ensure!(pinned.status.success(), "taskset failed: {}", String::from_utf8_lossy(&pinned.stderr).trim());
    Ok(())
}
