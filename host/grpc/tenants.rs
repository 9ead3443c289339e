//! Calls about tenants.

use std::time::Duration;

use tonic::{Code, Status};
use witan_kernel::limit;
use witan_kernel::name::{Invalid, TenantId};
use witan_kernel::tenant::{
    ConflictMode, IdempotencyOutage, Level, Ordering, ReadRepair, Tenant, idempotency_retention_ms,
};
use witan_wire::v1;

use super::CoordinatorApi;
use super::convert::migration_id;
use super::guard::denied;
use super::status::{Report, busy, invalid, refused, store_report};
use crate::access::caller::Caller;
use witan_control::defaults::Fallbacks;
use witan_control::{FactorChanged, Refused, Turn};
use witan_coordinate::World;

/// Default page size, tenants.
const PAGE: u32 = 100;

impl<W: World> CoordinatorApi<W> {
    pub(super) async fn create(
        &self,
        caller: Caller,
        request: v1::CreateTenantRequest,
    ) -> Result<v1::CreateTenantResponse, Status> {
        let tenant = tenant_of(request, self.now_ms(), &self.fallbacks.load()).map_err(|error| invalid(&error))?;
        caller.may(&tenant.id).map_err(|refused| denied(&caller, &refused))?;
        let turn = self.change(&caller, &tenant.id)?;
        let tenant = self.catalog.create_tenant(turn, tenant).await.map_err(|error| status(&error))?;
        Ok(v1::CreateTenantResponse {
            success: true,
            tenant_id: tenant.id.to_string(),
            replication_factor: i32::from(tenant.replication_factor),
            created_at: seconds(tenant.created_at_ms),
            error_message: String::new(),
        })
    }

    pub(super) async fn get(
        &self,
        caller: Caller,
        request: v1::GetTenantRequest,
    ) -> Result<v1::GetTenantResponse, Status> {
        let id = own_tenant(&caller, request.tenant_id)?;
        let _turn = self.catalog.lookups().take(caller.on_behalf_of(&id)).map_err(|error| status(&error))?;
        let tenant = self.catalog.tenant(&id).await.map_err(|error| status(&error))?;
        self.described(&tenant).await
    }

