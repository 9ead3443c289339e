//! Which implementation stands behind each port of a running coordinator.

use std::sync::Arc;

use witan_coordinate::World;
use witan_kernel::hook::Pending;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::StorageNode;
use witan_kernel::scan::is_whole;
use witan_peer::{Connect, Connecting, Lanes, Tcp, Trust};
use witan_store::metadata::Metadata;
use witan_store::tenants::TenantCache;

use super::stores::Idempotency;
use super::system::{SystemClock, SystemRandomness};

/// Sockets to nodes whose stores are held against those on record.
#[derive(Clone)]
pub struct Registered {
    pub(super) metadata: Arc<dyn Metadata>,
    pub(super) sockets: Tcp,
}

impl Connect for Registered {
    fn connect(&self, node: &StorageNode) -> Connecting {
        self.sockets.connect(node)
    }

    fn admit(&self, node: &NodeId, store: StoreId) -> Pending<Result<Trust, String>> {
        let on_record = self.metadata.record_store_id(node, store);
        Box::pin(async move {
            match on_record.await {
                Ok(on_record) if is_whole(on_record, store) => Ok(Trust::Whole),
                Ok(_) => Ok(Trust::WriteOnly),
                Err(error) => Err(format!("the node's store cannot be held against the one on record: {error}")),
            }
        })
    }
}

/// Sockets, the machine's clock, and the stores that were chosen.
pub struct Real;

impl World for Real {
    type Clock = SystemClock;
    type Randomness = SystemRandomness;
    type Replicas = Arc<Lanes<SystemClock, Registered>>;
    type Idempotency = Idempotency;
    type Tenants = Arc<TenantCache>;
}
