//! Whether idempotency records are written in their smaller form, which the version before neither finds nor reads.
//!
//! A coordinator that misses a record carries out again what was acknowledged. So the smaller form is written only once no coordinator of
//! an earlier version is around and none can come, not even one of which nothing is heard:
//!
//! 1. No earlier version has ever run on the metadata store, or an operator has said that none runs any more; and no coordinator on
//!    record lacks the capability. Without an operator's word those count that have ended within the last day, too: one that is cut off
//!    from the metadata store loses its lease and goes on.
//! 2. The metadata store then [requires](witan_kernel::port::LeaseStore::require) the capability: from then on an earlier version refuses
//!    to start. That is not taken back, so it is done only when a key has been claimed here.
//! 3. One that had opened the store before that may get its lease after it. It has got it `SETTLED` later, and is seen.
//!
//! Until then, and in any case, both forms are looked for, so nothing depends on when each coordinator gets there
//! (docs/decisions/0033-smaller-idempotency-records.md).

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use witan_kernel::capability::SMALL_RECORDS;
use witan_kernel::port::{Metadata, SmallRecords, StoreError};
use witan_kernel::sync::lock;

use crate::capabilities::{Written, written};

/// How long after the metadata store requires the capability a coordinator may still take its lease that had opened the store before: it
/// waits 20 seconds for an id that another process has, and does little else in between.
const SETTLED: Duration = Duration::from_secs(30);

/// The state of the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Smaller {
    /// Small records are written.
    Yes,
    /// They may not be, for this reason.
    No(Written),
    /// They may be, and no key has been claimed yet.
    Unused,
    /// An earlier version that is starting now is waited for.
    Settling,
}

/// Decides, each time that coordinators come or go and every few seconds.
pub struct SmallerRecords {
    /// What the configuration says: `None` decides by who created the metadata store.
    wanted: Option<bool>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Since when it is known here that the metadata store requires the capability.
    required: Option<Instant>,
    /// Looks that have begun.
    begun: u64,
    /// The newest look that was followed.
    followed: u64,
}

impl SmallerRecords {
    /// Nothing is decided yet. `wanted` is what the configuration says.
    pub fn new(wanted: Option<bool>) -> Self {
        Self { wanted, known: Mutex::default() }
    }

    /// Decides, and has the store write accordingly.
    ///
    /// # Errors
    /// The metadata store did not answer: what was decided before holds. If small records are written, it has kept out earlier versions.
    pub async fn decide(&self, metadata: &dyn Metadata, records: &dyn SmallRecords) -> Result<Smaller, StoreError> {
        let look = {
            let mut known = lock(&self.known);
            known.begun += 1;
            known.begun
        };
        let decided = self.look(metadata, records).await?;
        let mut known = lock(&self.known);
        // Another look that began later has seen what is newer.
        if known.followed < look {
            known.followed = look;
            records.write_small(decided == Smaller::Yes);
        }
        Ok(decided)
    }

    async fn look(&self, metadata: &dyn Metadata, records: &dyn SmallRecords) -> Result<Smaller, StoreError> {
        let may = self.may(metadata).await?;
        if !may.is_yes() {
            return Ok(Smaller::No(may));
        }
        if !records.claims() {
            return Ok(Smaller::Unused);
        }
        match metadata.require(SMALL_RECORDS).await {
            Ok(already) => Ok(self.settled(already)),
            // It has come in between, and is on record.
            Err(StoreError::Conflict(_)) => Ok(Smaller::No(self.may(metadata).await?)),
            Err(error) => Err(error),
        }
    }

    async fn may(&self, metadata: &dyn Metadata) -> Result<Written, StoreError> {
        let may = written(metadata, SMALL_RECORDS, self.wanted).await?;
        if self.wanted.is_some() || !may.is_yes() {
            return Ok(may);
        }
        let recent = metadata.coordinators().await?;
        Ok(Written::unless(recent.into_iter().find(|recent| !recent.names(SMALL_RECORDS))))
    }

