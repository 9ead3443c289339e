//! `witan migration plan`: what a change would move, and what would stand in its way.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use witan_wire::v1::plan_migration_request::Change;
use witan_wire::v1::{
    AddStorageNodeRequest, BindPluginRequest, PlanMigrationRequest, PlanMigrationResponse, PlannedFill, PlannedHook,
    PlannedNode, PlannedZone, RemoveStorageNodeRequest, ReplaceStorageNodeRequest, UpdateReplicationFactorRequest,
};

use super::shown::{bytes, number};
use crate::cli::client::{self, Problem, within};
use crate::cli::output::{self, Output, Table};
use crate::cli::part::Update;
use crate::cli::{Global, args};
use crate::config::value::spelled;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Changes nothing. The numbers are estimates from the shares of the ring and from what the nodes report: they take tenants to have about \
the same number of keys, and disks to hold nothing but records. Exit code 1: something is in the way; the output says what.

Examples:
  witan migration plan add n4 10.0.0.4:50052
  witan migration plan remove n2
  witan migration plan update n2 --zone rack-1
  witan migration plan replace n2
  witan migration plan factor shop 5
  witan migration plan hook carts hash-tag
  witan migration plan remove n2 --output json | jq '.problems'";

const HOOK_EXAMPLES: &str = "\
The hook is asked about each key of the tenant, for half a minute at most. Whether they move or not, all records are written anew.

Examples:
  witan migration plan hook carts hash-tag
  witan migration plan hook carts --none";

const UPDATE_EXAMPLES: &str = "\
Examples:
  witan migration plan update n4 --zone rack-2
  witan migration plan update n4 --virtual-nodes 75";

/// A change to plan.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Plan to add a storage node
    #[command(after_help = "Example:\n  witan migration plan add n4 10.0.0.4:50052")]
    Add {
        /// The node's id
        node_id: String,
        /// Address at which coordinators would reach it
        #[arg(value_name = "HOST:PORT", value_parser = args::address)]
        address: (String, u16),
        /// Its virtual nodes on the ring [default: the coordinator's hash_ring.virtual_nodes]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=4096))]
        virtual_nodes: Option<i32>,
        /// Its zone [default: none]
        #[arg(long, value_parser = args::zone)]
        zone: Option<String>,
    },
    /// Plan to give a storage node another zone, or another weight
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(Update),
    /// Plan to remove a storage node
    #[command(after_help = "Examples:\n  witan migration plan remove n2\n  witan migration plan remove n2 --force")]
    Remove {
        /// The node's id
        node_id: String,
        /// It is lost
        #[arg(long)]
        force: bool,
    },
    /// Plan to fill the new disk of a storage node
    #[command(after_help = "Example:\n  witan migration plan replace n2")]
    Replace {
        /// The node's id
        node_id: String,
        /// Also if acknowledged writes may be gone
        #[arg(long)]
        accept_loss: bool,
    },
    /// Plan to give a tenant another routing hook
    #[command(after_help = HOOK_EXAMPLES)]
    Hook {
        /// The tenant
        tenant: String,
        /// A digest, name@version, or name
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        plugin: Option<String>,
        /// Configuration for the plugin, as text
        #[arg(long, value_name = "TEXT")]
        configuration: Option<String>,
        /// None of its own
        #[arg(long)]
        none: bool,
    },
    /// Plan to change a tenant's replication factor
    #[command(after_help = "Example:\n  witan migration plan factor shop 5")]
    Factor {
        /// The tenant
        tenant: String,
        /// Replicas of every key, 1 to 5
        #[arg(value_name = "N", value_parser = clap::value_parser!(i32).range(1..=5))]
        replication_factor: i32,
    },
}

