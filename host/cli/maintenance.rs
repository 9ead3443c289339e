//! `witan nodes replace`, `drain` and `undrain`: what operators do to a single node.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ArgAction;
use serde_json::json;
use tonic::Code;
use witan_wire::v1::{
    AddStorageNodeRequest, DrainStorageNodeRequest, ListStorageNodesRequest, ListStorageNodesResponse,
    RemoveStorageNodeRequest, ReplaceStorageNodeRequest, StorageNodeInfo,
};

use super::begun::changed;
use super::client::{self, Problem, within};
use super::deed::Deed;
use super::output::{self, Output};
use super::{Global, args, migration};
use crate::config::value::spelled;

/// Shown below the help.
pub const REPLACE_EXAMPLES: &str =
    "For a node whose disk was replaced: start it under the same id with an empty folder first. Its new store is filled from the other \
replicas, by a migration whose id is printed; until that is completed (--wait; exit code 0), nothing rests on the node. Without this \
command, the cluster does the same by itself after healing.admit_after. If the old disk is back before, it is used again, and the \
migration ends as cancelled. What no other replica has is lost with a disk: where that may be, it is refused without --accept-loss.

With --with, another node takes the place of this one: that is added, and this one removed, with the same weight and zone, so that each \
tenant moves once. With --force, this one is lost, and nothing waits for it.

Examples:
  witan migration plan replace n2
  witan nodes replace n2 --wait
  witan nodes replace n2 --with n7 10.0.0.7:50052
  witan nodes replace n2 --with n7 10.0.0.7:50052 --force --wait";

/// Shown below the help.
pub const DRAIN_EXAMPLES: &str =
    "Before a node is stopped for maintenance. Others are asked before it is, so that no request waits for it when it goes; nothing moves, \
changes are still sent to it, and what it misses while it is away is noted and sent to it afterwards. It stays drained until \
`witan nodes undrain`, also after a restart. A node that keys need for a quorum goes on being asked; the answer says so.

--wait returns when it has answered no read and minted nothing for 5 seconds, for any coordinator (but for one in a hundred of all \
requests, for which all others were too slow), and nothing that it has missed waits to be sent to it.

Examples:
  witan nodes drain n2 --wait
  witan nodes undrain n2";

/// For how long a node must not have been asked: longer than coordinators take to follow, and than reads that were under way.
const QUIET: Duration = Duration::from_secs(5);
/// How often nodes are asked.
const EVERY: Duration = Duration::from_secs(1);
/// For how long the coordinator may be away: longer than a restart.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `nodes replace`.
#[derive(Debug, clap::Args)]
pub struct Replace {
    /// The node's id
    node_id: String,
    /// Another node takes its place: its id, and the address at which coordinators reach it
    #[arg(long, num_args = 2, value_names = ["NODE_ID", "HOST:PORT"], action = ArgAction::Set)]
    with: Option<Vec<String>>,
    /// With --with: the node that is replaced is lost
    #[arg(long, requires = "with")]
    force: bool,
    /// Also if acknowledged writes may be gone
    #[arg(long)]
    accept_loss: bool,
    /// Follow the migration until it has ended
    #[arg(long)]
    wait: bool,
}

/// Arguments of `nodes drain`.
#[derive(Debug, clap::Args)]
pub struct Drain {
    /// The node's id
    node_id: String,
    /// Wait until it is asked no longer, and nothing is owed to it
    #[arg(long)]
    wait: bool,
}

/// Arguments of `nodes undrain`.
#[derive(Debug, clap::Args)]
pub struct Undrain {
    /// The node's id
    node_id: String,
}

/// Replaces a node's store, or the node.
pub async fn replace(global: &Global, args: Replace) -> anyhow::Result<ExitCode> {
    let Replace { node_id, with, force, accept_loss, wait } = args;
    if let Some(with) = with {
        return by_another(global, node_id, &with, (force, accept_loss), wait).await;
    }
    let request = within(global, ReplaceStorageNodeRequest { node_id, accept_loss });
    let answer = client::coordinator(global).await?.replace_storage_node(request).await;
    changed(global, "replaced", wait, answer.map_err(Problem::of(Deed::Node))?.into_inner()).await
}

