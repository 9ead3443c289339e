//! The storage path of a node alone: batches of requests to its threads and responses back, without a network.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use witan::cli::output::{Table, grouped};
use witan_kernel::digest::Wanted;
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::port::{Clock, Randomness};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Ask, Place, Request};
use witan_node::batch::{Answers, Deliver, Durability, Item};
use witan_node::digest::digests;
use witan_node::driver::{Driver, QueueLimits, Threads};
use witan_node::engine::fjall::{Fjall, Options as EngineOptions};
use witan_node::node::ROW_CACHE;
use witan_node::store::Store;

use crate::Options;
use crate::report::Section;

/// Number of different keys.
const KEYS: u64 = 100_000;
/// Microseconds since 1970 at which each measurement starts, and the step from one request to the next: 50,000 per second, so that
/// replicas remember as many writes as they would in production.
const START: u64 = 100_000_000;
const STEP: u64 = 20;

/// One shape of load on the path.
struct Shape {
    durability: Durability,
    shards: usize,
    /// Requests submitted together.
    batch: u64,
    in_flight: u64,
    requests: u64,
    reads: bool,
    /// Everything was counted before: digests follow each merge.
    digests: bool,
}

const fn merges(durability: Durability, shards: usize, batch: u64, in_flight: u64, requests: u64) -> Shape {
    Shape { durability, shards, batch, in_flight, requests, reads: false, digests: false }
}

const SHAPES: [Shape; 10] = [
    merges(Durability::Os, 1, 1, 64, 300_000),
    merges(Durability::Os, 1, 16, 256, 300_000),
    merges(Durability::Os, 1, 64, 512, 300_000),
    Shape { digests: true, ..merges(Durability::Os, 1, 64, 512, 300_000) },
    merges(Durability::Os, 1, 256, 1024, 300_000),
    merges(Durability::Os, 2, 64, 512, 300_000),
    Shape { reads: true, ..merges(Durability::Os, 1, 64, 512, 300_000) },
    merges(Durability::Sync, 1, 1, 64, 50_000),
    merges(Durability::Sync, 1, 64, 512, 50_000),
    merges(Durability::Sync, 1, 256, 1024, 50_000),
];

/// Measures every shape once.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    let mut table = Table::new(["STORAGE PATH OF A NODE", "SHARDS", "BATCH", "IN FLIGHT", "OP/S", "US OF CPU/OP"]);
    let mut all = Vec::new();
    for shape in &SHAPES {
        let (rate, cpu) = shape.measure(options)?;
        let what = match (shape.reads, shape.digests) {
            (true, _) => "reads",
            (false, false) => "merges",
            (false, true) => "merges with digests",
        };
        let what = format!("{what}, {:?}", shape.durability).to_lowercase();
        eprintln!("storage: {what}, batches of {}: {rate:.0}/s", shape.batch);
        table.row([
            what.clone(),
            shape.shards.to_string(),
            shape.batch.to_string(),
            shape.in_flight.to_string(),
            grouped(rate as u64),
            format!("{cpu:.2}"),
        ]);
        let (shards, batch, in_flight) = (shape.shards, shape.batch, shape.in_flight);
        all.push(json!({
            "what": what, "shards": shards, "batch": batch, "in_flight": in_flight, "per_second": rate, "cpu_us": cpu,
        }));
    }
    let text = format!("storage: {} keys, values of {} bytes\n{}", KEYS, options.value_size, table.aligned());
    Ok(Section { text, json: Value::Array(all), bounds_hold: true })
}