    pub(super) async fn list(&self, request: v1::ListTenantsRequest) -> Result<v1::ListTenantsResponse, Status> {
        let limit = page_size(request.page_size).map_err(|error| invalid(&error))?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(TenantId::new(token).map_err(|error| invalid(&Invalid { field: "page_token", ..error }))?),
        };
        let _turn = self.catalog.lookups().take(None).map_err(|error| status(&error))?;
        let tenants = self.catalog.tenants(after.as_ref(), limit).await.map_err(|error| status(&error))?;
        let pending = self.catalog.pending(&tenants).await.map_err(|error| status(&error))?;
        let full = tenants.len() == limit as usize;
        let next = tenants.last().filter(|_| full).map(|last| last.id.to_string());
        Ok(v1::ListTenantsResponse {
            tenants: tenants.iter().map(|tenant| response(tenant, pending.get(&tenant.id))).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }

    pub(super) async fn update(
        &self,
        caller: Caller,
        request: v1::UpdateTenantRequest,
    ) -> Result<v1::GetTenantResponse, Status> {
        let change = Change::of(&request).map_err(|error| invalid(&error))?;
        let id = own_tenant(&caller, request.tenant_id)?;
        let updated_at_ms = self.now_ms();
        let turn = self.change(&caller, &id)?;
        let updated = self.catalog.update_tenant(turn, &id, change.version, |tenant| {
            change.apply(tenant);
            tenant.updated_at_ms = updated_at_ms;
        });
        let tenant = updated.await.map_err(|error| status(&error))?;
        self.described(&tenant).await
    }

    /// A tenant, with what moves its records.
    async fn described(&self, tenant: &Tenant) -> Result<v1::GetTenantResponse, Status> {
        let pending = self.catalog.pending(std::slice::from_ref(tenant)).await.map_err(|error| status(&error))?;
        Ok(response(tenant, pending.get(&tenant.id)))
    }

    pub(super) async fn change_replication_factor(
        &self,
        caller: Caller,
        request: v1::UpdateReplicationFactorRequest,
    ) -> Result<v1::UpdateReplicationFactorResponse, Status> {
        let id = own_tenant(&caller, request.tenant_id)?;
        let wanted = replication_factor("new_replication_factor", request.new_replication_factor)
            .map_err(|error| invalid(&error))?;
        let turn = self.change(&caller, &id)?;
        let changed = self.catalog.change_replication_factor(turn, &id, wanted, self.now_ms()).await;
        let FactorChanged { before, after, migration } = changed.map_err(|error| status(&error))?;
        Ok(v1::UpdateReplicationFactorResponse {
            success: true,
            tenant_id: id.to_string(),
            old_replication_factor: i32::from(before.replication_factor),
            new_replication_factor: i32::from(after.replication_factor),
            migration_id: migration.map(|migration| migration_id(migration.number)).unwrap_or_default(),
            updated_at: seconds(after.updated_at_ms),
            error_message: String::new(),
        })
    }

    /// A turn for a change of a tenant.
    pub(super) fn change(&self, caller: &Caller, tenant: &TenantId) -> Result<Turn, Status> {
        self.catalog.changes().take(caller.on_behalf_of(tenant)).map_err(|error| status(&error))
    }
}

/// The tenant that a call names, after a check that its caller may use it.
pub(super) fn own_tenant(caller: &Caller, id: String) -> Result<TenantId, Status> {
    let id = TenantId::new(id).map_err(|error| invalid(&error))?;
    caller.may(&id).map_err(|refused| denied(caller, &refused))?;
    Ok(id)
}

/// The settings that an update changes; `None` keeps the present value.
struct Change {
    version: u64,
    ordering: Option<Ordering>,
    read_repair: Option<ReadRepair>,
    minimum_level: Option<Level>,
    default_level: Option<Level>,
    idempotency_outage: Option<IdempotencyOutage>,
    idempotency_retention_ms: Option<u64>,
}

impl Change {
    fn of(request: &v1::UpdateTenantRequest) -> Result<Self, Invalid> {
        fn given<T>(text: &str, parse: fn(&str) -> Result<T, Invalid>) -> Result<Option<T>, Invalid> {
            if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
        }
        let version = u64::try_from(request.version)
            .map_err(|_| Invalid::new("version", "is negative", "send the version returned by GetTenant, or 0"))?;
        Ok(Self {
            version,
            ordering: given(&request.ordering, Ordering::parse)?,
            read_repair: given(&request.read_repair, ReadRepair::parse)?,
            minimum_level: Level::parse("minimum_level", &request.minimum_level)?,
            default_level: Level::parse("default_level", &request.default_level)?,
            idempotency_outage: given(&request.idempotency_outage, IdempotencyOutage::parse)?,
            idempotency_retention_ms: request
                .idempotency_retention_seconds
                .map(idempotency_retention_ms)
                .transpose()?,
        })
    }

