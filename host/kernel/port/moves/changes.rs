//! What a placement change is about.

use crate::name::{NodeId, TenantId};
use crate::port::{NodeStatus, PlacementChange, StorageNode};

impl PlacementChange {
    /// The node that joins, leaves or is updated, or whose store is replaced.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::AddNode(node) => Some(&node.id),
            Self::RemoveNode { node, .. } | Self::UpdateNode { node, .. } | Self::ReplaceStore { node, .. } => {
                Some(node)
            }
            Self::ReplicationFactor { .. } | Self::Generation { .. } => None,
        }
    }

    /// True if it makes the next version of the ring.
    pub fn changes_ring(&self) -> bool {
        match self {
            Self::AddNode(_) | Self::RemoveNode { .. } | Self::UpdateNode { .. } => true,
            Self::ReplaceStore { .. } | Self::ReplicationFactor { .. } | Self::Generation { .. } => false,
        }
    }

    /// The tenant that is to have another factor, or another generation.
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::ReplicationFactor { tenant, .. } | Self::Generation { tenant, .. } => Some(tenant),
            Self::AddNode(_) | Self::RemoveNode { .. } | Self::UpdateNode { .. } | Self::ReplaceStore { .. } => None,
        }
    }

    /// As it is recorded: a node that joins is active.
    pub(super) fn recorded(self) -> Self {
        match self {
            Self::AddNode(node) => Self::AddNode(StorageNode { status: NodeStatus::Active, ..node }),
            other => other,
        }
    }
}
