//! `witan nodes`: the storage nodes of a cluster.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use witan_wire::v1::{
    AddStorageNodeRequest, HealingDuty, ListStorageNodesRequest, ListStorageNodesResponse, RemoveStorageNodeRequest,
    StorageNodeChangeResponse, StorageNodeInfo,
};

use super::Global;
use super::args;
use super::client::{self, Problem, within};
use super::deed::Deed;
use super::output::{self, Output, Table, grouped};
use crate::config::value::spelled;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Keys are placed on storage nodes by a ring of virtual nodes. The coordinator refuses to add or remove a node if data could \
be lost, and says why.

Examples:
  witan nodes list
  witan nodes add n4 10.0.0.4:50052
  witan nodes remove n4";

const LIST_EXAMPLES: &str =
    "Latencies are as measured by this coordinator; the number of keys is the node's estimate. A node that is \
not used has come back with another store: bring the old disk back, or fill the new one with `witan repair`; the cluster fills it \
by itself after healing.admit_after. A node whose store has failed is asked last: check its disk, then restart it.

Examples:
  witan nodes list
  witan nodes list --output json | jq '.nodes[] | select(.reachable | not)'";

const ADD_EXAMPLES: &str = "More virtual nodes give a node a larger share of the keys.

Examples:
  witan nodes add n1 127.0.0.1:50052
  witan nodes add big 10.0.0.9:50052 --virtual-nodes 300";

const REMOVE_EXAMPLES: &str =
    "A node can be removed only while the cluster stores nothing. Replace a lost node under the same id, with an empty folder, \
and fill it with `witan repair`.

Examples:
  witan nodes remove n4";

/// Subcommands of `nodes`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the storage nodes: address, whether they answer, how full they are
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Add a storage node to the ring
    #[command(after_help = ADD_EXAMPLES)]
    Add(Add),
    /// Remove a storage node from the ring
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(Remove),
}

/// Arguments of `nodes add`.
#[derive(Debug, clap::Args)]
pub struct Add {
    /// The node's id: the --id it was started with
    pub node_id: String,
    /// Address at which coordinators reach it
    #[arg(value_name = "HOST:PORT", value_parser = args::address)]
    pub address: (String, u16),
    /// Its virtual nodes on the ring; cannot be changed later [default: the coordinator's hash_ring.virtual_nodes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=4096))]
    pub virtual_nodes: Option<i32>,
}

/// Arguments of `nodes remove`.
#[derive(Debug, clap::Args)]
pub struct Remove {
    /// The node's id
    pub node_id: String,
    /// Remove it even if it has data; this version always refuses that
    #[arg(long)]
    pub force: bool,
}

/// Runs a subcommand of `nodes`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => list(global).await,
        Command::Add(add) => {
            let request = AddStorageNodeRequest {
                node_id: add.node_id,
                host: add.address.0,
                port: i32::from(add.address.1),
                virtual_nodes: add.virtual_nodes.unwrap_or(0),
            };
            let answer = client::coordinator(global).await?.add_storage_node(within(global, request)).await;
            changed(global.output, "added", &answer.map_err(Problem::of(Deed::Node))?.into_inner())
        }
        Command::Remove(remove) => {
            let request = RemoveStorageNodeRequest { node_id: remove.node_id, force: remove.force, accept_loss: false };
            let answer = client::coordinator(global).await?.remove_storage_node(within(global, request)).await;
            changed(global.output, "removed", &answer.map_err(Problem::of(Deed::Node))?.into_inner())
        }
    }
}

