//! A master, a replica, and a sentinel that fails over from one to the other.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use super::ask::ask;
use super::{Redis, SOON};
use crate::process::Process;
use crate::server::Server;
use crate::{PATIENCE, eventually, program, reaper};

/// The name under which the sentinel knows the master.
const MASTER: &str = "witan";

/// A master, its replica, and one sentinel, which decides alone. However busy the machine is, it does not fail over before
/// [`Self::kill_master`].
#[derive(Debug)]
pub struct RedisSentinel {
    servers: [Redis; 2],
    sentinel: Server,
    /// Dropped after the sentinel.
    _folder: TempDir,
}

impl RedisSentinel {
    /// Starts the three; the replica follows the master, and the sentinel knows both, when this returns.
    ///
    /// # Panics
    /// When one cannot be started, or they do not connect.
    pub fn start() -> Self {
        let master = Redis::start();
        let port = master.address().port().to_string();
        let replica = Redis::start_with(&[("replicaof", &format!("127.0.0.1 {port}"))]);
        let folder = tempfile::Builder::new().prefix("witan-sentinel-").tempdir().expect("make a temporary folder");
        reaper::watch(folder.path());
        let path = folder.path().to_path_buf();
        let launch = move |own: u16| {
            let settings = format!(
                "port {own}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {port} 1\n\
                 sentinel down-after-milliseconds {MASTER} 86400000\nsentinel failover-timeout {MASTER} 5000\n",
                path.display()
            );
            // It writes its state into the file.
            let file = path.join("sentinel.conf");
            fs::write(&file, settings).expect("write the sentinel's settings");
            let mut command = Command::new(program::find(&["redis-server", "valkey-server"]));
            command.arg(&file).arg("--sentinel");
            Process::start("the sentinel", &mut command, &path, &path.join("log"), None)
        };
        let sentinel = Server::start("the sentinel", super::answers, launch);
        let started = Self { servers: [master, replica], sentinel, _folder: folder };
        started.await_replica();
        started
    }

    fn await_replica(&self) {
        let reply = |address: SocketAddr, command: &str| ask(address, command, SOON).unwrap_or_default();
        let ready = eventually(|| {
            let follows = reply(self.servers[1].address(), "INFO replication").contains("master_link_status:up");
            // A healthy replica has only these flags.
            let known =
                reply(self.sentinel.address(), &format!("SENTINEL replicas {MASTER}")).contains("flags\nslave\n");
            (follows && known).then_some(())
        });
        assert!(ready.is_some(), "the sentinel does not find the replica: {}", self.sentinel.process().log());
    }

    /// `redis://` address of the sentinel.
    pub fn url(&self) -> String {
        format!("redis://{}", self.sentinel.address())
    }

    /// The name under which it knows the master.
    pub fn master_name(&self) -> &'static str {
        MASTER
    }

    /// The server that is initially the master.
    pub fn first(&self) -> &Redis {
        &self.servers[0]
    }

    /// The server that is initially the replica.
    pub fn second(&self) -> &Redis {
        &self.servers[1]
    }

    /// `kill -9` of the first master, which the sentinel counts as lost after a second without a response. Eventually the second
    /// server is the master: within seconds, or within half a minute on a machine so busy that the sentinel does not trust its
    /// own clock.
    ///
    /// # Panics
    /// When the sentinel does not answer.
    pub fn kill_master(&self) {
        let command = format!("SENTINEL SET {MASTER} down-after-milliseconds 1000");
        ask(self.sentinel.address(), &command, PATIENCE).unwrap_or_else(|error| panic!("{command}: {error}"));
        self.first().kill();
    }

    /// The address of the master according to the sentinel.
    pub fn master(&self) -> Option<SocketAddr> {
        let reply = ask(self.sentinel.address(), &format!("SENTINEL get-master-addr-by-name {MASTER}"), SOON).ok()?;
        reply.replace('\n', ":").parse().ok()
    }
}
