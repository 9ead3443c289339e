//! The measurements of a load: latencies, throughput, failures by reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::work::Kind;

/// Longest latency that the histograms resolve, in microseconds: ten minutes.
const LONGEST_MICROS: u64 = 600_000_000;
/// Most reasons that are counted separately; failures with further reasons are counted together.
const REASONS: usize = 64;

/// Counters of a running load, for showing progress.
#[derive(Debug, Default)]
pub struct Progress {
    /// Operations that have succeeded, including the warm-up.
    pub done: AtomicU64,
    /// Operations that have failed, including the warm-up.
    pub failed: AtomicU64,
}

/// The result of the measured part of a load.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Latencies of successful writes, in microseconds.
    pub writes: Histogram<u64>,
    /// Latencies of successful reads (finding no value is a success), in microseconds.
    pub reads: Histogram<u64>,
    /// Time until failed operations were answered, in microseconds.
    pub failures: Histogram<u64>,
    /// Failed operations by reason.
    pub errors: BTreeMap<String, u64>,
    /// Operations that succeeded within the measured time.
    pub in_time: u64,
    /// The measured time.
    pub elapsed: Duration,
    /// Operations that succeeded, including the warm-up.
    pub all: u64,
}

impl Measured {
    /// Operations per second.
    pub fn throughput(&self) -> f64 {
        self.in_time as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Failed operations.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Joins the measurements of several threads.
    pub(super) fn join(parts: Vec<Self>) -> Option<Self> {
        parts.into_iter().reduce(|mut all, part| {
            // Both have the same bounds, so nothing can be out of range.
            let _ = all.writes.add(&part.writes);
            let _ = all.reads.add(&part.reads);
            let _ = all.failures.add(&part.failures);
            for (reason, count) in part.errors {
                *all.errors.entry(reason).or_default() += count;
            }
            all.in_time += part.in_time;
            all.all += part.all;
            all.elapsed = all.elapsed.max(part.elapsed);
            all
        })
    }
}

/// One thread's measurements.
pub(super) struct Recorder {
    measured_from: Instant,
    end: Option<Instant>,
    last: Instant,
    measured: Measured,
    progress: Arc<Progress>,
}

impl Recorder {
    pub(super) fn new(
        measured_from: Instant,
        end: Option<Instant>,
        progress: Arc<Progress>,
    ) -> Result<Self, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_MICROS, 3);
        let measured = Measured {
            writes: histogram()?,
            reads: histogram()?,
            failures: histogram()?,
            errors: BTreeMap::new(),
            in_time: 0,
            elapsed: Duration::ZERO,
            all: 0,
        };
        Ok(Self { measured_from, end, last: measured_from, measured, progress })
    }

    /// An operation has succeeded; its latency counts from `from`.
    pub(super) fn ended(&mut self, kind: Kind, from: Instant, now: Instant) {
        self.progress.done.fetch_add(1, Ordering::Relaxed);
        self.measured.all += 1;
        if now < self.measured_from {
            return;
        }
        self.last = now;
        self.measured.in_time += u64::from(self.end.is_none_or(|end| now <= end));
        match kind {
            Kind::Write => self.measured.writes.saturating_record(micros(from, now)),
            Kind::Read => self.measured.reads.saturating_record(micros(from, now)),
        }
    }

    /// An operation has failed; its latency counts from `from`.
    pub(super) fn failed(&mut self, reason: &str, from: Instant, now: Instant) {
        self.progress.failed.fetch_add(1, Ordering::Relaxed);
        if now < self.measured_from {
            return;
        }
        self.last = now;
        self.measured.failures.saturating_record(micros(from, now));
        let errors = &mut self.measured.errors;
        let reason = if errors.len() < REASONS || errors.contains_key(reason) { reason } else { "(other reasons)" };
        match errors.get_mut(reason) {
            Some(count) => *count += 1,
            None => drop(errors.insert(reason.to_owned(), 1)),
        }
    }

    pub(super) fn finish(mut self) -> Measured {
        let until = self.end.unwrap_or(self.last);
        self.measured.elapsed = until.saturating_duration_since(self.measured_from);
        self.measured
    }
}

fn micros(from: Instant, until: Instant) -> u64 {
    u64::try_from(until.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::super::work::Kind;
    use super::{Measured, Recorder};

    #[test]
    fn the_warm_up_and_what_ends_late_do_not_count_for_throughput() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let recorder = || Recorder::new(at(1000), Some(at(2000)), Arc::default()).unwrap();
        let (mut one, mut two) = (recorder(), recorder());
        one.ended(Kind::Write, at(0), at(999));
        one.ended(Kind::Write, at(999), at(1000));
        one.ended(Kind::Read, at(1500), at(2500));
        two.ended(Kind::Write, at(1500), at(1504));
        two.failed("OVERLOADED", at(400), at(500));
        two.failed("OVERLOADED", at(1400), at(1500));
        let all = Measured::join(vec![one.finish(), two.finish()]).unwrap();
        assert!((all.throughput() - 2.0).abs() < 1e-9);
        assert_eq!((all.writes.len(), all.reads.len(), all.failed(), all.all), (2, 1, 1, 4));
        assert_eq!(all.writes.max() / 100, 40);
        assert_eq!((all.failures.len(), all.failures.max() / 10_000), (1, 10));
        assert!(all.reads.max() >= 1_000_000);
    }

    #[test]
    fn reasons_are_bounded() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start, None, Arc::default()).unwrap();
        (0..1000).for_each(|n| recorder.failed(&format!("R{n}"), start, start));
        let measured = recorder.finish();
        assert_eq!(measured.failed(), 1000);
        assert!(measured.errors.len() <= 65);
    }
}
