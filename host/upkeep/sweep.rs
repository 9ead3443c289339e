//! A sweep: compares every record of a part of the ring on all of its replicas, and sends the merge of all versions to those that
//! lack something.
//!
//! It walks range by range, page by page, uses little memory, keeps to a rate limit, and can resume where an earlier sweep stopped.
//! It decides nothing that a read would not decide: records are merged, tombstones included, and no resolver is called. A replica
//! that does not answer leaves the range incomplete; the other replicas are repaired anyway.
//!
//! A sweep of the whole ring also determines which new stores, admitted before it, hold everything from now on. `level` finds what need not
//! be read, `walk` reads pages, `record` compares what replicas have of a key, `merges` sends merges and waits for their acknowledgements,
//! `pace` limits the rate, `fresh` says until when what was read may be sent, `sound` decides when a new store may be believed. Routine
//! sweeps have replicas drop what is left of keys that were deleted long ago: `collect`.

mod collect;
pub(crate) mod fresh;
mod level;
mod merges;
pub(crate) mod pace;
mod record;
mod sound;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use witan_kernel::failure::Failure;
use witan_kernel::fault::Fault;
use witan_kernel::limit::{LONGEST_DEADLINE, PerReplica};
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::placement::Tokens;
use witan_kernel::replica::Place;
use witan_kernel::ring::{Preference, ReplicaRange, Rings};
use witan_kernel::scan::{Ranges, Standing, Step, Trust};
use witan_kernel::slice::Slices;
use witan_kernel::space::Space;

use witan_coordinate::{Coordinator, World};

use super::runner::{Progress, Task};
use super::{Metrics, Upkeep};
use collect::Collecting;
use fresh::FRESH;
use pace::{BytePace, Pace};
use sound::Sound;
use walk::Walking;

/// Interval between progress reports.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// A node that has failed in this many consecutive ranges is skipped from then on: a large ring has thousands of ranges, and each
/// attempt may take seconds.
const GIVEN_UP_AFTER: u32 = 3;

/// What a record counts for in [`Sweep::bytes_per_second`] beside its bytes, for its key and the work of comparing it.
pub(crate) const RECORD_BYTES: u64 = 128;

/// The parameters of a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// The tenant whose records are swept; `None`: all tenants.
    pub tenant: Option<TenantId>,
    /// The first token of the part of the ring.
    pub from: u64,
    /// The last token, inclusive.
    pub to: u64,
    /// The place after which to start: [`Swept::after`] of an earlier sweep.
    pub after: Option<Place>,
    /// The replication factors of the tenants concerned; a repair reads them from the metadata store when it begins.
    pub factors: Vec<u8>,
    /// Only ranges of which one of these nodes holds a replica, and only their new stores; `None`: of all nodes.
    pub of: Option<BTreeSet<NodeId>>,
    /// Only these slices of them; `None`: all.
    pub slices: Option<Slices>,
    /// Slices whose digests are the same on all replicas are taken for level, and not read. What has rotted on a disk is not found then.
    pub by_digests: bool,
    /// Whether new stores are admitted, filled and put on record, if it is a sweep of everything.
    pub fills: bool,
    /// Rate limit, records per second; 0: unlimited.
    pub records_per_second: u32,
    /// Rate limit, bytes read from nodes per second, each record counting as 128 more than it has; 0: unlimited.
    pub bytes_per_second: u64,
    /// Believe a new store even if too few other replicas remain to know what it must hold: whatever those lack is lost.
    pub accept_loss: bool,
    /// The tenant's administrator asks for it, and no operator: it takes one of the slots that tenants share.
    pub by_administrator: bool,
    /// It is one of healing's, which are made again and again; `None`: it is asked for, and sends everything to everybody.
    pub routine: Option<Routine>,
}

/// What a routine sweep does about keys that were deleted long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routine {
    /// How long ago: their tombstones are not sent to replicas that have nothing.
    pub grace: Duration,
    /// Whether their rows are dropped where nothing else is left of them.
    pub collects: bool,
}

