//! The gRPC server of a coordinator: services, limits, and a bounded shutdown.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceBuilder;
use witan_kernel::backoff::{self, Backoff};
use witan_net::call::{Deadlines, Late, OnlyGrpc};
use witan_wire::v1::FILE_DESCRIPTOR_SET;
use witan_wire::v1::access_service_server::AccessServiceServer;
use witan_wire::v1::coordinator_service_server::CoordinatorServiceServer;
use witan_wire::v1::plugin_service_server::{PluginService, PluginServiceServer};

use super::guard::Guard;
use super::intake::{self, IntakeLayer, REQUEST_BYTES};
use super::origin::{Origins, Sampling};
use super::{AccessApi, CoordinatorApi, status};
use crate::access::Access;
use crate::access::scope::{self, Effect, Need};
use witan_coordinate::World;
use witan_net::{CallKind, CountCalls, Incoming, Peer, Serving};

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
pub struct Services<W: World, P: PluginService> {
    /// Keys, tenants and storage nodes.
    pub coordinator: CoordinatorApi<W>,
    /// The plugin platform.
    pub plugins: P,
    /// API tokens.
    pub tokens: AccessApi,
    /// Authorizes calls.
    pub access: Arc<Access>,
}

/// Serves incoming connections until `shutdown` is ready; then stops accepting, lets calls in flight finish, and returns after
/// [`Bounds::drain`] at the latest.
pub async fn serve<W: World, P: PluginService>(
    incoming: Incoming,
    services: Services<W, P>,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (stop, stopped) = oneshot::channel();
    let Services { coordinator, plugins, tokens, access } = services;
    let operations = Arc::clone(&coordinator.coordinator);
    let coordinator = CoordinatorServiceServer::new(coordinator)
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(RESPONSE_BYTES);
    let plugins = PluginServiceServer::new(plugins).max_decoding_message_size(REQUEST_BYTES);
    let tokens = AccessServiceServer::new(tokens);
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_serving::<CoordinatorServiceServer<CoordinatorApi<W>>>().await;
    health.set_serving::<PluginServiceServer<P>>().await;
    health.set_serving::<AccessServiceServer<AccessApi>>().await;
    let routes = Routes::new(coordinator)
        .add_service(plugins)
        .add_service(tokens)
        .add_service(health_server)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let service = ServiceBuilder::new()
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
        .service(routes.prepare());
    let serving = witan_net::serve(incoming, service, Serving { streams: bounds.streams, age }, async {
        // An error means that nobody waits for the end any more.
        let _ = stopped.await;
    });
    let deadline = async {
        shutdown.await;
        health.set_not_serving::<CoordinatorServiceServer<CoordinatorApi<W>>>().await;
        health.set_not_serving::<PluginServiceServer<P>>().await;
        health.set_not_serving::<AccessServiceServer<AccessApi>>().await;
        let _ = stop.send(());
        // An idle connection would hold up a graceful shutdown forever: once no operation is in flight, a moment for sending the
        // last responses is enough.
        let drained = async {
            operations.drained().await;
            tokio::time::sleep(Duration::from_millis(200).min(bounds.drain)).await;
        };
        let _ = tokio::time::timeout(bounds.drain, drained).await;
    };
    tokio::select! {
        () = serving => {}
        () = deadline => {}
    }
    Ok(())
}

/// Maximum age of a connection. Its client is then asked to reconnect, and calls in flight are completed. So clients discover
/// coordinators that were added since, and unused connections do not stay open forever.
const CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

/// The age of a connection: up to half of the maximum less, so that clients which connected in the same moment, say because their
/// coordinator had ended, do not come back in the same moment. The same for the same two ends.
fn age(peer: &Peer) -> Duration {
    let seed = backoff::seed(&[peer.address.to_string().as_bytes()]);
    Backoff::new(CONNECTION_AGE, CONNECTION_AGE, seed).failed()
}

fn too_many(why: &'static str) -> Response<Body> {
    intake::refused(why).into_http()
}

fn kind(path: &str) -> CallKind {
    let rule = scope::of_call(path);
    match rule.streams {
        true if rule.need == Need::Nothing || path.starts_with("/grpc.reflection.") => CallKind::Watch,
        true => CallKind::Stream,
        false if rule.need == Need::Nothing => CallKind::Probe,
        false => CallKind::Unary,
    }
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// As after a restart of their coordinator.
    #[test]
    fn clients_that_connected_together_do_not_come_back_together() {
        let of = |port| {
            age(&Peer { address: SocketAddr::from(([10, 0, 0, 1], port)), identity: None, usage: Default::default() })
        };
        let ages: Vec<Duration> = (40_000..41_000).map(of).collect();
        assert!(ages.iter().all(|age| (CONNECTION_AGE / 2..=CONNECTION_AGE).contains(age)));
        // A thousand clients in 15 minutes: about 67 in each.
        let mut minutes = [0; 15];
        ages.iter()
            .for_each(|age| minutes[((age.as_secs() - CONNECTION_AGE.as_secs() / 2) / 60).min(14) as usize] += 1);
        assert!(minutes.iter().all(|clients| (30..110).contains(clients)), "{minutes:?}");
        assert_eq!(of(40_000), ages[0]);
    }
}
