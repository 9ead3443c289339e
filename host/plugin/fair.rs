//! Whose question is next: a queue for each tenant, and of the tenants that wait the one that has used the least CPU. Pure.
//!
//! It is start-time fair queueing with the CPU time that was used in place of the one that will be: a tenant that begins to wait starts
//! where those are that are served now, so that nobody saves up a right to the threads, and one that has burnt much waits until the others
//! have used as much, even if it was idle for a moment in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What may wait and run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most jobs of a tenant that wait.
    pub(crate) tenant_jobs: usize,
    /// Most jobs that wait.
    pub(crate) jobs: usize,
    /// Most bytes of a tenant's jobs that wait or run.
    pub(crate) tenant_bytes: usize,
    /// Most bytes of all jobs that wait or run.
    pub(crate) bytes: usize,
    /// Most jobs of a tenant that run at a time.
    pub(crate) at_once: usize,
}

/// What has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Too many of the tenant's jobs wait, or too many of all.
    Jobs,
    /// They have too many bytes.
    Bytes,
}

/// A job that is to be run now. Whoever has run it says so, with [`Fair::ended`].
#[derive(Debug)]
pub(crate) struct Next<K, J> {
    pub(crate) tenant: K,
    pub(crate) bytes: usize,
    pub(crate) job: J,
}

/// The queues of all tenants.
#[derive(Debug)]
pub(crate) struct Fair<K, J> {
    bounds: Bounds,
    lines: BTreeMap<K, Line<J>>,
    /// Tenants of which a job may be run, by the CPU time that they have used, in nanoseconds; of those with the same the one that has
    /// waited longest.
    ready: BTreeSet<(u64, u64, K)>,
    /// Tenants without any job whose CPU time is still ahead of [`Self::floor`].
    idle: BTreeSet<(u64, K)>,
    /// The CPU time from which a tenant starts that begins to wait: that of the one that was served last.
    floor: u64,
    /// Of jobs, in the order in which they came.
    number: u64,
    waiting: usize,
    running: usize,
    bytes: usize,
}

/// One tenant's queue.
#[derive(Debug)]
struct Line<J> {
    /// CPU time that it has used, in nanoseconds, from where it began.
    used: u64,
    /// The number under which it is in [`Fair::ready`].
    since: u64,
    running: usize,
    bytes: usize,
    jobs: VecDeque<(usize, J)>,
}

