//! The command line: what each subcommand takes, what it does with the API, and what it prints.
//!
//! Reading order: [`args`] (how values are spelled), [`output`] (text for people, JSON for programs), [`endpoint`] (whether TLS is spoken),
//! [`deed`] (what a command was doing, for hints), [`client`] (the connection, and how errors are shown), [`choice`] (flags that choose
//! among the values of a type), then one module per subcommand. The running coordinator is in [`crate::process`].
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage, 3 no such key (`kv get`), 4 warnings only (`doctor`). With `--output json`, exactly one
//! object goes to standard output, for an error too (`{"error": ...}`); `plugin events` writes one per event.

pub mod args;
pub mod begun;
pub mod bench;
pub mod choice;
pub mod client;
pub mod cluster;
pub mod completions;
pub mod config;
pub mod credential;
pub mod deed;
pub mod dev;
pub mod doctor;
pub mod endpoint;
pub mod health;
pub mod kv;
pub mod locate;
pub mod maintenance;
pub mod migration;
pub mod node;
pub mod nodes;
pub mod output;
pub mod part;
pub mod plugin;
pub mod repair;
pub mod ring;
pub mod serve;
pub mod tenant;
pub mod token;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::settings::LogFormat;
use crate::config::{Inputs, Loaded, Problems};
use crate::process::lines::Lines;
use crate::process::private;
use crate::process::system::raise_open_files;
use crate::process::telemetry::{self, LogFilter, quiet_engine};
use output::Output;

/// The command line of `witan`.
#[derive(Debug, Parser)]
#[command(
    name = "witan",
    version,
    about = "Replicated key-value storage whose decisions are plugins",
    long_about = "Witan is a Dynamo-style replicated key-value store. A coordinator places every key on several storage \
                  nodes, and WebAssembly plugins decide, per tenant, how many of them must answer, how conflicting \
                  writes are resolved, and where a key belongs. This one binary is the servers, the client, and the \
                  load generator.",
    after_help = "Examples:
  witan dev                                 run a coordinator and three storage nodes
  witan tenant create demo                  create a tenant with the defaults
  witan kv put -t demo greeting hello       write a value
  witan kv get -t demo greeting             read it
  witan plugin push set-union.wasm          upload a plugin
  witan bench --duration 10s                measure throughput and latency

`witan help <command>` explains each command, with examples.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 no such key (kv get),
4 warnings only (doctor).",
    propagate_version = true
)]
pub struct Cli {
    /// Options of every subcommand.
    #[command(flatten)]
    pub global: Global,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every subcommand.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// Address of a coordinator: http://HOST:PORT, or https://HOST:PORT for TLS
    #[arg(
        long,
        global = true,
        env = "WITAN_ENDPOINT",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub endpoint: String,
    /// Format of results and errors
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub output: Output,
    /// Deadline of each request, including the connection, such as 500ms or 10s [default: 10s, and 2m for `plugin push` and
    /// `plugin bind`, where a plugin may have to be compiled or probed]
    #[arg(
        long,
        global = true,
        value_parser = args::duration,
        value_name = "TIME",
        help_heading = "Global options"
    )]
    pub timeout: Option<Duration>,
    /// PEM file of the certificate authorities that sign coordinators' certificates, for https:// endpoints [default:
    /// those of the operating system]
    #[arg(long, global = true, env = "WITAN_CA_FILE", value_name = "FILE", help_heading = "Global options", value_parser = args::path())]
    pub ca_file: Option<std::path::PathBuf>,
    /// PEM file of the client certificate for coordinators that require one; needs --client-key-file
    #[arg(
        long,
        global = true,
        env = "WITAN_CLIENT_CERT_FILE",
        value_name = "FILE",
        value_parser = args::path(),
        help_heading = "Global options"
    )]
    pub client_cert_file: Option<std::path::PathBuf>,
    /// PEM file of the client certificate's private key
    #[arg(
        long,
        global = true,
        env = "WITAN_CLIENT_KEY_FILE",
        value_name = "FILE",
        value_parser = args::path(),
        help_heading = "Global options"
    )]
    pub client_key_file: Option<std::path::PathBuf>,
    /// Name that the coordinator's certificate must have [default: the endpoint's host]
    #[arg(long, global = true, env = "WITAN_SERVER_NAME", value_name = "NAME", help_heading = "Global options")]
    pub server_name: Option<String>,
    /// File with the API token for coordinators that require one; the environment variable WITAN_TOKEN may hold the token
    /// instead
    #[arg(long, global = true, env = "WITAN_TOKEN_FILE", value_name = "FILE", help_heading = "Global options", value_parser = args::path())]
    pub token_file: Option<std::path::PathBuf>,
    /// Send the API token over plain text (http://) to other machines, too: everybody on the way can read it and use it
    #[arg(
        long,
        global = true,
        env = "WITAN_ALLOW_PLAINTEXT_TOKEN",
        value_parser = clap::builder::FalseyValueParser::new(),
        action = clap::ArgAction::SetTrue,
        help_heading = "Global options"
    )]
    pub allow_plaintext_token: bool,
    /// Log level for standard error: error, warn, info, debug, trace, or module=level; overrides RUST_LOG
    /// [default: info for servers, warn otherwise]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Global options")]
    pub log_level: Option<String>,
    /// Format of log lines [default: console]
    #[arg(long, global = true, value_enum, env = "WITAN_LOG_FORMAT", help_heading = "Global options")]
    pub log_format: Option<LogFormat>,
}