/// Plans a change.
pub async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    let change = match command {
        Command::Hook { tenant, plugin, configuration, .. } => Change::Hook(BindPluginRequest {
            tenant_id: tenant,
            hook: "routing-hook".to_owned(),
            plugin: plugin.unwrap_or_default(),
            configuration: configuration.unwrap_or_default().into(),
            ..BindPluginRequest::default()
        }),
        Command::Add { node_id, address: (host, port), virtual_nodes, zone } => Change::Add(AddStorageNodeRequest {
            node_id,
            host,
            port: i32::from(port),
            virtual_nodes: virtual_nodes.unwrap_or(0),
            zone: zone.unwrap_or_default(),
        }),
        Command::Update(update) => Change::Update(update.request()),
        Command::Remove { node_id, force } => {
            Change::Remove(RemoveStorageNodeRequest { node_id, force, accept_loss: false })
        }
        Command::Replace { node_id, accept_loss } => {
            Change::Replace(ReplaceStorageNodeRequest { node_id, accept_loss })
        }
        Command::Factor { tenant, replication_factor } => Change::Factor(UpdateReplicationFactorRequest {
            tenant_id: tenant,
            new_replication_factor: replication_factor,
        }),
    };
    let request = within(global, PlanMigrationRequest { change: Some(change) });
    let answer = client::coordinator(global).await?.plan_migration(request).await;
    let plan = answer.map_err(Problem::query)?.into_inner();
    show(global.output, &plan)?;
    Ok(if plan.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_hook(output: Output, hook: &PlannedHook, problems: &[String]) -> anyhow::Result<()> {
    if output == Output::Json {
        return Ok(output::object(&json!({
            "keys_moving": hook.keys_moving,
            "keys_staying": hook.keys_staying,
            "keys_faulting": hook.keys_faulting,
            "faults_on": hook.faults_on,
            "complete": hook.complete,
            "at_once": hook.at_once,
            "problems": problems,
        }))?);
    }
    let (moving, staying) = (number(hook.keys_moving), number(hook.keys_staying));
    let more = if hook.complete { "" } else { "; there are more keys, which were not tried" };
    output::line(&match hook.at_once {
        true => "keys are placed as before; the change would be made at once".to_owned(),
        false => format!(
            "{moving} keys would be placed elsewhere, {staying} would stay, {} fault{more}",
            number(hook.keys_faulting)
        ),
    })?;
    for problem in problems {
        output::note(&format!("in the way: {problem}"));
    }
    Ok(())
}

fn show(output: Output, plan: &PlanMigrationResponse) -> anyhow::Result<()> {
    if let Some(hook) = &plan.hook {
        return show_hook(output, hook, &plan.problems);
    }
    if output == Output::Json {
        let nodes: Vec<Value> = plan.nodes.iter().map(node_json).collect();
        output::object(&json!({
            "nodes": nodes,
            "moved_share": plan.moved_share,
            "least_share": plan.least_share,
            "tenants": plan.tenants,
            "problems": plan.problems,
            "zones": plan.zones.iter().map(zone_json).collect::<Vec<_>>(),
            "fill": plan.fill.as_ref().map(fill_json),
        }))?;
        return Ok(());
    }
    if let Some(fill) = &plan.fill {
        show_fill(fill)?;
        plan.problems.iter().for_each(|problem| output::note(&format!("in the way: {problem}")));
        return Ok(());
    }
    let mut table = Table::new(["NODE", "RECEIVES", "DROPS", "SHARE", "SHARE AFTER", "DISK", "DISK AFTER"]);
    for node in &plan.nodes {
        table.row([
            node.node_id.clone(),
            number(node.keys_received),
            number(node.keys_dropped),
            percent(node.share_before),
            percent(node.share_after),
            format!("{:.1} %", node.disk_usage_percent),
            format!("{:.1} %", node.disk_usage_percent_after),
        ]);
    }
    table.print("no storage nodes")?;
    let (moved, least) = (percent(plan.moved_share), percent(plan.least_share));
    output::line(&format!("{moved} of all copies would be made anew, of {least} at least; tenants: {}", plan.tenants))?;
    if !plan.zones.is_empty() {
        let mut table = Table::new(["ZONE", "REPLICAS", "LOST QUORUM", "AFTER"]);
        for of in &plan.zones {
            let name = if of.zone.is_empty() { "(none)" } else { &of.zone };
            let replicas = of.replication_factor.to_string();
            table.row([name.to_owned(), replicas, percent(of.lost_before), percent(of.lost_after)]);
        }
        table.print("")?;
    }
    for problem in &plan.problems {
        output::note(&format!("in the way: {problem}"));
    }
    Ok(())
}

fn show_fill(fill: &PlannedFill) -> anyhow::Result<()> {
    let mut line = format!("about {} records would be filled in", number(fill.keys));
    if fill.bytes > 0 {
        line.push_str(&format!(", {}", bytes(u64::try_from(fill.bytes).unwrap_or(0))));
    }
    if fill.seconds > 0 {
        let time = Duration::from_secs(u64::try_from(fill.seconds).unwrap_or(0));
        line.push_str(&format!("; at the rate of healing that takes about {}", spelled(time)));
    }
    output::line(&line)?;
    let mut table = Table::new(["FROM", "RECORDS", "ANSWERS"]);
    for source in &fill.sources {
        let answers = if source.reachable { "yes" } else { "no" };
        table.row([source.node_id.clone(), number(source.keys), answers.to_owned()]);
    }
    Ok(table.print("no other node has any of them")?)
}

fn fill_json(fill: &PlannedFill) -> Value {
    let sources =
        fill.sources.iter().map(|of| json!({ "node_id": of.node_id, "keys": of.keys, "reachable": of.reachable }));
    json!({
        "keys": fill.keys,
        "bytes": fill.bytes,
        "seconds": fill.seconds,
        "sources": sources.collect::<Vec<_>>(),
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn zone_json(of: &PlannedZone) -> Value {
    json!({
        "zone": of.zone,
        "replication_factor": of.replication_factor,
        "lost_quorum_before": of.lost_before,
        "lost_quorum_after": of.lost_after,
    })
}

fn node_json(node: &PlannedNode) -> Value {
    json!({
        "node_id": node.node_id,
        "keys_received": node.keys_received,
        "keys_dropped": node.keys_dropped,
        "share_before": node.share_before,
        "share_after": node.share_after,
        "disk_usage_percent": node.disk_usage_percent,
        "disk_usage_percent_after": node.disk_usage_percent_after,
    })
}