impl Shape {
    /// Requests per second, and microseconds of processor time each.
    fn measure(&self, options: &Options) -> anyhow::Result<(f64, f64)> {
        let folder = match &options.folder {
            Some(folder) => TempDir::with_prefix_in("witan-bench-", folder)?,
            None => TempDir::with_prefix("witan-bench-")?,
        };
        let engine = Fjall::open(folder.path(), EngineOptions::default())?;
        let store = Store::open(Box::new(engine), &NodeId::new("n1")?, &Dice(AtomicU8::new(1)))?;
        let wall = Arc::new(AtomicU64::new(START));
        let clock = Now(wall.clone());
        let threads =
            Threads::start(Arc::new(store), self.durability, self.shards, QueueLimits::default(), ROW_CACHE, clock)?;
        let path = Path { threads, wall, value_size: options.value_size };
        // Every key exists before measuring.
        path.put_on(0, KEYS, &Shape { reads: false, requests: KEYS, ..*self })?;
        if self.digests {
            let mut from = Some(0);
            while let Some(first) = from {
                let wanted = Wanted { space: None, tokens: (first, u64::MAX) };
                from = digests(path.threads.store(), self.durability, &wanted, &|_| ())?.to.checked_add(1);
            }
        }
        path.put_on(KEYS, self.requests, self)
    }
}

/// The running path.
struct Path {
    threads: Threads,
    wall: Arc<AtomicU64>,
    value_size: usize,
}

impl Path {
    fn put_on(&self, from: u64, requests: u64, shape: &Shape) -> anyhow::Result<(f64, f64)> {
        let (heard, answers) = mpsc::channel();
        let to: Arc<dyn Deliver> = Arc::new(Count(heard));
        let total = requests / shape.batch * shape.batch;
        // Prepared in advance, so that the cost of a client is not measured.
        let batch = |first: u64| (first..first + shape.batch).map(|n| self.item(n, shape.reads)).collect();
        let firsts: Vec<u64> = (from..from + total).step_by(shape.batch as usize).collect();
        let mut batches: Vec<Vec<Item>> = firsts.into_iter().rev().map(batch).collect();
        let (start, spent) = (Instant::now(), processor_micros()?);
        let (mut sent, mut done) = (0, 0);
        while done < total {
            while sent - done < shape.in_flight
                && let Some(items) = batches.pop()
            {
                self.wall.store(START + (from + sent) * STEP, Ordering::Relaxed);
                self.threads.submit(items, to.clone());
                sent += shape.batch;
            }
            done += answers.recv().context("the node's threads have ended")?? as u64;
        }
        let spent = processor_micros()? - spent;
        Ok((total as f64 / start.elapsed().as_secs_f64(), spent as f64 / total as f64))
    }

    fn item(&self, n: u64, read: bool) -> Item {
        let key = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
        let place = Place {
            token: key.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            space: TenantId::from_trusted(Bytes::from_static(b"benchmark")).into(),
            key: Key::from_trusted(Bytes::from(format!("key-{key:012}"))),
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let written = || {
            let value = Bytes::from(vec![n as u8; self.value_size]);
            Record::Register(Register::written(Stamp(START + n * STEP), WriteId(id), Some(value)))
        };
        let ask = if read { Ask::Read } else { Ask::Merge { record: written().encode() } };
        let request = Request { place, epoch: 0, ask };
        Item { tag: n, request, deadline: u64::MAX, largest_answer: usize::MAX, is_aged: true }
    }
}

/// Reports the number of responses; a failed one ends the measurement.
struct Count(mpsc::Sender<anyhow::Result<usize>>);

impl Deliver for Count {
    fn deliver(&self, answers: Answers) {
        let count = answers.len();
        let failed = answers.into_iter().find_map(|(_, outcome)| outcome.err());
        // The measurement may have ended with an error already.
        let _ = self.0.send(failed.map_or(Ok(count), |error| Err(error.into())));
    }
}

#[derive(Clone)]
struct Now(Arc<AtomicU64>);

impl Clock for Now {
    fn wall_micros(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn monotonic_micros(&self) -> u64 {
        0
    }
}

struct Dice(AtomicU8);

impl Randomness for Dice {
    fn sixteen(&self) -> [u8; 16] {
        [self.0.fetch_add(1, Ordering::Relaxed); 16]
    }
}

/// Processor time used by this process, in microseconds.
fn processor_micros() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("read this process' times")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    // utime and stime, in hundredths of a second.
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>().context("read this process' times")? * 10_000)
}
