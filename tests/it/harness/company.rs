//! Several coordinators on one PostgreSQL and one Redis.

use std::net::SocketAddr;
use std::path::PathBuf;

use tempfile::TempDir;
use witan_servers::{PgBouncer, Postgres, Redis};
use witan_wire::v1;

use super::{Api, Link, Process, Version, eventually, get, node_client, own_address};

/// Storage nodes, the servers that coordinators share, and coordinators, each a separate process.
pub(crate) struct Company {
    // Dropped in this order, so that no process outlives its folder or its servers.
    pub(crate) coordinators: Vec<Coordinator>,
    processes: Vec<Process>,
    /// Ids and addresses of the storage nodes.
    pub(crate) nodes: Vec<(String, SocketAddr)>,
    /// In front of PostgreSQL, if there is one: only the first coordinator knows the way past it.
    pooler: Option<PgBouncer>,
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) folder: TempDir,
    /// Variables of every coordinator's environment.
    environment: Vec<(&'static str, &'static str)>,
}

pub(crate) struct Coordinator {
    id: String,
    version: Version,
    /// The file with the address at which it reaches PostgreSQL.
    database: String,
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
    /// This number of coordinators over three nodes.
    pub(crate) async fn of(coordinators: usize) -> Self {
        Self::with(3, coordinators).await
    }

    pub(crate) async fn with(nodes: usize, coordinators: usize) -> Self {
        Self::of_versions(&vec![Version::This; nodes], &vec![Version::This; coordinators]).await
    }

    /// The same, with PostgreSQL behind PgBouncer in transaction mode, which has fewer connections to it than the coordinators have to the
    /// pooler.
    pub(crate) async fn behind_a_pooler(coordinators: usize) -> Self {
        Self::made(&[Version::This; 3], &vec![Version::This; coordinators], true, Vec::new()).await
    }

    /// A node and a coordinator of each of these versions.
    pub(crate) async fn of_versions(nodes: &[Version], coordinators: &[Version]) -> Self {
        Self::made(nodes, coordinators, false, Vec::new()).await
    }

    /// This number of coordinators over three nodes, with these variables in their environment.
    pub(crate) async fn with_environment(coordinators: usize, environment: Vec<(&'static str, &'static str)>) -> Self {
        Self::made(&[Version::This; 3], &vec![Version::This; coordinators], false, environment).await
    }

    async fn made(
        nodes: &[Version],
        coordinators: &[Version],
        pooled: bool,
        environment: Vec<(&'static str, &'static str)>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let free = SocketAddr::new(own_address(), 0);
        let start = |(index, version): (usize, &Version)| node(&format!("node-{}", index + 1), free, *version, &folder);
        let mut processes: Vec<Process> = nodes.iter().enumerate().map(start).collect();
        let mut addresses = Vec::new();
        for (index, process) in processes.iter_mut().enumerate() {
            process.ready().await;
            addresses.push((format!("node-{}", index + 1), process.address("address")));
        }
        let servers = tokio::task::spawn_blocking(move || {
            let postgres = Postgres::start();
            let pooler = pooled.then(|| PgBouncer::start(&postgres, 2));
            (postgres, pooler, Redis::start())
        });
        let (postgres, pooler, redis) = servers.await.expect("the servers start");
        let database = pooler.as_ref().map_or_else(|| postgres.url(), |pooler| pooler.url_of("postgres"));
        std::fs::write(folder.path().join("database"), database).expect("write a file");
        std::fs::write(folder.path().join("redis"), redis.url()).expect("write a file");
        let mut company = Self {
            coordinators: Vec::new(),
            processes,
            nodes: addresses,
            pooler,
            postgres,
            redis,
            folder,
            environment,
        };
        for (index, version) in coordinators.iter().enumerate() {
            let id = format!("coordinator-{}", index + 1);
            let free = SocketAddr::new(own_address(), 0);
            let (version, database) = (*version, "database".to_owned());
            let coordinator = Coordinator { id, version, database, process: None, address: free, admin: free };
            company.coordinators.push(coordinator);
            company.start(index).await;
        }
        company
    }

