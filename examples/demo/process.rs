//! Servers started by the demonstration: each writes its log to a file, is awaited until it reports that it is ready, and ends with
//! the demonstration, however that ends.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest start: a debug build on a busy machine has to open its stores.
const READY: Duration = Duration::from_secs(60);
/// Longest shutdown of a server.
const STOP: Duration = Duration::from_secs(60);

/// A server. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a server and waits for its `ready` line. Standard error goes to `log`.
    pub async fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file =
            File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
        // A separate process group: Ctrl-C reaches only the demonstration, which then stops its servers in order.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {name}: {command:?}"))?;
        let stdout = child.stdout.take().context("take the standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = timeout(READY, async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("ready") {
                    return Ok(true);
                }
            }
            anyhow::Ok(false)
        });
        let ready = match ready.await {
            Ok(ready) => ready.with_context(|| format!("read what {name} says"))?,
            Err(_) => bail!("{name} was not ready after {READY:?}{}", tail(log)),
        };
        if !ready {
            let status = child.wait().await.context("wait for the end")?;
            bail!("{name} ended with {status} before it was ready{}", tail(log));
        }
        // Nothing uses these lines, but a full pipe would block the server.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { name: name.to_owned(), child })
    }

    /// Its process id; 0 when it has ended.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Kills it with SIGKILL.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("kill {}", self.name))
    }

    /// Pauses or resumes it: SIGSTOP or SIGCONT.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let id = self.id().to_string();
        // The shell's own `kill` is everywhere; the program of that name is not.
        let sent =
            Command::new("sh").args(["-c", "kill -\"$1\" \"$0\"", &id, name]).status().await.context("run sh")?;
        if sent.success() { Ok(()) } else { bail!("{} cannot be sent SIG{name}", self.name) }
    }

    /// Asks it to stop (SIGTERM) and waits. If it does not stop in time, that is an error, and it is killed when dropped.
    pub async fn stop(mut self) -> Result<()> {
        // One that has ended already ends below.
        let _ = self.signal("TERM").await;
        match timeout(STOP, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => bail!("{} ended with {status} when it was asked to stop", self.name),
            Ok(Err(error)) => Err(error).with_context(|| format!("wait for {}", self.name)),
            Err(_) => bail!("{} did not stop within {STOP:?}", self.name),
        }
    }
}

/// The last lines of a log, for an error's text.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(15)..].join("\n  ");
    if last.is_empty() { String::new() } else { format!("; the end of its log:\n  {last}") }
}

/// A loopback address for this process's servers. On Linux all of 127/8 is this machine, and no other process uses this part of it:
/// a killed server finds its port free again, while on 127.0.0.1 another connection may have taken it.
pub fn own_address() -> IpAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 128 | (high & 127), middle, low.clamp(1, 254));
    IpAddr::V4(if cfg!(target_os = "linux") { own } else { Ipv4Addr::LOCALHOST })
}

/// Ports of `address` that were free a moment ago, `count` in a row.
pub fn free_ports(address: IpAddr, count: u16) -> Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind((address, 0)).context("find a free port")?.local_addr()?.port();
        let free = |port: &u16| TcpListener::bind((address, *port)).is_ok();
        if first.checked_add(count).is_some_and(|end| (first..end).collect::<Vec<_>>().iter().all(free)) {
            return Ok(first);
        }
    }
    bail!("no {count} free ports in a row on {address}")
}

/// The path of a server's log.
pub fn log(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}
