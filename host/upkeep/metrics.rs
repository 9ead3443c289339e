//! Metrics of background tasks.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use witan_kernel::name::NodeId;
use witan_kernel::port::DutyKind;

use super::kept::Kept;

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
    /// Bytes per second that the first copies of moves may read at present; 0: unlimited, or nothing has been copied yet.
    pub copy_rate: Gauge<f64, AtomicU64>,
    /// Moves of tenants that were given up because something failed.
    pub move_given_up: Counter,
    /// Tenants whose records are not where they are to be, as the leader has seen them last.
    pub tenants_to_move: Gauge,
    /// Nodes with rows of a tenant of which they hold no replicas any longer, counted once for each tenant.
    pub leftovers: Gauge,
    /// Seconds for which the oldest of them has been there.
    pub oldest_leftover: Gauge<f64, AtomicU64>,
    /// Keys that were deleted long ago, and of which every replica has dropped what it had.
    pub tombstones_collected: Counter,
    tombstones_kept: Family<Why, Counter>,
    tombstones_overdue: Family<Why, Gauge<f64, AtomicU64>>,
    moves_published: Family<Published, Counter>,
    missed_slices: Family<OfNode, Gauge>,
    missed_taken_over: Family<TakenOver, Counter>,
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
struct Why {
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TakenOver {
    extent: &'static str,
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

    /// Keys that were deleted long ago, and whose rows were kept at the second look.
    pub(crate) fn tombstones_kept(&self, why: &'static str) -> Counter {
        self.tombstones_kept.get_or_create_owned(&Why { why })
    }

    /// Seconds by which the longest deleted key is older than the grace that was found and not collected.
    pub(crate) fn tombstones_overdue(&self, why: &'static str) -> Gauge<f64, AtomicU64> {
        self.tombstones_overdue.get_or_create_owned(&Why { why })
    }

    /// Slices in which a node has missed changes of this coordinator.
    pub(crate) fn missed_slices(&self, node: &NodeId) -> Gauge {
        self.missed_slices.get_or_create_owned(&OfNode { node: node.to_string() })
    }

    /// A node that is no longer there has missed nothing.
    pub(crate) fn forget_missed(&self, node: &NodeId) {
        self.missed_slices.remove(&OfNode { node: node.to_string() });
    }

    /// Sets of other coordinators that were taken over: those that were left with their duty, or those that are lost, so that all slices
    /// are compared.
    pub(crate) fn missed_taken_over(&self, is_there: bool) -> Counter {
        self.missed_taken_over.get_or_create_owned(&TakenOver { extent: if is_there { "partial" } else { "full" } })
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
        self.register_tombstones(registry);
    }

    fn register_tombstones(&self, registry: &mut Registry) {
        for why in Kept::ALL {
            drop(self.tombstones_kept(why.as_str()));
            drop(self.tombstones_overdue(why.as_str()));
        }
        let help = "Keys that were deleted longer ago than healing.tombstone_grace, and of which nothing is left on any replica";
        registry.register("witan_tombstones_collected", help, self.tombstones_collected.clone());
        let help = "Such keys whose tombstones were kept at the second look, by reason";
        registry.register("witan_tombstones_kept", help, self.tombstones_kept.clone());
        let help = "Seconds by which the oldest tombstone exceeds healing.tombstone_grace that the last comparisons have left, by reason";
        registry.register("witan_tombstones_overdue_seconds", help, self.tombstones_overdue.clone());
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
        let help = "Bytes per second that moves may read: placement.copy_rate, or less while a node answers slowly";
        registry.register("witan_move_copy_rate", help, self.copy_rate.clone());
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
        [true, false].into_iter().for_each(|is_there| drop(self.missed_taken_over(is_there)));
        let help =
            "Slices (of 65536) in which a node has missed changes of this coordinator that are not made good yet";
        registry.register("witan_missed_slices", help, self.missed_slices.clone());
        let help = "What other coordinators knew that nodes have missed, taken over: the slices (partial), or, where they are lost, all \
                    ranges of the node (full)";
        registry.register("witan_missed_taken_over", help, self.missed_taken_over.clone());
        let help = "Passes of healing that have ended, by kind (compare, scrub, missed, catch-up, fill) and result";
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
