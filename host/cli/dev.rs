//! `witan dev`: a whole cluster in one process, with embedded back ends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use witan_control::TenantCacheConfig;
use witan_kernel::limit;
use witan_kernel::name::NodeId;
use witan_kernel::port::{NodeStatus, StorageNode};
use witan_net::{Bounds, Incoming, Protocol};
use witan_node::node::NodeConfig;

use super::node::{self, DurabilityArg};
use crate::access::config::Security;
use crate::grpc::origin::Sampling;
use crate::process::config::{Config, Live};
use crate::process::reload::Reloads;
use crate::process::signal;
use crate::process::start::start;
use crate::process::stores::Shared;
use witan_coordinate::Defaults;

/// Flags of `witan dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  witan dev\n  witan dev --data-dir ./data --plugins ./target/plugins\n  \
    witan dev --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --node-port 0   (free ports)\n\n\
    A second start with the same --data-dir finds everything again.")]
pub struct Args {
    /// Storage nodes, 1 to 16.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
    /// Where everything is kept; made when it does not exist.
    #[arg(long, default_value = ".witan")]
    data_dir: PathBuf,
    /// Where gRPC is served; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Where metrics and health are served over HTTP; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9090")]
    admin_listen: SocketAddr,
    /// The first storage node's port; the others take the following ones. 0: each takes a free one.
    #[arg(long, default_value_t = 50052)]
    node_port: u16,
    /// A folder that is watched for plugins.
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// sync: acknowledged means synced to disk. os: acknowledged means handed to the operating system.
    #[arg(long, value_enum, default_value_t = DurabilityArg::Sync)]
    durability: DurabilityArg,
}

/// Runs a cluster until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = signal::stop_on_signal()?;
    // Nodes stop after the coordinator, which still has something to say to them.
    let (stop_nodes, nodes_stopped) = watch::channel(false);
    let (nodes, serving_nodes) = start_nodes(&args, nodes_stopped).await?;
    let config = Config {
        node_id: "coordinator-1".to_owned(),
        data_dir: args.data_dir.join("coordinator"),
        shared: Shared::default(),
        listen: args.listen,
        admin_listen: args.admin_listen,
        durability: args.durability.into(),
        plugins: args.plugins,
        nodes: nodes.clone(),
        security: Security::default(),
        defaults: Defaults::default(),
        tenant_cache: TenantCacheConfig::default(),
        connections: witan_net::incoming::CONNECTIONS,
        metrics_path: Some("/metrics".to_owned()),
        drain: Duration::from_secs(10),
        sampling: Sampling::default(),
    };
    let serving = start(config, watch::channel(Live::default()).1, Reloads::default(), stop).await?;
    let shown: Vec<String> = nodes.iter().map(|node| format!("{}={}:{}", node.id, node.host, node.port)).collect();
    println!("ready address={} admin={} nodes={}", serving.address, serving.admin_address, shown.join(","));
    serving.ended().await?;
    stop_nodes.send_replace(true);
    for node in serving_nodes {
        node.await??;
    }
    Ok(ExitCode::SUCCESS)
}

type ServingNode = JoinHandle<anyhow::Result<()>>;

async fn start_nodes(args: &Args, stop: watch::Receiver<bool>) -> anyhow::Result<(Vec<StorageNode>, Vec<ServingNode>)> {
    let mut nodes = Vec::new();
    let mut serving = Vec::new();
    for index in 0..args.nodes {
        let port = if args.node_port == 0 { 0 } else { args.node_port + index };
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("listen on {address}; another process may have the port: choose others with --node-port")
        })?;
        let id = NodeId::new(format!("node-{}", index + 1))?;
        let port = listener.local_addr()?.port();
        let mut config = NodeConfig::new(id.clone(), args.data_dir.join(id.as_str()));
        config.durability = args.durability.into();
        // All nodes share this machine's cores.
        config.shards = 1;
        let opened = node::open(config).await?;
        let incoming = Incoming::new(listener, None, Protocol::Grpc, Bounds::default());
        serving.push(tokio::spawn(node::serve(opened, incoming, stop.clone())));
        nodes.push(StorageNode {
            id,
            host: Ipv4Addr::LOCALHOST.to_string(),
            port,
            virtual_nodes: limit::VIRTUAL_NODES,
            status: NodeStatus::Active,
        });
    }
    Ok((nodes, serving))
}
