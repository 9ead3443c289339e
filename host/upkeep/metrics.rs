//! Counts of long work.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counts of long work.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Records that sweeps have compared on all of their replicas.
    pub swept_records: Counter,
    /// Merges that replicas lacked, and have stored, by sweeps.
    pub swept_merges: Counter,
    /// Siblings collapsed into one.
    pub collapses: Counter,
}

impl Metrics {
    /// Makes the counts visible under their names.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Records compared on all replicas by `witan repair`";
        registry.register("witan_swept_records", help, self.swept_records.clone());
        let help = "Merges that replicas lacked, stored by `witan repair`";
        registry.register("witan_swept_merges", help, self.swept_merges.clone());
        registry.register("witan_collapses", "Siblings collapsed into one", self.collapses.clone());
    }
}
