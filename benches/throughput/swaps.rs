//! The effect of swapping a policy on running requests, and on the coordinator's memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde_json::json;
use witan::cli::bench::load::{Load, Mode};
use witan::cli::bench::measured::{Measured, Progress};
use witan::cli::bench::pace::{Rate, Until};
use witan::cli::output::Table;
use witan::cli::{client, plugin};
use witan_wire::v1::BindPluginRequest;

use crate::Options;
use crate::cluster::Cluster;
use crate::report::Section;
use crate::scenario::load;

/// Bound on the growth of memory from the first tenth of the swaps to the last.
const MEMORY_BOUND: f64 = 1.05;
/// The load is measured in pieces of this length, until the swaps have ended.
const PIECE: Duration = Duration::from_secs(2);
/// Operations per second: well below what saturates two cores, so that the latencies are those of the swaps.
const RATE: f64 = 2000.0;
/// Two configurations of the same policy, bound in turn.
const CONFIGURATIONS: [&str; 2] = ["", "slow-us=40000"];

/// Swaps a policy under a load.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    if !options.policy.exists() {
        let text = format!("swaps: not measured: {} does not exist\n", options.policy.display());
        return Ok(Section { json: json!({ "skipped": text.trim_end() }), text, bounds_hold: false });
    }
    let cluster = Cluster::start(options, "os")?;
    cluster.tenant("swapped", "register", "clock")?;
    let global = cluster.global();
    let digest = cluster.block_on(plugin::upload(&global, &options.policy)).context("push the policy")?.digest;

    bind(&cluster, &digest, 0)?;
    let calm = Load { until: Until::Elapsed(PIECE * 2), ..paced(options, &cluster.coordinator.endpoint()) };
    let calm = calm.measure(&Arc::new(Progress::default()))?;

    let endpoint = cluster.coordinator.endpoint();
    let swapping = AtomicBool::new(true);
    let (early, late, elapsed, under_load) = std::thread::scope(|scope| {
        let loaded = scope.spawn(|| {
            let mut pieces = Vec::new();
            while swapping.load(Ordering::Acquire) {
                pieces.push(paced(options, &endpoint).measure(&Arc::new(Progress::default()))?);
            }
            anyhow::Ok(pieces)
        });
        let swapped = swap(options, &cluster, &digest);
        swapping.store(false, Ordering::Release);
        let pieces = loaded.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        let (early, late, elapsed) = swapped?;
        anyhow::Ok((early, late, elapsed, pieces))
    })?;
    report(options, &calm, &under_load, early, late, elapsed)
}

fn report(
    options: &Options,
    calm: &Measured,
    under_load: &[Measured],
    early: u64,
    late: u64,
    elapsed: Duration,
) -> anyhow::Result<Section> {
    let failed: u64 = under_load.iter().map(Measured::failed).sum();
    let operations: u64 = under_load.iter().map(|piece| piece.all).sum();
    let mut writes: Histogram<u64> = calm.writes.clone();
    writes.reset();
    for piece in under_load {
        writes.add(&piece.writes)?;
    }
    let growth = late as f64 / early.max(1) as f64;
    let met = failed == 0 && growth <= MEMORY_BOUND;
    let verdict = if met { "met" } else { "NOT MET" };
    let mut table = Table::new(["SWAPS UNDER LOAD", ""]);
    table.row(["swaps".to_owned(), format!("{} in {:.1} s", options.swaps, elapsed.as_secs_f64())]);
    table.row(["operations meanwhile".to_owned(), format!("{operations}, of which {failed} failed")]);
    table.row(["p99 of writes without swaps".to_owned(), format!("{} us", calm.writes.value_at_quantile(0.99))]);
    table.row(["p99 of writes during swaps".to_owned(), format!("{} us", writes.value_at_quantile(0.99))]);
    table.row(["resident after a tenth of them".to_owned(), format!("{:.1} MiB", early as f64 / 1024.0)]);
    table.row(["resident after the last".to_owned(), format!("{:.1} MiB ({growth:.3} times)", late as f64 / 1024.0)]);
    let text = format!(
        "swaps: open loop, {RATE} writes a second; bounds: no failed operation, memory at most {MEMORY_BOUND} times: {verdict}\n{}",
        table.aligned()
    );
    let json = json!({
        "swaps": options.swaps, "seconds": elapsed.as_secs_f64(), "operations": operations, "failed": failed,
        "p99_us_without": calm.writes.value_at_quantile(0.99), "p99_us_during": writes.value_at_quantile(0.99),
        "resident_kib_early": early, "resident_kib_late": late, "growth": growth, "met": met,
    });
    Ok(Section { text, json, bounds_hold: met })
}

fn paced(options: &Options, endpoint: &str) -> Load {
    Load {
        rate: Rate::Open(RATE),
        until: Until::Elapsed(PIECE),
        warm_up: Duration::ZERO,
        ..load(options, endpoint.to_owned(), "swapped", Mode::Unary)
    }
}

/// Swaps the policy this many times. Returns the resident memory (KiB) after a tenth of the swaps and after the last.
fn swap(options: &Options, cluster: &Cluster, digest: &str) -> anyhow::Result<(u64, u64, Duration)> {
    let started = Instant::now();
    let mut early = 0;
    for swap in 1..=options.swaps {
        bind(cluster, digest, swap as usize)?;
        if swap == (options.swaps / 10).max(1) {
            early = cluster.coordinator.resident_kib()?;
        }
    }
    Ok((early, cluster.coordinator.resident_kib()?, started.elapsed()))
}

fn bind(cluster: &Cluster, digest: &str, swap: usize) -> anyhow::Result<()> {
    let global = cluster.global();
    cluster.block_on(async {
        let request = BindPluginRequest {
            tenant_id: "swapped".to_owned(),
            hook: "consistency-policy".to_owned(),
            plugin: digest.to_owned(),
            configuration: CONFIGURATIONS[swap % 2].into(),
            on_fault: "fail".to_owned(),
            ..BindPluginRequest::default()
        };
        client::plugins(&global).await?.bind_plugin(request).await?;
        Ok(())
    })
}
