//! One merge to one replica: sent under one epoch, tried again, and counted only if the store that was sent it is the one that is there
//! when it is acknowledged.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use witan_coordinate::{Coordinator, World};
use witan_kernel::name::NodeId;
use witan_kernel::port::Replicas;
use witan_kernel::record::Encoded;
use witan_kernel::replica::{Answer, Ask, Place, ReplicaError, Request};

use crate::ask::ask;
use crate::sweep::fresh::{FRESH, deadline};

/// Attempts at a merge.
const TRIES: u32 = 5;
/// Pause before the second attempt; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(50);
/// Timeout of one attempt, microseconds, unless less is left of the time for which what was read is fresh.
const WITHIN_MICROS: u64 = 5_000_000;

/// Sends a merge until the replica has it. `read`: when the first was read of what it is made of.
///
/// # Errors
/// The last attempt's; [`ReplicaError::StaleEpoch`] at once: what was read under an epoch is never sent under another one.
/// [`ReplicaError::Late`] when it was read too long ago.
pub(super) async fn merge<W: World>(
    coordinator: &Coordinator<W>,
    node: &NodeId,
    place: &Place,
    record: &Encoded,
    epoch: u64,
    read: Instant,
) -> Result<(), ReplicaError> {
    let replicas = &coordinator.ports().replicas;
    let mut tries = 0;
    loop {
        if read.elapsed() >= FRESH {
            return Err(ReplicaError::Late);
        }
        let incarnation = replicas.incarnation(node);
        let request = Request { place: place.clone(), epoch, ask: Ask::Merge { record: record.clone() } };
        let deadline = deadline(&coordinator.ports().clock, read, WITHIN_MICROS);
        let error = match ask(coordinator, node, request, deadline).await {
            Ok(Answer::Merged { .. }) if replicas.incarnation(node) == incarnation => return Ok(()),
            Ok(Answer::Merged { .. }) => ReplicaError::Incomplete(node.clone()),
            Ok(_) => ReplicaError::misfit(),
            Err(error) => error,
        };
        tries += 1;
        if tries >= TRIES || matches!(error, ReplicaError::StaleEpoch | ReplicaError::WrongMode) {
            return Err(error);
        }
        sleep(PAUSE * 2_u32.pow(tries - 1)).await;
    }
}
