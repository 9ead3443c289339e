//! How full the nodes' disks are, and what their clocks show, as reported by the nodes.

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

/// What a node described last; `None` if it did not answer the last time.
#[derive(Debug, Default)]
pub(super) struct LastDescribed(Mutex<Option<Described>>);

#[derive(Debug, Clone, Copy)]
struct Described {
    fullness: Fullness,
    ahead_micros: Option<i64>,
}

impl LastDescribed {
    pub(super) fn fullness(&self) -> Option<Fullness> {
        lock(&self.0).map(|described| described.fullness)
    }

    pub(super) fn ahead_micros(&self) -> Option<i64> {
        lock(&self.0).and_then(|described| described.ahead_micros)
    }

    fn set(&self, described: Option<Described>) {
        *lock(&self.0) = described;
    }
}

/// How far a clock that showed `shown` is ahead of one that showed `asked` and `answered` before and after the question, microseconds: at
/// least, since the answer may have taken any part of the time between. `None`: it is not known.
fn ahead(shown: u64, asked: u64, answered: u64) -> Option<i64> {
    let at_least = if shown > answered { i128::from(shown) - i128::from(answered) } else { 0 };
    let at_most = if shown < asked { i128::from(shown) - i128::from(asked) } else { 0 };
    let apart = (at_least + at_most).clamp(i64::MIN.into(), i64::MAX.into());
    // Between a question and its answer, this clock may have been set back.
    (shown > 0 && asked <= answered).then_some(apart as i64)
}

impl<C: Clock, N: Connect> Lanes<C, N> {
    /// Asks a node how full it is; `None` when it does not answer.
    pub async fn fullness(&self, node: &NodeId) -> Option<Fullness> {
        let asked = self.clock.wall_micros();
        let call = self.scan_call(node, async |mut client: Client| client.describe(DescribeRequest {}).await);
        let response = tokio::time::timeout(TIMEOUT, call).await.ok().and_then(Result::ok);
        let response = response.map(tonic::Response::into_inner);
        if let Some((known, shown)) = self.nodes.load().get(node).zip(response.as_ref())
            && let Some(store) = StoreId::from_slice(&shown.store_id)
        {
            known.vitals.committed_by(store, shown.commit);
        }
        let answered = self.clock.wall_micros();
        let described = response.map(|response| Described {
            fullness: Fullness {
                keys: response.keys_count,
                disk_usage_percent: response.disk_usage_percent,
                bytes: response.disk_bytes,
                reads: response.reads,
                mints: response.mints,
            },
            ahead_micros: ahead(response.clock_micros, asked, answered),
        });
        if let Some(known) = self.nodes.load().get(node) {
            known.described.set(described);
        }
        described.map(|described| described.fullness)
    }

    /// How far the clocks of nodes are ahead of this process's, at least, in microseconds, sorted by id; only of nodes that have reported
    /// it.
    pub fn clocks_ahead(&self) -> Vec<(NodeId, i64)> {
        let nodes = self.nodes.load();
        nodes.iter().filter_map(|(id, node)| Some((id.clone(), node.described.ahead_micros()?))).collect()
    }

    /// Asks all nodes how full they are, for the metrics.
    pub async fn ask_fullness(&self) {
        let nodes: Vec<NodeId> = self.nodes.load().keys().cloned().collect();
        stream::iter(&nodes).for_each_concurrent(CONCURRENT, async |node| _ = self.fullness(node).await).await;
    }
}

#[cfg(test)]
mod tests {
    use super::ahead;

    #[test]
    fn only_what_is_certain_counts() {
        assert_eq!([ahead(150, 100, 200), ahead(100, 100, 200), ahead(200, 100, 200)], [Some(0); 3]);
        assert_eq!((ahead(260, 100, 200), ahead(40, 100, 200), ahead(0, 100, 200)), (Some(60), Some(-60), None));
        assert_eq!(ahead(u64::MAX, 1, 2), Some(i64::MAX));
        assert_eq!(ahead(50, 100, 40), None, "the clock was set back between");
    }
}