impl Sweep {
    /// The whole ring, all tenants.
    pub fn everything() -> Self {
        Self {
            tenant: None,
            from: 0,
            to: u64::MAX,
            after: None,
            factors: Vec::new(),
            of: None,
            slices: None,
            by_digests: false,
            fills: true,
            records_per_second: 0,
            bytes_per_second: 0,
            accept_loss: false,
            by_administrator: false,
            routine: None,
        }
    }

    /// True for the whole ring and all tenants, from the beginning, with the new stores that it finds.
    pub fn is_everything(&self) -> bool {
        // What need not be read says nothing of what a new store has to remember.
        self.fills
            && !self.by_digests
            && self.slices.is_none()
            && self.tenant.is_none()
            && self.from == 0
            && self.to == u64::MAX
            && self.after.is_none()
    }

    /// True for a node whose new store it may admit, fill and put on record.
    pub(super) fn may_fill(&self, node: &NodeId) -> bool {
        self.is_everything() && self.of.as_ref().is_none_or(|of| of.contains(node))
    }
}

/// Progress and result of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// True while the sweep waits for operations that were in flight when a new store was discovered.
    pub waiting: bool,
    /// Records compared; each counts once, whatever the number of replicas that have it.
    pub scanned: u64,
    /// Merges that replicas lacked and have now stored.
    pub repaired: u64,
    /// Records that could not be read or merged on some replica.
    pub failed: u64,
    /// Records of deleted or unknown tenants, left unchanged.
    pub skipped: u64,
    /// Keys that were deleted long ago, and of which every replica has dropped what it had.
    pub collected: u64,
    /// Records of tenants that need two placements, of which only the present one was compared.
    pub unsettled: u64,
    /// Slices whose digests were the same on all replicas, and that were not read. Those in which a range ends count for each of its parts.
    pub level_slices: u64,
    /// Slices of which a node had no digest.
    pub unknown_slices: u64,
    /// Bytes of records read.
    pub bytes: u64,
    /// Bytes of merges that replicas have stored.
    pub sent_bytes: u64,
    /// Number of ranges done.
    pub ranges_done: usize,
    /// Number of ranges to sweep.
    pub ranges_total: usize,
    /// Number of ranges in which some replica could not be repaired.
    pub ranges_incomplete: usize,
    /// Everything before this token is done.
    pub token: u64,
    /// Everything up to this place is done; a later sweep can resume after it.
    pub after: Option<Place>,
    /// New stores that were admitted before the sweep.
    pub admitted: Vec<Admitted>,
    /// Nodes that did not take part in every range, with the reason.
    pub missing: BTreeMap<NodeId, String>,
    /// After a sweep of everything: nodes whose new store is complete.
    pub filled: Vec<(NodeId, StoreId)>,
    /// After a sweep of everything: nodes whose new store may be incomplete, with the reason.
    pub unfilled: BTreeMap<NodeId, String>,
}

/// A new store that a repair has admitted in place of the one on record, so that it can be filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The node that has reported it.
    pub node: NodeId,
    /// The new store.
    pub store: StoreId,
    /// The store on record, which it replaces once it is filled.
    pub replaces: StoreId,
    /// The number of records that the replaced store reported last, an estimate; 0 if it reported none.
    pub keys: u64,
}

impl Swept {
    /// True when every replica of every range took part and was repaired.
    pub fn is_complete(&self) -> bool {
        self.ranges_done == self.ranges_total && self.ranges_incomplete == 0 && self.failed == 0
    }
}

/// The parts of a range that lie in others, which are in order.
pub(crate) fn within(range: Tokens, others: &[Tokens]) -> Vec<Tokens> {
    let begin = others.partition_point(|(_, last)| *last < range.0);
    let overlapping = others[begin..].iter().take_while(|(first, _)| *first <= range.1);
    overlapping.map(|(first, last)| ((*first).max(range.0), (*last).min(range.1))).collect()
}

/// A sweep's progress, for the list of tasks.
fn progress(swept: &Swept) -> Progress {
    Progress { done: swept.ranges_done as u64, of: Some(swept.ranges_total as u64) }
}

