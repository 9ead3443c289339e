//! Carries out one step of a tenant's move.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use tokio::time::{Instant, sleep, timeout_at};
use witan_coordinate::World;
use witan_kernel::fault::Fault;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::placement::leader::{Do, Plan, is_fenced};
use witan_kernel::placement::sums::Sums;
use witan_kernel::placement::{Both, Moving, Tokens};
use witan_kernel::port::{
    MIGRATION_TEXT_BYTES, MIGRATIONS, Migration, MigrationProgress, MigrationStatus, PlacementChange, StoreError,
};
use witan_kernel::replica::ReplicaError;
use witan_kernel::scan::{Clear, Cleared, Purpose, Ranges};
use witan_kernel::space::Space;

use super::{Known, PAUSE};
use crate::moves::copy::{Copied, Need, Pass, Stale, Swap};
use crate::moves::{Ground, Moves, Rate, Stores};

/// Nodes that are asked at a time.
const NODES: usize = 16;
/// Records that a pass of the first copy may send without another one following: the last copy does them within a second.
const FEW: u64 = 1000;
/// Most passes of the first copy: under steady writes each finds some more.
const PASSES: u32 = 3;
/// Longest wait for operations that began before a step: that of the longest one, and a moment to hear of its end. What has not ended then
/// is refused by fences.
const DRAINS: Duration = Duration::from_secs(15);
/// How often it is looked whether they have ended.
const LOOK: Duration = Duration::from_millis(100);
/// How long nodes that get rows may fail to answer before the move is given up.
const ENTERS: Duration = Duration::from_secs(15);
/// How long a node may take to drop rows, which it does piece by piece.
const DROPS: Duration = Duration::from_secs(600);
/// How long the last copy may take, all its attempts together: meanwhile operations need both placements. It reads as much as the first
/// one, so that a large tenant has this multiple of the time that one pass of the first copy took.
const COMPLETES: Duration = Duration::from_secs(60);
const TIMES: u32 = 3;
/// Longest wait until this coordinator follows a change that a node has met already.
const FOLLOWS: Duration = Duration::from_secs(2);

/// The step to carry out.
pub(super) struct At<'a> {
    pub(super) id: &'a TenantId,
    pub(super) plan: &'a Plan,
    pub(super) moving: Moving,
    /// The latest revision at which the tenant is known to have been in this step.
    pub(super) epoch: u64,
    pub(super) ground: &'a Ground,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stepped {
    /// The leader looks what is next.
    Next,
    /// The same after a pause.
    Pause,
}

/// Why a node has not confirmed that it gets rows.
enum NotEntered {
    /// It has a fence above the epoch.
    Stale,
    /// Anything else.
    Failed(String),
}

impl<W: World> Moves<W> {
    /// Carries out a step, and notes what was done.
    pub(super) async fn carry_out(&self, doing: &Do, at: &At<'_>, known: &mut Known) -> Stepped {
        match doing {
            Do::Prepare(epoch) => self.prepare(at, *epoch, known).await,
            Do::Copy => self.copy(at, known).await,
            Do::Drain(epoch) => {
                self.board.doing(at.id, "waits for operations to end that began before this step");
                self.drain(*epoch).await;
                known.done.drained = true;
                Stepped::Next
            }
            Do::Complete(epoch) => self.complete(at, *epoch, known).await,
            Do::Verify(_) => self.verify(at, known).await,
            Do::Settled | Do::Wait(_) | Do::Publish(_) => Stepped::Next,
        }
    }

    async fn prepare(&self, at: &At<'_>, epoch: u64, known: &mut Known) -> Stepped {
        self.board.doing(at.id, "prepares the nodes that get rows");
        if Fault::MovePrepareSkipped.is_on() {
            known.done.prepared = true;
            return Stepped::Next;
        }
        // Before anything can be copied, which this step has to be over for.
        if let Err(why) = self.fence_replicas(at, epoch).await {
            known.fail(why);
            return Stepped::Next;
        }
        let mut each = self.entering(at, epoch);
        while let Some((node, entered)) = each.next().await {
            match entered {
                Ok(_) => {}
                Err(NotEntered::Stale) => {
                    known.done.stale = known.is_stale();
                    return Stepped::Next;
                }
                Err(NotEntered::Failed(why)) => {
                    known.fail(format!("node {node} could not be prepared: {why}"));
                    return Stepped::Next;
                }
            }
        }
        known.done.prepared = true;
        Stepped::Next
    }

