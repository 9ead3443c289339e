//! Sends merges to the replicas that lack them: a bounded number at a time, awaited, and retried.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use witan_kernel::name::NodeId;
use witan_kernel::placement::Placed;
use witan_kernel::port::{Collect, Replicas, Reply, Tenants};
use witan_kernel::record::Encoded;
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};
use witan_kernel::scan::stored_order;

use witan_coordinate::{Coordinator, World};

use super::FRESH;
use super::fresh::deadline;
use crate::Metrics;

/// Limit on merges in flight: half of a lane's frame, which leaves room for clients' requests.
const UNDER_WAY: usize = 128;
/// Limit on bytes of merges in flight, unless one merge alone is larger.
const BYTES: usize = 8 << 20;
/// Timeout of one attempt, microseconds, unless less is left of the time for which what was read is fresh.
const WITHIN_MICROS: u64 = 5_000_000;
/// Attempts per merge.
const TRIES: u32 = 5;
/// How often records are read again whose merges have become too old, without any merge stored in between.
const READ_AGAIN: u32 = 3;
/// Pause before the second attempt; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(50);

/// What a merge was made of.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    /// When the first of its sources was read.
    pub(super) read: Instant,
    /// The place after which to read again, if it is too late for the merge.
    pub(super) before: Option<Place>,
    /// Where the tenant's records are. A node that is no replica any longer must not get it back.
    pub(super) placed: Placed,
}

/// The merges of one range.
pub(super) struct Merges<'a, W: World> {
    coordinator: &'a Coordinator<W>,
    metrics: &'a Metrics,
    epoch: u64,
    inbox: Arc<Inbox>,
    under_way: HashMap<u32, Merge>,
    /// Merges to retry, each with the time of its next attempt.
    again: Vec<(Instant, Merge)>,
    bytes: usize,
    last_tag: u32,
    stored: u64,
    stored_bytes: u64,
    unrepaired: Vec<(u8, String)>,
    /// The first place after which to read again, because a merge of what comes there has become too old; the inner `None`: from the
    /// beginning.
    back: Option<Option<Place>>,
    /// How often it was read again since the last merge was stored.
    back_count: u32,
}

