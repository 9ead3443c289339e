//! What is done and what is waited for, for people, and how far each placement change is, on record.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::sleep;
use witan_coordinate::World;
use witan_kernel::name::{NodeId, TenantId};
use witan_kernel::placement::Both;
use witan_kernel::placement::leader::target;
use witan_kernel::port::moves::replaces::{Fate, fate};
use witan_kernel::port::{
    Leftover, MIGRATION_TEXT_BYTES, MIGRATIONS, Migration, MigrationProgress, MigrationStatus, PAGE, Placement,
    PlacementChange, StoreError, StoreOnRecord,
};
use witan_kernel::scan::Ranges;
use witan_kernel::sync::lock;
use witan_kernel::tenant::Tenant;

use super::Moves;

/// How often it is put on record how far changes are: as often as somebody who watches looks.
const EVERY: Duration = Duration::from_secs(2);

/// What the leader does and waits for.
#[derive(Default)]
pub(super) struct Board(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    doing: Option<Doing>,
    waits: BTreeMap<TenantId, String>,
    leftovers: BTreeMap<(TenantId, NodeId), String>,
    /// Why the copy under way is slow, or pauses.
    slowed: Option<String>,
    /// Records that were compared, and bytes that were sent, since this was last taken.
    moved: BTreeMap<TenantId, (u64, u64)>,
}

/// What is done for one tenant.
struct Doing {
    tenant: TenantId,
    what: String,
    copy: Option<Copying>,
}

/// A pass of the first copy.
#[derive(Clone, Copy, Default)]
struct Copying {
    /// Records that were compared.
    records: u64,
    /// Tokens that are to be walked, of 2^64.
    all: u128,
    /// Those that were.
    tokens: u128,
    /// Whether its records count towards the progress of changes: those of further passes are the same again.
    counts: bool,
}

impl Copying {
    /// Records that there are: keys are spread evenly over the tokens.
    fn estimate(&self) -> u64 {
        let all = self.all as f64 * self.records as f64 / self.tokens.max(1) as f64;
        (all as u64).max(self.records)
    }
}

impl Board {
    pub(super) fn clear(&self) {
        *lock(&self.0) = Shown::default();
    }

    /// This is done for a tenant.
    pub(super) fn doing(&self, tenant: &TenantId, what: &str) {
        self.show(tenant, what.to_owned(), None);
    }

    /// The same, with what has to be repeated.
    pub(super) fn doing_with(&self, tenant: &TenantId, what: &str, why: &str) {
        self.show(tenant, format!("{what}; once more, because {why}"), None);
    }

    /// A pass of a tenant's first copy over these ranges begins.
    pub(super) fn copies(&self, tenant: &TenantId, ranges: &[Both], is_first: bool) {
        let all = ranges.iter().map(|range| u128::from(range.tokens.1 - range.tokens.0) + 1).sum();
        self.show(tenant, String::new(), Some(Copying { all, counts: is_first, ..Copying::default() }));
    }

    fn show(&self, tenant: &TenantId, what: String, copy: Option<Copying>) {
        let mut shown = lock(&self.0);
        shown.waits.remove(tenant);
        shown.slowed = None;
        shown.doing = Some(Doing { tenant: tenant.clone(), what, copy });
    }

    /// The copy under way is slowed down, or pauses, because of this; `None`: no longer.
    pub(super) fn slowed(&self, why: Option<String>) {
        lock(&self.0).slowed = why;
    }

    /// Nothing is done for a tenant at present.
    pub(super) fn rests(&self, tenant: &TenantId) {
        let mut shown = lock(&self.0);
        if shown.doing.as_ref().is_some_and(|doing| doing.tenant == *tenant) {
            shown.doing = None;
        }
    }

    /// A tenant's move waits.
    pub(super) fn waits(&self, tenant: &TenantId, why: String) {
        lock(&self.0).waits.insert(tenant.clone(), why);
    }

    /// Only these tenants are to be moved.
    pub(super) fn retain_tenants(&self, is_one: impl Fn(&TenantId) -> bool) {
        lock(&self.0).waits.retain(|tenant, _| is_one(tenant));
    }

    /// What leftovers wait for.
    pub(super) fn left(&self, leftovers: BTreeMap<(TenantId, NodeId), String>) {
        lock(&self.0).leftovers = leftovers;
    }

