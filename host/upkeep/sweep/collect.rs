//! Has replicas drop what is left of keys that were deleted long ago: what `kernel/burial.rs` says may go.
//!
//! A sweep reads all replicas of every key anyway. It notes the keys that could go, looks at them once more when nothing can be under way
//! any longer that was so at the first look, and then asks each replica to drop its row. Whatever has changed in between, by whichever
//! replica, leaves everything as it is until the next sweep.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;
use witan_coordinate::{Coordinator, World};
use witan_kernel::burial::{buried, is_due, micros};
use witan_kernel::failure::Failure;
use witan_kernel::fault::Fault;
use witan_kernel::limit::{LOOKS_AGAIN, PerReplica};
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::placement::Placed;
use witan_kernel::port::{Clock, Replicas};
use witan_kernel::record::{Encoded, Fingerprint};
use witan_kernel::replica::{Answer, Ask, Place, ReplicaError, Request};
use witan_kernel::scan::Ranges;
use witan_kernel::tenant::Tenant;

use super::walk::Walking;
use super::{RECORD_BYTES, Sweeping};
use crate::ask::ask;
use crate::kept::Kept;

/// Most keys that wait for the second look: a few megabytes. With more, the walk waits for them.
const WAITING: usize = 10_000;
/// Keys of one second look: between two of them, the rate limit and whoever stops the sweep are heard.
const TOGETHER: usize = 64;
/// Keys that are looked at side by side: with three replicas about as many requests as a sweep has merges under way.
const AT_ONCE: usize = 32;
/// Timeout of one request, microseconds.
const WITHIN_MICROS: u64 = 5_000_000;

/// What a sweep knows of keys that could go.
#[derive(Debug, Default)]
pub(super) struct Collecting {
    /// In the order in which they were found.
    waiting: VecDeque<Candidate>,
    /// Stores that accept nothing any longer that does not say when it was sent.
    aged: BTreeSet<(NodeId, StoreId)>,
    /// Since when the longest deleted key was there that could not go, for each reason.
    kept: BTreeMap<Kept, u64>,
}

/// A key that could go.
#[derive(Debug)]
struct Candidate {
    place: Place,
    placed: Placed,
    /// The revision that was followed before any of its replicas was read.
    epoch: u64,
    replicas: PerReplica<Replica>,
    /// Since when it has been deleted, microseconds since 1970.
    since: u64,
    /// All of its replicas had been read by then.
    seen: Instant,
}

/// A replica of a candidate.
#[derive(Debug, Clone)]
struct Replica {
    node: NodeId,
    store: StoreId,
    /// What it had.
    has: Option<Fingerprint>,
}

impl Collecting {
    /// Those whose second look is due, but not too many.
    fn due(&mut self) -> Vec<Candidate> {
        let is_due =
            |candidate: &&Candidate| candidate.seen.elapsed() >= LOOKS_AGAIN || Fault::CollectAskedOnce.is_on();
        let due = self.waiting.iter().take(TOGETHER).take_while(is_due).count();
        self.waiting.drain(..due).collect()
    }

    fn keep(&mut self, why: Kept, since: u64) {
        let longest = self.kept.entry(why).or_insert(since);
        *longest = since.min(*longest);
    }
}

