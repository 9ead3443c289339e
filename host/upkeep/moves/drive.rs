//! Takes tenants from step to step until their records are where they are to be.

mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use witan_coordinate::World;
use witan_kernel::backoff::{Backoff, seed};
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::placement::leader::{Do, Done, NodeCondition, Obstacle, Plan, Situation, next, target};
use witan_kernel::placement::sums::Sums;
use witan_kernel::placement::{Moving, Placed, Step};
use witan_kernel::port::{MoveTenant, PAGE, Replicas, StoreError};
use witan_kernel::tenant::Tenant;

use super::{AFTER_HINT, Ground, LOOK, Moves, Stores};
use steps::Stepped;

/// How long a tenant waits at first, and at most, when its move was given up because something failed.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The pause after somebody else has changed the tenant, or before a step is repeated.
const PAUSE: Duration = Duration::from_millis(100);
/// How often in succession nodes may refuse a step because of later changes before the move is given up.
const STALE: u32 = 10;
/// How often in succession others may change a tenant before it is left for later.
const CONFLICTS: u32 = 20;

/// What the leader knows of a tenant's move beside its record. A takeover begins without it.
struct Known {
    done: Done,
    /// The stores of nodes that have got rows, when the last copy began.
    entered: Stores,
    /// Passes of the first copy that were made.
    passes: u32,
    /// How long the longest of them took.
    took: Duration,
    /// How often in succession a node had a fence above the epoch of the step.
    stale: u32,
    /// Until when the step under way may be repeated.
    until: Option<Instant>,
    /// Why the last attempt at the step under way has to be repeated.
    lacking: Option<String>,
    /// Why the move is to be given up.
    failed: Option<String>,
    /// What the coming rows of a move to another generation have acknowledged, and the preparation that they were made under.
    sums: (u64, Sums),
    again: Backoff,
    not_before: Option<Instant>,
    conflicts: u32,
}

impl Known {
    fn new(id: &TenantId) -> Self {
        let (first, longest) = AGAIN;
        Self {
            done: Done::default(),
            entered: Stores::new(),
            passes: 0,
            took: Duration::ZERO,
            stale: 0,
            until: None,
            lacking: None,
            failed: None,
            sums: (0, Sums::default()),
            again: Backoff::new(first, longest, seed(&[id.bytes()])),
            not_before: None,
            conflicts: 0,
        }
    }

    /// What was acknowledged by rows that were prepared under this epoch; it is taken out.
    fn take_sums(&mut self, prepared: u64) -> Sums {
        let (of, sums) = std::mem::take(&mut self.sums);
        if of == prepared { sums } else { Sums::default() }
    }

    /// Something has failed that only a new beginning repairs.
    fn fail(&mut self, why: String) {
        self.done.failed = true;
        self.failed = Some(why);
    }

    /// A node has a fence above the epoch of the step. That is usual when the tenant was changed meanwhile, and is soon over. If it is not,
    /// the metadata store may have been set back, or this coordinator does not hear of changes: it is tried again ever more slowly.
    fn is_stale(&mut self) -> bool {
        self.stale += 1;
        if self.stale > STALE {
            self.fail(format!("nodes have refused it {STALE} times as of before a change that they know of"));
        }
        self.stale <= STALE
    }

    /// A step was published by this revision.
    fn enter(&mut self, since: u64) {
        self.done = Done::under(since);
        (self.until, self.lacking) = (None, None);
        self.conflicts = 0;
    }
}

/// What becomes of a tenant after a step.
enum After {
    /// The next step.
    Again,
    /// Something later: it is where it is to be, or has to wait.
    Later,
}

/// The leader's view of all tenants.
#[derive(Default)]
struct Mover {
    known: BTreeMap<TenantId, Known>,
    /// The last plan: most tenants move between the same placements.
    plan: Option<(u64, Arc<Plan>)>,
    /// What keeps every tenant from moving between two placements, in this look.
    blocked: BTreeMap<(Placed, Placed), String>,
    /// The revision at which there was nothing to do.
    idle: Option<u64>,
}

impl Mover {
    fn plan(&mut self, tenant: &Tenant, to: Placed, ground: &Ground) -> Option<Arc<Plan>> {
        let from = tenant.placed();
        if let Some((epoch, plan)) = &self.plan
            && (*epoch, plan.from, plan.to) == (ground.epoch, from, to)
        {
            return Some(Arc::clone(plan));
        }
        let plan = Arc::new(Plan::new(from, to, &ground.rings)?);
        self.plan = Some((ground.epoch, Arc::clone(&plan)));
        Some(plan)
    }
}

impl<W: World> Moves<W> {
    /// Moves tenants for as long as it is polled.
    pub(super) async fn move_tenants(&self) -> Infallible {
        let (mut mover, mut hint) = (Mover::default(), self.metadata().hint());
        loop {
            if let Err(error) = self.look(&mut mover).await {
                mover.idle = None;
                tracing::debug!(%error, "which tenants are to be moved cannot be read");
            }
            tokio::select! {
                biased;
                () = hint.given() => sleep(AFTER_HINT).await,
                () = sleep(LOOK) => {}
            }
        }
    }

