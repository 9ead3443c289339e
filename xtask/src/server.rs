//! Servers that run as long as a command needs them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

/// A server of the program `witan`. Killed when dropped.
pub struct Server {
    process: Child,
    /// The line that it prints once it serves.
    line: String,
    /// Open as long as it runs: it may print more.
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts it and waits until it is ready. Its log goes to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut process = command.spawn().with_context(|| format!("run {command:?}"))?;
        let stdout = process.stdout.take().context("take the standard output")?;
        let mut server = Self { process, line: String::new(), stdout: BufReader::new(stdout) };
        server.stdout.read_line(&mut server.line).context("read the ready line")?;
        if !server.line.starts_with("ready") {
            let logged = std::fs::read_to_string(log).unwrap_or_default();
            anyhow::bail!("expected a ready line of {command:?}, got {:?}\n{logged}", server.line);
        }
        Ok(server)
    }

    /// The value that the ready line has for this name.
    pub fn ready(&self, name: &str) -> Result<&str> {
        let value = self.line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.with_context(|| format!("expected a ready line with {name}, got {:?}", self.line))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
