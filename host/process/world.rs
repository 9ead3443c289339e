//! The implementation of each port of a running coordinator.

use std::sync::Arc;

use witan_control::{TenantCache, stores};
use witan_coordinate::World;
use witan_kernel::hook::Pending;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{Metadata, StorageNode, StoreError};
use witan_peer::{Connect, Connecting, Lanes, Met, Tcp};

use super::stores::Idempotency;
use super::system::{SystemClock, SystemRandomness};

/// Connects to nodes over sockets, and compares their stores with those on record.
#[derive(Clone)]
pub struct Registered {
    pub(super) metadata: Arc<dyn Metadata>,
    pub(super) sockets: Tcp,
}

impl Connect for Registered {
    fn connect(&self, node: &StorageNode) -> Connecting {
        self.sockets.connect(node)
    }

    fn meet(&self, node: &NodeId, store: StoreId, commit: u64, before: u64) -> Pending<Result<Met, StoreError>> {
        let (metadata, node) = (Arc::clone(&self.metadata), node.clone());
        Box::pin(async move { stores::meet(metadata.as_ref(), &node, store, commit, before).await })
    }
}

/// The ports of production: sockets, the machine's clock, and the configured stores.
pub struct Real;

impl World for Real {
    type Clock = SystemClock;
    type Randomness = SystemRandomness;
    type Replicas = Arc<Lanes<SystemClock, Registered>>;
    type Idempotency = Idempotency;
    type Tenants = Arc<TenantCache>;
}