impl Global {
    /// The deadline of a request.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT)
    }

    /// The deadline of a request for which a plugin may have to be compiled or probed.
    pub fn long_timeout(&self) -> Duration {
        self.timeout.unwrap_or(LONG_TIMEOUT)
    }
}

/// Default deadline of a request: longer than an election of Redis or PostgreSQL, shorter than the patience of a person.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Default deadline of a request for which a plugin may have to be compiled: it waits 30 s for a place, and then takes 20 s of CPU time at
/// most (in class interpreted 60), of which a busy machine gives it a part.
const LONG_TIMEOUT: Duration = Duration::from_secs(120);

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in one process, with embedded stores
    Dev(dev::Args),
    /// Run a coordinator
    ///
    /// A coordinator accepts requests from clients, sends them to the storage nodes that hold the key, and asks the tenant's
    /// plugins for decisions. It prints a line that starts with `ready` once it serves. On SIGTERM it finishes the requests
    /// in flight and stops.
    Serve(serve::Args),
    /// Run a storage node
    ///
    /// A storage node stores replicas of keys in a folder and merges the writes that coordinators send. It prints a line that
    /// starts with `ready` once it serves. On SIGTERM it finishes the requests in flight and stops.
    Node(node::Args),
    /// Check a coordinator's configuration, and show the effective values
    #[command(subcommand, after_help = config::EXAMPLES)]
    Config(config::Command),
    /// Check everything a coordinator depends on, and say what to fix
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Args),
    /// Read, write and delete keys
    #[command(subcommand, after_help = kv::EXAMPLES)]
    Kv(kv::Command),
    /// Create, show, change and delete tenants
    #[command(subcommand, after_help = tenant::EXAMPLES)]
    Tenant(tenant::Command),
    /// List, add, replace, drain and remove storage nodes
    #[command(subcommand, after_help = nodes::EXAMPLES)]
    Nodes(nodes::Command),
    /// Plan, follow and cancel changes that move records
    #[command(subcommand, after_help = migration::EXAMPLES)]
    Migration(migration::Command),
    /// Show where a key is, and what each of its replicas has
    #[command(after_help = locate::EXAMPLES)]
    Locate(locate::Args),
    /// State that the cluster was restored from a copy
    #[command(subcommand, after_help = cluster::EXAMPLES)]
    Cluster(cluster::Command),
    /// Compare the replicas of every record, and repair those that differ
    #[command(after_help = repair::EXAMPLES)]
    Repair(repair::Args),
    /// Upload plugins and bind them to tenants
    #[command(subcommand, after_help = plugin::EXAMPLES)]
    Plugin(plugin::Command),
    /// Create, list and revoke API tokens
    #[command(subcommand, after_help = token::EXAMPLES)]
    Token(token::Command),
    /// Check whether a coordinator or a storage node serves
    #[command(after_help = health::EXAMPLES)]
    Health(health::Args),
    /// Run a load against a cluster and measure it
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Args),
    /// Print a completion script for a shell
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::Args),
}

/// Reads the process's arguments, runs the subcommand, and returns the exit code. One more subcommand is not listed: a coordinator
/// starts `witan compile-plugin` to compile a plugin.
pub fn main() -> ExitCode {
    // Before anything else: a process that compiles a plugin must not do more than that.
    if let Some(ended) = witan_plugin::compile_if_asked() {
        return ended;
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| unparsed(&error));
    let kept = private::keep();
    let raised = raise_open_files();
    let loaded = match load(&cli) {
        Ok(loaded) => loaded,
        Err(problems) => return client::report(&problems.into(), cli.global.output),
    };
    let (log, lines) = match log(&cli, loaded.as_ref()) {
        Ok(log) => log,
        Err(error) => {
            output::note(&format!("error: --log-level: {error}"));
            return ExitCode::from(2);
        }
    };
    if let Err(error) = kept {
        tracing::warn!(%error, "core files cannot be turned off: one that is written when this process crashes holds secrets");
    }
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files cannot be raised; the limit that this process was started with stays");
    }
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("error: start the asynchronous runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let output = cli.global.output;
    let ended = runtime.block_on(run(cli, loaded.map(|loaded| (loaded, log))));
    lines.flush();
    ended.unwrap_or_else(|error| client::report(&error, output))
}

