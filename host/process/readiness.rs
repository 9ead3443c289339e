//! Whether a coordinator should receive traffic: the answer to `/readyz`, and the corresponding metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Clock, Metadata, StoreError};

use super::room::Room;
use super::signal::stopped;
use super::world::Real;
use crate::console::{self, Ready};
use witan_peer::{Connect, Lanes};
use witan_plugin::{LateLoading, PluginHost};
use witan_upkeep::Healing;

/// Largest difference between wall clocks, microseconds; beyond it, one coordinator's stamps push those of others too far ahead.
const CLOCK_BOUND_MICROS: u64 = 60_000_000;
/// Timeout of the metadata store: most probes time out after three seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the metrics are updated.
const LOOK: Duration = Duration::from_secs(10);

/// The metadata store, as readiness depends on it.
pub(super) struct Store {
    pub(super) metadata: Arc<dyn Metadata>,
    /// It has a clock of its own, and not this machine's.
    pub(super) has_clock: bool,
}

/// What is said while large plugins are loaded after the start.
fn late(LateLoading { left, of }: LateLoading) -> Option<String> {
    (left > 0).then(|| {
        format!(
            "{left} of {of} bindings of large plugins are still being loaded since the start; their questions wait for a second, and are \
             then answered as the bindings say for faults"
        )
    })
}

/// Decides whether a coordinator should receive traffic.
pub(super) struct Readiness<C: Clock, N: Connect> {
    store: Store,
    lanes: Arc<Lanes<C, N>>,
    clock: C,
    room: Arc<Room>,
    healing: Arc<Healing<Real>>,
    plugins: PluginHost,
    /// True once it has been ready: then it has cached tenants, and serves them while the metadata store is unavailable.
    has_been: AtomicBool,
    ready: Gauge,
    store_up: Gauge,
}

impl<C: Clock, N: Connect> Readiness<C, N> {
    pub(super) fn new(
        store: Store,
        lanes: Arc<Lanes<C, N>>,
        clock: C,
        room: Arc<Room>,
        healing: Arc<Healing<Real>>,
        plugins: PluginHost,
        registry: &mut Registry,
    ) -> Arc<Self> {
        let (ready, store_up) = (Gauge::default(), Gauge::default());
        registry.register("witan_ready", "1 while this coordinator should receive traffic", ready.clone());
        registry.register("witan_metadata_store_up", "1 while the metadata store answers", store_up.clone());
        Arc::new(Self {
            store,
            lanes,
            clock,
            room,
            healing,
            plugins,
            has_been: AtomicBool::new(false),
            ready,
            store_up,
        })
    }

    /// The readiness check of the admin server.
    pub(super) fn for_probes(self: &Arc<Self>) -> console::Readiness {
        let readiness = Arc::clone(self);
        Arc::new(move || {
            let readiness = Arc::clone(&readiness);
            Box::pin(async move { readiness.judge().await })
        })
    }

    /// Checks now, and updates the metrics.
    pub(super) async fn judge(&self) -> Ready {
        let mut ready = Ready::default();
        let (nodes, reachable) = self.lanes.reachable();
        if reachable * 2 <= nodes {
            ready.reasons.push(format!("{reachable} of {nodes} storage nodes can be reached"));
        }
        let answer = tokio::time::timeout(PATIENCE, self.store.metadata.now_ms()).await;
        let answer = answer.unwrap_or_else(|_| Err(StoreError::Unavailable(format!("no answer within {PATIENCE:?}"))));
        self.store_up.set(answer.is_ok().into());
        let clocks = Clocks::of(&self.lanes.clocks_ahead());
        match answer {
            Ok(_) if !self.store.has_clock && let Some(own) = clocks.own() => ready.reasons.push(own),
            Ok(now_ms) => {
                let apart = self.clock.wall_micros().abs_diff(now_ms.saturating_mul(1000));
                if apart > CLOCK_BOUND_MICROS {
                    let apart = apart / 1_000_000;
                    ready.reasons.push(format!("the clock is {apart} s off the metadata store's; set it right"));
                } else {
                    self.has_been.fetch_or(ready.reasons.is_empty(), Ordering::Relaxed);
                }
            }
            // The store is unavailable to all coordinators: if none were ready, clients could not reach what all can still serve.
            Err(error) if self.has_been.load(Ordering::Relaxed) => ready.notes.push(format!(
                "the metadata store does not answer: {error}; cached tenants are served, but tenants, nodes, plugins and tokens cannot \
                 be changed"
            )),
            Err(error) => ready.reasons.push(format!("the metadata store does not answer: {error}")),
        }
        ready.reasons.extend(self.behind().await);
        ready.notes.extend(clocks.of_nodes());
        ready.notes.extend(self.room.note());
        ready.notes.extend(self.lanes.not_whole().into_iter().filter_map(|(node, trust)| {
            let advice = trust.advice()?;
            let more = self.healing.new_store(&node).map(|more| format!("; {more}")).unwrap_or_default();
            Some(format!("storage node {node} has another store than before: {advice}{more}"))
        }));
        ready.notes.extend(self.healing.notes());
        ready.notes.extend(late(self.plugins.late()));
        ready.notes.extend(self.lanes.failed().into_iter().map(|(node, reason)| {
            format!("the store of storage node {node} has failed: {reason}; check its disk, then restart the node")
        }));
        self.ready.set(ready.reasons.is_empty().into());
        ready
    }

