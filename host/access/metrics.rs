//! Metrics of access.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::audit::Counts;
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
    /// What the audit log counts.
    pub(super) audit: Counts,
}

impl Default for Metrics {
    fn default() -> Self {
        let refusals = Family::<Kind, Counter>::default();
        let counted = KINDS.map(|reason| refusals.get_or_create(&Kind { reason }).clone());
        Self { refusals, counted, audit: Counts::default() }
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
            self.audit.dropped.clone(),
        );
        registry.register(
            "witan_audit_write_failures",
            "Failed attempts to write to the audit log; a line about a change is tried again, and changes wait for it",
            self.audit.write_failures.clone(),
        );
        registry.register(
            "witan_audit_unrecorded_refusals",
            "Refusals that are not in the audit log because there were too many of them",
            self.audit.refusals.clone(),
        );
        registry.register(
            "witan_audit_unrecorded_failures",
            "Failed calls that are not in the audit log because there were too many of them; they changed nothing",
            self.audit.failures.clone(),
        );
    }
}
