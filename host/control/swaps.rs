//! Swaps of a tenant's routing hook while records are stored: the rows move to another generation, whose keys the new hook places.
//!
//! The binding and the placement change are recorded in one transaction (the plugin host's part), so that neither is ever on record without
//! the other. Where not everybody knows generations, a routing hook changes only while nothing is stored, as in `bindings`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use witan_kernel::capability::GENERATIONS;
use witan_kernel::hook::{Partition, Pending};
use witan_kernel::name::{Key, TenantId, shown};
use witan_kernel::port::{Migration, PlacementChange, StoreError};
use witan_kernel::ring::token;
use witan_kernel::tenant::Tenant;

use super::{Catalog, ChangeRefused, Refused, Turn};

/// Keys on which a new hook is tried before a swap begins, at most for this long. If that is not enough for all, the copy finds the rest.
const TRIED_FOR: Duration = Duration::from_secs(5);

/// The change, in errors.
const SWAP: &str = "a change of the routing hook";

/// What places keys, once a change has been made.
pub trait Places: Send + Sync + 'static {
    /// The partition of a key.
    fn partition_key(&self, key: &Key) -> Partition;
}

/// What is answered to a change that is recorded, and what moves the rows; or why it is not.
pub type Recorded<B, E> = Result<(B, Migration), E>;

/// The plugin host's part of one change of one tenant's routing hook.
pub trait HookChange: Send + Sync + 'static {
    /// What is answered.
    type Bound: Send + 'static;
    /// The host's failures.
    type Error: Send + 'static;
    /// What is proposed.
    type Proposed: Places;

    /// Whether rows of the tenant have ever been placed by several hooks.
    fn has_generations(&self) -> bool;

    /// Prepares the change; nothing changes yet. `None`: keys are placed as before.
    fn propose(&self, tenant: &Tenant) -> Pending<Result<Option<Self::Proposed>, Self::Error>>;

    /// Makes the change where no row has to move.
    fn at_once(&self) -> Pending<Result<Self::Bound, Self::Error>>;

    /// Records what was proposed and the placement change that moves the rows, in one transaction.
    fn record(&self, proposed: Self::Proposed, now_ms: u64) -> Pending<Recorded<Self::Bound, Self::Error>>;
}

/// What a hook does with a tenant's keys, as far as they were looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tried {
    /// Keys that would move to another place in the ring.
    pub moving: u64,
    /// Keys that would stay at their place.
    pub staying: u64,
    /// Keys on which the hook faults.
    pub faulting: u64,
    /// The first of those, with the fault.
    pub fault: Option<(Key, String)>,
    /// Every key was looked at.
    pub is_complete: bool,
}

/// What a swap would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookPlan {
    /// What the new hook does with the keys; `None`: keys are placed as before, and the change is made at once.
    pub tried: Option<Tried>,
    /// Why it would be refused or would wait, for people.
    pub problems: Vec<String>,
}

impl Catalog {
    /// Changes the routing hook of a tenant: at once where keys are placed as before, otherwise by a placement change that is recorded and
    /// moves the rows. Runs to completion even if the caller is dropped.
    ///
    /// # Errors
    /// The rule that refused the change, or the plugin host's failure.
    pub async fn change_routing_hook<C: HookChange>(
        self: &Arc<Self>,
        turn: Turn,
        tenant: &TenantId,
        change: C,
        now_ms: u64,
    ) -> Result<(C::Bound, Option<Migration>), ChangeRefused<C::Error>> {
        let (catalog, tenant) = (Arc::clone(self), tenant.clone());
        let changing = tokio::spawn(async move {
            let changed = catalog.swap(&tenant, change, now_ms).await;
            drop(turn);
            changed
        });
        changing.await.unwrap_or(Err(ChangeRefused::Refused(Refused::Lost)))
    }

    async fn swap<C: HookChange>(
        &self,
        id: &TenantId,
        change: C,
        now_ms: u64,
    ) -> Result<(C::Bound, Option<Migration>), ChangeRefused<C::Error>> {
        let tenant = self.tenant(id).await?;
        if !self.swaps().await? {
            return self.change_while_empty(change).await;
        }
        let Some(proposed) = change.propose(&tenant).await.map_err(ChangeRefused::Host)? else {
            let bound = change.at_once().await.map_err(ChangeRefused::Host)?;
            let wanted = tenant.wanted_generation;
            let known = self.swap_under_way(id).await?;
            return Ok((bound, known.filter(|it| wanted.is_some() && wanted == generation(it))));
        };
        if let Some(other) = self.swap_under_way(id).await? {
            let why =
                format!("another change of the routing hook of tenant {id} is under way: migration m-{}", other.number);
            return Err(Refused::MigrationConflict(why).into());
        }
        let tried = self.try_keys(&tenant, &proposed, Instant::now() + TRIED_FOR, false).await;
        if let Some((key, reason)) = tried.fault {
            return Err(Refused::HookFaults { key: shown(&key.to_string()).to_string(), reason }.into());
        }
        let (bound, migration) = change.record(proposed, now_ms).await.map_err(ChangeRefused::Host)?;
        self.publish_tenant(id).await;
        Ok((bound, Some(migration)))
    }

    /// What a change of a tenant's routing hook would do. Nothing changes.
    ///
    /// # Errors
    /// As for the change, but for keys on which the hook faults, which are counted.
    pub async fn plan_hook<C: HookChange>(
        &self,
        id: &TenantId,
        change: &C,
        until: Instant,
    ) -> Result<HookPlan, ChangeRefused<C::Error>> {
        let tenant = self.tenant(id).await?;
        let mut problems = self.hook_problems(id).await?;
        let tried = match change.propose(&tenant).await.map_err(ChangeRefused::Host)? {
            Some(proposed) => Some(self.try_keys(&tenant, &proposed, until, true).await),
            None => None,
        };
        if let Some((key, reason)) = tried.as_ref().and_then(|tried| tried.fault.as_ref()) {
            problems.push(format!("hook faults on key {}: {reason}", shown(&key.to_string())));
        }
        Ok(HookPlan { tried, problems })
    }

