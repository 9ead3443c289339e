//! `check`: whether a coordinator accepts a component, in words.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use witan_plugin::class::Use;
use witan_plugin::trial::{self, Trial};
use witan_plugin::{Class, Inspection, Limits};

use crate::class::{self, Classified};
use crate::output::{self, Output, grouped};
use crate::subject::{self, Subject};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to check.
    #[command(flatten)]
    pub subject: subject::Named,
    /// Configuration of the plugin, with which it is probed: text, or @FILE
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub configuration: String,
}

/// What was found out about a component.
struct Checked {
    inspection: Inspection,
    classified: Classified,
    /// The compiled component, or why a coordinator refuses it.
    trial: Result<Trial, String>,
}

/// Checks a component and prints what was found.
pub fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let subject = Subject::read(&args.subject)?;
    let checked = check(&subject, &subject::configuration(&args.configuration)?)?;
    match output {
        Output::Json => output::object(&shown(&subject, &checked))?,
        Output::Text => print(&subject, &checked)?,
    }
    Ok(if checked.trial.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(subject: &Subject, configuration: &[u8]) -> Result<Checked> {
    let inspection = trial::inspect(&subject.bytes).with_context(|| subject.path.display().to_string())?;
    let classified = class::classify(&inspection);
    let trial = prepare(subject, configuration).map_err(|error| error.to_string());
    Ok(Checked { inspection, classified, trial })
}

/// Does what a coordinator does with an upload, and then with a binding.
fn prepare(subject: &Subject, configuration: &[u8]) -> Result<Trial> {
    let it = |why: anyhow::Error| anyhow::anyhow!("it {}", why.root_cause());
    // The rules before the compiler: what breaks one of them is not compiled, which could take long.
    trial::validate(&subject.bytes, &Limits::default()).map_err(|why| it(why.into()))?;
    let trial = subject.prepare().map_err(it)?;
    trial.configured(configuration).map_err(|why| it(why.into()))?;
    trial.probe(configuration, &[])?;
    Ok(trial)
}

fn print(subject: &Subject, checked: &Checked) -> Result<()> {
    let Checked { inspection, classified, trial } = checked;
    output::line(&format!("{}: {} bytes", subject.path.display(), grouped(inspection.bytes as u64)))?;
    let world = inspection.hook.map_or("none of this version".to_owned(), |hook| hook.to_string());
    output::line(&format!("  world     {world}; it exports {}", list(&inspection.exports)))?;
    output::line(&format!("  imports   {}", list(&inspection.imports)))?;
    output::line(&format!("  class     {}", classified.words()))?;
    for each in &classified.uses {
        output::line(&format!("            {}", class::line(each)))?;
    }
    match trial {
        Ok(trial) => {
            let machine_code = grouped(trial.image_bytes() as u64);
            let seconds = trial.compile_time().as_secs_f64();
            output::line(&format!("  compiles  in {seconds:.1} s to {machine_code} bytes of machine code"))?;
            let same = if trial.is_deterministic() { "deterministic" } else { "not deterministic" };
            output::line(&format!("  calls itself {}@{}, {same}", trial.name(), trial.version()))?;
            output::line("accepted: a coordinator takes it, and its probe finds nothing wrong")?;
        }
        Err(why) => output::line(&format!("refused: {why}"))?,
    }
    Ok(())
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn shown(subject: &Subject, checked: &Checked) -> Value {
    let Checked { inspection, classified, trial } = checked;
    let shown = |Use { what, has, most }: &Use| json!({ "what": what.label(), "has": has, "most": most });
    json!({
        "file": subject.path,
        "accepted": trial.is_ok(),
        "reason": trial.as_ref().err(),
        "world": inspection.hook.map(|hook| hook.as_str()),
        "imports": inspection.imports,
        "exports": inspection.exports,
        "class": classified.class.map(Class::as_str),
        "limits": classified.uses.iter().map(shown).collect::<Vec<_>>(),
        "name": trial.as_ref().ok().map(Trial::name),
        "version": trial.as_ref().ok().map(Trial::version),
        "deterministic": trial.as_ref().ok().map(Trial::is_deterministic),
        "digest": trial.as_ref().ok().map(|trial| trial.digest().to_string()),
        "machine_code_bytes": trial.as_ref().ok().map(Trial::image_bytes),
    })
}
