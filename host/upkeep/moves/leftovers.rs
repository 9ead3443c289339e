//! Rows that nodes hold no replicas of any longer: handed over, if they may be the only copies of what was acknowledged, and dropped.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::time::{Instant, sleep};
use witan_coordinate::World;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::placement::leader::{Plan, lost_rows};
use witan_kernel::placement::sums::Sums;
use witan_kernel::placement::{Both, Tokens};
use witan_kernel::port::{Leftover, StoreError};
use witan_kernel::replica::ReplicaError;
use witan_kernel::scan::{CLEARED_RANGES, Clear, Purpose, Ranges};
use witan_kernel::space::Space;
use witan_kernel::tenant::Tenant;

use super::copy::{Copied, Need, Pass, Stale, Swap};
use super::{Ground, LOOK, Moves, Stores};

/// How often what could not be cleaned is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// Leftovers that are cleaned at a time: one of a node that hangs holds up a quarter of the others.
const AT_ONCE: usize = 4;
/// How long operations that began before a move has ended are waited for. Those that have not ended are refused by the fence.
const DRAINS: Duration = Duration::from_secs(15);
/// How long a node may take to drop rows at one attempt, which it does piece by piece.
const DROPS: Duration = Duration::from_secs(60);

/// A node may be left with rows of a tenant by several moves.
type Key = (TenantId, NodeId, u64);

/// A leftover, and when it is due.
struct Entry {
    leftover: Leftover,
    seen: Instant,
    next: Instant,
    why: String,
}

#[derive(Default)]
struct Cleaner {
    entries: BTreeMap<Key, Entry>,
    /// The revision at which they were read, and when.
    read: Option<(u64, Instant)>,
}

impl Cleaner {
    fn take(&mut self, leftovers: Vec<Leftover>) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.entries);
        for leftover in leftovers {
            let key = (leftover.tenant.clone(), leftover.node.clone(), leftover.epoch);
            let entry = match before.remove(&key) {
                Some(known) if known.leftover == leftover => known,
                _ => Entry { leftover, seen: now, next: now, why: "it is about to".to_owned() },
            };
            self.entries.insert(key, entry);
        }
    }
}

/// Why a leftover is there still.
enum Left {
    /// It is tried again at the next look.
    Soon(String),
    /// It is tried again later.
    Later(String),
}

impl From<StoreError> for Left {
    fn from(error: StoreError) -> Self {
        Self::Later(format!("the metadata store: {error}"))
    }
}

impl<W: World> Moves<W> {
    /// Cleans what moves leave, for as long as it is polled.
    pub(super) async fn clean_leftovers(&self) -> Infallible {
        let mut cleaner = Cleaner::default();
        loop {
            if let Err(error) = self.clean(&mut cleaner).await {
                tracing::debug!(%error, "what moves have left cannot be read");
            }
            sleep(LOOK).await;
        }
    }

    async fn clean(&self, cleaner: &mut Cleaner) -> Result<(), StoreError> {
        let known = cleaner.read.filter(|(_, at)| cleaner.entries.is_empty() || at.elapsed() < AGAIN);
        if let Some(revision) = self.later_than(known.map(|(revision, _)| revision)).await? {
            cleaner.take(self.all_leftovers().await?);
            cleaner.read = Some((revision, Instant::now()));
        }
        let now = Instant::now();
        let due = cleaner.entries.iter().filter(|(_, entry)| entry.next <= now);
        let due: Vec<_> =
            due.map(|(key, entry)| self.try_one(key.clone(), entry.leftover.clone(), entry.seen)).collect();
        let mut each = stream::iter(due).buffer_unordered(AT_ONCE);
        while let Some((key, cleaned)) = each.next().await {
            match cleaned {
                Ok(()) => drop(cleaner.entries.remove(&key)),
                Err(left) => {
                    let Some(entry) = cleaner.entries.get_mut(&key) else { continue };
                    (entry.next, entry.why) = match left {
                        Left::Soon(why) => (Instant::now(), why),
                        Left::Later(why) => (Instant::now() + AGAIN, why),
                    };
                }
            }
        }
        self.show(cleaner);
        Ok(())
    }

    fn show(&self, cleaner: &Cleaner) {
        self.metrics().leftovers.set(cleaner.entries.len() as i64);
        let oldest = cleaner.entries.values().map(|entry| entry.leftover.created_at_ms).min();
        let age = oldest.map_or(0, |oldest| self.now_ms().saturating_sub(oldest));
        self.metrics().oldest_leftover.set(age as f64 / 1000.0);
        let why = |((tenant, node, _), entry): (&Key, &Entry)| ((tenant.clone(), node.clone()), entry.why.clone());
        self.board.left(cleaner.entries.iter().map(why).collect());
    }

    async fn try_one(&self, key: Key, leftover: Leftover, seen: Instant) -> (Key, Result<(), Left>) {
        (key, self.clean_one(&leftover, seen).await)
    }

