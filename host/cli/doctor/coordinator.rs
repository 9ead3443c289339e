//! The state of a running coordinator: the nodes it can reach, and its plugins.

use std::collections::HashSet;

use tonic::Status;
use witan_wire::v1::{Binding, ListBindingsRequest, ListPluginsRequest, ListStorageNodesRequest, StorageNodeInfo};

use super::Findings;
use crate::cli::Global;
use crate::cli::client::{self, within};

/// Asks a coordinator. If none runs, that is only a note: operators also check before the first start.
pub(super) async fn examine(global: &Global, findings: &mut Findings) {
    let about = "coordinator";
    let mut client = match client::coordinator(global).await {
        Ok(client) => client,
        Err(error) => return findings.note(about, format!("{error}; name a running one with --endpoint")),
    };
    match client.list_storage_nodes(within(global, ListStorageNodesRequest {})).await {
        Ok(listed) => nodes(&listed.into_inner().nodes, findings),
        Err(status) => return refused(&status, global, findings),
    }
    if let Err(status) = plugins(global, findings).await {
        refused(&status, global, findings);
    }
}

fn refused(status: &Status, global: &Global, findings: &mut Findings) {
    let what = format!("{} refuses to report its state: {}", global.endpoint, status.message());
    findings.warning("coordinator", what);
}

fn nodes(nodes: &[StorageNodeInfo], findings: &mut Findings) {
    let reachable = nodes.iter().filter(|node| node.reachable).count();
    let what = format!("reaches {reachable} of {} storage nodes", nodes.len());
    if reachable * 2 <= nodes.len() {
        findings.error("coordinator", format!("{what}, which is not enough: see the nodes' findings"));
    } else if reachable < nodes.len() {
        findings.warning("coordinator", format!("{what}: see the nodes' findings"));
    } else {
        findings.ok("coordinator", what);
    }
    for node in nodes.iter().filter(|node| node.write_only) {
        let what = match node.state_message.as_str() {
            "" => "has a different store than before and gets writes only: run `witan repair`",
            message => message,
        };
        findings.warning(&format!("node {}", node.node_id), what);
    }
}

async fn plugins(global: &Global, findings: &mut Findings) -> Result<(), Status> {
    let Ok(mut client) = client::plugins(global).await else { return Ok(()) };
    let listed = client.list_plugins(within(global, ListPluginsRequest::default())).await?.into_inner();
    let uploaded: HashSet<String> = listed.plugins.into_iter().map(|plugin| plugin.digest).collect();
    let answer = client.list_bindings(within(global, ListBindingsRequest::default())).await?.into_inner();
    if answer.bindings.is_empty() {
        findings.ok("plugins", "none is bound");
    }
    answer.bindings.iter().for_each(|bound| binding(bound, &uploaded, findings));
    Ok(())
}

fn binding(bound: &Binding, uploaded: &HashSet<String>, findings: &mut Findings) {
    let tenant = if bound.tenant_id.is_empty() { "all tenants" } else { &bound.tenant_id };
    let shown = format!("{} {} ({} of {tenant})", bound.name, bound.version, bound.hook);
    if !uploaded.contains(&bound.digest) {
        let what = format!("{shown} is bound, but its component is missing: push it again, or roll the binding back");
        return findings.error("plugins", what);
    }
    if !bound.broken.is_empty() {
        let what = format!(
            "{shown} does not answer: {}: bind it again, roll the binding back, or push a version that works",
            bound.broken
        );
        return findings.error("plugins", what);
    }
    if bound.breaker_open {
        let what = format!(
            "{shown} has failed too often, for {} tenants, and is asked {} of 1,000 questions: `witan plugin events` says why; roll the \
             binding back, or push a version that works",
            bound.breakers_open, bound.admitted_permille
        );
        return findings.error("plugins", what);
    }
    findings.ok("plugins", format!("{shown} is in force; {} of {} calls failed", bound.faults, bound.calls));
}
