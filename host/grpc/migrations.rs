//! Calls about migrations: changes of the nodes or of a replication factor that move records.

use std::collections::BTreeMap;
use std::time::Instant;

use tonic::{Code, Status};
use witan_kernel::name::{Invalid, NodeId, TenantId, shown};
use witan_kernel::port::{Migration, MigrationProgress, MigrationStatus, PlacementChange, StoreError};
use witan_kernel::ring::Member;
use witan_wire::v1;
use witan_wire::v1::plan_migration_request::Change;

use super::CoordinatorApi;
use super::convert::migration_id as name;
use super::guard::denied;
use super::nodes::{node_of, node_status, replacement_of, update_of};
use super::status::{invalid, refused};
use super::tenants::{page_size, replication_factor, seconds, status};
use crate::access::caller::Caller;
use witan_control::{NodeUpdate, Plan, PlannedFill, PlannedNode, PlannedSource, PlannedZone, Refused};
use witan_coordinate::World;

impl<W: World> CoordinatorApi<W> {
    pub(super) async fn migration_status(
        &self,
        caller: Caller,
        request: v1::GetMigrationStatusRequest,
    ) -> Result<v1::GetMigrationStatusResponse, Status> {
        let _turn = self.catalog.lookups().take(bound(&caller)).map_err(|error| status(&error))?;
        let migration = self.visible(&caller, &request.migration_id).await?;
        self.reported(migration).await
    }

