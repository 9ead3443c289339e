//! A node assembled from its configuration: store, threads and server.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use witan_kernel::condition::Condition;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::{Clock, Randomness};

use crate::batch::Durability;
use crate::driver::{Driver, QueueLimits, Threads};
use crate::engine::Usage;
use crate::engine::fjall::{Fjall, Options};
use crate::server::{self, Guard, Limits, ServeError};
use crate::store::{OpenError, Store};

/// The configuration of a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its id, which coordinators must send when they connect.
    pub node_id: NodeId,
    /// The folder of its store, created if it does not exist.
    pub data_dir: PathBuf,
    /// Whether writes are synced before they are acknowledged.
    pub durability: Durability,
    /// The number of shard threads, among which the ring is divided; 0: half the cores, 1 to 8.
    pub shards: usize,
    /// Settings of the engine.
    pub engine: Options,
    /// Size of the cache of rows, in bytes.
    pub row_cache: usize,
    /// How much may wait for each shard.
    pub queue: QueueLimits,
    /// Limits of the server.
    pub limits: Limits,
    /// Which calls it serves.
    pub guard: Guard,
}

/// The default of [`NodeConfig::row_cache`]: about a hundred thousand small rows.
pub const ROW_CACHE: usize = 64 << 20;

impl NodeConfig {
    /// Defaults for everything else.
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
    /// Its store cannot be opened.
    #[error("open store of node {node}: {cause}")]
    Store {
        /// The node's id.
        node: NodeId,
        /// The cause.
        cause: OpenError,
    },
    /// A thread cannot be started.
    #[error("start threads of node {node}: {cause}")]
    Threads {
        /// The node's id.
        node: NodeId,
        /// The cause.
        cause: io::Error,
    },
}

/// An open node. Dropping it ends its threads, and blocks until queued requests are answered.
pub struct Node<C> {
    config: NodeConfig,
    threads: Arc<Threads>,
    clock: C,
}

impl<C: Clock> Node<C> {
    /// Opens the store and starts the threads. Blocks: must not be called on a thread of an async runtime.
    pub fn open(config: NodeConfig, clock: C, randomness: &dyn Randomness) -> Result<Self, NodeError> {
        let failed = |cause| NodeError::Store { node: config.node_id.clone(), cause };
        let options = config.engine.clone().staggered(randomness.sixteen()[0]);
        let engine = Fjall::open(&config.data_dir, options).map_err(|error| failed(OpenError::Engine(error)))?;
        let store = Arc::new(Store::open(Box::new(engine), &config.node_id, randomness).map_err(failed)?);
        let threads =
            Threads::start(store, config.durability, config.shards(), config.queue, config.row_cache, clock.clone())
                .map_err(|cause| NodeError::Threads { node: config.node_id.clone(), cause })?;
        tracing::info!(node = %config.node_id, store = %threads.store().id(), durability = ?config.durability, "store open");
        Ok(Self { config, threads: Arc::new(threads), clock })
    }

    /// Serves incoming connections until `shutdown` is ready and the requests in flight are answered.
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

    /// The node's id.
    pub fn id(&self) -> &NodeId {
        &self.config.node_id
    }

    /// The id of its store.
    pub fn store_id(&self) -> StoreId {
        self.threads.store().id()
    }

    /// The driver of its store, for serving it in another way.
    pub fn driver(&self) -> Arc<dyn Driver> {
        self.threads.clone()
    }

    /// The condition of the store.
    pub fn condition(&self) -> Condition {
        self.threads.store().condition()
    }

    /// The disk usage of the store. Blocks.
    pub fn usage(&self) -> Option<Usage> {
        self.threads.store().engine().usage().ok()
    }
}
