//! The HTTP edge for operators: metrics, liveness, readiness.

use std::sync::Arc;

use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use axum::middleware::{self, Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::{IncomingStream, Listener};
use prometheus_client::registry::Registry;
use witan_kernel::hook::Pending;
use witan_net::{Connection, Incoming, Peer, Usage};

use crate::access::caller::Origin;
use crate::access::refusal::Refusal;
use crate::access::scope::{self, Need, Rule};
use crate::access::{Access, shown};

/// Reports whether a coordinator should receive traffic.
pub type Readiness = Arc<dyn Fn() -> Pending<Ready> + Send + Sync>;

/// Whether a coordinator should receive traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ready {
    /// Reasons why it should not; empty when it is ready.
    pub reasons: Vec<String>,
    /// Conditions that an operator should know about although it is ready.
    pub notes: Vec<String>,
}

/// What the admin server serves.
#[derive(Clone)]
pub struct Admin {
    /// All metrics.
    pub metrics: Arc<Registry>,
    /// HTTP path of the metrics; `None`: not served.
    pub metrics_path: Option<String>,
    /// The answer to `/readyz`.
    pub readiness: Readiness,
    /// Authorizes requests.
    pub access: Arc<Access>,
}

/// The connections of the admin server.
#[derive(Debug)]
pub struct AdminIncoming {
    incoming: Incoming,
    asks: bool,
}

impl AdminIncoming {
    /// Accepts connections from `incoming`. `asks`: all paths but the probes require a client certificate.
    pub fn new(incoming: Incoming, asks: bool) -> Self {
        Self { incoming, asks }
    }
}

impl Listener for AdminIncoming {
    type Io = Connection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Connection, Peer) {
        let connection = self.incoming.next().await;
        let peer = connection.peer().clone();
        (connection, peer)
    }

    fn local_addr(&self) -> std::io::Result<Peer> {
        Ok(Peer { address: self.incoming.local_addr()?, identity: None, usage: Usage::default() })
    }
}

/// The client of a request, in its extensions as `ConnectInfo<Visitor>`.
#[derive(Debug, Clone)]
pub struct Visitor(pub Peer);

impl Connected<IncomingStream<'_, AdminIncoming>> for Visitor {
    fn connect_info(stream: IncomingStream<'_, AdminIncoming>) -> Self {
        Self(stream.remote_addr().clone())
    }
}

/// Marks, in its extensions, a request without a client certificate on a listener that asks for one.
#[derive(Debug, Clone, Copy)]
struct Stranger;

/// Paths of probes, which have no client certificate and are answered with yes or no only.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

async fn ask_for_certificate(ConnectInfo(visitor): ConnectInfo<Visitor>, mut request: Request, next: Next) -> Response {
    if visitor.0.identity.is_some() {
        return next.run(request).await;
    }
    if PROBES.contains(&request.uri().path()) {
        request.extensions_mut().insert(Stranger);
        return next.run(request).await;
    }
    let remedy = "present a certificate that is signed by an authority in security.tls.client_ca_file\n";
    (StatusCode::FORBIDDEN, remedy).into_response()
}

/// Serves metrics, /livez and /readyz until `shutdown` is ready.
pub async fn serve(
    listener: AdminIncoming,
    admin: Admin,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let mut router = Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(readyz));
    if let Some(path) = &admin.metrics_path {
        router = router.route(path, get(metrics));
    }
    let router = router.layer(from_fn_with_state(admin.clone(), guard)).with_state(admin);
    let router = match listener.asks {
        true => router.layer(middleware::from_fn(ask_for_certificate)),
        false => router,
    };
    let router = router.layer(middleware::from_fn(in_use));
    let service = router.into_make_service_with_connect_info::<Visitor>();
    tokio::select! {
        served = async { axum::serve(listener, service).await } => served,
        // No request here is worth waiting for, and an idle connection would delay a graceful shutdown.
        () = shutdown => Ok(()),
    }
}

/// A connection is in use from when it has sent the headers of a request until that is answered.
async fn in_use(ConnectInfo(visitor): ConnectInfo<Visitor>, request: Request, next: Next) -> Response {
    let _call = visitor.0.usage.call();
    next.run(request).await
}

/// Authorizes requests to every path, unknown paths included.
async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let rule = scope::of_http(request.uri().path());
    if rule.need == Need::Nothing {
        return next.run(request).await;
    }
    match admitted(&admin, rule, request.headers(), request.extensions()).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refused(&refusal),
    }
}

async fn admitted(
    admin: &Admin,
    rule: &'static Rule,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<(), Refusal> {
    let shown = shown(headers);
    let peer = extensions.get::<ConnectInfo<Visitor>>().map(|visitor| visitor.0.0.address);
    let origin = Origin { peer, ..Origin::default() };
    match admin.access.admit(rule, shown, &origin) {
        Some(admitted) => admitted.map(drop),
        None => admin.access.admit_unseen(rule, shown, &origin).await.map(drop),
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal.reason() {
        "UNAUTHORIZED" => StatusCode::UNAUTHORIZED,
        "FORBIDDEN" => StatusCode::FORBIDDEN,
        "RATE_LIMIT_EXCEEDED" => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, [(header::WWW_AUTHENTICATE, "Bearer")], format!("{refusal}\n")).into_response()
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Anybody may see whether the coordinator is ready. The reasons name nodes and databases, so they are shown to authorized callers.
async fn readyz(State(admin): State<Admin>, headers: HeaderMap, extensions: Extensions) -> impl IntoResponse {
    let Ready { reasons, notes } = (admin.readiness)().await;
    let lines = |lines: Vec<String>| lines.into_iter().map(|line| line + "\n").collect::<String>();
    // A probe without a credential is not an attempt at access: it is answered without a check, which would count a refusal.
    let asks = headers.contains_key(header::AUTHORIZATION) || admin.access.serves_anybody();
    let stranger = extensions.get::<Stranger>().is_some();
    if stranger || !asks || admitted(&admin, scope::of_details(), &headers, &extensions).await.is_err() {
        return match reasons.is_empty() {
            true => (StatusCode::OK, "ok\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, "not ready; send a credential to see why\n".to_owned()),
        };
    }
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned() + &lines(notes));
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines(reasons) + &lines(notes))
}