    pub(super) async fn list_migrations(
        &self,
        caller: Caller,
        request: v1::ListMigrationsRequest,
    ) -> Result<v1::ListMigrationsResponse, Status> {
        let limit = page_size(request.page_size).map_err(|error| invalid(&error))?;
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(number(token).ok_or_else(|| {
                let remedy = "send the next_page_token of the previous page";
                invalid(&Invalid::new(
                    "page_token",
                    format!("{} does not belong to this listing", shown(token)),
                    remedy,
                ))
            })?),
        };
        let allowed = match bound(&caller) {
            _ if caller.is_operator() => caller.may_all(),
            Some(tenant) => caller.may(tenant),
            None => Ok(()),
        };
        allowed.map_err(|refused| denied(&caller, &refused))?;
        let _turn = self.catalog.lookups().take(bound(&caller)).map_err(|error| status(&error))?;
        let page = self.catalog.migrations(before, limit).await.map_err(|error| status(&error))?;
        let is_full = page.len() == limit as usize;
        let next = page.last().filter(|_| is_full).map(|last| name(last.number));
        let page: Vec<Migration> = page.into_iter().filter(|migration| is_for(&caller, migration)).collect();
        let phases = self.catalog.phases(&page).await.map_err(|error| status(&error))?;
        let now_ms = self.now_ms();
        Ok(v1::ListMigrationsResponse {
            migrations: page.iter().map(|migration| response(migration, &phases, now_ms)).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }

    pub(super) async fn cancel_migration(
        &self,
        caller: Caller,
        request: v1::CancelMigrationRequest,
    ) -> Result<v1::GetMigrationStatusResponse, Status> {
        let migration = self.visible(&caller, &request.migration_id).await?;
        let turn = match &migration.change {
            PlacementChange::ReplicationFactor { tenant, .. } | PlacementChange::Generation { tenant, .. } => {
                self.change(&caller, tenant)?
            }
            _ => self.operators_change()?,
        };
        let cancelled =
            self.catalog.cancel_migration(turn, migration.number, request.confirm_undo, self.now_ms()).await;
        self.reported(cancelled.map_err(|error| migration_refused(&error))?).await
    }

    pub(super) async fn plan_migration(
        &self,
        request: v1::PlanMigrationRequest,
        until: Instant,
    ) -> Result<v1::PlanMigrationResponse, Status> {
        if let Some(Change::Hook(hook)) = request.change {
            let _turn = self.catalog.lookups().take(None).map_err(|error| status(&error))?;
            return self.hooks.plan_hook(hook, until).await;
        }
        let _turn = self.catalog.lookups().take(None).map_err(|error| status(&error))?;
        let plan = match request.change {
            Some(Change::Replace(replace)) => {
                let replacement = replacement_of(replace).map_err(|error| invalid(&error))?;
                self.catalog.plan_replacement(&replacement).await
            }
            change => {
                let change = self.planned(change).map_err(|error| invalid(&error))?;
                self.catalog.plan(&change).await
            }
        };
        Ok(plan_response(plan.map_err(|error| node_status(&error))?, self.upkeep.healing_rate()))
    }

    fn planned(&self, change: Option<Change>) -> Result<PlacementChange, Invalid> {
        match change {
            Some(Change::Add(add)) => node_of(add, self.fallbacks.load().virtual_nodes).map(PlacementChange::AddNode),
            Some(Change::Remove(remove)) => {
                Ok(PlacementChange::RemoveNode { node: NodeId::new(remove.node_id)?, force: remove.force })
            }
            Some(Change::Factor(factor)) => Ok(PlacementChange::ReplicationFactor {
                tenant: TenantId::new(factor.tenant_id)?,
                to: replication_factor("new_replication_factor", factor.new_replication_factor)?,
            }),
            Some(Change::Update(update)) => update_of(update).map(NodeUpdate::change),
            Some(Change::Replace(_) | Change::Hook(_)) | None => {
                Err(Invalid::new("change", "is missing", "send add, remove, update, replace, factor or hook"))
            }
        }
    }

    /// The migration of this name. Whoever may not see it finds none.
    async fn visible(&self, caller: &Caller, id: &str) -> Result<Migration, Status> {
        let number = number(id).ok_or_else(|| not_found(id))?;
        let found = self.catalog.migration(number).await;
        let found = found.map_err(|error| match error {
            Refused::Store(StoreError::Missing(_)) => not_found(id),
            error => status(&error),
        })?;
        let allowed = match &found.change {
            _ if !is_for(caller, &found) => return Err(not_found(id)),
            PlacementChange::ReplicationFactor { tenant, .. } | PlacementChange::Generation { tenant, .. } => {
                caller.may(tenant)
            }
            PlacementChange::AddNode(_)
            | PlacementChange::RemoveNode { .. }
            | PlacementChange::UpdateNode { .. }
            | PlacementChange::ReplaceStore { .. } => caller.may_all(),
        };
        allowed.map_err(|refused| denied(caller, &refused))?;
        Ok(found)
    }

    async fn reported(&self, migration: Migration) -> Result<v1::GetMigrationStatusResponse, Status> {
        let phases = self.catalog.phases(std::slice::from_ref(&migration)).await.map_err(|error| status(&error))?;
        Ok(response(&migration, &phases, self.now_ms()))
    }
}

/// The tenant to which a caller who is no operator is bound.
fn bound(caller: &Caller) -> Option<&TenantId> {
    caller.credential().tenant().filter(|_| !caller.is_operator())
}

fn is_for(caller: &Caller, migration: &Migration) -> bool {
    sees(caller.is_operator(), caller.credential().tenant(), migration)
}

/// Operators see every migration; administrators those of their tenant's replication factor and routing hook, or of every one's. `own`:
/// the tenant to which a credential is bound.
fn sees(is_operator: bool, own: Option<&TenantId>, migration: &Migration) -> bool {
    match &migration.change {
        _ if is_operator => true,
        PlacementChange::ReplicationFactor { tenant, .. } | PlacementChange::Generation { tenant, .. } => {
            own.is_none_or(|own| own == tenant)
        }
        PlacementChange::AddNode(_)
        | PlacementChange::RemoveNode { .. }
        | PlacementChange::UpdateNode { .. }
        | PlacementChange::ReplaceStore { .. } => false,
    }
}

/// The number in a migration's name.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("m-")?;
    // Each has one name: neither "m-+7" nor "m-07" is one.
    digits.parse().ok().filter(|number: &u64| number.to_string() == digits)
}

fn not_found(id: &str) -> Status {
    let message = format!("there is no migration {}; of those that have ended, the oldest are forgotten", shown(id));
    refused(Code::NotFound, "MIGRATION_NOT_FOUND", message)
}

