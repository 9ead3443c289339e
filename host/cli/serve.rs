//! `witan serve`: a coordinator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use witan_kernel::durability::Durability;

use super::choice::{self, spelling};
use super::{Global, args};
use crate::config::{Flag, Inputs, Loaded, NotANode, Problems, node};
use crate::process::coordinator;
use crate::process::telemetry::LogFilter;

/// Flags of `witan serve`. Each overrides what the file and the environment say.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  witan serve --config /etc/witan/config.yaml\n  \
    witan serve --data-dir /var/lib/witan --node node-1=10.0.0.1:50052 \
    --node node-2=10.0.0.2:50052 --node node-3=10.0.0.3:50052\n\n\
    The nodes are recorded at the first start; later starts need no --node. `witan config print --documented` explains every \
    key of the file, and the variables that set them.")]
pub struct Args {
    /// The configuration, in YAML. WITAN_CONFIG in the environment does the same.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where this coordinator keeps files of its own; made when it does not exist.
    #[arg(long)]
    data_dir: Option<PathBuf>,
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
    /// This coordinator's id; no two coordinators of a database have the same [default: coordinator-1]
    #[arg(long)]
    node_id: Option<String>,
    /// Where gRPC is served; port 0 takes a free one, which the `ready` line tells [default: 127.0.0.1:50051]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where metrics and health are served over HTTP [default: 127.0.0.1:9090]
    #[arg(long)]
    admin_listen: Option<SocketAddr>,
    /// A storage node, as ID=HOST:PORT. Repeat it for each.
    #[arg(long = "node", value_name = "ID=HOST:PORT", value_parser = node_text)]
    nodes: Vec<String>,
    /// A folder that is watched for plugins.
    #[arg(long)]
    plugins: Option<PathBuf>,
    /// sync: idempotency records are synced before anything is sent. os: they survive the end of the process only
    /// [default: sync]
    #[arg(long, value_parser = choice::durability())]
    durability: Option<Durability>,
    /// Seconds a shutdown may take [default: 30]
    #[arg(long)]
    shutdown_seconds: Option<u64>,
}

fn node_text(text: &str) -> Result<String, NotANode> {
    node(text).map(|_| text.to_owned())
}

impl Args {
    /// The configuration that file, environment and flags make together.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn load(&self, global: &Global) -> Result<Loaded, Problems> {
        Loaded::read(Inputs::of_process(self.config.clone(), self.flags(global)))
    }

    fn flags(&self, global: &Global) -> Vec<Flag> {
        let mut flags = Vec::new();
        let mut say = |name: &'static str, key: &'static str, value: Option<String>| {
            flags.extend(value.map(|value| Flag { name, key, value }));
        };
        let path = |path: &Option<PathBuf>| path.as_deref().map(|path: &Path| path.display().to_string());
        say("--data-dir", "server.data_dir", path(&self.data_dir));
        say("--database-url-file", "database.url_file", path(&self.database_url_file));
        say("--redis-url-file", "redis.url_file", path(&self.redis_url_file));
        say("--redis-sentinel-master", "redis.sentinel_master", self.redis_sentinel_master.clone());
        say("--node-id", "server.node_id", self.node_id.clone());
        say("--listen", "server.host", self.listen.map(|address| address.ip().to_string()));
        say("--listen", "server.port", self.listen.map(|address| address.port().to_string()));
        say("--admin-listen", "metrics.host", self.admin_listen.map(|address| address.ip().to_string()));
        say("--admin-listen", "metrics.port", self.admin_listen.map(|address| address.port().to_string()));
        say("--node", "storage_nodes", (!self.nodes.is_empty()).then(|| self.nodes.join(",")));
        say("--plugins", "plugins.folder", path(&self.plugins));
        say("--durability", "durability", self.durability.map(|chosen| spelling(Some(chosen))));
        say(
            "--shutdown-seconds",
            "server.shutdown_timeout",
            self.shutdown_seconds.map(|seconds| format!("{seconds}s")),
        );
        say("--log-level", "logging.level", global.log_level.clone());
        let format = global.log_format.map(args::spelling);
        say("--log-format", "logging.format", format);
        flags
    }
}

/// Runs a coordinator until SIGINT or SIGTERM.
///
/// `log` changes what is logged, where the configuration decides that.
pub async fn run(loaded: Loaded, log: Option<LogFilter>) -> anyhow::Result<ExitCode> {
    let ready = |address, admin| println!("ready address={address} admin={admin}");
    coordinator::run(loaded, log, ready).await?;
    Ok(ExitCode::SUCCESS)
}
