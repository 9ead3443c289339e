//! A coordinator from its configuration to its end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::config;
use super::private;
use super::reload::{Following, Reloads};
use super::signal::{self, stopped};
use super::start::start;
use super::telemetry::{LogFilter, Traces};
use crate::config::Loaded;

/// Time after the drain for giving back the lease and closing the stores: an unreachable database is given up after 5 s.
const CLOSING: Duration = Duration::from_secs(8);

/// Runs a coordinator until SIGINT or SIGTERM.
///
/// `log` changes what is logged, where the configuration decides that. `ready` is called with the addresses of gRPC and of HTTP
/// once both are served.
///
/// # Errors
/// When it cannot start, or fails while it serves.
pub async fn run(
    loaded: Loaded,
    log: Option<LogFilter>,
    ready: impl FnOnce(SocketAddr, SocketAddr),
) -> anyhow::Result<()> {
    let stop = signal::stop_on_signal()?;
    for note in &loaded.notes {
        tracing::warn!(key = note.key, "{}", note.what);
    }
    let settings = &loaded.settings;
    let traces = Traces::start(&settings.telemetry, &settings.server.node_id)?;
    let (live, following) = watch::channel(config::live(settings));
    let reloads = Reloads::default();
    let drain = settings.server.shutdown_timeout.0;
    let config = config::config(settings)?;
    private::folder(&config.data_dir).with_context(|| format!("create {}", config.data_dir.display()))?;
    // From here on SIGHUP reloads the configuration; before, it ends the process.
    let reread = Following::new(loaded, live, log, reloads.clone())?;
    let serving = tokio::select! {
        started = start(config, following, reloads, stop.clone()) => started?,
        () = stopped(stop.clone()) => {
            tracing::info!("stopped while starting");
            traces.end().await;
            return Ok(());
        }
    };
    tokio::spawn(reread.run(stop.clone()));
    ready(serving.address, serving.admin_address);
    let stopping = serving.stopping.clone();
    tokio::select! {
        ended = serving.ended() => ended?,
        () = overdue(stopping, drain) => {
            tracing::warn!("shutdown timed out; in-flight work was abandoned and the lease will expire on its own");
        }
    }
    traces.end().await;
    Ok(())
}

/// Returns when a shutdown has taken too long.
async fn overdue(stop: watch::Receiver<bool>, drain: Duration) {
    stopped(stop).await;
    tokio::time::sleep(drain + CLOSING).await;
}
