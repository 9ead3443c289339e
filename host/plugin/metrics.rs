//! Counters per binding and per hook, as plain numbers that the coordinator exports as metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use witan_kernel::candidate::{AtomicLatencies, Latencies};
use witan_kernel::hook::FaultKind;
use witan_kernel::sync::lock;

use crate::limit;
use crate::lines::Lines;

/// Counts of one binding or of one hook. They never decrease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls into the plugin.
    pub calls: u64,
    /// Questions answered from the cache of a deterministic policy's answers.
    pub remembered: u64,
    /// Questions that the plugin answered with an error.
    pub declined: u64,
    /// Questions on which the plugin failed: traps, limits, invalid answers.
    pub faults: u64,
    /// Questions that the plugin was not asked: its breaker was open, its queue full, or its share of the CPU used up.
    pub refused: u64,
    /// Duration of all calls together, in nanoseconds.
    pub nanos: u64,
    /// Instances started.
    pub instances: u64,
    /// Versions put in force (per hook only).
    pub swaps: u64,
    /// Candidates taken back by this coordinator (per hook only).
    pub taken_back: u64,
    /// Log lines dropped.
    pub lines_dropped: u64,
    /// Questions that got no answer, by what kept the plugin from answering, in the order of [`FaultKind::ALL`]; and questions that were
    /// repeated, and answered differently. Those that it declined, on which it failed, and that it was not asked, together.
    pub unanswered: [u64; FaultKind::ALL.len()],
    /// Questions that were put to another instance as well, to see whether it answers the same.
    pub repeated: u64,
}

/// Why a question got no answer, as the counts of before tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    Declined,
    Failed,
    NotAsked,
}

impl Unanswered {
    pub(crate) fn of(kind: FaultKind) -> Self {
        match kind {
            FaultKind::Declined => Self::Declined,
            FaultKind::Time
            | FaultKind::Memory
            | FaultKind::Trap
            | FaultKind::Answer
            | FaultKind::Undetermined
            | FaultKind::Configuration => Self::Failed,
            FaultKind::NotLoaded | FaultKind::Breaker | FaultKind::Queue | FaultKind::Share => Self::NotAsked,
        }
    }
}

/// The counters behind [`Counts`], and the gauges that the plugin reports.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    calls: AtomicU64,
    remembered: AtomicU64,
    unanswered: [AtomicU64; FaultKind::ALL.len()],
    repeated: AtomicU64,
    nanos: AtomicU64,
    instances: AtomicU64,
    swaps: AtomicU64,
    taken_back: AtomicU64,
    lines_dropped: AtomicU64,
    /// The second in which a line was logged last (low half), and the lines logged in that second (high half).
    lines: AtomicU64,
    gauges: Mutex<BTreeMap<String, f64>>,
    latencies: AtomicLatencies,
    /// Where the lines are kept that it logs; `None`: nowhere but in the coordinator's log.
    log: Option<Arc<Lines>>,
}

impl Counters {
    /// Counters of a version of a binding, whose lines are kept.
    pub(crate) fn logging_to(lines: Arc<Lines>) -> Self {
        Self { log: Some(lines), ..Self::default() }
    }

    pub(crate) fn log(&self) -> Option<&Lines> {
        self.log.as_deref()
    }

    pub(crate) fn called(&self, took: Duration) {
        self.calls.fetch_add(1, Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Relaxed);
        self.latencies.record(took.as_micros() as u64);
    }

    pub(crate) fn remembered(&self) {
        self.remembered.fetch_add(1, Relaxed);
    }

    pub(crate) fn unanswered(&self, kind: FaultKind) {
        self.unanswered[kind as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn repeated(&self) {
        self.repeated.fetch_add(1, Relaxed);
    }

    /// Duration of the calls.
    pub(crate) fn latencies(&self) -> Latencies {
        self.latencies.read()
    }

    pub(crate) fn started(&self) {
        self.instances.fetch_add(1, Relaxed);
    }

    pub(crate) fn swapped(&self) {
        self.swaps.fetch_add(1, Relaxed);
    }

    pub(crate) fn taken_back(&self) {
        self.taken_back.fetch_add(1, Relaxed);
    }

    /// Takes one of the lines that all instances of the binding together may log in `second`, if one is left: a plugin cannot get
    /// more of them by making the host start more instances.
    pub(crate) fn may_log(&self, second: u64) -> bool {
        let second = second & u64::from(u32::MAX);
        let take = |lines: u64| {
            let logged = if lines & u64::from(u32::MAX) == second { lines >> 32 } else { 0 };
            (logged < u64::from(limit::LINES_PER_SECOND)).then_some((logged + 1) << 32 | second)
        };
        self.lines.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    pub(crate) fn lines_dropped(&self) {
        self.lines_dropped.fetch_add(1, Relaxed);
        if let Some(log) = &self.log {
            log.dropped();
        }
    }

    /// Sets a gauge. A name that is too long, or one beyond [`limit::GAUGES`], is dropped.
    pub(crate) fn gauge(&self, name: String, value: f64) {
        let mut gauges = lock(&self.gauges);
        if gauges.contains_key(&name) || (gauges.len() < limit::GAUGES && name.len() <= limit::NAME_BYTES) {
            gauges.insert(name, value);
        }
    }

    pub(crate) fn gauges(&self) -> Vec<(String, f64)> {
        lock(&self.gauges).iter().map(|(name, value)| (name.clone(), *value)).collect()
    }

    pub(crate) fn read(&self) -> Counts {
        let unanswered = std::array::from_fn(|kind| self.unanswered[kind].load(Relaxed));
        let sum = |wanted: Unanswered| {
            let kinds = FaultKind::ALL.into_iter().filter(|kind| Unanswered::of(*kind) == wanted);
            kinds.map(|kind| unanswered[kind as usize]).sum()
        };
        Counts {
            calls: self.calls.load(Relaxed),
            remembered: self.remembered.load(Relaxed),
            declined: sum(Unanswered::Declined),
            faults: sum(Unanswered::Failed),
            refused: sum(Unanswered::NotAsked),
            nanos: self.nanos.load(Relaxed),
            instances: self.instances.load(Relaxed),
            swaps: self.swaps.load(Relaxed),
            taken_back: self.taken_back.load(Relaxed),
            lines_dropped: self.lines_dropped.load(Relaxed),
            unanswered,
            repeated: self.repeated.load(Relaxed),
        }
    }
}
