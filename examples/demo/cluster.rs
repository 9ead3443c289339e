//! The demonstration's cluster: one coordinator and three storage nodes, each a process with its own folder, log and ports.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::client::DEADLINE;
use crate::process::{Process, free_ports, log, own_address};

/// Storage nodes: as many as a key has replicas by default.
pub const NODES: usize = 3;

/// A running cluster. Its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    witan: PathBuf,
    folder: PathBuf,
    host: IpAddr,
    node_port: u16,
    nodes: Vec<Option<Process>>,
    coordinator: Option<Process>,
    /// Address of the coordinator's gRPC.
    pub address: String,
    admin: String,
}

impl Cluster {
    /// Starts the nodes, then the coordinator.
    pub async fn start(witan: &Path, folder: &Path) -> Result<Self> {
        let host = own_address();
        let ports = free_ports(host, NODES as u16 + 2)?;
        let mut cluster = Self {
            witan: witan.to_path_buf(),
            folder: folder.to_path_buf(),
            node_port: ports + 2,
            nodes: (0..NODES).map(|_| None).collect(),
            coordinator: None,
            address: format!("{host}:{ports}"),
            admin: format!("{host}:{}", ports + 1),
            host,
        };
        for index in 0..NODES {
            cluster.start_node(index).await?;
        }
        cluster.start_coordinator().await?;
        Ok(cluster)
    }

    /// Starts a node with the data in its folder.
    pub async fn start_node(&mut self, index: usize) -> Result<()> {
        let name = node_name(index);
        let mut command = Command::new(&self.witan);
        command.args(["node", "--id", &name, "--listen", &self.node_address(index), "--data-dir"]);
        command.arg(self.folder.join(&name));
        self.nodes[index] = Some(Process::start(&name, &mut command, &log(&self.folder, &name)).await?);
        Ok(())
    }

    async fn start_coordinator(&mut self) -> Result<()> {
        let mut command = Command::new(&self.witan);
        command.args(["serve", "--listen", &self.address, "--admin-listen", &self.admin, "--data-dir"]);
        command.arg(self.folder.join("coordinator"));
        for index in 0..NODES {
            command.args(["--node", &format!("{}={}", node_name(index), self.node_address(index))]);
        }
        let started = Process::start("coordinator", &mut command, &log(&self.folder, "coordinator")).await?;
        self.coordinator = Some(started);
        Ok(())
    }

    /// Kills a node with SIGKILL; returns the id of its process.
    pub async fn kill_node(&mut self, index: usize) -> Result<u32> {
        let process = self.nodes[index].take().context("the node is not running")?;
        let id = process.id();
        process.kill().await?;
        Ok(id)
    }

    /// Pauses a node: it keeps its connections, and answers nothing.
    pub async fn pause_node(&self, index: usize) -> Result<()> {
        self.nodes[index].as_ref().context("the node is not running")?.signal("STOP").await
    }

    /// Resumes it.
    pub async fn resume_node(&self, index: usize) -> Result<()> {
        self.nodes[index].as_ref().context("the node is not running")?.signal("CONT").await
    }

    /// HOST:PORT of a node.
    pub fn node_address(&self, index: usize) -> String {
        format!("{}:{}", self.host, self.node_port + index as u16)
    }

    /// Process ids: the coordinator's, then the nodes'.
    pub fn ids(&self) -> Vec<u32> {
        self.coordinator.iter().chain(self.nodes.iter().flatten()).map(Process::id).collect()
    }

    /// The sum of a counter over its labels, from the coordinator's /metrics.
    pub async fn counter(&self, name: &str) -> Result<u64> {
        let text = timeout(DEADLINE, self.metrics()).await.context("read /metrics in time")??;
        let total = format!("{name}_total");
        let samples =
            text.lines().filter_map(|line| line.strip_prefix(&total)).filter(|rest| rest.starts_with(['{', ' ']));
        let values = samples.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
        let mut found = None;
        for value in values {
            *found.get_or_insert(0) += value as u64;
        }
        found.with_context(|| format!("/metrics has no {total}"))
    }

    async fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(&self.admin).await.context("connect to the HTTP port")?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).await.context("ask for /metrics")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("read /metrics")?;
        if !answer.starts_with("HTTP/1.1 200") {
            bail!("/metrics answers {}", answer.lines().next().unwrap_or_default());
        }
        Ok(answer)
    }

    /// Stops every process in order: the coordinator first, so that it does not find nodes missing.
    pub async fn stop(mut self) -> Result<()> {
        for process in self.coordinator.take().into_iter().chain(self.nodes.drain(..).flatten()) {
            process.stop().await?;
        }
        Ok(())
    }
}

/// A node's id.
pub fn node_name(index: usize) -> String {
    format!("node-{}", index + 1)
}
