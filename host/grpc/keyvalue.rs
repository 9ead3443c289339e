//! The coordinator's gRPC service: single key-value calls, and the routing of all other calls to their modules.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};
use tonic::{Request, Response, Status, Streaming};
use witan_kernel::failure::{Failed, Failure};
use witan_kernel::name::TenantId;
use witan_wire::v1;
use witan_wire::v1::coordinator_service_server::CoordinatorService;

use super::convert::timeout;
use super::guard::{arrival, caller, denied};
use super::hooks::PlanHook;
use super::kept::{Kept, listed, usage};
use super::status::{Report, invalid, report};
use super::unsent::Unsent;
use super::{convert, maintenance, session};
use witan_control::Catalog;
use witan_control::defaults::Fallbacks;
use witan_coordinate::{Coordinator, Respond, World};
use witan_upkeep::Upkeep;

/// How long a routing hook is asked about keys for a plan, at most: as long as somebody looks at a terminal.
const PLAN: Duration = Duration::from_secs(30);

/// The coordinator's service.
pub struct CoordinatorApi<W: World> {
    pub(super) coordinator: Arc<Coordinator<W>>,
    pub(super) upkeep: Arc<Upkeep<W>>,
    pub(super) catalog: Arc<Catalog>,
    pub(super) fallbacks: Arc<ArcSwap<Fallbacks>>,
    /// Turns true when the coordinator begins to shut down.
    closing: watch::Receiver<bool>,
    /// Answers of sessions that have not been sent.
    unsent: Arc<Unsent>,
    /// Plans changes of routing hooks.
    pub(super) hooks: Arc<dyn PlanHook>,
}

impl<W: World> CoordinatorApi<W> {
    /// A service over `coordinator`, with tenants and nodes from `catalog`. Sessions accept no operations once `closing` is true;
    /// their answers are counted in `unsent`. Changes of routing hooks are planned by `hooks`.
    pub fn new(
        coordinator: Arc<Coordinator<W>>,
        upkeep: Arc<Upkeep<W>>,
        catalog: Arc<Catalog>,
        hooks: Arc<dyn PlanHook>,
        closing: watch::Receiver<bool>,
        unsent: Arc<Unsent>,
    ) -> Self {
        Self { coordinator, upkeep, catalog, fallbacks: Arc::default(), closing, unsent, hooks }
    }

    /// Defaults for settings that a request to create a tenant or node leaves out; may be changed at any time.
    pub fn fallbacks(&self) -> &Arc<ArcSwap<Fallbacks>> {
        &self.fallbacks
    }
}

/// Waits for an operation that runs in its own task. A client that disconnects drops this wait, not the operation.
async fn run<T: Send + 'static>(start: impl FnOnce(Respond<T>), changes: bool) -> Result<T, Status> {
    let (sender, answer) = oneshot::channel();
    start(Box::new(move |result: Result<T, Failed>| {
        // It fails when the client is gone; the operation has run anyway.
        let _ = sender.send(result);
    }));
    let lost = || {
        let failure = Failure::Internal("an operation's task ended without a result".to_owned());
        if changes { failure.in_doubt() } else { failure.of_read() }
    };
    answer.await.unwrap_or_else(|_| Err(lost())).map_err(|failed| report(failed).status())
}

/// Decodes a request for one key, and checks that its caller may make it.
fn decoded<W: World, T, R: convert::OfKey>(
    coordinator: &Coordinator<W>,
    mut request: Request<T>,
    decode: impl FnOnce(T, Option<Duration>) -> Result<R, witan_kernel::name::Invalid>,
) -> Result<R, Status> {
    let timeout = convert::timeout(request.metadata());
    let caller = caller(&mut request)?;
    let mut decoded = decode(request.into_inner(), timeout).map_err(|error| invalid(&error))?;
    decoded.arrived_at(arrival(coordinator, &caller));
    let (tenant, key) = decoded.of_key();
    caller.may_on(tenant, Some(key)).map_err(|refused| denied(&caller, &refused))?;
    Ok(decoded)
}

#[tonic::async_trait]
impl<W: World> CoordinatorService for CoordinatorApi<W> {
    async fn write_key_value(
        &self,
        request: Request<v1::WriteKeyValueRequest>,
    ) -> Result<Response<v1::WriteKeyValueResponse>, Status> {
        let key = request.get_ref().key.clone();
        let request = decoded(&self.coordinator, request, convert::write)?;
        let written = run(|respond| self.coordinator.write(request, respond), true).await?;
        Ok(Response::new(convert::written(written, key)))
    }

    async fn read_key_value(
        &self,
        request: Request<v1::ReadKeyValueRequest>,
    ) -> Result<Response<v1::ReadKeyValueResponse>, Status> {
        let key = request.get_ref().key.clone();
        let usage = usage(&request);
        let request = decoded(&self.coordinator, request, convert::read)?;
        let tenant = request.tenant.clone();
        let answer = run(|respond| self.coordinator.read(request, respond), false).await?;
        let kept = Kept::of(&*self.coordinator, &usage, &tenant, answer.bytes()).map_err(Report::status)?;
        Ok(kept.with(convert::found(answer, key)))
    }

    async fn delete_key_value(
        &self,
        request: Request<v1::DeleteKeyValueRequest>,
    ) -> Result<Response<v1::WriteKeyValueResponse>, Status> {
        let key = request.get_ref().key.clone();
        let request = decoded(&self.coordinator, request, convert::delete)?;
        let written = run(|respond| self.coordinator.write(request, respond), true).await?;
        Ok(Response::new(convert::written(written, key)))
    }

    type SessionStream = session::Responses;

