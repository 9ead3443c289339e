//! Metrics of a coordinator's operations.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::hook::Operation;

use super::{Coordinator, World};

/// Upper bounds of histogram buckets, seconds: Prometheus' defaults, and finer ones below 5 ms, where most operations end.
const SECONDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    operation: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    operation: &'static str,
}

/// Statuses by which requests are counted: a fixed set, so that the number of time series is bounded.
const STATUSES: [&str; 5] = ["ok", "not_found", "refused", "unavailable", "error"];

/// Metrics of a coordinator. Handles are looked up once, so that counting takes no lock.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<Request, Counter>,
    durations: Family<Of, Histogram, fn() -> Histogram>,
    counted: [[Counter; 5]; 3],
    timed: [Arc<Histogram>; 3],
    /// Reads that found live siblings that differ.
    pub conflicts_detected: Counter,
    /// Repairs of stale replicas.
    pub repairs_triggered: Counter,
    /// Operations that too few replicas acknowledged, for another reason than overload.
    pub quorum_failures: Counter,
    /// Operations that would have been acknowledged if storage nodes had had less to do.
    pub overloaded_nodes: Counter,
    /// Repairs not started because too many were running.
    pub repairs_dropped: Counter,
    /// Spare replicas asked by reads.
    pub hedges: Counter,
    /// Replicas that missed a write whose requirement was met.
    pub replicas_missed: Counter,
    /// Operations that ended before their idempotency record showed it.
    pub idempotency_unsettled: Counter,
    in_flight: Gauge,
    /// Pages of keys that were refused.
    pub(super) scans_refused: Counter,
    reads: Counter,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

const OPERATIONS: [Operation; 3] = [Operation::Read, Operation::Write, Operation::Delete];

impl Default for Metrics {
    fn default() -> Self {
        let requests = Family::<Request, Counter>::default();
        let durations = Family::<Of, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        let counted = OPERATIONS.map(|operation| {
            STATUSES.map(|status| requests.get_or_create(&Request { operation: operation.as_str(), status }).clone())
        });
        let timed = OPERATIONS
            .map(|operation| Arc::new(durations.get_or_create(&Of { operation: operation.as_str() }).clone()));
        Self {
            requests,
            durations,
            counted,
            timed,
            conflicts_detected: Counter::default(),
            repairs_triggered: Counter::default(),
            quorum_failures: Counter::default(),
            overloaded_nodes: Counter::default(),
            repairs_dropped: Counter::default(),
            hedges: Counter::default(),
            replicas_missed: Counter::default(),
            idempotency_unsettled: Counter::default(),
            in_flight: Gauge::default(),
            scans_refused: Counter::default(),
            reads: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers all metrics under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("coordinator_requests", "Requests by operation and status", self.requests.clone());
        let help = "Seconds from a request to its response";
        registry.register("coordinator_request_duration_seconds", help, self.durations.clone());
        let counters: [(&str, &str, &Counter); 9] = [
            ("witan_scans_refused", "Pages of keys refused: too many were being read", &self.scans_refused),
            ("coordinator_conflicts_detected", "Live siblings that differed, met by reads", &self.conflicts_detected),
            ("coordinator_repairs_triggered", "Repairs of stale replicas", &self.repairs_triggered),
            ("coordinator_quorum_failures", "Operations that too few replicas answered", &self.quorum_failures),
            (
                "witan_operations_overloaded_nodes",
                "Operations refused because storage nodes, or the connections to them, had too much to do",
                &self.overloaded_nodes,
            ),
            ("witan_repairs_dropped", "Repairs not started: too many were running", &self.repairs_dropped),
            ("witan_hedges", "Spare replicas asked by reads", &self.hedges),
            ("witan_replicas_missed", "Replicas that missed a write that was acknowledged", &self.replicas_missed),
            (
                "witan_idempotency_unsettled",
                "Operations that ended before their idempotency record showed it",
                &self.idempotency_unsettled,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("witan_operations_in_flight", "Operations under way", self.in_flight.clone());
    }

    /// Counts an operation as under way until the returned value is dropped, including its work after the response.
    pub(super) fn begin(&self) -> UnderWay {
        self.in_flight.inc();
        UnderWay(self.in_flight.clone())
    }

    pub(super) fn finished(&self, operation: Operation, failed: Option<&Failed>, micros: u64) {
        let index = OPERATIONS.iter().position(|o| *o == operation).unwrap_or(0);
        self.counted[index][status(failed)].inc();
        self.timed[index].observe(micros as f64 / 1e6);
        if operation == Operation::Read {
            self.reads.inc();
        }
    }

    /// Counts an operation that was short of answers, by what became of it. An overload passes, and is no fault of replicas.
    pub(super) fn fell_short(&self, failure: &Failure) {
        match failure {
            Failure::Overloaded { .. } => self.overloaded_nodes.inc(),
            _ => self.quorum_failures.inc(),
        };
    }

    /// Takes a hedge from the budget, and counts it; false when the budget is used up. One read in twenty may ask a spare replica, so that
    /// hedging cannot double the load of a cluster that is slow because it is overloaded.
    pub(super) fn take_hedge(&self) -> bool {
        let within = self.hedges.get() * 20 <= self.reads.get() + 20;
        if within {
            self.hedges.inc();
        }
        within
    }
}

/// What is kept for clients, read when it is collected.
pub(super) struct KeptNow<W: World>(pub(super) Arc<Coordinator<W>>);

impl<W: World> fmt::Debug for KeptNow<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeptNow").field(&self.0.kept()).finish()
    }
}

impl<W: World> Collector for KeptNow<W> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kept = self.0.kept();
        let gauges = [
            ("witan_waiting_answer_bytes", "Bytes of answers that clients have not taken yet", kept.waiting_answers),
            ("witan_waiting_request_bytes", "Bytes of requests that wait before they begin", kept.waiting_requests),
            ("witan_fetched_record_bytes", "Bytes of records that reads have fetched", kept.fetched_records),
            ("witan_written_value_bytes", "Bytes of values that are being written", kept.values_being_written),
            (
                "witan_operations_window",
                "Operations beyond which a tenant with more than others is refused",
                kept.window,
            ),
            ("witan_scans_in_flight", "Pages of keys that are being read", kept.scans),
        ];
        for (name, help, value) in gauges {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)?;
        }
        Ok(())
    }
}

