//! The cost for the coordinator of a WebAssembly consistency policy that is called before every operation.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use witan::cli::bench::load::{Load, Mode};
use witan::cli::bench::measured::Progress;
use witan::cli::bench::pace::Until;
use witan::cli::output::Table;
use witan::cli::plugin;
use witan_kernel::hook::Hook;
use witan_plugin::binding::OnFault;
use witan_wire::v1::ListBindingsRequest;

use crate::Options;
use crate::cluster::Cluster;
use crate::report::{Section, mean, median};
use crate::scenario::load;

/// Bound on the coordinator's processor time that a policy adds to an operation, in microseconds.
const BOUND_MICROS: f64 = 1.0;

/// Pairs of measurements in a round, which divide the duration of the round. Other load on the machine changes the cost of an operation by
/// several times the bound, from second to second: many short pairs are more accurate than a few long ones.
pub(crate) const SLICES: u32 = 8;

/// Duration of one measurement.
pub(crate) fn slice(options: &Options) -> Duration {
    (options.duration * 2 / SLICES).max(Duration::from_millis(250))
}

/// Measures the same load on two tenants, of which one has a policy.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    if !options.policy.exists() {
        let text = format!(
            "policy: not measured: {} does not exist; build it with `cargo xtask plugins`, or name another with --policy\n",
            options.policy.display()
        );
        return Ok(Section { json: json!({ "skipped": text.trim_end() }), text, bounds_hold: false });
    }
    let cluster = Cluster::start(options, "os")?;
    cluster.tenant("plain", "register", "clock")?;
    cluster.tenant("policy", "register", "clock")?;
    bind(options, &cluster)?;

    // The first one is a warm-up and does not count.
    for tenant in ["plain", "policy"] {
        cost(options, &cluster, tenant, 0)?;
    }
    let (mut plain, mut policy) = (Vec::new(), Vec::new());
    let calls = calls(&cluster)?;
    let mut operations = 0;
    let slices = options.rounds * SLICES;
    for round in 0..slices {
        // The two alternate in order.
        let first_plain = round % 2 == 0;
        for with_policy in [!first_plain, first_plain] {
            let (cost, ended) = cost(options, &cluster, if with_policy { "policy" } else { "plain" }, round)?;
            eprintln!("policy {}/{slices}: {cost:.2} us, policy {with_policy}", round + 1);
            if with_policy {
                policy.push(cost);
                operations += ended;
            } else {
                plain.push(cost);
            }
        }
    }
    let counted = self::calls(&cluster)?;
    let (asked, remembered) = (counted.0 - calls.0, counted.1 - calls.1);
    anyhow::ensure!(
        asked + remembered >= operations,
        "the policy decided {asked} + {remembered} times in {operations} operations: what was measured is not its cost"
    );
    let differences: Vec<f64> = policy.iter().zip(&plain).map(|(with, without)| with - without).collect();
    let rounds: Vec<f64> = differences.chunks(SLICES as usize).map(|round| mean(round).0).collect();
    let cost = median(&rounds);
    let (average, error) = mean(&differences);
    let met = cost <= BOUND_MICROS;
    let mut table = Table::new(["COORDINATOR'S PROCESSOR TIME", "US/OPERATION"]);
    table.row(["without a policy".to_owned(), format!("{:.2}", median(&plain))]);
    table.row(["with a policy".to_owned(), format!("{:.2}", median(&policy))]);
    table.row(["median of the rounds' differences".to_owned(), format!("{cost:.2}")]);
    table.row(["mean of all differences".to_owned(), format!("{average:.2}")]);
    table.row(["its standard error".to_owned(), format!("{error:.2}")]);
    let share = asked as f64 * 100.0 / (asked + remembered).max(1) as f64;
    table.row(["share of the operations that called it, %".to_owned(), format!("{share:.1}")]);
    let verdict = if met { "met" } else { "NOT MET" };
    let text = format!(
        "policy {}: clock ordering, sessions; the bound is {BOUND_MICROS:.1} us: {verdict}\n{}",
        options.policy.file_name().map(|name| name.to_string_lossy()).unwrap_or_default(),
        table.aligned()
    );
    let json = json!({
        "plain_us": plain,
        "policy_us": policy,
        "difference_us": cost,
        "mean_difference_us": average,
        "standard_error_us": error,
        "bound_us": BOUND_MICROS,
        "met": met,
        "asked": asked,
        "remembered": remembered,
    });
    Ok(Section { text, json, bounds_hold: met })
}

fn bind(options: &Options, cluster: &Cluster) -> anyhow::Result<()> {
    let global = cluster.global();
    cluster.block_on(async {
        let pushed = plugin::upload(&global, &options.policy).await.context("push the policy")?;
        let bind = plugin::Bind {
            plugin: Some(pushed.digest),
            tenant: Some("policy".to_owned()),
            on_fault: Some(OnFault::Fail),
            ..plugin::Bind::of(Hook::ConsistencyPolicy)
        };
        plugin::bind(&global, bind).await.context("bind the policy").map(drop)
    })
}

/// How often the policy was called so far, and how often a cached answer to an equal question was used.
fn calls(cluster: &Cluster) -> anyhow::Result<(u64, u64)> {
    let global = cluster.global();
    cluster.block_on(async {
        let request = ListBindingsRequest { tenant_id: "policy".to_owned() };
        let answer = witan::cli::client::plugins(&global).await?.list_bindings(request).await?.into_inner();
        let ours = answer.bindings.iter().filter(|binding| binding.tenant_id == "policy");
        Ok(ours.fold((0, 0), |(calls, remembered), it| (calls + it.calls, remembered + it.remembered)))
    })
}

/// Microseconds of processor time per operation, and operations.
fn cost(options: &Options, cluster: &Cluster, tenant: &str, round: u32) -> anyhow::Result<(f64, u64)> {
    let load = Load {
        warm_up: Duration::ZERO,
        until: Until::Elapsed(slice(options)),
        seed: u64::from(round) + 1,
        ..load(options, cluster.coordinator.endpoint(), tenant, Mode::Session)
    };
    let before = cluster.coordinator.processor_time()?;
    let measured = load.measure(&Arc::new(Progress::default()))?;
    let spent = cluster.coordinator.processor_time()? - before;
    anyhow::ensure!(measured.failed() == 0, "operations failed: {:?}", measured.errors);
    Ok((spent.as_secs_f64() * 1e6 / measured.all.max(1) as f64, measured.all))
}
