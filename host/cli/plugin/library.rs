//! `witan plugin list`, `show` and `remove`: plugins themselves, and whose they are.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};
use witan_wire::v1::{GetPluginRequest, ListPluginsRequest, ListPluginsResponse, PluginInfo, RemovePluginRequest};

use super::short;
use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output, Table, grouped};

pub(super) const LIST_EXAMPLES: &str = "Examples:
  witan plugin list
  witan plugin list --tenant carts
  witan plugin list --output json | jq -r '.plugins[] | \"\\(.name) \\(.digest)\"'";

pub(super) const SHOW_EXAMPLES: &str = "Examples:
  witan plugin show set-union
  witan plugin show own --tenant carts
  witan plugin show 3f2a9c1e --output json";

pub(super) const REMOVE_EXAMPLES: &str =
    "Refused while a binding refers to it, or a previous binding that a rollback would restore.

Examples:
  witan plugin remove set-union@0.1.0
  witan plugin remove own --tenant carts
  witan plugin remove 3f2a9c1e";

/// A plugin of somebody's.
#[derive(Debug, clap::Args)]
pub struct Named {
    /// A digest, name@version, or name
    pub plugin: String,
    /// The tenant whose plugin it is [default: the operator's]
    #[arg(short, long)]
    pub tenant: Option<String>,
}

pub(super) async fn list(global: &Global, tenant: Option<String>) -> anyhow::Result<ExitCode> {
    let request = within(global, ListPluginsRequest { tenant_id: tenant.unwrap_or_default() });
    let answer = client::plugins(global).await?.list_plugins(request).await;
    let ListPluginsResponse { plugins, grants, grants_unknown } = answer.map_err(Problem::query)?.into_inner();
    if global.output == Output::Json {
        let granted = grants.iter().map(
            |grant| json!({ "tenant_id": grant.tenant_id, "class": grant.class, "granted_at_ms": grant.granted_at_ms }),
        );
        output::object(&json!({
            "plugins": plugins.iter().map(plugin_json).collect::<Vec<_>>(),
            "grants": granted.collect::<Vec<_>>(),
            "grants_unknown": grants_unknown,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TENANT", "PLUGIN", "HOOK", "DIGEST", "BYTES", "CLASS", "STATE"]);
    for plugin in plugins {
        table.row([
            owner(&plugin).to_owned(),
            format!("{}@{}", plugin.name, plugin.version),
            plugin.hook,
            short(&plugin.digest).to_owned(),
            grouped(plugin.size),
            plugin.class,
            plugin.state,
        ]);
    }
    table.print("no plugins; push one: witan plugin push FILE")?;
    for grant in grants {
        output::line(&format!("granted: class {} to tenant {}", grant.class, grant.tenant_id))?;
    }
    if !grants_unknown.is_empty() {
        output::line(&format!("granted: not known: {grants_unknown}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn class(plugin: &PluginInfo) -> String {
    match plugin.class_reason.as_str() {
        "" => plugin.class.clone(),
        reason => format!("{}: it {reason}", plugin.class),
    }
}

fn state(plugin: &PluginInfo) -> String {
    match plugin.reason.as_str() {
        "" => plugin.state.clone(),
        reason => format!("{}: {reason}", plugin.state),
    }
}

fn owner(plugin: &PluginInfo) -> &str {
    if plugin.tenant_id.is_empty() { "(all)" } else { &plugin.tenant_id }
}

pub(super) async fn show(global: &Global, named: Named) -> anyhow::Result<ExitCode> {
    let request = GetPluginRequest { plugin: named.plugin, tenant_id: named.tenant.unwrap_or_default() };
    let answer = client::plugins(global).await?.get_plugin(within(global, request)).await;
    let plugin = answer.map_err(Problem::query)?.into_inner().plugin.context("the coordinator did not describe it")?;
    match global.output {
        Output::Json => output::object(&plugin_json(&plugin))?,
        Output::Text => {
            let signed_by = if plugin.signed_by.is_empty() { "(not signed)" } else { &plugin.signed_by };
            let known = [
                ("plugin", format!("{}@{}", plugin.name, plugin.version)),
                ("hook", plugin.hook.clone()),
                ("deterministic", plugin.deterministic.to_string()),
                ("signed by", signed_by.to_owned()),
                ("class", class(&plugin)),
            ];
            let of_push = [
                ("tenant", owner(&plugin).to_owned()),
                ("digest", plugin.digest.clone()),
                ("bytes", grouped(plugin.size)),
                ("state", state(&plugin)),
            ];
            // What it says of itself is known once it is ready.
            let known = known.iter().filter(|_| !plugin.name.is_empty());
            known.chain(&of_push).try_for_each(|(field, value)| output::line(&format!("{field:<14} {value}")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn remove(global: &Global, named: Named) -> anyhow::Result<ExitCode> {
    let Named { plugin, tenant } = named;
    let tenant_id = tenant.unwrap_or_default();
    let request = within(global, RemovePluginRequest { plugin: plugin.clone(), tenant_id: tenant_id.clone() });
    client::plugins(global).await?.remove_plugin(request).await.map_err(Problem::of(Deed::RemovePlugin))?;
    match global.output {
        Output::Json => output::object(&json!({ "plugin": plugin, "tenant_id": tenant_id, "outcome": "removed" }))?,
        Output::Text => output::line(&format!("removed {plugin}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn plugin_json(plugin: &PluginInfo) -> Value {
    json!({
        "digest": plugin.digest,
        "name": plugin.name,
        "version": plugin.version,
        "hook": plugin.hook,
        "deterministic": plugin.deterministic,
        "size": plugin.size,
        "state": plugin.state,
        "reason": plugin.reason,
        "tenant_id": plugin.tenant_id,
        "signed_by": plugin.signed_by,
        "class": plugin.class,
        "class_reason": plugin.class_reason,
    })
}
