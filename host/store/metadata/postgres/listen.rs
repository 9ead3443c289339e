//! Listens for other coordinators' changes, on a separate connection.
//!
//! Nothing depends on it: a missed notification is made up for by polling. It gives a hint after each (re)connection, since
//! notifications in between are lost.

use std::sync::Arc;
use std::time::Duration;

use crate::retry::pauses;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Commits a change and notifies every listening coordinator, in one exchange.
pub(in crate::metadata) const COMMIT_AND_NOTIFY: &str = "NOTIFY witan_changes; COMMIT";

/// After this long without a notification it checks that the server is still there.
const SILENCE: Duration = Duration::from_secs(5);
/// The first pause between attempts to connect, and the longest.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

pub(super) async fn listen(options: PgConnectOptions, patience: Duration, hints: Arc<watch::Sender<u64>>) {
    let mut backoff = pauses(RETRY[0], RETRY[1]);
    loop {
        match timeout(patience, subscribe(&options, patience)).await {
            Ok(Ok(listener)) => {
                backoff.succeeded();
                follow(listener, patience, &hints).await;
                tracing::warn!(
                    "lost the connection that listens for other coordinators' changes; reconnecting to PostgreSQL"
                );
            }
            Ok(Err(error)) => tracing::debug!(%error, "listen to PostgreSQL"),
            Err(_) => tracing::debug!("listen to PostgreSQL: no connection"),
        }
        sleep(backoff.failed()).await;
    }
}

async fn subscribe(options: &PgConnectOptions, patience: Duration) -> sqlx::Result<PgListener> {
    // sqlx listens on a pool's connection only; this pool has a single one, and is dropped with it.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(patience)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen("witan_changes").await?;
    Ok(listener)
}

/// Gives hints until the connection is lost.
async fn follow(mut listener: PgListener, patience: Duration, hints: &watch::Sender<u64>) {
    hints.send_modify(|hints| *hints += 1);
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(_))) => hints.send_modify(|hints| *hints += 1),
            Ok(Ok(None) | Err(_)) => return,
            Err(_) => {
                let there = timeout(patience, sqlx::query("LISTEN witan_changes").execute(&mut listener)).await;
                if !matches!(there, Ok(Ok(_))) {
                    return;
                }
            }
        }
    }
}
