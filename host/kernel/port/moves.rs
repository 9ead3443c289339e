//! Placement changes, as rules that every implementation of the metadata store applies to what it has on record.

use std::collections::BTreeSet;

use super::migrations::{
    HOOK_FAULTS, LEFTOVERS, Leftover, MIGRATION_TEXT_BYTES, MIGRATIONS, Migration, MigrationProgress, MigrationStatus,
    MoveTenant, PlacementChange,
};
use super::placement::{NODES, NodeStatus, Placement, StorageNode, StoreOnRecord};
use super::{StoreError, rules};
use crate::limit;
use crate::name::{NodeId, TenantId};
use crate::placement::{Moving, Placed, Step};
use crate::ring::Member;
use crate::tenant::Tenant;

impl Tenant {
    /// The rule of [`MigrationStore::move_tenant`](super::MigrationStore::move_tenant): the tenant after a step that revision `epoch`
    /// publishes. Its version is not counted on.
    ///
    /// # Errors
    /// The step does not follow from the present one.
    pub fn moved(&self, step: &MoveTenant, epoch: u64) -> Result<Self, StoreError> {
        let at = self.moving.map(|moving| moving.step);
        // What a generation's rows are is only known as long as somebody wants them: it is never used again.
        let is_unwanted =
            |to: Placed| to.generation != self.generation && self.wanted_generation != Some(to.generation);
        let moving = match (step, self.moving) {
            (MoveTenant::Prepare(to), _) if is_unwanted(*to) => {
                return Err(self.does_not_follow("a generation that is not wanted"));
            }
            (MoveTenant::DualWrite | MoveTenant::Cutover | MoveTenant::Finish(_), Some(moving))
                if is_unwanted(moving.to) =>
            {
                return Err(self.does_not_follow("a generation that is not wanted any longer"));
            }
            // Anew only where it was going: what another move has sent would be left without a record of it.
            (MoveTenant::Prepare(to), Some(Moving { to: before, .. })) if before != *to => {
                return Err(self.does_not_follow("to prepare another move"));
            }
            (MoveTenant::Prepare(to), _) => {
                Some(Moving { to: *to, step: Step::Preparing, prepared: epoch, since: epoch })
            }
            (MoveTenant::DualWrite, Some(moving)) if at == Some(Step::Preparing) => {
                Some(Moving { step: Step::DualWrite, since: epoch, ..moving })
            }
            (MoveTenant::Cutover, Some(moving)) if at == Some(Step::DualWrite) => {
                Some(Moving { step: Step::Cutover, since: epoch, ..moving })
            }
            (MoveTenant::Finish(_), Some(moving)) if at == Some(Step::Cutover) => return Ok(self.arrived(moving.to)),
            (MoveTenant::GiveUp(_), Some(_)) => None,
            (MoveTenant::DualWrite, _) => return Err(self.does_not_follow(Step::DualWrite.as_str())),
            (MoveTenant::Cutover, _) => return Err(self.does_not_follow(Step::Cutover.as_str())),
            (MoveTenant::Finish(_), _) => return Err(self.does_not_follow("to finish")),
            (MoveTenant::GiveUp(_), None) => return Err(self.does_not_follow("to give up")),
        };
        Ok(Self { moving, ..self.clone() })
    }

    /// Its records are where they were moved. Which factor it is to have does not change by that: a wish is forgotten if it is fulfilled,
    /// and one that was withdrawn too late for this move makes it move back.
    fn arrived(&self, to: Placed) -> Self {
        let wish = self.wanted_factor.unwrap_or(self.replication_factor);
        let is = to.replication_factor;
        Self {
            ring: to.ring,
            replication_factor: is,
            generation: to.generation,
            moving: None,
            wanted_factor: (wish != is).then_some(wish),
            wanted_generation: self.wanted_generation.filter(|wanted| *wanted != to.generation),
            ..self.clone()
        }
    }

    fn does_not_follow(&self, step: &str) -> StoreError {
        let (id, is) = (&self.id, self.moving.map_or("settled", |moving| moving.step.as_str()));
        StoreError::Refused(format!("tenant {id} is {is}, and {step} does not follow from that; read it again"))
    }

