//! The build's own commands, `cargo xtask <command>`: everything that a person or a machine does with this repository
//! starts here, so that there is one way to do it.

// A program has no outside that could reach too much.
#![allow(unreachable_pub)]

mod ci;
mod demo;
mod deploy;
mod dev;
mod first_week;
mod guests;
mod pages;
mod previous;
mod python;
mod run;
mod server;
mod test;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// The commands of this repository. Whatever one of them lacks, it installs through the usual package managers, and says so.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  cargo xtask demo                       see it work, in a minute, on real data
  cargo xtask dev                        a cluster to try things on, until Ctrl-C
  cargo xtask dev --nodes 5              what follows `dev` is handed to `witan dev`
  cargo xtask test                       every test
  cargo xtask ci                         what has to pass before a change is merged";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole thing: a cluster of processes, real data, conflicts, plugins swapped under load, a node killed
    ///
    /// Starts one coordinator and three storage nodes in a temporary folder on free ports, tells what happens in plain
    /// words and figures, and stops them again. Takes less than a minute once everything is built. Exits with 1, and says
    /// why, when a request failed during the swaps or anything was lost.
    Demo(demo::Arguments),
    /// Run a cluster on this machine, on the default ports, until Ctrl-C
    ///
    /// Builds what is needed and runs `witan dev`: a coordinator (127.0.0.1:50051), its HTTP port (127.0.0.1:9090) and three
    /// storage nodes in one process, with the plugins of this repository at hand. Data stays in ./.witan, so that the next
    /// start finds it.
    Dev(dev::Arguments),
    /// Install what the tests run beside this repository's own programs: PostgreSQL, Redis, strace
    ///
    /// Through apt-get or Homebrew, and only what is missing. `test` and `ci` begin with it; this is for those who run single
    /// tests with cargo itself.
    Setup,
    /// Run every test: the workspace's, the plugins', and the Python client against a fresh cluster
    Test,
    /// Build the plugins to WebAssembly components, into target/plugins
    ///
    /// Takes the active tool chain if it can compile for wasm32-unknown-unknown, else adds that target with rustup, else (on
    /// Debian and Ubuntu) unpacks the distribution's packages into a cache folder of yours.
    Plugins,
    /// Build the program of the previous version, into target/previous, for the tests that run both versions together
    ///
    /// From this repository's history, which is fetched where a clone is too shallow; packages that both versions stand on are
    /// compiled once. Does nothing when it is there. `test` and `ci` do it, too; this is for those who run single tests with cargo
    /// itself. WITAN_PREVIOUS names a program that has been built elsewhere.
    Previous,
    /// Check the pages: links lead somewhere, the commands they show exist
    Pages,
    /// Check what is in deploy/: image, compose file, chart, units, dashboard, alerts, runbooks
    ///
    /// With the programs that will read it: Hadolint, Compose, Helm, Prometheus, systemd. What is missing is installed into
    /// target/deploy, from Python's and Debian's packages. A cluster is started, and every metric that the dashboard and the alerts
    /// name has to be there.
    DeployCheck(deploy::Arguments),
    /// Do what docs/first-week.md tells a new operator, and see that no client's request fails meanwhile
    ///
    /// The page's blocks are the script: certificates, tokens, a tenant, a load of clients, a plugin bound, coordinators replaced
    /// and killed, certificates renewed. On free ports, with a PostgreSQL and a Redis of its own, in a temporary folder; takes about
    /// half a minute once everything is built. Exits with 1 when a command failed, a request did, or a value was lost.
    FirstWeek(first_week::Arguments),
    /// Check everything that has to hold before a change is merged: format, lints, documentation, tests
    Ci,
}

fn main() -> ExitCode {
    match carry_out(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> Result<()> {
    match command {
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Dev(arguments) => dev::dev(&arguments),
        Command::Setup => tools::install(),
        Command::Test => test::test(),
        Command::Plugins => run::guests().map(drop),
        Command::Previous => previous::previous(),
        Command::Pages => pages::check(&run::root(), &Arguments::command(), &run::programs()?.witan),
        Command::DeployCheck(arguments) => deploy::run(&arguments),
        Command::FirstWeek(arguments) => first_week::run(&arguments),
        Command::Ci => ci::ci(&Arguments::command()),
    }
}
