//! How a storage node is reached.

use std::pin::Pin;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use witan_kernel::hook::Pending;
use witan_kernel::name::{NodeId, StoreId};
use witan_kernel::port::StorageNode;

/// Makes connections to storage nodes: sockets, or the simulation's network.
pub trait Connect: Clone + Send + Sync + 'static {
    /// A fresh connection to a node.
    fn connect(&self, node: &StorageNode) -> Connecting;

    /// Whether the store that a node has told in its handshake holds what the node is to hold; asked before anything is
    /// sent. An error gives the connection up, to be tried again.
    fn admit(&self, node: &NodeId, store: StoreId) -> Pending<Result<Trust, String>> {
        let _ = (node, store);
        Box::pin(std::future::ready(Ok(Trust::Whole)))
    }
}

/// What a node's store may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Everything.
    Whole,
    /// It is not the store on record: a disk was wiped or replaced, and what it lacks looks like what was never written. It
    /// is written to, and not asked.
    WriteOnly,
}

/// A connection being made.
pub type Connecting = Pin<Box<dyn Future<Output = Result<Channel, tonic::transport::Error>> + Send>>;

/// Sockets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Connect for Tcp {
    fn connect(&self, node: &StorageNode) -> Connecting {
        let endpoint = endpoint(node);
        Box::pin(async move { endpoint?.connect().await })
    }
}

/// The settings of every connection to a node, whatever carries it. Keepalive goes on while nothing is in flight: without
/// it, a connection that a partition has cut may never be given up.
pub fn endpoint(node: &StorageNode) -> Result<Endpoint, tonic::transport::Error> {
    let host = if node.host.contains(':') { format!("[{}]", node.host) } else { node.host.clone() };
    Ok(Endpoint::from_shared(format!("http://{host}:{}", node.port))?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        // One stream carries everything, so the stream's window is the connection's.
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20))
}