    /// What the nodes of a step are left with, under the epoch of the step. The tenant is as it was before the step.
    pub fn left_over(&self, step: &MoveTenant, epoch: u64, now_ms: u64) -> Vec<Leftover> {
        let Some(moving) = self.moving else { return Vec::new() };
        let (nodes, from, to, hand_over) = match step {
            MoveTenant::Finish(nodes) => (nodes, self.placed(), moving.to, true),
            MoveTenant::GiveUp(nodes) => (nodes, moving.to, self.placed(), false),
            MoveTenant::Prepare(_) | MoveTenant::DualWrite | MoveTenant::Cutover => return Vec::new(),
        };
        let nodes: BTreeSet<&NodeId> = nodes.iter().collect();
        let left = |node: &NodeId| Leftover {
            tenant: self.id.clone(),
            node: node.clone(),
            from,
            to,
            hand_over,
            epoch,
            created_at_ms: now_ms,
        };
        nodes.into_iter().map(left).collect()
    }

    /// The tenant with another wish: the factor that it is to have.
    fn wishing(&self, factor: u8, now_ms: u64) -> Self {
        let wanted_factor = (factor != self.replication_factor).then_some(factor);
        Self { wanted_factor, updated_at_ms: now_ms, ..self.clone() }
    }

    /// A new tenant, on the newest version of the ring.
    #[must_use]
    pub fn placed_anew(self, newest: u64) -> Self {
        let (moving, wanted_factor, wanted_generation) = (None, None, None);
        Self { ring: newest, moving, wanted_factor, generation: 0, generations: 0, wanted_generation, ..self }
    }

    /// The rule of [`TenantStore::update_tenant`](super::TenantStore::update_tenant) about what is `stored`: where a tenant's records are
    /// is not among its settings, and its factor is only as long as nothing moves.
    ///
    /// # Errors
    /// The factor would change while a placement change decides about it.
    pub fn replacing(self, stored: &Self) -> Result<Self, StoreError> {
        let moves = stored.moving.is_some() || stored.wanted_factor.is_some() || stored.wanted_generation.is_some();
        if moves && self.replication_factor != stored.replication_factor {
            return Err(StoreError::Conflict(format!(
                "the records of tenant {} are being moved, and its replication_factor cannot change meanwhile; wait until \
                 that has ended, or cancel it",
                stored.id
            )));
        }
        Ok(Self {
            ring: stored.ring,
            moving: stored.moving,
            wanted_factor: stored.wanted_factor,
            generation: stored.generation,
            generations: stored.generations,
            wanted_generation: stored.wanted_generation,
            created_at_ms: stored.created_at_ms,
            deleted_at_ms: None,
            ..self
        })
    }

    /// The tenant once it is deleted: nothing of it moves any longer.
    #[must_use]
    pub fn deleted(&self, now_ms: u64) -> Self {
        Self { moving: None, updated_at_ms: now_ms, deleted_at_ms: Some(now_ms), ..self.clone() }
    }

    /// The replicas that it has or is to have, whichever are more.
    pub fn most_replicas(&self) -> usize {
        usize::from(self.replication_factor.max(self.wanted_factor.unwrap_or(0)))
    }
}

impl Migration {
    /// A change that is to be recorded at this version of the ring, whose number is not known yet.
    pub fn pending(change: PlacementChange, ring: u64, now_ms: u64) -> Self {
        Self {
            number: 0,
            change,
            ring,
            before: 0,
            was: None,
            status: MigrationStatus::Pending,
            cancel_requested: false,
            progress: MigrationProgress::default(),
            created_at_ms: now_ms,
            started_at_ms: None,
            finished_at_ms: None,
        }
    }

    /// The rule of [`MigrationStore::note_migration`](super::MigrationStore::note_migration): the record afterwards.
    #[must_use]
    pub fn noted(mut self, status: MigrationStatus, progress: MigrationProgress, now_ms: u64) -> Self {
        if self.status.has_ended() {
            return self;
        }
        let next = match (self.status, status) {
            (_, MigrationStatus::Cancelled | MigrationStatus::Failed) if self.progress.is_fault() => {
                MigrationStatus::Failed
            }
            (_, ended @ (MigrationStatus::Cancelled | MigrationStatus::Failed)) => ended,
            // Whoever has seen it complete has not seen yet that it is being taken back.
            (before, MigrationStatus::Completed) if self.cancel_requested => before,
            (_, MigrationStatus::Completed) => MigrationStatus::Completed,
            (MigrationStatus::Pending, MigrationStatus::Pending) => MigrationStatus::Pending,
            _ => MigrationStatus::InProgress,
        };
        if next == MigrationStatus::InProgress {
            self.started_at_ms = self.started_at_ms.or(Some(now_ms));
        }
        if next.has_ended() {
            self.finished_at_ms = Some(now_ms);
        }
        self.status = next;
        self.progress = self.progress.then(progress);
        self
    }

