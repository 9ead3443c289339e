//! The command line of `witan-plugin`, which people start as `witan plugin`.
//!
//! Exit codes: 0 success, 1 failure (a case that failed, a component that would be refused), 2 wrong usage.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::output::{self, Output};
use crate::{bench, check, dev, make, new, verify};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "witan-plugin",
    bin_name = "witan plugin",
    version,
    about = "Write plugins for Witan: from an empty folder to a component that can be bound",
    propagate_version = true
)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
    /// Format of results and errors
    #[arg(long, global = true, value_enum, default_value_t)]
    pub output: Output,
}

const NEW_EXAMPLES: &str = "Examples:
  witan plugin new --hook conflict-resolver --language rust text-lines
  witan plugin new --hook consistency-policy --language c fast-reads
  witan plugin new --hook conflict-resolver --language python text-lines";

const BUILD_EXAMPLES: &str =
    "The component is build/NAME.wasm. A tool that is missing is named with the command that installs it.

Examples:
  witan plugin build
  witan plugin build --project text-lines";

const CHECK_EXAMPLES: &str = "Exits with 1 if a coordinator would refuse the component.

Examples:
  witan plugin check
  witan plugin check some.wasm --output json";

const TEST_EXAMPLES: &str = "\
Asks the component about every case under cases/, and probes it as a coordinator does before it binds it: a resolver's laws are \
tried on the values of the cases too. Everything runs on the engine and under the limits of a coordinator. A case is a JSON file; \
docs/plugin-authors.md of Witan describes them.

Examples:
  witan plugin test
  witan plugin test some.wasm --cases my-cases";

const BENCH_EXAMPLES: &str = "\
Asks the component about every case, again and again, in one warm instance, as a coordinator does.

Examples:
  witan plugin bench
  witan plugin bench --seconds 5 --output json";

const DEV_EXAMPLES: &str = "\
Builds the project, uploads the component to a coordinator and binds it, then does it again whenever a file of the project has \
changed, until Ctrl-C. What does not build, or is refused, changes nothing. The coordinator is that of --endpoint or WITAN_ENDPOINT.

Examples:
  witan plugin dev --tenant demo
  witan plugin dev --tenant demo --configuration @settings.conf";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a project, in a folder of its own
    #[command(after_help = NEW_EXAMPLES)]
    New(new::Args),
    /// Compile a project to a component
    #[command(after_help = BUILD_EXAMPLES)]
    Build(make::Args),
    /// Say whether a coordinator accepts a component, and what it takes of which limit
    #[command(after_help = CHECK_EXAMPLES)]
    Check(check::Args),
    /// Try a component on cases, and its laws
    #[command(after_help = TEST_EXAMPLES)]
    Test(verify::Args),
    /// Measure how long a component takes to answer
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(bench::Args),
    /// Build, upload and bind a project whenever it changes
    #[command(after_help = DEV_EXAMPLES)]
    Dev(dev::Args),
}

/// Reads the process's arguments, runs the subcommand, and returns the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // What a plugin logs is shown while it is tried.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,witan::plugin=debug"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            let error = format!("{error:#}");
            match cli.output {
                // Nobody can be notified of a failure to notify.
                Output::Json => _ = output::object(&json!({ "error": error })),
                Output::Text => output::note(&format!("error: {error}")),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::New(args) => new::run(args).map(|()| ExitCode::SUCCESS),
        Command::Build(args) => make::run(args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => check::run(args, cli.output),
        Command::Test(args) => verify::run(args, cli.output),
        Command::Bench(args) => bench::run(args, cli.output),
        Command::Dev(args) => dev::run(args).map(|()| ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_subcommand_explains_itself_with_an_example() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let called = format!("witan plugin {}", command.get_name());
            assert!(command.get_about().is_some() && examples.contains(&called), "{called}");
        }
    }
}
