//! Storage nodes: reachable, with the expected id, of the same version, with a store that has not failed and is not full.

use std::time::Duration;

use witan_kernel::condition::Condition;
use witan_kernel::name::{NodeId, Zone};
use witan_kernel::port::{NodeStatus, StorageNode};
use witan_wire::condition::condition_from_wire;
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::{DescribeRequest, DescribeResponse};

use super::Findings;
use crate::config::plain_host;
use crate::config::settings::Settings;
use crate::process::secured::Secured;
use witan_peer::Tcp;

/// Longest time that a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Percentages of disk use from which an operator should act soon, and at once.
const FULL: (f32, f32) = (80.0, 95.0);
/// Nodes asked at a time.
const AT_ONCE: usize = 16;

/// Checks the recorded nodes, or those of the configuration if none are recorded.
pub(super) async fn examine(settings: &Settings, known: Vec<(String, String, u16)>, findings: &mut Findings) {
    let configured = settings.storage_nodes.iter().map(|node| (node.id.clone(), node.host.clone(), node.port));
    let nodes: Vec<(String, String, u16)> = if known.is_empty() { configured.collect() } else { known };
    if nodes.is_empty() {
        let what = "none are known: name them in storage_nodes, or add them with `witan nodes add`";
        return findings.note("nodes", what);
    }
    // Certificates and secrets are read from files.
    let security = settings.security.clone();
    let opened = tokio::task::spawn_blocking(move || Secured::open(&security).map(|secured| secured.to_nodes()));
    let reach = &match opened.await {
        Ok(Ok(reach)) => reach,
        Ok(Err(error)) => return findings.error("nodes", format!("cannot be asked: {error}")),
        Err(error) => return findings.error("nodes", format!("cannot be asked: {error}")),
    };
    for some in nodes.chunks(AT_ONCE) {
        let asking = |node| async move {
            let (id, host, port): &(String, String, u16) = node;
            (id, host, port, ask(reach, id, host, *port).await)
        };
        let asked = some.iter().map(asking);
        for (id, host, port, answer) in futures::future::join_all(asked).await {
            let about = format!("node {id}");
            match answer {
                Ok(answer) => node(id, &answer, &about, findings),
                Err(why) => findings.error(
                    &about,
                    format!("{host}:{port} does not answer ({why}): start `witan node --id {id}` there, or check the network"),
                ),
            }
        }
    }
}

async fn ask(reach: &Tcp, id: &str, host: &str, port: u16) -> Result<DescribeResponse, String> {
    let id = NodeId::new(id).map_err(|error| error.to_string())?;
    let host = plain_host(host).to_owned();
    let node = StorageNode { id, host, port, virtual_nodes: 1, status: NodeStatus::Active, zone: Zone::default() };
    let asking = async {
        let link = reach.connect(&node).await.map_err(|error| error.to_string())?;
        let answer = StorageNodeServiceClient::new(link).describe(DescribeRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

fn node(id: &str, answer: &DescribeResponse, about: &str, findings: &mut Findings) {
    if answer.node_id != id {
        let what =
            format!("has the id {:?}: another node is at that address; correct its host and port", answer.node_id);
        return findings.error(about, what);
    }
    if let Some(Condition::Failed(reason)) = condition_from_wire(answer.store_state.clone()) {
        let what = format!("its store has failed ({reason}): check its disk, then restart the node");
        return findings.error(about, what);
    }
    let used = answer.disk_usage_percent;
    findings.ok(about, format!("version {} answers; its disk is {used:.0}% full", answer.version));
    let (soon, now) = FULL;
    if used >= now {
        findings.error(
            about,
            format!(
                "its disk is {used:.0}% full, and writes will be refused: free space there, or give it a larger disk"
            ),
        );
    } else if used >= soon {
        findings.warning(about, format!("its disk is {used:.0}% full: plan for a larger one, or for more nodes"));
    }
    if !answer.version.is_empty() && answer.version != env!("CARGO_PKG_VERSION") {
        let what = format!(
            "has version {}, and this program {}: finish the upgrade",
            answer.version,
            env!("CARGO_PKG_VERSION")
        );
        findings.note(about, what);
    }
}
