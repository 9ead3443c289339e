//! What a change of the storage nodes has done, or begun.

use std::process::ExitCode;

use serde_json::json;
use witan_wire::v1::StorageNodeChangeResponse;

use super::output::{self, Output};
use super::{Global, migration};

/// Prints what a change has done, or begun; with `wait`, how it ends.
pub(super) async fn changed(
    global: &Global,
    verb: &str,
    wait: bool,
    response: StorageNodeChangeResponse,
) -> anyhow::Result<ExitCode> {
    let StorageNodeChangeResponse { node_id, migration_id, message, .. } = response;
    match global.output {
        // One object for each command: with --wait, the migration once it has ended.
        Output::Json if wait && !migration_id.is_empty() => {}
        Output::Json => output::object(&json!({
            "node_id": node_id,
            "outcome": if migration_id.is_empty() { verb } else { "begun" },
            "message": message,
            "migration_id": migration_id,
        }))?,
        Output::Text if migration_id.is_empty() => {
            let more = if message.is_empty() { String::new() } else { format!(": {message}") };
            output::line(&format!("{verb} storage node {node_id}{more}"))?;
        }
        Output::Text => output::line(&format!("migration {migration_id}: {message}"))?,
    }
    if migration_id.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if wait {
        return migration::watch::until_completed(global, migration_id).await;
    }
    if global.output == Output::Text {
        output::note(&format!("to follow it: witan migration watch {migration_id}"));
    }
    Ok(ExitCode::SUCCESS)
}