/// Says what is wrong with the command line, and ends the process.
fn unparsed(error: &clap::Error) -> ! {
    if error.kind() == clap::error::ErrorKind::InvalidUtf8 {
        // The error itself names neither argument nor variable.
        let Inputs { garbled, .. } = Inputs::of_process(None, Vec::new());
        for name in garbled {
            output::note(&format!(
                "error: {name} is not UTF-8: set it again, or unset it; `printenv {name} | xxd` shows its bytes"
            ));
        }
    }
    error.exit()
}

/// Reads the configuration of subcommands that have one. This comes before logging starts, since it configures logging.
fn load(cli: &Cli) -> Result<Option<Loaded>, Problems> {
    match &cli.command {
        Command::Serve(args) => args.load(&cli.global).map(Some),
        _ => Ok(None),
    }
}

/// Runs a parsed command line.
pub async fn run(cli: Cli, loaded: Option<(Loaded, Option<LogFilter>)>) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Serve(_) => {
            let (loaded, log) = loaded.context("the configuration was not read")?;
            serve::run(loaded, log, &global).await
        }
        Command::Node(args) => node::run(args).await,
        Command::Doctor(args) => doctor::run(&global, args).await,
        Command::Config(command) => config::run(&global, command),
        Command::Kv(command) => kv::run(&global, command).await,
        Command::Tenant(command) => tenant::run(&global, command).await,
        Command::Nodes(command) => nodes::run(&global, command).await,
        Command::Migration(command) => migration::run(&global, command).await,
        Command::Locate(args) => locate::run(&global, args).await,
        Command::Cluster(command) => cluster::run(&global, command).await,
        Command::Repair(args) => repair::run(&global, args).await,
        Command::Plugin(command) => plugin::run(&global, command).await,
        Command::Token(command) => token::run(&global, command).await,
        Command::Health(args) => health::run(&global, &args).await,
        Command::Bench(args) => bench::run(&global, args).await,
        Command::Completions(args) => completions::run(&args),
    }
}

impl Command {
    /// True for the subcommands that serve until a signal stops them.
    fn is_server(&self) -> bool {
        match self {
            Self::Dev(_) | Self::Serve(_) | Self::Node(_) => true,
            Self::Config(_)
            | Self::Doctor(_)
            | Self::Kv(_)
            | Self::Tenant(_)
            | Self::Nodes(_)
            | Self::Migration(_)
            | Self::Locate(_)
            | Self::Cluster(_)
            | Self::Repair(_)
            | Self::Plugin(_)
            | Self::Token(_)
            | Self::Health(_)
            | Self::Bench(_)
            | Self::Completions(_) => false,
        }
    }
}

/// The asynchronous runtime. A client needs one thread only: starting more would cost every `kv get` a millisecond.
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

/// The log filter of the flag or of RUST_LOG; either overrides the configuration.
fn log_filter(cli: &Cli) -> Option<String> {
    let environment = std::env::var_os(EnvFilter::DEFAULT_ENV).filter(|filter| !filter.is_empty()).and_then(|filter| {
        let filter = filter.into_string();
        if filter.is_err() {
            output::note("note: RUST_LOG is not UTF-8, and is ignored");
        }
        filter.ok()
    });
    cli.global.log_level.clone().or(environment)
}

/// Starts logging. Returns a handle that changes the filter later, unless flag or environment have fixed it, and the lines to flush at
/// the end.
fn log(
    cli: &Cli,
    loaded: Option<&Loaded>,
) -> Result<(Option<LogFilter>, Lines), tracing_subscriber::filter::ParseError> {
    let fixed = log_filter(cli);
    let is_fixed = fixed.is_some();
    let filter = fixed.unwrap_or_else(|| match loaded {
        Some(loaded) => quiet_engine(&loaded.settings.logging.level),
        None if cli.command.is_server() => quiet_engine("info"),
        None => "warn".to_owned(),
    });
    let configured = loaded.map(|loaded| loaded.settings.logging.format);
    let log = telemetry::log(&filter, cli.global.log_format.or(configured).unwrap_or_default())?;
    Ok(((!is_fixed).then_some(log.filter), log.lines))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn an_upload_has_the_time_that_compiling_takes() {
        let global = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().global;
        let pushing = global("witan plugin push a.wasm");
        // Waiting for a place to compile in, and the CPU time of compiling.
        let compile = witan_plugin::Limits::default().interpreted.compile;
        assert!(pushing.long_timeout() > witan_plugin::limit::COMPILER_WAIT + compile);
        assert_eq!(pushing.timeout(), Duration::from_secs(10));
        let hurried = global("witan plugin push a.wasm --timeout 3s");
        assert_eq!((hurried.timeout(), hurried.long_timeout()), (Duration::from_secs(3), Duration::from_secs(3)));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_explains_itself_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no description");
                let examples = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(examples.contains("witan "), "{path} has no example");
                check(sub, &path);
            }
        }
        check(&Cli::command(), "witan");
    }
}
