use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use witan_kernel::name::{Key, NodeId, TenantId, WriteId};
use witan_kernel::port::{Clock, Randomness};
use witan_kernel::record::Record;
use witan_kernel::register::{Register, Stamp};
use witan_kernel::replica::{Answer, Ask, Outcome, Place, ReplicaError, Request};

use super::*;
use crate::batch::{Answers, Durability};
use crate::engine::simulated::{Disk, Simulated};
use crate::engine::{Change, Engine};

#[derive(Clone)]
struct Still;

impl Clock for Still {
    fn wall_micros(&self) -> u64 {
        1_000_000
    }

    fn monotonic_micros(&self) -> u64 {
        0
    }
}

struct Ones;

impl Randomness for Ones {
    fn sixteen(&self) -> [u8; 16] {
        [1; 16]
    }
}

/// A disk whose syncs wait for the test.
struct Slow {
    disk: Simulated,
    door: Arc<Door>,
}

#[derive(Default)]
struct Door {
    open: Mutex<bool>,
    changed: Condvar,
    /// Syncs that have arrived at the door.
    arrived: AtomicU64,
    /// Whether syncs fail once they have passed.
    fails: AtomicBool,
}

impl Door {
    fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }

    fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock().unwrap();
        self.changed.notify_all();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }

    /// Waits until this many syncs have arrived.
    fn until(&self, arrived: u64) {
        let mut open = self.open.lock().unwrap();
        while self.arrived.load(Ordering::SeqCst) < arrived {
            open = self.changed.wait_timeout(open, Duration::from_millis(10)).unwrap().0;
        }
    }
}

impl Engine for Slow {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.disk.get(row)
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        self.disk.write(batch)
    }

    fn write_noting(&self, batch: Vec<Change>, name: &str, value: Bytes) -> Result<(), EngineError> {
        self.disk.write_noting(batch, name, value)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.door.pass();
        if self.door.fails.load(Ordering::SeqCst) {
            return Err(EngineError::Broken("smoke".to_owned()));
        }
        self.disk.sync()
    }

    fn scan(&self, range: std::ops::Range<Bytes>, limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.disk.scan(range, limit)
    }

    fn walk(
        &self,
        range: std::ops::Range<Bytes>,
        each: &mut dyn FnMut(Bytes, Bytes) -> bool,
    ) -> Result<(), EngineError> {
        self.disk.walk(range, each)
    }

    fn usage(&self) -> Result<Usage, EngineError> {
        self.disk.usage()
    }

    fn approximate_keys(&self) -> u64 {
        self.disk.approximate_keys()
    }

    fn note(&self, name: &str) -> Result<Option<Bytes>, EngineError> {
        self.disk.note(name)
    }

    fn set_note(&self, name: &str, value: Bytes) -> Result<(), EngineError> {
        self.disk.set_note(name, value)
    }
}

struct Heard(mpsc::Sender<(u64, Outcome)>);

impl Deliver for Heard {
    fn deliver(&self, answers: Answers) {
        for answer in answers {
            // An error means that the test is over.
            let _ = self.0.send(answer);
        }
    }
}

struct Bench {
    disk: Disk,
    door: Arc<Door>,
    threads: Threads,
    heard: mpsc::Receiver<(u64, Outcome)>,
    out: Arc<dyn Deliver>,
}

impl Bench {
    fn new(shards: usize, limits: QueueLimits) -> Self {
        let (disk, door) = (Disk::new(), Arc::new(Door::default()));
        let engine = Slow { disk: disk.open(), door: door.clone() };
        let store = Arc::new(Store::open(Box::new(engine), &NodeId::new("n1").unwrap(), &Ones).unwrap());
        let threads = Threads::start(store, Durability::Sync, shards, limits, 64 << 10, Still).unwrap();
        let (out, heard) = mpsc::channel();
        Self { disk, door, threads, heard, out: Arc::new(Heard(out)) }
    }

