//! `witan plugin grant`: classes of limits for tenants.

use std::process::ExitCode;

use serde_json::json;
use witan_plugin::Class;
use witan_wire::v1::GrantPluginClassRequest;

use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output};

pub(super) const EXAMPLES: &str = "\
A plugin with an interpreter or a language's runtime in it (Python, JavaScript, Go) needs class interpreted: `witan plugin check` and \
`witan plugin show` say so of a plugin, and why. Every tenant has class standard. With --revoke, what is bound goes on answering, and \
nothing of that class is uploaded or bound any longer. `witan plugin list` shows the grants.

Examples:
  witan plugin grant --tenant carts interpreted
  witan plugin grant --tenant carts interpreted --revoke";

/// Arguments of `plugin grant`.
#[derive(Debug, clap::Args)]
pub struct Grant {
    /// The class
    #[arg(value_parser = [Class::Interpreted.as_str()])]
    pub class: String,
    /// The tenant
    #[arg(short, long)]
    pub tenant: String,
    /// Take it from the tenant
    #[arg(long)]
    pub revoke: bool,
}

pub(super) async fn run(global: &Global, args: Grant) -> anyhow::Result<ExitCode> {
    let Grant { class, tenant, revoke } = args;
    let request = GrantPluginClassRequest { tenant_id: tenant.clone(), class: class.clone(), granted: !revoke };
    let answer = client::plugins(global).await?.grant_plugin_class(within(global, request)).await;
    answer.map_err(Problem::of(Deed::PluginClass))?;
    let outcome = if revoke { "revoked" } else { "granted" };
    match global.output {
        Output::Json => output::object(&json!({ "tenant_id": tenant, "class": class, "outcome": outcome }))?,
        Output::Text => output::line(&format!("{outcome} class {class}: tenant {tenant}"))?,
    }
    Ok(ExitCode::SUCCESS)
}
