//! `cargo xtask demo`: the main job from end to end, told in plain words and figures.
//!
//! A coordinator and three storage nodes as processes of their own; a real data set; and then, with a load running and
//! every failed request counted: conflicting carts, a resolver and a policy swapped, a node killed and repaired. It ends
//! with an audit: every write that was acknowledged must be there.

mod client;
mod cluster;
mod data;
mod load;
mod story;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::process::tail;
use crate::run;
use cluster::{Cluster, NODES, node_name};

/// Flags of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Keep the temporary folder with the stores and logs, and say where it is
    #[arg(long)]
    keep: bool,
}

/// Builds, then shows. An error names what went wrong; whatever was started is stopped either way.
pub fn demo(arguments: &Arguments) -> Result<()> {
    println!("Building the plugins and the program; the first time this takes minutes.");
    let plugins = run::guests()?;
    let witan = run::build(&["build", "--workspace", "--bins"])?;
    let folder = tempfile::Builder::new().prefix("witan-demo-").tempdir().context("make a temporary folder")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let started = Instant::now();
    let shown = runtime.context("start a runtime")?.block_on(show(&witan, folder.path().to_path_buf(), plugins));
    if let Err(error) = &shown {
        println!("\nIt did NOT work: {error:#}");
        for name in (0..NODES).map(node_name).chain(["coordinator".to_owned()]) {
            let end = tail(&crate::process::log(folder.path(), &name));
            if !end.is_empty() {
                eprintln!("{name}{end}");
            }
        }
    }
    if arguments.keep {
        println!("\nStores and logs are in {}", folder.keep().display());
    }
    shown?;
    println!("\nDone in {}. Every process it started has ended.", run::seconds(started.elapsed()));
    Ok(())
}

async fn show(witan: &std::path::Path, folder: PathBuf, plugins: PathBuf) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let story = async {
        let mut cluster = Cluster::start(witan, &folder).await?;
        story::tell(&mut cluster, &plugins).await?;
        cluster.stop().await
    };
    // Whichever ends first: the story is dropped, and its processes with it.
    tokio::select! {
        told = story => told,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}
