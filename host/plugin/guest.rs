//! The data of one instance's store: its memory limiter, its deadline, and what the host functions do that the guest may call.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{ResourceLimiter, UpdateDeadline};
use witan_kernel::name::TenantId;

use crate::engine::Ticks;
use crate::fault::{GrowthLimit, Timeout, shorten};
use crate::limit::Budget;
use crate::metrics::Counters;

/// What an instance is there for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Serves {
    /// Its plugin's name and digest, for the log.
    pub(crate) by: Arc<str>,
    /// The tenant; `None` while the plugin is staged or probed.
    pub(crate) tenant: Option<TenantId>,
    /// Where its calls are counted.
    pub(crate) counters: Arc<Counters>,
}

/// The severity of a line that a guest logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    Debug,
    Info,
    Warn,
    Error,
}

/// A store's data.
pub(crate) struct Guest {
    pub(crate) memory: MemoryLimiter,
    pub(crate) deadline: Deadline,
    host: HostCalls,
}

impl Guest {
    pub(crate) fn new(budget: &Budget, ticks: Ticks, serves: Serves) -> Self {
        Self {
            memory: MemoryLimiter::new(budget),
            deadline: Deadline::new(budget, ticks.clone()),
            host: HostCalls { serves, ticks },
        }
    }

    /// Writes a line of the guest to the log.
    pub(crate) fn log_line(&mut self, severity: Severity, message: &str) {
        let HostCalls { serves: Serves { by, counters, .. }, ticks } = &self.host;
        if !counters.may_log(ticks.now() / 1000) {
            counters.lines_dropped();
            return;
        }
        let (plugin, message) = (&**by, shorten(message));
        match severity {
            Severity::Debug => tracing::debug!(target: "witan::plugin", plugin, "{message}"),
            Severity::Info => tracing::info!(target: "witan::plugin", plugin, "{message}"),
            // An error of the plugin is a warning of the coordinator, which copes with it: an operator need not act.
            Severity::Warn | Severity::Error => tracing::warn!(target: "witan::plugin", plugin, "{message}"),
        }
    }

    /// Sets a gauge of the guest.
    pub(crate) fn set_gauge(&mut self, name: String, value: f64) {
        self.host.serves.counters.gauge(name, value);
    }

    /// The tenant that the guest serves.
    pub(crate) fn tenant_served(&self) -> Option<&TenantId> {
        self.host.serves.tenant.as_ref()
    }
}

/// Bounds the sum of all memories, and of all tables, of one store.
#[derive(Debug)]
pub(crate) struct MemoryLimiter {
    limit: usize,
    pub(crate) bytes: usize,
    /// Most elements of all tables.
    most_elements: usize,
    pub(crate) elements: usize,
    /// Most memories, tables and core instances, of each.
    items: usize,
    /// The limit that was reached last: nearly always the reason why the guest then traps.
    pub(crate) refused: Option<GrowthLimit>,
}

impl MemoryLimiter {
    fn new(budget: &Budget) -> Self {
        let Budget { memory: limit, elements: most_elements, items, .. } = *budget;
        Self { limit, bytes: 0, most_elements, elements: 0, items, refused: None }
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let sum = self.bytes.saturating_add(desired.saturating_sub(current));
        if sum > self.limit {
            self.refused = Some(GrowthLimit::Memory(self.limit));
            return Ok(false);
        }
        self.bytes = sum;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let sum = self.elements.saturating_add(desired.saturating_sub(current));
        if sum > self.most_elements {
            self.refused = Some(GrowthLimit::Table(self.most_elements));
            return Ok(false);
        }
        self.elements = sum;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.items
    }

    fn tables(&self) -> usize {
        self.items
    }

    fn memories(&self) -> usize {
        self.items
    }
}

/// The end of a call. Measured in CPU time of the thread, because on a busy machine a thread may be descheduled for longer than a
/// whole budget; reading that clock is a system call, so it is first read once a tick has passed.
#[derive(Debug)]
pub(crate) struct Deadline {
    ticks: Ticks,
    /// Of what runs now: the start, or a call.
    cpu: Duration,
    cpu_of_call: Duration,
    wall_ms: u64,
    started_ms: u64,
    /// CPU time of the thread at the first check.
    measured_from: Option<Duration>,
}

/// Ticks after which the deadline is first checked. The first tick may come at once, so two are at least a millisecond.
pub(crate) const FIRST_CHECK: u64 = 2;

impl Deadline {
    fn new(budget: &Budget, ticks: Ticks) -> Self {
        let wall_ms = budget.wall.as_millis() as u64;
        let (cpu, cpu_of_call) = (budget.start, budget.cpu);
        Self { started_ms: ticks.now(), ticks, cpu, cpu_of_call, wall_ms, measured_from: None }
    }

    /// A call begins.
    pub(crate) fn start(&mut self) {
        self.started_ms = self.ticks.now();
        self.measured_from = None;
        self.cpu = self.cpu_of_call;
    }

    /// Called with every tick that passes during a call: continues, or stops the call.
    pub(crate) fn check(&mut self) -> wasmtime::Result<UpdateDeadline> {
        if self.ticks.now().saturating_sub(self.started_ms) > self.wall_ms {
            return Err(wasmtime::Error::new(Timeout::Wall(Duration::from_millis(self.wall_ms))));
        }
        let now = thread_cpu();
        let from = *self.measured_from.get_or_insert(now);
        if now.saturating_sub(from) >= self.cpu {
            return Err(wasmtime::Error::new(Timeout::Cpu(self.cpu)));
        }
        Ok(UpdateDeadline::Continue(1))
    }
}

/// CPU time that this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What the host functions need.
struct HostCalls {
    serves: Serves,
    ticks: Ticks,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_are_summed() {
        let budget = Budget { memory: 300, ..crate::Limits::default().standard.policy };
        let mut memory = MemoryLimiter::new(&budget);
        assert!(memory.memory_growing(0, 100, None).unwrap());
        assert!(memory.memory_growing(0, 150, None).unwrap());
        assert!(!memory.memory_growing(100, 151, None).unwrap());
        assert_eq!(memory.refused, Some(GrowthLimit::Memory(300)));
        assert!(memory.memory_growing(100, 150, None).unwrap());
        assert_eq!(memory.bytes, 300);
        assert!(memory.table_growing(0, budget.elements, None).unwrap());
        assert!(!memory.table_growing(0, 1, None).unwrap());
        assert!(!memory.memory_growing(0, usize::MAX, None).unwrap());
    }

    #[test]
    fn wall_time_ends_a_call_whose_thread_is_not_scheduled() {
        let ticks = Ticks::default();
        let budget = crate::Limits::default().standard.policy;
        let mut deadline = Deadline::new(&budget, ticks.clone());
        deadline.start();
        assert!(deadline.check().is_ok());
        ticks.set(budget.wall.as_millis() as u64 + 1);
        let error = deadline.check().err().unwrap();
        assert!(matches!(error.downcast_ref(), Some(Timeout::Wall(_))));
    }
}
