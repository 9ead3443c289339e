//! What a tenant notices of its neighbour's plugin that burns all the CPU it may.
//!
//! A quiet tenant's calls start on a fixed schedule. Beside it, another tenant with the same load as its neighbour in the comparison has no
//! plugin, or one that burns: the ratio of the quiet tenant's 99th percentiles is what the plugin costs a neighbour.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use witan::cli::bench::load::{Load, Mode};
use witan::cli::bench::measured::{Measured, Progress};
use witan::cli::bench::pace::{Rate, Until};
use witan::cli::output::{Table, micros};
use witan::cli::plugin;
use witan_kernel::hook::Hook;
use witan_plugin::OnFault;

use crate::Options;
use crate::cluster::Cluster;
use crate::guest::Guest;
use crate::overload::p99_of;
use crate::report::{Section, median};
use crate::scenario::load;

/// Most by which the quiet tenant's 99th percentile may move.
const BOUND: f64 = 1.2;
/// Calls a second of the quiet tenant.
const QUIET: f64 = 200.0;
/// Operations a second of its neighbour: with a plugin that takes milliseconds for each, more than it may use of the CPU.
const BURNING: f64 = 400.0;
/// Bytes of the neighbour's values: the policy burns for them, and not for those of its probe.
const TRIGGER: usize = 666;
/// Different keys of tenants with siblings, and writes that make siblings of them: about ten of each.
const KEYS: u64 = 50;
const CONFLICTS: u64 = 500;

/// A hook whose plugin burns.
struct Case {
    name: &'static str,
    hook: Hook,
    conflict_mode: &'static str,
    read_share: f64,
    burning: Guest,
    /// The quiet tenant's own plugin for the same hook.
    quick: Guest,
}

/// Counts down from this number: about as many nanoseconds.
fn countdown(local: &str, from: u32) -> String {
    format!(
        "(local.set {local} (i32.const {from}))
         (loop $again (br_if $again (local.tee {local} (i32.sub (local.get {local}) (i32.const 1)))))"
    )
}

fn cases() -> [Case; 2] {
    // It says that its answers depend on more than the question, so that none is remembered.
    let policy = Guest::policy("burning-policy", 2).when_triggered(&countdown("0", 2_000_000)).with(|guest| {
        guest.describe = format!("(i32.store8 (i32.const 124) (i32.const 0)) {}", guest.describe);
    });
    let resolver = Guest::resolver("burning-resolver").when_triggered(&countdown("$i", 10_000_000));
    [
        Case {
            name: "policy",
            hook: Hook::ConsistencyPolicy,
            conflict_mode: "register",
            read_share: 0.0,
            burning: policy,
            quick: Guest::policy("quick-policy", 2),
        },
        Case {
            name: "resolver",
            hook: Hook::ConflictResolver,
            conflict_mode: "siblings",
            read_share: 1.0,
            burning: resolver,
            quick: Guest::resolver("quick-resolver"),
        },
    ]
}

/// Measures every case.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    let cluster = Cluster::start(options, "os")?;
    let mut table = Table::new(["PLUGIN", "P99 WITHOUT", "P99 BESIDE IT", "RATIO", "BOUND", "VERDICT"]);
    let mut rows: Vec<Value> = Vec::new();
    let mut bounds_hold = true;
    for case in cases() {
        let (without, beside) = measure(options, &cluster, &case)?;
        let ratios: Vec<f64> = beside.iter().zip(&without).map(|(beside, without)| beside / without.max(1.0)).collect();
        let ratio = median(&ratios);
        let met = ratio <= BOUND;
        bounds_hold &= met;
        table.row([
            case.name.to_owned(),
            micros(median(&without) as u64),
            micros(median(&beside) as u64),
            format!("{ratio:.2}"),
            format!("{BOUND:.1}"),
            if met { "met" } else { "NOT MET" }.to_owned(),
        ]);
        rows.push(json!({
            "plugin": case.name, "without_p99_us": without, "beside_p99_us": beside, "ratio": ratio, "bound": BOUND, "met": met,
        }));
    }
    let text = format!("neighbours: medians over the rounds; the ratio is the median of theirs\n{}", table.aligned());
    Ok(Section { text, json: Value::Array(rows), bounds_hold })
}

/// The quiet tenant's 99th percentiles beside a tenant without a plugin, and beside one whose plugin burns, of each round.
fn measure(options: &Options, cluster: &Cluster, case: &Case) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let name = |tenant: &str| format!("{}-{tenant}", case.name);
    let (quiet, calm, burning) = (name("quiet"), name("calm"), name("burning"));
    for tenant in [&quiet, &calm, &burning] {
        cluster.tenant(tenant, case.conflict_mode, "quorum")?;
        if case.read_share > 0.0 {
            let writes =
                Load { until: Until::Operations(CONFLICTS), concurrency: 1, ..of(options, cluster, case, tenant) };
            run(&Load { read_share: 0.0, warm_up: Duration::ZERO, ..writes })?;
        }
    }
    bind(cluster, case.hook, &quiet, &case.quick)?;
    bind(cluster, case.hook, &burning, &case.burning)?;
    let (mut without, mut beside) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        for burns in if round % 2 == 0 { [false, true] } else { [true, false] } {
            let seed = u64::from(round) + 1;
            let quiet = Load { rate: Rate::Open(QUIET), seed, ..of(options, cluster, case, &quiet) };
            let other = if burns { &burning } else { &calm };
            let other = Load { rate: Rate::Open(BURNING), seed, ..of(options, cluster, case, other) };
            let measured = std::thread::scope(|scope| {
                let other = scope.spawn(|| run(&other));
                let measured = run(&quiet);
                other.join().map_err(|_| anyhow::anyhow!("a load panicked"))??;
                measured
            })?;
            anyhow::ensure!(measured.failed() == 0, "the quiet tenant's calls failed: {:?}", measured.errors);
            let p99 = p99_of(if measured.writes.is_empty() { &measured.reads } else { &measured.writes });
            eprintln!("neighbours {} {}/{}: {p99:.0} us, burning {burns}", case.name, round + 1, options.rounds);
            if burns { beside.push(p99) } else { without.push(p99) }
        }
    }
    Ok((without, beside))
}

fn of(options: &Options, cluster: &Cluster, case: &Case, tenant: &str) -> Load {
    Load {
        read_share: case.read_share,
        keys: if case.read_share > 0.0 { KEYS } else { options.keys },
        value_size: TRIGGER,
        concurrency: 64,
        timeout: Duration::from_secs(5),
        ..load(options, cluster.coordinator.endpoint(), tenant, Mode::Unary)
    }
}

fn run(load: &Load) -> anyhow::Result<Measured> {
    load.measure(&Arc::new(Progress::default()))
}

fn bind(cluster: &Cluster, hook: Hook, tenant: &str, guest: &Guest) -> anyhow::Result<()> {
    let file = tempfile::Builder::new().suffix(".wasm").tempfile()?;
    std::fs::write(file.path(), guest.build())?;
    let global = cluster.global();
    cluster.block_on(async {
        let pushed = plugin::upload(&global, file.path()).await.context("push a plugin")?;
        let bind = plugin::Bind {
            plugin: Some(pushed.digest),
            tenant: Some(tenant.to_owned()),
            on_fault: Some(OnFault::Native),
            ..plugin::Bind::of(hook)
        };
        plugin::bind(&global, bind).await.context("bind a plugin").map(drop)
    })
}
