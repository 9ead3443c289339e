//! How full the nodes' disks are, as reported by the nodes.

use std::sync::Mutex;
use std::time::Duration;

use futures::{StreamExt, stream};
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::Clock;
use witan_kernel::scan::Fullness;
use witan_kernel::sync::lock;
use witan_wire::v1::DescribeRequest;

use super::range::Client;
use super::{Connect, Lanes};

/// Most nodes that are asked concurrently.
const CONCURRENT: usize = 16;
/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The fullness that a node reported last; `None` if it did not answer the last time.
#[derive(Debug, Default)]
pub(super) struct LastFullness(Mutex<Option<Fullness>>);

impl LastFullness {
    pub(super) fn get(&self) -> Option<Fullness> {
        *lock(&self.0)
    }

    fn set(&self, fullness: Option<Fullness>) {
        *lock(&self.0) = fullness;
    }
}

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// Asks a node how full it is; `None` when it does not answer.
    pub async fn fullness(&self, node: &NodeId) -> Option<Fullness> {
        let call = self.scan_call(node, async |mut client: Client| client.describe(DescribeRequest {}).await);
        let response = tokio::time::timeout(TIMEOUT, call).await.ok().and_then(Result::ok);
        let response = response.map(tonic::Response::into_inner);
        if let Some((known, shown)) = self.nodes.load().get(node).zip(response.as_ref())
            && let Some(store) = StoreId::from_slice(&shown.store_id)
        {
            known.vitals.committed_by(store, shown.commit);
        }
        let fullness = response
            .map(|response| Fullness { keys: response.keys_count, disk_usage_percent: response.disk_usage_percent });
        if let Some(known) = self.nodes.load().get(node) {
            known.fullness.set(fullness);
        }
        fullness
    }

    /// Asks all nodes how full they are, for the metrics.
    pub async fn ask_fullness(&self) {
        let nodes: Vec<NodeId> = self.nodes.load().keys().cloned().collect();
        stream::iter(&nodes).for_each_concurrent(CONCURRENT, async |node| _ = self.fullness(node).await).await;
    }
}