fn migration_refused(error: &Refused) -> Status {
    match error {
        Refused::Store(StoreError::Missing(_)) => refused(Code::NotFound, "MIGRATION_NOT_FOUND", error.to_string()),
        error => node_status(error),
    }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn response(
    migration: &Migration,
    phases: &BTreeMap<u64, &'static str>,
    now_ms: u64,
) -> v1::GetMigrationStatusResponse {
    let Migration { change, progress, .. } = migration;
    let (kind, node, tenant, to, force) = match change {
        PlacementChange::AddNode(node) => ("add_node", Some(&node.id), None, 0, false),
        PlacementChange::RemoveNode { node, force } => ("remove_node", Some(node), None, 0, *force),
        PlacementChange::UpdateNode { node, .. } => (kind_of_update(migration), Some(node), None, 0, false),
        PlacementChange::ReplaceStore { node, .. } => ("replace_store", Some(node), None, 0, false),
        PlacementChange::ReplicationFactor { tenant, to } => ("replication_factor", None, Some(tenant), *to, false),
        PlacementChange::Generation { tenant, .. } => ("routing_hook", None, Some(tenant), 0, false),
    };
    let updated = updated(migration);
    let (was, is) = updated.unzip();
    v1::GetMigrationStatusResponse {
        success: true,
        migration_id: name(migration.number),
        r#type: kind.to_owned(),
        node_id: node.map(ToString::to_string).unwrap_or_default(),
        status: migration.status.as_str().to_owned(),
        progress: Some(v1::MigrationProgress {
            keys_migrated: whole(progress.keys_done),
            total_keys: whole(progress.keys_total),
            percentage: percentage(migration.status, progress),
            bytes_migrated: whole(progress.bytes_done),
            total_bytes: whole(total_bytes(progress)),
        }),
        started_at: migration.started_at_ms.map_or(0, seconds),
        estimated_completion: estimated_ms(migration, now_ms).map_or(0, seconds),
        error_message: error_message(migration),
        phase: phases.get(&migration.number).copied().unwrap_or_default().to_owned(),
        tenant_id: tenant.map(ToString::to_string).unwrap_or_default(),
        message: progress.message.clone(),
        cancel_requested: migration.cancel_requested,
        created_at: seconds(migration.created_at_ms),
        finished_at: migration.finished_at_ms.map_or(0, seconds),
        tenants_done: whole(progress.tenants_done),
        tenants_total: whole(progress.tenants_total),
        old_replication_factor: i32::from(migration.before),
        new_replication_factor: i32::from(to),
        force,
        old_virtual_nodes: was.as_ref().map_or(0, virtual_nodes),
        new_virtual_nodes: is.as_ref().map_or(0, virtual_nodes),
        old_zone: was.map(|was| was.zone.as_str().to_owned()).unwrap_or_default(),
        new_zone: is.map(|is| is.zone.as_str().to_owned()).unwrap_or_default(),
    }
}

/// Why one has failed.
fn error_message(migration: &Migration) -> String {
    let has_failed = migration.status == MigrationStatus::Failed;
    if has_failed { migration.progress.message.clone() } else { String::new() }
}

/// What an updated node was in the ring, and what it is to be.
fn updated(migration: &Migration) -> Option<(Member, Member)> {
    let PlacementChange::UpdateNode { virtual_nodes, zone, .. } = &migration.change else { return None };
    let was = migration.was.clone()?;
    let is = was.updated(*virtual_nodes, zone.as_ref());
    Some((was, is))
}

fn kind_of_update(migration: &Migration) -> &'static str {
    if updated(migration).is_some_and(|(was, is)| was.zone != is.zone) { "zones" } else { "weight" }
}

fn virtual_nodes(member: &Member) -> i32 {
    i32::try_from(member.virtual_nodes).unwrap_or(i32::MAX)
}