struct Merge {
    replica: u8,
    node: NodeId,
    place: Place,
    record: Encoded,
    sources: Sources,
    /// The revision under which it is sent.
    epoch: u64,
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
    /// No merges yet. `epoch`: the revision that the coordinator had followed before anything that is sent was read.
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
            stored_bytes: 0,
            unrepaired: Vec::new(),
            back: None,
            back_count: 0,
        }
    }

    /// Sends a merge, once there is room for it. A replica at which a merge has finally failed is sent no further ones.
    pub(super) async fn send(&mut self, replica: u8, node: &NodeId, place: &Place, record: &Encoded, sources: Sources) {
        if self.unrepaired.iter().any(|(unrepaired, _)| *unrepaired == replica) {
            return;
        }
        while self.open() > 0 && (self.open() >= UNDER_WAY || self.bytes + record.0.len() > BYTES) {
            self.next().await;
        }
        self.bytes += record.0.len();
        let (node, place, record) = (node.clone(), place.clone(), record.clone());
        self.dispatch(Merge { replica, node, place, record, sources, epoch: self.epoch, tries: 0 });
    }

    /// Waits until every merge is stored or has finally failed.
    pub(super) async fn settled(&mut self) {
        while self.open() > 0 {
            self.next().await;
        }
    }

    /// Number of merges stored since the last call, and their bytes.
    pub(super) fn take_stored(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.stored), std::mem::take(&mut self.stored_bytes))
    }

    /// Whether a merge has become too old, so that its sources must be read again.
    pub(super) fn must_go_back(&self) -> bool {
        self.back.is_some()
    }

    /// The place after which to read again, if that is needed.
    pub(super) fn take_back(&mut self) -> Option<Option<Place>> {
        self.back.take()
    }

    /// Replicas that still lack something, with the reason.
    pub(super) fn unrepaired(&self) -> &[(u8, String)] {
        &self.unrepaired
    }

    fn open(&self) -> usize {
        self.under_way.len() + self.again.len()
    }

    fn dispatch(&mut self, merge: Merge) {
        if merge.sources.read.elapsed() >= FRESH {
            return self.too_old(merge);
        }
        self.last_tag = self.last_tag.wrapping_add(1);
        let deadline = deadline(&self.coordinator.ports().clock, merge.sources.read, WITHIN_MICROS);
        let ask = Ask::Merge { record: merge.record.clone() };
        let request = Request { place: merge.place.clone(), epoch: merge.epoch, ask };
        let to: Arc<dyn Collect> = Arc::clone(&self.inbox) as Arc<dyn Collect>;
        let reply = Reply::new(to, self.last_tag, merge.node.clone());
        let node = merge.node.clone();
        self.under_way.insert(self.last_tag, merge);
        self.coordinator.ports().replicas.send(&node, request, deadline, reply);
    }

    /// Gives a merge up whose sources were read too long ago, and has them read again.
    fn too_old(&mut self, merge: Merge) {
        self.bytes -= merge.record.0.len();
        if self.back.is_none() {
            self.back_count += 1;
        }
        if self.back_count > READ_AGAIN {
            self.back = None;
            return self.failed(&merge, "merges could not be stored within the time for which what was read is fresh");
        }
        let is_earlier = |known: &Option<Place>| match (known, &merge.sources.before) {
            (Some(known), Some(before)) => stored_order(before, known).is_lt(),
            (known, _) => known.is_some(),
        };
        if self.back.as_ref().is_none_or(is_earlier) {
            self.back = Some(merge.sources.before);
        }
    }

    fn failed(&mut self, merge: &Merge, error: &str) {
        tracing::warn!(node = %merge.node, tenant = %merge.place.space, %error, "a replica could not be repaired");
        if self.unrepaired.iter().all(|(unrepaired, _)| *unrepaired != merge.replica) {
            self.unrepaired.push((merge.replica, error.to_owned()));
        }
    }

    /// Waits for answers, or for the time of a retry.
    async fn next(&mut self) {
        let arrived = std::mem::take(&mut *self.inbox.arrived.lock().unwrap_or_else(PoisonError::into_inner));
        if !arrived.is_empty() {
            arrived.into_iter().for_each(|(tag, outcome)| self.answered(tag, outcome));
            return;
        }
        let Some(due) = self.again.iter().map(|(at, _)| *at).min() else {
            return self.inbox.filled.notified().await;
        };
        let inbox = Arc::clone(&self.inbox);
        tokio::select! {
            biased;
            () = inbox.filled.notified() => {}
            () = tokio::time::sleep_until(due) => {
                let (now, waiting): (Vec<_>, Vec<_>) = self.again.drain(..).partition(|(at, _)| *at <= due);
                self.again = waiting;
                now.into_iter().for_each(|(_, merge)| self.dispatch(merge));
            }
        }
    }

    fn answered(&mut self, tag: u32, outcome: Outcome) {
        let Some(mut merge) = self.under_way.remove(&tag) else { return };
        let error = match outcome {
            // A store that is being filled has stored it, too.
            Ok(Answer::Merged { .. }) | Err(ReplicaError::Filling(_)) => {
                self.stored += 1;
                self.stored_bytes += merge.record.0.len() as u64;
                self.back_count = 0;
                self.metrics.swept_merges.inc();
                self.bytes -= merge.record.0.len();
                return;
            }
            Ok(_) => ReplicaError::Broken("its answer does not match the request".to_owned()),
            Err(error) => error,
        };
        if error == ReplicaError::StaleEpoch {
            // What is stored may be merged under any settings, as long as there is the tenant: this one, and known to be there since, and
            // where it was.
            let followed = self.coordinator.followed();
            match self.coordinator.ports().tenants.cached(&merge.place.tenant()) {
                Some(tenant) if tenant.deleted_at_ms.is_some() || tenant.placed() != merge.sources.placed => {
                    self.bytes -= merge.record.0.len();
                    return;
                }
                Some(_) => merge.epoch = followed,
                None => {}
            }
        }
        merge.tries += 1;
        if merge.tries < TRIES && error != ReplicaError::WrongMode {
            let pause = PAUSE * 2_u32.pow(merge.tries - 1);
            self.again.push((Instant::now() + pause, merge));
            return;
        }
        self.bytes -= merge.record.0.len();
        self.failed(&merge, &error.to_string());
    }
}
