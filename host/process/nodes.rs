//! Polling of the storage nodes of a running coordinator.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use witan_control::stores::{NOTE_EVERY, Progress};
use witan_kernel::port::Metadata;
use witan_peer::Lanes;

use super::signal::stopped;
use super::system::SystemClock;
use super::world::Registered;

/// How often nodes with a new store are checked again: another coordinator may have recorded their stores.
const WATCH_STORES: Duration = Duration::from_secs(2);

/// How often nodes report how full they are: disks fill within hours.
const ASK_FULLNESS: Duration = Duration::from_secs(15);

/// Checks nodes with a new store again, polls how full all nodes are, and records the progress of their stores, until the stop signal.
pub(super) async fn watch_nodes(
    lanes: Arc<Lanes<SystemClock, Registered>>,
    metadata: Arc<dyn Metadata>,
    stop: watch::Receiver<bool>,
) {
    let stopped = stopped(stop);
    tokio::pin!(stopped);
    // Nodes that have not been reached yet cannot be polled.
    lanes.tried().await;
    let mut fullness = tokio::time::interval(ASK_FULLNESS);
    fullness.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut progress, mut note) = (Progress::default(), tokio::time::interval(NOTE_EVERY));
    note.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_STORES) => lanes.meet_again(false).await,
            _ = note.tick() => if let Err(error) = progress.note(metadata.as_ref(), lanes.commits()).await {
                tracing::debug!(%error, "the progress of stores could not be recorded");
            },
            _ = fullness.tick() => lanes.ask_fullness().await,
            () = &mut stopped => return,
        }
    }
}
