//! What stands around one instance: its memory limiter, its deadline, and the two functions that it may call.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{ResourceLimiter, UpdateDeadline};

use crate::bindings::v0_1::policy::witan::plugin::host::{Host, Severity};
use crate::engine::Ticks;
use crate::limit::{self, Budget};
use crate::metrics::Counters;

/// A store's data.
pub(crate) struct Guest {
    pub(crate) memory: Memory,
    pub(crate) deadline: Deadline,
    host: HostCalls,
}

impl Guest {
    pub(crate) fn new(budget: &Budget, ticks: Ticks, by: Arc<str>, counters: Arc<Counters>) -> Self {
        Self {
            memory: Memory::new(budget.memory),
            deadline: Deadline::new(budget, ticks.clone()),
            host: HostCalls { by, counters, ticks },
        }
    }
}

/// Holds all memories, and all tables, of one store under one sum.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    pub(crate) bytes: usize,
    elements: usize,
    /// What was refused last: nearly always why a guest then traps.
    pub(crate) refused: Option<Refused>,
}

/// A limit that a guest ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Memory { limit: usize },
    Table { limit: usize },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { limit } => write!(f, "wanted more than {limit} bytes of memory"),
            Self::Table { limit } => write!(f, "wanted more than {limit} elements in tables"),
        }
    }
}

impl Memory {
    fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, elements: 0, refused: None }
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let sum = self.bytes.saturating_add(desired.saturating_sub(current));
        if sum > self.limit {
            self.refused = Some(Refused::Memory { limit: self.limit });
            return Ok(false);
        }
        self.bytes = sum;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let sum = self.elements.saturating_add(desired.saturating_sub(current));
        if sum > limit::TABLE_ELEMENTS {
            self.refused = Some(Refused::Table { limit: limit::TABLE_ELEMENTS });
            return Ok(false);
        }
        self.elements = sum;
        Ok(true)
    }

    fn instances(&self) -> usize {
        limit::STORE_ITEMS
    }

    fn tables(&self) -> usize {
        limit::STORE_ITEMS
    }

    fn memories(&self) -> usize {
        limit::STORE_ITEMS
    }
}

/// When a call is over. Counted in CPU time of the thread, because on a busy machine a thread may stand still for longer
/// than a whole budget; but asking for that costs a system call, so it is only asked once the first tick has passed.
#[derive(Debug)]
pub(crate) struct Deadline {
    ticks: Ticks,
    cpu: Duration,
    wall_ms: u64,
    started_ms: u64,
    measured_from: Option<Duration>,
}

/// Ticks after which the CPU time is first asked for. The first may come at once, so the second is a millisecond at least.
pub(crate) const FIRST_LOOK: u64 = 2;

impl Deadline {
    fn new(budget: &Budget, ticks: Ticks) -> Self {
        let wall_ms = budget.wall.as_millis() as u64;
        Self { started_ms: ticks.now(), ticks, cpu: budget.cpu, wall_ms, measured_from: None }
    }

    /// A call begins.
    pub(crate) fn start(&mut self) {
        self.started_ms = self.ticks.now();
        self.measured_from = None;
    }

    /// A tick has passed: one more, or no more?
    pub(crate) fn look(&mut self) -> wasmtime::Result<UpdateDeadline> {
        if self.ticks.now().saturating_sub(self.started_ms) > self.wall_ms {
            return Err(wasmtime::Error::new(OutOfTime::Wall(Duration::from_millis(self.wall_ms))));
        }
        let now = thread_cpu();
        let from = *self.measured_from.get_or_insert(now);
        if now.saturating_sub(from) >= self.cpu {
            return Err(wasmtime::Error::new(OutOfTime::Cpu(self.cpu)));
        }
        Ok(UpdateDeadline::Continue(1))
    }
}

/// CPU time that this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Why a call was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutOfTime {
    Cpu(Duration),
    Wall(Duration),
}

impl fmt::Display for OutOfTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(budget) => write!(f, "ran longer than {} ms of CPU time", budget.as_millis()),
            Self::Wall(budget) => write!(f, "did not end within {} ms", budget.as_millis()),
        }
    }
}

impl std::error::Error for OutOfTime {}

/// What a guest may ask of its host.
struct HostCalls {
    by: Arc<str>,
    counters: Arc<Counters>,
    ticks: Ticks,
}

impl Host for Guest {
    fn log(&mut self, severity: Severity, message: String) {
        let host = &mut self.host;
        if !host.counters.may_log(host.ticks.now() / 1000) {
            host.counters.lines_dropped();
            return;
        }
        let (plugin, message) = (&*host.by, crate::instance::shorten(&message));
        match severity {
            Severity::Debug => tracing::debug!(target: "witan::plugin", plugin, "{message}"),
            Severity::Info => tracing::info!(target: "witan::plugin", plugin, "{message}"),
            // An error of a plugin's is a warning of ours: the coordinator acts, and nobody must.
            Severity::Warn | Severity::Error => tracing::warn!(target: "witan::plugin", plugin, "{message}"),
        }
    }

    fn metric(&mut self, name: String, value: f64) {
        self.host.counters.gauge(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_are_summed() {
        let mut memory = Memory::new(300);
        assert!(memory.memory_growing(0, 100, None).unwrap());
        assert!(memory.memory_growing(0, 150, None).unwrap());
        assert!(!memory.memory_growing(100, 151, None).unwrap());
        assert_eq!(memory.refused, Some(Refused::Memory { limit: 300 }));
        assert!(memory.memory_growing(100, 150, None).unwrap());
        assert_eq!(memory.bytes, 300);
        assert!(memory.table_growing(0, limit::TABLE_ELEMENTS, None).unwrap());
        assert!(!memory.table_growing(0, 1, None).unwrap());
        assert!(!memory.memory_growing(0, usize::MAX, None).unwrap());
    }

    #[test]
    fn wall_time_ends_a_call_that_is_not_let_run() {
        let ticks = Ticks::default();
        let budget = crate::Limits::default().policy;
        let mut deadline = Deadline::new(&budget, ticks.clone());
        deadline.start();
        assert!(deadline.look().is_ok());
        ticks.set(budget.wall.as_millis() as u64 + 1);
        let error = deadline.look().err().unwrap();
        assert!(matches!(error.downcast_ref(), Some(OutOfTime::Wall(_))));
    }
}
