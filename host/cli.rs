//! The command line: what each subcommand takes, what it does with the API, and what it prints.
//!
//! Reading order: [`args`] (how values are spelt), [`output`] (text for people, JSON for programs), [`client`] (the
//! connection, and what an error says), [`compose`] (a coordinator put together), then one module per subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such key (`kv get`). With `--output json`, exactly one object goes to
//! standard output, `{"error": ...}` included; `plugin events` writes one per event.

pub mod args;
pub mod bench;
pub mod client;
pub mod completions;
pub mod compose;
pub mod dev;
pub mod health;
pub mod kv;
pub mod node;
pub mod nodes;
pub mod output;
pub mod platform;
pub mod plugin;
pub mod repair;
pub mod secured;
pub mod serve;
pub mod signal;
pub mod stores;
pub mod tenant;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use output::Output;

/// The command line of `witan`.
#[derive(Debug, Parser)]
#[command(
    name = "witan",
    version,
    about = "Replicated key-value storage whose decisions are plugins",
    long_about = "Witan coordinates replicated key-value storage in the manner of Dynamo. A coordinator places every key on \
                  several storage nodes, and WebAssembly plugins decide, per tenant, how many of them must answer, how \
                  conflicting writes are resolved, and where a key belongs. This one binary is the servers, the client, \
                  and the load generator.",
    after_help = "Examples:
  witan dev                                 run a cluster of three storage nodes here
  witan tenant create demo                  create a tenant with the defaults
  witan kv put -t demo greeting hello       write a value
  witan kv get -t demo greeting             read it
  witan plugin push set-union.wasm          hand a plugin to the cluster
  witan bench --duration 10s                measure

`witan help <command>` explains each command, with examples.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such key (kv get).",
    propagate_version = true
)]
pub struct Cli {
    /// What every subcommand takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every subcommand.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// Address of a coordinator
    #[arg(
        long,
        global = true,
        env = "WITAN_ENDPOINT",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub endpoint: String,
    /// How results and errors are printed
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub output: Output,
    /// How long a request may take, connecting included, such as 500ms or 10s
    #[arg(
        long,
        global = true,
        default_value = "10s",
        value_parser = args::duration,
        value_name = "TIME",
        help_heading = "Global options"
    )]
    pub timeout: std::time::Duration,
    /// PEM file of the authorities that sign coordinators' certificates, for https:// endpoints [default: those of the
    /// operating system]
    #[arg(long, global = true, env = "WITAN_CA_FILE", value_name = "FILE", help_heading = "Global options")]
    pub ca_file: Option<std::path::PathBuf>,
    /// PEM file of the certificate to show to coordinators that ask for one; with --client-key-file
    #[arg(long, global = true, env = "WITAN_CLIENT_CERT_FILE", value_name = "FILE", help_heading = "Global options")]
    pub client_cert_file: Option<std::path::PathBuf>,
    /// PEM file of that certificate's private key
    #[arg(long, global = true, env = "WITAN_CLIENT_KEY_FILE", value_name = "FILE", help_heading = "Global options")]
    pub client_key_file: Option<std::path::PathBuf>,
    /// The name that a coordinator's certificate must have [default: the endpoint's host]
    #[arg(long, global = true, env = "WITAN_SERVER_NAME", value_name = "NAME", help_heading = "Global options")]
    pub server_name: Option<String>,
    /// What is logged to standard error, as in RUST_LOG (which this flag overrides): error, warn, info, debug, trace, or
    /// module=level [default: info for servers, warn otherwise]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Global options")]
    pub log_level: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t, env = "WITAN_LOG_FORMAT", help_heading = "Global options")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Console,
    /// One JSON object per line
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in one process, with embedded back ends
    Dev(dev::Args),
    /// Run a coordinator
    ///
    /// A coordinator takes the requests of clients, sends them to the storage nodes that hold the key, and lets the tenant's
    /// plugins decide. Prints a line that starts with `ready` once it serves; SIGTERM lets what is in flight end.
    Serve(serve::Args),
    /// Run a storage node
    ///
    /// A storage node keeps replicas of keys in a folder, and merges what coordinators send it. Prints a line that starts with
    /// `ready` once it serves; SIGTERM lets what is in flight end.
    Node(node::Args),
    /// Read, write and delete keys
    #[command(subcommand, after_help = kv::EXAMPLES)]
    Kv(kv::Command),
    /// Create tenants and change what they have chosen
    #[command(subcommand, after_help = tenant::EXAMPLES)]
    Tenant(tenant::Command),
    /// List, add and remove storage nodes
    #[command(subcommand, after_help = nodes::EXAMPLES)]
    Nodes(nodes::Command),
    /// Compare the replicas of every record, and mend what differs
    #[command(after_help = repair::EXAMPLES)]
    Repair(repair::Args),
    /// Hand plugins to the cluster and bind them to tenants
    #[command(subcommand, after_help = plugin::EXAMPLES)]
    Plugin(plugin::Command),
    /// Ask whether a coordinator or a storage node serves
    #[command(after_help = health::EXAMPLES)]
    Health(health::Args),
    /// Put a load on a cluster and measure it
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Args),
    /// Print a completion script for a shell
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::Args),
}

/// Reads the process's arguments, does what they say, and answers with its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = log(&cli) {
        eprintln!("error: --log-level: {error}");
        return ExitCode::from(2);
    }
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the asynchronous runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let output = cli.global.output;
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => client::report(&error, output),
    }
}

/// Does what a parsed command line says.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Node(args) => node::run(args).await,
        Command::Kv(command) => kv::run(&global, command).await,
        Command::Tenant(command) => tenant::run(&global, command).await,
        Command::Nodes(command) => nodes::run(&global, command).await,
        Command::Repair(args) => repair::run(&global, args).await,
        Command::Plugin(command) => plugin::run(&global, command).await,
        Command::Health(args) => health::run(&global, &args).await,
        Command::Bench(args) => bench::run(&global, args).await,
        Command::Completions(args) => completions::run(&args),
    }
}

impl Command {
    /// True for the subcommands that serve until they are told to stop.
    fn is_server(&self) -> bool {
        match self {
            Self::Dev(_) | Self::Serve(_) | Self::Node(_) => true,
            Self::Kv(_)
            | Self::Tenant(_)
            | Self::Nodes(_)
            | Self::Repair(_)
            | Self::Plugin(_)
            | Self::Health(_)
            | Self::Bench(_)
            | Self::Completions(_) => false,
        }
    }
}

/// A client needs one thread only: starting more costs a millisecond that every `kv get` would pay.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match command.is_server() {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    if let Command::Node(node) = command {
        builder.worker_threads(node.io_threads());
    }
    builder.enable_all().build()
}

fn log(cli: &Cli) -> Result<(), tracing_subscriber::filter::ParseError> {
    // The engine below a node tells about every table it writes.
    let fallback = if cli.command.is_server() { "info,fjall=warn,lsm_tree=warn" } else { "warn" };
    let environment = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|filter| !filter.is_empty());
    let filter = cli.global.log_level.clone().or(environment).unwrap_or_else(|| fallback.to_owned());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match cli.global.log_format {
        LogFormat::Console => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_explains_itself_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} says nothing about itself");
                let examples = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(examples.contains("witan "), "{path} has no example");
                check(sub, &path);
            }
        }
        check(&Cli::command(), "witan");
    }
}
