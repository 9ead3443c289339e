//! Placement changes: one coordinator at a time leads them, which a claim decides. It moves one tenant after the other to where its records
//! are to be, has nodes hand over and drop what they have lost, and keeps on record how far each change is.
//!
//! What is to be done next is decided by the kernel, from the tenant's record ([`witan_kernel::placement::leader`]). This room carries it
//! out. It may be interrupted anywhere: each step is published before anything is done under it, with a compare-and-swap of the tenant's
//! version, and everything that is copied carries the epoch of its step. No promise rests on the claim.
//!
//! `drive` takes a tenant from step to step, and `drive/steps` carries one out; `copy` copies a tenant's records, `copy/range` those of one
//! range, and `rate` says how fast; `leftovers` cleans what moves leave; `status` keeps on record how far changes are.
//!
//! Copies are bound to the epoch of their step and, as those of a sweep, to an age (`sweep/fresh`).

mod copy;
mod drive;
mod leftovers;
mod rate;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join3;
use tokio::time::{Instant, sleep, timeout_at};
use witan_coordinate::{Coordinator, World};
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::placement::leader::NodeCondition;
use witan_kernel::placement::rate::is_too_full;
use witan_kernel::port::{
    Claimant, Clock, Duty, DutyKind, Metadata, PassEnd, Placement, Replicas, StoreError, StoreState,
};
use witan_kernel::ring::Rings;
use witan_kernel::scan::Ranges;
use witan_kernel::sync::lock;

use super::{Metrics, Upkeep};
use rate::{Rate, Usual};
use status::Board;
pub(crate) use status::grouped;

/// The claim is renewed this number of times while it lasts, so that one renewal that fails does not lose it.
const RENEWALS: u32 = 3;
/// How often a coordinator that does not lead tries to, unless claims last so short that it is to be sooner.
const CLAIM_AGAIN: Duration = Duration::from_secs(2);
/// How often it is looked whether there is something to do, without a hint.
const LOOK: Duration = Duration::from_secs(1);
/// The pause after a hint: changes of tenants come in bursts, and each look may read all of them.
const AFTER_HINT: Duration = Duration::from_millis(100);

/// How fast records are copied, and how soon another coordinator goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovesConfig {
    /// Bytes that are read from nodes per second for the first copies of a move, each record counting as 128 more than it has; 0:
    /// unlimited. The last copy, during which operations need both placements, is not limited.
    pub bytes_per_second: u64,
    /// How full the disk of a node that gets records may be before the first copy [pauses](witan_kernel::placement::rate::is_full), in
    /// percent; 100: that full.
    pub full_disk: u8,
    /// How long the claim lasts without renewal: for this long nobody leads when the leader has died.
    pub lease: Duration,
}

impl Default for MovesConfig {
    /// A third of what a gigabit network carries, so that clients keep the rest; and longer than a coordinator is usually away from the
    /// metadata store, so that the lead does not change for that.
    fn default() -> Self {
        Self { bytes_per_second: 32 << 20, full_disk: 85, lease: Duration::from_secs(15) }
    }
}

impl MovesConfig {
    fn lease_ms(self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    fn renew_every(self) -> Duration {
        self.lease / RENEWALS
    }
}

/// Stores of nodes.
type Stores = BTreeMap<NodeId, StoreId>;

/// The placement changes that a coordinator leads.
pub struct Moves<W: World> {
    upkeep: Arc<Upkeep<W>>,
    claimant: Claimant,
    config: Mutex<MovesConfig>,
    board: Board,
    usual: Usual,
    /// The fence of the claim, while this coordinator holds it.
    held: Mutex<Option<u64>>,
}

impl<W: World> Moves<W> {
    /// Placement changes led as `claimant`, the holder of this coordinator's lease if it has one.
    pub fn new(upkeep: Arc<Upkeep<W>>, claimant: Claimant, config: MovesConfig) -> Arc<Self> {
        let (config, board) = (Mutex::new(config), Board::default());
        Arc::new(Self { upkeep, claimant, config, board, usual: Usual::default(), held: Mutex::default() })
    }

