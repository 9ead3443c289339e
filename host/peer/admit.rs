//! Nodes that are written to only, until the store that they have is the one on record.

use witan_kernel::name::NodeId;
use witan_kernel::port::Clock;

use super::{Connect, Lanes, Trust};

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// Nodes within reach whose store is not the one on record, by id.
    pub fn write_only(&self) -> Vec<NodeId> {
        let nodes = self.nodes.load();
        let standing = nodes.iter().filter_map(|(id, node)| node.vitals.standing().map(|standing| (id, standing)));
        let mut ids: Vec<NodeId> = standing.filter(|(_, standing)| !standing.whole).map(|(id, _)| id.clone()).collect();
        ids.sort();
        ids
    }

    /// Asks about the stores of nodes that are written to only once more: one that has been filled since, and put on record,
    /// is asked like any other from now on. An error leaves a node as it is.
    pub async fn admit_again(&self) {
        let nodes = self.nodes.load_full();
        for (id, node) in nodes.iter() {
            let Some(standing) = node.vitals.standing().filter(|standing| !standing.whole) else { continue };
            match self.connect.admit(id, standing.store).await {
                Ok(Trust::Whole) => {
                    node.vitals.made_whole(standing.store);
                    tracing::info!(node = %id, "the node's new store is whole: it is asked again");
                }
                Ok(Trust::WriteOnly) => {}
                Err(reason) => tracing::debug!(node = %id, %reason, "a node's store could not be asked about"),
            }
        }
    }
}
