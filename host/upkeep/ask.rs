//! One request to one replica, awaited.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use witan_coordinate::{Coordinator, World};
use witan_kernel::name::NodeId;
use witan_kernel::port::{Collect, Replicas, Reply};
use witan_kernel::replica::{Outcome, ReplicaError, Request};
use witan_kernel::sync::lock;

/// Takes one answer.
struct Once(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Collect for Once {
    fn collect(&self, _: u32, outcome: Outcome) {
        if let Some(waiting) = lock(&self.0).take() {
            // Nobody waits any longer when the work was given up.
            drop(waiting.send(outcome));
        }
    }
}

/// Sends a request, which is to be answered until `deadline` (monotonic microseconds), and waits for the answer.
pub(super) async fn ask<W: World>(
    coordinator: &Coordinator<W>,
    node: &NodeId,
    request: Request,
    deadline: u64,
) -> Outcome {
    let (answer, answered) = oneshot::channel();
    let to: Arc<dyn Collect> = Arc::new(Once(Mutex::new(Some(answer))));
    coordinator.ports().replicas.send(node, request, deadline, Reply::new(to, 0, node.clone()));
    answered.await.unwrap_or_else(|_| Err(ReplicaError::Lost(node.clone())))
}