    /// Changes how fast records are copied, and from the next renewal on how long the claim lasts.
    pub fn configure(&self, config: MovesConfig) {
        *lock(&self.config) = config;
    }

    /// As whom they are led.
    pub fn claimant(&self) -> &Claimant {
        &self.claimant
    }

    /// True while this coordinator leads.
    pub fn is_leader(&self) -> bool {
        lock(&self.held).is_some()
    }

    /// Leads whenever nobody else does, until `stopped`; then gives the claim back.
    pub async fn run(self: Arc<Self>, stopped: impl Future<Output = ()> + Send) {
        tokio::pin!(stopped);
        let leading = self.lead();
        tokio::pin!(leading);
        tokio::select! {
            biased;
            () = &mut stopped => {}
            never = &mut leading => match never {},
        }
        let held = lock(&self.held).take();
        if let Some(fence) = held
            && let Err(error) = self.metadata().give_back_duty(&duty(), fence, PassEnd::Interrupted(Vec::new())).await
        {
            tracing::debug!(%error, "the claim of placement changes could not be given back, and expires");
        }
    }

    async fn lead(&self) -> Infallible {
        loop {
            let config = self.config();
            match self.metadata().claim_duty(&duty(), self.claimant.clone(), config.lease_ms()).await {
                Ok(claimed) => {
                    tracing::debug!(fence = claimed.fence, "this coordinator leads placement changes");
                    *lock(&self.held) = Some(claimed.fence);
                    tokio::select! {
                        biased;
                        () = self.keep(claimed.fence, config.lease) => {}
                        never = self.work() => match never {},
                    }
                    *lock(&self.held) = None;
                    self.no_longer_leads();
                }
                Err(StoreError::Conflict(_)) => {}
                Err(error) => tracing::debug!(%error, "placement changes could not be claimed"),
            }
            sleep(CLAIM_AGAIN.min(config.renew_every())).await;
        }
    }

    fn no_longer_leads(&self) {
        self.board.clear();
        self.usual.forget();
        self.metrics().tenants_to_move.set(0);
        self.metrics().leftovers.set(0);
        self.metrics().oldest_leftover.set(0.0);
    }

    /// Renews the claim, which lasts for `lease` at first, and returns once it is lost.
    async fn keep(&self, fence: u64, lease: Duration) {
        let (mut held_until, mut renew) = (Instant::now() + lease, lease / RENEWALS);
        loop {
            sleep(renew).await;
            let (duty, config) = (duty(), self.config());
            match timeout_at(held_until, self.metadata().keep_duty(&duty, fence, Vec::new(), config.lease_ms())).await {
                Ok(Ok(())) => {
                    held_until = Instant::now() + config.lease;
                    renew = config.renew_every();
                }
                Ok(Err(StoreError::Conflict(why))) => {
                    return tracing::info!(%why, "this coordinator leads placement changes no longer");
                }
                Ok(Err(error)) if Instant::now() < held_until => {
                    tracing::debug!(%error, "the claim of placement changes could not be renewed");
                }
                Ok(Err(_)) | Err(_) => {
                    return tracing::info!(
                        "the claim of placement changes has expired: the metadata store cannot be reached"
                    );
                }
            }
        }
    }

    /// Moves tenants, cleans what moves have left, and keeps on record how far changes are: side by side, so that none waits for another.
    async fn work(&self) -> Infallible {
        let (never, _, _) = join3(self.move_tenants(), self.clean_leftovers(), self.keep_status()).await;
        never
    }

    fn config(&self) -> MovesConfig {
        *lock(&self.config)
    }

    fn metadata(&self) -> &dyn Metadata {
        self.upkeep.metadata.as_ref()
    }

    fn coordinator(&self) -> &Coordinator<W> {
        self.upkeep.coordinator.as_ref()
    }

    fn replicas(&self) -> &W::Replicas {
        &self.coordinator().ports().replicas
    }

    fn metrics(&self) -> &Metrics {
        &self.upkeep.metrics
    }

    fn now_ms(&self) -> u64 {
        self.coordinator().ports().clock.wall_micros() / 1000
    }