    fn apply(&self, tenant: &mut Tenant) {
        fn set<T: Copy>(to: &mut T, from: Option<T>) {
            if let Some(value) = from {
                *to = value;
            }
        }
        set(&mut tenant.ordering, self.ordering);
        set(&mut tenant.read_repair, self.read_repair);
        set(&mut tenant.minimum_level, self.minimum_level);
        set(&mut tenant.default_level, self.default_level);
        set(&mut tenant.idempotency_outage, self.idempotency_outage);
        set(&mut tenant.idempotency_retention_ms, self.idempotency_retention_ms);
    }
}

fn tenant_of(request: v1::CreateTenantRequest, now_ms: u64, fallbacks: &Fallbacks) -> Result<Tenant, Invalid> {
    let id = TenantId::new(request.tenant_id)?;
    let replication_factor = match request.replication_factor {
        0 => None,
        given => Some(replication_factor("replication_factor", given)?),
    };
    let mut tenant = fallbacks.tenant(id, replication_factor, now_ms);
    tenant.conflict_mode = ConflictMode::parse(&request.conflict_mode)?;
    tenant.ordering = Ordering::parse(&request.ordering)?;
    if !request.read_repair.is_empty() {
        tenant.read_repair = ReadRepair::parse(&request.read_repair)?;
    }
    tenant.idempotency_outage = IdempotencyOutage::parse(&request.idempotency_outage)?;
    if request.idempotency_retention_seconds != 0 {
        tenant.idempotency_retention_ms = idempotency_retention_ms(request.idempotency_retention_seconds)?;
    }
    if let Some(level) = Level::parse("minimum_level", &request.minimum_level)? {
        tenant.minimum_level = level;
    }
    if let Some(level) = Level::parse("default_level", &request.default_level)? {
        tenant.default_level = level;
    }
    Ok(tenant)
}

pub(super) fn replication_factor(field: &'static str, given: i32) -> Result<u8, Invalid> {
    let range = limit::REPLICATION_FACTOR;
    u8::try_from(given).ok().filter(|factor| range.contains(factor)).ok_or_else(|| {
        Invalid::new(field, format!("{given} is out of range"), format!("use {} to {}", range.start(), range.end()))
    })
}

pub(super) fn page_size(given: i32) -> Result<u32, Invalid> {
    match given {
        0 => Ok(PAGE),
        1..=1000 => Ok(given as u32),
        _ => Err(Invalid::new("page_size", format!("{given} is out of range"), "use 1 to 1000, or 0 for 100")),
    }
}

fn response(tenant: &Tenant, pending: Option<&u64>) -> v1::GetTenantResponse {
    v1::GetTenantResponse {
        success: true,
        tenant_id: tenant.id.to_string(),
        replication_factor: i32::from(tenant.replication_factor),
        created_at: seconds(tenant.created_at_ms),
        updated_at: seconds(tenant.updated_at_ms),
        error_message: String::new(),
        version: i64::try_from(tenant.version).unwrap_or(i64::MAX),
        conflict_mode: tenant.conflict_mode.to_string(),
        ordering: tenant.ordering.to_string(),
        read_repair: tenant.read_repair.to_string(),
        minimum_level: tenant.minimum_level.to_string(),
        default_level: tenant.default_level.to_string(),
        idempotency_outage: tenant.idempotency_outage.to_string(),
        idempotency_retention_seconds: seconds(tenant.idempotency_retention_ms),
        pending_migration_id: pending.copied().map(migration_id).unwrap_or_default(),
    }
}

pub(super) fn seconds(ms: u64) -> i64 {
    i64::try_from(ms / 1000).unwrap_or(i64::MAX)
}

/// The status for a refused change of the catalog.
pub(crate) fn status(error: &Refused) -> Status {
    match error {
        Refused::Invalid(error) => invalid(error),
        Refused::Store(error) => store_report(error, "TENANT_EXISTS", "TENANT_NOT_FOUND").status(),
        Refused::TooFewNodes { .. } => {
            refused(Code::FailedPrecondition, "INVALID_REPLICATION_FACTOR", error.to_string())
        }
        Refused::NodeInUse(_) => refused(Code::FailedPrecondition, "NODE_IN_USE", error.to_string()),
        Refused::NeedsPlacementChange(_) => refused(Code::Unimplemented, "INVALID_REQUEST", error.to_string()),
        Refused::TooOld { .. } | Refused::NoZones { .. } | Refused::NoMaintenance { .. } => {
            refused(Code::FailedPrecondition, "NODE_TOO_OLD", error.to_string())
        }
        Refused::HookFaults { .. } => refused(Code::FailedPrecondition, "PLUGIN_FAULT", error.to_string()),
        Refused::SourcesUnreachable(_) => refused(Code::FailedPrecondition, "SOURCES_UNREACHABLE", error.to_string()),
        Refused::MigrationConflict(_) => refused(Code::FailedPrecondition, "MIGRATION_CONFLICT", error.to_string()),
        Refused::NodeAway(_) => refused(Code::FailedPrecondition, "NODE_UNREACHABLE", error.to_string()),
        Refused::NothingToReplace(_) => refused(Code::FailedPrecondition, "NOTHING_TO_REPLACE", error.to_string()),
        Refused::StoreRefused(_) => refused(Code::FailedPrecondition, "STORE_RETIRED", error.to_string()),
        Refused::TooLate(_) => refused(Code::FailedPrecondition, "MIGRATION_TOO_LATE", error.to_string()),
        Refused::NothingToResolve(_) | Refused::UnknownNode(_) => {
            refused(Code::FailedPrecondition, "INVALID_REQUEST", error.to_string())
        }
        Refused::FencesOwed { .. } => {
            let report = Report::new(Code::Unavailable, "CHANGE_PENDING", error.to_string()).in_doubt();
            report.retry_after(Duration::from_secs(1)).status()
        }
        Refused::Busy => busy(error.to_string()),
        Refused::Lost => Status::internal(error.to_string()),
    }
}
