//! HTTP for operators: metrics, liveness, readiness.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use witan_kernel::hook::Pending;

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
}

/// Serves metrics, /livez and /readyz until `shutdown` is ready.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let mut router = Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(readyz));
    if let Some(path) = &admin.metrics_path {
        router = router.route(path, get(metrics));
    }
    let router = router.with_state(admin);
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served,
        // Nothing here is worth waiting for, and an idle connection would keep a graceful end waiting.
        () = shutdown => Ok(()),
    }
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

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let Ready { reasons, notes } = (admin.readiness)().await;
    let lines = |lines: Vec<String>| lines.into_iter().map(|line| line + "\n").collect::<String>();
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned() + &lines(notes));
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines(reasons) + &lines(notes))
}