impl<W: World> Sweeping<'_, W> {
    /// The replicas of a key were found different: if it was deleted long ago, it could not go.
    pub(super) fn not_level(&mut self, merged: &Encoded, now: u64) {
        let Some(routine) = self.sweep.routine.filter(|routine| routine.collects) else { return };
        let since = merged.decode().ok().and_then(|merged| merged.buried_since());
        if let Some(since) = since.filter(|since| is_due(*since, micros(routine.grace), now)) {
            self.collecting.keep(Kept::Unlevel, since);
        }
    }

    /// Nothing was sent for a key. If it was deleted long ago and all of its replicas were read, it is looked at again later.
    pub(super) async fn may_collect(
        &mut self,
        walking: &mut Walking<'_, W>,
        place: &Place,
        have: &[(u8, Option<Encoded>)],
        tenant: &Tenant,
        now: u64,
    ) {
        let Some(routine) = self.sweep.routine.filter(|routine| routine.collects) else { return };
        let grace = micros(routine.grace);
        // Most records are of keys that were not deleted: no more than one of each is decoded.
        let first = have.iter().find_map(|(_, held)| held.as_ref()).and_then(|held| held.decode().ok());
        let since = first.and_then(|first| first.buried_since()).filter(|since| is_due(*since, grace, now));
        let Some(since) = since else { return };
        let Some(found) = buried(have, tenant.replication_factor, grace, now) else {
            return self.collecting.keep(Kept::Unreachable, since);
        };
        if tenant.moving.is_some() {
            return self.collecting.keep(Kept::Moving, found.since);
        }
        let replica = |(replica, has): &(u8, Option<Fingerprint>)| {
            let node = &walking.replicas[usize::from(*replica)];
            let met = self.met.get(node).filter(|met| met.is_whole())?;
            Some(Replica { node: node.clone(), store: met.store, has: *has })
        };
        let replicas: Option<PerReplica<Replica>> = found.looked.iter().map(replica).collect();
        let Some(replicas) = replicas else { return self.collecting.keep(Kept::Unreachable, found.since) };
        while self.collecting.waiting.len() >= WAITING && !self.progress.is_closed() {
            walking.merges.settled().await;
            self.wait_for_first().await;
            self.collect_due().await;
        }
        let (place, placed, epoch, seen) = (place.clone(), tenant.placed(), walking.epoch, Instant::now());
        self.collecting.waiting.push_back(Candidate { place, placed, epoch, replicas, since: found.since, seen });
    }

    /// Waits until the second look at the first of the keys is due.
    async fn wait_for_first(&self) {
        if let Some(first) = self.collecting.waiting.front().filter(|_| !Fault::CollectAskedOnce.is_on()) {
            self.sleep_until(first.seen + LOOKS_AGAIN).await;
        }
    }

    /// Takes the second look at all keys that were found, when it is due.
    pub(super) async fn collect_all(&mut self) {
        while !self.collecting.waiting.is_empty() && !self.progress.is_closed() {
            self.wait_for_first().await;
            self.collect_due().await;
        }
        if self.sweep.routine.is_some() && self.sweep.of.is_none() && !self.progress.is_closed() {
            let kept = std::mem::take(&mut self.collecting.kept);
            self.upkeep.note_overdue((self.sweep.from, self.sweep.to), kept);
        }
    }

    /// Takes the second look at those keys for which it is due.
    pub(super) async fn collect_due(&mut self) {
        while !self.progress.is_closed() {
            let due = self.collecting.due();
            if due.is_empty() {
                return;
            }
            self.look_again(due).await;
            if let Some(due) = self.byte_pace.due() {
                self.sleep_until(due).await;
            }
        }
    }

    async fn look_again(&mut self, candidates: Vec<Candidate>) {
        let Some(routine) = self.sweep.routine else { return };
        let read: usize = candidates.iter().map(|candidate| candidate.replicas.len()).sum();
        self.byte_pace.charge(RECORD_BYTES * read as u64);
        let mut tenants: BTreeMap<TenantId, Option<Kept>> = BTreeMap::new();
        let mut found = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let tenant = &candidate.place.tenant();
            if !tenants.contains_key(tenant) {
                let kept = self.is_settled(tenant, candidate.placed).await.err();
                tenants.insert(tenant.clone(), kept);
            }
            let mut kept = tenants.get(tenant).copied().flatten();
            if kept.is_none() {
                kept = self.require_ages(&candidate, micros(routine.grace)).await.err();
            }
            match kept {
                Some(why) => self.kept(&candidate, why),
                None => found.push(candidate),
            }
        }
        let look = Look { coordinator: self.coordinator, grace: micros(routine.grace) };
        let judge = |candidate: Candidate| {
            let look = &look;
            async move { (look.judge(&candidate).await, candidate) }
        };
        let mut judged = stream::iter(found.into_iter().map(judge)).buffer_unordered(AT_ONCE);
        while let Some((judged, candidate)) = judged.next().await {
            match judged {
                Ok(()) => {
                    self.swept.collected += 1;
                    self.metrics.tombstones_collected.inc();
                }
                Err(why) => self.kept(&candidate, why),
            }
        }
    }

    fn kept(&mut self, candidate: &Candidate, why: Kept) {
        tracing::debug!(tenant = %candidate.place.space, key = %candidate.place.key, ?why, "a deleted key's rows stay for now");
        self.metrics.tombstones_kept(why.as_str()).inc();
        self.collecting.keep(why, candidate.since);
    }

    /// Whether a tenant is where it was, does not move, and has left nothing anywhere, as is known after its replicas were read under an
    /// epoch that was determined before.
    async fn is_settled(&self, id: &TenantId, placed: Placed) -> Result<(), Kept> {
        if !self.upkeep.may_collect() {
            return Err(Kept::Unable);
        }
        let tenant = match self.coordinator.tenant(id).await {
            Ok(tenant) => tenant,
            // Its rows are removed by its deletion.
            Err(Failure::TenantNotFound(_)) => return Err(Kept::Moving),
            Err(_) => return Err(Kept::Failed),
        };
        if tenant.moving.is_some() || tenant.placed() != placed {
            return Err(Kept::Moving);
        }
        match self.upkeep.metadata.leftovers(Some(id), None).await {
            Ok(left) if left.is_empty() || Fault::CollectWithLeftovers.is_on() => Ok(()),
            Ok(_) => Err(Kept::Leftovers),
            Err(_) => Err(Kept::Failed),
        }
    }

    /// Has each replica refuse from now on what does not say when it was sent, before it is looked at again: also those that have nothing
    /// to drop.
    async fn require_ages(&mut self, candidate: &Candidate, grace: u64) -> Result<(), Kept> {
        let look = Look { coordinator: self.coordinator, grace };
        for replica in &candidate.replicas {
            let store = (replica.node.clone(), replica.store);
            if self.collecting.aged.contains(&store) {
                continue;
            }
            // No record has this fingerprint.
            match look.ask(candidate, replica, Ask::Collect { expected: Fingerprint([0; 16]), grace }).await? {
                Answer::Collected { .. } => self.collecting.aged.insert(store),
                _ => return Err(Kept::Failed),
            };
        }
        Ok(())
    }
}

