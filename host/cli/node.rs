//! `witan node`: a storage node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use witan_kernel::durability::Durability;
use witan_kernel::name::NodeId;
use witan_net::{Bounds, Fields, Incoming, ListenerTls, Protocol, ServerSide, SharedSecret};
use witan_node::node::{NodeConfig, ROW_CACHE};
use witan_node::server::Guard;

use super::{args, choice, output};
use crate::process::{node, private, signal};

/// Flags of `witan node`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  witan node --id node-1 --data-dir /var/lib/witan/node-1\n  \
    witan node --id node-2 --data-dir ./n2 --listen 127.0.0.1:50053 --durability os\n  \
    witan node --id node-3 --data-dir /var/lib/witan/node-3 --listen 0.0.0.0:50052 --tls-cert-file node-3.pem \\\n    \
    --tls-key-file node-3.key --tls-client-ca-file coordinators-ca.pem\n\n\
    A node should serve coordinators only: beyond loopback it requires a client certificate (--tls-client-ca-file) or, over\n\
    TLS, a shared secret (--shared-secret-file).")]
pub struct Args {
    /// The node's id, as the coordinators know it.
    #[arg(long)]
    id: NodeId,
    /// Folder of the store; created if it does not exist.
    #[arg(long, value_parser = args::path())]
    data_dir: PathBuf,
    /// Address for coordinators; port 0 takes a free one, which the `ready` line shows.
    #[arg(long, default_value = "127.0.0.1:50052")]
    listen: SocketAddr,
    /// What an acknowledged write survives.
    #[arg(long, value_parser = choice::durability(), default_value_t = Durability::Sync)]
    durability: Durability,
    /// Threads that execute requests; 0: half the cores.
    #[arg(long, default_value_t = 0)]
    shards: usize,
    /// Size of the row cache, in MiB.
    #[arg(long, default_value_t = ROW_CACHE >> 20, value_parser = mebibytes)]
    row_cache_mib: usize,
    /// Threads for network I/O; 0: a quarter of the cores.
    #[arg(long, default_value_t = 0)]
    io_threads: usize,
    /// Longest shutdown, in seconds.
    #[arg(long, default_value_t = 10)]
    shutdown_seconds: u64,
    /// PEM file of the node's certificate chain; enables TLS. It is read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key_file", value_parser = args::path())]
    tls_cert_file: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file", value_parser = args::path())]
    tls_key_file: Option<PathBuf>,
    /// PEM file of the authority that signs coordinators' certificates and no others; only clients with such a certificate
    /// are served.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file", value_parser = args::path())]
    tls_client_ca_file: Option<PathBuf>,
    /// File with the secret that coordinators send (their security.nodes.shared_secret_file). Up to four lines, each an
    /// accepted secret. It is read again when it changes.
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    shared_secret_file: Option<PathBuf>,
    /// Serve every client that reaches the node, beyond loopback too: it may read and change every record of every tenant.
    #[arg(long)]
    allow_anonymous: bool,
    /// Most connections at a time; further ones are closed at once.
    #[arg(long, default_value_t = 1000, value_name = "NUMBER")]
    max_connections: usize,
}

impl Args {
    /// Threads for network I/O. They decode and encode batches and leave the work to the shards, so few suffice: each further
    /// thread only adds wake-ups.
    pub(super) fn io_threads(&self) -> usize {
        match self.io_threads {
            0 => (std::thread::available_parallelism().map_or(1, usize::from) / 4).max(1),
            threads => threads,
        }
    }

    fn tls(&self) -> Option<ListenerTls> {
        Some(ListenerTls {
            cert_file: self.tls_cert_file.clone()?,
            key_file: self.tls_key_file.clone()?,
            client_ca_file: self.tls_client_ca_file.clone(),
        })
    }

