//! Servers that a command starts for a while.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

/// A server of `witan`. Dropped, it is killed.
pub struct Server {
    process: Child,
    /// The line that it prints once it serves.
    ready: String,
    /// Open as long as it runs: it may have more to say.
    said: BufReader<ChildStdout>,
}

impl Server {
    /// Starts it and waits until it is ready. What it logs goes into the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut process = command.spawn().with_context(|| format!("run {command:?}"))?;
        let stdout = process.stdout.take().context("take the standard output")?;
        let mut server = Self { process, ready: String::new(), said: BufReader::new(stdout) };
        server.said.read_line(&mut server.ready).context("read the ready line")?;
        if !server.ready.starts_with("ready") {
            let logged = std::fs::read_to_string(log).unwrap_or_default();
            anyhow::bail!("expected a ready line of {command:?}, got {:?}\n{logged}", server.ready);
        }
        Ok(server)
    }

    /// What the ready line tells under this name.
    pub fn told(&self, name: &str) -> Result<&str> {
        let value = self.ready.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.with_context(|| format!("expected a ready line with {name}, got {:?}", self.ready))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
