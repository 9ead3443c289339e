//! A measurement: what the mark costs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use witan_node::engine::Engine;
use witan_node::engine::fjall::{Fjall, Options};

/// Prints how many synced batches a second the store takes, and the ratio to the bare engine, in windows that take turns.
#[test]
#[ignore = "a measurement"]
fn sync_rate() {
    let within = std::env::var("WITAN_RATE_DIR").unwrap_or_else(|_| ".".to_owned());
    let (one, other) = (tempfile::tempdir_in(&within).unwrap(), tempfile::tempdir_in(&within).unwrap());
    let engine = Fjall::open(one.path(), Options::default()).unwrap();
    let bare = fjall::Database::builder(other.path()).worker_threads(1).open().unwrap();
    let keyspace = bare.keyspace("records", fjall::KeyspaceCreateOptions::default).unwrap();
    let with_mark = |batch: Vec<(Bytes, Option<Bytes>)>| {
        engine.write(batch).unwrap();
        engine.sync().unwrap();
    };
    let without = |batch: Vec<(Bytes, Option<Bytes>)>| {
        let mut changes = fjall::OwnedWriteBatch::with_capacity(bare.clone(), batch.len());
        batch.into_iter().for_each(|(row, value)| changes.insert(&keyspace, row, value.unwrap()));
        changes.durability(Some(fjall::PersistMode::Buffer)).commit().unwrap();
        bare.persist(fjall::PersistMode::SyncData).unwrap();
    };
    let window = |rows: u64, values: &[Bytes], from: u64, store: &dyn Fn(Vec<(Bytes, Option<Bytes>)>)| {
        let (begun, mut syncs) = (Instant::now(), 0u64);
        while begun.elapsed() < Duration::from_millis(200) {
            let number = |n: u64| (from * 100_000 + syncs * rows + n) % 1_000_000;
            store(
                (0..rows)
                    .map(|n| (Bytes::from(format!("row-{:06}", number(n))), Some(values[n as usize].clone())))
                    .collect(),
            );
            syncs += 1;
        }
        syncs as f64 / begun.elapsed().as_secs_f64()
    };
    for (rows, bytes) in [(1, 100), (64, 200), (256, 1000)] {
        let values: Vec<Bytes> = (0..rows).map(|n| Bytes::from(vec![n as u8; bytes])).collect();
        let mut rounds: Vec<(f64, f64)> = (0..35)
            .map(|round| {
                let mut rates = [(0, 0.0), (1, 0.0)];
                rates.rotate_left(round as usize % 2);
                for (which, rate) in &mut rates {
                    let store: &dyn Fn(Vec<(Bytes, Option<Bytes>)>) = if *which == 0 { &with_mark } else { &without };
                    *rate = window(rows, &values, round, store);
                }
                rates.sort_by_key(|(which, _)| *which);
                (rates[0].1 / rates[1].1, rates[0].1)
            })
            .collect();
        rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
        let ratio = |at: usize| rounds[at].0;
        println!("{rows} x {bytes}: {:.2} of the bare engine ({:.2} to {:.2})", ratio(17), ratio(8), ratio(26));
    }
}
