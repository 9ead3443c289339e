//! The load in the background: clients that read and write, and check what they read. Every failed request is counted, and so is every
//! answer that contradicts an acknowledged write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::task::JoinSet;
use witan_wire::v1::ReadKeyValueRequest;

use crate::client::{self, Coordinator, shown, timed};
use crate::data::Record;

/// Connections of clients that rewrite and read records of the data set.
const READERS: usize = 4;
/// Connections of clients that fill carts.
const SHOPPERS: usize = 2;
/// Requests in flight on each connection: enough that the figures show the cluster and not the clients' waiting, and few enough that the
/// latencies are not mostly queueing, on the cores that the clients share with it.
const LANES: usize = 8;
/// Carts of one lane of a shopper.
const CARTS: usize = 20;
/// Longest stretch of the load, provided that any request has ended in it.
const ENOUGH: Duration = Duration::from_secs(2);
/// Time without any answer after which the load has failed.
const HALT: Duration = Duration::from_secs(60);
/// Failures whose text is kept.
const KEPT: usize = 5;

/// The requests of a stretch of time, and how they went.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    /// Requests that ended.
    pub requests: u64,
    /// Requests that failed, or whose answer contradicted an acknowledged write.
    pub failed: u64,
    /// The first of those, as text.
    pub failures: Vec<String>,
    /// Keys of the data set that were written, with repetitions.
    pub written: Vec<usize>,
    micros: Vec<u32>,
    took: Duration,
}

impl Figures {
    /// The latency below which `share` of the requests stayed.
    fn quantile(&mut self, share: f64) -> f64 {
        self.micros.sort_unstable();
        let index = ((self.micros.len() as f64 * share) as usize).min(self.micros.len().saturating_sub(1));
        self.micros.get(index).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64().max(0.001)
    }

    /// All of it in one line.
    pub fn line(&mut self) -> String {
        let (rate, p50, p99) = (self.rate(), self.quantile(0.5), self.quantile(0.99));
        format!("{} requests ({rate:.0}/s), {} failed, p50 {p50:.1} ms, p99 {p99:.1} ms", self.requests, self.failed)
    }
}

/// Requests that the load keeps in flight.
pub const IN_FLIGHT: usize = (READERS + SHOPPERS) * LANES;

/// The last acknowledged revision of each record of the data set; `None` where a failed write leaves it open.
pub type Ledger = Vec<Option<u32>>;

/// The last acknowledged revisions that one lane knows: a record's index and its revision, or `None` where a failed write leaves it open.
type Last = Vec<(usize, Option<u32>)>;

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    figures: Arc<Mutex<Figures>>,
    since: Instant,
    /// Requests and failures of earlier stretches.
    taken: (u64, u64),
    lanes: JoinSet<Last>,
    records: usize,
}

impl Load {
    /// Starts the clients: some on `tenant` with its `records`, some on `carts`.
    pub async fn start(address: &str, tenant: &str, records: &Arc<Vec<Record>>, carts: &str) -> Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            figures: Arc::default(),
            since: Instant::now(),
            taken: (0, 0),
            lanes: JoinSet::new(),
            records: records.len(),
        };
        for connection in 0..READERS {
            let client = load.client(address).await?;
            for lane in 0..LANES {
                let number = connection * LANES + lane;
                load.lanes.spawn(client.clone().rewrite(tenant.to_owned(), records.clone(), number));
            }
        }
        for connection in 0..SHOPPERS {
            let client = load.client(address).await?;
            for lane in 0..LANES {
                load.lanes.spawn(client.clone().shop(carts.to_owned(), connection * LANES + lane));
            }
        }
        Ok(load)
    }

    async fn client(&self, address: &str) -> Result<Client> {
        let coordinator = Coordinator::new(client::connect(address).await?);
        Ok(Client { coordinator, stop: self.stop.clone(), figures: self.figures.clone() })
    }

    /// What happened since the last call, or since the start.
    pub fn take(&mut self) -> Figures {
        let mut figures = std::mem::take(&mut *self.figures.lock().unwrap_or_else(PoisonError::into_inner));
        figures.took = self.since.elapsed();
        self.since = Instant::now();
        self.taken = (self.taken.0 + figures.requests, self.taken.1 + figures.failed);
        figures
    }

    /// Requests and failures since the start.
    pub fn so_far(&mut self) -> (u64, u64) {
        self.take();
        self.taken
    }

    /// Waits until `requests` more have ended; on a slow machine, until [`ENOUGH`] has passed and at least one has.
    pub async fn go_on(&self, requests: u64) -> Result<()> {
        let done = || self.figures.lock().unwrap_or_else(PoisonError::into_inner).requests;
        let (before, started) = (done(), Instant::now());
        while done() < before + requests && (done() == before || started.elapsed() < ENOUGH) {
            ensure!(started.elapsed() < HALT, "the load has come to a halt");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Stops the clients, and returns what they know to be acknowledged.
    pub async fn stop(mut self) -> Result<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledger = vec![Some(0); self.records];
        while let Some(known) = self.lanes.join_next().await {
            for (index, revision) in known.context("a client has panicked")? {
                ledger[index] = revision;
            }
        }
        Ok(ledger)
    }
}

