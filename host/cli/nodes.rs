//! `witan nodes`: the storage nodes of a cluster.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use witan_wire::v1::{
    AddStorageNodeRequest, HealingDuty, ListStorageNodesRequest, ListStorageNodesResponse, RemoveStorageNodeRequest,
    StorageNodeInfo,
};

use super::begun::changed;
use super::client::{self, Problem, within};
use super::deed::Deed;
use super::output::{self, Output, Table, grouped};
use super::part::Update;
use super::{Global, args, maintenance, ring};
use crate::config::value::spelled;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Keys are placed on storage nodes by a ring of virtual nodes. When a node joins or leaves, a migration moves records in the background, \
while clients read and write them; see `witan help migration`. A change by which data could be lost is refused, with the reason.

Examples:
  witan nodes list
  witan nodes ring
  witan nodes add n4 10.0.0.4:50052
  witan nodes update n4 --zone rack-2
  witan nodes remove n4";

const LIST_EXAMPLES: &str =
    "Latencies are as measured by this coordinator; the number of keys is the node's estimate. A node that is \
not used has come back with another store: bring the old disk back, or fill the new one with `witan nodes replace`; the cluster fills it \
by itself after healing.admit_after. A node is asked last that is drained, or whose store has failed: check the disk of the latter, then \
restart it.

Examples:
  witan nodes list
  witan nodes list --output json | jq '.nodes[] | select(.reachable | not)'";

const ADD_EXAMPLES: &str =
    "Start the node first. Records are moved to it in the background, by a migration whose id is printed; --wait \
follows it to its end (exit code 0: it is completed). More virtual nodes give a node a larger share of the keys.

Examples:
  witan migration plan add n1 127.0.0.1:50052
  witan nodes add n1 127.0.0.1:50052
  witan nodes add n1 127.0.0.1:50052 --wait
  witan nodes add big 10.0.0.9:50052 --virtual-nodes 300
  witan nodes add n1 127.0.0.1:50052 --zone rack-1";

const UPDATE_EXAMPLES: &str =
    "Replicas of a key lie in different zones while there are enough; all nodes without a zone count as one. More virtual nodes give a \
node a larger share of the keys. Records are moved in the background, by a migration whose id is printed. Nodes that are to get a zone \
should get it one right after the other, without --wait: a node that is alone in its zone is to hold a replica of every key. When a zone \
is down, nothing is placed anew by itself.

Examples:
  witan migration plan update n1 --zone rack-1
  witan nodes update n1 --zone rack-1
  witan nodes update n1 --virtual-nodes 75 --wait
  witan nodes update n1 --no-zone";

const REMOVE_EXAMPLES: &str =
    "Records are moved away from the node in the background, by a migration whose id is printed: keep it running until that is completed \
(--wait; exit code 0). Fewer nodes than the largest replication factor cannot remain.

A node that is lost for good is removed with --force: nothing waits for it, its records are copied from their other replicas, and its \
store is never used again. That is refused if acknowledged writes may be gone with it (such as a tenant's with one replica), unless you \
give them up with --accept-loss. To replace a lost disk, keep the node instead: start it under the same id with an empty folder, and run \
`witan nodes replace`.

Examples:
  witan migration plan remove n4
  witan nodes remove n4 --wait
  witan nodes remove n4 --force";

/// Subcommands of `nodes`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the storage nodes: address, whether they answer, how full they are
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Show which share of all copies each node holds
    #[command(after_help = ring::EXAMPLES)]
    Ring(ring::Args),
    /// Add a storage node to the ring
    #[command(after_help = ADD_EXAMPLES)]
    Add(Add),
    /// Give a storage node another zone, or another weight
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(Updating),
    /// Remove a storage node from the ring
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(Remove),
    /// Fill the new disk of a storage node, or put another node in its place
    #[command(after_help = maintenance::REPLACE_EXAMPLES)]
    Replace(maintenance::Replace),
    /// Take a storage node out of service for maintenance
    #[command(after_help = maintenance::DRAIN_EXAMPLES)]
    Drain(maintenance::Drain),
    /// Put a drained storage node back into service
    #[command(after_help = "Example:\n  witan nodes undrain n2")]
    Undrain(maintenance::Undrain),
}