    /// Another change that this one has to wait for, or that is this one.
    fn is_open(&self) -> bool {
        !self.status.has_ended()
    }
}

impl Leftover {
    /// True for the same rows of the same node, whatever the epoch: the one of the later epoch takes the place of the other, since a move
    /// that is tried again and again would otherwise leave one each time.
    pub fn is_same(&self, other: &Self) -> bool {
        let of = |left: &Self| (left.from, left.to, left.hand_over);
        self.tenant == other.tenant && self.node == other.node && of(self) == of(other)
    }
}

impl MigrationProgress {
    /// What is known after `next` was reported: no number falls, and no share.
    fn then(self, next: Self) -> Self {
        let keys_total = self.total_after(&next);
        let keys_done = self.keys_done.max(next.keys_done);
        // A database takes no zero bytes in texts.
        let mut message = if self.is_fault() { self.message.clone() } else { next.message.replace('\0', " ") };
        let end = message.floor_char_boundary(MIGRATION_TEXT_BYTES);
        message.truncate(end);
        Self {
            tenants_done: self.tenants_done.max(next.tenants_done),
            tenants_total: self.tenants_total.max(next.tenants_total),
            keys_done,
            keys_total,
            bytes_done: self.bytes_done.max(next.bytes_done),
            message,
        }
    }

    /// True if the change cannot be carried out, as the message says.
    fn is_fault(&self) -> bool {
        self.message.starts_with(HOOK_FAULTS)
    }

    /// The records that there are. It is an estimate, and one that turns out too low grows only as fast as what is done, so that the share
    /// that is done waits for what was missed, instead of falling.
    fn total_after(&self, next: &Self) -> u64 {
        let keys_done = self.keys_done.max(next.keys_done);
        let estimate = self.keys_total.max(next.keys_total).max(keys_done);
        let most = u128::from(keys_done) * u128::from(self.keys_total);
        let most = most
            .checked_div(u128::from(self.keys_done))
            .map_or(u64::MAX, |most| u64::try_from(most).unwrap_or(u64::MAX));
        estimate.min(most).max(keys_done)
    }
}

/// What an implementation has to write, in one transaction, for a placement change or for taking it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The number and members of the ring's next version. If no version is on record yet, the one of before is recorded as well.
    pub ring: Option<(u64, Vec<Member>)>,
    /// A node as it is to be on record.
    pub node: Option<StorageNode>,
    /// The node whose stores are retired, and whose leftovers are forgotten.
    pub lost: Option<NodeId>,
    /// A tenant with another wish, at the version that it had.
    pub tenant: Option<Tenant>,
    /// A store that is admitted in place of the one on record, or admitted no longer.
    pub store: Option<replaces::PlannedStore>,
    /// The record of the change. That of a new one has no number yet: it is the revision that the transaction makes.
    pub migration: Migration,
    taken_back: bool,
}

/// What becomes of a placement change that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// It is on record already.
    Known(Box<Migration>),
    /// It is written.
    Write(Box<Plan>),
}

/// What is on record, as far as a placement change depends on it.
#[derive(Debug, Clone, Copy)]
pub struct OnRecord<'a> {
    /// The nodes and rings.
    pub placement: &'a Placement,
    /// The stores of nodes.
    pub stores: &'a [StoreOnRecord],
    /// The tenant that the change is about, if there is one that is not deleted.
    pub tenant: Option<&'a Tenant>,
    /// The placement changes that have not ended; also all that are later than one that is to be taken back.
    pub migrations: &'a [Migration],
}

impl Plan {
    /// If the ring gets fewer nodes, how many: no tenant may [have more replicas](Tenant::most_replicas).
    pub fn remaining(&self, placement: &Placement) -> Option<usize> {
        let (_, members) = self.ring.as_ref()?;
        (members.len() < newest(placement).1.len()).then_some(members.len())
    }

