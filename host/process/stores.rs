//! The stores that coordinators share, for metadata and idempotency records, and the lease on a coordinator's id.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{oneshot, watch};
use witan_kernel::idempotency::{Name, Step, Stepped};
use witan_kernel::port::{Claim, Durability, IdempotencyStore, Metadata, StoreError};
use witan_node::engine::fjall::holder;
use witan_store::idempotency::{EmbeddedIdempotency, RedisConfig, RedisIdempotency};
use witan_store::metadata::{PostgresConfig, PostgresMetadata, SqliteMetadata};

use super::signal::stopped;
use super::system::SystemClock;

/// Addresses of the stores that coordinators share.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    /// The metadata database; `None`: an SQLite file private to this coordinator.
    pub postgres: Option<PostgresConfig>,
    /// The servers of the idempotency store; `None`: an embedded store private to this coordinator.
    pub redis: Option<RedisConfig>,
}

/// How long a coordinator's lease on its id lasts without renewal.
const LEASE: Duration = Duration::from_secs(15);
/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(5);

/// Opens the metadata store.
pub(crate) async fn metadata(shared: &Shared, data_dir: &Path) -> anyhow::Result<Arc<dyn Metadata>> {
    if let Some(postgres) = &shared.postgres {
        tracing::info!("waiting for PostgreSQL");
        let opened = PostgresMetadata::connect(postgres.clone()).await;
        return Ok(Arc::new(opened.context("open the metadata in PostgreSQL")?));
    }
    let path = data_dir.join("metadata.db");
    let opened = SqliteMetadata::open(&path).await;
    Ok(Arc::new(opened.with_context(|| format!("open the metadata store {}", path.display()))?))
}

/// The configured idempotency store.
#[derive(Clone)]
pub enum Idempotency {
    /// Embedded, private to this coordinator.
    Embedded(Arc<EmbeddedIdempotency>),
    /// Redis, shared by all coordinators.
    Redis(RedisIdempotency),
}

impl Idempotency {
    pub(crate) async fn open(
        shared: &Shared,
        data_dir: &Path,
        clock: SystemClock,
        durability: Durability,
    ) -> anyhow::Result<Self> {
        if let Some(redis) = &shared.redis {
            return Ok(Self::Redis(RedisIdempotency::new(redis.clone()).context("configure Redis")?));
        }
        let folder = data_dir.join("idempotency");
        let shown = folder.display().to_string();
        let opened = tokio::task::spawn_blocking(move || match EmbeddedIdempotency::open(&folder, clock, durability) {
            Err(StoreError::Conflict(_)) => Err(anyhow::anyhow!(
                "it is in use by {}: stop that process first, or give each coordinator a folder of its own (server.data_dir)",
                holder(&folder)
            )),
            opened => Ok(opened?),
        });
        let opened = opened.await?.with_context(|| format!("open the idempotency store {shown}"))?;
        Ok(Self::Embedded(Arc::new(opened)))
    }

    /// Whether it refuses records because it has no room for them.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Embedded(embedded) => embedded.is_full(),
            Self::Redis(redis) => redis.is_full(),
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Embedded(embedded) => embedded.close().await,
            Self::Redis(_) => {}
        }
    }
}

impl IdempotencyStore for Idempotency {
    async fn step(&self, name: Name, step: Step) -> Result<Stepped, StoreError> {
        match self {
            Self::Embedded(embedded) => embedded.step(name, step).await,
            Self::Redis(redis) => redis.step(name, step).await,
        }
    }
}

/// Another process coordinates under this process's id.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}: this process was cut off from the metadata store for longer than its lease, and another one has taken its id since; every \
     coordinator needs a unique id: stop one of the two, or give it another one with --node-id"
)]
pub struct IdLost(String);

/// The lease on a coordinator's id, which keeps other processes from using the id.
pub(crate) struct Seat {
    metadata: Arc<dyn Metadata>,
    claim: Claim,
}

impl Seat {
    /// Takes the lease. If another process holds it, this waits until that lease would have expired; one that is still renewed by
    /// then belongs to a live process, which is an error.
    pub(crate) async fn take(metadata: Arc<dyn Metadata>, claim: Claim) -> anyhow::Result<Self> {
        let patience = tokio::time::Instant::now() + LEASE + RENEW;
        loop {
            match metadata.hold_lease(claim.clone(), LEASE.as_millis() as u64).await {
                Ok(_) => return Ok(Self { metadata, claim }),
                Err(StoreError::Conflict(held)) if tokio::time::Instant::now() < patience => {
                    tracing::info!(%held, "waiting for this coordinator's id");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(StoreError::Conflict(held)) => {
                    anyhow::bail!("{held}; every coordinator needs a unique id: choose another one with --node-id")
                }
                Err(error) => return Err(error).context("take this coordinator's id"),
            }
        }
    }

    /// Renews the lease until the stop signal, then releases it; `lost` gets the reason when another process has taken the id.
    pub(crate) async fn keep(self, stop: watch::Receiver<bool>, lost: oneshot::Sender<IdLost>) {
        let stopped = stopped(stop);
        tokio::pin!(stopped);
        let mut failing = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEW) => {}
                () = &mut stopped => break,
            }
            match self.metadata.hold_lease(self.claim.clone(), LEASE.as_millis() as u64).await {
                Ok(_) => failing = false,
                // It was cut off for longer than its lease, and another process has the id: two must not go under one.
                Err(StoreError::Conflict(held)) => return drop(lost.send(IdLost(held))),
                // Reported once. Known tenants are served through an outage of the metadata store.
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::error!(%error, "the lease on this coordinator's id could not be renewed");
                }
                Err(_) => {}
            }
        }
        let _ = self.metadata.release_lease(&self.claim.node_id, self.claim.instance).await;
    }
}