/// Never above 99 before everything is done, also what is left over. It does not fall: it is a share of the keys throughout, also before
/// there is an estimate of them, which a share of the tenants could exceed.
fn percentage(status: MigrationStatus, progress: &MigrationProgress) -> f32 {
    match (status, progress.keys_total) {
        (MigrationStatus::Completed, _) => 100.0,
        (_, 0) => 0.0,
        (_, total) => (progress.keys_done as f64 * 100.0 / total as f64).min(99.0) as f32,
    }
}

/// As many bytes for each record that is left as for those so far.
fn total_bytes(progress: &MigrationProgress) -> u64 {
    let MigrationProgress { keys_done, keys_total, bytes_done, .. } = *progress;
    if keys_done == 0 {
        return 0;
    }
    let total = u128::from(bytes_done) * u128::from(keys_total.max(keys_done)) / u128::from(keys_done);
    u64::try_from(total).unwrap_or(u64::MAX)
}

/// When a migration ends if it goes on as fast as it has so far; `None`: nothing has moved yet, or it has ended.
fn estimated_ms(migration: &Migration, now_ms: u64) -> Option<u64> {
    let MigrationProgress { keys_done, keys_total, .. } = migration.progress;
    let started = migration.started_at_ms.filter(|_| migration.status == MigrationStatus::InProgress)?;
    let (elapsed, left) = (now_ms.saturating_sub(started), keys_total.saturating_sub(keys_done));
    if keys_done == 0 {
        return None;
    }
    let more = u128::from(elapsed) * u128::from(left) / u128::from(keys_done);
    Some(now_ms.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)))
}

/// `rate`: bytes per second that healing reads, each record counting as more than it has; 0: unlimited.
fn fill_response(fill: PlannedFill, rate: u64) -> v1::PlannedFill {
    let bytes = fill.keys.saturating_mul(fill.bytes_per_key);
    let read: u64 = fill.sources.iter().map(|source| source.keys).fold(0, u64::saturating_add);
    let charged = read.saturating_mul(fill.bytes_per_key.saturating_add(witan_upkeep::RECORD_BYTES));
    let source = |of: PlannedSource| v1::PlannedSource {
        node_id: of.node.to_string(),
        keys: whole(of.keys),
        reachable: of.reachable,
    };
    v1::PlannedFill {
        keys: whole(fill.keys),
        bytes: whole(bytes),
        seconds: whole(charged.checked_div(rate).unwrap_or(0)),
        sources: fill.sources.into_iter().map(source).collect(),
    }
}

fn plan_response(plan: Plan, rate: u64) -> v1::PlanMigrationResponse {
    let node = |node: PlannedNode| v1::PlannedNode {
        node_id: node.node.to_string(),
        keys_received: whole(node.received),
        keys_dropped: whole(node.dropped),
        share_before: node.share_before,
        share_after: node.share_after,
        disk_usage_percent: node.disk_percent,
        disk_usage_percent_after: node.disk_percent_after,
    };
    let zone = |of: PlannedZone| v1::PlannedZone {
        zone: of.zone.as_str().to_owned(),
        replication_factor: i32::from(of.replication_factor),
        lost_before: of.lost_before,
        lost_after: of.lost_after,
    };
    v1::PlanMigrationResponse {
        nodes: plan.nodes.into_iter().map(node).collect(),
        moved_share: plan.moved_share,
        least_share: plan.least_share,
        tenants: whole(plan.tenants),
        problems: plan.problems,
        zones: plan.zones.into_iter().map(zone).collect(),
        fill: plan.fill.map(|fill| fill_response(fill, rate)),
        hook: None,
    }
}

#[cfg(test)]
mod tests {
    use witan_kernel::name::Zone;

    use super::*;

    fn migration(change: PlacementChange) -> Migration {
        let began = MigrationStatus::InProgress;
        Migration { number: 1, status: began, started_at_ms: Some(10_000), ..Migration::pending(change, 1, 0) }
    }