    fn submit(&self, tag: u64, key: u32, ask: Ask) {
        self.threads.submit(vec![item(tag, key, ask)], self.out.clone());
    }

    fn hear(&self) -> (u64, Outcome) {
        self.heard.recv_timeout(Duration::from_secs(60)).expect("an answer in time")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.door.set(true);
    }
}

fn item(tag: u64, key: u32, ask: Ask) -> Item {
    let tenant = TenantId::from_trusted(Bytes::from_static(b"t"));
    let key_bytes = Bytes::copy_from_slice(&key.to_be_bytes());
    // Spread over the ring, so that every shard has its part.
    let place = Place {
        token: u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        space: tenant.into(),
        key: Key::from_trusted(key_bytes),
    };
    Item {
        tag,
        request: Request { place, epoch: 0, ask },
        deadline: u64::MAX,
        largest_answer: usize::MAX,
        is_aged: true,
    }
}

fn write(n: u8) -> Ask {
    let register = Register::written(Stamp(1_000_000 + u64::from(n)), WriteId([n; 16]), Some(Bytes::from_static(b"v")));
    Ask::Merge { record: Record::Register(register).encode() }
}

const MERGED: Outcome = Ok(Answer::Merged { superseded: false, told: Vec::new() });

#[test]
fn nothing_gated_leaves_before_the_sync_and_clean_rows_do_not_wait() {
    let bench = Bench::new(1, QueueLimits::default());
    bench.submit(1, 1, write(1));
    bench.door.until(1);
    bench.submit(2, 1, Ask::Read);
    bench.submit(3, 1, write(1));
    bench.submit(4, 2, Ask::Read);
    bench.submit(5, 1, Ask::Stamp { write_id: WriteId([9; 16]) });
    // The shard answers in order: once the last answer is here, the others would be, too, unless they were gated.
    assert_eq!(bench.hear().0, 4);
    assert_eq!(bench.hear().0, 5);
    assert!(bench.heard.try_recv().is_err());

    bench.door.set(true);
    let mut heard: Vec<u64> = (0..3).map(|_| bench.hear().0).collect();
    heard.sort_unstable();
    assert_eq!(heard, [1, 2, 3]);
}

#[test]
fn one_sync_serves_all_that_has_gathered() {
    for shards in [1, 3] {
        let bench = Bench::new(shards, QueueLimits::default());
        bench.submit(0, 0, write(1));
        bench.door.until(1);
        // Few enough submissions for the gate to have room for each as a separate batch, in case shards apply them one by one.
        for some in (1..=500).collect::<Vec<u32>>().chunks(50) {
            let items = some.iter().map(|key| item(u64::from(*key), *key, write(1))).collect();
            bench.threads.submit(items, bench.out.clone());
        }
        // Reads of clean rows follow the writes in each shard: once they are answered, the writes are at the gate.
        for key in 1000..1050 {
            bench.submit(u64::from(key), key, Ask::Read);
        }
        for _ in 0..50 {
            assert!(bench.hear().0 >= 1000);
        }
        bench.door.set(true);
        for _ in 0..=500 {
            assert_eq!(bench.hear().1, MERGED);
        }
        assert!(bench.disk.syncs() <= 5, "{} syncs for 501 concurrent writes", bench.disk.syncs());
    }
}

#[test]
fn a_failed_sync_acknowledges_nothing() {
    let bench = Bench::new(1, QueueLimits::default());
    bench.door.fails.store(true, Ordering::SeqCst);
    bench.door.set(true);
    bench.submit(1, 1, write(1));
    assert!(matches!(bench.hear(), (1, Err(ReplicaError::Broken(_)))));
    bench.submit(2, 1, Ask::Read);
    assert!(matches!(bench.hear(), (2, Err(ReplicaError::Broken(_)))), "the row is still not known to be durable");
    bench.door.fails.store(false, Ordering::SeqCst);
    bench.submit(3, 1, Ask::Read);
    assert!(matches!(bench.hear(), (3, Ok(Answer::Record(Some(_))))));
}

