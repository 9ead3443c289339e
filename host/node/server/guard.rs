//! Admits calls of coordinators only. A node stores the records of all tenants and does not check who may access which, so
//! a caller that is admitted can read and change everything.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures::future::Either;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use witan_net::{SharedSecret, discard};

/// Which calls a node serves.
#[derive(Debug, Clone, Default)]
pub enum Guard {
    /// All calls: the node is reachable only from this machine, or the listener accepts only certificates of coordinators.
    #[default]
    Connected,
    /// Calls that carry this secret.
    Secret(SharedSecret),
}

/// Path prefix of calls that need no secret: health checks come from supervisors and load balancers, which have none.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Applies a guard to every call, including calls of services that do not exist.
#[derive(Debug, Clone)]
pub(super) struct GuardLayer(pub(super) Guard);

impl<S> Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.0.clone(), inner }
    }
}

/// Services behind a guard.
#[derive(Debug, Clone)]
pub(super) struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    B: HttpBody + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.guard.admits(&request) {
            return Either::Left(self.inner.call(request));
        }
        discard(request.into_body());
        let refused = Status::unauthenticated(
            "this storage node serves coordinators only; set the node's secret at the coordinator with \
             security.nodes.shared_secret_file",
        );
        Either::Right(ready(Ok(refused.into_http())))
    }
}

impl Guard {
    fn admits<B>(&self, request: &Request<B>) -> bool {
        match self {
            Self::Connected => true,
            Self::Secret(secret) => secret.is_shown(request.headers()) || request.uri().path().starts_with(OPEN),
        }
    }
}
