//! The cost for the coordinator of PostgreSQL and Redis instead of the embedded stores.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use witan::cli::bench::load::{Load, Mode};
use witan::cli::bench::measured::Progress;
use witan::cli::bench::pace::Until;
use witan::cli::output::{Table, grouped};
use witan_servers::{Postgres, Redis};

use crate::Options;
use crate::cluster::{Cluster, Process};
use crate::policy::{SLICES, slice};
use crate::report::{Section, mean, median};
use crate::scenario::load;

/// Bound on the additional processor time of the coordinator for an operation without an idempotency key, in percent.
const BOUND_PERCENT: f64 = 3.0;

/// One way of using the two coordinators.
struct Case {
    name: &'static str,
    mode: Mode,
    keys: bool,
    bound: Option<f64>,
}

/// With idempotency keys, Redis replaces the embedded store: reported without a bound.
const CASES: [Case; 4] = [
    Case { name: "session", mode: Mode::Session, keys: false, bound: Some(BOUND_PERCENT) },
    Case { name: "unary", mode: Mode::Unary, keys: false, bound: Some(BOUND_PERCENT) },
    Case { name: "session, keys", mode: Mode::Session, keys: true, bound: None },
    Case { name: "unary, keys", mode: Mode::Unary, keys: true, bound: None },
];

/// The results of one case, a number per round.
#[derive(Default)]
struct Samples {
    embedded: Vec<f64>,
    shared: Vec<f64>,
    embedded_throughput: Vec<f64>,
    shared_throughput: Vec<f64>,
}

/// Measures the same load at a coordinator with embedded stores and at one with servers, over the same storage nodes.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    let cluster = Cluster::start(options, "os")?;
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let another = cluster.another(options, &postgres.url(), &redis.url())?;
    // A tenant each, so that neither uses the other's records.
    cluster.tenant("embedded", "register", "clock")?;
    cluster.tenant_at(&another, "shared", "register", "clock")?;
    let coordinators = [(&cluster.coordinator, "embedded"), (&another, "shared")];

    let mut samples: [Samples; CASES.len()] = Default::default();
    // Round 0 is a warm-up and does not count.
    let slices = options.rounds * SLICES;
    for round in 0..=slices {
        for (case, samples) in CASES.iter().zip(&mut samples) {
            for turn in 0..2 {
                // The two alternate in order.
                let which = (round as usize + turn) % 2;
                let (coordinator, tenant) = coordinators[which];
                let (cost, throughput) = cost(options, coordinator, tenant, case, round)?;
                eprintln!("stores {round}/{slices} {:<14} {tenant:<9} {cost:.2} us", case.name);
                let (costs, throughputs) = match which {
                    0 => (&mut samples.embedded, &mut samples.embedded_throughput),
                    _ => (&mut samples.shared, &mut samples.shared_throughput),
                };
                if round > 0 {
                    costs.push(cost);
                    throughputs.push(throughput);
                }
            }
        }
    }
    Ok(summary(&samples))
}

fn summary(samples: &[Samples; CASES.len()]) -> Section {
    let mut table = Table::new([
        "US/OPERATION",
        "EMBEDDED",
        "SHARED",
        "MORE",
        "ERROR",
        "BOUND",
        "VERDICT",
        "EMBEDDED OPS/S",
        "SHARED OPS/S",
    ]);
    let mut rows: Vec<Value> = Vec::new();
    let mut bounds_hold = true;
    for (case, samples) in CASES.iter().zip(samples) {
        let pairs = samples.shared.iter().zip(&samples.embedded);
        let more: Vec<f64> = pairs.map(|(shared, embedded)| (shared / embedded - 1.0) * 100.0).collect();
        let error = mean(&more).1;
        let rounds: Vec<f64> = more.chunks(SLICES as usize).map(|round| mean(round).0).collect();
        let more = median(&rounds);
        let met = case.bound.map(|bound| more <= bound);
        bounds_hold &= met != Some(false);
        let throughputs =
            [&samples.embedded_throughput, &samples.shared_throughput].map(|of| median(of).round() as u64);
        table.row([
            case.name.to_owned(),
            format!("{:.2}", median(&samples.embedded)),
            format!("{:.2}", median(&samples.shared)),
            format!("{more:+.1} %"),
            format!("{error:.1} %"),
            case.bound.map_or(String::new(), |bound| format!("{bound:.0} %")),
            met.map_or("", |met| if met { "met" } else { "NOT MET" }).to_owned(),
            grouped(throughputs[0]),
            grouped(throughputs[1]),
        ]);
        rows.push(json!({
            "name": case.name,
            "embedded_us": samples.embedded,
            "shared_us": samples.shared,
            "more_percent": more,
            "standard_error_percent": error,
            "bound_percent": case.bound, "met": met, "embedded_throughput": throughputs[0], "shared_throughput": throughputs[1],
        }));
    }
    let text = format!(
        "stores: the coordinator's processor time an operation, with embedded stores and with PostgreSQL and Redis; \
         clock ordering; medians; MORE is the median of the rounds' ratios, ERROR the standard error of their mean\n{}",
        table.aligned()
    );
    Section { text, json: Value::Array(rows), bounds_hold }
}

/// Microseconds of processor time per operation, and operations per second.
fn cost(options: &Options, coordinator: &Process, tenant: &str, case: &Case, round: u32) -> anyhow::Result<(f64, f64)> {
    let load = Load {
        warm_up: Duration::ZERO,
        until: Until::Elapsed(slice(options)),
        seed: u64::from(round) + 1,
        idempotency_keys: case.keys,
        ..load(options, coordinator.endpoint(), tenant, case.mode)
    };
    let before = coordinator.processor_time()?;
    let measured = load.measure(&Arc::new(Progress::default()))?;
    let spent = coordinator.processor_time()? - before;
    anyhow::ensure!(measured.failed() == 0, "{}: operations failed: {:?}", case.name, measured.errors);
    Ok((spent.as_secs_f64() * 1e6 / measured.all.max(1) as f64, measured.throughput()))
}