    /// A range of this number of tokens, less one, was walked.
    pub(super) fn walked(&self, tenant: &TenantId, records: u64, bytes: u64, tokens: u64) {
        let mut shown = lock(&self.0);
        let mut counts = false;
        if let Some(Doing { copy: Some(copy), .. }) = shown.doing.as_mut().filter(|doing| doing.tenant == *tenant) {
            copy.records += records;
            copy.tokens += u128::from(tokens) + 1;
            counts = copy.counts;
        }
        let moved = shown.moved.entry(tenant.clone()).or_default();
        moved.0 += if counts { records } else { 0 };
        moved.1 += bytes;
    }
}

impl Shown {
    /// What is said about the change, and the records that the pass under way has still to compare.
    fn about(&self, concerns: impl Fn(&TenantId) -> bool) -> (String, u64) {
        if let Some(doing) = self.doing.as_ref().filter(|doing| concerns(&doing.tenant)) {
            let tenant = &doing.tenant;
            return match doing.copy {
                None => (format!("tenant {tenant}: {}", doing.what), 0),
                Some(copy) => {
                    let (records, all) = (copy.records, copy.estimate());
                    let why = self.slowed.as_ref().map_or_else(String::new, |why| format!("; {why}"));
                    let message =
                        format!("copies tenant {tenant}: {} of about {} records{why}", grouped(records), grouped(all));
                    (message, if copy.counts { all - records } else { 0 })
                }
            };
        }
        let wait = self.waits.iter().find(|(tenant, _)| concerns(tenant));
        let mut left = self.leftovers.iter().filter(|((tenant, _), _)| concerns(tenant));
        let message = match (wait, left.next()) {
            (Some((tenant, why)), _) => format!("tenant {tenant}: {why}"),
            (None, Some(((tenant, node), why))) => {
                let one = format!("waits until node {node} has dropped what it has lost of tenant {tenant}: {why}");
                match left.count() {
                    0 => one,
                    others => format!("{one} (and {others} more: witan migration leftovers)"),
                }
            }
            (None, None) => String::new(),
        };
        (message, 0)
    }
}

/// A number with commas between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What all changes are judged by.
struct View {
    /// Tenants that are not deleted, read before the leftovers: those of a move that has ended are among them.
    tenants: Vec<Tenant>,
    leftovers: Vec<Leftover>,
    newest_ring: u64,
    stores: Vec<StoreOnRecord>,
    /// Records of all tenants, an estimate.
    keys: u64,
}

/// How far a change is.
#[derive(Debug, PartialEq, Eq)]
struct Far {
    status: MigrationStatus,
    done: u64,
    total: u64,
}

fn concerns(migration: &Migration, id: &TenantId) -> bool {
    match &migration.change {
        PlacementChange::AddNode(_) | PlacementChange::RemoveNode { .. } | PlacementChange::UpdateNode { .. } => true,
        PlacementChange::ReplicationFactor { tenant, .. } | PlacementChange::Generation { tenant, .. } => tenant == id,
        PlacementChange::ReplaceStore { .. } => false,
    }
}

impl View {
    fn far(&self, migration: &Migration) -> Far {
        let concerned = || self.tenants.iter().filter(|tenant| concerns(migration, &tenant.id));
        let total = concerned().count() as u64;
        let done = concerned().filter(|tenant| self.is_done(migration, tenant)).count() as u64;
        let has_left = self.leftovers.iter().any(|left| self.is_of(migration, left));
        let is_of_deleted = migration.change.tenant().is_some() && total == 0;
        let status = if done == total && !has_left {
            let gives_up = migration.cancel_requested || is_of_deleted;
            if gives_up { MigrationStatus::Cancelled } else { MigrationStatus::Completed }
        } else if migration.status == MigrationStatus::InProgress
            || has_left
            || concerned().any(|tenant| tenant.moving.is_some())
        {
            MigrationStatus::InProgress
        } else {
            MigrationStatus::Pending
        };
        Far { status, done, total }
    }

