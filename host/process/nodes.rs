//! Polling of the storage nodes of a running coordinator.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use witan_peer::Lanes;

use super::signal::stopped;
use super::system::SystemClock;
use super::world::Registered;

/// How often write-only nodes are checked again: another coordinator may have recorded their stores.
const WATCH_STORES: Duration = Duration::from_secs(2);

/// How often nodes report how full they are: disks fill within hours.
const ASK_FULLNESS: Duration = Duration::from_secs(15);

/// Admits nodes with a new store once it is on record, and polls how full all nodes are, until the stop signal.
pub(super) async fn watch_nodes(lanes: Arc<Lanes<SystemClock, Registered>>, stop: watch::Receiver<bool>) {
    let stopped = stopped(stop);
    tokio::pin!(stopped);
    // Nodes that have not been reached yet cannot be polled.
    lanes.tried().await;
    let mut fullness = tokio::time::interval(ASK_FULLNESS);
    fullness.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_STORES) => lanes.admit_again().await,
            _ = fullness.tick() => lanes.ask_fullness().await,
            () = &mut stopped => return,
        }
    }
}
