//! A node put together: store, threads and server, from a configuration.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{Clock, Randomness};

use crate::batch::Durability;
use crate::driver::{Driver, QueueLimits, Threads};
use crate::engine::Usage;
use crate::engine::fjall::{Fjall, Options};
use crate::server::{self, Guard, Limits, ServeError};
use crate::store::{OpenError, Store};

/// How a node is run.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its id, which coordinators must mean when they connect.
    pub node_id: NodeId,
    /// Where its store is; made when it does not exist.
    pub data_dir: PathBuf,
    /// Whether an acknowledged write is synced.
    pub durability: Durability,
    /// Threads that the ring is divided among; 0: half the cores, 1 to 8.
    pub shards: usize,
    /// How the store is kept.
    pub engine: Options,
    /// Bytes of rows that are kept at hand, so that the engine is not searched for them.
    pub row_cache: usize,
    /// How much may wait for a shard.
    pub queue: QueueLimits,
    /// Bounds of the server.
    pub limits: Limits,
    /// Whom it serves.
    pub guard: Guard,
}

/// [`NodeConfig::row_cache`] by default: a hundred thousand small rows.
pub const ROW_CACHE: usize = 64 << 20;

impl NodeConfig {
    /// Everything else by default.
    pub fn new(node_id: NodeId, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_id,
            data_dir: data_dir.into(),
            durability: Durability::default(),
            shards: 0,
            engine: Options::default(),
            row_cache: ROW_CACHE,
            queue: QueueLimits::default(),
            limits: Limits::default(),
            guard: Guard::default(),
        }
    }

    fn shards(&self) -> usize {
        match self.shards {
            0 => (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, 8),
            shards => shards,
        }
    }
}

/// Why a node cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its store cannot.
    #[error("open store of node {node}: {source}")]
    Store {
        /// Which node.
        node: NodeId,
        /// Why.
        source: OpenError,
    },
    /// A thread could not be started.
    #[error("start threads of node {node}: {source}")]
    Threads {
        /// Which node.
        node: NodeId,
        /// Why.
        source: io::Error,
    },
}

/// An open node. Its threads end when it is dropped, which blocks until what is queued is answered.
pub struct Node<C> {
    config: NodeConfig,
    threads: Arc<Threads>,
    clock: C,
}

impl<C: Clock> Node<C> {
    /// Opens the store and starts the threads. Blocks: not to be called on a thread of an async runtime.
    pub fn open(config: NodeConfig, clock: C, randomness: &dyn Randomness) -> Result<Self, NodeError> {
        let failed = |source| NodeError::Store { node: config.node_id.clone(), source };
        let engine =
            Fjall::open(&config.data_dir, config.engine.clone()).map_err(|error| failed(OpenError::Engine(error)))?;
        let store = Arc::new(Store::open(Box::new(engine), &config.node_id, randomness).map_err(failed)?);
        let threads =
            Threads::start(store, config.durability, config.shards(), config.queue, config.row_cache, clock.clone())
                .map_err(|source| NodeError::Threads { node: config.node_id.clone(), source })?;
        tracing::info!(node = %config.node_id, store = %threads.store().id(), durability = ?config.durability, "store open");
        Ok(Self { config, threads: Arc::new(threads), clock })
    }

    /// Serves on the connections that come in, until `shutdown` is ready and what is in flight is answered.
    pub async fn serve<I, IO, E>(&self, incoming: I, shutdown: impl Future<Output = ()>) -> Result<(), ServeError>
    where
        I: Stream<Item = Result<IO, E>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (node, driver) = (self.config.node_id.clone(), self.threads.clone());
        let (limits, guard) = (self.config.limits.clone(), self.config.guard.clone());
        server::serve(incoming, node, driver, self.clock.clone(), limits, guard, shutdown).await
    }

    /// Its id.
    pub fn id(&self) -> &NodeId {
        &self.config.node_id
    }

    /// Who its store is.
    pub fn store_id(&self) -> StoreId {
        self.threads.store().id()
    }

    /// The store at work, for whoever serves it in another way.
    pub fn driver(&self) -> Arc<dyn Driver> {
        self.threads.clone()
    }

    /// What the store takes on its disk. Blocks.
    pub fn usage(&self) -> Option<Usage> {
        self.threads.store().engine().usage().ok()
    }
}
