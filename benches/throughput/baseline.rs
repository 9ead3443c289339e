//! The baseline: a coordinator without any logic. A unary call in, three unary calls out, all three awaited. No contexts, no
//! deadlines, no health, no repair, no idempotency: this is the minimum cost of such a design.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use witan_kernel::name::WriteId;
use witan_kernel::record::{Encoded, Record};
use witan_kernel::register::{Register, Stamp};
use witan_wire::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use witan_wire::v1::storage_node_service_client::StorageNodeServiceClient;
use witan_wire::v1::{
    self, AddStorageNodeRequest, CoordinatorServiceRepairRequest, CoordinatorServiceRepairResponse,
    CreateTenantRequest, CreateTenantResponse, DeclareRestoredRequest, DeclareRestoredResponse, DeleteKeyValueRequest,
    DeleteTenantRequest, DeleteTenantResponse, DrainStorageNodeRequest, GetTenantRequest, GetTenantResponse,
    ListKeysRequest, ListKeysResponse, ListStorageNodesRequest, ListStorageNodesResponse, ListTenantsRequest,
    ListTenantsResponse, LocateKeyRequest, LocateKeyResponse, ReadKeyValueRequest, ReadKeyValueResponse, ReadRequest,
    RemoveStorageNodeRequest, RepairRequest, ReplaceStorageNodeRequest, SessionRequestBatch, SessionResponseBatch,
    StorageNodeChangeResponse, UpdateReplicationFactorRequest, UpdateReplicationFactorResponse,
    UpdateStorageNodeRequest, UpdateTenantRequest, WriteKeyValueRequest, WriteKeyValueResponse,
};

type Node = StorageNodeServiceClient<Channel>;

/// Serves in front of three nodes, given as addresses, until the process ends.
pub(crate) fn serve(nodes: &[String]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = Vec::new();
        for node in nodes {
            let endpoint = Endpoint::from_shared(format!("http://{node}"))?.tcp_nodelay(true);
            let endpoint = endpoint.initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20);
            clients.push(Node::new(endpoint.connect().await.with_context(|| format!("connect to {node}"))?));
        }
        let nodes = clients.try_into().map_err(|_| anyhow::anyhow!("the baseline takes three nodes"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("ready address={}", listener.local_addr()?);
        Server::builder()
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .add_service(CoordinatorServiceServer::new(Baseline { nodes }))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await?;
        Ok(())
    })
}

struct Baseline {
    nodes: [Node; 3],
}

fn newest(records: impl IntoIterator<Item = bytes::Bytes>) -> Result<Option<Register>, Status> {
    let mut newest: Option<Register> = None;
    for record in records {
        match Encoded(record).decode().map_err(|error| Status::internal(error.to_string()))? {
            Record::Register(register) if newest.as_ref().is_none_or(|newest| register.wins_over(newest)) => {
                newest = Some(register);
            }
            Record::Register(_) | Record::Siblings(_) => {}
        }
    }
    Ok(newest)
}

#[tonic::async_trait]
impl CoordinatorService for Baseline {
    async fn write_key_value(
        &self,
        request: Request<WriteKeyValueRequest>,
    ) -> Result<Response<WriteKeyValueResponse>, Status> {
        let WriteKeyValueRequest { tenant_id, key, value, consistency, .. } = request.into_inner();
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let stamp = Stamp(u64::try_from(micros).unwrap_or(u64::MAX));
        let record = Record::Register(Register::written(stamp, WriteId(rand::random()), Some(value))).encode().0;
        let message = RepairRequest { tenant_id, key: key.clone(), record, token: None };
        let [mut a, mut b, mut c] = self.nodes.clone();
        let calls = (a.repair(message.clone()), b.repair(message.clone()), c.repair(message));
        let answers = tokio::join!(calls.0, calls.1, calls.2);
        let answers = [answers.0, answers.1, answers.2];
        let acknowledged = answers.iter().filter(|answer| answer.is_ok()).count();
        if acknowledged < 2 {
            return Err(Status::unavailable(format!("{acknowledged} of 2 required replicas answered")));
        }
        Ok(Response::new(WriteKeyValueResponse {
            success: true,
            key,
            replica_count: i32::try_from(acknowledged).unwrap_or(0),
            consistency,
            ..WriteKeyValueResponse::default()
        }))
    }

    async fn read_key_value(
        &self,
        request: Request<ReadKeyValueRequest>,
    ) -> Result<Response<ReadKeyValueResponse>, Status> {
        let ReadKeyValueRequest { tenant_id, key, .. } = request.into_inner();
        let message = ReadRequest { tenant_id, key: key.clone(), token: None, render: false };
        let [mut a, mut b, mut c] = self.nodes.clone();
        let answers = tokio::join!(a.read(message.clone()), b.read(message.clone()), c.read(message));
        let answers: Vec<_> = [answers.0, answers.1, answers.2].into_iter().flatten().collect();
        if answers.len() < 2 {
            return Err(Status::unavailable(format!("{} of 2 required replicas answered", answers.len())));
        }
        let value = newest(answers.into_iter().filter_map(|answer| answer.into_inner().record))?.and_then(|r| r.value);
        Ok(Response::new(ReadKeyValueResponse {
            success: true,
            key,
            value: value.unwrap_or_default(),
            ..ReadKeyValueResponse::default()
        }))
    }

