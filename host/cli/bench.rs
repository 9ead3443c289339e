//! `witan bench`: a load generator. It is also what the benchmarks in `benches/` measure with.
//!
//! `load` has the settings and the threads, `work` chooses the operations, `pace` their start times, `unary` and `session`
//! carry them out, `measured` and `report` collect and print the result.

mod grpc;
pub mod load;
pub mod measured;
pub mod pace;
mod reason;
pub mod report;
mod session;
mod unary;
pub mod work;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering as Memory;
use std::time::Duration;

use witan_kernel::limit::VALUE_BYTES;
use witan_kernel::tenant::{ConflictMode, Level, Ordering};
use witan_wire::v1::CreateTenantRequest;

use super::args;
use super::choice::{self, spelling};
use super::client::Problem;
use super::credential::Shown;
use super::endpoint::Endpoint;
use super::output::{self, Output, grouped};
use super::{Global, client, tenant};
use load::{Load, Mode};
use measured::{Measured, Progress};
use pace::{Rate, Until};
use work::Distribution;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Without --rate, --concurrency operations are kept in flight (a closed loop); this measures throughput, and the latency at \
that concurrency. With --rate, operations start on a fixed schedule whatever the system does (an open loop), and latency \
counts from the scheduled start, so a stall shows in every operation that it delayed (a closed loop hides this: \
\"coordinated omission\"). Keys are random, seeded by --seed; values are random bytes. The tenant is created if it is \
missing. For a tenant with siblings, every write carries the context of the last response for its key.

Examples:
  witan bench --mode session --concurrency 256 --duration 10s
  witan bench --rate 5000 --read-share 0.9 --distribution zipf --keys 100000
  witan bench --tenant fast --ordering clock --consistency one --operations 100000
  witan bench --tenant carts --conflict-mode siblings --output json | jq .write.p99_us";

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How operations are sent
    #[arg(long, value_enum, default_value_t = Mode::Unary)]
    pub mode: Mode,
    /// Operations in flight; with --rate, the most in flight
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub concurrency: u32,
    /// Operations a second (an open loop)
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// How long to measure [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = args::duration, conflicts_with = "operations")]
    pub duration: Option<Duration>,
    /// How many operations to measure, instead of how long
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub operations: Option<u64>,
    /// Warm-up before measuring, or 0
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = args::duration_or_none)]
    pub warm_up: Duration,
    /// Connections
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub connections: u32,
    /// Threads of the load generator; raise it only if one thread is saturated
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Number of different keys
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub keys: u64,
    /// Distribution of the keys
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub distribution: Distribution,
    /// Share of reads, 0 to 1
    #[arg(long, default_value = "0.5", value_name = "SHARE", value_parser = share)]
    pub read_share: f64,
    /// Size of each value, such as 256 or 4KiB
    #[arg(long, default_value = "256", value_name = "SIZE", value_parser = value_size)]
    pub value_size: usize,
    /// Give each write a new idempotency key
    #[arg(long)]
    pub idempotency_keys: bool,
    /// How many replicas must answer [default: the tenant's]
    #[arg(short, long, value_parser = choice::level())]
    pub consistency: Option<Level>,
    /// The tenant
    #[arg(short, long, default_value = "bench", value_name = "TENANT")]
    pub tenant: String,
    /// Conflict mode of the tenant, if it is created [default: register]
    #[arg(long, value_parser = choice::conflict_mode())]
    pub conflict_mode: Option<ConflictMode>,
    /// Ordering of the tenant, if it is created [default: quorum]
    #[arg(long, value_parser = choice::ordering())]
    pub ordering: Option<Ordering>,
    /// Replication factor of the tenant, if it is created [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=5))]
    pub replication_factor: Option<i32>,
    /// Write every key once before measuring
    #[arg(long)]
    pub preload: bool,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    if rate > 0.0 && rate <= 10_000_000.0 { Ok(rate) } else { Err("must be above 0 and at most 10000000".to_owned()) }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("must be 0 to 1".to_owned()) }
}

