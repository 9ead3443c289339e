//! `witan node`: a storage node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use witan_kernel::name::NodeId;
use witan_node::batch::Durability;
use witan_node::node::{Node, NodeConfig, ROW_CACHE};

use super::compose::{SystemClock, SystemRandomness, stopped};
use super::signal;

/// Flags of `witan node`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  witan node --id node-1 --data-dir /var/lib/witan/node-1\n  \
    witan node --id node-2 --data-dir ./n2 --listen 127.0.0.1:50053 --durability os")]
pub struct Args {
    /// The node's id, as the coordinators know it.
    #[arg(long)]
    id: NodeId,
    /// Where the store is kept; made when it does not exist.
    #[arg(long)]
    data_dir: PathBuf,
    /// Where coordinators connect; port 0 takes a free one, which the `ready` line tells.
    #[arg(long, default_value = "127.0.0.1:50052")]
    listen: SocketAddr,
    /// sync: acknowledged means synced to disk. os: acknowledged means handed to the operating system.
    #[arg(long, value_enum, default_value_t = DurabilityArg::Sync)]
    durability: DurabilityArg,
    /// Threads that carry out requests; 0: half the cores.
    #[arg(long, default_value_t = 0)]
    shards: usize,
    /// MiB of rows kept at hand, so that the engine is not searched for them.
    #[arg(long, default_value_t = ROW_CACHE >> 20)]
    row_cache_mib: usize,
    /// Threads that talk to coordinators; 0: a quarter of the cores.
    #[arg(long, default_value_t = 0)]
    io_threads: usize,
    /// Seconds a shutdown may take.
    #[arg(long, default_value_t = 10)]
    shutdown_seconds: u64,
}

impl Args {
    /// Threads that talk to coordinators. They decode and encode batches and leave the work to the shards, so that few do:
    /// each one more only costs the waking of it.
    pub(super) fn io_threads(&self) -> usize {
        match self.io_threads {
            0 => (std::thread::available_parallelism().map_or(1, usize::from) / 4).max(1),
            threads => threads,
        }
    }
}

/// How an acknowledged write is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DurabilityArg {
    /// Synced to disk.
    Sync,
    /// Handed to the operating system.
    Os,
}

impl From<DurabilityArg> for Durability {
    fn from(arg: DurabilityArg) -> Self {
        match arg {
            DurabilityArg::Sync => Self::Sync,
            DurabilityArg::Os => Self::Os,
        }
    }
}

impl From<DurabilityArg> for witan_store::Durability {
    fn from(arg: DurabilityArg) -> Self {
        match arg {
            DurabilityArg::Sync => Self::Sync,
            DurabilityArg::Os => Self::Os,
        }
    }
}

/// Runs a node until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = signal::stop_on_signal()?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("listen on {}; another process may have the port: choose another one with --listen", args.listen)
    })?;
    let address = listener.local_addr()?;
    let mut config = NodeConfig::new(args.id, args.data_dir);
    config.durability = args.durability.into();
    config.shards = args.shards;
    config.row_cache = args.row_cache_mib << 20;
    config.limits.drain = Duration::from_secs(args.shutdown_seconds);
    let node = open(config).await?;
    println!("ready node={} address={address} store={}", node.id(), node.store_id());
    serve(node, listener, stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// Opens a node off the runtime's threads.
pub(super) async fn open(config: NodeConfig) -> anyhow::Result<Node<SystemClock>> {
    let opened = tokio::task::spawn_blocking(move || Node::open(config, SystemClock::new(), &SystemRandomness));
    Ok(opened.await??)
}

/// Serves a node until `stop` turns true; its threads have ended when this is ready.
pub(super) async fn serve(
    node: Node<SystemClock>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let served = node.serve(TcpListenerStream::new(listener), stopped(stop)).await;
    tokio::task::spawn_blocking(move || drop(node)).await?;
    Ok(served?)
}
