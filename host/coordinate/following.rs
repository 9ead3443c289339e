//! Up to where this coordinator follows the changes of others. Every request to a replica carries the revision that its operation began
//! with; a replica whose fence is above it refuses, and the operation begins again once later changes are followed.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, watch};
use witan_kernel::failure::{Effect, Failed, Failure};
use witan_kernel::port::{Clock, until};

use super::exchange::Exchange;
use super::{Coordinator, World};

/// How often an operation begins again: once for a change that it has met, and once more for one that was made meanwhile.
pub(super) const RESTARTS: u8 = 2;

/// Longest wait for later changes, microseconds: they are announced within milliseconds and polled for twice a second. Who has not heard
/// of them by then is cut off.
const PATIENCE_MICROS: u64 = 1_000_000;

/// The revision up to which all changes are followed, and who waits for a later one.
#[derive(Default)]
pub(super) struct Following {
    /// Read by every operation.
    revision: AtomicU64,
    /// The same, for those that wait for a later one.
    later: watch::Sender<u64>,
    /// Woken when an operation waits for a later revision.
    behind: Notify,
}

impl<W: World> Coordinator<W> {
    /// All changes up to this revision of the metadata store are followed: operations that begin from now on know of them.
    pub fn set_followed(&self, revision: u64) {
        self.following.revision.store(revision, Ordering::Release);
        self.following.later.send_replace(revision);
    }

    /// The revision up to which all changes are followed. Whoever takes it before anything else knows of all changes up to it.
    pub fn followed(&self) -> u64 {
        self.following.revision.load(Ordering::Acquire)
    }

    /// Ready when an operation was refused because later changes have to be followed first. For one waiter.
    pub async fn behind(&self) {
        self.following.behind.notified().await;
    }

    /// Waits until changes after `revision` are followed, or until `deadline` (monotonic microseconds). False if they are not.
    async fn follows_beyond(&self, revision: u64, deadline: u64) -> bool {
        let mut followed = self.following.later.subscribe();
        self.following.behind.notify_one();
        let now = self.ports.clock.monotonic_micros();
        let time = until(deadline.min(now + PATIENCE_MICROS), now);
        let beyond = tokio::time::timeout(time, followed.wait_for(|followed| *followed > revision)).await;
        matches!(beyond, Ok(Ok(_)))
    }
}

impl<W: World> Exchange<W> {
    /// Whether an operation that failed in this way may begin again under a later plan: a fence has refused it, so that it has done
    /// nothing, and later changes are followed in time. Waits for them.
    pub(super) async fn may_begin_again(&mut self, failed: &Failed, restarts: &mut u8) -> bool {
        if failed.failure != Failure::StaleEpoch || failed.effect == Some(Effect::InDoubt) || *restarts == 0 {
            return false;
        }
        *restarts -= 1;
        let (epoch, deadline) = (self.plan.epoch, self.plan.deadline);
        self.coordinator.follows_beyond(epoch, deadline).await
    }
}
