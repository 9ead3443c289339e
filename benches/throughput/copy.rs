//! What a copy of a placement change costs the clients of the same nodes: the 99th percentile of an open loop without and with a copy.
//!
//! The measured processes share one core, and the load generator has the other. The peak is measured first, in a closed loop; then the
//! load starts a quarter of it, on a fixed schedule. A second tenant gets a third replica meanwhile, which copies all of its values to the
//! third node, and loses it again before the next round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use witan::cli::bench::load::{Load, Mode};
use witan::cli::bench::measured::{Measured, Progress};
use witan::cli::bench::pace::{Rate, Until};
use witan::cli::client;
use witan::cli::output::{Table, grouped, micros};
use witan_wire::v1::{GetMigrationStatusRequest, UpdateReplicationFactorRequest};

use crate::Options;
use crate::cluster::Cluster;
use crate::overload::{CORES, p99_of, pin};
use crate::report::{Section, median};
use crate::scenario::load;

/// `placement.copy_rate`, and how many times the 99th percentile may be what it is without a copy.
const RATES: [(&str, &str, f64); 2] = [("default", "32MiB", 2.0), ("unlimited", "0", 5.0)];
/// The offered share of the peak.
const SHARE: f64 = 0.25;
/// Bytes of a value.
const VALUE: usize = 4096;
/// Most operations in flight.
const IN_FLIGHT: u32 = 1024;
/// The load during a copy is measured in pieces of this length, until the copy has ended.
const PIECE: Duration = Duration::from_secs(1);
/// How long the load has lasted when the first copy begins: what is slower than usual is measured against what was before, and the load
/// with which the keys were stored and the peak was found is not.
const LEAD: Duration = Duration::from_secs(45);
/// How long a copy may take, and be cleaned up.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(50);

/// One number a round.
#[derive(Default)]
struct Samples {
    without: [Vec<f64>; 2],
    during: [Vec<f64>; 2],
    /// MiB per second.
    reached: Vec<f64>,
    seconds: Vec<f64>,
    failed: u64,
}

/// Measures both rates.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    let mut table = Table::new([
        "COPY RATE",
        "REACHED",
        "TOOK",
        "OPERATION",
        "P99 WITHOUT",
        "P99 DURING",
        "TIMES",
        "BOUND",
        "FAILED",
        "VERDICT",
    ]);
    let mut rows = Vec::new();
    let mut bounds_hold = true;
    for (name, rate, bound) in RATES {
        let (peak, samples) = measured_at(options, name, rate)?;
        for (operation, (without, during)) in ["read", "write"].iter().zip(samples.without.iter().zip(&samples.during))
        {
            let times: Vec<f64> =
                during.iter().zip(without).map(|(during, without)| during / without.max(1.0)).collect();
            let met = median(&times) <= bound && samples.failed == 0;
            bounds_hold &= met;
            table.row([
                name.to_owned(),
                format!("{:.1} MiB/s", median(&samples.reached)),
                format!("{:.1} s", median(&samples.seconds)),
                (*operation).to_owned(),
                micros(median(without) as u64),
                micros(median(during) as u64),
                format!("{:.2}", median(&times)),
                format!("{bound:.0}"),
                grouped(samples.failed),
                if met { "met" } else { "NOT MET" }.to_owned(),
            ]);
            rows.push(json!({
                "copy_rate": name, "operation": operation, "peak": peak, "offered": peak * SHARE, "without_p99_us": without,
                "during_p99_us": during, "times": times, "bound": bound, "reached_mib_s": samples.reached,
                "copy_s": samples.seconds, "failed": samples.failed, "met": met,
            }));
        }
    }
    let text = format!(
        "copy: open loop at {SHARE} of the peak, values of {VALUE} bytes, half of the operations reads; medians over the rounds, of which \
         each has both\n{}",
        table.aligned()
    );
    Ok(Section { text, json: Value::Array(rows), bounds_hold })
}

