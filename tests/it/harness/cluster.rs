//! Clusters: storage nodes and a coordinator as separate processes, or all of them in one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU8, Ordering};

use tempfile::TempDir;
use witan_wire::v1::ListStorageNodesRequest;

use super::{Api, Process, Version, eventually, get};

/// Default number of nodes of a cluster.
pub(crate) const NODES: usize = 3;

/// A loopback address for one cluster. All of 127/8 is this machine, and no other process binds ports on it: a killed process
/// finds its port free again, and an attempt to reconnect to a port without a listener cannot connect to itself, which happens
/// on 127.0.0.1 when the kernel picks that very port for the attempt.
pub(crate) fn own_address() -> IpAddr {
    static CLUSTERS: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
    IpAddr::V4(Ipv4Addr::new(127, 64 | (high & 63), low, number))
}

/// Where a node keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A folder.
    Folder,
    /// A file system in memory that only the node sees, of this size in MiB.
    Small(u32),
    /// A file system on a loop device that only the node sees, which [`Cluster::fail_disk`] makes fail.
    Failing,
}

/// The settings of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// One per node.
    pub(crate) disks: Vec<Disk>,
    /// Whether writes wait for the disk. False for tests of availability, in which a disk that is busy for seconds would look
    /// like hanging nodes.
    pub(crate) synced: bool,
    /// The coordinator's limit on open files, which include connections.
    pub(crate) files: Option<u32>,
    /// Settings of the coordinator, as variables of its environment.
    pub(crate) settings: Vec<(&'static str, String)>,
    /// Variables of every process's environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            disks: vec![Disk::Folder; NODES],
            synced: true,
            files: None,
            settings: Vec::new(),
            environment: Vec::new(),
        }
    }
}

struct Node {
    id: String,
    disk: Disk,
    /// Its address, from its first start on.
    address: SocketAddr,
    process: Option<Process>,
}

/// Storage nodes and a coordinator, each a process.
pub(crate) struct Cluster {
    // Dropped first, so that no process outlives its folder.
    nodes: Vec<Node>,
    coordinator: Option<Process>,
    setup: Setup,
    address: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
}

