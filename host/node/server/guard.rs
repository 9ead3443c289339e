//! Whom a node serves: coordinators only. It holds every record of every tenant and asks nobody about tenants, so whoever
//! reaches it may read and change everything.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures::future::Either;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use witan_net::SharedSecret;

/// Whom a node serves.
#[derive(Debug, Clone, Default)]
pub enum Guard {
    /// Whoever reaches it: only this machine does, or the listener takes only coordinators' certificates.
    #[default]
    Connected,
    /// Calls that show this secret.
    Secret(SharedSecret),
}

/// Whether a node lives is no secret, and whoever asks (a supervisor, a load balancer) has none to show.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Stands before every service, those included that do not exist.
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
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.guard.lets_in(&request) {
            return Either::Left(self.inner.call(request));
        }
        let refused = Status::unauthenticated(
            "this storage node serves coordinators only; give the coordinator its secret with \
             security.nodes.shared_secret_file",
        );
        Either::Right(ready(Ok(refused.into_http())))
    }
}

impl Guard {
    fn lets_in<B>(&self, request: &Request<B>) -> bool {
        match self {
            Self::Connected => true,
            Self::Secret(secret) => secret.is_shown(request.headers()) || request.uri().path().starts_with(OPEN),
        }
    }
}