    /// A tenant has more replicas than nodes would remain.
    pub fn too_few(&self, remaining: usize, tenant: &TenantId) -> StoreError {
        if self.taken_back {
            return StoreError::Conflict(format!(
                "tenant {tenant} has, or is to have, more replicas than the {remaining} nodes that would remain; lower its \
                 replication factor first"
            ));
        }
        StoreError::Refused(format!(
            "tenant {tenant} has, or is to have, more replicas than the {remaining} nodes that would remain; lower its \
             replication factor, or add a node first"
        ))
    }
}

impl OnRecord<'_> {
    /// The rule of [`MigrationStore::change_placement`](super::MigrationStore::change_placement).
    ///
    /// # Errors
    /// As there, except for the number of replicas that tenants have: see [`Plan::remaining`].
    pub fn plan(&self, change: PlacementChange, now_ms: u64) -> Result<Planned, StoreError> {
        let change = change.recorded();
        let same = |of: &&Migration| {
            of.is_open() && !of.cancel_requested && of.change.includes(&change) && self.holds(&change)
        };
        if let Some(same) = self.migrations.iter().filter(same).max_by_key(|of| of.number) {
            return Ok(Planned::Known(Box::new(same.clone())));
        }
        if self.migrations.iter().filter(|of| of.is_open()).count() >= MIGRATIONS {
            return Err(StoreError::Refused(format!(
                "{MIGRATIONS} placement changes are under way, the most there can be; wait until some have ended"
            )));
        }
        let mut plan = Plan {
            ring: None,
            node: None,
            lost: None,
            tenant: None,
            store: None,
            migration: Migration::pending(change.clone(), newest(self.placement).0, now_ms),
            taken_back: false,
        };
        match change {
            PlacementChange::AddNode(node) => self.plan_joining(&mut plan, node)?,
            PlacementChange::RemoveNode { node, force } => self.plan_leaving(&mut plan, &node, force)?,
            PlacementChange::UpdateNode { node, virtual_nodes, zone } => {
                self.plan_update(&mut plan, &node, virtual_nodes, zone)?;
            }
            PlacementChange::ReplaceStore { node, from, to, .. } => self.plan_replacing(&mut plan, node, from, to)?,
            PlacementChange::ReplicationFactor { tenant, to } => self.plan_factor(&mut plan, &tenant, to, now_ms)?,
            PlacementChange::Generation { tenant, generation } => {
                self.plan_generation(&mut plan, &tenant, generation, now_ms)?;
            }
        }
        Ok(Planned::Write(Box::new(plan)))
    }

    /// False when a later change has undone this one.
    fn holds(&self, change: &PlacementChange) -> bool {
        match change {
            PlacementChange::AddNode(node) => self.is_member(&node.id),
            PlacementChange::RemoveNode { node, .. } => !self.is_member(node),
            PlacementChange::UpdateNode { node, virtual_nodes, zone } => {
                self.member(node).is_some_and(|member| member.updated(*virtual_nodes, zone.as_ref()) == *member)
            }
            PlacementChange::ReplaceStore { .. } => {
                replaces::fate(change, &self.placement.nodes, self.stores).is_open()
            }
            PlacementChange::ReplicationFactor { .. } | PlacementChange::Generation { .. } => true,
        }
    }

    fn plan_joining(&self, plan: &mut Plan, node: StorageNode) -> Result<(), StoreError> {
        rules::node(&node)?;
        if self.node(&node.id).is_some() {
            return Err(rules::node_exists(&node.id));
        }
        if self.placement.nodes.len() >= NODES {
            return Err(rules::too_many_nodes());
        }
        self.next_ring(plan, |members| members.push(node.member()));
        plan.node = Some(node);
        Ok(())
    }

    fn plan_leaving(&self, plan: &mut Plan, node: &NodeId, force: bool) -> Result<(), StoreError> {
        // One that is leaving may be lost before its rows are elsewhere.
        let is_member = self.is_member(node);
        let on_record = self.node(node).filter(|_| is_member || force);
        let missing = || StoreError::Missing(format!("storage node {node} in the newest ring"));
        let on_record = on_record.ok_or_else(missing)?.clone();
        if is_member {
            self.next_ring(plan, |members| members.retain(|member| member.node != *node));
        }
        plan.node = Some(StorageNode { status: NodeStatus::Draining, ..on_record });
        plan.lost = force.then(|| node.clone());
        Ok(())
    }

    fn plan_factor(&self, plan: &mut Plan, id: &TenantId, to: u8, now_ms: u64) -> Result<(), StoreError> {
        let tenant = self.tenant.ok_or_else(|| rules::no_tenant(id))?;
        if !limit::REPLICATION_FACTOR.contains(&to) {
            let range = limit::REPLICATION_FACTOR;
            return Err(StoreError::Refused(format!("replication_factor is {to}; use {range:?}")));
        }
        let nodes = newest(self.placement).1.len();
        if usize::from(to) > nodes {
            return Err(StoreError::Refused(format!(
                "replication_factor is {to}, and the ring has {nodes} nodes; use less, or add nodes first"
            )));
        }
        let is_one = |change: &PlacementChange| matches!(change, PlacementChange::ReplicationFactor { tenant, .. } if tenant == id);
        if let Some(other) = self.migrations.iter().find(|of| of.is_open() && is_one(&of.change)) {
            let number = other.number;
            return Err(StoreError::Conflict(format!(
                "another change of the replication factor of tenant {id} is under way, number {number}; wait until it has \
                 ended, or cancel it"
            )));
        }
        plan.migration.before = tenant.replication_factor;
        plan.tenant = Some(tenant.wishing(to, now_ms));
        Ok(())
    }

    /// The rule of [`MigrationStore::cancel_migration`](super::MigrationStore::cancel_migration). `None`: nothing is to be written.
    ///
    /// # Errors
    /// As there.
    pub fn plan_taking_back(&self, of: &Migration, now_ms: u64) -> Result<Option<Plan>, StoreError> {
        if !of.is_open() || of.cancel_requested {
            return Ok(None);
        }
        let migration = Migration { cancel_requested: true, ..of.clone() };
        let (ring, node, lost, tenant, store) = (None, None, None, None, None);
        let mut plan = Plan { ring, node, lost, tenant, store, migration, taken_back: true };
        if of.change.changes_ring() {
            self.nothing_rests_on(of)?;
        }
        match &of.change {
            PlacementChange::AddNode(StorageNode { id, .. }) if self.is_member(id) => {
                self.next_ring(&mut plan, |members| members.retain(|member| member.node != *id));
                plan.node = self.node(id).map(|node| StorageNode { status: NodeStatus::Draining, ..node.clone() });
            }
            PlacementChange::RemoveNode { node, force: true } => {
                return Err(StoreError::Conflict(format!(
                    "storage node {node} was taken for lost, and its store is not used again; add it with an empty disk instead"
                )));
            }
            PlacementChange::RemoveNode { node: id, force: false } if !self.is_member(id) => {
                let gone = || StoreError::Conflict(format!("storage node {id} has left already; add it again instead"));
                let node = self.node(id).ok_or_else(gone)?.clone();
                self.next_ring(&mut plan, |members| members.push(node.member()));
                plan.node = Some(StorageNode { status: NodeStatus::Active, ..node });
            }
            PlacementChange::UpdateNode { virtual_nodes, zone, .. } => {
                self.plan_no_update(&mut plan, of, virtual_nodes.is_some(), zone.is_some());
            }
            PlacementChange::ReplaceStore { node, .. } => self.plan_keeping(&mut plan, &of.change, node)?,
            PlacementChange::ReplicationFactor { tenant, .. } => {
                let nodes = newest(self.placement).1.len();
                if self.tenant.is_some() && usize::from(of.before) > nodes {
                    return Err(StoreError::Conflict(format!(
                        "tenant {tenant} had {} replicas before, and the ring has only {nodes} nodes now; add nodes first",
                        of.before
                    )));
                }
                plan.tenant = self.tenant.map(|tenant| tenant.wishing(of.before, now_ms));
            }
            PlacementChange::Generation { generation, .. } => {
                self.plan_no_generation(&mut plan, *generation, now_ms)?
            }
            // The node was removed, or added, while nothing was stored: what this change has made is gone already.
            PlacementChange::AddNode(_) | PlacementChange::RemoveNode { .. } => {}
        }
        Ok(Some(plan))
    }

    fn nothing_rests_on(&self, of: &Migration) -> Result<(), StoreError> {
        let rests = |other: &&Migration| {
            let given_up = other.cancel_requested || other.status == MigrationStatus::Cancelled;
            other.number > of.number && other.change.changes_ring() && !given_up
        };
        match self.migrations.iter().find(rests) {
            None => Ok(()),
            Some(other) => Err(StoreError::Conflict(format!(
                "placement change {} rests on this one: cancel that first, or make a further change instead",
                other.number
            ))),
        }
    }

    fn next_ring(&self, plan: &mut Plan, change: impl FnOnce(&mut Vec<Member>)) {
        let (version, members) = newest(self.placement);
        let mut members = members.to_vec();
        change(&mut members);
        members.sort();
        if !plan.taken_back {
            plan.migration.ring = version + 1;
        }
        plan.ring = Some((version + 1, members));
    }

    fn is_member(&self, node: &NodeId) -> bool {
        self.member(node).is_some()
    }

    fn member(&self, node: &NodeId) -> Option<&Member> {
        newest(self.placement).1.iter().find(|member| member.node == *node)
    }

    fn node(&self, id: &NodeId) -> Option<&StorageNode> {
        self.placement.nodes.iter().map(|on_record| &on_record.node).find(|node| node.id == *id)
    }
}

