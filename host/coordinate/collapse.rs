//! Records with many siblings: noticed here, collapsed by upkeep.
//!
//! An operation that meets such a record reports it through [`WantedCollapses`] and goes on. [`MergedRecord`] is what it takes to carry a
//! collapse out: read a quorum's records, ask the resolver, send a merge to every replica.

use std::sync::Arc;

use bytes::Bytes;
use witan_kernel::failure::Failure;
use witan_kernel::fault::Fault;
use witan_kernel::hook::{Asked, Operation, ResolverQuestion, Verdict};
use witan_kernel::quorum::Collapse;
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::Place;
use witan_kernel::siblings::Siblings;
use witan_kernel::tenant::Level;

use super::exchange::Exchange;
use super::plan::Asks;
use super::{Coordinator, World};

/// Takes reports of records with enough siblings for a resolver to collapse them.
pub trait WantedCollapses: Send + Sync + 'static {
    /// Called from serving threads, again for each operation that meets the record: must be cheap and must not block. A report may be
    /// dropped, since a later operation repeats it.
    fn wanted(&self, place: &Place);
}

/// Records are not collapsed: every report is dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCollapses;

impl WantedCollapses for NoCollapses {
    fn wanted(&self, _: &Place) {}
}

impl<W: World> Exchange<W> {
    /// Reports the record if it has grown many siblings and a resolver is bound.
    pub(super) fn collapse_if_wanted(&self, record: &Encoded) {
        if !self.plan.hooks.has_resolver() {
            return;
        }
        if let Ok(Record::Siblings(record)) = record.decode() {
            self.collapse_if_many(&record);
        }
    }

    pub(super) fn collapse_if_many(&self, record: &Siblings) {
        if self.plan.hooks.has_resolver() && Collapse::of(record) == Collapse::Wanted {
            self.coordinator.ports.collapses.wanted(&self.plan.place);
        }
    }
}

/// The merge of what a quorum of a key's replicas have stored, and the plan under which it was read: the hooks, the replicas and the
/// placement epoch stay the same until it is dropped.
pub struct MergedRecord<W: World> {
    exchange: Exchange<W>,
    record: Option<Record>,
}

impl<W: World> Coordinator<W> {
    /// Reads a record from a quorum of its replicas, or from more where the tenant's policy asks for more. Nothing is repaired.
    ///
    /// # Errors
    /// Why it cannot be read now.
    pub async fn read_merged(self: &Arc<Self>, place: &Place) -> Result<MergedRecord<W>, Failure> {
        let asks = Asks {
            operation: Operation::Read,
            tenant: &place.tenant(),
            key: &place.key,
            level: Some(Level::Quorum),
            value_bytes: 0,
            arrived: self.arrival(None),
            timeout: Some(self.timeouts.load().write),
        };
        let mut plan = self.plan(asks).await?;
        plan.read_a_quorum();
        let mut exchange = Exchange::new(Arc::clone(self), plan);
        let (reconciled, _) = exchange.gather().await.map_err(|failed| failed.failure)?;
        Ok(MergedRecord { exchange, record: reconciled.record })
    }
}

impl<W: World> MergedRecord<W> {
    /// The record; `None` when no replica has one.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The record's live values in the order in which a resolver is shown them, and what it says; `None` when fewer than two values
    /// differ, or no resolver has answered.
    pub async fn resolve(&self) -> Option<(Vec<Bytes>, Verdict)> {
        let Some(Record::Siblings(record)) = &self.record else { return None };
        let (question, values) = question(&self.exchange.plan.place, record);
        if values.len() < 2 {
            return None;
        }
        let mut question = question;
        if Fault::CollapseShowsHalf.is_on() {
            question.siblings.truncate(values.len() / 2);
        }
        match self.exchange.plan.hooks.resolve_in_force(question).await {
            Asked::Answered { answer, .. } => Some((values, answer)),
            Asked::Unbound | Asked::Faulted { .. } => None,
        }
    }

    /// Sends `record` to every replica of the key, to be merged, and waits until each has answered or a repair's time is up. Sends nothing
    /// when as many repairs are running as may.
    pub async fn merge_everywhere(mut self, record: &Record) {
        let everyone: Vec<u8> = self.exchange.plan.everyone().collect();
        self.exchange.begin_change();
        self.exchange.repair_behind(&record.encode(), &everyone).await;
    }
}

/// What a resolver is asked about a record, and the values it is shown.
pub(super) fn question(place: &Place, record: &Siblings) -> (ResolverQuestion, Vec<Bytes>) {
    let siblings = if record.is_deleted() { Vec::new() } else { record.live_values_deduplicated() };
    let values = siblings.iter().map(|sibling| sibling.value.clone()).collect();
    (ResolverQuestion { key: place.key.clone(), siblings }, values)
}
