//! Metrics of background tasks.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Metrics of background tasks.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Records compared by sweeps on all of their replicas.
    pub swept_records: Counter,
    /// Merges stored by sweeps on replicas that lacked them.
    pub swept_merges: Counter,
    /// Siblings collapsed into one.
    pub collapses: Counter,
}

impl Metrics {
    /// Registers the metrics under their names.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Records compared on all replicas by `witan repair`";
        registry.register("witan_swept_records", help, self.swept_records.clone());
        let help = "Merges that replicas lacked, stored by `witan repair`";
        registry.register("witan_swept_merges", help, self.swept_merges.clone());
        registry.register("witan_collapses", "Siblings collapsed into one", self.collapses.clone());
    }
}