    /// Why the metadata store lacks changes, if it does: nodes have fences of changes that it does not know.
    async fn behind(&self) -> Option<String> {
        let fence = self.lanes.highest_fence();
        if fence == 0 {
            return None;
        }
        // What it does not answer is reported already.
        let changes = tokio::time::timeout(PATIENCE, self.store.metadata.changes(u64::MAX)).await.ok()?.ok()?;
        (changes.revision < fence).then(|| {
            format!(
                "METADATA_BEHIND: the metadata store is at revision {}, and storage nodes have fences of changes up to {fence}: an \
                 earlier copy of it was restored, or a standby without its last changes has taken over. Bring back the newer one; if \
                 it is lost, run `witan cluster restored`, and look at the tenants' settings",
                changes.revision
            )
        })
    }

    /// Keeps the metrics up to date until the stop signal.
    pub(super) async fn watch(self: Arc<Self>, stop: watch::Receiver<bool>) {
        let stopped = stopped(stop);
        tokio::pin!(stopped);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    self.room.look().await;
                    drop(self.judge().await);
                }
                () = &mut stopped => break,
            }
        }
        self.ready.set(0);
    }
}

/// The clocks of storage nodes beside this machine's.
struct Clocks {
    /// Of how many nodes the clock is known.
    known: usize,
    /// Those that are off by more than the bound, with how far they are ahead, in seconds.
    off: Vec<(NodeId, i64)>,
}

impl Clocks {
    /// `ahead`: how far the clocks of nodes are ahead of this machine's, in microseconds.
    fn of(ahead: &[(NodeId, i64)]) -> Self {
        let off = ahead.iter().filter(|(_, ahead)| ahead.unsigned_abs() > CLOCK_BOUND_MICROS);
        Self { known: ahead.len(), off: off.map(|(node, ahead)| (node.clone(), ahead / 1_000_000)).collect() }
    }

    /// Why this machine's clock is wrong, if more than half of the nodes say the same.
    fn own(&self) -> Option<String> {
        let ahead = self.off.iter().filter(|(_, ahead)| *ahead > 0).count();
        let behind = self.off.len() - ahead;
        let (count, way) = if ahead > behind { (ahead, "behind") } else { (behind, "ahead of") };
        let differs = self.off.iter().map(|(_, ahead)| ahead.unsigned_abs()).min()?;
        let known = self.known;
        (2 * count > known).then(|| {
            format!("the clock is at least {differs} s {way} those of {count} of {known} storage nodes; set it right")
        })
    }

    fn of_nodes(&self) -> impl Iterator<Item = String> {
        self.off.iter().map(|(node, ahead)| {
            let way = if *ahead > 0 { "ahead of" } else { "behind" };
            let apart = ahead.unsigned_abs();
            format!("the clock of storage node {node} is {apart} s {way} this coordinator's; set the wrong one right")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(seconds: &[i64]) -> Clocks {
        let node = |number| NodeId::new(format!("n{number}")).expect("a node id");
        let ahead: Vec<_> = seconds.iter().zip(1..).map(|(ahead, number)| (node(number), ahead * 1_000_000)).collect();
        Clocks::of(&ahead)
    }

    #[test]
    fn the_clock_is_wrong_that_most_others_contradict() {
        assert_eq!((clocks(&[]).own(), clocks(&[60, -60, 0]).own()), (None, None));
        assert_eq!(clocks(&[61, 0, 0]).own(), None, "one node is wrong");
        assert_eq!(
            clocks(&[61, -61, 90]).own().as_deref(),
            Some("the clock is at least 61 s behind those of 2 of 3 storage nodes; set it right")
        );
        assert_eq!(
            clocks(&[-86_400]).own().as_deref(),
            Some("the clock is at least 86400 s ahead of those of 1 of 1 storage nodes; set it right")
        );
        assert_eq!(clocks(&[61, -61]).own(), None, "they contradict each other");
        let notes: Vec<String> = clocks(&[0, 75, -3600]).of_nodes().collect();
        assert_eq!(
            notes,
            [
                "the clock of storage node n2 is 75 s ahead of this coordinator's; set the wrong one right",
                "the clock of storage node n3 is 3600 s behind this coordinator's; set the wrong one right",
            ]
        );
    }
}
