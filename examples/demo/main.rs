//! Witan from end to end, in plain words and figures: what `cargo xtask demo` runs.
//!
//! It starts a coordinator and three storage nodes, each a process, and loads a real data set. Then, under a load whose failed requests are
//! all counted, carts are written in conflict, a resolver and a policy are swapped, and a node is killed and repaired. It ends with an
//! audit: every acknowledged write must be there.

// Nothing links a program, so `pub` reaches no further than its modules.
#![allow(unreachable_pub)]

mod client;
mod cluster;
mod data;
mod load;
mod output;
mod process;
mod story;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use cluster::{Cluster, NODES, node_name};
use output::Output;

/// Shows a Witan cluster at work: real data, conflicts, plugins swapped under load, a node killed and repaired.
#[derive(Debug, Parser)]
struct Arguments {
    /// The program `witan`
    #[arg(long)]
    witan: PathBuf,
    /// Folder of the built plugins
    #[arg(long)]
    plugins: PathBuf,
    /// The data set, one JSON object per line
    #[arg(long)]
    data: PathBuf,
    /// Keep the temporary folder with the stores and logs, and say where it is
    #[arg(long)]
    keep: bool,
    /// Show every step, not only the summary
    #[arg(short, long)]
    verbose: bool,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match demo(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demonstration FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demonstration; every process it has started ends, whether it succeeds or fails.
async fn demo(arguments: Arguments) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("witan-demo-").tempdir().context("make a temporary folder")?;
    let started = Instant::now();
    let shown = show(&arguments, folder.path()).await;
    if shown.is_err() {
        for name in (0..NODES).map(node_name).chain(["coordinator".to_owned()]) {
            let end = process::tail(&process::log(folder.path(), &name));
            if !end.is_empty() {
                eprintln!("{name}{end}");
            }
        }
    }
    if arguments.keep {
        println!("\nStores and logs are in {}", folder.keep().display());
    }
    let totals = shown?;
    let (output, seconds) = (Output { verbose: arguments.verbose }, started.elapsed().as_secs_f64());
    output.summary(
        "Result",
        format_args!("{totals}. Done in {seconds:.1} s; every process has ended. Show every step: -v"),
    );
    output.detail(format_args!("\nIn total: {totals}."));
    output.detail(format_args!("\nDone in {seconds:.1} s. Every process it started has ended."));
    Ok(())
}

/// Starts the cluster, tells the story, and stops the cluster; returns the load's totals.
async fn show(arguments: &Arguments, folder: &Path) -> Result<String> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let story = async {
        let records = data::read(&arguments.data)?;
        let mut cluster = Cluster::start(&arguments.witan, folder).await?;
        let output = Output { verbose: arguments.verbose };
        let totals = story::tell(&mut cluster, &arguments.plugins, records, output).await?;
        cluster.stop().await?;
        Ok(totals)
    };
    // A signal drops the story, and its processes are killed with it.
    tokio::select! {
        shown = story => shown,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}
