//! SIGINT and SIGTERM, which stop the process, and SIGHUP, which does not.

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

/// Keeps the process alive at SIGHUP, which would end it, and logs `what` is read again.
///
/// # Errors
/// When the signal cannot be listened for.
pub fn outlive_hangup(what: &'static str) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: {what}");
        }
    });
    Ok(())
}

/// Ready when the stop signal is given, or its sender is dropped.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
