//! `witan serve`: a coordinator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use witan_kernel::durability::Durability;

use super::choice::{self, spelling};
use super::{Global, args, client, output};
use crate::config::{Flag, Inputs, Loaded, NotANode, Problems, node};
use crate::process::coordinator;
use crate::process::stores::IdLost;
use crate::process::telemetry::LogFilter;

/// Flags of `witan serve`. Each overrides the file and the environment.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  witan serve --config /etc/witan/config.yaml\n  \
    witan serve --data-dir /var/lib/witan --node node-1=10.0.0.1:50052 \
    --node node-2=10.0.0.2:50052 --node node-3=10.0.0.3:50052\n\n\
    The nodes are recorded at the first start; later starts need no --node. `witan config print --documented` explains every \
    configuration key, and the environment variable that sets it.")]
pub struct Args {
    /// Configuration file, in YAML; also set by the environment variable WITAN_CONFIG.
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    config: Option<PathBuf>,
    /// Folder for this coordinator's files; created if it does not exist.
    #[arg(long, value_parser = args::path())]
    data_dir: Option<PathBuf>,
    /// File with the address of the PostgreSQL database for metadata shared by several coordinators, such as
    /// postgres://witan:PASSWORD@db/witan?sslmode=verify-full; the environment variable WITAN_DATABASE__URL may hold the
    /// address instead. Without either, metadata is stored in a file under --data-dir.
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    database_url_file: Option<PathBuf>,
    /// File with the address of the Redis server for idempotency records shared by several coordinators, such as
    /// rediss://:PASSWORD@redis:6379; several addresses, separated by commas, are those of a Redis Cluster. The environment
    /// variable WITAN_REDIS__URL may hold the address instead. Without either, they are stored under --data-dir.
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    redis_url_file: Option<PathBuf>,
    /// Name of the master, if the addresses of Redis are those of Sentinels.
    #[arg(long, value_name = "NAME")]
    redis_sentinel_master: Option<String>,
    /// This coordinator's id, unique among the coordinators of a database [default: coordinator-1]
    #[arg(long)]
    node_id: Option<String>,
    /// Address of gRPC; port 0 takes a free one, which the `ready` line shows [default: 127.0.0.1:50051]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address of metrics and health over HTTP [default: 127.0.0.1:9090]
    #[arg(long)]
    admin_listen: Option<SocketAddr>,
    /// A storage node, as ID=HOST:PORT; repeat for each.
    #[arg(long = "node", value_name = "ID=HOST:PORT", value_parser = node_text)]
    nodes: Vec<String>,
    /// Folder to watch for plugins.
    #[arg(long, value_parser = args::path())]
    plugins: Option<PathBuf>,
    /// What acknowledged idempotency records survive [default: sync]
    #[arg(long, value_parser = choice::durability())]
    durability: Option<Durability>,
    /// Longest shutdown, in seconds [default: 30]
    #[arg(long)]
    shutdown_seconds: Option<u64>,
}

fn node_text(text: &str) -> Result<String, NotANode> {
    node(text).map(|_| text.to_owned())
}

impl Args {
    /// The configuration from file, environment and flags.
    ///
    /// # Errors
    /// When it is invalid, with every problem found.
    pub(super) fn load(&self, global: &Global) -> Result<Loaded, Problems> {
        Loaded::read(Inputs::of_process(self.config.clone(), self.flags(global)))
    }

    fn flags(&self, global: &Global) -> Vec<Flag> {
        let mut flags = Vec::new();
        let mut set = |name: &'static str, key: &'static str, value: Option<String>| {
            flags.extend(value.map(|value| Flag { name, key, value }));
        };
        let path = |path: &Option<PathBuf>| path.as_deref().map(|path: &Path| path.display().to_string());
        set("--data-dir", "server.data_dir", path(&self.data_dir));
        set("--database-url-file", "database.url_file", path(&self.database_url_file));
        set("--redis-url-file", "redis.url_file", path(&self.redis_url_file));
        set("--redis-sentinel-master", "redis.sentinel_master", self.redis_sentinel_master.clone());
        set("--node-id", "server.node_id", self.node_id.clone());
        set("--listen", "server.host", self.listen.map(|address| address.ip().to_string()));
        set("--listen", "server.port", self.listen.map(|address| address.port().to_string()));
        set("--admin-listen", "metrics.host", self.admin_listen.map(|address| address.ip().to_string()));
        set("--admin-listen", "metrics.port", self.admin_listen.map(|address| address.port().to_string()));
        set("--node", "storage_nodes", (!self.nodes.is_empty()).then(|| self.nodes.join(",")));
        set("--plugins", "plugins.folder", path(&self.plugins));
        set("--durability", "durability", self.durability.map(|chosen| spelling(Some(chosen))));
        set(
            "--shutdown-seconds",
            "server.shutdown_timeout",
            self.shutdown_seconds.map(|seconds| format!("{seconds}s")),
        );
        set("--log-level", "logging.level", global.log_level.clone());
        let format = global.log_format.map(args::spelling);
        set("--log-format", "logging.format", format);
        flags
    }
}

/// The exit code of a coordinator whose id another process has taken: whoever starts it again should look first.
const ID_LOST: u8 = 3;

/// Runs a coordinator until SIGINT or SIGTERM.
///
/// `log` changes what is logged, where the configuration decides that.
pub async fn run(loaded: Loaded, log: Option<LogFilter>, global: &Global) -> anyhow::Result<ExitCode> {
    let ready = |address, admin| {
        // Nobody waits for this line if standard output is closed.
        let _ = output::line(&format!("ready address={address} admin={admin}"));
    };
    match coordinator::run(loaded, log, ready).await {
        // Returned rather than reported by the caller, which has one code for every failure.
        Err(error) if error.is::<IdLost>() => {
            client::report(&error, global.output);
            Ok(ExitCode::from(ID_LOST))
        }
        ended => ended.map(|()| ExitCode::SUCCESS),
    }
}