    async fn clean_one(&self, leftover: &Leftover, seen: Instant) -> Result<(), Left> {
        let Leftover { tenant: id, node, epoch, .. } = leftover;
        // Before the tenant is read: it is where it is then at this revision, too, or whoever has moved it since fences this one.
        let followed = self.coordinator().followed();
        if followed < *epoch {
            return Err(Left::Soon("this coordinator does not follow the end of the move yet".to_owned()));
        }
        let tenant = self.metadata().tenant(id).await?.filter(|tenant| tenant.deleted_at_ms.is_none());
        // What a deletion removes is none.
        let Some(tenant) = tenant else { return Ok(()) };
        if tenant.moving.is_some() {
            return Err(Left::Soon("the tenant moves again, which ends first".to_owned()));
        }
        if seen.elapsed() < DRAINS && !self.all_drained(*epoch).await {
            return Err(Left::Soon("operations that began before end first".to_owned()));
        }
        if self.replicas().standing(node).is_none() {
            return Err(Left::Later("it cannot be reached".to_owned()));
        }
        let ground = self.ground().await?;
        let Some(plan) = Plan::new(leftover.from, leftover.to, &ground.rings) else {
            return Err(Left::Later("a version of the ring that it refers to is not on record".to_owned()));
        };
        let lost = plan.leaving.get(node).cloned().unwrap_or_default();
        // What it has of a generation that came before the one of before is in that one: nothing moves on before it was handed over.
        let (of, next) = (leftover.from.generation, leftover.to.generation);
        let is_known = of == tenant.generation || next == tenant.generation;
        if leftover.hand_over && is_known && !lost.is_empty() && !Fault::LeftoverDroppedUnseen.is_on() {
            self.hand_over(leftover, &lost, &tenant, followed, &ground).await?;
        }
        let dropped = self.drop_rows(leftover, &lost).await?;
        self.metadata().leftover_cleaned(id, node, *epoch).await?;
        tracing::info!(tenant = %id, %node, records = dropped, "a node has dropped rows of which it holds no replicas any longer");
        Ok(())
    }

    /// Sends what a node has to the tenant's present replicas, until a quorum of them has it.
    async fn hand_over(
        &self,
        leftover: &Leftover,
        lost: &[Tokens],
        tenant: &Tenant,
        epoch: u64,
        ground: &Ground,
    ) -> Result<(), Left> {
        let (id, node) = (&leftover.tenant, &leftover.node);
        let ring = ground.rings.version(tenant.ring);
        let ring =
            ring.ok_or_else(|| Left::Later("the version of the ring of the tenant is not on record".to_owned()))?;
        let (mut ranges, mut swap) = (lost_rows(node, lost, (ring, tenant.replication_factor)), None);
        if leftover.from.generation != tenant.generation {
            // Each row belongs at another token now.
            let hooks = self.coordinator().ports().plugins.hooks(id);
            swap = Some(Swap::new(tenant.placed(), ring, hooks, Sums::default()));
            ranges = parts().map(|tokens| Both { tokens, old: vec![node.clone()], new: Vec::new() }).to_vec();
        }
        let whole = self.whole([node]);
        let store = *whole.get(node).ok_or_else(|| {
            Left::Later(
                "its store is not the one on record, whose rows it is to hand over; see `witan nodes list`".to_owned(),
            )
        })?;
        match self.replicas().raise_fence(node, Some(id), leftover.epoch).await {
            Ok(fenced) if fenced == store => {}
            Ok(_) => return Err(Left::Later("it has another store now".to_owned())),
            Err(error) => return Err(Left::Later(error.to_string())),
        }
        let targets: Stores = match &swap {
            None => self.whole(ranges.iter().flat_map(|range| &range.new)),
            Some(_) => self.whole(ring.nodes()),
        };
        let pass = Pass {
            compares: swap.is_none(),
            coordinator: self.coordinator(),
            metrics: self.metrics(),
            board: &self.board,
            tenant: id,
            space: Space::new(id, leftover.from.generation),
            swap,
            ranges: &ranges,
            epoch,
            sources: &whole,
            targets: &targets,
            need: Need::HandOver,
            rate: None,
        };
        match pass.run().await {
            Ok(Copied { fault: Some(why), .. }) => Err(Left::Later(why)),
            Ok(Copied { lacking: None, sent, .. }) => {
                tracing::debug!(tenant = %id, %node, sent, "a node has handed over what it has lost");
                Ok(())
            }
            Ok(Copied { lacking: Some(why), .. }) => Err(Left::Later(why)),
            Err(Stale) => Err(Left::Soon("the tenant was changed meanwhile".to_owned())),
        }
    }

    async fn drop_rows(&self, leftover: &Leftover, lost: &[Tokens]) -> Result<u64, Left> {
        let (until, mut records) = (Instant::now() + DROPS, 0);
        for ranges in lost.chunks(CLEARED_RANGES) {
            loop {
                let space = Space::new(&leftover.tenant, leftover.from.generation);
                let clear = Clear { space, ranges: ranges.to_vec(), epoch: leftover.epoch, purpose: Purpose::Leave };
                match self.replicas().clear(&leftover.node, clear).await {
                    Ok(cleared) => {
                        records += cleared.records;
                        break;
                    }
                    // It gets rows again, under a later epoch, and has dropped these before.
                    Err(ReplicaError::StaleEpoch) => return Ok(records),
                    Err(ReplicaError::Late) if Instant::now() < until => {}
                    Err(error) => return Err(Left::Later(error.to_string())),
                }
            }
        }
        Ok(records)
    }
}

/// The tokens in eight parts, as many as are walked at a time.
fn parts() -> [Tokens; 8] {
    std::array::from_fn(|part| {
        let first = (part as u64) << 61;
        (first, first | ((1 << 61) - 1))
    })
}
