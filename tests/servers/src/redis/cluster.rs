//! A Redis cluster of three masters.

use std::net::SocketAddr;

use super::ask::ask;
use super::{Redis, SOON};
use crate::{Port, eventually};

/// The slots of the cluster, divided among the masters.
const SLOTS: [&str; 3] = ["0 5460", "5461 10922", "10923 16383"];

/// Three joined masters without replicas; every slot is served once this exists.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    /// Ports of the cluster bus.
    _buses: Vec<Port>,
}

impl RedisCluster {
    /// Starts the servers and joins them.
    ///
    /// # Panics
    /// When one cannot be started, or they do not join.
    pub fn start() -> Self {
        let buses: Vec<Port> = SLOTS.iter().map(|_| Port::free()).collect();
        let start = |bus: &Port| {
            let port = bus.number().to_string();
            // A long timeout before a node counts as lost: on a busy machine every node is slow at times.
            Redis::start_with(&[("cluster-enabled", "yes"), ("cluster-port", &port), ("cluster-node-timeout", "15000")])
        };
        let cluster = Self { nodes: buses.iter().map(start).collect(), _buses: buses };
        cluster.join();
        cluster
    }

    fn join(&self) {
        for (index, (node, slots)) in self.nodes.iter().zip(SLOTS).enumerate() {
            node.ask(&format!("CLUSTER ADDSLOTSRANGE {slots}"));
            node.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1));
        }
        for (node, bus) in self.nodes.iter().zip(&self._buses).skip(1) {
            let address = node.address();
            self.nodes[0].ask(&format!("CLUSTER MEET {} {} {}", address.ip(), address.port(), bus.number()));
        }
        let whole = |address: SocketAddr| {
            ask(address, "CLUSTER INFO", SOON).is_ok_and(|info| {
                let has = |line: &str| info.lines().any(|shown| shown.trim_end() == line);
                has("cluster_state:ok") && has("cluster_slots_ok:16384") && has("cluster_known_nodes:3")
            })
        };
        let joined = eventually(|| self.nodes.iter().all(|node| whole(node.address())).then_some(()));
        assert!(joined.is_some(), "the cluster does not come together: {}", self.nodes[0].log());
    }

    /// `redis://` addresses of all its servers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// Its servers.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }
}
