//! Applies settings that change while a coordinator serves.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use witan_coordinate::Coordinator;
use witan_upkeep::{Healing, Moves};

use super::config::Live;
use super::signal::stopped;
use super::world::Real;
use crate::access::Access;
use witan_control::defaults::Fallbacks;

/// The parts of a coordinator whose settings change while it serves.
pub(super) struct Changing {
    pub(super) coordinator: Arc<Coordinator<Real>>,
    pub(super) fallbacks: Arc<ArcSwap<Fallbacks>>,
    pub(super) access: Arc<Access>,
    pub(super) healing: Arc<Healing<Real>>,
    pub(super) moves: Arc<Moves<Real>>,
}

impl Changing {
    /// Applies the settings now and at every change, until the stop signal.
    pub(super) async fn follow(self, mut live: watch::Receiver<Live>, stop: watch::Receiver<bool>) {
        let stopped = stopped(stop);
        tokio::pin!(stopped);
        loop {
            let now = live.borrow_and_update().clone();
            self.coordinator.set_timeouts(now.timeouts);
            self.fallbacks.store(Arc::new(now.fallbacks));
            self.access.set_rate_limits(now.rate_limits);
            self.coordinator.ports().replicas.set_weights(now.weights.clone());
            self.coordinator.set_weights(now.weights);
            self.healing.configure(now.healing);
            self.moves.configure(now.moves);
            tokio::select! {
                // The sender is gone: there will be no further change.
                changed = live.changed() => if changed.is_err() { return },
                () = &mut stopped => return,
            }
        }
    }
}
