//! The gRPC server of a coordinator: services, limits, and a bounded shutdown.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use witan_net::call::{Deadlines, Late, OnlyGrpc};
use witan_wire::v1::FILE_DESCRIPTOR_SET;
use witan_wire::v1::access_service_server::AccessServiceServer;
use witan_wire::v1::coordinator_service_server::CoordinatorServiceServer;
use witan_wire::v1::plugin_service_server::PluginServiceServer;

use super::guard::Guard;
use super::intake::{self, IntakeLayer, REQUEST_BYTES};
use super::origin::{Origins, Sampling};
use super::{AccessApi, CoordinatorApi, PluginApi, status};
use crate::access::Access;
use crate::access::scope::{self, Effect, Need};
use witan_coordinate::World;
use witan_net::{CallKind, CountCalls, TOO_MANY};

/// Bytes of the largest message sent to a client: 100 siblings in a record of 32 MiB.
const RESPONSE_BYTES: usize = 40 << 20;

/// Limits of the server.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Concurrent calls per connection.
    pub streams: u32,
    /// How long the server waits for calls in flight after the shutdown signal.
    pub drain: Duration,
    /// Which calls are traced.
    pub sampling: Sampling,
    /// Limits on incomplete request messages.
    pub intake: intake::Bounds,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            streams: 1000,
            drain: Duration::from_secs(30),
            sampling: Sampling::default(),
            intake: intake::Bounds::default(),
        }
    }
}

/// The services, and the access check in front of them.
pub struct Services<W: World> {
    /// Keys, tenants and storage nodes.
    pub coordinator: CoordinatorApi<W>,
    /// The plugin platform.
    pub plugins: PluginApi,
    /// API tokens.
    pub tokens: AccessApi,
    /// Authorizes calls.
    pub access: Arc<Access>,
}

/// Serves incoming connections until `shutdown` is ready; then stops accepting, lets calls in flight finish, and returns after
/// [`Bounds::drain`] at the latest.
pub async fn serve<W, I, IO, E>(
    incoming: I,
    services: Services<W>,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()>
where
    W: World,
    I: Stream<Item = Result<IO, E>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (stop, mut stopped) = watch::channel(false);
    let Services { coordinator, plugins, tokens, access } = services;
    let operations = Arc::clone(&coordinator.coordinator);
    let coordinator = CoordinatorServiceServer::new(coordinator)
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(RESPONSE_BYTES);
    let plugins = PluginServiceServer::new(plugins).max_decoding_message_size(REQUEST_BYTES);
    let tokens = AccessServiceServer::new(tokens);
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_serving::<CoordinatorServiceServer<CoordinatorApi<W>>>().await;
    health.set_serving::<PluginServiceServer<PluginApi>>().await;
    health.set_serving::<AccessServiceServer<AccessApi>>().await;
    let serving = server(&bounds)
        // The first layer is the outermost.
        .layer(CountCalls { kind, too_many })
        // What is no call at all is not looked at any further.
        .layer(OnlyGrpc)
        // Calls refused by the layers below have an id, too.
        .layer(Origins(bounds.sampling))
        .layer(Deadlines(too_late))
        .layer(Guard(access))
        // The last layer is the innermost: nothing is buffered for a call that is refused anyway.
        .layer(IntakeLayer::new(bounds.intake))
        .add_service(coordinator)
        .add_service(plugins)
        .add_service(tokens)
        .add_service(health_server)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
    let deadline = async {
        shutdown.await;
        health.set_not_serving::<CoordinatorServiceServer<CoordinatorApi<W>>>().await;
        health.set_not_serving::<PluginServiceServer<PluginApi>>().await;
        health.set_not_serving::<AccessServiceServer<AccessApi>>().await;
        let _ = stop.send(true);
        // An idle connection would hold up a graceful shutdown forever: once no operation is in flight, a moment for sending the
        // last responses is enough.
        let drained = async {
            operations.drained().await;
            tokio::time::sleep(Duration::from_millis(200).min(bounds.drain)).await;
        };
        let _ = tokio::time::timeout(bounds.drain, drained).await;
    };
    tokio::select! {
        served = serving => served?,
        () = deadline => {}
    }
    Ok(())
}

/// Maximum age of a connection. Its client is then asked to reconnect, and calls in flight are completed. So clients discover
/// coordinators that were added since, and unused connections do not stay open forever.
const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

fn too_many() -> http::Response<tonic::body::Body> {
    tonic::Status::resource_exhausted(TOO_MANY).into_http()
}

fn kind(path: &str) -> CallKind {
    let rule = scope::of_call(path);
    match rule.streams {
        true if rule.need == Need::Nothing || path.starts_with("/grpc.reflection.") => CallKind::Watch,
        true => CallKind::Stream,
        false => CallKind::Unary,
    }
}

/// Sets hyper's limits explicitly: tonic leaves them unset by default.
fn server(bounds: &Bounds) -> Server {
    Server::builder()
        .max_concurrent_streams(bounds.streams)
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_local_error_reset_streams(Some(256))
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_connection_age(CONNECTION_AGE)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .tcp_nodelay(true)
}

/// The answer to a call whose deadline has passed.
fn too_late(late: Late<'_>) -> Response<Body> {
    status::too_late(late.begun, scope::of_call(late.path).effect != Effect::Nothing).status().into_http()
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("witan.v1.CoordinatorService")
        .with_service_name("witan.v1.PluginService")
        .with_service_name("witan.v1.AccessService")
        .with_service_name("grpc.health.v1.Health")
}
