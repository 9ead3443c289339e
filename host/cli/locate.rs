//! `witan locate`: where a key is, and what each of its replicas has.

use std::process::ExitCode;

use serde_json::{Value, json};
use witan_wire::v1::{LocateKeyRequest, LocateKeyResponse, LocatedReplica};

use super::Global;
use super::client::{self, Problem, within};
use super::migration::shown::bytes;
use super::output::{self, Output, Table};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Asks every replica by itself, also one that a read would not ask, and repairs nothing. Replicas with the same hash have the same; LEVEL \
says whether a replica has what all that have answered have together. While the tenant moves, its coming replicas are shown as well. \
Nothing of the value is shown.

Examples:
  witan locate demo greeting
  witan locate demo greeting --output json | jq '.replicas[] | select(.level | not)'";

/// Arguments of `locate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tenant
    tenant: String,
    /// The key
    key: String,
}

/// Shows where a key is.
pub async fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let request = within(global, LocateKeyRequest { tenant_id: args.tenant, key: args.key });
    let answer = client::coordinator(global).await?.locate_key(request).await;
    let located = answer.map_err(Problem::query)?.into_inner();
    if global.output == Output::Json {
        output::object(&json(&located))?;
    } else {
        show(&located)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(located: &LocateKeyResponse) -> anyhow::Result<()> {
    let place = format!("token {:016x} on version {} of the ring", located.token, located.ring_version);
    output::line(&format!("{place}, {} replicas", located.replication_factor))?;
    if !located.partition_key_by.is_empty() {
        let partition = output::shown(&located.partition_key);
        output::line(&format!("partition key {partition}, by {}", located.partition_key_by))?;
    }
    if !located.step.is_empty() {
        output::line(&format!(
            "moves to version {} of the ring, {} replicas: {}",
            located.coming_ring_version, located.coming_replication_factor, located.step
        ))?;
    }
    let has_zones = located.replicas.iter().any(|replica| !replica.zone.is_empty());
    let mut table = Table::new(["NODE", "PART", "ANSWERS", "HAS", "SIZE", "VERSION", "HASH", "LEVEL"]);
    if has_zones {
        table = table.with("ZONE");
    }
    for replica in &located.replicas {
        let mut row = row(replica);
        row.extend(has_zones.then(|| replica.zone.clone()));
        table.push(row);
    }
    table.print("no storage nodes")?;
    for replica in located.replicas.iter().filter(|replica| !replica.problem.is_empty()) {
        output::note(&format!("storage node {}: {}", replica.node_id, replica.problem));
    }
    Ok(())
}

fn row(replica: &LocatedReplica) -> Vec<String> {
    let part = match (replica.present, replica.coming) {
        (true, true) => "stays",
        (true, false) => "present",
        (false, _) => "coming",
    };
    let answers = match (replica.reachable, replica.draining) {
        (true, true) => "drained",
        (true, false) => "yes",
        (false, _) => "no",
    };
    let is_record = matches!(replica.state.as_str(), "live" | "tombstone");
    let version = match (replica.versions, replica.stamp) {
        (0, 0) => String::new(),
        (0, stamp) => format!("stamp {stamp}"),
        (1, _) => "1 version".to_owned(),
        (versions, _) => format!("{versions} versions"),
    };
    vec![
        replica.node_id.clone(),
        part.to_owned(),
        answers.to_owned(),
        replica.state.clone(),
        if is_record { bytes(u64::try_from(replica.bytes).unwrap_or(0)) } else { String::new() },
        version,
        replica.hash.clone(),
        if replica.state.is_empty() {
            "unknown"
        } else if replica.level {
            "yes"
        } else {
            "no"
        }
        .to_owned(),
    ]
}

fn json(located: &LocateKeyResponse) -> Value {
    let replica = |of: &LocatedReplica| {
        json!({
            "node_id": of.node_id,
            "zone": of.zone,
            "present": of.present,
            "coming": of.coming,
            "reachable": of.reachable,
            "draining": of.draining,
            "state": of.state,
            "problem": of.problem,
            "bytes": of.bytes,
            "stamp": of.stamp,
            "versions": of.versions,
            "hash": of.hash,
            "level": of.level,
        })
    };
    let partition = String::from_utf8_lossy(&located.partition_key);
    json!({
        "token": format!("{:016x}", located.token),
        "partition_key": if located.partition_key_by.is_empty() { None } else { Some(partition) },
        "partition_key_by": located.partition_key_by,
        "ring_version": located.ring_version,
        "replication_factor": located.replication_factor,
        "step": located.step,
        "coming_ring_version": located.coming_ring_version,
        "coming_replication_factor": located.coming_replication_factor,
        "replicas": located.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_a_row() {
        let replica = LocatedReplica {
            node_id: "n1".to_owned(),
            present: true,
            reachable: true,
            state: "live".to_owned(),
            bytes: 2048,
            stamp: 7,
            level: true,
            hash: "ab".to_owned(),
            ..Default::default()
        };
        assert_eq!(row(&replica), ["n1", "present", "yes", "live", "2.0 KiB", "stamp 7", "ab", "yes"]);
        let away = LocatedReplica { coming: true, present: false, ..LocatedReplica::default() };
        assert_eq!(row(&away), ["", "coming", "no", "", "", "", "", "unknown"]);
        let siblings = LocatedReplica { versions: 3, stamp: 0, draining: true, coming: true, level: false, ..replica };
        assert_eq!(row(&siblings)[1..], ["stays", "drained", "live", "2.0 KiB", "3 versions", "ab", "no"]);
    }
}
