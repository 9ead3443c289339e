//! `witan plugin logs`: what a binding's plugin has logged.

use std::process::ExitCode;

use serde_json::{Value, json};
use witan_wire::v1::{PluginLogLine, TailPluginLogsRequest};

use super::candidates::Of;
use crate::cli::Global;
use crate::cli::choice::spelling;
use crate::cli::client::{self, Problem, within};
use crate::cli::output::{self, Output};

pub(super) const EXAMPLES: &str = "\
The last lines of the plugin in force, of those before it and of a candidate, at the coordinator that answers: 200 at most. With --follow, \
new ones too, until Ctrl-C. A plugin may log ten lines a second; what it has logged beyond that is dropped and counted.

Examples:
  witan plugin logs conflict-resolver --tenant carts
  witan plugin logs consistency-policy --follow
  witan plugin logs conflict-resolver --tenant carts --output json";

/// Arguments of `plugin logs`.
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    pub of: Of,
    /// Go on with new lines
    #[arg(short, long)]
    pub follow: bool,
}

pub(super) async fn run(global: &Global, Logs { of, follow }: Logs) -> anyhow::Result<ExitCode> {
    let (tenant_id, hook) = (of.tenant.unwrap_or_default(), spelling(Some(of.hook)));
    let request = TailPluginLogsRequest { tenant_id, hook, follow };
    let mut client = client::plugins(global).await?;
    // Who follows does so until it is interrupted.
    let request = if follow { tonic::Request::new(request) } else { within(global, request) };
    let mut lines = client.tail_plugin_logs(request).await.map_err(Problem::query)?.into_inner();
    while let Some(batch) = lines.message().await.map_err(Problem::query)? {
        if batch.missed > 0 {
            output::note(&format!("{} lines were missed: they came faster than they were read", batch.missed));
        }
        for line in &batch.lines {
            match global.output {
                Output::Json => output::record(&shown(line))?,
                Output::Text => output::line(&text(line))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(line: &PluginLogLine) -> String {
    let PluginLogLine { at_ms, severity, plugin, tenant_id, message, dropped } = line;
    let moment = output::moment(at_ms.saturating_mul(1000));
    let tenant = if tenant_id.is_empty() { String::new() } else { format!(" tenant {tenant_id}") };
    let dropped = if *dropped > 0 { format!(" ({dropped} lines before it were dropped)") } else { String::new() };
    format!("{moment}  {severity:<5} {plugin}{tenant}: {message}{dropped}")
}

fn shown(line: &PluginLogLine) -> Value {
    json!({
        "at_ms": line.at_ms,
        "severity": line.severity,
        "plugin": line.plugin,
        "tenant_id": line.tenant_id,
        "message": line.message,
        "dropped": line.dropped,
    })
}
