//! `witan tenant delete`: deletes a tenant and all its data.

use std::process::ExitCode;

use serde_json::json;
use witan_wire::v1::DeleteTenantRequest;

use crate::cli::Global;
use crate::cli::client::{self, Problem, within};
use crate::cli::deed::Deed;
use crate::cli::output::{self, Output, grouped};

/// Shown below the help.
pub const EXAMPLES: &str = "\
The tenant is deleted at once: requests fail with TENANT_NOT_FOUND, and its id is never used again. Then its records are \
removed from every storage node. Nodes that could not be reached or did not finish in time are listed: run the command \
again to remove their records, which cannot be read meanwhile. This cannot be undone.

Examples:
  witan tenant delete demo --yes
  witan tenant delete demo --yes --version 7
  witan tenant delete large --yes --timeout 10m";

/// Arguments of `tenant delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// The tenant
    pub tenant: String,
    /// Delete it only if this is still its version
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(1..))]
    pub version: Option<i64>,
    /// Confirm that all its data is deleted
    #[arg(long)]
    pub yes: bool,
}

/// Deletes a tenant.
pub async fn run(global: &Global, delete: Delete) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        delete.yes,
        "this would permanently delete everything that tenant {0} has stored; to confirm: witan tenant delete {0} --yes",
        delete.tenant
    );
    let request = DeleteTenantRequest {
        tenant_id: delete.tenant.clone(),
        version: delete.version.unwrap_or(0),
        confirm: delete.tenant,
    };
    let answer = client::coordinator(global).await?.delete_tenant(within(global, request)).await;
    let deleted = answer.map_err(Problem::of(Deed::Tenant))?.into_inner();
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
            output::line(&format!(
                "deleted tenant {}; removed {records} records from all replicas",
                deleted.tenant_id
            ))?;
            for node in &deleted.incomplete_nodes {
                output::note(&format!("storage node {} may still have records of it: {}", node.node_id, node.reason));
            }
            if !complete {
                output::note("run it again to remove them; they cannot be read meanwhile");
            }
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
