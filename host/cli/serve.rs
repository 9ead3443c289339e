//! `witan serve`: a coordinator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use witan_kernel::limit;
use witan_kernel::name::NodeId;
use witan_kernel::port::{NodeStatus, StorageNode};

use super::compose::{Config, start};
use super::node::DurabilityArg;
use super::signal;
use crate::coordinate::Defaults;

/// Flags of `witan serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  witan serve --data-dir /var/lib/witan --node node-1=10.0.0.1:50052 \
    --node node-2=10.0.0.2:50052 --node node-3=10.0.0.3:50052\n\n\
    The nodes are recorded at the first start; later starts need no --node.")]
pub struct Args {
    /// Where the metadata and idempotency stores are kept; made when it does not exist.
    #[arg(long)]
    data_dir: PathBuf,
    /// This coordinator's id.
    #[arg(long, env = "WITAN_SERVER__NODE_ID", default_value = "coordinator-1")]
    node_id: String,
    /// Where gRPC is served; port 0 takes a free one, which the `ready` line tells.
    #[arg(long, default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Where metrics and health are served over HTTP.
    #[arg(long, default_value = "127.0.0.1:9090")]
    admin_listen: SocketAddr,
    /// A storage node, as ID=HOST:PORT. Repeat it for each.
    #[arg(long = "node", value_name = "ID=HOST:PORT", value_parser = parse_node)]
    nodes: Vec<StorageNode>,
    /// A folder that is watched for plugins.
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// sync: idempotency records are synced before anything is sent. os: they survive the end of the process only.
    #[arg(long, value_enum, default_value_t = DurabilityArg::Sync)]
    durability: DurabilityArg,
    /// Seconds a shutdown may take.
    #[arg(long, default_value_t = 30)]
    shutdown_seconds: u64,
}

/// Reads "node-1=127.0.0.1:50052".
pub(super) fn parse_node(text: &str) -> Result<StorageNode, String> {
    let wrong = || format!("{text:?} is not ID=HOST:PORT, as in node-1=127.0.0.1:50052");
    let (id, address) = text.split_once('=').ok_or_else(wrong)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong());
    }
    Ok(StorageNode {
        id: NodeId::new(id).map_err(|error| error.to_string())?,
        host: host.to_owned(),
        port,
        virtual_nodes: limit::VIRTUAL_NODES,
        status: NodeStatus::Active,
    })
}

/// Runs a coordinator until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = signal::stop_on_signal()?;
    let config = Config {
        node_id: args.node_id,
        data_dir: args.data_dir,
        listen: args.listen,
        admin_listen: args.admin_listen,
        durability: args.durability.into(),
        plugins: args.plugins,
        nodes: args.nodes,
        defaults: Defaults::default(),
        drain: Duration::from_secs(args.shutdown_seconds),
    };
    let serving = start(config, stop).await?;
    println!("ready address={} admin={}", serving.address, serving.admin_address);
    serving.ended().await?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_and_refused_with_an_example() {
        let node = parse_node("n1=localhost:50052").unwrap();
        assert_eq!((node.id.as_str(), node.host.as_str(), node.port), ("n1", "localhost", 50052));
        assert_eq!(parse_node("n1=[::1]:1").unwrap().host, "::1");
        for wrong in ["n1", "n1=localhost", "n1=:1", "n1=h:0", "n1=h:99999"] {
            assert!(parse_node(wrong).unwrap_err().contains("node-1=127.0.0.1:50052"), "{wrong}");
        }
    }
}
