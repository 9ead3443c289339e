//! Metrics of background tasks.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use witan_kernel::port::DutyKind;

/// Metrics of background tasks.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Records compared by sweeps on all of their replicas.
    pub swept_records: Counter,
    /// Merges stored by sweeps on replicas that lacked them.
    pub swept_merges: Counter,
    /// Siblings collapsed into one.
    pub collapses: Counter,
    /// How often each part of the ring is to be compared, in seconds; 0 while that is turned off.
    pub healing_every: Gauge<f64, AtomicU64>,
    /// Seconds since the last complete comparison began of the part of the ring for which that is longest ago.
    pub healing_oldest: Gauge<f64, AtomicU64>,
    /// How often each part of the ring is to be compared by reading all of it, in seconds; 0 while that is turned off.
    pub scrub_every: Gauge<f64, AtomicU64>,
    /// Seconds since the last complete scrub began of the part of the ring for which that is longest ago.
    pub oldest_scrub: Gauge<f64, AtomicU64>,
    /// Records that moves of tenants have sent to replicas that lacked them.
    pub moved_records: Counter,
    /// Their bytes.
    pub moved_bytes: Counter,
    /// Moves of tenants that were given up because something failed.
    pub move_given_up: Counter,
    /// Tenants whose records are not where they are to be, as the leader has seen them last.
    pub tenants_to_move: Gauge,
    /// Nodes with rows of a tenant of which they hold no replicas any longer, counted once for each tenant.
    pub leftovers: Gauge,
    /// Seconds for which the oldest of them has been there.
    pub oldest_leftover: Gauge<f64, AtomicU64>,
    moves_published: Family<Published, Counter>,
    passes: Family<Pass, Counter>,
    records: Family<Of, Counter>,
    repaired: Family<Of, Counter>,
    read: Family<Of, Counter>,
    sent: Family<Of, Counter>,
    level_slices: Family<Of, Counter>,
    unknown_slices: Family<Of, Counter>,
    running: Family<Of, Gauge>,
    overdue: Family<Of, Gauge>,
    since_complete: Family<Of, Gauge<f64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pass {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Published {
    step: &'static str,
}

/// The steps of a tenant's move, as labels.
const STEPS: [&str; 5] = ["prepare", "dual_write", "cutover", "finish", "give_up"];

impl Of {
    fn kind(kind: DutyKind) -> Self {
        Self { kind: kind.as_str() }
    }
}

impl Metrics {
    /// Passes of healing that have ended, by result.
    pub(crate) fn healing_passes(&self, kind: DutyKind, result: &'static str) -> Counter {
        self.passes.get_or_create_owned(&Pass { kind: kind.as_str(), result })
    }

    /// Records compared by healing.
    pub(crate) fn healing_records(&self, kind: DutyKind) -> Counter {
        self.records.get_or_create_owned(&Of::kind(kind))
    }

    /// Merges stored by healing.
    pub(crate) fn healing_repaired(&self, kind: DutyKind) -> Counter {
        self.repaired.get_or_create_owned(&Of::kind(kind))
    }

    /// Bytes of records read by healing.
    pub(crate) fn healing_read(&self, kind: DutyKind) -> Counter {
        self.read.get_or_create_owned(&Of::kind(kind))
    }

    /// Bytes of merges stored by healing.
    pub(crate) fn healing_sent(&self, kind: DutyKind) -> Counter {
        self.sent.get_or_create_owned(&Of::kind(kind))
    }

    /// Slices that healing has found level by their digests, and has not read.
    pub(crate) fn level_slices(&self, kind: DutyKind) -> Counter {
        self.level_slices.get_or_create_owned(&Of::kind(kind))
    }

    /// Slices of which a node had no digest to compare.
    pub(crate) fn unknown_slices(&self, kind: DutyKind) -> Counter {
        self.unknown_slices.get_or_create_owned(&Of::kind(kind))
    }

    /// 1 while this coordinator does work of the kind.
    pub(crate) fn healing_running(&self, kind: DutyKind) -> Gauge {
        self.running.get_or_create_owned(&Of::kind(kind))
    }

    /// 1 while work of the kind is due and nobody does it.
    pub(crate) fn healing_overdue(&self, kind: DutyKind) -> Gauge {
        self.overdue.get_or_create_owned(&Of::kind(kind))
    }

    /// Seconds since the last complete pass of the kind began.
    pub(crate) fn healing_since_complete(&self, kind: DutyKind) -> Gauge<f64, AtomicU64> {
        self.since_complete.get_or_create_owned(&Of::kind(kind))
    }

    /// Steps of tenants' moves that this coordinator has published.
    pub(crate) fn moves_published(&self, step: &'static str) -> Counter {
        self.moves_published.get_or_create_owned(&Published { step })
    }

    /// Registers the metrics under their names.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Records compared on all replicas by `witan repair` and by healing";
        registry.register("witan_swept_records", help, self.swept_records.clone());
        let help = "Merges that replicas lacked, stored by `witan repair` and by healing";
        registry.register("witan_swept_merges", help, self.swept_merges.clone());
        registry.register("witan_collapses", "Siblings collapsed into one", self.collapses.clone());
        self.register_healing(registry);
        self.register_moves(registry);
    }

    fn register_moves(&self, registry: &mut Registry) {
        for step in STEPS {
            drop(self.moves_published(step));
        }
        let help = "Steps of tenants' moves that this coordinator has published, by step";
        registry.register("witan_moves_published", help, self.moves_published.clone());
        let help = "Records that moves of tenants have sent to replicas that lacked them";
        registry.register("witan_moved_records", help, self.moved_records.clone());
        let help = "Bytes of records that moves of tenants have sent";
        registry.register("witan_moved_bytes", help, self.moved_bytes.clone());
        let help = "Moves of tenants that were given up because something failed; each begins anew";
        registry.register("witan_move_given_up", help, self.move_given_up.clone());
        let help = "Tenants whose records are not where they are to be; 0 at coordinators that do not lead";
        registry.register("witan_tenants_to_move", help, self.tenants_to_move.clone());
        let help = "Nodes with rows to drop of which they hold no replicas any longer, once for each tenant; 0 at coordinators that do \
                    not lead";
        registry.register("witan_leftovers", help, self.leftovers.clone());
        let help = "Seconds for which the oldest of these rows have been there";
        registry.register("witan_leftover_age_seconds", help, self.oldest_leftover.clone());
    }

    fn register_healing(&self, registry: &mut Registry) {
        for kind in DutyKind::HEALING {
            for result in ["complete", "incomplete", "interrupted"] {
                drop(self.healing_passes(kind, result));
            }
            let counters = [&self.records, &self.repaired, &self.read, &self.sent];
            for counter in counters.into_iter().chain([&self.level_slices, &self.unknown_slices]) {
                drop(counter.get_or_create_owned(&Of::kind(kind)));
            }
            drop(self.healing_running(kind));
            drop(self.healing_overdue(kind));
        }
        let help = "Passes of healing that have ended, by kind (compare, scrub, catch-up, fill) and result";
        registry.register("witan_healing_passes", help, self.passes.clone());
        let help = "Records compared on all replicas by healing";
        registry.register("witan_healing_records", help, self.records.clone());
        let help = "Merges that replicas lacked, stored by healing";
        registry.register("witan_healing_repaired", help, self.repaired.clone());
        let help = "Bytes of records that healing has read from nodes";
        registry.register("witan_healing_read_bytes", help, self.read.clone());
        let help = "Bytes of merges that healing has stored on nodes";
        registry.register("witan_healing_sent_bytes", help, self.sent.clone());
        let help = "Slices of the token space that healing has found level by digests, without reading them";
        registry.register("witan_healing_level_slices", help, self.level_slices.clone());
        let help = "Slices of which a node had no digest: too many records, or one that cannot be read";
        registry.register("witan_healing_unknown_slices", help, self.unknown_slices.clone());
        let help = "1 while this coordinator does work of this kind";
        registry.register("witan_healing_running", help, self.running.clone());
        let help = "1 while work of this kind has been due for ten minutes and no coordinator does it";
        registry.register("witan_healing_overdue", help, self.overdue.clone());
        let help = "Seconds since the last complete pass of this kind began, in the whole cluster";
        registry.register("witan_healing_complete_age_seconds", help, self.since_complete.clone());
        let help =
            "Seconds since the last complete comparison began of the part of the ring for which that is longest ago";
        registry.register("witan_healing_oldest_comparison_seconds", help, self.healing_oldest.clone());
        let help = "healing.compare_every in seconds; 0 while healing.anti_entropy is false";
        registry.register("witan_healing_compare_every_seconds", help, self.healing_every.clone());
        let help = "Seconds since the last complete scrub began of the part of the ring for which that is longest ago";
        registry.register("witan_healing_oldest_scrub_seconds", help, self.oldest_scrub.clone());
        let help = "healing.scrub_every in seconds; 0 while scrubbing or healing.anti_entropy is off";
        registry.register("witan_healing_scrub_every_seconds", help, self.scrub_every.clone());
    }
}