fn measured_at(options: &Options, name: &str, rate: &str) -> anyhow::Result<(f64, Samples)> {
    let cluster = Cluster::start_with(options, "os", &[("WITAN_PLACEMENT__COPY_RATE", rate)])?;
    for process in cluster.measured() {
        pin(process, CORES[0])?;
    }
    pin(std::process::id(), CORES[1])?;
    cluster.tenant("served", "register", "quorum")?;
    cluster.tenant("copied", "register", "clock")?;
    factor(&cluster, 2)?;
    let of = |tenant| Load {
        value_size: VALUE,
        keys: options.copied,
        timeout: Duration::from_secs(2),
        ..load(options, cluster.coordinator.endpoint(), tenant, Mode::Unary)
    };
    // Every key once or not: what is there is copied.
    let fill =
        Load { until: Until::Operations(options.copied), warm_up: Duration::ZERO, read_share: 0.0, ..of("copied") };
    no_failure(&measure(&fill)?)?;
    let served = Load { read_share: 0.5, ..of("served") };
    no_failure(&measure(&Load { read_share: 0.0, ..served.clone() })?)?;
    let peak = measure(&served)?;
    no_failure(&peak)?;
    let peak = peak.throughput();
    let paced = Load { rate: Rate::Open(peak * SHARE), concurrency: IN_FLIGHT, ..served };
    no_failure(&measure(&Load { until: Until::Elapsed(LEAD), ..paced.clone() })?)?;
    let mut samples = Samples::default();
    for round in 0..options.rounds {
        let paced = Load { seed: u64::from(round) + 1, ..paced.clone() };
        // Who comes first alternates, as far as a copy has a first: without one, before it or after it.
        if round % 2 == 0 {
            without(&paced, &mut samples)?;
        }
        during(&cluster, &paced, &mut samples)?;
        factor(&cluster, 2)?;
        if round % 2 == 1 {
            without(&paced, &mut samples)?;
        }
        let last = |numbers: &[f64]| numbers.last().copied().unwrap_or(0.0);
        eprintln!(
            "copy {name} round {}/{}: write p99 {} and {} us, {:.1} MiB/s",
            round + 1,
            options.rounds,
            last(&samples.without[1]),
            last(&samples.during[1]),
            last(&samples.reached),
        );
    }
    Ok((peak, samples))
}

fn without(paced: &Load, samples: &mut Samples) -> anyhow::Result<()> {
    let measured = measure(paced)?;
    samples.failed += measured.failed();
    samples.without[0].push(p99_of(&measured.reads));
    samples.without[1].push(p99_of(&measured.writes));
    Ok(())
}

/// Measures the load from when the copy has begun until it has ended.
fn during(cluster: &Cluster, paced: &Load, samples: &mut Samples) -> anyhow::Result<()> {
    let migration = change_factor(cluster, 3)?;
    let mut begun = Instant::now();
    let mut status = status(cluster, &migration)?;
    while status.progress.as_ref().is_none_or(|progress| progress.bytes_migrated == 0) && status.finished_at == 0 {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the copy does not begin: {status:?}");
        std::thread::sleep(LOOK);
        status = self::status(cluster, &migration)?;
    }
    begun = Instant::now();
    let piece = Load { until: Until::Elapsed(PIECE), warm_up: Duration::ZERO, ..paced.clone() };
    let mut sums: Option<[Histogram<u64>; 2]> = None;
    let mut copied = 0.0;
    while status.finished_at == 0 {
        anyhow::ensure!(begun.elapsed() < PATIENCE, "the copy does not end: {status:?}");
        let measured = measure(&piece)?;
        samples.failed += measured.failed();
        match &mut sums {
            None => sums = Some([measured.reads, measured.writes]),
            Some([reads, writes]) => {
                reads.add(&measured.reads)?;
                writes.add(&measured.writes)?;
            }
        }
        status = self::status(cluster, &migration)?;
        let bytes = status.progress.as_ref().map_or(0, |progress| progress.bytes_migrated) as f64;
        // What follows the last byte is no copy: the time until then counts, as far as pieces show it.
        if bytes > copied {
            copied = bytes;
        }
    }
    anyhow::ensure!(status.status == "completed", "the copy was not completed: {status:?}");
    let seconds = begun.elapsed().as_secs_f64();
    let [reads, writes] = sums.context("the copy was shorter than a look: raise --copied")?;
    samples.during[0].push(p99_of(&reads));
    samples.during[1].push(p99_of(&writes));
    samples.reached.push(copied / seconds / f64::from(1 << 20));
    samples.seconds.push(seconds);
    Ok(())
}

/// Changes the copied tenant's replication factor, and waits until its records are where they belong.
fn factor(cluster: &Cluster, to: i32) -> anyhow::Result<()> {
    let migration = change_factor(cluster, to)?;
    let began = Instant::now();
    while !migration.is_empty() && status(cluster, &migration)?.finished_at == 0 {
        anyhow::ensure!(began.elapsed() < PATIENCE, "the replication factor does not become {to}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn change_factor(cluster: &Cluster, to: i32) -> anyhow::Result<String> {
    let global = cluster.global();
    cluster.block_on(async {
        let request = UpdateReplicationFactorRequest { tenant_id: "copied".to_owned(), new_replication_factor: to };
        let changed = client::coordinator(&global).await?.update_replication_factor(request).await?;
        Ok(changed.into_inner().migration_id)
    })
}

fn status(cluster: &Cluster, migration: &str) -> anyhow::Result<witan_wire::v1::GetMigrationStatusResponse> {
    let global = cluster.global();
    cluster.block_on(async {
        let request = GetMigrationStatusRequest { migration_id: migration.to_owned() };
        Ok(client::coordinator(&global).await?.get_migration_status(request).await?.into_inner())
    })
}

fn measure(load: &Load) -> anyhow::Result<Measured> {
    load.measure(&Arc::new(Progress::default()))
}

fn no_failure(measured: &Measured) -> anyhow::Result<()> {
    anyhow::ensure!(measured.failed() == 0, "operations failed: {:?}", measured.errors);
    Ok(())
}