#[test]
fn a_full_queue_answers_at_once_and_what_is_queued_is_still_done() {
    // The shard blocks on a syncer without room: batches of one request, until the gate is full.
    let bench = Bench::new(1, QueueLimits { items: 10, bytes: 1 << 20 });
    let mut tag = 0;
    let refused = loop {
        bench.submit(tag, u32::try_from(tag).unwrap(), write(1));
        tag += 1;
        if let Ok((tag, outcome)) = bench.heard.try_recv() {
            assert_eq!(outcome, Err(ReplicaError::Overloaded));
            break tag;
        }
    };
    assert_eq!(refused, tag - 1);
    bench.door.set(true);
    for _ in 0..tag - 1 {
        assert_eq!(bench.hear().1, MERGED);
    }
}

#[test]
fn closing_answers_what_is_queued() {
    let bench = Bench::new(2, QueueLimits::default());
    bench.door.set(true);
    for key in 0..300 {
        bench.submit(u64::from(key), key, write(1));
    }
    bench.threads.close();
    assert_eq!(bench.heard.try_iter().filter(|(_, outcome)| *outcome == MERGED).count(), 300);
    bench.submit(999, 1, Ask::Read);
    assert_eq!(bench.hear(), (999, Err(ReplicaError::Overloaded)));
}

#[test]
fn shards_divide_the_ring_evenly() {
    assert_eq!([0, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX].map(|token| shard_of(token, 2)), [0, 0, 1, 1]);
    assert_eq!([0, u64::MAX].map(|token| shard_of(token, 1)), [0, 0]);
    assert!((0..1000_u64).all(|n| shard_of(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 7) < 7));
}

#[tokio::test(start_paused = true)]
async fn inline_answers_after_the_virtual_sync_and_clean_reads_before() {
    let disk = Disk::new();
    let store = Arc::new(Store::open(Box::new(disk.open()), &NodeId::new("n1").unwrap(), &Ones).unwrap());
    let delay = Box::new(|| Duration::from_millis(5));
    let inline = Inline::start(store, Durability::Sync, QueueLimits::default(), Still, delay);
    let (out, heard) = mpsc::channel();
    let out = Arc::new(Heard(out));
    let start = tokio::time::Instant::now();
    inline.submit((0..100).map(|key| item(key, key as u32, write(1))).collect(), out.clone());
    inline.submit(vec![item(200, 200, Ask::Read), item(201, 1, Ask::Read)], out.clone());
    let mut answered = Vec::new();
    while answered.len() < 102 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let elapsed = start.elapsed().as_millis();
        answered.extend(heard.try_iter().map(|(tag, _)| (elapsed, tag)));
    }
    let (early, late): (Vec<_>, Vec<_>) = answered.into_iter().partition(|(at, _)| *at < 5);
    assert_eq!(early.iter().map(|(_, tag)| *tag).collect::<Vec<_>>(), [200]);
    assert_eq!(late.len(), 101);
    assert!(disk.syncs() <= 2);

    disk.crash();
    inline.submit(vec![item(300, 300, Ask::Read)], out.clone());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(matches!(heard.try_recv(), Ok((300, Err(ReplicaError::Broken(_))))));
    drop(inline);
}

#[cfg(target_os = "linux")]
#[test]
fn jobs_for_which_nobody_waits_have_a_lower_priority() {
    let bench = Bench::new(1, QueueLimits::default());
    let (send, seen) = mpsc::channel();
    bench.threads.spawn_patient(Box::new(move |_| {
        let _ = send.send(rustix::process::nice(0).unwrap());
    }));
    let (patient, own) = (seen.recv_timeout(Duration::from_secs(60)).unwrap(), rustix::process::nice(0).unwrap());
    assert!(patient > own || own == 19, "{patient} and {own}");
    bench.threads.close();
    bench.threads.spawn_patient(Box::new(|_| panic!("the store is closed")));
}