fn value_size(text: &str) -> Result<usize, String> {
    let size = args::size(text).map_err(|error| error.to_string())?;
    if size <= VALUE_BYTES { Ok(size) } else { Err(format!("must be at most {}MiB", VALUE_BYTES >> 20)) }
}

/// Runs the load and prints the result. Fails when no operation succeeded.
pub async fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    tenant::ensure(global, tenant_request(&args), true).await?;
    let siblings = tenant::get(global, args.tenant.clone()).await?.conflict_mode == "siblings";
    let shown = Shown::of(global).map_err(Problem::from)?;
    let load = Load { shown, ..load_of(global, &args, siblings)? };
    let quiet = args.quiet || !std::io::stderr().is_terminal();
    if args.preload {
        measure(preload_of(&load), "preload", quiet).await?;
    }
    if global.output == Output::Text {
        output::text(&format!("{}\n", report::settings(&load)))?;
    }
    let measured = measure(load.clone(), "load", quiet).await?;
    match global.output {
        Output::Text => output::text(&report::text(&measured))?,
        Output::Json => output::object(&report::json(&load, &measured))?,
    }
    let worked = !measured.writes.is_empty() || !measured.reads.is_empty();
    Ok(if worked { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tenant_request(args: &Args) -> CreateTenantRequest {
    CreateTenantRequest {
        tenant_id: args.tenant.clone(),
        replication_factor: args.replication_factor.unwrap_or(0),
        conflict_mode: spelling(args.conflict_mode),
        ordering: spelling(args.ordering),
        ..CreateTenantRequest::default()
    }
}

fn load_of(global: &Global, args: &Args, contexts: bool) -> anyhow::Result<Load> {
    Ok(Load {
        endpoint: Endpoint::parse(&global.endpoint).map_err(Problem::from)?.url,
        tls: client::tls(global)?,
        mode: args.mode,
        rate: args.rate.map_or(Rate::Closed, Rate::Open),
        until: match args.operations {
            Some(operations) => Until::Operations(operations),
            None => Until::Elapsed(args.duration.unwrap_or(Duration::from_secs(10))),
        },
        warm_up: args.warm_up,
        concurrency: args.concurrency,
        connections: args.connections,
        threads: args.threads,
        timeout: global.timeout(),
        tenant: args.tenant.clone(),
        consistency: spelling(args.consistency),
        keys: args.keys,
        distribution: args.distribution,
        read_share: args.read_share,
        value_size: args.value_size,
        contexts,
        idempotency_keys: args.idempotency_keys,
        seed: args.seed,
        ..Load::default()
    })
}

/// A load that writes every key once, as fast as possible.
fn preload_of(load: &Load) -> Load {
    Load {
        mode: Mode::Session,
        rate: Rate::Closed,
        until: Until::Operations(load.keys),
        warm_up: Duration::ZERO,
        distribution: Distribution::Sequence,
        read_share: 0.0,
        contexts: false,
        idempotency_keys: false,
        ..load.clone()
    }
}

/// Runs a load on its own threads, and shows its progress.
async fn measure(load: Load, what: &str, quiet: bool) -> anyhow::Result<Measured> {
    let progress = Arc::new(Progress::default());
    let counted = Arc::clone(&progress);
    let mut running = tokio::task::spawn_blocking(move || load.measure(&counted));
    let mut every = tokio::time::interval(Duration::from_secs(1));
    let mut before = 0;
    loop {
        tokio::select! {
            measured = &mut running => {
                if !quiet {
                    output::progress("");
                }
                return measured?;
            }
            _ = every.tick(), if !quiet => {
                let (done, failed) = (progress.done.load(Memory::Relaxed), progress.failed.load(Memory::Relaxed));
                let (all, rate, failed) = (grouped(done), grouped(done - before), grouped(failed));
                output::progress(&format!("{what}: {all} operations, {rate}/s, {failed} failed"));
                before = done;
            }
        }
    }
}