    /// Refuses flags with which clients other than coordinators would be served, or the secret could be read in transit.
    fn is_safe(&self) -> Result<(), String> {
        let listen = self.listen;
        if listen.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        match (&self.shared_secret_file, &self.tls_cert_file) {
            (Some(file), None) => Err(format!(
                "--shared-secret-file {} with --listen {listen}: without TLS the secret could be read in transit; add \
                 --tls-cert-file and --tls-key-file, or listen on loopback",
                file.display()
            )),
            (None, _) if self.tls_client_ca_file.is_none() && !self.allow_anonymous => Err(format!(
                "--listen {listen}: any client that reaches this node could read and change every record of every tenant; restrict it to \
                 coordinators with --tls-client-ca-file, or with --shared-secret-file (and --tls-cert-file), or listen \
                 on loopback, or pass --allow-anonymous"
            )),
            _ => Ok(()),
        }
    }
}

/// Reads a number of MiB whose bytes this machine can count.
fn mebibytes(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "is not a whole number of MiB".to_owned())?;
    match number.checked_mul(1 << 20) {
        Some(_) => Ok(number),
        None => Err(format!("is more than this machine can address; use at most {}", usize::MAX >> 20)),
    }
}

/// Runs a node until SIGINT or SIGTERM.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.is_safe().map_err(anyhow::Error::msg)?;
    let stop = signal::stop_on_signal()?;
    signal::outlive_hangup(
        "certificates and secrets are read again by themselves when their files change; flags need a restart",
    )?;
    private::folder(&args.data_dir).with_context(|| format!("create {}", args.data_dir.display()))?;
    let open_tls = |tls: ListenerTls| ServerSide::open(&tls, Fields::NODE_FLAGS, Protocol::Grpc);
    let tls = args.tls().map(open_tls).transpose()?;
    let open_secret = |path: &PathBuf| SharedSecret::open(path, "--shared-secret-file");
    let secret = args.shared_secret_file.as_ref().map(open_secret).transpose()?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("listen on {}; another process may have the port: choose another one with --listen", args.listen)
    })?;
    let address = listener.local_addr()?;
    let mut config = NodeConfig::new(args.id, args.data_dir);
    config.durability = args.durability;
    config.shards = args.shards;
    config.row_cache = args.row_cache_mib << 20;
    config.limits.drain = Duration::from_secs(args.shutdown_seconds);
    config.guard = secret.map_or(Guard::Connected, Guard::Secret);
    let node = node::open(config).await?;
    let incoming = Incoming::new(listener, tls, Protocol::Grpc, Bounds::of(args.max_connections));
    output::line(&format!("ready node={} address={address} store={}", node.id(), node.store_id()))?;
    node::serve(node, incoming, stop).await?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn is_safe(flags: &str) -> Result<(), String> {
        let line = ["node", "--id", "n", "--data-dir", "d", "--listen"].into_iter().chain(flags.split_whitespace());
        Line::try_parse_from(line).expect("flags").args.is_safe()
    }

    #[test]
    fn a_cache_larger_than_memory_can_be_is_refused() {
        assert_eq!(mebibytes("64"), Ok(64));
        assert!(mebibytes("17592186044416").unwrap_err().contains("at most 17592186044415"));
        assert!(mebibytes("64MiB").is_err());
    }

    #[test]
    fn beyond_loopback_a_node_knows_its_coordinators() {
        for flags in [
            "127.0.0.1:1",
            "[::1]:1",
            "127.0.0.1:1 --shared-secret-file s",
            "0.0.0.0:1 --allow-anonymous",
            "0.0.0.0:1 --tls-cert-file c --tls-key-file k --tls-client-ca-file a",
            "0.0.0.0:1 --tls-cert-file c --tls-key-file k --shared-secret-file s",
        ] {
            assert_eq!(is_safe(flags), Ok(()), "{flags}");
        }
        for flags in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1 --tls-cert-file c --tls-key-file k"] {
            let refused = is_safe(flags).unwrap_err();
            for part in ["--listen", ":1", "--tls-client-ca-file", "--shared-secret-file", "--allow-anonymous"] {
                assert!(refused.contains(part), "{part:?} is not in {refused}");
            }
        }
        for flags in ["0.0.0.0:1 --shared-secret-file s", "0.0.0.0:1 --shared-secret-file s --allow-anonymous"] {
            let refused = is_safe(flags).unwrap_err();
            assert!(refused.contains("--tls-cert-file") && refused.contains("0.0.0.0:1"), "{refused}");
        }
    }
}