    #[test]
    fn an_administrator_sees_the_factors_of_its_tenant_only() {
        let (own, other) = (TenantId::new("own").unwrap(), TenantId::new("other").unwrap());
        let of_own = migration(PlacementChange::ReplicationFactor { tenant: own.clone(), to: 3 });
        let of_nodes = migration(PlacementChange::RemoveNode { node: NodeId::new("n1").unwrap(), force: true });
        assert!(sees(true, None, &of_own) && sees(true, None, &of_nodes), "operators");
        assert!(sees(false, Some(&own), &of_own) && !sees(false, Some(&other), &of_own));
        assert!(sees(false, None, &of_own), "an administrator of all tenants");
        assert!(!sees(false, None, &of_nodes) && !sees(false, Some(&own), &of_nodes));
    }

    #[test]
    fn an_update_is_named_after_what_it_changes() {
        let node = NodeId::new("n1").unwrap();
        let update = |virtual_nodes, zone: Option<&str>| {
            let zone = zone.map(|zone| Zone::new(zone).unwrap());
            let change = PlacementChange::UpdateNode { node: node.clone(), virtual_nodes, zone };
            let was = Some(Member { node: node.clone(), virtual_nodes: 150, zone: Zone::new("a").unwrap() });
            let shown = response(&Migration { was, ..migration(change) }, &BTreeMap::new(), 0);
            (shown.r#type, shown.old_virtual_nodes, shown.new_virtual_nodes, shown.old_zone, shown.new_zone)
        };
        let of = |kind: &str, to, zone: &str| (kind.to_owned(), 150, to, "a".to_owned(), zone.to_owned());
        assert_eq!(update(Some(75), None), of("weight", 75, "a"));
        assert_eq!(update(Some(75), Some("a")), of("weight", 75, "a"));
        assert_eq!(update(None, Some("")), of("zones", 150, ""));
        assert_eq!(update(Some(75), Some("b")), of("zones", 75, "b"));
    }

    #[test]
    fn a_fill_takes_as_long_as_reading_from_all_sources() {
        let node = |name| NodeId::new(name).unwrap();
        let source = |name, keys| PlannedSource { node: node(name), keys, reachable: true };
        let fill = PlannedFill { keys: 1000, bytes_per_key: 72, sources: vec![source("n1", 1000), source("n2", 500)] };
        let planned = fill_response(fill.clone(), 1000);
        assert_eq!((planned.keys, planned.bytes, planned.seconds), (1000, 72_000, 300));
        assert_eq!(planned.sources.len(), 2);
        assert_eq!(fill_response(fill, 0).seconds, 0, "unlimited");
    }

    #[test]
    fn a_migration_has_one_name() {
        assert_eq!(number(&name(17)), Some(17));
        for wrong in ["", "17", "m-", "m--1", "m-+7", "m-07", "m-1e3", "M-17", "m-99999999999999999999"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn nothing_is_complete_before_it_is() {
        let progress = |keys_done, keys_total| MigrationProgress { keys_done, keys_total, ..Default::default() };
        let running = |done, total| percentage(MigrationStatus::InProgress, &progress(done, total));
        assert_eq!((running(0, 0), running(1, 4), running(4, 4)), (0.0, 25.0, 99.0));
        assert_eq!(percentage(MigrationStatus::Completed, &progress(0, 0)), 100.0);
        let tenants = MigrationProgress { tenants_done: 1, tenants_total: 2, ..Default::default() };
        assert_eq!(percentage(MigrationStatus::InProgress, &tenants), 0.0, "the one that is left may have all keys");
    }

    #[test]
    fn bytes_and_time_that_are_left_follow_from_what_is_done() {
        let progress = MigrationProgress { keys_done: 25, keys_total: 100, bytes_done: 1000, ..Default::default() };
        assert_eq!((total_bytes(&progress), total_bytes(&MigrationProgress::default())), (4000, 0));
        let change = PlacementChange::RemoveNode { node: NodeId::new("n1").unwrap(), force: false };
        let mut migration = Migration { progress, ..migration(change) };
        assert_eq!(estimated_ms(&migration, 20_000), Some(50_000));
        assert_eq!(estimated_ms(&migration, 5_000), Some(5_000), "clocks may differ");
        migration.status = MigrationStatus::Completed;
        assert_eq!(estimated_ms(&migration, 20_000), None);
    }
}