    async fn delete_key_value(
        &self,
        _: Request<DeleteKeyValueRequest>,
    ) -> Result<Response<WriteKeyValueResponse>, Status> {
        Err(not_here())
    }

    type SessionStream = ReceiverStream<Result<SessionResponseBatch, Status>>;

    async fn session(
        &self,
        _: Request<Streaming<SessionRequestBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(not_here())
    }

    async fn create_tenant(&self, _: Request<CreateTenantRequest>) -> Result<Response<CreateTenantResponse>, Status> {
        Err(not_here())
    }

    async fn get_tenant(&self, _: Request<GetTenantRequest>) -> Result<Response<GetTenantResponse>, Status> {
        Err(not_here())
    }

    async fn list_tenants(&self, _: Request<ListTenantsRequest>) -> Result<Response<ListTenantsResponse>, Status> {
        Err(not_here())
    }

    async fn update_tenant(&self, _: Request<UpdateTenantRequest>) -> Result<Response<GetTenantResponse>, Status> {
        Err(not_here())
    }

    async fn update_replication_factor(
        &self,
        _: Request<UpdateReplicationFactorRequest>,
    ) -> Result<Response<UpdateReplicationFactorResponse>, Status> {
        Err(not_here())
    }

    async fn add_storage_node(
        &self,
        _: Request<AddStorageNodeRequest>,
    ) -> Result<Response<StorageNodeChangeResponse>, Status> {
        Err(not_here())
    }

    async fn remove_storage_node(
        &self,
        _: Request<RemoveStorageNodeRequest>,
    ) -> Result<Response<StorageNodeChangeResponse>, Status> {
        Err(not_here())
    }

    async fn update_storage_node(
        &self,
        _: Request<UpdateStorageNodeRequest>,
    ) -> Result<Response<StorageNodeChangeResponse>, Status> {
        Err(not_here())
    }

    async fn replace_storage_node(
        &self,
        _: Request<ReplaceStorageNodeRequest>,
    ) -> Result<Response<StorageNodeChangeResponse>, Status> {
        Err(not_here())
    }

    async fn drain_storage_node(
        &self,
        _: Request<DrainStorageNodeRequest>,
    ) -> Result<Response<StorageNodeChangeResponse>, Status> {
        Err(not_here())
    }

    async fn locate_key(&self, _: Request<LocateKeyRequest>) -> Result<Response<LocateKeyResponse>, Status> {
        Err(not_here())
    }

    async fn declare_restored(
        &self,
        _: Request<DeclareRestoredRequest>,
    ) -> Result<Response<DeclareRestoredResponse>, Status> {
        Err(not_here())
    }

    async fn get_migration_status(
        &self,
        _: Request<v1::GetMigrationStatusRequest>,
    ) -> Result<Response<v1::GetMigrationStatusResponse>, Status> {
        Err(not_here())
    }

    async fn list_migrations(
        &self,
        _: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsResponse>, Status> {
        Err(not_here())
    }

    async fn cancel_migration(
        &self,
        _: Request<v1::CancelMigrationRequest>,
    ) -> Result<Response<v1::GetMigrationStatusResponse>, Status> {
        Err(not_here())
    }

    async fn plan_migration(
        &self,
        _: Request<v1::PlanMigrationRequest>,
    ) -> Result<Response<v1::PlanMigrationResponse>, Status> {
        Err(not_here())
    }

    async fn list_leftovers(
        &self,
        _: Request<v1::ListLeftoversRequest>,
    ) -> Result<Response<v1::ListLeftoversResponse>, Status> {
        Err(not_here())
    }

    async fn drop_leftovers(
        &self,
        _: Request<v1::DropLeftoversRequest>,
    ) -> Result<Response<v1::DropLeftoversResponse>, Status> {
        Err(not_here())
    }

    async fn delete_tenant(&self, _: Request<DeleteTenantRequest>) -> Result<Response<DeleteTenantResponse>, Status> {
        Err(not_here())
    }

    async fn list_keys(&self, _: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        Err(not_here())
    }

    type RepairStream = ReceiverStream<Result<CoordinatorServiceRepairResponse, Status>>;

    async fn repair(
        &self,
        _: Request<CoordinatorServiceRepairRequest>,
    ) -> Result<Response<Self::RepairStream>, Status> {
        Err(not_here())
    }

    async fn list_storage_nodes(
        &self,
        _: Request<ListStorageNodesRequest>,
    ) -> Result<Response<ListStorageNodesResponse>, Status> {
        Err(not_here())
    }
}

fn not_here() -> Status {
    Status::unimplemented("the baseline reads and writes, and nothing else")
}