/// Why a sweep stopped early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The receiver of its progress reports was dropped.
    #[error("the client of the sweep has disconnected")]
    Abandoned,
    /// The metadata that it needs could not be read.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl<W: World> Upkeep<W> {
    /// Sweeps, and reports progress at intervals to `progress` and to the list of tasks. When the receiver of `progress` is
    /// dropped, the sweep stops after the work in flight.
    pub(super) async fn sweep(
        &self,
        sweep: Sweep,
        admitted: Vec<Admitted>,
        progress: mpsc::Sender<Swept>,
        task: &Task,
    ) -> Result<Swept, Stopped> {
        let rings = self.coordinator.rings();
        let mut sweeping = Sweeping::new(self, sweep, &rings, progress, task);
        sweeping.swept.admitted = admitted;
        sweeping.settle_first().await?;
        for part in sweeping.parts() {
            sweeping.part(&part).await?;
        }
        sweeping.collect_all().await;
        // The next one begins with nothing to pay for.
        if let Some(due) = sweeping.byte_pace.due() {
            sweeping.sleep_until(due).await;
        }
        sweeping.close();
        Ok(sweeping.swept)
    }
}

/// A range, and its replicas under a version of the ring.
type Versioned = (u64, ReplicaRange);

/// A running sweep.
struct Sweeping<'a, W: World> {
    upkeep: &'a Upkeep<W>,
    coordinator: &'a Coordinator<W>,
    metrics: &'a Metrics,
    sweep: Sweep,
    rings: &'a Rings,
    progress: mpsc::Sender<Swept>,
    task: &'a Task,
    reported_at: Instant,
    pace: Pace,
    byte_pace: BytePace,
    swept: Swept,
    /// Everything of the part up to this place has been compared, under the version of the ring that is being walked.
    at: Option<Place>,
    /// The store of each node when the sweep first met it, and whether it was whole.
    met: HashMap<NodeId, Standing>,
    /// Number of consecutive ranges in which a node has failed.
    failing: HashMap<NodeId, u32>,
    sound: Sound,
    collecting: Collecting,
}

impl<'a, W: World> Sweeping<'a, W> {
    fn new(
        upkeep: &'a Upkeep<W>,
        mut sweep: Sweep,
        rings: &'a Rings,
        progress: mpsc::Sender<Swept>,
        task: &'a Task,
    ) -> Self {
        let (coordinator, metrics) = (upkeep.coordinator.as_ref(), &upkeep.metrics);
        sweep.factors.sort_unstable();
        sweep.factors.dedup();
        let (pace, byte_pace) = (Pace::new(sweep.records_per_second), BytePace::new(sweep.bytes_per_second));
        let swept = Swept { token: sweep.from, after: sweep.after.clone(), ..Swept::default() };
        let mut sound = Sound::default();
        let mut met = HashMap::new();
        for node in rings.nodes() {
            let Some(standing) = coordinator.ports().replicas.standing(&node) else { continue };
            met.insert(node.clone(), standing);
            if standing.trust == Trust::Filling && sweep.may_fill(&node) {
                sound.expect(node, standing.store);
            }
        }
        let reported_at = Instant::now();
        Self {
            upkeep,
            coordinator,
            metrics,
            sweep,
            rings,
            progress,
            task,
            reported_at,
            pace,
            byte_pace,
            swept,
            at: None,
            met,
            failing: HashMap::new(),
            sound,
            collecting: Collecting::default(),
        }
    }

    /// Waits until operations that were in flight when a store was lost have ended. Such an operation may count the lost store's
    /// acknowledgement, and write to the other replicas at places that the sweep has passed already.
    async fn settle_first(&mut self) -> Result<(), Stopped> {
        if self.sound.expects_none() {
            return Ok(());
        }
        self.swept.waiting = true;
        self.report().await?;
        tokio::select! {
            biased;
            () = tokio::time::sleep(LONGEST_DEADLINE) => {}
            () = self.progress.closed() => return Err(Stopped::Abandoned),
        }
        self.swept.waiting = false;
        Ok(())
    }

