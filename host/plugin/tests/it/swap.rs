//! Swaps under load: no call fails, the old version drains, and memory does not grow.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use witan_kernel::hook::{Asked, Hook, Plugins};
use witan_plugin::Reference;
use witan_plugin::event::EventKind;

use crate::guest::Guest;
use crate::{World, question, tenant};

const POLICY: Hook = Hook::ConsistencyPolicy;

/// Runs in a separate process, whose memory no other test changes.
#[test]
fn many_swaps_fail_no_call_and_keep_no_memory() {
    const ALONE: &str = "WITAN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(swap_under_load());
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", "swap::many_swaps_fail_no_call_and_keep_no_memory", "--nocapture"]).env(ALONE, "1");
    let output = alone.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// Batches of swaps after which memory is compared.
const BATCHES: usize = 3;
/// Swaps of a batch.
const SWAPS: usize = 300;
/// Growth of memory per batch that counts as none, in bytes: a leak of 7 KiB per swap exceeds it.
const GROWTH: u64 = 2 << 20;

async fn swap_under_load() {
    let world = World::new();
    let mut digests = Vec::new();
    for required in [1, 2] {
        digests.push(world.stage(&Guest::policy("pol", required).build()).await.unwrap());
    }
    world.bind("", POLICY, Reference::Digest(digests[0])).await.unwrap();
    let load = Load::start(&world);
    let swap = |n: usize| world.bind("", POLICY, Reference::Digest(digests[n % 2]));
    for n in 1..=100 {
        swap(n).await.unwrap();
    }
    let mut measured = vec![resident()];
    for batch in 0..BATCHES {
        for n in 1..=SWAPS {
            swap(100 + batch * SWAPS + n).await.unwrap();
        }
        measured.push(resident());
    }
    let (calls, failed) = load.stop();
    assert_eq!(failed, 0);
    assert!(calls > 1000, "{calls} calls");
    // A leak grows with every batch; an allocator takes more pages only now and then.
    let grows = measured.windows(2).all(|pair| pair[1] > pair[0] + GROWTH);
    assert!(!grows, "resident memory, in bytes, grows with every {SWAPS} swaps: {measured:?}");
    let (events, _) = world.host.watch();
    assert!(events.iter().all(|event| event.kind != EventKind::Compiled), "compiled again while swapping");
    assert_eq!(world.host.bindings()[0].record.current.number, 1001);
}

/// Threads that keep asking, for two tenants each.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(world: &World) -> Self {
        let (stop, calls, failed) = (Arc::default(), Arc::default(), Arc::default());
        let threads = (0..2).map(|_| Self::thread(world, &stop, &calls, &failed)).collect();
        Self { stop, calls, failed, threads }
    }

    fn thread(
        world: &World,
        stop: &Arc<AtomicBool>,
        calls: &Arc<AtomicU64>,
        failed: &Arc<AtomicU64>,
    ) -> thread::JoinHandle<()> {
        let (host, stop, calls, failed) = (world.host.clone(), stop.clone(), calls.clone(), failed.clone());
        let tenants = [tenant("a"), tenant("b")];
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for tenant in &tenants {
                    // A different question each time: equal ones would be answered from the cache.
                    let number = calls.fetch_add(1, Ordering::Relaxed) as u32;
                    let answered = matches!(host.hooks(tenant).policy(&question(number)), Asked::Answered { .. });
                    failed.fetch_add(u64::from(!answered), Ordering::Relaxed);
                }
            }
        })
    }

    /// Stops once enough calls have been made for the result to mean something.
    fn stop(self) -> (u64, u64) {
        while self.calls.load(Ordering::Relaxed) <= 1000 {
            thread::sleep(Duration::from_millis(1));
        }
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.calls.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}
