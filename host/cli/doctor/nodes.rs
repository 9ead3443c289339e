//! Storage nodes: reachable, the ones they should be, of a version like ours, and not full.

use std::time::Duration;

use witan_kernel::name::NodeId;
use witan_kernel::port::{NodeStatus, StorageNode};
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::{DescribeRequest, DescribeResponse};

use super::Findings;
use crate::config::plain_host;
use crate::config::settings::Settings;
use crate::process::secured::Secured;
use witan_peer::{Connect, Tcp};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Per cent of a disk in use from which somebody should act soon, and at once.
const FULL: (f32, f32) = (80.0, 95.0);
/// Nodes that are asked at a time.
const AT_ONCE: usize = 16;

/// Examines the nodes on record, or, where nobody has recorded any, those of the configuration.
pub(super) async fn examine(settings: &Settings, known: Vec<(String, String, u16)>, findings: &mut Findings) {
    let told = settings.storage_nodes.iter().map(|node| (node.id.clone(), node.host.clone(), node.port));
    let nodes: Vec<(String, String, u16)> = if known.is_empty() { told.collect() } else { known };
    if nodes.is_empty() {
        let what = "none is known: name them in storage_nodes, or add them with `witan nodes add`";
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
        for (id, host, port, told) in futures::future::join_all(asked).await {
            let about = format!("node {id}");
            match told {
                Ok(told) => node(id, &told, &about, findings),
                Err(why) => findings.error(
                    &about,
                    format!("{host}:{port} does not answer ({why}): start `witan node --id {id}` there, or check the network between"),
                ),
            }
        }
    }
}

async fn ask(reach: &Tcp, id: &str, host: &str, port: u16) -> Result<DescribeResponse, String> {
    let id = NodeId::new(id).map_err(|error| error.to_string())?;
    let host = plain_host(host).to_owned();
    let node = StorageNode { id, host, port, virtual_nodes: 1, status: NodeStatus::Active };
    let asking = async {
        let link = reach.connect(&node).await.map_err(|error| error.to_string())?;
        let told = StorageNodeServiceClient::new(link).describe(DescribeRequest {}).await;
        told.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

fn node(id: &str, told: &DescribeResponse, about: &str, findings: &mut Findings) {
    if told.node_id != id {
        let what =
            format!("calls itself {:?}: another node is at that address; correct its host and port", told.node_id);
        return findings.error(about, what);
    }
    let used = told.disk_usage_percent;
    findings.ok(about, format!("version {} answers; its disk is {used:.0}% full", told.version));
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
    if !told.version.is_empty() && told.version != env!("CARGO_PKG_VERSION") {
        let what = format!(
            "is of version {}, and this program of {}: finish the upgrade",
            told.version,
            env!("CARGO_PKG_VERSION")
        );
        findings.note(about, what);
    }
}