    async fn hook_problems(&self, id: &TenantId) -> Result<Vec<String>, Refused> {
        let mut all = self.too_old().await?;
        all.extend(self.without_generations().await?);
        let mut all: Vec<String> =
            all.into_iter().map(|who| format!("{who} cannot move records to another hook: upgrade it")).collect();
        if all.is_empty() && !self.cluster.moves() {
            all.push("records cannot be moved here: changes are not fenced (consistency.fence_changes)".to_owned());
        }
        let nodes = self.metadata.nodes().await?;
        let away = nodes.iter().map(|on_record| &on_record.node.id).filter(|id| !self.cluster.state(id).reachable);
        all.extend(away.map(|node| format!("node {node} cannot be reached: the change may wait for it")));
        let before = self.unended().await?;
        let waits = before.iter().filter(|it| it.change.tenant().is_none_or(|tenant| tenant == id));
        all.extend(waits.map(|it| format!("migration m-{} has not ended: this one may wait for it", it.number)));
        Ok(all)
    }

    /// Asks the new hook about each key of the tenant, one page after the other and not all the time. `all`: also after a fault.
    async fn try_keys(&self, tenant: &Tenant, places: &impl Places, until: Instant, all: bool) -> Tried {
        let (mut tried, mut from) = (Tried::default(), None);
        loop {
            let began = Instant::now();
            // What cannot be listed now is found by the copy.
            let Ok(page) = self.cluster.keys(tenant, from).await else { return tried };
            for (place, key) in page.keys {
                match places.partition_key(&key) {
                    Partition::By { key: partition, .. } => count(&mut tried, place == token(&tenant.id, &partition)),
                    Partition::Native | Partition::Unknown => {
                        count(&mut tried, place == token(&tenant.id, key.bytes()));
                    }
                    Partition::Faulted { reason, .. } => {
                        tried.faulting += 1;
                        tried.fault.get_or_insert((key, reason));
                        if !all {
                            return tried;
                        }
                    }
                }
            }
            from = page.next;
            if from.is_none() {
                tried.is_complete = true;
                return tried;
            }
            if Instant::now() >= until {
                return tried;
            }
            // Half of the time is left to clients.
            tokio::time::sleep(began.elapsed()).await;
        }
    }

    /// Whether routing hooks are swapped while records are stored. From the first one on, earlier versions refuse to start.
    async fn swaps(&self) -> Result<bool, Refused> {
        if !self.moves().await? || !self.without_generations().await?.is_empty() {
            return Ok(false);
        }
        match self.metadata.require(GENERATIONS).await {
            Ok(_) => Ok(true),
            // One that does not know them has come in between, and is on record.
            Err(StoreError::Conflict(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Coordinators and nodes that do not know generations, for people.
    async fn without_generations(&self) -> Result<Vec<String>, Refused> {
        let coordinators = self.metadata.coordinators().await?;
        let old = coordinators.iter().filter(|it| it.is_live() && !it.names(GENERATIONS));
        let mut all: Vec<String> =
            old.map(|it| format!("coordinator {} (version {})", it.claim.node_id, it.claim.version)).collect();
        let nodes = self.metadata.nodes().await?;
        let old = nodes.iter().map(|on_record| &on_record.node.id).filter(|node| self.cluster.lacks_generations(node));
        all.extend(old.map(|node| format!("storage node {node}")));
        Ok(all)
    }

    /// As before there were generations: while nothing is stored.
    async fn change_while_empty<C: HookChange>(
        &self,
        change: C,
    ) -> Result<(C::Bound, Option<Migration>), ChangeRefused<C::Error>> {
        let otherwise = "records that are placed by several hooks cannot be kept apart otherwise";
        if change.has_generations() {
            return Err(self
                .named_old(Refused::NeedsPlacementChange(format!("{SWAP} is not possible now: {otherwise}")))
                .await
                .into());
        }
        let held = match self.hold_while_empty(SWAP).await {
            Ok(held) => held,
            Err(refused) => return Err(self.named_old(refused).await.into()),
        };
        let bound = change.at_once().await.map_err(ChangeRefused::Host)?;
        drop(held);
        Ok((bound, None))
    }

    /// A refusal because rows would have to move, with those that do not know generations, if any do not.
    async fn named_old(&self, refused: Refused) -> Refused {
        let Refused::NeedsPlacementChange(why) = refused else { return refused };
        match self.without_generations().await {
            Ok(old) if !old.is_empty() => {
                Refused::TooOld { what: SWAP.to_owned(), who: old.join(", "), otherwise: why }
            }
            _ => Refused::NeedsPlacementChange(why),
        }
    }

    /// The change of a tenant's generation that has not ended, if there is one.
    async fn swap_under_way(&self, id: &TenantId) -> Result<Option<Migration>, Refused> {
        let unended = self.unended().await?;
        Ok(unended
            .into_iter()
            .find(|it| generation(it).is_some() && it.change.tenant() == Some(id) && !it.cancel_requested))
    }
}

fn count(tried: &mut Tried, stays: bool) {
    if stays {
        tried.staying += 1;
    } else {
        tried.moving += 1;
    }
}

fn generation(migration: &Migration) -> Option<u32> {
    match migration.change {
        PlacementChange::Generation { generation, .. } => Some(generation),
        _ => None,
    }
}