    /// The parts of the ring to sweep, in order: ranges with their replicas under every version of the ring. Tenants are on one of these
    /// versions each.
    fn parts(&mut self) -> Vec<Vec<Versioned>> {
        let from = self.sweep.after.as_ref().map_or(self.sweep.from, |after| after.token.max(self.sweep.from));
        let to = self.sweep.to;
        let of = self.sweep.of.clone();
        let concerned =
            |replicas: &[NodeId]| of.as_ref().is_none_or(|of| replicas.iter().any(|node| of.contains(node)));
        let of_slices = self.sweep.slices.as_ref().map(Slices::tokens);
        let mut parts = Vec::new();
        for ((first, last), mut versions) in self.rings.replica_ranges(&self.sweep.factors) {
            versions.retain(|(_, replicas)| concerned(replicas));
            if last < from || first > to || versions.is_empty() {
                continue;
            }
            let whole = (first.max(from), last.min(to));
            for (first, last) in of_slices.as_ref().map_or_else(|| vec![whole], |slices| within(whole, slices)) {
                let range = |replicas: &Preference| ReplicaRange { from: first, to: last, replicas: replicas.clone() };
                parts.push(versions.iter().map(|(version, replicas)| (*version, range(replicas))).collect());
            }
        }
        if self.sweep.bytes_per_second > 0 && Fault::HealingSkipsRange.is_on() {
            parts.pop();
        }
        self.swept.ranges_total = parts.iter().map(Vec::len).sum();
        parts
    }

    /// Sweeps a part under one version after the other. Only the last one shows how far the sweep is: whoever resumes there begins with
    /// the first one again.
    async fn part(&mut self, part: &[Versioned]) -> Result<(), Stopped> {
        let after = self.sweep.after.take();
        for (number, (version, range)) in (1..).zip(part) {
            self.at = after.clone().filter(|after| after.token >= range.from);
            let is_last = number == part.len();
            if self.sweep.by_digests {
                self.differing(*version, range, is_last).await?;
            } else {
                self.range(*version, range, is_last).await?;
            }
        }
        Ok(())
    }

    /// The rows of the tenant that is swept, if it is one, in its present generation. Those that come with another one are compared once it
    /// is the present one.
    async fn space(&self) -> Option<Space> {
        let id = self.sweep.tenant.as_ref()?;
        let generation = self.coordinator.tenant(id).await.map_or(0, |tenant| tenant.generation);
        Some(Space::new(id, generation))
    }

    async fn range(&mut self, version: u64, range: &ReplicaRange, is_last: bool) -> Result<(), Stopped> {
        let epoch = self.coordinator.followed();
        let mut walking = Walking::begin(self.coordinator, self.metrics, epoch, version, range, self.at.as_ref());
        self.meet(&mut walking);
        // Whether the next record has waited for its turn already.
        let mut is_due = false;
        loop {
            if let Some(back) = walking.merges.take_back() {
                self.at = back;
                walking.read_again(self.at.as_ref());
            }
            match walking.join.step() {
                Step::Ask(starved) => {
                    self.collect_due().await;
                    self.turn_page(&mut walking, &starved).await;
                    self.report_sometimes(&mut walking).await?;
                }
                Step::Key(joined) => {
                    if !is_due {
                        self.wait_for_turn(&mut walking).await?;
                    }
                    is_due = walking.is_stale();
                    if is_due {
                        walking.read_again(self.at.as_ref());
                    } else {
                        self.record(&mut walking, joined).await?;
                        if is_last {
                            self.swept.after.clone_from(&self.at);
                        }
                    }
                }
                Step::End => {
                    walking.merges.settled().await;
                    if !walking.merges.must_go_back() {
                        break;
                    }
                }
            }
        }
        self.count_merges(&mut walking);
        self.end_range(&walking, range);
        Ok(())
    }

    fn count_merges(&mut self, walking: &mut Walking<'_, W>) {
        let (merges, bytes) = walking.merges.take_stored();
        self.swept.repaired += merges;
        self.swept.sent_bytes += bytes;
    }

    /// Waits until the rate limit allows one more record.
    async fn wait_for_turn(&mut self, walking: &mut Walking<'_, W>) -> Result<(), Stopped> {
        if let Some(due) = self.pace.one() {
            self.report_sometimes(walking).await?;
            self.sleep_until(due).await;
        }
        Ok(())
    }

