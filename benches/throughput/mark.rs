//! The cost of the mark: synced batches of a node's engine, and of the engine beneath it that keeps none, in turns.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use serde_json::{Value, json};
use tempfile::TempDir;
use witan::cli::output::{Table, grouped};
use witan_node::engine::Engine;
use witan_node::engine::fjall::{Fjall, Options as EngineOptions};

use crate::Options;
use crate::report::Section;

/// Rows of a batch, bytes of each value, and how long a window is. The disk's speed changes from second to second, so windows are short and
/// many; but where batches are large, one must be long enough for the engine to write out what it has in memory several times, which takes
/// longer than all syncs in between.
const SHAPES: [(u64, usize, Duration); 3] =
    [(1, 100, Duration::from_millis(200)), (64, 200, Duration::from_secs(1)), (256, 1_000, Duration::from_secs(2))];
/// Pairs of windows in each round.
const PAIRS: u32 = 5;
/// Smallest median ratio of the rate with a mark to that without.
const BOUND: f64 = 0.9;
/// Number of different rows.
const ROWS: u64 = 1_000_000;

type Batch = Vec<(Bytes, Bytes)>;

/// Measures each shape in every round.
pub(crate) fn section(options: &Options) -> anyhow::Result<Section> {
    let folder = || match &options.folder {
        Some(folder) => TempDir::with_prefix_in("witan-bench-", folder),
        None => TempDir::with_prefix("witan-bench-"),
    };
    let (marked, bare) = (folder()?, folder()?);
    let marked = Fjall::open(marked.path(), EngineOptions::default())?;
    let bare = Bare::open(&bare, EngineOptions::default())?;
    let with = |batch: Batch| -> anyhow::Result<()> {
        marked.write(batch.into_iter().map(|(row, value)| (row, Some(value))).collect())?;
        Ok(marked.sync()?)
    };
    let without = |batch: Batch| bare.put(batch);
    let mut table =
        Table::new(["ROWS", "BYTES", "WINDOW", "SYNCED BATCHES/S", "TO THE BARE ENGINE", "QUARTILES", "BOUND"]);
    let (mut all, mut bounds_hold) = (Vec::new(), true);
    for (rows, bytes, window) in SHAPES {
        let values: Vec<Bytes> = (0..rows).map(|n| Bytes::from(vec![n as u8; bytes])).collect();
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for pair in 0..options.rounds * PAIRS {
            let begin = u64::from(pair) * 100_000;
            let (rate, base) = if pair % 2 == 0 {
                let rate = per_second(&values, begin, window, &with)?;
                (rate, per_second(&values, begin, window, &without)?)
            } else {
                let base = per_second(&values, begin, window, &without)?;
                (per_second(&values, begin, window, &with)?, base)
            };
            ratios.push(rate / base);
            rates.push(rate);
        }
        ratios.sort_by(f64::total_cmp);
        rates.sort_by(f64::total_cmp);
        let quartile = |of: &[f64], n: usize| of[(of.len() - 1) * n / 4];
        let (ratio, rate) = (quartile(&ratios, 2), quartile(&rates, 2));
        let (low, high) = (quartile(&ratios, 1), quartile(&ratios, 3));
        eprintln!("mark: batches of {rows} rows of {bytes} bytes: {ratio:.2} of the bare engine");
        bounds_hold &= ratio >= BOUND;
        table.row([
            rows.to_string(),
            bytes.to_string(),
            format!("{} ms", window.as_millis()),
            grouped(rate as u64),
            format!("{ratio:.2}"),
            format!("{low:.2} to {high:.2}"),
            format!(">= {BOUND} {}", if ratio >= BOUND { "holds" } else { "FAILS" }),
        ]);
        all.push(json!({ "rows": rows, "bytes": bytes, "per_second": rate, "ratio": ratio, "quartiles": [low, high] }));
    }
    let text = format!("mark: {} pairs of windows\n{}", options.rounds * PAIRS, table.aligned());
    Ok(Section { text, json: Value::Array(all), bounds_hold })
}

/// Synced batches per second in one window.
fn per_second(
    values: &[Bytes],
    begin: u64,
    window: Duration,
    put: &dyn Fn(Batch) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let (start, mut synced) = (Instant::now(), 0u64);
    while start.elapsed() < window {
        let first = begin + synced * values.len() as u64;
        let row = |n: u64| Bytes::from(format!("row-{:06}", (first + n) % ROWS));
        put((0..).map(row).zip(values.iter().cloned()).collect())?;
        synced += 1;
    }
    Ok(synced as f64 / start.elapsed().as_secs_f64())
}

/// The engine beneath, used as a node uses it, without a mark.
struct Bare {
    database: Database,
    rows: Keyspace,
}

impl Bare {
    fn open(folder: &TempDir, options: EngineOptions) -> anyhow::Result<Self> {
        let database =
            Database::builder(folder.path()).cache_size(options.cache_bytes).worker_threads(options.workers).open()?;
        let rows = database
            .keyspace("records", || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes))?;
        Ok(Self { database, rows })
    }

    fn put(&self, batch: Batch) -> anyhow::Result<()> {
        let mut changes = OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        batch.into_iter().for_each(|(row, value)| changes.insert(&self.rows, row, value));
        changes.durability(Some(PersistMode::Buffer)).commit()?;
        Ok(self.database.persist(PersistMode::SyncData)?)
    }
}