/// A record's value in its `revision`; 0 is the data set's own line.
pub fn revised(record: &Record, revision: u32) -> Bytes {
    if revision == 0 {
        return record.value.clone();
    }
    let line = String::from_utf8_lossy(&record.value);
    let open = line.strip_suffix('}').unwrap_or(&line);
    Bytes::from(format!("{open},\"Revision\":{revision}}}"))
}

/// One connection of the load; a clone of it is one lane, which has one request in flight.
#[derive(Clone)]
struct Client {
    coordinator: Coordinator,
    stop: Arc<AtomicBool>,
    figures: Arc<Mutex<Figures>>,
}

impl Client {
    /// Rewrites this lane's share of the records, one after the other, and reads each back. The read must return what was acknowledged
    /// last, since the tenant's levels overlap and no other lane writes these records.
    async fn rewrite(mut self, tenant: String, records: Arc<Vec<Record>>, number: usize) -> Last {
        let mut known = Last::new();
        let own: Vec<usize> = (number..records.len()).step_by(READERS * LANES).collect();
        let mut revision = 0;
        'rounds: loop {
            revision += 1;
            for (place, index) in own.iter().copied().enumerate() {
                if self.stop.load(Ordering::Relaxed) {
                    break 'rounds;
                }
                let value = revised(&records[index], revision);
                let acknowledged =
                    self.write(client::write(&tenant, &records[index].key, value.clone()), Some(index)).await;
                let entry = (index, acknowledged.then_some(revision));
                if revision == 1 {
                    known.push(entry)
                } else {
                    known[place] = entry
                }
                let read = self.read(&tenant, &records[index].key).await;
                if acknowledged && read.is_some_and(|read| read != value) {
                    self.stale(format!("{} was read back older than acknowledged", records[index].key));
                }
            }
        }
        known
    }

    /// Fills this lane's carts: reads one and writes it back with one more item and the context of the read; every third time without the
    /// context, as a client does that has lost it.
    async fn shop(mut self, tenant: String, number: usize) -> Last {
        let writer = format!("shopper-{number}");
        for round in 1u32.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("load/{number}/{}", round as usize % CARTS);
            let request = ReadKeyValueRequest { tenant_id: tenant.clone(), key: key.clone(), ..Default::default() };
            let started = Instant::now();
            let context = match self.coordinator.read_key_value(timed(request)).await {
                Ok(read) => read.into_inner().context,
                Err(status) if status.code() == tonic::Code::NotFound => Bytes::new(),
                Err(status) => {
                    self.done(started, Some(format!("read {key}: {}", shown(&status))), None);
                    continue;
                }
            };
            self.done(started, None, None);
            let mut write = client::write(&tenant, &key, format!(r#"{{"items":{{"tea":{{"{writer}":{round}}}}}}}"#));
            if round % 3 != 0 {
                write.context = context;
            }
            self.write(write, None).await;
        }
        Last::new()
    }

    async fn write(&mut self, request: witan_wire::v1::WriteKeyValueRequest, index: Option<usize>) -> bool {
        let (key, started) = (request.key.clone(), Instant::now());
        let result = self.coordinator.write_key_value(timed(request)).await;
        let failure = result.as_ref().err().map(|status| format!("write {key}: {}", shown(status)));
        self.done(started, failure, index.filter(|_| result.is_ok()));
        result.is_ok()
    }

    async fn read(&mut self, tenant: &str, key: &str) -> Option<Bytes> {
        let request = ReadKeyValueRequest { tenant_id: tenant.into(), key: key.into(), ..Default::default() };
        let started = Instant::now();
        let result = self.coordinator.read_key_value(timed(request)).await;
        let failure = result.as_ref().err().map(|status| format!("read {key}: {}", shown(status)));
        self.done(started, failure, None);
        result.ok().map(|read| read.into_inner().value)
    }

    fn done(&self, started: Instant, failure: Option<String>, written: Option<usize>) {
        let micros = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.requests += 1;
        figures.micros.push(micros);
        figures.written.extend(written);
        if let Some(failure) = failure {
            count(&mut figures, failure);
        }
    }

    fn stale(&self, what: String) {
        count(&mut self.figures.lock().unwrap_or_else(PoisonError::into_inner), what);
    }
}

fn count(figures: &mut Figures, failure: String) {
    figures.failed += 1;
    if figures.failures.len() < KEPT {
        figures.failures.push(failure);
    }
}