/// The second look.
struct Look<'a, W: World> {
    coordinator: &'a Coordinator<W>,
    /// Microseconds.
    grace: u64,
}

impl<W: World> Look<'_, W> {
    /// Looks at all replicas again, and has them drop what they have if it is the same.
    async fn judge(&self, candidate: &Candidate) -> Result<(), Kept> {
        if !Fault::CollectAskedOnce.is_on() {
            let looks = candidate.replicas.iter().map(|replica| self.look(candidate, replica));
            join_all(looks).await.into_iter().collect::<Result<(), Kept>>()?;
        }
        let have = candidate.replicas.iter().filter_map(|replica| Some((replica, replica.has?)));
        let drops = have.map(|(replica, has)| self.drop_row(candidate, replica, has));
        join_all(drops).await.into_iter().collect()
    }

    async fn look(&self, candidate: &Candidate, replica: &Replica) -> Result<(), Kept> {
        match self.ask(candidate, replica, Ask::Read).await? {
            Answer::Record(held) if held.as_ref().map(Encoded::fingerprint) == replica.has => Ok(()),
            Answer::Record(_) => Err(Kept::Changed),
            _ => Err(Kept::Failed),
        }
    }

    async fn drop_row(&self, candidate: &Candidate, replica: &Replica, expected: Fingerprint) -> Result<(), Kept> {
        match self.ask(candidate, replica, Ask::Collect { expected, grace: self.grace }).await? {
            Answer::Collected { dropped: true } => Ok(()),
            Answer::Collected { dropped: false } => Err(Kept::Changed),
            _ => Err(Kept::Failed),
        }
    }

    /// Asks a replica, of which the same store must answer as before.
    async fn ask(&self, candidate: &Candidate, replica: &Replica, ask_for: Ask) -> Result<Answer, Kept> {
        let (ports, Replica { node, store, .. }) = (self.coordinator.ports(), replica);
        let standing = || ports.replicas.standing(node).filter(|standing| standing.is_whole());
        let is_same = || standing().is_some_and(|standing| standing.store == *store);
        let incarnation = ports.replicas.incarnation(node);
        if !is_same() {
            return Err(Kept::Unreachable);
        }
        if !ports.replicas.has_collect(node) || !ports.replicas.has_ages(node) {
            return Err(Kept::Unable);
        }
        let epoch = if Fault::CollectWithoutEpoch.is_on() { u64::MAX } else { candidate.epoch };
        let request = Request { place: candidate.place.clone(), epoch, ask: ask_for };
        let deadline = ports.clock.monotonic_micros() + WITHIN_MICROS;
        match ask(self.coordinator, node, request, deadline).await {
            Ok(answer) if is_same() && ports.replicas.incarnation(node) == incarnation => Ok(answer),
            Ok(_) => Err(Kept::Unreachable),
            Err(ReplicaError::StaleEpoch) => Err(Kept::Refused),
            Err(
                ReplicaError::NotSent(_)
                | ReplicaError::Incomplete(_)
                | ReplicaError::Filling(_)
                | ReplicaError::Lost(_)
                | ReplicaError::Late,
            ) => Err(Kept::Unreachable),
            Err(_) => Err(Kept::Failed),
        }
    }
}
