//! How much a node's storage path takes, by hand: `cargo test --release -p witan-node --test measure -- --ignored --nocapture`.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use bytes::Bytes;
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::port::{Clock, Randomness};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Ask, Place, Request};
use witan_node::batch::{Answers, Deliver, Durability, Item};
use witan_node::driver::{Driver, QueueLimits, Threads};
use witan_node::engine::fjall::{Fjall, Options};
use witan_node::store::Store;

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

struct Count(mpsc::Sender<usize>);

impl Deliver for Count {
    fn deliver(&self, answers: Answers) {
        assert!(answers.iter().all(|(_, outcome)| outcome.is_ok()));
        let _ = self.0.send(answers.len());
    }
}

const KEYS: u64 = 100_000;

fn item(n: u64, read: bool) -> Item {
    let number = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let key = number % KEYS;
    let tenant = TenantId::from_trusted(Bytes::from_static(b"benchmark"));
    let token = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = Place { token, tenant, key: Key::from_trusted(Bytes::from(format!("key-{key:012}"))) };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    let register =
        || Register::written(Stamp(100_000_000 + n * 20), WriteId(id), Some(Bytes::from(vec![n as u8; 256])));
    let ask = if read { Ask::Read } else { Ask::Merge { record: Record::Register(register()).encode() } };
    Item { tag: n, request: Request { place, epoch: 0, ask }, deadline: u64::MAX }
}

/// Microseconds of processor time that this process has taken.
fn processor() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    // utime and stime, in hundredths of a second.
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10_000).sum()
}

fn measure(durability: Durability, shards: usize, batch: u64, in_flight: u64, total: u64, read: bool) {
    let folder = tempfile::tempdir().unwrap();
    let memtable = std::env::var("MEMTABLE_MIB").ok().and_then(|mib| mib.parse::<u64>().ok()).unwrap_or(64);
    let options = Options { memtable_bytes: memtable << 20, ..Options::default() };
    let engine = Fjall::open(folder.path(), options).unwrap();
    let store = Arc::new(Store::open(Box::new(engine), &NodeId::new("n1").unwrap(), &Dice(AtomicU8::new(1))).unwrap());
    let wall = Arc::new(AtomicU64::new(100_000_000));
    let threads = Threads::start(store, durability, shards, QueueLimits::default(), Now(wall.clone())).unwrap();
    let (heard, answers) = mpsc::channel();
    let to = Arc::new(Count(heard));
    let go = |from: u64, total: u64, read: bool| {
        // Made beforehand: what a client spends is not measured.
        let mut batches: Vec<Vec<Item>> =
            (0..total / batch).map(|b| (0..batch).map(|n| item(from + b * batch + n, read)).collect()).collect();
        batches.reverse();
        let (start, spent) = (Instant::now(), processor());
        let (mut sent, mut done) = (0, 0);
        while done < total {
            while sent - done < in_flight
                && let Some(items) = batches.pop()
            {
                wall.store(100_000_000 + (from + sent) * 20, Ordering::Relaxed);
                threads.submit(items, to.clone());
                sent += batch;
            }
            done += answers.recv().unwrap() as u64;
        }
        (total as f64 / start.elapsed().as_secs_f64(), (processor() - spent) as f64 / total as f64)
    };
    go(0, KEYS / batch * batch, false);
    let (rate, cpu) = go(KEYS, total / batch * batch, read);
    let what = if read { "reads" } else { "merges" };
    println!(
        "{durability:?}, {shards} shard(s), batches of {batch}, {in_flight} in flight: {rate:.0} {what}/s, {cpu:.2} us of processor each"
    );
}

#[test]
#[ignore = "a measurement, not a test"]
fn merges_and_reads_per_second() {
    for (batch, in_flight) in [(1, 64), (16, 256), (64, 512), (256, 1024)] {
        measure(Durability::Os, 1, batch, in_flight, 300_000, false);
    }
    measure(Durability::Os, 2, 64, 512, 300_000, false);
    measure(Durability::Os, 1, 64, 512, 300_000, true);
    for (batch, in_flight) in [(1, 64), (64, 512), (256, 1024)] {
        measure(Durability::Sync, 1, batch, in_flight, 50_000, false);
    }
}