fn newest(placement: &Placement) -> (u64, &[Member]) {
    placement.rings.last().map_or((0, &[]), |ring| (ring.version, &ring.members))
}

/// How many of the oldest that have ended are forgotten, so that one more has room.
pub fn superfluous(on_record: usize) -> usize {
    (on_record + 1).saturating_sub(MIGRATIONS)
}

/// The rule of [`MigrationStore::forget_rings`](super::MigrationStore::forget_rings): versions of the ring, and nodes, that are forgotten
/// if only these versions are referred to. New tenants are placed on the newest, so it is kept.
pub fn forgotten(placement: &Placement, referred: &BTreeSet<u64>) -> (Vec<u64>, Vec<NodeId>) {
    let newest = newest(placement).0;
    let (kept, forgotten): (Vec<_>, Vec<_>) =
        placement.rings.iter().partition(|ring| ring.version == newest || referred.contains(&ring.version));
    let members: BTreeSet<&NodeId> =
        kept.iter().flat_map(|ring| ring.members.iter().map(|member| &member.node)).collect();
    let left = placement.nodes.iter().map(|on_record| &on_record.node.id).filter(|id| !members.contains(id));
    (forgotten.iter().map(|ring| ring.version).collect(), left.cloned().collect())
}

/// A page of leftovers, of one more than [`LEFTOVERS`] if there are more. The next page begins after a tenant and a node, so none ends
/// within those of one node.
pub fn leftovers(mut page: Vec<Leftover>) -> Vec<Leftover> {
    if page.len() > LEFTOVERS
        && let Some(Leftover { tenant, node, .. }) = page.pop()
    {
        page.truncate(LEFTOVERS);
        let others = page.iter().take_while(|left| left.tenant != tenant || left.node != node).count();
        // As many of one node cannot be: there is one for each pair of placements that it had.
        page.truncate(if others == 0 { LEFTOVERS } else { others });
    }
    page
}

/// A placement is not on record, or not within the limits.
///
/// # Errors
/// It is not.
pub fn may_move(to: Placed, placement: &Placement) -> Result<(), StoreError> {
    let Placed { ring, replication_factor, .. } = to;
    if placement.rings.iter().all(|known| known.version != ring) {
        return Err(StoreError::Refused(format!(
            "version {ring} of the ring is not on record; read the placement again"
        )));
    }
    if !limit::REPLICATION_FACTOR.contains(&replication_factor) {
        let range = limit::REPLICATION_FACTOR;
        return Err(StoreError::Refused(format!("replication_factor is {replication_factor}; use {range:?}")));
    }
    Ok(())
}

/// No placement change of this number is on record.
pub fn no_migration(number: u64) -> StoreError {
    StoreError::Missing(format!("placement change {number}"))
}

mod changes;
mod generations;
pub mod replaces;
mod updates;

#[cfg(test)]
mod tests;
