//! `witan plugin try`: how a plugin would answer, before it is bound.

use std::process::ExitCode;

use serde_json::{Value, json};
use witan_kernel::hook::Hook;
use witan_wire::v1::{PluginInfo, TriedCase, TryPluginRequest, TryPluginResponse};

use super::{configuration, short};
use crate::cli::Global;
use crate::cli::args::Source;
use crate::cli::choice::{self, spelling};
use crate::cli::client::{self, Problem, within_long};
use crate::cli::output::{self, Output, Table, grouped};

pub(super) const EXAMPLES: &str = "\
A conflict resolver is asked about the keys that have siblings now, a consistency policy about the questions that the policy in force \
was asked last or, if there are none, about a read and a write of keys that there are, and a routing hook about keys that there are. \
Its answers are compared with those of what is in force, and dropped: nothing is bound, and no request notices. Cases in which they \
differ may hold values, and are shown to those who may read the tenant's keys.

Examples:
  witan plugin try set-union@0.2.0 --tenant carts --hook conflict-resolver
  witan plugin try adaptive-latency --tenant carts --hook consistency-policy --configuration 'slow-us = 20000'
  witan plugin try hash-tag --tenant carts --hook routing-hook --sample 1000 --output json";

/// Arguments of `plugin try`.
#[derive(Debug, clap::Args)]
pub struct Try {
    /// A digest, name@version, name, or operator/NAME
    pub plugin: String,
    /// The tenant
    #[arg(short, long)]
    pub tenant: String,
    /// The hook
    #[arg(long, value_parser = choice::hook())]
    pub hook: Hook,
    /// Most questions, 1 to 1000 [default: 100]
    #[arg(long, value_name = "N")]
    pub sample: Option<u32>,
    /// Configuration for the plugin: text, @FILE, or - for standard input
    #[arg(long, value_name = "TEXT", value_parser = Source::parse)]
    pub configuration: Option<Source>,
}

pub(super) async fn run(global: &Global, args: Try) -> anyhow::Result<ExitCode> {
    let request = TryPluginRequest {
        tenant_id: args.tenant,
        hook: spelling(Some(args.hook)),
        plugin: args.plugin,
        configuration: configuration(args.configuration).await?,
        sample: args.sample,
    };
    let answer = client::plugins(global).await?.try_plugin(within_long(global, request)).await;
    let answer = answer.map_err(Problem::query)?.into_inner();
    match global.output {
        Output::Json => output::object(&shown(&answer))?,
        Output::Text => text(&answer)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(answer: &TryPluginResponse) -> anyhow::Result<()> {
    summary(answer).iter().try_for_each(|line| output::line(line))?;
    if answer.cases.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["KEY", "ASKED", "IN FORCE", "TRIED"]);
    for TriedCase { key, question, in_force, tried } in &answer.cases {
        table.row([output::shown(key), question.clone(), in_force.clone(), tried.clone()]);
    }
    table.print("")?;
    Ok(())
}

fn summary(answer: &TryPluginResponse) -> Vec<String> {
    let TryPluginResponse { asked, equal, differing, faulted, refused, p50_us, p99_us, .. } = answer;
    let plugin = answer.plugin.as_ref().map(plugin_of).unwrap_or_default();
    let in_force = if answer.in_force.is_empty() { "the native rule" } else { &answer.in_force };
    let mut lines = vec![format!("{plugin}, compared with {in_force}: asked {asked} questions ({})", source(answer))];
    if *asked > 0 {
        lines.push(format!(
            "  {equal} equal, {differing} differing, {faulted} faulted, {refused} declined, p50 {p50_us} us, p99 {p99_us} us"
        ));
    }
    if answer.moving > 0 {
        lines.push(format!("  {} keys would get another partition", grouped(u64::from(answer.moving))));
    }
    if answer.unread > 0 {
        lines.push(format!("  {} keys could not be read: {}", grouped(answer.unread), answer.unread_reason));
    }
    if !answer.complete {
        lines.push(
            "  stopped before the sample was full: its time was up, or 100,000 keys had been looked at".to_owned(),
        );
    }
    lines
}

fn source(answer: &TryPluginResponse) -> String {
    let keys = grouped(answer.keys);
    match answer.source.as_str() {
        "recent" => "that the policy in force was asked last".to_owned(),
        "conflicts" => format!("conflicts among {keys} keys"),
        _ => format!("about {keys} keys"),
    }
}

fn plugin_of(plugin: &PluginInfo) -> String {
    format!("{}@{} ({})", plugin.name, plugin.version, short(&plugin.digest))
}

fn shown(answer: &TryPluginResponse) -> Value {
    let plugin = answer.plugin.clone().unwrap_or_default();
    json!({
        "plugin": { "name": plugin.name, "version": plugin.version, "digest": plugin.digest },
        "in_force": answer.in_force,
        "source": answer.source,
        "asked": answer.asked,
        "equal": answer.equal,
        "differing": answer.differing,
        "faulted": answer.faulted,
        "refused": answer.refused,
        "moving": answer.moving,
        "p50_us": answer.p50_us,
        "p99_us": answer.p99_us,
        "keys": answer.keys,
        "unread": answer.unread,
        "unread_reason": answer.unread_reason,
        "complete": answer.complete,
        "cases": answer.cases.iter().map(|case| json!({
            "key": output::value_fields(&case.key)["value"],
            "key_encoding": output::value_fields(&case.key)["value_encoding"],
            "question": case.question,
            "in_force": case.in_force,
            "tried": case.tried,
        })).collect::<Vec<_>>(),
    })
}