    /// The command that starts a coordinator of this cluster.
    pub(crate) fn command(&self, id: &str, address: SocketAddr, admin: SocketAddr) -> std::process::Command {
        self.command_of(Version::This, id, address, admin)
    }

    /// The same, of a version.
    pub(crate) fn command_of(
        &self,
        version: Version,
        id: &str,
        address: SocketAddr,
        admin: SocketAddr,
    ) -> std::process::Command {
        self.command_over("database", version, id, address, admin)
    }

    /// The same, of a coordinator that reaches PostgreSQL at the address in this file.
    fn command_over(
        &self,
        database: &str,
        version: Version,
        id: &str,
        address: SocketAddr,
        admin: SocketAddr,
    ) -> std::process::Command {
        let path = self.folder.path();
        let mut command = version.witan();
        command.args(["serve", "--node-id", id, "--durability", "os"]).arg("--data-dir").arg(path.join(id));
        command.args(["--listen", &address.to_string(), "--admin-listen", &admin.to_string()]);
        command.arg("--database-url-file").arg(path.join(database));
        command.arg("--redis-url-file").arg(path.join("redis"));
        command.envs(self.environment.iter().copied());
        if self.pooler.is_some() && id == "coordinator-1" {
            command.env("WITAN_DATABASE__DIRECT_URL", self.postgres.url());
        }
        self.nodes.iter().for_each(|(id, address)| _ = command.args(["--node", &format!("{id}={address}")]));
        command
    }

    /// Starts one storage node more, which is no part of the cluster yet.
    pub(crate) async fn another_node(&mut self) -> v1::AddStorageNodeRequest {
        let id = format!("node-{}", self.processes.len() + 1);
        let mut process = node(&id, SocketAddr::new(own_address(), 0), Version::This, &self.folder);
        process.ready().await;
        let address = process.address("address");
        self.processes.push(process);
        let (host, port) = (address.ip().to_string(), address.port().into());
        v1::AddStorageNodeRequest { node_id: id, host, port, virtual_nodes: 0, zone: String::new() }
    }

    /// A link to PostgreSQL.
    pub(crate) async fn link_to_postgres(&self) -> Link {
        Link::to(self.postgres.address()).await
    }

    /// Starts one coordinator more, which reaches PostgreSQL over a link only.
    pub(crate) async fn join_over(&mut self, link: &Link) {
        let (id, index) = (format!("coordinator-{}", self.coordinators.len() + 1), self.coordinators.len());
        let url = self.postgres.url().replace(&self.postgres.address().to_string(), &link.address.to_string());
        let (database, free) = (format!("database-of-{id}"), SocketAddr::new(own_address(), 0));
        std::fs::write(self.folder.path().join(&database), url).expect("write a file");
        let version = Version::This;
        self.coordinators.push(Coordinator { id, version, database, process: None, address: free, admin: free });
        self.start(index).await;
    }

    /// The number of a tenant's records on a storage node.
    pub(crate) async fn records_of(&self, index: usize, tenant: &str) -> usize {
        let request = v1::ScanRangeRequest { tenant_id: tenant.to_owned(), ..v1::ScanRangeRequest::default() };
        let page = node_client(self.nodes[index].1).scan_range(request).await.expect("scanned").into_inner();
        assert_eq!(page.next, None, "few enough for one page");
        page.records.len()
    }

    /// `kill -9` of a coordinator.
    pub(crate) fn kill_coordinator(&mut self, index: usize) {
        self.coordinators[index].process = None;
    }

    /// The coordinator that leads placement changes, as on record.
    pub(crate) async fn leader(&self) -> usize {
        eventually("a coordinator leads", async || {
            let now = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
            let id = self.postgres.ask(&format!(
                "SELECT coordinator FROM upkeep_claims WHERE kind = 'placement' AND claimed_until > {now}"
            ));
            self.coordinators.iter().position(|coordinator| coordinator.id == id)
        })
        .await
    }

