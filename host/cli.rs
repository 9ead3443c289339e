//! The command line: what each subcommand takes, what it does with the API, and what it prints.
//!
//! Reading order: [`args`] (how values are spelt), [`output`] (text for people, JSON for programs), [`client`] (the
//! connection, and what an error says), then one module per subcommand. What a running coordinator is made of is in
//! [`crate::process`].
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such key (`kv get`), 4 warnings only (`doctor`). With `--output json`, exactly one object goes to
//! standard output, `{"error": ...}` included; `plugin events` writes one per event.

pub mod args;
pub mod bench;
pub mod choice;
pub mod client;
pub mod completions;
pub mod config;
pub mod credential;
pub mod dev;
pub mod doctor;
pub mod health;
pub mod kv;
pub mod node;
pub mod nodes;
pub mod output;
pub mod plugin;
pub mod repair;
pub mod serve;
pub mod tenant;
pub mod token;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::settings::LogFormat;
use crate::config::{Loaded, Problems};
use crate::process::telemetry::{self, LogFilter, quiet_engine};
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

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such key (kv get),
4 warnings only (doctor).",
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
    /// A file with the token to show to coordinators that ask for one; WITAN_TOKEN in the environment may hold it instead
    #[arg(long, global = true, env = "WITAN_TOKEN_FILE", value_name = "FILE", help_heading = "Global options")]
    pub token_file: Option<std::path::PathBuf>,
    /// What is logged to standard error, as in RUST_LOG (which this flag overrides): error, warn, info, debug, trace, or
    /// module=level [default: info for servers, warn otherwise]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Global options")]
    pub log_level: Option<String>,
    /// How log lines look [default: console]
    #[arg(long, global = true, value_enum, env = "WITAN_LOG_FORMAT", help_heading = "Global options")]
    pub log_format: Option<LogFormat>,
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
    /// Check a coordinator's configuration, and show what holds
    #[command(subcommand, after_help = config::EXAMPLES)]
    Config(config::Command),
    /// Examine everything that a coordinator stands on, and say what to do
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Args),
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
    /// Make API tokens, list them, and take them back
    #[command(subcommand, after_help = token::EXAMPLES)]
    Token(token::Command),
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
    let loaded = match load(&cli) {
        Ok(loaded) => loaded,
        Err(problems) => return client::report(&problems.into(), cli.global.output),
    };
    let log = match log(&cli, loaded.as_ref()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("error: --log-level: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the asynchronous runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let output = cli.global.output;
    match runtime.block_on(run(cli, loaded.map(|loaded| (loaded, log)))) {
        Ok(code) => code,
        Err(error) => client::report(&error, output),
    }
}

/// Reads the configuration of what has one: before anything is logged, for it says how.
fn load(cli: &Cli) -> Result<Option<Loaded>, Problems> {
    match &cli.command {
        Command::Serve(args) => args.load(&cli.global).map(Some),
        _ => Ok(None),
    }
}

/// Does what a parsed command line says.
pub async fn run(cli: Cli, loaded: Option<(Loaded, Option<LogFilter>)>) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(_) => {
            let (loaded, log) = loaded.context("the configuration was not read")?;
            serve::run(loaded, log).await
        }
        Command::Node(args) => node::run(args).await,
        Command::Doctor(args) => doctor::run(&global, args).await,
        Command::Config(command) => config::run(&global, command),
        Command::Kv(command) => kv::run(&global, command).await,
        Command::Tenant(command) => tenant::run(&global, command).await,
        Command::Nodes(command) => nodes::run(&global, command).await,
        Command::Repair(args) => repair::run(&global, args).await,
        Command::Plugin(command) => plugin::run(&global, command).await,
        Command::Token(command) => token::run(&global, command).await,
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
            Self::Config(_)
            | Self::Doctor(_)
            | Self::Kv(_)
            | Self::Tenant(_)
            | Self::Nodes(_)
            | Self::Repair(_)
            | Self::Plugin(_)
            | Self::Token(_)
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

/// What the flag, or RUST_LOG, says about what is logged: each has more to say than a configuration.
fn log_filter(cli: &Cli) -> Option<String> {
    let environment = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|filter| !filter.is_empty());
    cli.global.log_level.clone().or(environment)
}

/// Starts logging. Returns what changes it, where the configuration decides.
fn log(cli: &Cli, loaded: Option<&Loaded>) -> Result<Option<LogFilter>, tracing_subscriber::filter::ParseError> {
    let said = log_filter(cli);
    let decided = said.is_some();
    let filter = said.unwrap_or_else(|| match loaded {
        Some(loaded) => quiet_engine(&loaded.settings.logging.level),
        None if cli.command.is_server() => quiet_engine("info"),
        None => "warn".to_owned(),
    });
    let configured = loaded.map(|loaded| loaded.settings.logging.format);
    let log = telemetry::log(&filter, cli.global.log_format.or(configured).unwrap_or_default())?;
    Ok((!decided).then_some(log))
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
