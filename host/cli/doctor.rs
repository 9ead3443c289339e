//! `witan doctor`: checks everything a coordinator depends on, and says what to fix.
//!
//! It changes nothing, and needs no running coordinator. Reading order: `servers` (PostgreSQL and Redis), `nodes`,
//! `certificates`, `coordinator` (the state of plugins in a running one).

mod certificates;
mod coordinator;
mod nodes;
mod servers;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use super::output::{self, Output, Table};
use super::{Global, args};
use crate::config::{Inputs, Loaded, Problem};

/// Shown below the help.
pub const EXAMPLES: &str = "Exit codes: 0 nothing to fix, 1 something is broken or unsafe, 4 warnings only.

Examples:
  witan doctor --config /etc/witan/config.yaml
  witan doctor --config config.yaml --endpoint http://10.0.0.1:50051
  witan doctor --output json | jq '.findings[] | select(.level == \"error\")'";

/// Exit code for warnings without errors; 2 is wrong usage, 3 a key without a value.
const WARNINGS: u8 = 4;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration to check [default: the file that WITAN_CONFIG names]
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    config: Option<PathBuf>,
}

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Gravity {
    Ok,
    Note,
    Warning,
    Error,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Gravity,
    about: String,
    message: String,
}

/// All findings.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn say(&mut self, level: Gravity, about: &str, message: impl Into<String>) {
        self.0.push(Finding { level, about: about.to_owned(), message: message.into() });
    }

    fn ok(&mut self, about: &str, message: impl Into<String>) {
        self.say(Gravity::Ok, about, message);
    }

    fn note(&mut self, about: &str, message: impl Into<String>) {
        self.say(Gravity::Note, about, message);
    }

    fn warning(&mut self, about: &str, message: impl Into<String>) {
        self.say(Gravity::Warning, about, message);
    }

    fn error(&mut self, about: &str, message: impl Into<String>) {
        self.say(Gravity::Error, about, message);
    }

    fn count(&self, level: Gravity) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }

    fn code(&self) -> ExitCode {
        match (self.count(Gravity::Error), self.count(Gravity::Warning)) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(WARNINGS),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Runs every check.
pub async fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let mut findings = Findings::default();
    let inputs = Inputs::of_process(args.config, Vec::new());
    let read = tokio::task::spawn_blocking(move || Loaded::read(inputs)).await?;
    match read {
        Err(problems) => {
            problems.all.iter().for_each(|problem| findings.error("configuration", problem.to_string()));
            findings.note("configuration", "nothing else is checked until the configuration is valid");
        }
        Ok(loaded) => {
            configuration(&loaded.notes, &mut findings);
            let known = servers::examine(&loaded.settings, &mut findings).await;
            nodes::examine(&loaded.settings, known, &mut findings).await;
            certificates::examine(&loaded, &mut findings);
            coordinator::examine(global, &mut findings).await;
        }
    }
    show(&findings, global.output)?;
    Ok(findings.code())
}

fn configuration(notes: &[Problem], findings: &mut Findings) {
    findings.ok("configuration", "is valid");
    for note in notes {
        let idle = note.what.starts_with("has no effect");
        let level = if idle { Gravity::Note } else { Gravity::Warning };
        findings.say(level, "configuration", note.to_string());
    }
}

fn show(findings: &Findings, how: Output) -> anyhow::Result<()> {
    let (errors, warnings) = (findings.count(Gravity::Error), findings.count(Gravity::Warning));
    if how == Output::Json {
        output::object(&json!({ "findings": findings.0, "errors": errors, "warnings": warnings }))?;
        return Ok(());
    }
    let mut table = Table::new(["LEVEL", "ABOUT", "FINDING"]);
    for finding in &findings.0 {
        let level = match finding.level {
            Gravity::Ok => "ok",
            Gravity::Note => "note",
            Gravity::Warning => "warning",
            Gravity::Error => "error",
        };
        table.row([level.to_owned(), finding.about.clone(), finding.message.clone()]);
    }
    table.print("no findings")?;
    Ok(())
}
