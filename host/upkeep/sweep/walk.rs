//! Reading the records of a range, page by page, on all of its replicas.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use witan_coordinate::{Coordinator, World};
use witan_kernel::name::NodeId;
use witan_kernel::replica::{Place, ReplicaError};
use witan_kernel::ring::ReplicaRange;
use witan_kernel::scan::{Join, PAGE_BYTES, PAGE_RECORDS, Page, Ranges, Scan};

use super::merges::Merges;
use super::{FRESH, RECORD_BYTES, Sweep, Sweeping};
use crate::Metrics;

/// Attempts at reading a page before its replica counts as failed.
pub(super) const TRIES: u32 = 3;
/// Pause before the second attempt; twice as long before the third.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// A page holds as much as the rate limit lets through in this time, so that its end is as fresh as its beginning. Seconds.
const PAGE_SECONDS: u64 = 2;
/// Least bytes of a page, whatever the rate: below this, calls cost more than what they bring.
const LEAST_PAGE_BYTES: u64 = 4096;
/// Bytes of a page at most if there is a limit of bytes per second: a larger one would make clients wait, however low the limit is.
const STEADY_PAGE_BYTES: u64 = 128 << 10;

/// The state of the range being swept.
pub(super) struct Walking<'a, W: World> {
    /// The version of the ring of which these are the replicas.
    pub(super) version: u64,
    /// The revision that the coordinator had followed before anything was read.
    pub(super) epoch: u64,
    pub(super) replicas: &'a [NodeId],
    pub(super) join: Join,
    pub(super) merges: Merges<'a, W>,
    /// Some record of the range could not be read or merged.
    pub(super) failed: bool,
    range: (u64, u64),
    /// For each replica, when its present page was asked for.
    read: Vec<Instant>,
}

impl<'a, W: World> Walking<'a, W> {
    pub(super) fn begin(
        coordinator: &'a Coordinator<W>,
        metrics: &'a Metrics,
        epoch: u64,
        version: u64,
        range: &'a ReplicaRange,
        after: Option<&Place>,
    ) -> Self {
        let replicas: &[NodeId] = &range.replicas;
        Self {
            join: Join::new(replicas.len() as u8, range.from, after),
            merges: Merges::new(coordinator, metrics, epoch),
            failed: false,
            range: (range.from, range.to),
            read: vec![Instant::now(); replicas.len()],
            version,
            epoch,
            replicas,
        }
    }

    /// When the first of the pages was read that the next record is taken from.
    pub(super) fn oldest(&self) -> Instant {
        let taking_part = self.join.taking_part();
        let read = taking_part.iter().map(|replica| self.read[usize::from(*replica)]);
        read.min().unwrap_or_else(Instant::now)
    }

    /// True when some page was read too long ago for a merge.
    pub(super) fn is_stale(&self) -> bool {
        self.oldest().elapsed() >= FRESH
    }

    /// Drops all pages, and goes on after a place.
    pub(super) fn read_again(&mut self, after: Option<&Place>) {
        let taking_part = self.join.taking_part();
        let replicas = self.replicas.len() as u8;
        let after = after.filter(|after| after.token >= self.range.0);
        self.join = Join::new(replicas, self.range.0, after);
        (0..replicas).filter(|replica| !taking_part.contains(replica)).for_each(|failed| self.join.failed(failed));
    }
}

/// Most records and bytes of a page.
fn page_size(sweep: &Sweep, replicas: usize) -> (u32, u32) {
    let (mut records, mut bytes) = (u64::from(PAGE_RECORDS), u64::from(PAGE_BYTES));
    if sweep.records_per_second > 0 {
        records = records.min(u64::from(sweep.records_per_second) * PAGE_SECONDS);
    }
    if sweep.bytes_per_second > 0 {
        let share = sweep.bytes_per_second.saturating_mul(PAGE_SECONDS) / replicas.max(1) as u64;
        bytes = bytes.min(share.max(LEAST_PAGE_BYTES)).min(STEADY_PAGE_BYTES);
        records = records.min(bytes / RECORD_BYTES);
    }
    (records as u32, bytes as u32)
}

impl<W: World> Sweeping<'_, W> {
    /// Reads the next pages of those replicas whose page is used up; one that does not answer is left out of the rest of the range.
    pub(super) async fn turn_page(&mut self, walking: &mut Walking<'_, W>, starved: &[u8]) {
        if let Some(due) = self.byte_pace.due() {
            walking.merges.settled().await;
            self.sleep_until(due).await;
        }
        let (records, bytes) = page_size(&self.sweep, walking.replicas.len());
        let (from, to) = walking.range;
        let space = self.space().await;
        let now = Instant::now();
        let asks = starved.iter().map(|replica| {
            let (space, after) = (space.clone(), walking.join.after(*replica).cloned());
            let scan = Scan { space, after, records, bytes, ..Scan::between(from, to) };
            self.page(&walking.replicas[usize::from(*replica)], scan)
        });
        let pages: Vec<Result<Page, String>> = join_all(asks).await;
        for (replica, page) in starved.iter().zip(pages) {
            let taken = page.and_then(|page| {
                let records = page.found.iter().filter_map(|found| found.record.as_ref());
                let bytes = records.map(|record| record.0.len() as u64).sum::<u64>();
                self.swept.bytes += bytes;
                self.byte_pace.charge(bytes + RECORD_BYTES * page.found.len() as u64);
                walking.read[usize::from(*replica)] = now;
                walking.join.page(*replica, page.found, page.next).map_err(|error| error.to_string())
            });
            let node = &walking.replicas[usize::from(*replica)];
            match taken {
                Ok(()) => drop(self.failing.remove(node)),
                Err(why) => {
                    tracing::warn!(%node, %why, "a node is left out of the repair of a range");
                    *self.failing.entry(node.clone()).or_default() += 1;
                    self.swept.missing.insert(node.clone(), why);
                    walking.join.failed(*replica);
                }
            }
        }
    }

    async fn page(&self, node: &NodeId, scan: Scan) -> Result<Page, String> {
        let replicas = &self.coordinator.ports().replicas;
        let mut tries = 0;
        loop {
            let why = match replicas.scan(node, scan.clone()).await {
                Ok(page) if self.met.get(node).is_some_and(|met| met.store == page.store) => return Ok(page),
                Ok(_) => return Err("its store was replaced during the repair".to_owned()),
                Err(error) => error,
            };
            tries += 1;
            if tries >= TRIES || matches!(why, ReplicaError::NotSent(_)) || self.progress.is_closed() {
                return Err(why.to_string());
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_what_the_rate_lets_through_in_two_seconds() {
        let size = |records_per_second, bytes_per_second, replicas| {
            page_size(&Sweep { records_per_second, bytes_per_second, ..Sweep::everything() }, replicas)
        };
        assert_eq!(size(0, 0, 3), (PAGE_RECORDS, PAGE_BYTES), "unlimited");
        assert_eq!(size(20_000, 0, 3), (PAGE_RECORDS, PAGE_BYTES));
        assert_eq!(size(10, 0, 3), (20, PAGE_BYTES));
        assert_eq!(size(0, 90_000, 3), (468, 60_000), "of all replicas together");
        assert_eq!(size(0, 1 << 30, 3), (1000, STEADY_PAGE_BYTES as u32), "a little at a time");
        assert_eq!(size(0, 1, 5), (32, 4096), "but never next to nothing");
    }
}