    /// Sleeps, unless the sweep is stopped.
    async fn sleep_until(&self, due: Instant) {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(due) => {}
            () = self.progress.closed() => {}
        }
    }

    /// Determines which of a range's replicas can take part.
    fn meet(&mut self, walking: &mut Walking<'_, W>) {
        for (index, node) in (0..).zip(walking.replicas) {
            if let Err(why) = self.may_take_part(node) {
                self.swept.missing.insert(node.clone(), why);
                walking.join.failed(index);
            }
        }
    }

    fn may_take_part(&mut self, node: &NodeId) -> Result<(), String> {
        if self.failing.get(node).is_some_and(|ranges| *ranges >= GIVEN_UP_AFTER) {
            return Err("it failed in too many consecutive ranges".to_owned());
        }
        let standing = self.coordinator.ports().replicas.standing(node).ok_or("it cannot be reached")?;
        let met = self.met.entry(node.clone()).or_insert(standing);
        if met.store != standing.store {
            return Err("its store was replaced during the repair".to_owned());
        }
        match standing.trust {
            Trust::Whole | Trust::Filling => Ok(()),
            Trust::Unadmitted => {
                Err("it has another store than before, which only a repair of everything admits".to_owned())
            }
        }
    }

    fn end_range(&mut self, walking: &Walking<'_, W>, range: &ReplicaRange) {
        let took_part = walking.join.taking_part();
        let unrepaired = if Fault::UnrepairedBelieved.is_on() { &[] } else { walking.merges.unrepaired() };
        for (replica, why) in unrepaired {
            self.swept.missing.insert(walking.replicas[usize::from(*replica)].clone(), why.clone());
        }
        let repaired: PerReplica<(&NodeId, Standing)> = took_part
            .iter()
            .filter(|replica| unrepaired.iter().all(|(unrepaired, _)| unrepaired != *replica))
            .map(|replica| &walking.replicas[usize::from(*replica)])
            .filter_map(|node| self.met.get(node).map(|met| (node, *met)))
            .collect();
        let whole: PerReplica<&NodeId> = took_part
            .iter()
            .map(|replica| &walking.replicas[usize::from(*replica)])
            .filter(|node| self.met.get(*node).is_some_and(|met| met.is_whole()))
            .collect();
        if walking.failed || repaired.len() < walking.replicas.len() {
            self.swept.ranges_incomplete += 1;
        }
        let repaired: PerReplica<&NodeId> = repaired.into_iter().map(|(node, _)| node).collect();
        if self.sweep.accept_loss {
            self.sound.range_with_loss(walking.replicas, &repaired);
        } else {
            self.sound.range(walking.replicas, &self.sweep.factors, &repaired, &whole, walking.failed);
        }
        self.swept.ranges_done += 1;
        self.swept.token = range.to;
    }

    /// Reports progress if the last report is old enough. Waits for merges in flight first, so that everything reported as done is
    /// stored.
    async fn report_sometimes(&mut self, walking: &mut Walking<'_, W>) -> Result<(), Stopped> {
        if self.progress.is_closed() {
            walking.merges.settled().await;
            return Err(Stopped::Abandoned);
        }
        if self.reported_at.elapsed() < REPORT_EVERY {
            return Ok(());
        }
        walking.merges.settled().await;
        self.count_merges(walking);
        if walking.merges.must_go_back() {
            // What has been passed is not done.
            return Ok(());
        }
        self.report().await
    }

    async fn report(&mut self) -> Result<(), Stopped> {
        self.task.progress(progress(&self.swept));
        self.progress.send(self.swept.clone()).await.map_err(|_| Stopped::Abandoned)?;
        self.reported_at = Instant::now();
        Ok(())
    }

    /// Decides which new stores may be believed.
    fn close(&mut self) {
        if self.coordinator.ring().epoch() != self.rings.newest().epoch() {
            self.sound.spoil("the cluster's nodes have changed during the repair");
        }
        (self.swept.filled, self.swept.unfilled) = std::mem::take(&mut self.sound).close();
    }
}