async fn list(global: &Global) -> anyhow::Result<ExitCode> {
    let request = within(global, ListStorageNodesRequest {});
    let answer = client::coordinator(global).await?.list_storage_nodes(request).await;
    let ListStorageNodesResponse { nodes, healing, .. } = answer.map_err(Problem::query)?.into_inner();
    if global.output == Output::Json {
        let healing: Vec<Value> = healing.iter().map(duty_json).collect();
        output::object(&json!({ "nodes": nodes.iter().map(node_json).collect::<Vec<_>>(), "healing": healing }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["NODE", "ADDRESS", "STATUS", "ANSWERS", "VNODES", "KEYS", "DISK", "P50", "P99"]);
    for node in &nodes {
        table.row([
            node.node_id.clone(),
            format!("{}:{}", node.host, node.port),
            node.status.clone(),
            answers(node).to_owned(),
            node.virtual_nodes.to_string(),
            grouped(u64::try_from(node.keys_count).unwrap_or(0)),
            format!("{:.1} %", node.disk_usage_percent),
            output::micros(u64::from(node.latency_p50_us)),
            output::micros(u64::from(node.latency_p99_us)),
        ]);
    }
    table.print("no storage nodes; add some: witan nodes add NODE_ID HOST:PORT")?;
    for node in nodes.iter().filter(|node| !node.state_message.is_empty()) {
        output::note(&format!("storage node {}: {}", node.node_id, node.state_message));
    }
    for node in nodes.iter().filter(|node| node.store_state == "failed") {
        let advice = "check its disk, then restart the node";
        output::line(&format!("the store of node {} has failed: {}; {advice}", node.node_id, node.store_reason))?;
    }
    healing_lines(&healing).iter().for_each(|line| output::note(line));
    Ok(ExitCode::SUCCESS)
}

/// What is healed at present, what waits, and how old the comparisons are.
fn healing_lines(duties: &[HealingDuty]) -> Vec<String> {
    let mut lines = Vec::new();
    for duty in duties {
        let HealingDuty { kind, range, coordinator_id, wanted, .. } = duty;
        match (coordinator_id.as_str(), *wanted) {
            ("", true) => lines.push(format!("healing: {kind} {range} waits for a coordinator, or for the node")),
            ("", false) => {}
            (coordinator, _) => lines.push(format!("healing: {kind} {range} by {coordinator}")),
        }
    }
    let compared = duties.iter().filter(|duty| duty.kind == "compare");
    let ages: Vec<u64> = compared.filter_map(|duty| duty.complete_age_seconds).collect();
    if let Some(oldest) = ages.iter().max() {
        let age = Duration::from_secs(oldest / 60 * 60);
        let parts = ages.len();
        lines.push(format!(
            "healing: {parts} parts of the ring were compared completely, the oldest of these comparisons began {} ago",
            spelled(age)
        ));
    }
    lines
}

fn duty_json(duty: &HealingDuty) -> Value {
    json!({
        "kind": duty.kind,
        "range": duty.range,
        "coordinator_id": duty.coordinator_id,
        "complete_age_seconds": duty.complete_age_seconds,
        "wanted": duty.wanted,
    })
}

fn answers(node: &StorageNodeInfo) -> &'static str {
    match (node.reachable, node.write_only, node.store_state.as_str()) {
        (_, _, "failed") => "store failed",
        (_, true, _) if node.store_use == "unadmitted" => "not used",
        (_, true, _) => "writes only",
        (true, false, "full") => "disk full",
        (true, false, _) => "yes",
        (false, false, _) => "no",
    }
}

fn node_json(node: &StorageNodeInfo) -> Value {
    json!({
        "node_id": node.node_id,
        "host": node.host,
        "port": node.port,
        "status": node.status,
        "reachable": node.reachable,
        "write_only": node.write_only,
        "state_message": node.state_message,
        "store_use": node.store_use,
        "store_state": node.store_state,
        "store_reason": node.store_reason,
        "virtual_nodes": node.virtual_nodes,
        "keys_count": node.keys_count,
        "disk_usage_percent": node.disk_usage_percent,
        "latency_p50_us": node.latency_p50_us,
        "latency_p99_us": node.latency_p99_us,
    })
}

fn changed(output: Output, verb: &str, response: &StorageNodeChangeResponse) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => output::object(&json!({
            "node_id": response.node_id,
            "outcome": verb,
            "message": response.message,
            "migration_id": response.migration_id,
        }))?,
        Output::Text => {
            let more = if response.message.is_empty() { String::new() } else { format!(": {}", response.message) };
            output::line(&format!("{verb} storage node {}{more}", response.node_id))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_healed_is_shown_shortly() {
        let duty = |kind: &str, range: &str, by: &str, age: Option<u64>, wanted| HealingDuty {
            kind: kind.to_owned(),
            range: range.to_owned(),
            coordinator_id: by.to_owned(),
            complete_age_seconds: age,
            wanted,
        };
        let lines = healing_lines(&[
            duty("compare", "0", "", Some(3600), false),
            duty("compare", "1", "c2", Some(7300), false),
            duty("compare", "2", "", None, false),
            duty("catch-up", "n3", "", None, true),
        ]);
        assert_eq!(
            lines,
            [
                "healing: compare 1 by c2",
                "healing: catch-up n3 waits for a coordinator, or for the node",
                "healing: 2 parts of the ring were compared completely, the oldest of these comparisons began 121m ago",
            ]
        );
        assert_eq!(healing_lines(&[]), Vec::<String>::new());
    }
}
