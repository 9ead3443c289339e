//! `witan config`: checks a configuration, and shows it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::output::{self, Output};
use super::{Global, args};
use crate::config::{Inputs, Loaded, Problem, Shown, documented};

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  witan config check /etc/witan/config.yaml
  witan config print --config /etc/witan/config.yaml
  witan config print --documented";

/// Subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a configuration, and report every error
    ///
    /// Environment variables apply as they do for `witan serve`. Exits with 1 if there is an error; notes are not errors.
    #[command(
        after_help = "Examples:\n  witan config check config.yaml\n  witan config check --output json config.yaml"
    )]
    Check {
        /// The file [default: the file that WITAN_CONFIG names]
        #[arg(value_parser = args::path())]
        file: Option<PathBuf>,
    },
    /// Show the effective values, and where each comes from
    ///
    /// Secrets are not shown.
    #[command(after_help = "Examples:\n  witan config print --config config.yaml\n  witan config print --documented")]
    Print {
        /// The file [default: the file that WITAN_CONFIG names]
        #[arg(long, value_name = "FILE", value_parser = args::path())]
        config: Option<PathBuf>,
        /// Explain every key instead, in Markdown
        #[arg(long)]
        documented: bool,
    },
}

/// Runs a subcommand of `config`.
pub fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check { file } => check(file, global.output),
        Command::Print { documented: true, .. } => {
            output::text(documented().trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Print { config, documented: false } => {
            let loaded = Loaded::read(Inputs::of_process(config, Vec::new()))?;
            match global.output {
                Output::Text => output::text(loaded.yaml().trim_end())?,
                Output::Json => output::object(&loaded.json())?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(file: Option<PathBuf>, how: Output) -> anyhow::Result<ExitCode> {
    let read = Loaded::read(Inputs::of_process(file, Vec::new()));
    let shown =
        |problems: &[Problem]| -> Value { problems.iter().map(|problem| json!(Shown::from(problem))).collect() };
    let code = if read.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match (how, &read) {
        (Output::Json, Ok(loaded)) => {
            output::object(&json!({ "valid": true, "errors": [], "notes": shown(&loaded.notes) }))?;
        }
        (Output::Json, Err(problems)) => {
            output::object(&json!({ "valid": false, "errors": shown(&problems.all), "notes": [] }))?;
        }
        (Output::Text, Ok(loaded)) => {
            for note in &loaded.notes {
                output::line(&format!("note: {note}"))?;
            }
            output::line("the configuration is valid")?;
        }
        (Output::Text, Err(problems)) => output::notes(&format!("error: {problems}")),
    }
    Ok(code)
}
