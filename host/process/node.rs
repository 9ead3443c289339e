//! A running storage node, and the several of them that `witan dev` runs in one process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use witan_kernel::condition::Condition;
use witan_kernel::durability::Durability;
use witan_kernel::limit;
use witan_kernel::name::{NodeId, Zone};
use witan_kernel::port::{NodeStatus, StorageNode};
use witan_net::{Bounds, Incoming, Protocol};
use witan_node::node::{Node, NodeConfig};

use super::signal::stopped;
use super::system::{SystemClock, SystemRandomness};

/// Opens a node. This blocks, so it runs outside the runtime's threads.
pub async fn open(config: NodeConfig) -> anyhow::Result<Node<SystemClock>> {
    let opened = tokio::task::spawn_blocking(move || Node::open(config, SystemClock::new(), &SystemRandomness));
    Ok(opened.await??)
}

/// Serves a node until `stop` turns true; its threads have ended when this returns.
///
/// # Errors
/// When serving failed, and when the store has failed meanwhile: whoever started the node must not take it for well.
pub async fn serve(node: Node<SystemClock>, incoming: Incoming, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let served = node.serve(incoming, stopped(stop)).await;
    let (id, condition) = (node.id().clone(), node.condition());
    tokio::task::spawn_blocking(move || drop(node)).await?;
    served?;
    match condition {
        Condition::Failed(reason) => Err(anyhow::anyhow!(
            "the store of node {id} has failed: {reason}; check the disk, then start the node again"
        )),
        Condition::Serving | Condition::Full => Ok(()),
    }
}

/// Storage nodes of this process, on loopback, named node-1 and so on.
pub struct LocalNodes {
    /// The nodes as the control plane records them.
    pub nodes: Vec<StorageNode>,
    serving: Vec<JoinHandle<anyhow::Result<()>>>,
    stop: watch::Sender<bool>,
}

impl LocalNodes {
    /// Starts `count` nodes, each with a folder below `folder`, on the ports from `first_port` on; 0: each takes a free one.
    ///
    /// # Errors
    /// When a port is taken or a store cannot be opened; the nodes started before then stop.
    pub async fn start(count: u16, first_port: u16, folder: &Path, durability: Durability) -> anyhow::Result<Self> {
        let mut local = Self { nodes: Vec::new(), serving: Vec::new(), stop: watch::channel(false).0 };
        for index in 0..count {
            let port = if first_port == 0 { 0 } else { first_port + index };
            let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("listen on {address}; another process may have the port: choose others with --node-port")
            })?;
            let id = NodeId::new(format!("node-{}", index + 1))?;
            let port = listener.local_addr()?.port();
            let mut config = NodeConfig::new(id.clone(), folder.join(id.as_str()));
            config.durability = durability;
            // All nodes share this machine's cores.
            config.shards = 1;
            let node = open(config).await?;
            let incoming = Incoming::new(listener, None, Protocol::Grpc, Bounds::default());
            local.serving.push(tokio::spawn(serve(node, incoming, local.stop.subscribe())));
            local.nodes.push(StorageNode {
                id,
                host: Ipv4Addr::LOCALHOST.to_string(),
                port,
                virtual_nodes: limit::VIRTUAL_NODES,
                status: NodeStatus::Active,
                zone: Zone::default(),
            });
        }
        Ok(local)
    }

    /// Stops every node and waits until all have ended.
    ///
    /// # Errors
    /// When a node failed while it served.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        for node in self.serving {
            node.await??;
        }
        Ok(())
    }
}