impl<K: Ord + Clone, J> Fair<K, J> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lines: BTreeMap::new(),
            ready: BTreeSet::new(),
            idle: BTreeSet::new(),
            floor: 0,
            number: 0,
            waiting: 0,
            running: 0,
            bytes: 0,
        }
    }

    /// Adds a job that holds this many bytes.
    pub(crate) fn push(&mut self, tenant: &K, bytes: usize, job: J) -> Result<(), Full> {
        let (jobs, held) = self.lines.get(tenant).map_or((0, 0), |line| (line.jobs.len(), line.bytes));
        if self.waiting >= self.bounds.jobs || jobs >= self.bounds.tenant_jobs {
            return Err(Full::Jobs);
        }
        if held.saturating_add(bytes) > self.bounds.tenant_bytes || self.bytes.saturating_add(bytes) > self.bounds.bytes
        {
            return Err(Full::Bytes);
        }
        self.number += 1;
        let new = || Line { used: 0, since: 0, running: 0, bytes: 0, jobs: VecDeque::new() };
        let line = self.lines.entry(tenant.clone()).or_insert_with(new);
        if line.jobs.is_empty() {
            self.idle.remove(&(line.used, tenant.clone()));
            line.since = self.number;
            if line.running == 0 {
                line.used = line.used.max(self.floor);
            }
            if line.running < self.bounds.at_once {
                self.ready.insert((line.used, line.since, tenant.clone()));
            }
        }
        line.jobs.push_back((bytes, job));
        line.bytes += bytes;
        self.bytes += bytes;
        self.waiting += 1;
        Ok(())
    }

    /// The job that is to be run now, if there is one.
    pub(crate) fn pop(&mut self) -> Option<Next<K, J>> {
        let (used, _, tenant) = self.ready.pop_first()?;
        self.floor = self.floor.max(used);
        self.forget_idle();
        let line = self.lines.get_mut(&tenant)?;
        let (bytes, job) = line.jobs.pop_front()?;
        line.running += 1;
        self.number += 1;
        line.since = self.number;
        if !line.jobs.is_empty() && line.running < self.bounds.at_once {
            self.ready.insert((line.used, line.since, tenant.clone()));
        }
        self.waiting -= 1;
        self.running += 1;
        Some(Next { tenant, bytes, job })
    }

    /// A job of this many bytes has ended, and has used this much CPU time.
    pub(crate) fn ended(&mut self, tenant: &K, bytes: usize, cpu: Duration) {
        let Some(line) = self.lines.get_mut(tenant) else { return };
        self.ready.remove(&(line.used, line.since, tenant.clone()));
        line.used = line.used.saturating_add(u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX));
        line.running -= 1;
        line.bytes -= bytes;
        self.bytes -= bytes;
        self.running -= 1;
        if !line.jobs.is_empty() {
            self.ready.insert((line.used, line.since, tenant.clone()));
        } else if line.running == 0 {
            self.idle.insert((line.used, tenant.clone()));
        }
        if self.waiting == 0 && self.running == 0 {
            // Nobody is to be compared with anybody.
            self.lines.clear();
            self.idle.clear();
            self.floor = 0;
        }
    }

    /// What was used by tenants that would start from the floor anyway.
    fn forget_idle(&mut self) {
        while let Some((used, _)) = self.idle.first()
            && *used <= self.floor
            && let Some((_, tenant)) = self.idle.pop_first()
        {
            self.lines.remove(&tenant);
        }
    }

    #[cfg(test)]
    fn waiting(&self, tenant: &K) -> usize {
        self.lines.get(tenant).map_or(0, |line| line.jobs.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { tenant_jobs: 64, jobs: 100, tenant_bytes: 1000, bytes: 1500, at_once: 1 };

    fn queue() -> Fair<&'static str, u32> {
        Fair::new(BOUNDS)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs the next job, which uses so much of the CPU.
    fn run(queue: &mut Fair<&'static str, u32>, cpu: impl Fn(&str) -> Duration) -> Option<(&'static str, u32)> {
        let Next { tenant, bytes, job } = queue.pop()?;
        queue.ended(&tenant, bytes, cpu(tenant));
        Some((tenant, job))
    }

    #[test]
    fn a_neighbour_waits_for_one_job_of_a_tenant_with_many() {
        let mut queue = queue();
        (0..64).for_each(|n| queue.push(&"busy", 1, n).unwrap());
        let running = queue.pop().unwrap();
        queue.push(&"quiet", 1, 7).unwrap();
        assert_eq!(queue.pop().unwrap().tenant, "quiet", "another thread takes it at once");
        queue.ended(&"quiet", 1, ms(1));
        queue.ended(&running.tenant, 1, ms(50));
        queue.push(&"quiet", 1, 8).unwrap();
        assert_eq!(run(&mut queue, |_| ms(1)), Some(("quiet", 8)));
        assert_eq!(run(&mut queue, |_| ms(1)), Some(("busy", 1)));
    }

    #[test]
    fn only_so_many_of_a_tenant_run_at_once() {
        let mut queue = queue();
        (0..3).for_each(|n| queue.push(&"busy", 1, n).unwrap());
        let first = queue.pop().unwrap();
        assert!(queue.pop().is_none(), "the other thread is for others");
        queue.ended(&first.tenant, first.bytes, ms(1));
        assert_eq!(queue.pop().unwrap().job, 1);
    }

    #[test]
    fn cpu_time_is_shared_by_use_and_not_by_number() {
        let mut queue = queue();
        (0..50).for_each(|n| queue.push(&"slow", 1, n).unwrap());
        (0..50).for_each(|n| queue.push(&"fast", 1, n).unwrap());
        let cost = |tenant: &str| if tenant == "slow" { ms(10) } else { ms(1) };
        let first: Vec<_> = (0..22).filter_map(|_| run(&mut queue, cost)).collect();
        let slow = first.iter().filter(|(tenant, _)| *tenant == "slow").count();
        assert!((2..=3).contains(&slow), "a tenth of the jobs: {slow}");
    }

    #[test]
    fn what_was_burnt_is_not_forgotten_by_a_moment_of_rest() {
        let mut queue = queue();
        (0..9).for_each(|n| queue.push(&"other", 1, n).unwrap());
        queue.push(&"burns", 1, 0).unwrap();
        assert_eq!(run(&mut queue, |_| ms(1)), Some(("other", 0)));
        assert_eq!(run(&mut queue, |_| ms(5)), Some(("burns", 0)));
        queue.push(&"burns", 1, 1).unwrap();
        let next: Vec<_> = (0..6).filter_map(|_| run(&mut queue, |_| ms(1))).map(|(tenant, _)| tenant).collect();
        assert_eq!(next, ["other", "other", "other", "other", "burns", "other"]);
    }

    #[test]
    fn nobody_saves_up_a_right_to_the_threads() {
        let mut queue = queue();
        queue.push(&"early", 1, 0).unwrap();
        run(&mut queue, |_| ms(1)).unwrap();
        (0..20).for_each(|n| queue.push(&"steady", 1, n).unwrap());
        (0..10).for_each(|_| _ = run(&mut queue, |_| ms(10)).unwrap());
        (0..5).for_each(|n| queue.push(&"early", 1, n).unwrap());
        let next: Vec<_> = (0..4).filter_map(|_| run(&mut queue, |_| ms(10))).map(|(tenant, _)| tenant).collect();
        let early = next.iter().filter(|tenant| **tenant == "early").count();
        assert!((2..=3).contains(&early), "{next:?}");
    }

    #[test]
    fn jobs_and_bytes_are_bounded_for_one_tenant_and_for_all() {
        let mut queue = queue();
        assert_eq!(queue.push(&"large", 1001, 0), Err(Full::Bytes));
        queue.push(&"large", 1000, 0).unwrap();
        assert_eq!(queue.push(&"large", 1, 1), Err(Full::Bytes));
        queue.push(&"other", 500, 0).unwrap();
        assert_eq!(queue.push(&"third", 1, 0), Err(Full::Bytes), "of all");
        // Until the job has ended, not only while it waits.
        let next = queue.pop().unwrap();
        assert_eq!(queue.push(&"large", 1, 1), Err(Full::Bytes));
        queue.ended(&next.tenant, next.bytes, ms(1));
        queue.push(&"large", 1, 1).unwrap();
        let mut queue = self::queue();
        (0..64).for_each(|n| queue.push(&"many", 0, n).unwrap());
        assert_eq!(queue.push(&"many", 0, 64), Err(Full::Jobs));
        (0..36).for_each(|n| queue.push(&"more", 0, n).unwrap());
        assert_eq!(queue.push(&"third", 0, 0), Err(Full::Jobs), "of all");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize, usize),
        Pop,
        End(usize, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0_usize..4, 0_usize..300).prop_map(|(tenant, bytes)| Step::Push(tenant, bytes)),
            2 => Just(Step::Pop),
            2 => (0_usize..8, 0_u64..50).prop_map(|(which, cpu)| Step::End(which, cpu)),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        /// Nothing is lost, doubled or overtaken within a tenant; the bounds hold; a job that may run is never kept from a free thread; and
        /// no tenant is served that has used more than one that could be served instead.
        #[test]
        fn it_keeps_its_rules(steps in steps()) {
            const TENANTS: [&str; 4] = ["a", "b", "c", "d"];
            let bounds = Bounds { tenant_jobs: 8, jobs: 20, tenant_bytes: 600, bytes: 1200, at_once: 2 };
            let mut queue: Fair<&str, (u32, usize)> = Fair::new(bounds);
            let mut model: BTreeMap<&str, VecDeque<u32>> = BTreeMap::new();
            let mut running: Vec<(&str, usize)> = Vec::new();
            let mut number = 0;
            for step in steps {
                match step {
                    Step::Push(tenant, bytes) => {
                        number += 1;
                        let tenant = TENANTS[tenant];
                        if queue.push(&tenant, bytes, (number, bytes)).is_ok() {
                            model.entry(tenant).or_default().push_back(number);
                        }
                    }
                    Step::Pop => {
                        let may_run = |tenant: &&str| running.iter().filter(|(it, _)| *it == *tenant).count() < 2;
                        let wait = |tenant: &&str| model.get(*tenant).is_some_and(|jobs| !jobs.is_empty());
                        let able: Vec<&str> = TENANTS.iter().filter(|it| may_run(it) && wait(it)).copied().collect();
                        let least = able.iter().map(|tenant| queue.lines[tenant].used).min();
                        let next = queue.pop();
                        prop_assert_eq!(next.is_some(), !able.is_empty());
                        if let Some(next) = next {
                            prop_assert_eq!(Some(queue.lines[next.tenant].used), least);
                            prop_assert_eq!(model.get_mut(next.tenant).and_then(VecDeque::pop_front), Some(next.job.0));
                            prop_assert_eq!(next.bytes, next.job.1);
                            running.push((next.tenant, next.bytes));
                        }
                    }
                    Step::End(which, cpu) if which < running.len() => {
                        let (tenant, bytes) = running.swap_remove(which);
                        queue.ended(&tenant, bytes, ms(cpu));
                    }
                    Step::End(..) => {}
                }
                let jobs: usize = model.values().map(VecDeque::len).sum();
                prop_assert_eq!((queue.waiting, queue.running), (jobs, running.len()));
                prop_assert!(jobs <= bounds.jobs && queue.bytes <= bounds.bytes);
                for (tenant, jobs) in &model {
                    prop_assert_eq!(queue.waiting(tenant), jobs.len());
                    prop_assert!(jobs.len() <= bounds.tenant_jobs);
                }
                if jobs == 0 && running.is_empty() {
                    prop_assert!(queue.lines.is_empty() && queue.idle.is_empty() && queue.bytes == 0);
                }
            }
        }
    }
}
