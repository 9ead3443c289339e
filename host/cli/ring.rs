//! `witan nodes ring`: which share of all copies each storage node holds.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};
use witan_kernel::name::NodeId;
use witan_kernel::ring::Ring;
use witan_wire::v1::{ListStorageNodesRequest, StorageNodeInfo};

use super::Global;
use super::client::{self, Problem, within};
use super::output::{self, Output, Table};

/// Shown below the help.
pub const EXAMPLES: &str = "\
The share of a node is the part of all copies of records that it holds, once no migration is under way: with as many nodes as replicas, \
each has the same. It follows from the numbers of virtual nodes; small differences come from the hashing. Nodes that leave have no share.

Examples:
  witan nodes ring
  witan nodes ring --replication-factor 2
  witan nodes ring --output json | jq '.nodes[] | {node_id, share}'";

/// Arguments of `nodes ring`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Replicas of every key, 1 to 5
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replication_factor: u8,
}

/// The widest bar, in characters.
const WIDTH: f64 = 40.0;

/// Shows the shares.
pub async fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let request = within(global, ListStorageNodesRequest {});
    let answer = client::coordinator(global).await?.list_storage_nodes(request).await;
    let nodes = answer.map_err(Problem::query)?.into_inner().nodes;
    let shares = shares(&nodes, args.replication_factor)?;
    let of = |node: &StorageNodeInfo| shares.get(&node.node_id).copied().unwrap_or(0.0);
    if global.output == Output::Json {
        let node = |node: &StorageNodeInfo| -> Value {
            json!({
                "node_id": node.node_id,
                "status": node.status,
                "virtual_nodes": node.virtual_nodes,
                "share": of(node),
                "keys_count": node.keys_count,
            })
        };
        let nodes: Vec<Value> = nodes.iter().map(node).collect();
        output::object(&json!({ "replication_factor": args.replication_factor, "nodes": nodes }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let most = shares.values().copied().fold(0.0, f64::max);
    let mut table = Table::new(["NODE", "STATUS", "VNODES", "SHARE", "PICTURE"]);
    for node in &nodes {
        table.row([
            node.node_id.clone(),
            node.status.clone(),
            node.virtual_nodes.to_string(),
            format!("{:.1} %", of(node) * 100.0),
            bar(of(node), most),
        ]);
    }
    table.print("no storage nodes; add some: witan nodes add NODE_ID HOST:PORT")?;
    Ok(ExitCode::SUCCESS)
}

/// The share of all copies that each node of the ring holds.
fn shares(nodes: &[StorageNodeInfo], replication_factor: u8) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut members = Vec::new();
    for node in nodes.iter().filter(|node| node.status == "active") {
        members.push((NodeId::new(&*node.node_id)?, u32::try_from(node.virtual_nodes).unwrap_or(0)));
    }
    let mut shares = BTreeMap::new();
    for range in Ring::new(&members, 0).replica_ranges(&[replication_factor]) {
        let width = ((range.to - range.from) as f64 + 1.0) / 2f64.powi(64);
        for node in &range.replicas {
            *shares.entry(node.to_string()).or_insert(0.0) += width / range.replicas.len() as f64;
        }
    }
    Ok(shares)
}

/// A bar, in eighths of a character.
fn bar(share: f64, most: f64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if most <= 0.0 {
        return String::new();
    }
    let eighths = (share / most * WIDTH * 8.0).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), PARTS[eighths % 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, virtual_nodes: i32, status: &str) -> StorageNodeInfo {
        let (node_id, status) = (id.to_owned(), status.to_owned());
        StorageNodeInfo { node_id, virtual_nodes, status, ..Default::default() }
    }

    #[test]
    fn nodes_of_the_ring_share_all_copies_by_their_virtual_nodes() {
        let three = [node("n1", 150, "active"), node("n2", 150, "active"), node("n3", 150, "active")];
        let shares_of_three = shares(&three, 3).unwrap();
        assert!(shares_of_three.values().all(|share| (share - 1.0 / 3.0).abs() < 1e-9), "{shares_of_three:?}");
        let four = [&three[..], &[node("n4", 300, "active"), node("n5", 150, "draining")]].concat();
        let shares = shares(&four, 1).unwrap();
        assert!((shares.values().sum::<f64>() - 1.0).abs() < 1e-9 && !shares.contains_key("n5"), "{shares:?}");
        assert!(shares["n4"] > 0.3, "{shares:?}");
    }

    #[test]
    fn the_longest_bar_is_full() {
        assert_eq!(bar(0.5, 0.5).chars().count(), 40);
        assert_eq!(bar(0.25, 0.5).chars().count(), 20);
        assert_eq!((bar(0.0, 0.5), bar(0.0, 0.0)), (String::new(), String::new()));
    }
}
