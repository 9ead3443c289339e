//! The gRPC server of a storage node: lanes for coordinators, unary calls for operators and tools.

mod guard;
mod lane;
mod range;
mod unary;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use witan_kernel::name::NodeId;
use witan_kernel::port::Clock;
use witan_kernel::{capability, limit};
use witan_net::call::{Deadlines, Late, OnlyGrpc};
use witan_net::{CallKind, CountCalls};
use witan_wire::condition::STORE_STATE;
use witan_wire::range::PAGE_MESSAGE_BYTES;
use witan_wire::v1::storage_node_service_server::{StorageNodeService, StorageNodeServiceServer};
use witan_wire::v1::{
    ClearRangeRequest, ClearRangeResponse, DescribeRequest, DescribeResponse, DigestsRequest, DigestsResponse,
    DropTenantRequest, DropTenantResponse, ExchangeRequest, FILE_DESCRIPTOR_SET, RaiseFenceRequest, RaiseFenceResponse,
    ReadRequest, ReadResponse, RepairRequest, RepairResponse, ScanRangeRequest, ScanRangeResponse,
};

use crate::driver::{Driver, Time};
use crate::store::Store;

pub use guard::Guard;

/// What this node supports beyond the minimum of its protocol version; sent in the handshake of a lane.
pub const CAPABILITIES: [&str; 12] = [
    "register",
    "siblings",
    STORE_STATE,
    witan_wire::COMMITS,
    capability::NAMES,
    capability::STANDING,
    capability::FENCES,
    capability::MOVES,
    capability::COLLECT,
    capability::AGES,
    capability::DIGESTS,
    capability::GENERATIONS,
];

/// Largest message accepted, in bytes: the record of a unary call, and 1 MiB for the rest of the message. Frames have a smaller limit.
const MESSAGE_BYTES: usize = limit::RECORD_BYTES + (1 << 20);

/// Limits of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most requests of one lane in flight; at least [`BATCH_ITEMS`](witan_wire::frame::BATCH_ITEMS).
    pub lane_requests: usize,
    /// Bytes of unsent answers of one lane above which no further requests are read from it.
    pub lane_answer_bytes: usize,
    /// Most concurrent streams of one connection: lanes and unary calls.
    pub streams: u32,
    /// How long the server waits for requests in flight after the signal to shut down.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lane_requests: 4096, lane_answer_bytes: 64 << 20, streams: 1024, drain: Duration::from_secs(5) }
    }
}

/// Why serving ended, other than by the shutdown signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener failed.
    #[error("serve storage node: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The reflection service could not be built from the compiled descriptors.
    #[error("describe services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves incoming connections, as far as `guard` admits their calls, until `shutdown` is ready. Then each lane ends once its requests
/// in flight are answered, and all connections are closed after [`Limits::drain`].
pub async fn serve<I, IO, E>(
    incoming: I,
    node: NodeId,
    driver: Arc<dyn Driver>,
    clock: impl Clock,
    limits: Limits,
    guard: Guard,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError>
where
    I: Stream<Item = Result<IO, E>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (stop, stopped) = watch::channel(false);
    let streams = limits.streams;
    let drain = limits.drain;
    let turns = |most| Arc::new(Semaphore::new(most));
    let (scans, fences, clears) = (turns(range::SCANS), turns(range::FENCES), turns(range::CLEARS));
    let digests = turns(range::DIGESTS);
    let store = Arc::clone(driver.store());
    let clock = Arc::new(clock);
    let storage = Storage { node, driver, clock, limits, stopped: stopped.clone(), scans, fences, clears, digests };
    let storage = StorageNodeServiceServer::new(storage)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(PAGE_MESSAGE_BYTES);
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_serving::<StorageNodeServiceServer<Storage>>().await;
    let watching = not_serving_once_failed(health.clone(), store);

    let mut stopping = stopped.clone();
    let serving = server(streams)
        // The first layer is the outermost.
        .layer(CountCalls { kind, too_many })
        // What is no call at all is not looked at any further.
        .layer(OnlyGrpc)
        .layer(Deadlines(too_late))
        .layer(guard::GuardLayer(guard))
        .add_service(storage)
        .add_service(health_server)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stopping.wait_for(|stopped| *stopped).await;
        });
    let deadline = async {
        shutdown.await;
        health.set_not_serving::<StorageNodeServiceServer<Storage>>().await;
        let _ = stop.send(true);
        // An idle or silent connection would delay a graceful shutdown for ever.
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        biased;
        served = serving => Ok(served?),
        () = deadline => Ok(()),
        never = watching => match never {},
    }
}

