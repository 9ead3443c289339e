//! Several coordinators on one PostgreSQL and one Redis.

use std::net::SocketAddr;

use tempfile::TempDir;
use witan_servers::{Postgres, Redis};
use witan_wire::v1;

use super::{Api, Process, eventually, get, own_address};

/// Storage nodes, the servers that coordinators share, and coordinators, each a process of its own.
pub(crate) struct Company {
    // Dropped in this order: nobody misses its folder or its servers.
    pub(crate) coordinators: Vec<Coordinator>,
    _nodes: Vec<Process>,
    /// Ids and addresses of the storage nodes.
    pub(crate) nodes: Vec<(String, SocketAddr)>,
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) folder: TempDir,
}

pub(crate) struct Coordinator {
    id: String,
    pub(crate) process: Option<Process>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Coordinator {
    pub(crate) fn api(&self) -> Api {
        Api::new(self.address)
    }
}

impl Company {
    /// So many coordinators over three nodes.
    pub(crate) async fn of(coordinators: usize) -> Self {
        Self::with(3, coordinators).await
    }

    pub(crate) async fn with(nodes: usize, coordinators: usize) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let free = SocketAddr::new(own_address(), 0);
        let start = |number: usize| {
            let mut command = Process::witan();
            let id = format!("node-{number}");
            command.args(["node", "--id", &id, "--durability", "os"]).arg("--data-dir").arg(folder.path().join(&id));
            command.args(["--listen", &free.to_string()]);
            Process::start(&id, command, folder.path())
        };
        let mut processes: Vec<Process> = (1..=nodes).map(start).collect();
        let mut addresses = Vec::new();
        for (index, process) in processes.iter_mut().enumerate() {
            process.ready().await;
            addresses.push((format!("node-{}", index + 1), process.address("address")));
        }
        let servers = tokio::task::spawn_blocking(|| (Postgres::start(), Redis::start()));
        let (postgres, redis) = servers.await.expect("the servers start");
        std::fs::write(folder.path().join("database"), postgres.url()).expect("write a file");
        std::fs::write(folder.path().join("redis"), redis.url()).expect("write a file");
        let mut company =
            Self { coordinators: Vec::new(), _nodes: processes, nodes: addresses, postgres, redis, folder };
        for number in 1..=coordinators {
            let id = format!("coordinator-{number}");
            let free = SocketAddr::new(own_address(), 0);
            company.coordinators.push(Coordinator { id, process: None, address: free, admin: free });
            company.start(number - 1).await;
        }
        company
    }

    /// The command that starts a coordinator of this cluster.
    pub(crate) fn command(&self, id: &str, address: SocketAddr, admin: SocketAddr) -> std::process::Command {
        let path = self.folder.path();
        let mut command = Process::witan();
        command.args(["serve", "--node-id", id, "--durability", "os"]).arg("--data-dir").arg(path.join(id));
        command.args(["--listen", &address.to_string(), "--admin-listen", &admin.to_string()]);
        command.arg("--database-url-file").arg(path.join("database"));
        command.arg("--redis-url-file").arg(path.join("redis"));
        self.nodes.iter().for_each(|(id, address)| _ = command.args(["--node", &format!("{id}={address}")]));
        command
    }

    /// Starts a coordinator where it was before, and waits until it is ready.
    pub(crate) async fn start(&mut self, index: usize) {
        let Coordinator { id, address, admin, .. } = &self.coordinators[index];
        let mut process = Process::start(id, self.command(id, *address, *admin), self.folder.path());
        process.ready().await;
        let coordinator = &mut self.coordinators[index];
        coordinator.address = process.address("address");
        coordinator.admin = process.address("admin");
        coordinator.process = Some(process);
        let (admin, nodes) = (coordinator.admin, self.nodes.len());
        let api = coordinator.api();
        eventually("the coordinator reaches every node", async || {
            let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.ok()?.into_inner();
            (listed.nodes.len() == nodes && listed.nodes.iter().all(|node| node.reachable)).then_some(())
        })
        .await;
        eventually("the coordinator is ready", async || (get(admin, "/readyz").await.ok()?.0 == 200).then_some(()))
            .await;
    }

    pub(crate) fn api(&self, index: usize) -> Api {
        self.coordinators[index].api()
    }
}
