//! `witan dev`: a whole cluster in one process, with embedded stores.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use witan_control::TenantCacheConfig;
use witan_coordinate::Defaults;
use witan_kernel::durability::Durability;
use witan_plugin::signature::Signatures;
use witan_upkeep::{BEGINS_AFTER, MovesConfig};

use super::{args, choice, output};
use crate::access::config::Security;
use crate::config::settings::Tenants;
use crate::grpc::origin::Sampling;
use crate::process::config::{self, Config, Live};
use crate::process::node::LocalNodes;
use crate::process::reload::Reloads;
use crate::process::start::start;
use crate::process::stores::Shared;
use crate::process::{private, signal};

/// Flags of `witan dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  witan dev\n  witan dev --data-dir ./data --plugins ./target/plugins\n  \
    witan dev --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --node-port 0   (free ports)\n\n\
    A restart with the same --data-dir finds all data again.")]
pub struct Args {
    /// Number of storage nodes, 1 to 16.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
    /// Folder for all data; created if it does not exist.
    #[arg(long, default_value = ".witan", value_parser = args::path())]
    data_dir: PathBuf,
    /// Address of gRPC; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Address of metrics and health over HTTP; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9090")]
    admin_listen: SocketAddr,
    /// Port of the first storage node; the others use the following ports. 0: each takes a free one.
    #[arg(long, default_value_t = 50052)]
    node_port: u16,
    /// Folder to watch for plugins.
    #[arg(long, value_parser = args::path())]
    plugins: Option<PathBuf>,
    /// What an acknowledged write survives.
    #[arg(long, value_parser = choice::durability(), default_value_t = Durability::Sync)]
    durability: Durability,
}

/// Runs a cluster until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = signal::stop_on_signal()?;
    private::folder(&args.data_dir).with_context(|| format!("create {}", args.data_dir.display()))?;
    let local = LocalNodes::start(args.nodes, args.node_port, &args.data_dir, args.durability).await?;
    let nodes = local.nodes.clone();
    let config = Config {
        node_id: "coordinator-1".to_owned(),
        data_dir: args.data_dir.join("coordinator"),
        shared: Shared::default(),
        listen: args.listen,
        admin_listen: args.admin_listen,
        durability: args.durability,
        plugins: args.plugins,
        signatures: Signatures::default(),
        plugin_limits: witan_plugin::Limits::default(),
        nodes: nodes.clone(),
        security: Security::default(),
        defaults: Defaults::default(),
        // The previous version can go on with the folder.
        names: None,
        small_records: None,
        fences: None,
        tenant_cache: TenantCacheConfig::default(),
        tenants: Tenants::default(),
        healing_begins: BEGINS_AFTER,
        grpc: witan_net::Bounds::default(),
        http: config::http_defaults(),
        metrics_path: Some("/metrics".to_owned()),
        drain: Duration::from_secs(10),
        sampling: Sampling::default(),
    };
    // The nodes have one disk, which is also that of everything else here.
    let moves = MovesConfig { full_disk: 100, ..MovesConfig::default() };
    let live = Live { moves, ..Live::default() };
    let serving = start(config, watch::channel(live).1, Reloads::default(), stop).await?;
    let shown: Vec<String> = nodes.iter().map(|node| format!("{}={}:{}", node.id, node.host, node.port)).collect();
    let (address, admin, nodes) = (serving.address, serving.admin_address, shown.join(","));
    output::line(&format!("ready address={address} admin={admin} nodes={nodes}"))?;
    serving.ended().await?;
    // Nodes stop after the coordinator, whose last requests they still answer.
    local.stop().await?;
    Ok(ExitCode::SUCCESS)
}