    /// Starts a coordinator at its old address, and waits until it is ready.
    pub(crate) async fn start(&mut self, index: usize) {
        self.start_unready(index).await;
        let admin = self.coordinators[index].admin;
        eventually("the coordinator is ready", async || (get(admin, "/readyz").await.ok()?.0 == 200).then_some(()))
            .await;
    }

    /// The same, and waits until it serves and reaches every node.
    pub(crate) async fn start_unready(&mut self, index: usize) {
        let Coordinator { id, version, database, address, admin, .. } = &self.coordinators[index];
        let command = self.command_over(database, *version, id, *address, *admin);
        let mut process = Process::start(id, command, self.folder.path());
        process.ready().await;
        let coordinator = &mut self.coordinators[index];
        coordinator.address = process.address("address");
        coordinator.admin = process.address("admin");
        coordinator.process = Some(process);
        self.reaches_every_node(index).await;
    }

    async fn reaches_every_node(&self, index: usize) {
        let (api, nodes) = (self.api(index), self.nodes.len());
        eventually("the coordinator reaches every node", async || {
            let listed = api.client().list_storage_nodes(v1::ListStorageNodesRequest {}).await.ok()?.into_inner();
            (listed.nodes.len() == nodes && listed.nodes.iter().all(|node| node.reachable)).then_some(())
        })
        .await;
    }

    /// Shuts a coordinator down, starts it at its old address with the program of a version, and waits until it is ready.
    pub(crate) async fn change_coordinator(&mut self, index: usize, version: Version) {
        let coordinator = &mut self.coordinators[index];
        coordinator.version = version;
        coordinator.process.as_mut().expect("it runs").end().await;
        self.start(index).await;
    }

    /// Shuts a storage node down.
    pub(crate) async fn end_node(&mut self, index: usize) {
        self.processes[index].end().await;
    }

    /// `kill -9` of a storage node.
    pub(crate) fn kill_node(&mut self, index: usize) {
        self.processes[index].kill();
    }

    /// Pauses every storage node (SIGSTOP).
    pub(crate) async fn stop_nodes(&self) {
        for process in &self.processes {
            process.stop().await;
        }
    }

    /// Resumes them.
    pub(crate) fn resume_nodes(&self) {
        self.processes.iter().for_each(|process| process.signal("CONT"));
    }

    /// Starts a stopped storage node with the program of a version, at its old address and on its data, and waits until every
    /// coordinator reaches it.
    pub(crate) async fn start_node(&mut self, index: usize, version: Version) {
        self.start_node_alone(index, version).await;
        for coordinator in 0..self.coordinators.len() {
            self.reaches_every_node(coordinator).await;
        }
    }

    /// The same, without waiting for coordinators.
    pub(crate) async fn start_node_alone(&mut self, index: usize, version: Version) {
        let (id, address) = &self.nodes[index];
        self.processes[index] = node(id, *address, version, &self.folder);
        self.processes[index].ready().await;
    }

    /// Starts the program of a version on a stopped storage node's folder, and waits for nothing.
    pub(crate) fn node_process(&self, index: usize, version: Version) -> Process {
        let (id, address) = &self.nodes[index];
        node(id, *address, version, &self.folder)
    }

    /// The folder of a storage node.
    pub(crate) fn node_folder(&self, index: usize) -> PathBuf {
        self.folder.path().join(&self.nodes[index].0)
    }

    /// What a coordinator says of a storage node.
    pub(crate) async fn node_at(&self, coordinator: usize, index: usize) -> v1::StorageNodeInfo {
        let listed = self.api(coordinator).client().list_storage_nodes(v1::ListStorageNodesRequest {}).await;
        listed.expect("listed").into_inner().nodes.swap_remove(index)
    }

    pub(crate) fn api(&self, index: usize) -> Api {
        self.coordinators[index].api()
    }
}

/// Starts a storage node on a new folder in `folder`.
fn node(id: &str, address: SocketAddr, version: Version, folder: &TempDir) -> Process {
    let mut command = version.witan();
    command.args(["node", "--id", id, "--durability", "os"]).arg("--data-dir").arg(folder.path().join(id));
    command.args(["--listen", &address.to_string()]);
    Process::start(id, command, folder.path())
}
