//! Many siblings become one that stands for them all.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use witan_kernel::hook::{Asked, Operation, ResolverQuestion};
use witan_kernel::port::Clock;
use witan_kernel::quorum::{Collapse, collapse};
use witan_kernel::record::{Encoded, Record};
use witan_kernel::replica::Place;
use witan_kernel::siblings::Siblings;
use witan_kernel::tenant::Level;

use super::exchange::Exchange;
use super::plan::Asks;
use super::{Coordinator, World};

/// Collapses under way, one per record, and so many at most: more would only crowd out clients.
const MOST: usize = 64;

/// Which records are being collapsed.
#[derive(Default)]
pub(super) struct Running(Mutex<HashSet<Place>>);

impl Running {
    fn start(&self, place: &Place) -> bool {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.len() < MOST && running.insert(place.clone())
    }

    fn end(&self, place: &Place) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(place);
    }
}

impl<W: World> Exchange<W> {
    /// Starts a collapse behind the operation when the record has grown many siblings and somebody can decide.
    pub(super) fn collapse_if_wanted(&self, record: &Encoded) {
        if !self.plan.hooks.has_resolver() {
            return;
        }
        if let Ok(Record::Siblings(record)) = record.decode() {
            self.collapse_if_many(&record);
        }
    }

    pub(super) fn collapse_if_many(&self, record: &Siblings) {
        let wanted = self.plan.hooks.has_resolver() && Collapse::of(record) == Collapse::Wanted;
        if !wanted || !self.coordinator.collapses.start(&self.plan.place) {
            return;
        }
        let coordinator = Arc::clone(&self.coordinator);
        let place = self.plan.place.clone();
        tokio::spawn(async move {
            coordinator.collapse(&place).await;
            coordinator.collapses.end(&place);
        });
    }
}

impl<W: World> Coordinator<W> {
    /// Merges a quorum's records, asks the resolver, and stores its verdict in their stead. Whatever fails, nothing is lost:
    /// the siblings stand as they were.
    async fn collapse(self: &Arc<Self>, place: &Place) -> Option<()> {
        let asks = Asks {
            operation: Operation::Read,
            tenant: &place.tenant,
            key: &place.key,
            level: Some(Level::Quorum),
            value_bytes: 0,
            timeout: Some(self.timeouts.load().write),
        };
        let mut plan = self.plan(asks).await.ok()?;
        plan.policy.required = plan.policy.required.max(Level::Quorum.required(plan.replication_factor()));
        plan.policy.shortfall = witan_kernel::hook::Shortfall::Fail;
        let mut exchange = Exchange::new(Arc::clone(self), plan);
        let (reconciled, _) = exchange.gather().await.ok()?;
        let Some(Record::Siblings(record)) = reconciled.record else { return None };
        let (question, values) = question(&exchange.plan.place, &record);
        if values.len() < 2 {
            return None;
        }
        let Asked::Answered { answer, .. } = exchange.plan.hooks.resolve(question).await else { return None };
        let collapsed = collapse(&record, &values, &answer)?;
        let everyone: Vec<u8> = (0..exchange.plan.replication_factor()).collect();
        let started = self.ports.clock.monotonic_micros();
        exchange.plan.deadline = started + self.timeouts.load().write.as_micros() as u64;
        exchange.repair_behind(&Record::Siblings(collapsed).encode(), &everyone).await;
        self.metrics.collapses.inc();
        Some(())
    }
}

/// What a resolver is asked about a record, and the values it is shown.
pub(super) fn question(place: &Place, record: &Siblings) -> (ResolverQuestion, Vec<bytes::Bytes>) {
    let siblings = if record.is_deleted() { Vec::new() } else { record.live_values_deduplicated() };
    let values = siblings.iter().map(|sibling| sibling.value.clone()).collect();
    (ResolverQuestion { key: place.key.clone(), siblings }, values)
}
