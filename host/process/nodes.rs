//! The storage nodes of a running coordinator: those of its configuration, the ring that they make, and what is asked of them now and
//! then.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use witan_kernel::name::NodeId;
use witan_kernel::port::StorageNode;
use witan_kernel::ring::Ring;
use witan_peer::Lanes;
use witan_store::metadata::{Metadata, NodeOnRecord};

use super::signal::stopped;
use super::system::SystemClock;
use super::world::Registered;

/// On a first start the nodes of the configuration take part. Later ones join by AddStorageNode; one that has moved is
/// updated, for its data moves with it. How many virtual nodes it has stays: another number would move keys, and not their data.
pub(super) async fn register_nodes(metadata: &dyn Metadata, wanted: &[StorageNode], now_ms: u64) -> anyhow::Result<()> {
    metadata.found_nodes(wanted.to_vec(), now_ms).await.context("add the first nodes")?;
    let known = metadata.nodes().await.context("read nodes")?;
    for node in wanted {
        match known.iter().find(|on_record| on_record.node.id == node.id) {
            Some(NodeOnRecord { node: known, .. }) => {
                if known.virtual_nodes != node.virtual_nodes {
                    tracing::warn!(
                        node = %node.id,
                        on_record = known.virtual_nodes,
                        configured = node.virtual_nodes,
                        "the number of a node's virtual nodes is fixed when it joins; what is configured has no effect"
                    );
                }
                if (&known.host, known.port) != (&node.host, node.port) {
                    let moved = StorageNode { host: node.host.clone(), port: node.port, ..known.clone() };
                    metadata.put_node(moved, now_ms).await.context("update a node")?;
                }
            }
            None => anyhow::bail!(
                "node {} is not part of this cluster, which has nodes already; add it with `witan nodes add`",
                node.id
            ),
        }
    }
    Ok(())
}

/// The ring that nodes make.
pub(super) fn ring_of(nodes: &[StorageNode], epoch: u64) -> Ring {
    let points: Vec<(NodeId, u32)> = nodes.iter().map(|node| (node.id.clone(), node.virtual_nodes)).collect();
    Ring::new(&points, epoch)
}

/// How often nodes that are written to only are asked about: another coordinator may have put their stores on record.
const WATCH_STORES: Duration = Duration::from_secs(2);

/// How often nodes are asked how full they are: disks fill within hours.
const ASK_FULLNESS: Duration = Duration::from_secs(15);

/// Asks nodes with a new store again once it is on record, and all nodes how full they are, until the signal to stop is given.
pub(super) async fn watch_nodes(lanes: Arc<Lanes<SystemClock, Registered>>, stop: watch::Receiver<bool>) {
    let stopped = stopped(stop);
    tokio::pin!(stopped);
    // Nodes that have not been reached yet cannot be asked.
    lanes.tried().await;
    let mut fullness = tokio::time::interval(ASK_FULLNESS);
    fullness.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_STORES) => lanes.admit_again().await,
            _ = fullness.tick() => lanes.ask_fullness().await,
            () = &mut stopped => return,
        }
    }
}
