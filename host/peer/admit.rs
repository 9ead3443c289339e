//! Nodes in write-only state: those whose store is not the one on record. They are written to, and not read from.

use witan_kernel::name::NodeId;
use witan_kernel::port::Clock;

use super::{Connect, Lanes, Trust};

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// Ids of the connected nodes whose store is not the one on record, sorted.
    pub fn write_only(&self) -> Vec<NodeId> {
        let nodes = self.nodes.load();
        let standing = nodes.iter().filter_map(|(id, node)| node.vitals.standing().map(|standing| (id, standing)));
        let mut ids: Vec<NodeId> = standing.filter(|(_, standing)| !standing.whole).map(|(id, _)| id.clone()).collect();
        ids.sort();
        ids
    }

    /// Checks again whether the stores of write-only nodes are on record by now. A node whose store has been refilled and recorded
    /// is read from again. A node whose check fails stays as it is.
    pub async fn admit_again(&self) {
        let nodes = self.nodes.load_full();
        for (id, node) in nodes.iter() {
            let Some(standing) = node.vitals.standing().filter(|standing| !standing.whole) else { continue };
            match self.connect.admit(id, standing.store).await {
                Ok(Trust::Whole) => {
                    node.vitals.made_whole(standing.store);
                    tracing::info!(node = %id, "the node's new store is complete: it is read from again");
                }
                Ok(Trust::WriteOnly) => {}
                Err(reason) => tracing::debug!(node = %id, %reason, "cannot check a node's store"),
            }
        }
    }
}