/// Adds one node and removes the other, right after each other: no tenant is moved in between, as a rule, so each is moved once.
async fn by_another(
    global: &Global,
    node_id: String,
    with: &[String],
    (force, accept_loss): (bool, bool),
    wait: bool,
) -> anyhow::Result<ExitCode> {
    let [new, address] = with else { anyhow::bail!("--with takes a node's id and its HOST:PORT") };
    let (host, port) = args::address(address)?;
    let old = node(global, &node_id).await?;
    let mut coordinator = client::coordinator(global).await?;
    let request = AddStorageNodeRequest {
        node_id: new.clone(),
        host,
        port: i32::from(port),
        virtual_nodes: old.virtual_nodes,
        zone: old.zone,
    };
    let added = coordinator.add_storage_node(within(global, request)).await;
    let added = added.map_err(Problem::of(Deed::Node))?.into_inner();
    let request = RemoveStorageNodeRequest { node_id: node_id.clone(), force, accept_loss };
    let removed = coordinator.remove_storage_node(within(global, request)).await.map_err(|status| {
        output::note(&format!(
            "node {new} was added, and node {node_id} is not removed: remove it yourself, or cancel migration {}",
            added.migration_id
        ));
        Problem::of(Deed::Node)(status)
    })?;
    let removed = removed.into_inner();
    // One object for each command: with --wait, the migration once it has ended.
    let waits = wait && !removed.migration_id.is_empty();
    if global.output == Output::Json && !waits {
        output::object(&json!({
            "node_id": node_id,
            "with": new,
            "outcome": if removed.migration_id.is_empty() { "replaced" } else { "begun" },
            "added": { "migration_id": added.migration_id, "message": added.message },
            "removed": { "migration_id": removed.migration_id, "message": removed.message },
        }))?;
    } else if global.output == Output::Text {
        for done in [&added, &removed] {
            let of =
                if done.migration_id.is_empty() { String::new() } else { format!("migration {}: ", done.migration_id) };
            output::line(&format!("{of}{}", done.message))?;
        }
    }
    if waits {
        // What joins is completed with it, or before: both end when every tenant is on the newest ring.
        return migration::watch::until_completed(global, removed.migration_id).await;
    }
    Ok(ExitCode::SUCCESS)
}

/// A node on record.
async fn node(global: &Global, id: &str) -> anyhow::Result<StorageNodeInfo> {
    let found = listed(global).await?.nodes.into_iter().find(|node| node.node_id == id);
    found.ok_or_else(|| anyhow::anyhow!("there is no storage node {id}; witan nodes list shows which there are"))
}

async fn listed(global: &Global) -> Result<ListStorageNodesResponse, Problem> {
    let coordinator = client::coordinator(global).await;
    let answer = coordinator?.list_storage_nodes(within(global, ListStorageNodesRequest {})).await;
    Ok(answer.map_err(Problem::query)?.into_inner())
}

/// Takes a node out of service.
pub async fn drain(global: &Global, args: Drain) -> anyhow::Result<ExitCode> {
    let Drain { node_id, wait } = args;
    let request = within(global, DrainStorageNodeRequest { node_id: node_id.clone(), undrain: false });
    let answer = client::coordinator(global).await?.drain_storage_node(request).await;
    let answer = answer.map_err(Problem::of(Deed::Node))?.into_inner();
    if !(wait && global.output == Output::Json) {
        changed(global, "drained", false, answer).await?;
    }
    if wait { until_quiet(global, &node_id).await } else { Ok(ExitCode::SUCCESS) }
}

/// Puts a node back into service.
pub async fn undrain(global: &Global, args: Undrain) -> anyhow::Result<ExitCode> {
    let request = within(global, DrainStorageNodeRequest { node_id: args.node_id, undrain: true });
    let answer = client::coordinator(global).await?.drain_storage_node(request).await;
    changed(global, "undrained", false, answer.map_err(Problem::of(Deed::Node))?.into_inner()).await
}

/// What a drained node still waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    reads: i64,
    mints: i64,
    /// Reads and mints of all nodes.
    of_all: i64,
    reachable: bool,
    /// Something that it has missed is to be sent to it.
    owed: bool,
}

impl Seen {
    fn of(listed: &ListStorageNodesResponse, id: &str) -> Option<Self> {
        let node = listed.nodes.iter().find(|node| node.node_id == id)?;
        let is_owed = |kind: &str| matches!(kind, "missed" | "catch-up");
        let owed = listed.healing.iter().any(|duty| duty.wanted && duty.range == id && is_owed(&duty.kind));
        let of_all = listed.nodes.iter().map(|node| node.reads.saturating_add(node.mints)).sum();
        Some(Self { reads: node.reads, mints: node.mints, of_all, reachable: node.reachable, owed })
    }

