//! Signals.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Turns true at SIGINT or SIGTERM. A second one ends the process at once, for whoever cannot wait.
pub fn stop_on_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        for last in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if last {
                tracing::warn!("a second signal: ending at once");
                std::process::exit(130);
            }
            tracing::info!("shutting down; a second signal ends at once");
            stop.send_replace(true);
        }
    });
    Ok(stopped)
}

/// Ready when the signal to stop is given, or whoever could give it is gone.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