    /// The newest revision, if it is not this one, for who had nothing to do then; `None` if there is still nothing.
    async fn later_than(&self, idle: Option<u64>) -> Result<Option<u64>, StoreError> {
        let revision = self.metadata().changes(u64::MAX).await?.revision;
        Ok((idle != Some(revision)).then_some(revision))
    }

    /// The nodes and rings on record.
    async fn ground(&self) -> Result<Ground, StoreError> {
        let placement = self.metadata().placement().await?;
        let stores = self.metadata().stores().await?;
        let retired: BTreeSet<StoreId> =
            stores.iter().filter(|store| store.state == StoreState::Retired).map(|store| store.store).collect();
        // Computing a ring takes long, and this coordinator has usually done so.
        let known = self.coordinator().rings();
        let is_known = known.newest().epoch() == placement.epoch;
        let rings = if is_known { known } else { Arc::new(placement.rings()) };
        Ok(Ground::new(&placement, rings, retired))
    }

    /// What a node can do for a move.
    fn condition(&self, ground: &Ground, node: &NodeId) -> NodeCondition {
        if ground.is_lost(node) {
            return NodeCondition::Lost;
        }
        match self.replicas().standing(node) {
            None => NodeCondition::Away,
            Some(standing) if !standing.is_whole() && ground.retired.contains(&standing.store) => {
                NodeCondition::RetiredStore
            }
            Some(standing) if !standing.is_whole() => NodeCondition::OtherStore,
            Some(_) if !self.replicas().has_moves(node) => NodeCondition::Old,
            Some(_) if self.too_full(node) => NodeCondition::TooFull,
            Some(_) => NodeCondition::Usable,
        }
    }

    /// Whether no tenant may begin to move to a node, because of its disk.
    fn too_full(&self, node: &NodeId) -> bool {
        self.replicas().disk_percent(node).is_some_and(|percent| is_too_full(percent, self.config().full_disk))
    }

    /// The stores of those of these nodes whose store is the one on record.
    fn whole<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeId>) -> Stores {
        let whole = |node: &NodeId| self.replicas().standing(node).filter(|standing| standing.is_whole());
        nodes.into_iter().filter_map(|node| Some((node.clone(), whole(node)?.store))).collect()
    }

    /// Whether no live coordinator has an operation under way that began before this revision.
    async fn all_drained(&self, revision: u64) -> bool {
        if self.coordinator().drained_revision() < revision {
            return false;
        }
        let Ok(all) = self.metadata().coordinators().await else { return false };
        let mut others = all.iter().filter(|it| it.is_live() && it.claim.instance != self.claimant.instance);
        others.all(|it| it.drained >= revision)
    }
}

fn duty() -> Duty {
    Duty { kind: DutyKind::Place, range: "all".to_owned() }
}

/// What is on record about nodes and rings.
struct Ground {
    /// The placement's number.
    epoch: u64,
    rings: Arc<Rings>,
    on_record: BTreeSet<NodeId>,
    /// Nodes whose store on record is retired.
    given_up: BTreeSet<NodeId>,
    /// Stores that are never used again.
    retired: BTreeSet<StoreId>,
}

impl Ground {
    fn new(placement: &Placement, rings: Arc<Rings>, retired: BTreeSet<StoreId>) -> Self {
        let has_retired = placement.nodes.iter().filter(|node| node.store_id.is_some_and(|id| retired.contains(&id)));
        Self {
            epoch: placement.epoch,
            rings,
            on_record: placement.nodes.iter().map(|node| node.node.id.clone()).collect(),
            given_up: has_retired.map(|node| node.node.id.clone()).collect(),
            retired,
        }
    }

    /// True for a node whose store is never used again: an operator has taken it for lost.
    fn is_lost(&self, node: &NodeId) -> bool {
        !self.on_record.contains(node) || self.given_up.contains(node)
    }

    /// The nodes that are taken for lost, among those of any version of the ring.
    fn lost(&self) -> BTreeSet<NodeId> {
        let all = self.rings.all().flat_map(|(_, ring)| ring.nodes());
        all.filter(|node| self.is_lost(node)).cloned().collect()
    }
}
