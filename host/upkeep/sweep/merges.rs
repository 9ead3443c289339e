//! Merges on their way to replicas that lack them: bounded, heard out, and tried again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use witan_kernel::name::NodeId;
use witan_kernel::port::{Clock, Collect, Replicas, Reply};
use witan_kernel::record::Encoded;
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};

use witan_coordinate::{Coordinator, World};

use crate::Metrics;

/// Merges under way at most: half of what a lane puts into one frame, so that clients' requests find room beside them.
const UNDER_WAY: usize = 128;
/// Bytes of merges under way, unless one alone has more.
const BYTES: usize = 8 << 20;
/// How long one attempt may take, microseconds.
const WITHIN_MICROS: u64 = 5_000_000;
/// Attempts at one merge.
const TRIES: u32 = 5;
/// Pause before the second attempt; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(50);

/// One range's merges.
pub(super) struct Merges<'a, W: World> {
    coordinator: &'a Coordinator<W>,
    metrics: &'a Metrics,
    epoch: u64,
    inbox: Arc<Inbox>,
    under_way: HashMap<u32, Merge>,
    /// To be sent again, each at its time.
    again: Vec<(Instant, Merge)>,
    bytes: usize,
    last_tag: u32,
    stored: u64,
    unmended: Vec<(u8, String)>,
}

struct Merge {
    replica: u8,
    node: NodeId,
    place: Place,
    record: Encoded,
    tries: u32,
}

#[derive(Default)]
struct Inbox {
    arrived: Mutex<Vec<(u32, Outcome)>>,
    filled: Notify,
}

impl Collect for Inbox {
    fn collect(&self, tag: u32, outcome: Outcome) {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).push((tag, outcome));
        self.filled.notify_one();
    }
}

impl<'a, W: World> Merges<'a, W> {
    /// None yet. `epoch` is the placement's under which replicas are chosen.
    pub(super) fn new(coordinator: &'a Coordinator<W>, metrics: &'a Metrics, epoch: u64) -> Self {
        Self {
            coordinator,
            metrics,
            epoch,
            inbox: Arc::default(),
            under_way: HashMap::new(),
            again: Vec::new(),
            bytes: 0,
            last_tag: 0,
            stored: 0,
            unmended: Vec::new(),
        }
    }

    /// Sends a merge, once there is room for it. A replica that has refused one for good is sent no more.
    pub(super) async fn send(&mut self, replica: u8, node: &NodeId, place: &Place, record: &Encoded) {
        if self.unmended.iter().any(|(unmended, _)| *unmended == replica) {
            return;
        }
        while self.open() > 0 && (self.open() >= UNDER_WAY || self.bytes + record.0.len() > BYTES) {
            self.next().await;
        }
        self.bytes += record.0.len();
        self.dispatch(Merge { replica, node: node.clone(), place: place.clone(), record: record.clone(), tries: 0 });
    }

    /// Waits until every merge is stored or given up.
    pub(super) async fn settled(&mut self) {
        while self.open() > 0 {
            self.next().await;
        }
    }

    /// Merges stored since this was asked last.
    pub(super) fn take_stored(&mut self) -> u64 {
        std::mem::take(&mut self.stored)
    }

    /// Replicas that lack something still, and why.
    pub(super) fn unmended(&self) -> &[(u8, String)] {
        &self.unmended
    }

    fn open(&self) -> usize {
        self.under_way.len() + self.again.len()
    }

    fn dispatch(&mut self, merge: Merge) {
        self.last_tag = self.last_tag.wrapping_add(1);
        let deadline = self.coordinator.ports().clock.monotonic_micros() + WITHIN_MICROS;
        let ask = Ask::Merge { record: merge.record.clone() };
        let request = Request { place: merge.place.clone(), epoch: self.epoch, ask };
        let to: Arc<dyn Collect> = Arc::clone(&self.inbox) as Arc<dyn Collect>;
        let reply = Reply::new(to, self.last_tag, merge.node.clone());
        let node = merge.node.clone();
        self.under_way.insert(self.last_tag, merge);
        self.coordinator.ports().replicas.send(&node, request, deadline, reply);
    }

    /// Waits for something to happen: answers, or the time of another attempt.
    async fn next(&mut self) {
        let arrived = std::mem::take(&mut *self.inbox.arrived.lock().unwrap_or_else(PoisonError::into_inner));
        if !arrived.is_empty() {
            arrived.into_iter().for_each(|(tag, outcome)| self.heard(tag, outcome));
            return;
        }
        let Some(due) = self.again.iter().map(|(at, _)| *at).min() else {
            return self.inbox.filled.notified().await;
        };
        let inbox = Arc::clone(&self.inbox);
        tokio::select! {
            () = inbox.filled.notified() => {}
            () = tokio::time::sleep_until(due) => {
                let (now, waiting): (Vec<_>, Vec<_>) = self.again.drain(..).partition(|(at, _)| *at <= due);
                self.again = waiting;
                now.into_iter().for_each(|(_, merge)| self.dispatch(merge));
            }
        }
    }

    fn heard(&mut self, tag: u32, outcome: Outcome) {
        let Some(mut merge) = self.under_way.remove(&tag) else { return };
        let error = match outcome {
            Ok(Answer::Merged { .. }) => {
                self.stored += 1;
                self.metrics.swept_merges.inc();
                self.bytes -= merge.record.0.len();
                return;
            }
            Ok(_) => ReplicaError::Broken("it has answered another question than it was asked".to_owned()),
            Err(error) => error,
        };
        merge.tries += 1;
        if merge.tries < TRIES && error != ReplicaError::WrongMode {
            let pause = PAUSE * 2_u32.pow(merge.tries - 1);
            self.again.push((Instant::now() + pause, merge));
            return;
        }
        self.bytes -= merge.record.0.len();
        tracing::warn!(node = %merge.node, tenant = %merge.place.tenant, %error, "a replica could not be repaired");
        if self.unmended.iter().all(|(unmended, _)| *unmended != merge.replica) {
            self.unmended.push((merge.replica, error.to_string()));
        }
    }
}
