//! Prometheus metrics of the storage nodes as this coordinator sees them. The only label with many values is the node, so the number
//! of series grows with the number of nodes.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use witan_kernel::port::Clock;
use witan_kernel::scan::Trust;

use super::{Connect, Lanes, Node};

/// Registers metrics of the nodes of `lanes`.
pub fn register<C: Clock, N: Connect>(registry: &mut Registry, lanes: Arc<Lanes<C, N>>) {
    registry.register_collector(Box::new(Seen(lanes)));
}

struct Seen<C: Clock, N: Connect>(Arc<Lanes<C, N>>);

impl<C: Clock, N: Connect> fmt::Debug for Seen<C, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").finish_non_exhaustive()
    }
}

/// Values of the label `state`, in the order in which they are exported.
const STATES: [&str; 5] = ["reachable", "write_only", "unreachable", "failed", "unadmitted"];

/// Index in [`STATES`] of a node that does not answer.
const UNREACHABLE: usize = 2;

/// The index of a node's state in [`STATES`]. A node whose new store is being filled is written to and not read from; one whose store has
/// failed answers, but refuses; one whose new store nobody has admitted is not used.
fn state(node: &Node) -> usize {
    if node.vitals.condition().is_some_and(|condition| condition.is_failed()) {
        return 3;
    }
    match node.vitals.standing().map(|standing| standing.trust) {
        _ if node.vitals.state().reachable => 0,
        Some(Trust::Filling) => 1,
        Some(Trust::Unadmitted) => 4,
        Some(Trust::Whole) | None => UNREACHABLE,
    }
}

impl<C: Clock, N: Connect> Collector for Seen<C, N> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let nodes = self.0.nodes.load_full();
        let mut nodes: Vec<&Node> = nodes.values().map(|node| &**node).collect();
        nodes.sort_by(|a, b| a.at.id.cmp(&b.at.id));
        let mut counts = [0_i64; STATES.len()];
        nodes.iter().for_each(|node| counts[state(node)] += 1);
        let help = "Storage nodes of the cluster, by their state as seen by this coordinator";
        let mut family = encoder.encode_descriptor("witan_storage_nodes", help, None, MetricType::Gauge)?;
        for (state, count) in STATES.iter().zip(counts) {
            ConstGauge::new(count).encode(family.encode_family(&[("state", *state)])?)?;
        }

        let help = "1 while the node answers this coordinator";
        each(&mut encoder, "reachable", help, &nodes, |node| Some(if state(node) == UNREACHABLE { 0.0 } else { 1.0 }))?;
        let help = "1 while the node is out of service for maintenance: it is asked last";
        let drained = self.0.drained.load_full();
        each(&mut encoder, "draining", help, &nodes, |node| {
            Some(if drained.contains(&node.at.id) { 1.0 } else { 0.0 })
        })?;
        let help = "1 while the node reports that its store has failed; missing if it does not report its condition";
        each(&mut encoder, "store_failed", help, &nodes, |node| {
            node.vitals.condition().map(|condition| if condition.is_failed() { 1.0 } else { 0.0 })
        })?;
        let help = "Requests that the node has not answered yet";
        each(&mut encoder, "requests_in_flight", help, &nodes, |node| Some(f64::from(node.vitals.state().in_flight)))?;
        let help = "Approximate number of records of the node, as it reported last";
        each(&mut encoder, "keys", help, &nodes, |node| {
            node.described.fullness().map(|fullness| fullness.keys as f64)
        })?;
        let help = "Used share of the file system that holds the node's store, 0 to 1";
        each(&mut encoder, "disk_usage_ratio", help, &nodes, |node| {
            node.described.fullness().map(|fullness| f64::from(fullness.disk_usage_percent) / 100.0)
        })?;
        let help = "How far the node's clock is ahead of this coordinator's, at least; negative: behind";
        each(&mut encoder, "clock_ahead_seconds", help, &nodes, |node| {
            node.described.ahead_micros().map(|micros| micros as f64 / 1e6)
        })?;

        let help = "Round-trip time to the node in the last seconds; missing before the first answer";
        let name = "witan_storage_node_round_trip_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for node in nodes {
            let state = node.vitals.state();
            for (quantile, micros) in [("0.5", state.latency_p50_us), ("0.99", state.latency_p99_us)] {
                if micros > 0 {
                    let label = [("node", node.at.id.as_str()), ("quantile", quantile)];
                    ConstGauge::new(f64::from(micros) / 1e6).encode(family.encode_family(&label)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Encodes one gauge with a value for each node that has one.
fn each(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    nodes: &[&Node],
    number: impl Fn(&Node) -> Option<f64>,
) -> fmt::Result {
    let name = format!("witan_storage_node_{name}");
    let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    for node in nodes {
        if let Some(number) = number(node) {
            ConstGauge::new(number).encode(family.encode_family(&[("node", node.at.id.as_str())])?)?;
        }
    }
    Ok(())
}
