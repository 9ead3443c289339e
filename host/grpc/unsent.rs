//! Answers of sessions that are ready and have not been sent. Each takes little, but a session has thousands of operations, and there may
//! be thousands of sessions whose clients take no answers. A session that has such answers begins no further operation while all sessions
//! together, or those of its tenant, have too many; so its client is slowed down, and nobody else is.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::access::caller::Caller;

/// Bytes of all such answers at which sessions begin to wait: those of 100,000 operations.
const ALL: usize = 64 << 20;
/// Those of one tenant, so that there is room for others.
const OF_TENANT: usize = ALL / 4 * 3;
/// What a session may always have, so that it goes on whatever others do: the answers of about ten operations.
const ALWAYS: usize = 4 << 10;
/// Number of counters of tenants. Tenants are assigned to them by hash, so that the table is bounded whatever ids arrive.
const COUNTERS: usize = 4096;

/// Bytes of the unsent answers of all sessions.
#[derive(Debug)]
pub struct Unsent {
    bytes: AtomicUsize,
    tenants: Box<[AtomicUsize]>,
}

/// Those of one session.
#[derive(Debug)]
pub(super) struct OfSession {
    all: Arc<Unsent>,
    /// The counter of the tenant to which the caller's credential is bound.
    tenant: Option<usize>,
    bytes: AtomicUsize,
    fell: Notify,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Ready {
    session: Arc<OfSession>,
    bytes: usize,
}

impl Default for Unsent {
    fn default() -> Self {
        Self { bytes: AtomicUsize::new(0), tenants: (0..COUNTERS).map(|_| AtomicUsize::new(0)).collect() }
    }
}

/// What is read when metrics are collected.
#[derive(Debug)]
struct Now(Arc<Unsent>);

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Bytes of answers of sessions, without values, that clients have not taken yet";
        let encoder = encoder.encode_descriptor("witan_session_answer_bytes", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(self.0.bytes.load(Ordering::Relaxed)).unwrap_or(i64::MAX)).encode(encoder)
    }
}

impl Unsent {
    /// Makes their number visible.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Now(Arc::clone(self))));
    }

    /// A session of this caller.
    pub(super) fn session(self: &Arc<Self>, caller: &Caller) -> Arc<OfSession> {
        let counter = |bytes| BuildHasherDefault::<DefaultHasher>::default().hash_one(bytes) as usize % COUNTERS;
        self.of(caller.credential().tenant().map(|tenant| counter(tenant.bytes())))
    }

    fn of(self: &Arc<Self>, tenant: Option<usize>) -> Arc<OfSession> {
        Arc::new(OfSession { all: Arc::clone(self), tenant, bytes: AtomicUsize::new(0), fell: Notify::new() })
    }
}

impl OfSession {
    /// An answer of this size is ready.
    pub(super) fn ready(self: &Arc<Self>, bytes: usize) -> Ready {
        for count in self.counts() {
            count.fetch_add(bytes, Ordering::AcqRel);
        }
        Ready { session: Arc::clone(self), bytes }
    }

    /// Whether the session may begin another operation.
    pub(super) fn may_go_on(&self) -> bool {
        let read = |count: &AtomicUsize| count.load(Ordering::Acquire);
        let of_tenant = self.tenant.map_or(0, |tenant| read(&self.all.tenants[tenant]));
        read(&self.bytes) < ALWAYS || read(&self.all.bytes) < ALL && of_tenant < OF_TENANT
    }

    /// Ready when the session may go on, if it was not allowed to: its own answers have been sent.
    pub(super) async fn may_go_on_again(&self) {
        self.fell.notified().await;
    }

    fn counts(&self) -> impl Iterator<Item = &AtomicUsize> {
        let tenant = self.tenant.map(|tenant| &self.all.tenants[tenant]);
        [Some(&self.bytes), Some(&self.all.bytes), tenant].into_iter().flatten()
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let session = &*self.session;
        for count in session.counts() {
            count.fetch_sub(self.bytes, Ordering::AcqRel);
        }
        let after = session.bytes.load(Ordering::Acquire);
        if after < ALWAYS && after + self.bytes >= ALWAYS {
            session.fell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_takes_no_answers_waits_and_others_do_not() {
        let all = Arc::<Unsent>::default();
        let (hostile, other, of_none) = (all.of(Some(1)), all.of(Some(2)), all.of(None));
        assert!(hostile.may_go_on());
        let untaken = hostile.ready(OF_TENANT);
        assert!(!hostile.may_go_on(), "its tenant has its share");
        assert!(all.of(Some(1)).may_go_on(), "a session of the same tenant that has no answers");
        let (busy, little) = (other.ready(ALL / 8), of_none.ready(ALWAYS));
        assert!(other.may_go_on() && of_none.may_go_on());
        let more = all.of(None).ready(ALL / 8);
        assert!(!other.may_go_on() && !of_none.may_go_on(), "all have as much as there may be");
        drop(little);
        of_none.may_go_on_again().await;
        assert!(of_none.may_go_on() && !other.may_go_on());
        drop((untaken, busy, more));
        other.may_go_on_again().await;
        assert!(other.may_go_on() && hostile.may_go_on());
        assert!(hostile.counts().chain(other.counts()).all(|count| count.load(Ordering::Relaxed) == 0));
    }

    #[tokio::test]
    async fn a_session_is_woken_when_its_last_answers_are_sent_in_any_pieces() {
        let session = Arc::<Unsent>::default().of(None);
        let answers: Vec<Ready> = (0..10).map(|_| session.ready(ALWAYS / 3)).collect();
        answers.into_iter().for_each(drop);
        session.may_go_on_again().await;
    }
}