    fn is_done(&self, migration: &Migration, tenant: &Tenant) -> bool {
        match (&migration.change, migration.cancel_requested) {
            (PlacementChange::ReplicationFactor { to, .. }, false) => {
                tenant.replication_factor == *to && tenant.wanted_factor.is_none()
            }
            (PlacementChange::ReplicationFactor { .. }, true) => {
                let is_back = |factor: u8| factor == migration.before;
                is_back(tenant.replication_factor)
                    && tenant.wanted_factor.is_none_or(is_back)
                    && tenant.moving.is_none_or(|moving| is_back(moving.to.replication_factor))
            }
            (PlacementChange::Generation { generation, .. }, false) => tenant.generation >= *generation,
            (PlacementChange::Generation { generation, .. }, true) => {
                tenant.wanted_generation != Some(*generation)
                    && tenant.moving.is_none_or(|moving| moving.to.generation != *generation)
            }
            (_, false) => tenant.ring >= migration.ring,
            // Everything is on the ring that was made when it was taken back, or on a later one.
            (_, true) => tenant.moving.is_none() && tenant.placed() == target(tenant, self.newest_ring),
        }
    }

    /// Whether a leftover is of this change.
    fn is_of(&self, migration: &Migration, left: &Leftover) -> bool {
        let before = if migration.cancel_requested { self.newest_ring } else { migration.ring };
        match &migration.change {
            PlacementChange::ReplicationFactor { tenant, .. } => left.tenant == *tenant,
            PlacementChange::Generation { tenant, .. } => {
                left.tenant == *tenant && left.from.generation != left.to.generation
            }
            _ => left.from.ring.min(left.to.ring) < before,
        }
    }
}

/// What was put on record of each change that has not ended.
#[derive(Default)]
struct Reporter {
    /// The revision at which there was no such change.
    idle: Option<u64>,
    noted: BTreeMap<u64, (MigrationStatus, MigrationProgress)>,
}

impl<W: World> Moves<W> {
    /// Puts on record how far changes are, for as long as it is polled.
    pub(super) async fn keep_status(&self) -> Infallible {
        let mut reporter = Reporter::default();
        loop {
            if let Err(error) = self.report(&mut reporter).await {
                tracing::debug!(%error, "how far placement changes are could not be put on record");
            }
            sleep(EVERY).await;
        }
    }

    async fn report(&self, reporter: &mut Reporter) -> Result<(), StoreError> {
        let Some(revision) = self.later_than(reporter.idle).await? else { return Ok(()) };
        reporter.idle = None;
        let all = self.metadata().migrations(None, MIGRATIONS as u32).await?;
        let mut open: Vec<Migration> = all.into_iter().filter(|migration| !migration.status.has_ended()).collect();
        reporter.noted.retain(|number, _| open.iter().any(|migration| migration.number == *number));
        let moved = std::mem::take(&mut lock(&self.board.0).moved);
        let placement = self.metadata().placement().await?;
        if open.is_empty() {
            self.forget(&placement).await?;
            reporter.idle = Some(revision);
            return Ok(());
        }
        open.sort_by_key(|migration| migration.number);
        let view = self.view(&placement).await?;
        for migration in open {
            if let PlacementChange::ReplaceStore { node, .. } = &migration.change {
                self.note_replacement(&view, &placement, &migration, node).await?;
            } else {
                self.note(reporter, &view, migration, &moved).await?;
            }
        }
        Ok(())
    }

    /// Forgets versions of the ring and nodes that nothing refers to any longer.
    async fn forget(&self, placement: &Placement) -> Result<(), StoreError> {
        let newest = placement.rings.iter().max_by_key(|ring| ring.version);
        let is_member =
            |node: &NodeId| newest.is_some_and(|ring| ring.members.iter().any(|member| member.node == *node));
        if placement.rings.len() > 1 || placement.nodes.iter().any(|node| !is_member(&node.node.id)) {
            self.metadata().forget_rings(self.now_ms()).await?;
        }
        Ok(())
    }

