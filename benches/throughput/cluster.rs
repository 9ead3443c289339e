//! The measured processes: three storage nodes, a coordinator, the baseline.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use witan::cli::output::Output;
use witan::cli::{Global, tenant};
use witan_wire::v1::CreateTenantRequest;

use crate::Options;

/// A cluster. Its processes end and its folders are removed when it is dropped.
pub(crate) struct Cluster {
    pub(crate) coordinator: Process,
    pub(crate) baseline: Process,
    /// The arguments of `--node`: "id=host:port".
    nodes: Vec<String>,
    durability: String,
    nodes_running: Vec<Process>,
    runtime: Runtime,
    /// Dropped last, after the processes.
    folder: TempDir,
}

impl Cluster {
    /// Starts a cluster with this durability of nodes and coordinator: "os" or "sync".
    pub(crate) fn start(options: &Options, durability: &str) -> anyhow::Result<Self> {
        Self::start_with(options, durability, &[])
    }

    /// The same, with these variables in the environment of the coordinator.
    pub(crate) fn start_with(
        options: &Options,
        durability: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let folder = match &options.folder {
            Some(folder) => TempDir::with_prefix_in("witan-bench-", folder)?,
            None => TempDir::with_prefix("witan-bench-")?,
        };
        let mut nodes = Vec::new();
        for id in ["node-1", "node-2", "node-3"] {
            let data = folder.path().join(id);
            let mut command = Command::new(&options.witan);
            command.args(["node", "--id", id, "--listen", "127.0.0.1:0", "--durability", durability]);
            command.arg("--data-dir").arg(data);
            nodes.push(Process::start(command, &folder.path().join(format!("{id}.log")))?);
        }
        let named: Vec<String> =
            nodes.iter().zip(1..).map(|(node, number)| format!("node-{number}={}", node.address)).collect();
        let coordinator = coordinator(options, durability, &named, folder.path(), "coordinator", |command| {
            command.envs(environment.iter().copied());
        })?;

        let addresses: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--baseline").arg(addresses.join(","));
        let baseline = Process::start(command, &folder.path().join("baseline.log"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let durability = durability.to_owned();
        Ok(Self { coordinator, baseline, nodes: named, durability, nodes_running: nodes, runtime, folder })
    }

    /// Another coordinator of the same nodes, whose stores are at these addresses.
    pub(crate) fn another(&self, options: &Options, database: &str, redis: &str) -> anyhow::Result<Process> {
        let folder = self.folder.path();
        let stores = [("--database-url-file", "database", database), ("--redis-url-file", "redis", redis)];
        for (_, file, url) in stores {
            std::fs::write(folder.join(file), url)?;
        }
        coordinator(options, &self.durability, &self.nodes, folder, "another", |command| {
            stores.into_iter().for_each(|(option, file, _)| _ = command.arg(option).arg(folder.join(file)));
        })
    }

    /// The ids of the measured processes.
    pub(crate) fn measured(&self) -> impl Iterator<Item = u32> {
        self.nodes_running.iter().chain([&self.coordinator]).map(|process| process.child.id())
    }

    /// Creates a tenant of three replicas.
    pub(crate) fn tenant(&self, id: &str, conflict_mode: &str, ordering: &str) -> anyhow::Result<()> {
        self.tenant_at(&self.coordinator, id, conflict_mode, ordering)
    }

    /// Creates a tenant of three replicas at this coordinator.
    pub(crate) fn tenant_at(
        &self,
        coordinator: &Process,
        id: &str,
        conflict_mode: &str,
        ordering: &str,
    ) -> anyhow::Result<()> {
        let request = CreateTenantRequest {
            tenant_id: id.to_owned(),
            replication_factor: 3,
            conflict_mode: conflict_mode.to_owned(),
            ordering: ordering.to_owned(),
            ..CreateTenantRequest::default()
        };
        let created = self.runtime.block_on(tenant::ensure(&global(coordinator), request, true));
        created.map(drop).with_context(|| format!("create tenant {id}"))
    }

    /// Runs a future that uses the coordinator.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The global options of command-line subcommands for this coordinator.
    pub(crate) fn global(&self) -> Global {
        global(&self.coordinator)
    }
}

fn global(coordinator: &Process) -> Global {
    Global {
        endpoint: coordinator.endpoint(),
        output: Output::Json,
        timeout: Some(Duration::from_secs(30)),
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
        server_name: None,
        token_file: None,
        allow_plaintext_token: false,
        log_level: None,
        log_format: None,
    }
}

fn coordinator(
    options: &Options,
    durability: &str,
    nodes: &[String],
    folder: &Path,
    name: &str,
    stores: impl FnOnce(&mut Command),
) -> anyhow::Result<Process> {
    let mut command = Command::new(&options.witan);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--durability", durability]);
    command.args(["--node-id", name]).arg("--data-dir").arg(folder.join(name));
    nodes.iter().for_each(|node| _ = command.arg("--node").arg(node));
    stores(&mut command);
    Process::start(command, &folder.join(format!("{name}.log")))
}

/// A process that has printed "ready address=...".
pub(crate) struct Process {
    child: Child,
    /// "host:port".
    pub(crate) address: String,
    /// Kept open, so that the process never writes into a closed pipe.
    _output: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let shown = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(log)?);
        let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
        let output = child.stdout.take().context("a child without standard output")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            if output.read_line(&mut line)? == 0 {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(log).unwrap_or_default();
                anyhow::bail!("{shown} ended before it was ready: {said}");
            }
        }
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
        let address = address.with_context(|| format!("{shown} printed no address: {line}"))?.to_owned();
        Ok(Self { child, address, _output: output })
    }

    /// "http://host:port".
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Resident memory, KiB.
    pub(crate) fn resident_kib(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        resident(&status).with_context(|| format!("{path} has no resident memory"))
    }

    /// Processor time used so far, in user and kernel mode, all threads together.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The second field, a name in parentheses, may contain any character; utime and stime are the 12th and 13th after it.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).context("a process without a name")?;
        let ticks: Vec<u64> =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        anyhow::ensure!(ticks.len() == 2, "{path} is not as it should be");
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * MILLIS_PER_TICK))
    }
}

/// "VmRSS:      1234 kB" of a process's status.
fn resident(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

/// Linux reports processor time in hundredths of a second, whatever the kernel's own tick is.
const MILLIS_PER_TICK: u64 = 10;

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
