//! Throughput against a baseline in the same run, and the cost of a WebAssembly consistency policy for the coordinator.
//!
//! Three storage nodes, a coordinator and a baseline run as separate processes, with temporary folders and free ports.
//! The baseline ([`baseline`]) is the plain design: a unary call in, three unary calls out to the same nodes, all three awaited,
//! no logic. The load is that of `witan bench`. Measurements are interleaved: every round measures everything once, starting
//! with a different one each time, so that changes on the machine affect all alike; the medians of the rounds are reported.
//!
//! `cargo bench --bench throughput -- --help` lists the settings; docs/benchmarks.md says how to read the result.

mod baseline;
mod calls;
mod cluster;
mod copy;
#[path = "../../host/plugin/tests/it/guest.rs"]
#[allow(dead_code, reason = "the tests of the plugin host need more of it")]
mod guest;
mod mark;
mod neighbours;
mod overload;
mod policy;
mod report;
mod scenario;
mod storage;
mod stores;
mod swaps;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use witan::cli::args;

/// The same allocator as the measured program, so that the baseline is not at a disadvantage.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures throughput against a baseline, and the cost of a policy.
#[derive(Debug, Clone, Parser)]
#[command(name = "throughput")]
struct Options {
    /// Rounds; medians are taken over them
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Duration of each measurement
    #[arg(long, default_value = "3s", value_parser = args::duration)]
    duration: Duration,
    /// Warm-up of each measurement
    #[arg(long, default_value = "1s", value_parser = args::duration_or_none)]
    warm_up: Duration,
    /// Operations in flight, the same for all
    #[arg(long, default_value_t = 256)]
    concurrency: u32,
    /// Connections of the load generator, the same for all
    #[arg(long, default_value_t = 2)]
    connections: u32,
    /// Bytes of each value
    #[arg(long, default_value = "256", value_parser = args::size)]
    value_size: usize,
    /// Number of different keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Share of reads, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    read_share: f64,
    /// Only these sections
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["os", "sync", "policy", "stores", "swaps"])]
    sections: Vec<Section>,
    /// The consistency policy's component; `cargo xtask plugins` builds it
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/plugins/adaptive-latency.wasm"))]
    policy: PathBuf,
    /// Swaps of the policy in the section `swaps`
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    swaps: u32,
    /// Keys of the tenant that is copied in the section `copy`, each with a value of 4 KiB
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    copied: u64,
    /// The measured program
    #[arg(long, default_value = env!("CARGO_BIN_EXE_witan"))]
    witan: PathBuf,
    /// Parent of the nodes' folders [default: the folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Exit with 1 when a bound is not met
    #[arg(long)]
    check: bool,
    /// Passed by `cargo bench` but not by `cargo test`, which only checks that this compiles
    #[arg(long, hide = true)]
    bench: bool,
    /// Run the baseline's coordinator, in front of these nodes
    #[arg(long, hide = true, value_delimiter = ',')]
    baseline: Vec<String>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Section {
    /// Nodes that leave syncing to the operating system; the bounds apply to these
    Os,
    /// Nodes that sync before they acknowledge
    Sync,
    /// Cost of a WebAssembly consistency policy for the coordinator
    Policy,
    /// Cost of PostgreSQL and Redis instead of embedded stores for the coordinator
    Stores,
    /// Effect of swapping a policy on requests and memory
    Swaps,
    /// More load than the cluster can carry, beside a quiet tenant
    Overload,
    /// A copy of a placement change, beside a load
    Copy,
    /// A node's storage path alone
    Storage,
    /// Cost of the mark for a node's engine
    Mark,
    /// One call of each hook alone
    Calls,
    /// A quiet tenant beside one whose plugin burns all the CPU it may
    Neighbours,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if !options.baseline.is_empty() {
        baseline::serve(&options.baseline)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !options.bench {
        eprintln!("this is a benchmark; run it with: cargo bench --bench throughput");
        return Ok(ExitCode::SUCCESS);
    }
    let machine = report::machine();
    if !options.json {
        println!("{}", report::head(&options, &machine));
    }
    let mut bounds_hold = true;
    let mut sections = serde_json::Map::new();
    for section in &options.sections {
        let (name, result) = match section {
            Section::Os => ("os", scenario::section(&options, "os", scenario::OS)?),
            Section::Sync => ("sync", scenario::section(&options, "sync", scenario::SYNC)?),
            Section::Policy => ("policy", policy::section(&options)?),
            Section::Stores => ("stores", stores::section(&options)?),
            Section::Swaps => ("swaps", swaps::section(&options)?),
            Section::Overload => ("overload", overload::section(&options)?),
            Section::Copy => ("copy", copy::section(&options)?),
            Section::Storage => ("storage", storage::section(&options)?),
            Section::Mark => ("mark", mark::section(&options)?),
            Section::Calls => ("calls", calls::section(&options)?),
            Section::Neighbours => ("neighbours", neighbours::section(&options)?),
        };
        bounds_hold &= result.bounds_hold;
        if !options.json {
            println!("{}", result.text);
        }
        sections.insert(name.to_owned(), result.json);
    }
    if options.json {
        println!("{:#}", json!({ "machine": machine, "settings": report::settings(&options), "sections": sections }));
    }
    Ok(if options.check && !bounds_hold { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