/// An operation that is counted as under way.
pub(super) struct UnderWay(Gauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// An index into [`STATUSES`].
fn status(failed: Option<&Failed>) -> usize {
    match failed.map(|failed| &failed.failure) {
        None => 0,
        Some(Failure::KeyNotFound { .. }) => 1,
        Some(
            Failure::Invalid(_)
            | Failure::TenantNotFound(_)
            | Failure::TooFewNodes { .. }
            | Failure::SiblingLimit
            | Failure::IdempotencyKeyConflict
            | Failure::ReservationExpired
            | Failure::ContextOutdated
            | Failure::InProgress { .. }
            | Failure::Overloaded { .. },
        ) => 2,
        Some(
            Failure::QuorumNotReached { .. }
            | Failure::Deadline { .. }
            | Failure::NotBegun
            | Failure::StorageFull { .. }
            | Failure::StaleEpoch
            | Failure::StoreUnavailable { .. }
            | Failure::StoreFull(_)
            | Failure::Unrecorded
            | Failure::Forgotten,
        ) => 3,
        Some(Failure::PluginFault { .. } | Failure::Internal(_)) => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RETRY_AFTER;

    #[test]
    fn an_overload_is_no_quorum_failure() {
        let metrics = Metrics::default();
        metrics.fell_short(&Failure::Overloaded { retry_after: RETRY_AFTER });
        assert_eq!((metrics.overloaded_nodes.get(), metrics.quorum_failures.get()), (1, 0));
        metrics.fell_short(&Failure::QuorumNotReached { required: 2, received: 1, causes: Vec::new() });
        metrics.fell_short(&Failure::StorageFull { required: 2, received: 1 });
        assert_eq!((metrics.overloaded_nodes.get(), metrics.quorum_failures.get()), (1, 2));
    }
}