    /// `already`: the metadata store required it before this look. Otherwise it may be one that was restored from a backup, and whoever has
    /// started since is waited for again.
    fn settled(&self, already: bool) -> Smaller {
        let required = &mut lock(&self.known).required;
        let now = Instant::now();
        let since = match *required {
            Some(since) if already => since,
            _ => *required.insert(now),
        };
        if now.duration_since(since) >= SETTLED { Smaller::Yes } else { Smaller::Settling }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use witan_kernel::capability::NAMES;
    use witan_kernel::name::NodeId;
    use witan_kernel::port::{COORDINATOR_KEPT_MS, Claim, LeaseStore};
    use witan_memory::MemoryMetadata;
    use witan_memory::contract::ManualClock;

    use super::*;

    #[derive(Default)]
    struct Records {
        claims: AtomicBool,
        small: AtomicBool,
    }

    impl SmallRecords for Records {
        fn claims(&self) -> bool {
            self.claims.load(Ordering::Relaxed)
        }
        fn write_small(&self, small: bool) {
            self.small.store(small, Ordering::Relaxed);
        }
    }

    /// A coordinator of this version with its stores.
    struct Place {
        clock: ManualClock,
        metadata: MemoryMetadata,
        records: Records,
        decides: SmallerRecords,
    }

    impl Place {
        async fn new(wanted: Option<bool>) -> Self {
            let clock = ManualClock::new();
            let metadata = MemoryMetadata::new(clock.clone());
            let records = Records { claims: AtomicBool::new(true), ..Records::default() };
            let place = Self { clock, metadata, records, decides: SmallerRecords::new(wanted) };
            place.lease("new", &[NAMES, SMALL_RECORDS]).await;
            place
        }

        async fn lease(&self, name: &str, capabilities: &[&str]) {
            let claim = Claim {
                node_id: NodeId::new(name).unwrap(),
                instance: [1; 16],
                address: "here:1".to_owned(),
                version: "0.1.0".to_owned(),
                capabilities: capabilities.iter().map(|&named| named.to_owned()).collect(),
            };
            self.metadata.hold_lease(claim, 10_000).await.unwrap();
        }

        /// The decision, and what is written after it.
        async fn decided(&self) -> (Result<Smaller, StoreError>, bool) {
            let decided = self.decides.decide(&self.metadata, &self.records).await;
            (decided, self.records.small.load(Ordering::Relaxed))
        }

        async fn settle(&self) {
            assert_eq!(self.decided().await, (Ok(Smaller::Settling), false));
            tokio::time::advance(SETTLED).await;
            assert_eq!(self.decided().await, (Ok(Smaller::Yes), true));
        }
    }

    fn lacking(name: &str) -> Smaller {
        Smaller::No(Written::Lacking(NodeId::new(name).unwrap(), "0.1.0".to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_cluster_keeps_earlier_versions_out_once_a_key_is_claimed() {
        let place = Place::new(None).await;
        place.records.claims.store(false, Ordering::Relaxed);
        assert_eq!(place.decided().await, (Ok(Smaller::Unused), false));
        tokio::time::advance(SETTLED).await;
        assert_eq!(place.decided().await, (Ok(Smaller::Unused), false));
        place.lease("old", &[]).await;
        place.records.claims.store(true, Ordering::Relaxed);
        assert_eq!(place.decided().await, (Ok(lacking("old")), false), "it could still come");
        place.clock.pass_ms(COORDINATOR_KEPT_MS + 10_000);
        place.settle().await;
        assert_eq!(place.metadata.require(SMALL_RECORDS).await, Ok(true), "and now it cannot");
    }

    /// It may be cut off from the metadata store, and go on with what it knows.
    #[tokio::test(start_paused = true)]
    async fn one_whose_lease_has_ended_may_still_run() {
        for (wanted, waits) in [(None, true), (Some(true), false)] {
            let place = Place::new(wanted).await;
            place.lease("old", &[NAMES]).await;
            assert_eq!(place.decided().await, (Ok(lacking("old")), false));
            place.clock.pass_ms(10_000);
            place.lease("new", &[NAMES, SMALL_RECORDS]).await;
            if waits {
                assert_eq!(place.decided().await, (Ok(lacking("old")), false), "for a day");
                place.clock.pass_ms(COORDINATOR_KEPT_MS - 1);
                assert_eq!(place.decided().await, (Ok(lacking("old")), false));
                place.clock.pass_ms(1);
            }
            place.settle().await;
        }
    }

    /// It had opened the store before that kept it out.
    #[tokio::test(start_paused = true)]
    async fn one_that_was_starting_is_seen() {
        for wanted in [None, Some(true)] {
            let place = Place::new(wanted).await;
            assert_eq!(place.decided().await, (Ok(Smaller::Settling), false));
            tokio::time::advance(SETTLED - Duration::from_millis(1)).await;
            assert_eq!(place.decided().await, (Ok(Smaller::Settling), false));
            place.lease("old", &[]).await;
            tokio::time::advance(SETTLED).await;
            assert_eq!(place.decided().await, (Ok(lacking("old")), false));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_written_while_the_metadata_store_is_away() {
        let place = Place::new(None).await;
        place.settle().await;
        place.metadata.set_available(false);
        assert!(matches!(place.decided().await, (Err(StoreError::Unavailable(_)), true)));
        place.metadata.set_available(true);
        assert_eq!(place.decided().await, (Ok(Smaller::Yes), true));
    }

    /// And not before that was seen once more, if the store went away in between.
    #[tokio::test(start_paused = true)]
    async fn it_is_not_written_on_what_was_known_before_the_wait() {
        let place = Place::new(None).await;
        assert_eq!(place.decided().await, (Ok(Smaller::Settling), false));
        place.metadata.set_available(false);
        tokio::time::advance(SETTLED).await;
        assert!(matches!(place.decided().await, (Err(StoreError::Unavailable(_)), false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_metadata_store_that_was_set_back_is_asked_for_it_again() {
        let place = Place::new(None).await;
        let backup = place.metadata.copy();
        place.settle().await;
        place.metadata.restore(&backup);
        place.settle().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_configuration_may_forbid_it() {
        let place = Place::new(Some(false)).await;
        assert_eq!(place.decided().await, (Ok(Smaller::No(Written::Off)), false));
        assert_eq!(place.metadata.require(SMALL_RECORDS).await, Ok(false), "earlier versions were not kept out");
    }
}
