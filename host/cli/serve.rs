//! `witan serve`: a coordinator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use witan_kernel::limit;
use witan_kernel::name::NodeId;
use witan_kernel::port::{NodeStatus, StorageNode};
use witan_store::idempotency::{RedisConfig, RedisServers};
use witan_store::metadata::PostgresConfig;

use super::compose::{Config, start};
use super::node::DurabilityArg;
use super::signal;
use super::stores::Shared;
use crate::access::config::Security;
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
    /// A file with the address of the PostgreSQL database that holds the metadata of several coordinators, such as
    /// postgres://witan:PASSWORD@db/witan?sslmode=verify-full. WITAN_DATABASE__URL in the environment does the same. Without
    /// either, metadata are in a file under --data-dir.
    #[arg(long, value_name = "FILE")]
    database_url_file: Option<PathBuf>,
    /// A file with the address of the Redis server that holds the idempotency records of several coordinators, such as
    /// rediss://:PASSWORD@redis:6379; several addresses, separated by commas, are those of a Redis Cluster.
    /// WITAN_REDIS__URL in the environment does the same. Without either, they are under --data-dir.
    #[arg(long, value_name = "FILE")]
    redis_url_file: Option<PathBuf>,
    /// The addresses of Redis are those of Sentinels, which know the master by this name.
    #[arg(long, value_name = "NAME")]
    redis_sentinel_master: Option<String>,
    /// This coordinator's id; no two coordinators of a database have the same.
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

/// An address may hold a password: it comes from a file or the environment, never from an argument, which everybody on the
/// machine can read.
fn secret(file: Option<&Path>, variable: &str) -> anyhow::Result<Option<String>> {
    let told = match file {
        Some(file) => Some(std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?),
        None => std::env::var(variable).ok(),
    };
    Ok(told.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
}

fn redis_servers(addresses: &str, sentinel_master: Option<String>) -> RedisServers {
    let addresses: Vec<String> = addresses.split(',').map(|address| address.trim().to_owned()).collect();
    match sentinel_master {
        Some(master) => {
            let tls = addresses.iter().any(|address| address.starts_with("rediss://"));
            RedisServers::Sentinel { sentinels: addresses, master, database: 0, tls }
        }
        None if addresses.len() == 1 => RedisServers::Single(addresses.concat()),
        None => RedisServers::Cluster(addresses),
    }
}

/// Runs a coordinator until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = signal::stop_on_signal()?;
    let postgres = secret(args.database_url_file.as_deref(), "WITAN_DATABASE__URL")?.map(PostgresConfig::new);
    let redis = secret(args.redis_url_file.as_deref(), "WITAN_REDIS__URL")?;
    let redis = redis.map(|addresses| RedisConfig::new(redis_servers(&addresses, args.redis_sentinel_master)));
    let config = Config {
        node_id: args.node_id,
        shared: Shared { postgres, redis },
        data_dir: args.data_dir,
        listen: args.listen,
        admin_listen: args.admin_listen,
        durability: args.durability.into(),
        plugins: args.plugins,
        nodes: args.nodes,
        security: Security::default(),
        defaults: Defaults::default(),
        connections: witan_tls::incoming::CONNECTIONS,
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