    async fn session(
        &self,
        mut request: Request<Streaming<v1::SessionRequestBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = caller(&mut request)?;
        let usage = usage(&request);
        let unsent = self.unsent.session(&caller);
        let (coordinator, closing) = (Arc::clone(&self.coordinator), self.closing.clone());
        let responses = session::open(coordinator, caller, usage, unsent, request.into_inner(), closing);
        Ok(Response::new(responses))
    }

    async fn create_tenant(
        &self,
        mut request: Request<v1::CreateTenantRequest>,
    ) -> Result<Response<v1::CreateTenantResponse>, Status> {
        self.create(caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn get_tenant(
        &self,
        mut request: Request<v1::GetTenantRequest>,
    ) -> Result<Response<v1::GetTenantResponse>, Status> {
        self.get(caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        self.list(request.into_inner()).await.map(Response::new)
    }

    async fn update_tenant(
        &self,
        mut request: Request<v1::UpdateTenantRequest>,
    ) -> Result<Response<v1::GetTenantResponse>, Status> {
        self.update(caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn update_replication_factor(
        &self,
        mut request: Request<v1::UpdateReplicationFactorRequest>,
    ) -> Result<Response<v1::UpdateReplicationFactorResponse>, Status> {
        self.change_replication_factor(caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn delete_tenant(
        &self,
        mut request: Request<v1::DeleteTenantRequest>,
    ) -> Result<Response<v1::DeleteTenantResponse>, Status> {
        let timeout = convert::timeout(request.metadata());
        self.end_tenant(caller(&mut request)?, request.into_inner(), timeout).await.map(Response::new)
    }

    async fn list_keys(
        &self,
        mut request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        let (timeout, usage) = (convert::timeout(request.metadata()), usage(&request));
        let tenant = TenantId::new(&*request.get_ref().tenant_id).ok();
        let keys = self.keys(caller(&mut request)?, request.into_inner(), timeout).await?;
        listed(&*self.coordinator, &usage, tenant.as_ref(), keys)
    }

    type RepairStream = maintenance::Reports;

    async fn repair(
        &self,
        mut request: Request<v1::CoordinatorServiceRepairRequest>,
    ) -> Result<Response<Self::RepairStream>, Status> {
        self.start_repair(caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn add_storage_node(
        &self,
        request: Request<v1::AddStorageNodeRequest>,
    ) -> Result<Response<v1::StorageNodeChangeResponse>, Status> {
        self.add_node(request.into_inner()).await.map(Response::new)
    }

    async fn remove_storage_node(
        &self,
        request: Request<v1::RemoveStorageNodeRequest>,
    ) -> Result<Response<v1::StorageNodeChangeResponse>, Status> {
        self.remove_node(request.into_inner()).await.map(Response::new)
    }

    async fn update_storage_node(
        &self,
        request: Request<v1::UpdateStorageNodeRequest>,
    ) -> Result<Response<v1::StorageNodeChangeResponse>, Status> {
        self.update_node(request.into_inner()).await.map(Response::new)
    }

    async fn replace_storage_node(
        &self,
        request: Request<v1::ReplaceStorageNodeRequest>,
    ) -> Result<Response<v1::StorageNodeChangeResponse>, Status> {
        self.replace_node(request.into_inner()).await.map(Response::new)
    }

    async fn drain_storage_node(
        &self,
        request: Request<v1::DrainStorageNodeRequest>,
    ) -> Result<Response<v1::StorageNodeChangeResponse>, Status> {
        self.drain_node(request.into_inner()).await.map(Response::new)
    }

    async fn locate_key(
        &self,
        mut request: Request<v1::LocateKeyRequest>,
    ) -> Result<Response<v1::LocateKeyResponse>, Status> {
        self.locate(caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn list_storage_nodes(
        &self,
        _: Request<v1::ListStorageNodesRequest>,
    ) -> Result<Response<v1::ListStorageNodesResponse>, Status> {
        self.list_nodes().await.map(Response::new)
    }

    async fn declare_restored(
        &self,
        request: Request<v1::DeclareRestoredRequest>,
    ) -> Result<Response<v1::DeclareRestoredResponse>, Status> {
        Self::declare_restored(self, &request.into_inner()).await.map(Response::new)
    }

    async fn get_migration_status(
        &self,
        mut request: Request<v1::GetMigrationStatusRequest>,
    ) -> Result<Response<v1::GetMigrationStatusResponse>, Status> {
        self.migration_status(caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn list_migrations(
        &self,
        mut request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsResponse>, Status> {
        Self::list_migrations(self, caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn cancel_migration(
        &self,
        mut request: Request<v1::CancelMigrationRequest>,
    ) -> Result<Response<v1::GetMigrationStatusResponse>, Status> {
        Self::cancel_migration(self, caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }

    async fn plan_migration(
        &self,
        request: Request<v1::PlanMigrationRequest>,
    ) -> Result<Response<v1::PlanMigrationResponse>, Status> {
        // Something is left of the time for the answer.
        let within = timeout(request.metadata()).map_or(PLAN, |within| PLAN.min(within / 2));
        Self::plan_migration(self, request.into_inner(), Instant::now() + within).await.map(Response::new)
    }

    async fn list_leftovers(
        &self,
        request: Request<v1::ListLeftoversRequest>,
    ) -> Result<Response<v1::ListLeftoversResponse>, Status> {
        Self::list_leftovers(self, request.into_inner()).await.map(Response::new)
    }

    async fn drop_leftovers(
        &self,
        mut request: Request<v1::DropLeftoversRequest>,
    ) -> Result<Response<v1::DropLeftoversResponse>, Status> {
        Self::drop_leftovers(self, caller(&mut request)?, request.into_inner()).await.map(Response::new)
    }
}
