//! `witan nodes ring`: which share of all copies each storage node holds.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};
use witan_kernel::name::{NodeId, Zone};
use witan_kernel::placement::zones::lost_with_each;
use witan_kernel::ring::{Member, Ring};
use witan_wire::v1::{ListStorageNodesRequest, StorageNodeInfo};

use super::Global;
use super::client::{self, Problem, within};
use super::output::{self, Output, Table};

/// Shown below the help.
pub const EXAMPLES: &str = "\
The share of a node is the part of all copies of records that it holds, once no migration is under way: with as many nodes as replicas, \
each has the same. It follows from the numbers of virtual nodes and from the zones; small differences come from the hashing. Nodes that \
leave have no share. Where nodes have zones, it is shown which share of the keys would have no quorum of replicas left without one of \
them: such keys cannot be read or written at the level \"quorum\" while that zone is down.

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
    let members = members(&nodes)?;
    let shares = shares(&members, args.replication_factor);
    let zones = zones(&members, &shares, args.replication_factor);
    let of = |node: &StorageNodeInfo| shares.get(&node.node_id).copied().unwrap_or(0.0);
    if global.output == Output::Json {
        let node = |node: &StorageNodeInfo| -> Value {
            json!({
                "node_id": node.node_id,
                "status": node.status,
                "virtual_nodes": node.virtual_nodes,
                "zone": node.zone,
                "share": of(node),
                "keys_count": node.keys_count,
            })
        };
        let nodes: Vec<Value> = nodes.iter().map(node).collect();
        let zones: Vec<Value> = zones.iter().map(ZoneShown::json).collect();
        output::object(&json!({ "replication_factor": args.replication_factor, "nodes": nodes, "zones": zones }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let most = shares.values().copied().fold(0.0, f64::max);
    let mut table = Table::new(["NODE", "STATUS", "VNODES", "SHARE", "PICTURE"]);
    if !zones.is_empty() {
        table = table.with("ZONE");
    }
    for node in &nodes {
        let mut row = vec![
            node.node_id.clone(),
            node.status.clone(),
            node.virtual_nodes.to_string(),
            percent(of(node)),
            bar(of(node), most),
        ];
        row.extend((!zones.is_empty()).then(|| node.zone.clone()));
        table.push(row);
    }
    table.print("no storage nodes; add some: witan nodes add NODE_ID HOST:PORT")?;
    show_zones(&zones)?;
    Ok(ExitCode::SUCCESS)
}

/// The members of the ring.
fn members(nodes: &[StorageNodeInfo]) -> anyhow::Result<Vec<Member>> {
    let member = |node: &StorageNodeInfo| {
        Ok(Member {
            node: NodeId::new(&*node.node_id)?,
            virtual_nodes: u32::try_from(node.virtual_nodes).unwrap_or(0),
            zone: Zone::new(&*node.zone)?,
        })
    };
    nodes.iter().filter(|node| node.status == "active").map(member).collect()
}

/// The share of all copies that each node of the ring holds.
fn shares(members: &[Member], replication_factor: u8) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    for range in Ring::of(members, 0).replica_ranges(&[replication_factor]) {
        let width = ((range.to - range.from) as f64 + 1.0) / 2f64.powi(64);
        for node in &range.replicas {
            *shares.entry(node.to_string()).or_insert(0.0) += width / range.replicas.len() as f64;
        }
    }
    shares
}

/// A zone, as it is shown.
#[derive(Debug, PartialEq)]
struct ZoneShown {
    zone: String,
    nodes: usize,
    /// Its share of all copies.
    share: f64,
    /// The share of keys of which no quorum would be left without it.
    lost: f64,
}

impl ZoneShown {
    fn json(&self) -> Value {
        let Self { zone, nodes, share, lost } = self;
        json!({ "zone": zone, "nodes": nodes, "share": share, "lost_quorum": lost })
    }
}

/// The zones; none where no node has one.
fn zones(members: &[Member], shares: &BTreeMap<String, f64>, replication_factor: u8) -> Vec<ZoneShown> {
    if members.iter().all(|member| member.zone.is_none()) {
        return Vec::new();
    }
    let of = |(zone, lost): (Zone, f64)| {
        let nodes: Vec<&Member> = members.iter().filter(|member| member.zone == zone).collect();
        let share = nodes.iter().filter_map(|member| shares.get(member.node.as_str())).sum();
        ZoneShown { zone: zone.as_str().to_owned(), nodes: nodes.len(), share, lost }
    };
    lost_with_each(members, replication_factor).into_iter().map(of).collect()
}

fn show_zones(zones: &[ZoneShown]) -> anyhow::Result<()> {
    if zones.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let most = zones.iter().map(|of| of.share).fold(0.0, f64::max);
    let mut table = Table::new(["ZONE", "NODES", "SHARE", "LOST QUORUM", "PICTURE"]);
    for of in zones {
        let name = if of.zone.is_empty() { "(none)" } else { &of.zone };
        table.row([name.to_owned(), of.nodes.to_string(), percent(of.share), percent(of.lost), bar(of.share, most)]);
    }
    Ok(table.print("")?)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
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
        let shares_of_three = shares(&members(&three).unwrap(), 3);
        assert!(shares_of_three.values().all(|share| (share - 1.0 / 3.0).abs() < 1e-9), "{shares_of_three:?}");
        let four = [&three[..], &[node("n4", 300, "active"), node("n5", 150, "draining")]].concat();
        let shares = shares(&members(&four).unwrap(), 1);
        assert!((shares.values().sum::<f64>() - 1.0).abs() < 1e-9 && !shares.contains_key("n5"), "{shares:?}");
        assert!(shares["n4"] > 0.3, "{shares:?}");
    }

    #[test]
    fn zones_are_shown_where_nodes_have_some() {
        let zoned = |id: &str, zone: &str| StorageNodeInfo { zone: zone.to_owned(), ..node(id, 150, "active") };
        let none = members(&[zoned("n1", ""), zoned("n2", "")]).unwrap();
        assert_eq!(zones(&none, &shares(&none, 2), 2), []);
        let four = members(&[zoned("n1", "a"), zoned("n2", "a"), zoned("n3", "b"), zoned("n4", "")]).unwrap();
        let shown = zones(&four, &shares(&four, 3), 3);
        let short: Vec<_> = shown.iter().map(|of| (of.zone.as_str(), of.nodes, of.lost)).collect();
        assert_eq!(short, [("", 1, 0.0), ("a", 2, 0.0), ("b", 1, 0.0)]);
        assert!(shown.iter().all(|of| (of.share - 1.0 / 3.0).abs() < 1e-9), "{shown:?}");
    }

    #[test]
    fn the_longest_bar_is_full() {
        assert_eq!(bar(0.5, 0.5).chars().count(), 40);
        assert_eq!(bar(0.25, 0.5).chars().count(), 20);
        assert_eq!((bar(0.0, 0.5), bar(0.0, 0.0)), (String::new(), String::new()));
    }
}
