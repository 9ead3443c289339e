//! Swaps under load: no call fails, the old version drains, and nothing piles up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use witan_kernel::hook::{Asked, Hook, Plugins};
use witan_plugin::event::EventKind;
use witan_plugin::{Limits, Reference};

use crate::guest::Guest;
use crate::{World, question, tenant};

const POLICY: Hook = Hook::ConsistencyPolicy;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_swaps_fail_no_call_and_keep_no_memory() {
    let mut limits = Limits::default();
    // Threads that do nothing but ask use more of a core than one tenant may.
    limits.policy.share = 10_000;
    let world = World::with(limits);
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
    let before = resident();
    for n in 101..=1000 {
        swap(n).await.unwrap();
    }
    let after = resident();
    let (calls, failed) = load.stop();
    assert_eq!(failed, 0);
    assert!(calls > 1000, "{calls} calls");
    // A page or two of noise beside the bound that the full run is held to.
    assert!(after <= before + before / 20 + (4 << 20), "resident memory grew from {before} to {after} bytes");
    let (events, _) = world.host.watch();
    assert!(events.iter().all(|event| event.kind != EventKind::Compiled), "compiled again while swapping");
    assert_eq!(world.host.bindings()[0].record.current.number, 1001);
}

/// Threads that ask without pause, two tenants each.
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
                    let answered = matches!(host.hooks(tenant).policy(&question(1)), Asked::Answered { .. });
                    calls.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(u64::from(!answered), Ordering::Relaxed);
                }
            }
        })
    }

    fn stop(self) -> (u64, u64) {
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
