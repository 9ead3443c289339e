//! A load of reads and writes, and its results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Api, Refusal, read, write};

/// Clients of a load, each with one operation at a time.
const CLIENTS: usize = 8;

/// The result of one operation.
struct Operation {
    ended: Instant,
    took: Duration,
    failure: Option<Refusal>,
}

/// The results of all operations.
pub(super) struct Observed(Vec<Operation>);

pub(super) struct Load;

impl Load {
    /// Writes and reads keys of tenants `t` (registers) and `s` (siblings) for this time.
    pub(super) async fn run(api: &Api, length: Duration) -> Observed {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (api, stop) = (api.clone(), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut operations = Vec::new();
                    let mut number = 0_usize;
                    while !stop.load(Ordering::Relaxed) {
                        number += 1;
                        let tenant = if number.is_multiple_of(4) { "s" } else { "t" };
                        operations.push(Self::operate(&api, tenant, client, number).await);
                    }
                    operations
                })
            })
            .collect();
        tokio::time::sleep(length).await;
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.expect("a client"));
        }
        Observed(all)
    }

    async fn operate(api: &Api, tenant: &str, client: usize, number: usize) -> Operation {
        // Few writes per key, since siblings are bounded.
        let key = format!("{client}/{}", number / 40);
        let began = Instant::now();
        let failure = if number.is_multiple_of(2) {
            api.write(write(tenant, &key, number.to_string())).await.err()
        } else {
            api.values(read(tenant, &key)).await.err()
        };
        Operation { ended: Instant::now(), took: began.elapsed(), failure }
    }
}

impl Observed {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// All failures.
    pub(super) fn failures(&self) -> Vec<&Refusal> {
        self.0.iter().filter_map(|operation| operation.failure.as_ref()).collect()
    }

    /// The failures after a time.
    pub(super) fn failures_after(&self, moment: Instant) -> Vec<&Refusal> {
        let late = self.0.iter().filter(|operation| operation.ended > moment);
        late.filter_map(|operation| operation.failure.as_ref()).collect()
    }

    /// Count, failures, median, 99th percentile and longest.
    pub(super) fn summary(&self) -> String {
        let mut took: Vec<Duration> = self.0.iter().map(|operation| operation.took).collect();
        took.sort();
        let quantile = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
        let failed = self.0.iter().filter(|operation| operation.failure.is_some()).count();
        let longest = took.last().copied().unwrap_or_default();
        format!(
            "{} operations, {failed} failed, median {:?}, p99 {:?}, longest {longest:?}",
            took.len(),
            quantile(50),
            quantile(99)
        )
    }
}
