//! How full nodes are, as they have told.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, stream};
use witan_kernel::name::NodeId;
use witan_kernel::port::Clock;
use witan_kernel::scan::Fullness;
use witan_wire::v1::DescribeRequest;

use super::range::Client;
use super::{Connect, Lanes};

/// Nodes that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;
/// How long a node may take to say.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a node has told last; nothing once it has not answered.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Option<Fullness>>);

impl Told {
    pub(super) fn last(&self) -> Option<Fullness> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, told: Option<Fullness>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }
}

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// Asks a node how full it is; `None` when it does not answer.
    pub async fn fullness(&self, node: &NodeId) -> Option<Fullness> {
        let asked = self.walk(node, async |mut client: Client| client.describe(DescribeRequest {}).await);
        let told =
            tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok).map(tonic::Response::into_inner);
        let told = told.map(|told| Fullness { keys: told.keys_count, disk_usage_percent: told.disk_usage_percent });
        if let Some(known) = self.nodes.load().get(node) {
            known.told.keep(told);
        }
        told
    }

    /// Asks all nodes how full they are, for the metrics to tell.
    pub async fn ask_fullness(&self) {
        let nodes: Vec<NodeId> = self.nodes.load().keys().cloned().collect();
        stream::iter(&nodes).for_each_concurrent(ASKED_AT_ONCE, async |node| _ = self.fullness(node).await).await;
    }
}