    /// Whether it has been asked for more than requests for which all others were too slow: one in a hundred of all. A node that was
    /// started again counts from zero.
    fn was_asked_since(&self, before: &Self) -> bool {
        let asked = (self.reads + self.mints) - (before.reads + before.mints);
        asked < 0 || asked > 0 && asked.saturating_mul(100) > self.of_all - before.of_all
    }
}

/// Waits until a drained node is asked no longer, and nothing is owed to it.
async fn until_quiet(global: &Global, id: &str) -> anyhow::Result<ExitCode> {
    let (mut last, mut quiet, mut heard) = (None::<Seen>, Instant::now(), Instant::now());
    let mut said = String::new();
    loop {
        match listed(global).await {
            Ok(listed) => {
                let Some(now) = Seen::of(&listed, id) else { anyhow::bail!("storage node {id} was removed") };
                heard = Instant::now();
                if last.as_ref().is_none_or(|last| now.was_asked_since(last)) || !now.reachable {
                    quiet = heard;
                }
                if quiet.elapsed() >= QUIET && !now.owed {
                    return end(global, id, &now);
                }
                let what = waits(&now, quiet.elapsed());
                if what != said && global.output == Output::Text {
                    output::note(&format!("waits: {what}"));
                    said = what;
                }
                last = Some(now);
            }
            Err(problem) if heard.elapsed() < PATIENCE && is_away(&problem) => {}
            Err(problem) => return Err(problem.into()),
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn is_away(problem: &Problem) -> bool {
    match problem {
        Problem::Unreachable { .. } => true,
        Problem::Failed(status, _) => matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded),
        Problem::Endpoint(_) | Problem::File(_) | Problem::Credential(_) => false,
    }
}

fn waits(now: &Seen, quiet: Duration) -> String {
    match now {
        Seen { reachable: false, .. } => "the node cannot be reached".to_owned(),
        Seen { owed: true, .. } => "what it has missed is being sent to it".to_owned(),
        _ if quiet < EVERY => "it is still asked".to_owned(),
        _ => format!("until it has not been asked for {}", spelled(QUIET)),
    }
}

fn end(global: &Global, id: &str, now: &Seen) -> anyhow::Result<ExitCode> {
    match global.output {
        Output::Json => output::object(&json!({
            "node_id": id, "outcome": "drained", "reads": now.reads, "mints": now.mints
        }))?,
        Output::Text => output::line(&format!("storage node {id} is asked no longer; it may be stopped"))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use witan_wire::v1::HealingDuty;

    use super::*;

    fn listed(reads: i64, owed: &[(&str, &str, bool)]) -> ListStorageNodesResponse {
        let node = StorageNodeInfo { node_id: "n1".to_owned(), reads, reachable: true, ..Default::default() };
        let duty = |(kind, range, wanted): &(&str, &str, bool)| HealingDuty {
            kind: (*kind).to_owned(),
            range: (*range).to_owned(),
            wanted: *wanted,
            ..Default::default()
        };
        ListStorageNodesResponse { nodes: vec![node], healing: owed.iter().map(duty).collect(), ..Default::default() }
    }

    #[test]
    fn a_node_is_quiet_if_it_was_not_asked_and_nothing_is_owed_to_it() {
        let of = |reads, owed: &[_]| Seen::of(&listed(reads, owed), "n1").expect("it is there");
        let (before, same, more) = (of(7, &[]), of(7, &[("missed", "n2", true), ("compare", "1", true)]), of(8, &[]));
        assert!(!same.was_asked_since(&before) && more.was_asked_since(&before));
        assert!(of(0, &[]).was_asked_since(&before), "it was started again");
        let busy = Seen { of_all: before.of_all + 100, ..more };
        assert!(!busy.was_asked_since(&before), "the others were slow once");
        assert!(!same.owed && of(7, &[("missed", "n1", true)]).owed && !of(7, &[("catch-up", "n1", false)]).owed);
        assert_eq!(Seen::of(&listed(7, &[]), "n2"), None);
        assert_eq!(waits(&before, QUIET), "until it has not been asked for 5s");
    }
}
