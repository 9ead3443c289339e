//! A single Redis server; a cluster of several; a master with replica and sentinel.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::Process;
use crate::server::Server;
use crate::{PATIENCE, program, reaper};

mod ask;
mod cluster;
mod sentinel;

pub use cluster::RedisCluster;
pub use sentinel::RedisSentinel;

/// Longest time of one poll.
const SOON: Duration = Duration::from_secs(5);

/// Settings of every server: acknowledged commands are synced, and nothing is evicted.
const SETTINGS: [(&str, &str); 6] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("maxmemory-policy", "noeviction"),
    // No snapshots in addition to the log.
    ("save", ""),
    ("bind", "127.0.0.1"),
    ("daemonize", "no"),
];

/// A running, empty server. Stopped and removed when dropped, and also when the test process ends, however that happens.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    /// Dropped after the server.
    _folder: TempDir,
}

impl Redis {
    /// Starts a server on a free port; it answers when this returns. `appendonly yes`, `appendfsync always`,
    /// `maxmemory-policy noeviction`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further settings, such as `("maxmemory", "10mb")`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("witan-redis-").tempdir().expect("make a temporary folder");
        reaper::watch(folder.path());
        let settings = SETTINGS.iter().chain(settings).flat_map(|(name, value)| arguments(name, value));
        let settings: Vec<String> = settings.collect();
        let path = folder.path().to_path_buf();
        let launch = move |port: u16| {
            let mut command = Command::new(program::find(&["redis-server", "valkey-server"]));
            command.args(["--port", &port.to_string()]).args(&settings);
            Process::start("Redis", &mut command, &path, &path.join("log"), None)
        };
        Self { server: Server::start("Redis", answers, launch), _folder: folder }
    }

    /// `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Sends a command whose words have no spaces or are in double quotes, such as `FLUSHALL`, and returns the response, a list as lines.
    ///
    /// # Panics
    /// When there is no response, or it is an error.
    pub fn ask(&self, command: &str) -> String {
        ask::ask(self.address(), command, PATIENCE).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// `kill -9`; it has ended when this returns.
    pub fn kill(&self) {
        self.server.process().kill();
    }

    /// Stops the server as an operator does.
    pub fn stop(&self) {
        self.server.process().end("TERM");
    }

    /// Restarts it after [`Self::kill`] or [`Self::stop`], with the same data on the same port; it answers when this
    /// returns.
    ///
    /// # Panics
    /// When it does not start, or is running.
    pub fn start_again(&self) {
        self.server.start_again();
    }

    /// Pauses its process (SIGSTOP): it keeps its connections and does not respond.
    pub fn pause(&self) {
        self.server.process().pause();
    }

    /// Resumes it (SIGCONT).
    pub fn resume(&self) {
        self.server.process().resume();
    }

    /// The end of its log since its last start.
    pub fn log(&self) -> String {
        self.server.process().log()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.server.process().kill();
    }
}

/// A setting of several words becomes several arguments, and an empty one becomes an empty argument.
fn arguments(name: &str, value: &str) -> Vec<String> {
    let name = format!("--{name}");
    std::iter::once(name).chain(value.split(' ').map(str::to_owned)).collect()
}

/// Whether it has loaded its data and accepts commands.
fn answers(address: SocketAddr) -> bool {
    ask::ask(address, "PING", SOON).is_ok_and(|reply| reply == "PONG")
}
