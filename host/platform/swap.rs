//! Changes of a tenant's routing hook, whose records move.

use std::time::Instant;

use tonic::{Code, Response, Status};
use witan_control::{HookChange, Places};
use witan_kernel::hook::{Hook, Partition, Pending};
use witan_kernel::name::{Invalid, Key, TenantId, shown};
use witan_kernel::port::{Migration, StoreError};
use witan_kernel::tenant::Tenant;
use witan_plugin::history::Author;
use witan_plugin::registry::{Binding, Named, Proposal, Proposed, RoutingChange};
use witan_plugin::{BindRequest, OnFault, PluginError, PluginHost};
use witan_wire::v1;

use super::{PluginApi, binding, in_force, not_changed, status};
use crate::access::caller::Caller;
use crate::grpc::convert::migration_id;
use crate::grpc::hooks::PlanHook;
use crate::grpc::kept::Kept;
use crate::grpc::status::{invalid, refused};

impl PlanHook for PluginApi {
    fn plan_hook(
        &self,
        request: v1::BindPluginRequest,
        until: Instant,
    ) -> Pending<Result<v1::PlanMigrationResponse, Status>> {
        let api = self.clone();
        Box::pin(async move { api.planned_hook(request, until).await })
    }
}

impl PluginApi {
    async fn planned_hook(
        &self,
        request: v1::BindPluginRequest,
        until: Instant,
    ) -> Result<v1::PlanMigrationResponse, Status> {
        let tenant = TenantId::new(request.tenant_id).map_err(|error| invalid(&error))?;
        if !matches!(request.hook.as_str(), "" | "routing-hook") {
            let problem = format!("{} moves no records", shown(&request.hook));
            return Err(invalid(&Invalid::new("hook", problem, "only changes of a routing-hook are planned")));
        }
        let change = match request.plugin.as_str() {
            "" => RoutingChange::Unbind(tenant.clone(), Author::default()),
            plugin => RoutingChange::Bind(BindRequest {
                tenant: Some(tenant.clone()),
                hook: Hook::RoutingHook,
                plugin: self.reference(Some(&tenant), plugin, Some(until)).await?,
                configuration: request.configuration,
                on_fault: OnFault::default(),
                author: Author::default(),
            }),
        };
        let change = Swap { host: self.host.clone(), tenant: tenant.clone(), change };
        let plan = self.catalog.plan_hook(&tenant, &change, until.into()).await.map_err(not_changed)?;
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let at_once = plan.tried.is_none();
        let tried = plan.tried.unwrap_or_default();
        Ok(v1::PlanMigrationResponse {
            tenants: 1,
            problems: plan.problems,
            hook: Some(v1::PlannedHook {
                keys_moving: count(tried.moving),
                keys_staying: count(tried.staying),
                keys_faulting: count(tried.faulting),
                faults_on: tried.fault.map(|(key, _)| shown(&key.to_string()).to_string()).unwrap_or_default(),
                complete: tried.is_complete || at_once,
                at_once,
            }),
            ..v1::PlanMigrationResponse::default()
        })
    }

    /// Changes the routing hook of one tenant, whose records move where they have to.
    pub(super) async fn swap(
        &self,
        caller: &Caller,
        kept: Kept,
        tenant: TenantId,
        change: RoutingChange,
    ) -> Result<Response<v1::BindPluginResponse>, Status> {
        let turn = self.change(caller, Some(&tenant))?;
        let change = Swap { host: self.host.clone(), tenant: tenant.clone(), change };
        let changed = self.catalog.change_routing_hook(turn, &tenant, change, (self.now_ms)()).await;
        let (Swapped { bound, previous }, migration) = changed.map_err(not_changed)?;
        Ok(kept.with(v1::BindPluginResponse {
            binding: bound.as_ref().map(binding),
            previous,
            migration_id: migration.map(|of| migration_id(of.number)).unwrap_or_default(),
        }))
    }
}

/// A change of a tenant's routing hook, by the plugin host.
struct Swap {
    host: PluginHost,
    tenant: TenantId,
    change: RoutingChange,
}

/// What it answers.
struct Swapped {
    bound: Option<Binding>,
    previous: Option<v1::Binding>,
}

/// A hook that is proposed.
struct Hooked(Proposed);

impl Places for Hooked {
    fn partition_key(&self, key: &Key) -> Partition {
        self.0.partition_key(key)
    }
}

impl HookChange for Swap {
    type Bound = Swapped;
    type Error = Status;
    type Proposed = Hooked;

    fn has_generations(&self) -> bool {
        self.host.has_generations(&self.tenant)
    }

    fn propose(&self, tenant: &Tenant) -> Pending<Result<Option<Hooked>, Status>> {
        let (host, change, named) = (self.host.clone(), self.change.clone(), Named::of(tenant));
        Box::pin(async move {
            match host.propose(change, named).await.map_err(status)? {
                Proposal::SamePlaces => Ok(None),
                Proposal::Swap(proposed) => Ok(Some(Hooked(*proposed))),
            }
        })
    }

    fn at_once(&self) -> Pending<Result<Swapped, Status>> {
        let (host, tenant, change) = (self.host.clone(), self.tenant.clone(), self.change.clone());
        Box::pin(async move {
            let previous = in_force(&host, Some(&tenant), Hook::RoutingHook);
            let bound = match change {
                RoutingChange::Bind(bind) => host.bind(bind).await.map(Some),
                RoutingChange::Rollback(tenant, author) => {
                    host.rollback(Some(tenant), Hook::RoutingHook, author).await.map(Some)
                }
                RoutingChange::Unbind(tenant, author) => {
                    host.unbind(Some(tenant), Hook::RoutingHook, author).await.map(|()| None)
                }
            };
            Ok(Swapped { bound: bound.map_err(status)?, previous })
        })
    }

    fn record(&self, Hooked(proposed): Hooked, now_ms: u64) -> Pending<Result<(Swapped, Migration), Status>> {
        let (host, tenant) = (self.host.clone(), self.tenant.clone());
        Box::pin(async move {
            let previous = in_force(&host, Some(&tenant), Hook::RoutingHook);
            let recorded = host.record(proposed, now_ms).await;
            let (bound, migration) = recorded.map_err(|error| match error {
                PluginError::Store(StoreError::Conflict(why)) => refused(
                    Code::FailedPrecondition,
                    "MIGRATION_CONFLICT",
                    format!("{why}; look at the tenant and try again"),
                ),
                error => status(error),
            })?;
            Ok((Swapped { bound, previous }, migration))
        })
    }
}
