//! The main job from end to end, told in plain words and figures: what `cargo xtask demo` runs.
//!
//! A coordinator and three storage nodes as processes of their own; a real data set; and then, with a load running and
//! every failed request counted: conflicting carts, a resolver and a policy swapped, a node killed and repaired. It ends
//! with an audit: every write that was acknowledged must be there.

// A program has no outside that could reach too much.
#![allow(unreachable_pub)]

mod client;
mod cluster;
mod data;
mod load;
mod process;
mod story;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use cluster::{Cluster, NODES, node_name};

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
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match demo(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nIt did NOT work: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// An error names what went wrong; whatever was started is stopped either way.
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
    shown?;
    println!("\nDone in {:.1} s. Every process it started has ended.", started.elapsed().as_secs_f64());
    Ok(())
}

async fn show(arguments: &Arguments, folder: &Path) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let story = async {
        let records = data::read(&arguments.data)?;
        let mut cluster = Cluster::start(&arguments.witan, folder).await?;
        story::tell(&mut cluster, &arguments.plugins, records).await?;
        cluster.stop().await
    };
    // Whichever ends first: the story is dropped, and its processes with it.
    tokio::select! {
        told = story => told,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}
