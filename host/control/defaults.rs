//! Defaults of new tenants and nodes, for settings that their creation leaves out.

use witan_kernel::limit;
use witan_kernel::name::TenantId;
use witan_kernel::tenant::{Level, ReadRepair, Tenant};

/// Default number of replicas: any two quorums of three share a replica, and one replica may fail.
pub const REPLICATION_FACTOR: u8 = 3;

/// Defaults of new tenants and nodes. They come from the configuration; changing it does not affect existing tenants and nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fallbacks {
    /// A tenant's default consistency level.
    pub default_level: Level,
    /// When replicas that a read found stale are repaired.
    pub read_repair: ReadRepair,
    /// A node's number of points on the ring.
    pub virtual_nodes: u32,
}

impl Default for Fallbacks {
    fn default() -> Self {
        Self { default_level: Level::Quorum, read_repair: ReadRepair::Async, virtual_nodes: limit::VIRTUAL_NODES }
    }
}

impl Fallbacks {
    /// A tenant with these defaults.
    pub fn tenant(&self, id: TenantId, replication_factor: Option<u8>, now_ms: u64) -> Tenant {
        let mut tenant = Tenant::with_defaults(id, replication_factor.unwrap_or(REPLICATION_FACTOR), now_ms);
        tenant.default_level = self.default_level;
        tenant.read_repair = self.read_repair;
        tenant
    }
}