    /// Raises the tenant's fence at its present replicas: nobody who does not know of the move drops tombstones from then on.
    async fn fence_replicas(&self, at: &At<'_>, epoch: u64) -> Result<(), String> {
        let (until, lost) = (Instant::now() + ENTERS, at.ground.lost());
        while !Fault::CollectDuringMove.is_on() {
            let fenced = self.fenced(at.id, self.whole(&at.plan.old_nodes()), epoch).await;
            let is_fenced =
                |range: &&Both| is_fenced(range, |node| lost.contains(node), |node| fenced.contains_key(node));
            let Some(range) = at.plan.ranges.iter().find(|range| !is_fenced(range)) else { break };
            if Instant::now() >= until {
                let nodes: Vec<&str> = range.old.iter().map(NodeId::as_str).collect();
                return Err(format!("too few of the present replicas could be fenced ({})", nodes.join(", ")));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Has every node that gets rows drop what it has of them.
    fn entering<'a>(
        &'a self,
        at: &'a At<'a>,
        epoch: u64,
    ) -> impl Stream<Item = (&'a NodeId, Result<Cleared, NotEntered>)> + Send + Unpin {
        let space = Space::new(at.id, at.plan.to.generation);
        let ask = |(node, ranges): (&'a NodeId, &'a Vec<Tokens>)| self.enter(space.clone(), node, ranges, epoch);
        let asks: Vec<_> = at.plan.entering.iter().map(ask).collect();
        Box::pin(stream::iter(asks).buffer_unordered(NODES))
    }

    /// Has a node drop what it has of the rows that it gets, however long that takes. It fails when the node does not answer for long.
    async fn enter<'a>(
        &self,
        space: Space,
        node: &'a NodeId,
        ranges: &[Tokens],
        epoch: u64,
    ) -> (&'a NodeId, Result<Cleared, NotEntered>) {
        let (ends, mut patience) = (Instant::now() + DROPS, Instant::now() + ENTERS);
        loop {
            let (space, ranges) = (space.clone(), ranges.to_vec());
            let clear = Clear { space, ranges, epoch, purpose: Purpose::Enter };
            let error = match self.replicas().clear(node, clear).await {
                Ok(cleared) => return (node, Ok(cleared)),
                Err(ReplicaError::StaleEpoch) => return (node, Err(NotEntered::Stale)),
                Err(error) => error,
            };
            if error == ReplicaError::Late {
                patience = Instant::now() + ENTERS;
            }
            if Instant::now() >= patience.min(ends) {
                return (node, Err(NotEntered::Failed(error.to_string())));
            }
            sleep(PAUSE).await;
        }
    }

    async fn copy(&self, at: &At<'_>, known: &mut Known) -> Stepped {
        self.board.copies(at.id, &at.plan.ranges, known.passes == 0);
        let rate = Rate::new(self, at.plan);
        let (sources, targets) = (self.whole(&at.plan.old_nodes()), self.whole(&at.plan.new_nodes()));
        let began = Instant::now();
        let swap = self.swap(at, known.take_sums(at.moving.prepared));
        let mut pass = self.pass(at, (&sources, &targets), Need::Nothing, Some(&rate), swap);
        pass.compares &= known.passes > 0;
        let copied = pass.run().await;
        known.sums = (at.moving.prepared, pass.swap.map(Swap::into_known).unwrap_or_default());
        match copied {
            Ok(Copied { fault: Some(why), .. }) => self.hook_faults(at, why, known).await,
            Ok(Copied { sent, lacking, records, .. }) => {
                (known.passes, known.stale) = (known.passes + 1, 0);
                known.took = known.took.max(began.elapsed());
                tracing::debug!(tenant = %at.id, records, sent, ?lacking, pass = known.passes, "a pass of a tenant's copy has ended");
                known.done.copied = known.passes >= PASSES || (sent <= FEW && lacking.is_none());
                if known.done.copied { Stepped::Next } else { Stepped::Pause }
            }
            Err(Stale) if known.is_stale() => self.follow_beyond(at.epoch).await,
            Err(Stale) => Stepped::Next,
        }
    }

    /// Where the rows of a move to another generation go. `known`: what they have acknowledged.
    fn swap<'a>(&self, at: &At<'a>, known: Sums) -> Option<Swap<'a>> {
        let to = Some(at.plan.to).filter(|_| at.plan.is_swap())?;
        let hooks = self.coordinator().ports().plugins.hooks(at.id);
        Some(Swap::new(to, at.ground.rings.version(to.ring)?, hooks, known))
    }

    /// The partition hook of the coming generation faults on a key: the change is given up, and says so.
    async fn hook_faults(&self, at: &At<'_>, why: String, known: &mut Known) -> Stepped {
        tracing::warn!(tenant = %at.id, %why, "a tenant cannot be moved to another generation");
        match self.withdraw(at, &why).await {
            // The tenant is read again, and is not to have that generation any longer.
            Ok(true) => Stepped::Next,
            Ok(false) => {
                known.fail(why);
                Stepped::Next
            }
            Err(error) => {
                tracing::debug!(%error, "a change that fails could not be put on record");
                Stepped::Pause
            }
        }
    }

    /// Takes back the change that wants the coming generation, with the reason. False if there is none.
    async fn withdraw(&self, at: &At<'_>, why: &str) -> Result<bool, StoreError> {
        let wanted = PlacementChange::Generation { tenant: at.id.clone(), generation: at.moving.to.generation };
        let all = self.metadata().migrations(None, MIGRATIONS as u32).await?;
        let is_it = |of: &&Migration| !of.status.has_ended() && of.change == wanted;
        let Some(number) = all.iter().find(is_it).map(|of| of.number) else { return Ok(false) };
        let mut message = why.to_owned();
        message.truncate(message.floor_char_boundary(MIGRATION_TEXT_BYTES));
        let progress = MigrationProgress { message, ..MigrationProgress::default() };
        self.metadata().note_migration(number, MigrationStatus::InProgress, progress, self.now_ms()).await?;
        self.metadata().cancel_migration(number, self.now_ms()).await?;
        Ok(true)
    }

    fn pass<'a>(
        &'a self,
        at: &At<'a>,
        (sources, targets): (&'a Stores, &'a Stores),
        need: Need<'a>,
        rate: Option<&'a Rate<'a, W>>,
        swap: Option<Swap<'a>>,
    ) -> Pass<'a, W> {
        Pass {
            coordinator: self.coordinator(),
            metrics: self.metrics(),
            board: &self.board,
            tenant: at.id,
            space: Space::new(at.id, at.plan.from.generation),
            compares: swap.is_none(),
            swap,
            ranges: &at.plan.ranges,
            epoch: at.epoch,
            sources,
            targets,
            need,
            rate,
        }
    }

    /// Waits until this coordinator follows changes after this revision: a node has met one, and the tenant has to be read anew.
    async fn follow_beyond(&self, epoch: u64) -> Stepped {
        let until = Instant::now() + FOLLOWS;
        while self.coordinator().followed() <= epoch && Instant::now() < until {
            sleep(LOOK).await;
        }
        Stepped::Pause
    }

    /// Waits until no operation is under way that began before this revision, but not for long.
    pub(super) async fn drain(&self, epoch: u64) {
        let until = Instant::now() + DRAINS;
        while !self.all_drained(epoch).await && Instant::now() < until {
            // Soon: while both placements are needed, everything costs more.
            sleep(PAUSE).await;
        }
    }

    /// Copies from fenced sources what the first copy has missed. One attempt.
    async fn complete(&self, at: &At<'_>, epoch: u64, known: &mut Known) -> Stepped {
        let what = "copies what was written meanwhile";
        match &known.lacking {
            None => self.board.doing(at.id, what),
            // An attempt may take as long as a node is waited for: meanwhile it is said why there is another one.
            Some(why) => self.board.doing_with(at.id, what, why),
        }
        let most = COMPLETES.max(known.took * TIMES);
        let until = *known.until.get_or_insert_with(|| Instant::now() + most);
        let mut sums = known.take_sums(at.moving.prepared);
        let attempt = timeout_at(until, self.attempt(at, epoch, &mut sums)).await;
        known.sums = (at.moving.prepared, sums);
        let why = match attempt {
            Ok(Ok(entered)) => {
                known.entered = entered;
                known.done.completed = true;
                known.until = None;
                return Stepped::Next;
            }
            Ok(Err(Missed::Stale)) => {
                if Instant::now() < until {
                    return self.follow_beyond(at.epoch).await;
                }
                "the tenant was changed again and again".to_owned()
            }
            Ok(Err(Missed::Fault(why))) => return self.hook_faults(at, why, known).await,
            Ok(Err(Missed::Other(why))) => {
                known.fail(why);
                return Stepped::Next;
            }
            Ok(Err(Missed::Lacking(why))) => {
                if Instant::now() < until {
                    tracing::debug!(tenant = %at.id, %why, "the last copy of a tenant is repeated");
                    known.lacking = Some(why);
                    return Stepped::Pause;
                }
                why
            }
            Err(_) => "it took too long".to_owned(),
        };
        known.fail(format!("the last copy has not succeeded within {} s: {why}", most.as_secs()));
        Stepped::Next
    }

    /// One attempt at the last copy. Returns the stores of the nodes that have got rows.
    async fn attempt(&self, at: &At<'_>, epoch: u64, sums: &mut Sums) -> Result<Stores, Missed> {
        let entered = self.still_entered(at).await?;
        if Fault::MoveDeltaSkipped.is_on() {
            return Ok(entered);
        }
        let mut targets = self.whole(&at.plan.new_nodes());
        targets.retain(|node, store| entered.get(node).is_none_or(|prepared| prepared == store));
        let whole = self.whole(&at.plan.old_nodes());
        let sources = if Fault::MoveUnfenced.is_on() { whole } else { self.fenced(at.id, whole, epoch).await };
        let lost = at.ground.lost();
        let need = Need::Everything { lost: &lost };
        let pass = self.pass(at, (&sources, &targets), need, None, self.swap(at, std::mem::take(sums)));
        let copied = pass.run().await;
        *sums = pass.swap.map(Swap::into_known).unwrap_or_default();
        match copied {
            Ok(Copied { fault: Some(why), .. }) => Err(Missed::Fault(why)),
            Ok(Copied { lacking: None, .. }) => Ok(entered),
            Ok(Copied { lacking: Some(why), .. }) => Err(Missed::Lacking(why)),
            Err(Stale) => Err(Missed::Stale),
        }
    }

    /// Has nodes raise a tenant's fence. Returns those that have, of the stores that they had before.
    async fn fenced(&self, id: &TenantId, nodes: Stores, epoch: u64) -> Stores {
        let asks: Vec<_> = nodes.into_iter().map(|(node, store)| self.fence(id, node, store, epoch)).collect();
        stream::iter(asks).buffer_unordered(NODES).filter_map(std::future::ready).collect().await
    }

    async fn fence(&self, id: &TenantId, node: NodeId, store: StoreId, epoch: u64) -> Option<(NodeId, StoreId)> {
        match self.replicas().raise_fence(&node, Some(id), epoch).await {
            Ok(fenced) => (fenced == store).then_some((node, store)),
            Err(error) => {
                tracing::debug!(%node, %error, "a node has not fenced a tenant that moves");
                None
            }
        }
    }

    /// The stores that were prepared for rows, if each node that gets some still has it.
    async fn still_entered(&self, at: &At<'_>) -> Result<Stores, Missed> {
        if Fault::MovePrepareSkipped.is_on() {
            return Ok(self.whole(at.plan.entering.keys()));
        }
        let all: BTreeMap<&NodeId, Result<Cleared, NotEntered>> = self.entering(at, at.moving.prepared).collect().await;
        let mut stores: BTreeMap<NodeId, StoreId> = BTreeMap::new();
        for (node, entered) in all {
            match entered {
                Ok(Cleared { already: true, store, .. }) => drop(stores.insert(node.clone(), store)),
                Ok(_) | Err(NotEntered::Stale) => {
                    return Err(Missed::Other(format!("node {node} has another store than the one that was prepared")));
                }
                Err(NotEntered::Failed(why)) => return Err(Missed::Lacking(format!("node {node}: {why}"))),
            }
        }
        Ok(stores)
    }

    async fn verify(&self, at: &At<'_>, known: &mut Known) -> Stepped {
        let until = *known.until.get_or_insert_with(|| Instant::now() + ENTERS);
        match self.still_entered(at).await {
            Ok(stores) if stores == known.entered => known.done.verified = true,
            Ok(_) => known.fail("a node that gets rows has another store than during the copy".to_owned()),
            Err(Missed::Other(why) | Missed::Fault(why)) => known.fail(why),
            Err(Missed::Lacking(why)) if Instant::now() >= until => known.fail(why),
            Err(Missed::Lacking(_) | Missed::Stale) => return Stepped::Pause,
        }
        Stepped::Next
    }
}

/// Why an attempt at the last copy has not succeeded.
enum Missed {
    /// A node has met a later change of the tenant.
    Stale,
    /// A node that gets rows has another store.
    Other(String),
    /// Not everything could be read or stored.
    Lacking(String),
    /// The partition hook of the coming generation faults on a key.
    Fault(String),
}
