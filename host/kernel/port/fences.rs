//! What storage nodes owe for a change: fences, and the removal of a deleted tenant's records. Recorded with the change, and forgotten
//! when the node has done it.

use super::Answer;
use crate::name::{NodeId, TenantId};
use crate::tenant::Level;

/// Most owed fences or removals that one question is answered with: those of every node of the largest cluster, for one tenant.
pub const OWED: usize = super::placement::NODES;

/// A tenant, and a node that owes something for it.
pub type Owing = (TenantId, NodeId);

/// A tenant (`None`: all tenants), and a node that owes a fence for it.
pub type Fencing = (Option<TenantId>, NodeId);

/// A [fence](crate::fence) that a node has not confirmed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwedFence {
    /// The tenant that was changed; `None`: what holds for every tenant.
    pub tenant: Option<TenantId>,
    /// The node that owes it.
    pub node: NodeId,
    /// The revision of the change.
    pub epoch: u64,
    /// The least level that operations could have before any of the changes that the fence is for.
    pub level: Level,
}

/// Owed fences.
pub trait FenceStore: Send + Sync + 'static {
    /// The fences that are owed for one tenant, or all that are owed, by tenant (those for all tenants first) and node, after this tenant
    /// and node; at most [`OWED`].
    fn owed_fences(&self, tenant: Option<&TenantId>, after: Option<Fencing>) -> Answer<Vec<OwedFence>>;

    /// A node has raised the fence of a tenant (`None`: of all tenants) to `epoch`, durably: it owes none of this or an earlier epoch.
    /// This is no change that others follow.
    fn fence_raised(&self, tenant: Option<&TenantId>, node: &NodeId, epoch: u64) -> Answer<()>;

    /// Nodes that may still hold records of tenants which were deleted at `deleted_by_ms` (Unix time, milliseconds) or earlier, by tenant
    /// and node, after this tenant and node; at most [`OWED`].
    fn owed_removals(&self, deleted_by_ms: u64, after: Option<Owing>) -> Answer<Vec<Owing>>;

    /// A node holds no record of a deleted tenant any longer. This is no change that others follow.
    fn records_removed(&self, tenant: &TenantId, node: &NodeId) -> Answer<()>;
}