impl Cluster {
    /// Three nodes and a coordinator that reaches them all.
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// A cluster with these settings, whose coordinator reaches all nodes.
    pub(crate) async fn with(setup: Setup) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let free = SocketAddr::new(own_address(), 0);
        let nodes = setup.disks.iter().enumerate().map(|(index, disk)| Node {
            id: format!("node-{}", index + 1),
            disk: *disk,
            address: free,
            process: None,
        });
        let nodes = nodes.collect();
        let mut cluster = Self { nodes, coordinator: None, setup, address: free, admin: free, folder };
        for node in 0..cluster.nodes.len() {
            cluster.spawn_node(node);
        }
        for node in 0..cluster.nodes.len() {
            cluster.node_ready(node).await;
        }
        cluster.start_coordinator().await;
        cluster.all_reachable().await;
        cluster
    }

    /// A client of the coordinator; it reconnects automatically.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.address)
    }

    /// The coordinator's gRPC address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The coordinator's HTTP address.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The log of the coordinator, of all its starts.
    pub(crate) fn coordinator_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("coordinator.log")).expect("a log")
    }

    /// The coordinator's process, which must be running.
    pub(crate) fn coordinator(&mut self) -> &mut Process {
        self.coordinator.as_mut().expect("the coordinator runs")
    }

    /// The address of a node.
    pub(crate) fn node_address(&self, node: usize) -> SocketAddr {
        self.nodes[node].address
    }

    /// The process of a node, which must be running.
    pub(crate) fn node(&self, node: usize) -> &Process {
        self.nodes[node].process.as_ref().expect("the node runs")
    }

    /// A node's folder, as the node sees it.
    pub(crate) fn node_folder(&self, node: usize) -> PathBuf {
        self.folder.path().join(&self.nodes[node].id)
    }

    /// `kill -9` of a node.
    pub(crate) fn kill_node(&mut self, node: usize) {
        self.nodes[node].process = None;
    }

    /// Sets the variables of the coordinator's environment, from its next start on.
    pub(crate) fn set_environment(&mut self, environment: Vec<(&'static str, &'static str)>) {
        self.setup.settings = environment.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    }

    /// `kill -9` of the coordinator.
    pub(crate) fn kill_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Restarts a killed node at its old address, and waits until it serves.
    pub(crate) async fn start_node(&mut self, node: usize) {
        self.spawn_node(node);
        self.node_ready(node).await;
    }

    /// Starts a killed node that must end by itself, with an error, and returns the end of its log.
    pub(crate) async fn node_that_does_not_start(&mut self, node: usize) -> String {
        self.spawn_node(node);
        let mut process = self.nodes[node].process.take().expect("it was spawned");
        let status = process.ended().await;
        assert!(!status.success(), "it ended with {status}");
        process.tail()
    }

    /// Starts the coordinator at its old address, and waits until it serves.
    pub(crate) async fn start_coordinator(&mut self) {
        let mut command = Process::witan();
        command.arg("serve").arg("--data-dir").arg(self.folder.path().join("coordinator"));
        command.arg("--listen").arg(self.address.to_string()).arg("--admin-listen").arg(self.admin.to_string());
        for node in &self.nodes {
            command.arg("--node").arg(format!("{}={}", node.id, node.address));
        }
        self.durability(&mut command);
        command.envs(self.setup.settings.iter().chain(&self.setup.environment).map(|(name, value)| (name, value)));
        if let Some(files) = self.setup.files {
            command = Process::with_files(&command, files);
        }
        let mut process = Process::start("coordinator", command, self.folder.path());
        process.ready().await;
        self.address = process.address("address");
        self.admin = process.address("admin");
        self.coordinator = Some(process);
    }

    /// Makes a [`Disk::Failing`] fail, as a fatal error of its device does: everything written from now on is refused, also to files that
    /// are open.
    pub(crate) fn fail_disk(&self, node: usize) {
        let (id, data) = (self.node(node).id().to_string(), self.node_folder(node));
        let abort = Command::new("nsenter")
            .args(["--mount", "--target", &id, "mount", "-o", "remount,abort"])
            .arg(data)
            .status();
        assert!(abort.expect("run nsenter").success(), "the file system cannot be made to fail");
    }

    /// Sends SIGTERM to a node and waits for its end.
    pub(crate) async fn end_node(&mut self, node: usize) -> ExitStatus {
        let mut process = self.nodes[node].process.take().expect("the node runs");
        process.signal("TERM");
        process.ended().await
    }

    /// Waits until the coordinator reaches every node and reports that it is ready.
    pub(crate) async fn all_reachable(&self) {
        all_reachable(&self.api(), self.nodes.len()).await;
        eventually("the coordinator is ready", async || {
            let (status, _) = get(self.admin, "/readyz").await.ok()?;
            (status == 200).then_some(())
        })
        .await;
    }

    fn spawn_node(&mut self, node: usize) {
        let Node { id, disk, address, .. } = &self.nodes[node];
        let data = self.folder.path().join(id);
        let mut command = match disk {
            Disk::Folder => Process::witan(),
            Disk::Small(mib) => on_small_disk(&data, *mib),
            Disk::Failing => on_failing_disk(&data),
        };
        command.arg("node").arg("--id").arg(id).arg("--data-dir").arg(&data).arg("--listen").arg(address.to_string());
        self.durability(&mut command);
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        self.nodes[node].process = Some(Process::start(id, command, self.folder.path()));
    }

    /// The default is to wait for the disk; tests of durability run as users do.
    fn durability(&self, command: &mut Command) {
        if !self.setup.synced {
            command.args(["--durability", "os"]);
        }
    }

    async fn node_ready(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if let Some(process) = &mut node.process {
            process.ready().await;
            node.address = process.address("address");
        }
    }
}

/// Waits until a coordinator reaches this number of nodes, all that it has.
async fn all_reachable(api: &Api, nodes: usize) {
    eventually("the coordinator reaches every node", async || {
        let listed = api.client().list_storage_nodes(ListStorageNodesRequest {}).await.ok()?.into_inner();
        (listed.nodes.len() == nodes && listed.nodes.iter().all(|node| node.reachable)).then_some(())
    })
    .await;
}