    async fn look(&self, mover: &mut Mover) -> Result<(), StoreError> {
        let Some(revision) = self.later_than(mover.idle).await? else { return Ok(()) };
        mover.idle = None;
        let newest = self.ground().await?.rings.newest_version();
        let (mut to_move, mut after) = (Vec::new(), None);
        loop {
            let page = self.metadata().tenants(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            let is_there = |tenant: &Tenant| tenant.moving.is_none() && tenant.placed() == target(tenant, newest);
            let live = page.into_iter().filter(|tenant| tenant.deleted_at_ms.is_none());
            to_move.extend(live.filter(|tenant| !is_there(tenant)));
        }
        to_move.sort_by(|a, b| a.id.cmp(&b.id));
        self.metrics().tenants_to_move.set(to_move.len() as i64);
        let is_one = |id: &TenantId| to_move.binary_search_by(|tenant| tenant.id.cmp(id)).is_ok();
        mover.known.retain(|id, _| is_one(id));
        self.board.retain_tenants(is_one);
        if to_move.is_empty() {
            self.usual.forget();
            mover.idle = Some(revision);
        }
        mover.blocked.clear();
        for tenant in to_move {
            let (is_moving, id) = (tenant.moving.is_some(), tenant.id.clone());
            if let Some(why) = mover.blocked.get(&(tenant.placed(), target(&tenant, newest))).filter(|_| !is_moving) {
                self.board.waits(&id, why.clone());
                continue;
            }
            let mut known = mover.known.remove(&id).unwrap_or_else(|| Known::new(&id));
            if known.not_before.is_none_or(|at| at <= Instant::now()) {
                let driven = self.drive(mover, &id, &mut known).await;
                self.board.rests(&id);
                if let Err(error) = driven {
                    self.board.waits(&id, format!("waits for the metadata store: {error}"));
                    tracing::debug!(tenant = %id, %error, "a tenant's move goes on later");
                }
            }
            mover.known.insert(id, known);
        }
        Ok(())
    }

    async fn drive(&self, mover: &mut Mover, id: &TenantId, known: &mut Known) -> Result<(), StoreError> {
        while let After::Again = self.step(mover, id, known).await? {}
        Ok(())
    }

    async fn step(&self, mover: &mut Mover, id: &TenantId, known: &mut Known) -> Result<After, StoreError> {
        // Before the tenant is read: if it is in its step then and at this revision, it was in between.
        let followed = self.coordinator().followed();
        let Some(tenant) = self.metadata().tenant(id).await? else { return Ok(After::Later) };
        let ground = self.ground().await?;
        let target = target(&tenant, ground.rings.newest_version());
        let plan = mover.plan(&tenant, tenant.moving.map_or(target, |moving| moving.to), &ground);
        let left_over = match tenant.moving {
            None if tenant.placed() != target => self.left_over(id).await?,
            _ => BTreeSet::new(),
        };
        let at = Situation { tenant: &tenant, target, plan: plan.as_deref(), left_over: &left_over, done: known.done };
        let needs = plan.as_ref().is_some_and(|plan| plan.to.generation > 0);
        let doing = next(&at, |node| match self.condition(&ground, node) {
            usable if usable.is_usable() && needs && !self.replicas().has_generations(node) => NodeCondition::Old,
            condition => condition,
        });
        let (moving, plan) = match (&doing, tenant.moving, plan) {
            (Do::Settled, ..) => return Ok(After::Later),
            (Do::Publish(step), ..) => return self.publish(&tenant, target, step.clone(), known).await,
            (Do::Wait(obstacle), ..) => {
                self.board.waits(id, obstacle.to_string());
                if matches!(obstacle, Obstacle::Node(..) | Obstacle::Sources { .. }) {
                    mover.blocked.insert((tenant.placed(), target), obstacle.to_string());
                }
                return Ok(After::Later);
            }
            (_, Some(moving), Some(plan)) => (moving, plan),
            // Everything else is a step of a move.
            _ => return Ok(After::Later),
        };
        known.done = known.done.of(moving.since);
        let at = steps::At { id, plan: &plan, moving, epoch: moving.since.max(followed), ground: &ground };
        let is_watched = (moving.step != Step::Cutover).then_some(target);
        let stepped = tokio::select! {
            biased;
            () = self.changed(id, moving, is_watched) => Stepped::Next,
            stepped = self.carry_out(&doing, &at, known) => stepped,
        };
        if stepped == Stepped::Pause {
            sleep(PAUSE).await;
        }
        Ok(After::Again)
    }

    /// The nodes that have rows of a tenant which they are to drop.
    async fn left_over(&self, id: &TenantId) -> Result<BTreeSet<NodeId>, StoreError> {
        let left = self.metadata().leftovers(Some(id), None).await?;
        Ok(left.into_iter().map(|left| left.node).collect())
    }

    async fn publish(
        &self,
        tenant: &Tenant,
        target: Placed,
        step: MoveTenant,
        known: &mut Known,
    ) -> Result<After, StoreError> {
        let (id, gives_up) = (&tenant.id, matches!(step, MoveTenant::GiveUp(_)));
        let name = name(&step);
        let has_failed = tenant.moving.is_some_and(|moving| known.done.of(moving.since).failed);
        match self.metadata().move_tenant(id, tenant.version, step, self.now_ms()).await {
            Ok(published) => {
                self.metrics().moves_published(name).inc();
                known.enter(published.tenant.moving.map_or(published.epoch, |moving| moving.since));
                self.log(tenant, &published.tenant, published.epoch);
                let why = known.failed.take().filter(|_| has_failed);
                if gives_up {
                    return Ok(self.given_up(tenant, target, why, known));
                }
                if published.tenant.moving.is_none() {
                    *known = Known::new(id);
                    return Ok(After::Later);
                }
                Ok(After::Again)
            }
            Err(StoreError::Conflict(why)) => {
                known.conflicts += 1;
                if known.conflicts > CONFLICTS {
                    known.conflicts = 0;
                    self.board.waits(id, format!("waits for other changes of the tenant to end: {why}"));
                    return Ok(After::Later);
                }
                sleep(PAUSE).await;
                Ok(After::Again)
            }
            // It was deleted.
            Err(StoreError::Missing(_)) => Ok(After::Later),
            Err(StoreError::Refused(why)) => {
                tracing::warn!(tenant = %id, step = name, %why, "a step of a tenant's move was refused");
                known.not_before = Some(Instant::now() + known.again.failed());
                self.board.waits(id, why);
                Ok(After::Later)
            }
            Err(error) => Err(error),
        }
    }

    fn given_up(&self, tenant: &Tenant, target: Placed, why: Option<String>, known: &mut Known) -> After {
        let id = &tenant.id;
        (known.passes, known.stale) = (0, 0);
        let Some(why) = why else {
            // It is to be somewhere else.
            tracing::info!(tenant = %id, "the tenant's move was taken back");
            return After::Again;
        };
        self.metrics().move_given_up.inc();
        let pause = known.again.failed();
        let to = tenant.moving.map_or(target, |moving| moving.to);
        tracing::warn!(
            tenant = %id, ring = to.ring, replicas = to.replication_factor, generation = to.generation, %why,
            "the tenant's move was given up, and begins anew in {pause:.1?}"
        );
        known.not_before = Some(Instant::now() + pause);
        self.board.waits(id, format!("begins anew in a moment, because its move was given up: {why}"));
        After::Later
    }

    fn log(&self, before: &Tenant, after: &Tenant, epoch: u64) {
        let id = &before.id;
        match (before.moving, after.moving) {
            (None, Some(Moving { to, .. })) => tracing::info!(
                tenant = %id, from_ring = before.ring, from_replicas = before.replication_factor,
                from_generation = before.generation, to_ring = to.ring, to_replicas = to.replication_factor,
                to_generation = to.generation, epoch, "a tenant begins to move"
            ),
            (Some(moving), None) if after.placed() == moving.to => tracing::info!(
                tenant = %id, ring = after.ring, replicas = after.replication_factor, generation = after.generation, epoch,
                "a tenant has moved"
            ),
            (_, moving) => {
                let step = moving.map_or("settled", |moving| moving.step.as_str());
                tracing::debug!(tenant = %id, step, epoch, "a step of a tenant's move was published");
            }
        }
    }

    /// Returns once a tenant is in another step than this, or, if that counts, is to be somewhere else.
    async fn changed(&self, id: &TenantId, moving: Moving, is_watched: Option<Placed>) {
        let mut idle = None;
        loop {
            sleep(LOOK).await;
            match self.has_changed(id, moving, is_watched, &mut idle).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "whether a tenant has changed cannot be read"),
            }
        }
    }

    async fn has_changed(
        &self,
        id: &TenantId,
        moving: Moving,
        is_watched: Option<Placed>,
        idle: &mut Option<u64>,
    ) -> Result<bool, StoreError> {
        let Some(revision) = self.later_than(*idle).await? else { return Ok(false) };
        let Some(tenant) = self.metadata().tenant(id).await? else { return Ok(true) };
        if tenant.moving != Some(moving) || tenant.deleted_at_ms.is_some() {
            return Ok(true);
        }
        if let Some(watched) = is_watched {
            let placement = self.metadata().placement().await?;
            let newest = placement.rings.iter().map(|ring| ring.version).max().unwrap_or_default();
            if target(&tenant, newest) != watched {
                return Ok(true);
            }
        }
        *idle = Some(revision);
        Ok(false)
    }
}

/// The step that a publication leads to, for the metric.
fn name(step: &MoveTenant) -> &'static str {
    match step {
        MoveTenant::Prepare(_) => "prepare",
        MoveTenant::DualWrite => "dual_write",
        MoveTenant::Cutover => "cutover",
        MoveTenant::Finish(_) => "finish",
        MoveTenant::GiveUp(_) => "give_up",
    }
}
