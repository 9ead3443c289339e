//! A load: its settings, and the threads that run it against a cluster.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use http::Uri;
use tokio::task::LocalSet;
use witan_net::ClientSide;

use super::super::credential::Shown;
use super::measured::{Measured, Progress, Recorder};
use super::pace::{Pace, Rate, Until};
use super::work::{Distribution, Work};
use super::{session, unary};

/// How operations are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One call per operation, many at a time on each connection
    Unary,
    /// Batches on one stream per connection: all operations that are ready are sent together
    Session,
}

/// A load's settings.
#[derive(Debug, Clone)]
pub struct Load {
    /// "http://host:port" of the coordinator, or of a baseline that serves the same calls.
    pub endpoint: String,
    /// How its certificate is checked, and the client certificate; `None`: no TLS.
    pub tls: Option<ClientSide>,
    /// How operations are sent.
    pub mode: Mode,
    /// When operations start.
    pub rate: Rate,
    /// When the measured part ends.
    pub until: Until,
    /// Time before the measured part.
    pub warm_up: Duration,
    /// Operations in flight on all connections together; in an open loop, the most in flight.
    pub concurrency: u32,
    /// Connections of all threads together; at least one per thread.
    pub connections: u32,
    /// Threads of the generator.
    pub threads: u32,
    /// An operation's deadline.
    pub timeout: Duration,
    /// The tenant, which must exist.
    pub tenant: String,
    /// "one", "quorum", "all", or "" for the tenant's default.
    pub consistency: String,
    /// Number of different keys.
    pub keys: u64,
    /// Distribution of the keys.
    pub distribution: Distribution,
    /// Share of reads: 0.0 to 1.0.
    pub read_share: f64,
    /// Size of each value, in bytes.
    pub value_size: usize,
    /// Whether writes carry the context of the last response for the key, as clients of a `siblings` tenant send it.
    pub contexts: bool,
    /// Whether each write has a new idempotency key.
    pub idempotency_keys: bool,
    /// Seed of the random numbers.
    pub seed: u64,
    /// The credential sent with each call.
    pub shown: Shown,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            endpoint: "http://127.0.0.1:50051".to_owned(),
            tls: None,
            mode: Mode::Unary,
            rate: Rate::Closed,
            until: Until::Elapsed(Duration::from_secs(10)),
            warm_up: Duration::from_secs(1),
            concurrency: 64,
            connections: 2,
            threads: 1,
            timeout: Duration::from_secs(10),
            tenant: "bench".to_owned(),
            consistency: String::new(),
            keys: 10_000,
            distribution: Distribution::Uniform,
            read_share: 0.0,
            value_size: 256,
            contexts: false,
            idempotency_keys: false,
            seed: 1,
            shown: Shown::default(),
        }
    }
}

/// State shared by the tasks of one thread. They run on that thread only and never hold a borrow across an await.
pub(super) struct Share {
    pub(super) pace: Pace,
    pub(super) work: Work,
    pub(super) recorder: Recorder,
}

/// The connections of one thread's part of a load.
enum Open {
    Unary(Vec<unary::Connection>),
    Session(Vec<session::Connection>),
}

impl Load {
    /// Runs the load and measures it. Blocks until it has ended. Fails when a first connection fails; later failures are
    /// counted.
    pub fn measure(&self, progress: &Arc<Progress>) -> anyhow::Result<Measured> {
        let endpoint: Uri = self.endpoint.parse().with_context(|| format!("{} is not an address", self.endpoint))?;
        anyhow::ensure!(self.keys > 0, "a load needs at least one key");
        let threads = self.threads.clamp(1, self.concurrency.max(1));
        let ready = Barrier::new(threads as usize);
        let broken = AtomicBool::new(false);
        let parts = std::thread::scope(|scope| {
            let spawned: Vec<_> = (0..threads)
                .map(|thread| {
                    let (endpoint, ready, broken) = (&endpoint, &ready, &broken);
                    scope.spawn(move || self.part(endpoint, thread, threads, ready, broken, progress))
                })
                .collect();
            let joined = spawned.into_iter().map(|thread| thread.join());
            joined
                .map(|result| {
                    result.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of the load generator panicked")))
                })
                .collect::<anyhow::Result<Vec<Option<Measured>>>>()
        })?;
        Measured::join(parts.into_iter().flatten().collect()).context("nothing was measured")
    }

    /// One thread: connects, waits until all others have, and does its share. `None`: another thread could not connect.
    fn part(
        &self,
        endpoint: &Uri,
        thread: u32,
        threads: u32,
        ready: &Barrier,
        broken: &AtomicBool,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<Option<Measured>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        let opened = local.block_on(&runtime, self.open(endpoint, thread, threads));
        broken.fetch_or(opened.is_err(), Ordering::SeqCst);
        ready.wait();
        let opened = opened.with_context(|| format!("connect to {endpoint}"))?;
        if broken.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let share = self.share(thread, threads, progress)?;
        let recorder = local.block_on(&runtime, async {
            match opened {
                Open::Unary(connections) => unary::run(self, connections, share).await,
                Open::Session(connections) => session::run(self, connections, share).await,
            }
        });
        Ok(Some(recorder.finish()))
    }

    async fn open(&self, endpoint: &Uri, thread: u32, threads: u32) -> anyhow::Result<Open> {
        let slots = part_of(self.concurrency.max(threads), thread, threads);
        let connections = part_of(self.connections.max(threads), thread, threads).min(slots);
        let slots = (0..connections).map(|connection| part_of(slots, connection, connections));
        match self.mode {
            Mode::Unary => {
                let mut open = Vec::new();
                for slots in slots {
                    open.push(unary::Connection::open(self, endpoint, slots).await?);
                }
                Ok(Open::Unary(open))
            }
            Mode::Session => {
                let mut open = Vec::new();
                for slots in slots {
                    open.push(session::Connection::open(self, slots).await?);
                }
                Ok(Open::Session(open))
            }
        }
    }

    fn share(&self, thread: u32, threads: u32, progress: &Arc<Progress>) -> anyhow::Result<Share> {
        let (of, n) = (u64::from(threads), u64::from(thread));
        let until = match self.until {
            Until::Elapsed(elapsed) => Until::Elapsed(elapsed),
            Until::Operations(operations) => Until::Operations(operations / of + u64::from(n < operations % of)),
        };
        let rate = match self.rate {
            Rate::Closed => Rate::Closed,
            Rate::Open(rate) => Rate::Open(rate / f64::from(threads)),
        };
        // Before the clock starts: a large key space takes a while to prepare.
        let work = Work::new(self, n, of);
        let pace = Pace::new(Instant::now(), self.warm_up, until, rate);
        let recorder = Recorder::new(pace.measured_from(), pace.end(), Arc::clone(progress))?;
        Ok(Share { pace, work, recorder })
    }
}

/// The share of `total` that falls to number `n` of `of`.
fn part_of(total: u32, n: u32, of: u32) -> u32 {
    total / of + u32::from(n < total % of)
}

#[cfg(test)]
mod tests {
    use super::part_of;

    #[test]
    fn parts_add_up() {
        for (total, of) in [(7, 3), (3, 3), (64, 2), (1, 1)] {
            assert_eq!((0..of).map(|n| part_of(total, n, of)).sum::<u32>(), total);
        }
    }
}
