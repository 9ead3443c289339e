//! Counters per binding and per hook, as plain numbers that the coordinator exports as metrics.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::limit;
use witan_kernel::candidate::{AtomicLatencies, Latencies};
use witan_kernel::sync::lock;

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
}

/// The counters behind [`Counts`], and the gauges that the plugin reports.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    calls: AtomicU64,
    remembered: AtomicU64,
    declined: AtomicU64,
    faults: AtomicU64,
    refused: AtomicU64,
    nanos: AtomicU64,
    instances: AtomicU64,
    swaps: AtomicU64,
    taken_back: AtomicU64,
    lines_dropped: AtomicU64,
    /// The second in which a line was logged last (low half), and the lines logged in that second (high half).
    lines: AtomicU64,
    gauges: Mutex<BTreeMap<String, f64>>,
    /// Faults by their kind.
    kinds: Mutex<BTreeMap<&'static str, u64>>,
    latencies: AtomicLatencies,
}

impl Counters {
    pub(crate) fn called(&self, took: Duration) {
        self.calls.fetch_add(1, Relaxed);
        self.nanos.fetch_add(took.as_nanos() as u64, Relaxed);
        self.latencies.record(took.as_micros() as u64);
    }

    pub(crate) fn remembered(&self) {
        self.remembered.fetch_add(1, Relaxed);
    }

    pub(crate) fn declined(&self) {
        self.declined.fetch_add(1, Relaxed);
    }

    pub(crate) fn faulted(&self, kind: &'static str) {
        self.faults.fetch_add(1, Relaxed);
        *lock(&self.kinds).entry(kind).or_default() += 1;
    }

    /// Faults by their kind.
    pub(crate) fn faults_by_kind(&self) -> Vec<(&'static str, u64)> {
        lock(&self.kinds).iter().map(|(kind, count)| (*kind, *count)).collect()
    }

    /// Duration of the calls.
    pub(crate) fn latencies(&self) -> Latencies {
        self.latencies.read()
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
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
        Counts {
            calls: self.calls.load(Relaxed),
            remembered: self.remembered.load(Relaxed),
            declined: self.declined.load(Relaxed),
            faults: self.faults.load(Relaxed),
            refused: self.refused.load(Relaxed),
            nanos: self.nanos.load(Relaxed),
            instances: self.instances.load(Relaxed),
            swaps: self.swaps.load(Relaxed),
            taken_back: self.taken_back.load(Relaxed),
            lines_dropped: self.lines_dropped.load(Relaxed),
        }
    }
}
