//! Metrics of access.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::refusal::{KINDS, Refusal};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    reason: &'static str,
}

/// Metrics of access.
#[derive(Debug)]
pub(super) struct Metrics {
    refusals: Family<Kind, Counter>,
    /// In the order of [`KINDS`], so that counting takes no lock of the family.
    counted: [Counter; KINDS.len()],
    /// Entries that the audit log has lost: its queue was full, or its file could not be written.
    pub(super) audit_dropped: Counter,
    /// Refusals that were not recorded because there were too many.
    pub(super) audit_unrecorded: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let refusals = Family::<Kind, Counter>::default();
        let counted = KINDS.map(|reason| refusals.get_or_create(&Kind { reason }).clone());
        Self { refusals, counted, audit_dropped: Counter::default(), audit_unrecorded: Counter::default() }
    }
}

impl Metrics {
    /// Counts a refusal.
    pub(super) fn refused(&self, refusal: &Refusal) {
        self.counted[refusal.kind()].inc();
    }

    /// Registers all of them.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("witan_access_refusals", "Calls refused before they began, by reason", self.refusals.clone());
        registry.register(
            "witan_audit_dropped",
            "Entries that the audit log has lost: its queue was full, or its file could not be written",
            self.audit_dropped.clone(),
        );
        registry.register(
            "witan_audit_unrecorded_refusals",
            "Refusals that are not in the audit log because there were too many of them",
            self.audit_unrecorded.clone(),
        );
    }
}
