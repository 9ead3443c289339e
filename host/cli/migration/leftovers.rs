//! `witan migration leftovers`: what has moved away from nodes that still have it.

use std::process::ExitCode;

use serde_json::{Value, json};
use witan_wire::v1::{DropLeftoversRequest, Leftover, ListLeftoversRequest};

use super::shown::{moment, number};
use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output, Table};

/// Shown below the help.
pub const EXAMPLES: &str = "\
A node that no longer holds a tenant's records removes them as soon as it answers; a migration is completed after that. Where they may be \
the only copies of what was acknowledged at level one, it hands them over first.

With --drop, nothing waits for a node that will not be back soon, and what only it has is given up. Its old records are garbage then, also \
when it comes back: nobody reads them, and the node removes them before it holds records there again. A node that is lost for good is \
removed with: witan nodes remove NODE --force

Examples:
  witan migration leftovers
  witan migration leftovers --tenant shop --node n3 --output json | jq '.leftovers | length'
  witan migration leftovers --drop --node n3 --yes";

/// Arguments of `migration leftovers`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Those of this tenant only
    #[arg(long)]
    pub tenant: Option<String>,
    /// Those on this node only
    #[arg(long)]
    pub node: Option<String>,
    /// Give them up: nothing waits for the node any longer
    #[arg(long, requires = "node")]
    pub drop: bool,
    /// Confirm that what may only be there is given up
    #[arg(long, requires = "drop")]
    pub yes: bool,
}

/// Shows them, or gives them up.
pub async fn run(global: &Global, arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { tenant, node, drop, yes } = arguments;
    let tenant_id = tenant.unwrap_or_default();
    match node {
        Some(node_id) if drop => give_up(global, node_id, tenant_id, yes).await,
        node => list(global, node.unwrap_or_default(), tenant_id).await,
    }
}

async fn give_up(global: &Global, node_id: String, tenant_id: String, yes: bool) -> anyhow::Result<ExitCode> {
    let whose = if tenant_id.is_empty() { String::new() } else { format!(" of tenant {tenant_id}") };
    let only = if tenant_id.is_empty() { String::new() } else { format!(" --tenant {tenant_id}") };
    anyhow::ensure!(
        yes,
        "this would give up what a write at level one may have left on node {node_id} alone{whose}: it is not handed over, also when the \
         node comes back; to confirm: witan migration leftovers --drop --node {node_id}{only} --yes"
    );
    let request = DropLeftoversRequest { node_id: node_id.clone(), tenant_id: tenant_id.clone(), accept_loss: true };
    let answer = client::coordinator(global).await?.drop_leftovers(within(global, request)).await;
    let dropped = answer.map_err(Problem::of(Deed::Leftovers))?.into_inner().dropped;
    match global.output {
        Output::Json => output::object(&json!({ "node_id": node_id, "tenant_id": tenant_id, "dropped": dropped }))?,
        Output::Text => match dropped {
            0 => output::line(&format!("nothing was left on node {node_id}{whose}"))?,
            _ => output::line(&format!("gave up {} leftovers on node {node_id}{whose}", number(dropped)))?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(global: &Global, node_id: String, tenant_id: String) -> anyhow::Result<ExitCode> {
    let mut client = client::coordinator(global).await?;
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let (node_id, tenant_id) = (node_id.clone(), tenant_id.clone());
        let request = within(global, ListLeftoversRequest { page_size: 1000, page_token, tenant_id, node_id });
        let page = client.list_leftovers(request).await.map_err(Problem::query)?.into_inner();
        all.extend(page.leftovers);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if global.output == Output::Json {
        output::object(&json!({ "leftovers": all.iter().map(json_of).collect::<Vec<_>>() }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TENANT", "NODE", "WAITS FOR", "MAY BE THE ONLY COPIES", "SINCE"]);
    for left in all {
        let waits = if left.node_reachable { "its turn" } else { "the node, which cannot be reached" };
        let only = if left.only_copies { "yes" } else { "no" };
        table.row([left.tenant_id, left.node_id, waits.to_owned(), only.to_owned(), moment(left.created_at)]);
    }
    table.print("nothing is left over; see: witan help migration leftovers")?;
    Ok(ExitCode::SUCCESS)
}

fn json_of(left: &Leftover) -> Value {
    json!({
        "tenant_id": left.tenant_id,
        "node_id": left.node_id,
        "only_copies": left.only_copies,
        "node_reachable": left.node_reachable,
        "created_at": left.created_at,
    })
}