/// Runs the command in a separate mount namespace, in which `data` is a small file system that vanishes with it.
fn on_small_disk(data: &Path, mib: u32) -> Command {
    std::fs::create_dir_all(data).expect("make a folder");
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs -o "size=$1m" tmpfs "$2" && shift 2 && exec "$@""#;
    command.args(may_mount()).args(["sh", "-c", script, "sh", &mib.to_string()]);
    command.arg(data).arg(env!("CARGO_BIN_EXE_witan"));
    command
}

/// Runs the command in a separate mount namespace, in which `data` is an ext4 file system in a sparse file.
///
/// # Panics
/// Without root: only root may attach a loop device.
fn on_failing_disk(data: &Path) -> Command {
    let id = Command::new("id").arg("-u").output().expect("id runs").stdout;
    assert_eq!(
        id.trim_ascii(),
        b"0",
        "the test of a failing disk needs a loop device, which only root may attach: run it as root"
    );
    std::fs::create_dir_all(data).expect("make a folder");
    let mut command = Command::new("unshare");
    let script = r#"truncate -s 1G "$1.image" && mkfs.ext4 -q -F "$1.image" && mount -o loop "$1.image" "$1" \
        && rmdir "$1/lost+found" && shift && exec "$@""#;
    command.args(may_mount()).args(["sh", "-c", script, "sh"]).arg(data).arg(env!("CARGO_BIN_EXE_witan"));
    command
}

/// The flags with which `unshare` may mount: as root, or in a user namespace.
///
/// # Panics
/// When neither is permitted: the test of a full disk must not be skipped silently.
fn may_mount() -> &'static [&'static str] {
    let ways: [&'static [&'static str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let may = |flags: &&[&str]| {
        let probe = Command::new("unshare").args(*flags).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
        probe.is_ok_and(|output| output.status.success())
    };
    ways.into_iter().find(may).expect("a small file system can be mounted, as root or in a user namespace")
}

/// A whole cluster in one process: `witan dev`.
pub(crate) struct Dev {
    process: Process,
    data: PathBuf,
    // Dropped last.
    _folder: Option<TempDir>,
}

impl Dev {
    /// Starts one with its own folder. Nothing waits for the disk: for tests of responses.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let mut dev = Self::run(folder.path(), &["--durability", "os"]).await;
        dev._folder = Some(folder);
        dev
    }

    /// Starts one as users do, with its data in `folder`.
    pub(crate) async fn start_in(folder: &Path) -> Self {
        Self::run(folder, &[]).await
    }

    /// The same with these flags. Nothing waits for the disk.
    pub(crate) async fn start_with(folder: &Path, flags: &[&str]) -> Self {
        Self::run(folder, &[flags, &["--durability", "os"]].concat()).await
    }

    /// Starts one of a version, with its data in `folder`. Nothing waits for the disk.
    pub(crate) async fn of_version(version: Version, folder: &Path) -> Self {
        Self::run_of(version, folder, &["--durability", "os"]).await
    }

    async fn run(folder: &Path, more: &[&str]) -> Self {
        Self::run_of(Version::This, folder, more).await
    }

    async fn run_of(version: Version, folder: &Path, more: &[&str]) -> Self {
        let free = SocketAddr::new(own_address(), 0).to_string();
        let data = folder.join("data");
        let mut command = version.witan();
        command.arg("dev").arg("--data-dir").arg(&data).args(["--listen", &free, "--admin-listen", &free]);
        command.args(["--node-port", "0"]).args(more);
        let mut process = Process::start("dev", command, folder);
        process.ready().await;
        let dev = Self { process, data, _folder: None };
        // A first attempt to reach a node that timed out does not make it unready.
        all_reachable(&dev.api(), dev.nodes().len()).await;
        dev
    }

    /// A client of its coordinator.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.address())
    }

    /// Its gRPC address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address("address")
    }

    /// Its HTTP address.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.process.address("admin")
    }

    /// The addresses of its nodes.
    pub(crate) fn nodes(&self) -> Vec<SocketAddr> {
        let nodes = self.process.fact("nodes").split(',').filter_map(|node| node.split_once('='));
        nodes.map(|(_, address)| address.parse().expect("an address")).collect()
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The folder of all its data.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }
}