/// Arguments of `nodes add`.
#[derive(Debug, clap::Args)]
pub struct Add {
    /// The node's id: the --id it was started with
    pub node_id: String,
    /// Address at which coordinators reach it
    #[arg(value_name = "HOST:PORT", value_parser = args::address)]
    pub address: (String, u16),
    /// Its virtual nodes on the ring [default: the coordinator's hash_ring.virtual_nodes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=4096))]
    pub virtual_nodes: Option<i32>,
    /// What fails together with it, such as its rack or data center [default: none]
    #[arg(long, value_parser = args::zone)]
    pub zone: Option<String>,
    /// Follow the migration until it has ended
    #[arg(long)]
    pub wait: bool,
}

/// Arguments of `nodes update`.
#[derive(Debug, clap::Args)]
pub struct Updating {
    #[command(flatten)]
    update: Update,
    /// Follow the migration until it has ended
    #[arg(long)]
    wait: bool,
}

/// Arguments of `nodes remove`.
#[derive(Debug, clap::Args)]
pub struct Remove {
    /// The node's id
    pub node_id: String,
    /// It is lost: nothing waits for it, and its store is never used again
    #[arg(long)]
    pub force: bool,
    /// Also if acknowledged writes may be gone with it
    #[arg(long, requires = "force")]
    pub accept_loss: bool,
    /// Follow the migration until it has ended
    #[arg(long)]
    pub wait: bool,
}

/// Runs a subcommand of `nodes`.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => list(global).await,
        Command::Ring(args) => ring::run(global, args).await,
        Command::Add(add) => {
            let request = AddStorageNodeRequest {
                node_id: add.node_id,
                host: add.address.0,
                port: i32::from(add.address.1),
                virtual_nodes: add.virtual_nodes.unwrap_or(0),
                zone: add.zone.unwrap_or_default(),
            };
            let answer = client::coordinator(global).await?.add_storage_node(within(global, request)).await;
            changed(global, "added", add.wait, answer.map_err(Problem::of(Deed::Node))?.into_inner()).await
        }
        Command::Update(Updating { update, wait }) => {
            let request = within(global, update.request());
            let answer = client::coordinator(global).await?.update_storage_node(request).await;
            changed(global, "updated", wait, answer.map_err(Problem::of(Deed::Node))?.into_inner()).await
        }
        Command::Remove(remove) => {
            let Remove { node_id, force, accept_loss, wait } = remove;
            let request = RemoveStorageNodeRequest { node_id, force, accept_loss };
            let answer = client::coordinator(global).await?.remove_storage_node(within(global, request)).await;
            changed(global, "removed", wait, answer.map_err(Problem::of(Deed::Node))?.into_inner()).await
        }
        Command::Replace(args) => maintenance::replace(global, args).await,
        Command::Drain(args) => maintenance::drain(global, args).await,
        Command::Undrain(args) => maintenance::undrain(global, args).await,
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
    let has_zones = nodes.iter().any(|node| !node.zone.is_empty());
    if has_zones {
        table = table.with("ZONE");
    }
    for node in &nodes {
        let mut row = vec![
            node.node_id.clone(),
            format!("{}:{}", node.host, node.port),
            node.status.clone(),
            answers(node).to_owned(),
            node.virtual_nodes.to_string(),
            grouped(u64::try_from(node.keys_count).unwrap_or(0)),
            format!("{:.1} %", node.disk_usage_percent),
            output::micros(u64::from(node.latency_p50_us)),
            output::micros(u64::from(node.latency_p99_us)),
        ];
        row.extend(has_zones.then(|| node.zone.clone()));
        table.push(row);
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
        (true, false, _) if node.draining => "drained",
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
        "draining": node.draining,
        "reads": node.reads,
        "mints": node.mints,
        "virtual_nodes": node.virtual_nodes,
        "zone": node.zone,
        "keys_count": node.keys_count,
        "disk_usage_percent": node.disk_usage_percent,
        "latency_p50_us": node.latency_p50_us,
        "latency_p99_us": node.latency_p99_us,
    })
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
