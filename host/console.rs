//! HTTP for operators: metrics, liveness, readiness.

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
use witan_net::{Connection, Incoming, Peer};

use crate::access::caller::Origin;
use crate::access::refusal::Refusal;
use crate::access::scope::{self, Need, Rule};
use crate::access::{Access, shown};

/// Tells whether a coordinator should get traffic.
pub type Readiness = Arc<dyn Fn() -> Pending<Ready> + Send + Sync>;

/// Whether a coordinator should get traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ready {
    /// Why it should not; empty when it should.
    pub reasons: Vec<String>,
    /// What an operator should know all the same.
    pub notes: Vec<String>,
}

/// What the admin server shows.
#[derive(Clone)]
pub struct Admin {
    /// Everything that is counted.
    pub metrics: Arc<Registry>,
    /// Where that is shown; `None`: nowhere.
    pub metrics_path: Option<String>,
    /// Whether it should get traffic.
    pub readiness: Readiness,
    /// Lets requests in, or not.
    pub access: Arc<Access>,
}

/// The connections of the admin server.
#[derive(Debug)]
pub struct AdminIncoming {
    incoming: Incoming,
    asks: bool,
}

impl AdminIncoming {
    /// What comes in. `asks`: everything but the probes is for clients with a certificate only.
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
        Ok(Peer { address: self.incoming.local_addr()?, identity: None })
    }
}

/// Who asks: in the extensions of each request, as `ConnectInfo<Visitor>`.
#[derive(Debug, Clone)]
pub struct Visitor(pub Peer);

impl Connected<IncomingStream<'_, AdminIncoming>> for Visitor {
    fn connect_info(stream: IncomingStream<'_, AdminIncoming>) -> Self {
        Self(stream.remote_addr().clone())
    }
}

/// In the extensions of a request without a certificate, where clients have one.
#[derive(Debug, Clone, Copy)]
struct Stranger;

/// Probes have no certificate to show, and learn no more than yes or no.
const PROBES: [&str; 2] = ["/livez", "/readyz"];

async fn ask_for_certificate(ConnectInfo(visitor): ConnectInfo<Visitor>, mut request: Request, next: Next) -> Response {
    if visitor.0.identity.is_some() {
        return next.run(request).await;
    }
    if PROBES.contains(&request.uri().path()) {
        request.extensions_mut().insert(Stranger);
        return next.run(request).await;
    }
    let told = "show a certificate that is signed by an authority in security.tls.client_ca_file\n";
    (StatusCode::FORBIDDEN, told).into_response()
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
    let service = router.into_make_service_with_connect_info::<Visitor>();
    tokio::select! {
        served = async { axum::serve(listener, service).await } => served,
        // Nothing here is worth waiting for, and an idle connection would keep a graceful end waiting.
        () = shutdown => Ok(()),
    }
}

/// Before every path, and before what is no path at all.
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
    let origin = Origin { peer, request_id: None };
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

/// Anybody may know whether; why not tells of nodes and databases.
async fn readyz(State(admin): State<Admin>, headers: HeaderMap, extensions: Extensions) -> impl IntoResponse {
    let Ready { reasons, notes } = (admin.readiness)().await;
    let lines = |lines: Vec<String>| lines.into_iter().map(|line| line + "\n").collect::<String>();
    // A probe without a credential is no attempt at anything.
    let asks = headers.contains_key(header::AUTHORIZATION) || admin.access.serves_anybody();
    let stranger = extensions.get::<Stranger>().is_some();
    if stranger || !asks || admitted(&admin, scope::of_details(), &headers, &extensions).await.is_err() {
        return match reasons.is_empty() {
            true => (StatusCode::OK, "ok\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, "not ready; a credential shows why\n".to_owned()),
        };
    }
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned() + &lines(notes));
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines(reasons) + &lines(notes))
}