/// Reports the whole server and its service as not serving once the store has failed. Never ends.
async fn not_serving_once_failed(health: HealthReporter, store: Arc<Store>) -> Infallible {
    let changes = store.watch();
    while !store.condition().is_failed() {
        changes.notified().await;
    }
    health.set_not_serving::<StorageNodeServiceServer<Storage>>().await;
    health.set_service_status("", ServingStatus::NotServing).await;
    std::future::pending().await
}

fn too_many(why: &'static str) -> http::Response<tonic::body::Body> {
    tonic::Status::resource_exhausted(why).into_http()
}

/// Only health checks need no secret, where nodes ask for one.
fn kind(path: &str) -> CallKind {
    match path {
        "/grpc.health.v1.Health/Watch" => CallKind::Watch,
        _ if path.ends_with("/Exchange") => CallKind::Stream,
        _ => CallKind::Unary,
    }
}

/// Sets hyper's limits, which tonic otherwise leaves unset.
fn server(streams: u32) -> Server {
    Server::builder()
        .max_concurrent_streams(streams)
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_local_error_reset_streams(Some(256))
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // Room for several frames of a lane, and for all lanes of a coordinator.
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
}

/// The answer to a call whose deadline has passed.
fn too_late(late: Late<'_>) -> http::Response<Body> {
    Status::deadline_exceeded(match late.begun {
        true => "the deadline passed before the call was answered; allow more time",
        false => "the deadline passed before the whole request had arrived; allow more time",
    })
    .into_http()
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("witan.v1.StorageNodeService")
        .with_service_name("grpc.health.v1.Health")
}

/// The state that all calls share.
struct Storage {
    node: NodeId,
    driver: Arc<dyn Driver>,
    clock: Arc<dyn Time>,
    limits: Limits,
    stopped: watch::Receiver<bool>,
    /// Permits for steps of scans.
    scans: Arc<Semaphore>,
    /// Permits for fences.
    fences: Arc<Semaphore>,
    /// Permits for dropping rows.
    clears: Arc<Semaphore>,
    /// Permits for digests.
    digests: Arc<Semaphore>,
}

#[tonic::async_trait]
impl StorageNodeService for Storage {
    type ExchangeStream = lane::Answering;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<lane::Answering>, Status> {
        Ok(Response::new(lane::start(request.into_inner(), self)))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        unary::read(&*self.driver, request.into_inner()).await.map(Response::new)
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Result<Response<RepairResponse>, Status> {
        unary::repair(&*self.driver, request.into_inner()).await.map(Response::new)
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        unary::describe(&*self.driver, &self.node, || self.clock.wall()).await.map(Response::new)
    }

    async fn scan_range(&self, request: Request<ScanRangeRequest>) -> Result<Response<ScanRangeResponse>, Status> {
        range::scan(self, request.into_inner()).await.map(Response::new)
    }

    async fn drop_tenant(&self, request: Request<DropTenantRequest>) -> Result<Response<DropTenantResponse>, Status> {
        range::drop_tenant(self, request.into_inner()).await.map(Response::new)
    }

    async fn raise_fence(&self, request: Request<RaiseFenceRequest>) -> Result<Response<RaiseFenceResponse>, Status> {
        range::raise_fence(self, request.into_inner()).await.map(Response::new)
    }

    async fn clear_range(&self, request: Request<ClearRangeRequest>) -> Result<Response<ClearRangeResponse>, Status> {
        range::clear_range(self, request.into_inner()).await.map(Response::new)
    }

    async fn digests(&self, request: Request<DigestsRequest>) -> Result<Response<DigestsResponse>, Status> {
        range::digests(self, request.into_inner()).await.map(Response::new)
    }
}
