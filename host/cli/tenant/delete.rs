//! `witan tenant delete`: the end of a tenant and of all it has stored.

use std::process::ExitCode;

use serde_json::json;
use witan_wire::v1::DeleteTenantRequest;

use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::output::{self, Output, grouped};

/// Shown below the help.
pub const EXAMPLES: &str = "The tenant is gone at once: requests are answered with TENANT_NOT_FOUND, and its id is never given to another. Then its \
records are removed from every storage node. Nodes that could not be reached, or did not come to an end in time, are named: run \
it again to remove the rest, which nobody can read. Nothing can be brought back.

Examples:
  witan tenant delete demo --yes
  witan tenant delete demo --yes --version 7
  witan tenant delete large --yes --timeout 10m";

/// Arguments of `tenant delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// The tenant
    pub tenant: String,
    /// Delete it only if this version still stands
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(1..))]
    pub version: Option<i64>,
    /// Yes, everything that it has stored
    #[arg(long)]
    pub yes: bool,
}

/// Deletes.
pub async fn run(global: &Global, delete: Delete) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        delete.yes,
        "everything that tenant {0} has stored would be gone for good; if that is what you want: witan tenant delete {0} --yes",
        delete.tenant
    );
    let request = DeleteTenantRequest {
        tenant_id: delete.tenant.clone(),
        version: delete.version.unwrap_or(0),
        confirm: delete.tenant,
    };
    let answer = client::coordinator(global).await?.delete_tenant(within(global, request)).await;
    let deleted = answer.map_err(Problem::change)?.into_inner();
    let complete = deleted.incomplete_nodes.is_empty();
    match global.output {
        Output::Json => output::object(&json!({
            "tenant_id": deleted.tenant_id,
            "outcome": "deleted",
            "deleted_at": deleted.deleted_at,
            "records_removed": deleted.records_removed,
            "complete": complete,
            "incomplete_nodes": crate::cli::repair::problems(&deleted.incomplete_nodes),
        }))?,
        Output::Text => {
            let records = grouped(u64::try_from(deleted.records_removed).unwrap_or(0));
            output::line(&format!("deleted tenant {}; removed {records} records of all replicas", deleted.tenant_id))?;
            for node in &deleted.incomplete_nodes {
                eprintln!("storage node {} may have some left: {}", node.node_id, node.reason);
            }
            if !complete {
                eprintln!("run it again to remove the rest; nobody can read it meanwhile");
            }
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