    async fn view(&self, placement: &Placement) -> Result<View, StoreError> {
        let (mut tenants, mut after) = (Vec::new(), None);
        loop {
            let page = self.metadata().tenants(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            tenants.extend(page.into_iter().filter(|tenant| tenant.deleted_at_ms.is_none()));
        }
        let leftovers = self.all_leftovers().await?;
        let stores = self.metadata().stores().await?;
        let newest_ring = placement.rings.iter().map(|ring| ring.version).max().unwrap_or_default();
        let keys = keys(placement, &stores, &tenants);
        Ok(View { tenants, leftovers, newest_ring, stores, keys })
    }

    pub(super) async fn all_leftovers(&self) -> Result<Vec<Leftover>, StoreError> {
        let mut all: Vec<Leftover> = Vec::new();
        loop {
            let after = all.last().map(|left| (left.tenant.clone(), left.node.clone()));
            let page = self.metadata().leftovers(None, after).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// Ends a replacement of a store, as what is on record says. How far it is, the coordinator says that fills it, unless nobody can.
    async fn note_replacement(
        &self,
        view: &View,
        placement: &Placement,
        migration: &Migration,
        node: &NodeId,
    ) -> Result<(), StoreError> {
        let mut progress = migration.progress.clone();
        let (status, message) = match fate(&migration.change, &placement.nodes, &view.stores) {
            Fate::Whole => (MigrationStatus::Completed, String::new()),
            Fate::GivenUp(_) if migration.cancel_requested => (MigrationStatus::Cancelled, String::new()),
            Fate::GivenUp(why) => (MigrationStatus::Cancelled, why.to_owned()),
            Fate::Filling => {
                let is_there = self.upkeep.coordinator.ports().replicas.standing(node).is_some();
                let message = match (is_there, migration.status) {
                    (false, _) => format!("waits for node {node}: it cannot be reached"),
                    (true, MigrationStatus::Pending) => "waits for a coordinator that fills the store".to_owned(),
                    (true, _) => return Ok(()),
                };
                (migration.status, message)
            }
        };
        if status == MigrationStatus::Completed {
            // It was an estimate.
            progress.keys_done = progress.keys_done.max(progress.keys_total);
        }
        if (status, &message) != (migration.status, &progress.message) {
            progress.message = message;
            self.metadata().note_migration(migration.number, status, progress, self.now_ms()).await?;
        }
        if status.has_ended() {
            tracing::info!(number = migration.number, status = status.as_str(), %node, "replacing a store has ended");
        }
        Ok(())
    }

    async fn note(
        &self,
        reporter: &mut Reporter,
        view: &View,
        migration: Migration,
        moved: &BTreeMap<TenantId, (u64, u64)>,
    ) -> Result<(), StoreError> {
        let Far { status, done, total } = view.far(&migration);
        let (number, mut progress) = (migration.number, migration.progress.clone());
        for (records, bytes) in moved.iter().filter(|(id, _)| concerns(&migration, id)).map(|(_, moved)| moved) {
            progress.keys_done += records;
            progress.bytes_done += bytes;
        }
        let (message, left) = lock(&self.board.0).about(|id| concerns(&migration, id));
        let known = match migration.change {
            PlacementChange::ReplicationFactor { .. } | PlacementChange::Generation { .. } => 0,
            _ => view.keys,
        };
        progress.keys_total = (progress.keys_done + left).max(known).max(progress.keys_total);
        if status == MigrationStatus::Completed {
            // It was an estimate.
            progress.keys_done = progress.keys_done.max(progress.keys_total);
        }
        (progress.tenants_done, progress.tenants_total) = (done, total);
        progress.message = match status {
            MigrationStatus::Completed => String::new(),
            MigrationStatus::Cancelled if !migration.cancel_requested => "the tenant was deleted".to_owned(),
            MigrationStatus::Cancelled => String::new(),
            _ => shortened(message),
        };
        let noted = (status, progress);
        if reporter.noted.get(&number) == Some(&noted) {
            return Ok(());
        }
        self.metadata().note_migration(number, status, noted.1.clone(), self.now_ms()).await?;
        if status.has_ended() {
            reporter.noted.remove(&number);
            tracing::info!(number, status = status.as_str(), "a placement change has ended");
            self.metadata().forget_rings(self.now_ms()).await?;
        } else {
            reporter.noted.insert(number, noted);
        }
        Ok(())
    }
}

/// Records of all tenants: those that the stores on record have reported last, by the average number of replicas.
fn keys(placement: &Placement, stores: &[StoreOnRecord], tenants: &[Tenant]) -> u64 {
    let of = |id| stores.iter().find(|store| Some(store.store) == id).map_or(0, |store| store.keys);
    let rows: u64 = placement.nodes.iter().map(|node| of(node.store_id)).sum();
    let factors: u64 = tenants.iter().map(|tenant| u64::from(tenant.replication_factor)).sum();
    rows.saturating_mul(tenants.len() as u64).checked_div(factors).unwrap_or(0)
}

/// As much of a text as is kept.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MIGRATION_TEXT_BYTES));
    text
}

#[cfg(test)]
mod tests;
