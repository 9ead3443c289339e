//! SIGINT and SIGTERM, which stop the process.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A receiver that turns true at SIGINT or SIGTERM. A second signal ends the process immediately.
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
                tracing::warn!("second signal received: exiting immediately");
                std::process::exit(130);
            }
            tracing::info!("shutting down; a second signal exits immediately");
            stop.send_replace(true);
        }
    });
    Ok(stopped)
}

/// Ready when the stop signal is given, or its sender is dropped.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
