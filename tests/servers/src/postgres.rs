//! A PostgreSQL server.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::Process;
use crate::program::{self, User};
use crate::reaper;
use crate::server::Server;

mod template;

/// Settings of every server. Committed means synced, as in production: `fsync` stays on unless a test asks for `off`, which is safe
/// where only processes are killed (the operating system has the written data then) and spares the disk of a busy machine.
const SETTINGS: [(&str, &str); 6] = [
    ("listen_addresses", "127.0.0.1"),
    // The path of a socket is limited to 107 bytes; that of a temporary folder may be longer.
    ("unix_socket_directories", ""),
    ("shared_buffers", "16MB"),
    ("max_connections", "200"),
    ("synchronous_commit", "on"),
    ("log_line_prefix", "%m [%p] "),
];

/// A running server with an empty database `postgres`, and a superuser of the same name without a password. Stopped and
/// removed when dropped, and also when the test process ends, however that happens.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    /// Dropped after the server.
    folder: TempDir,
}

impl Postgres {
    /// Starts a server on a free port; it answers when this returns.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further settings, such as `("fsync", "off")`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_with(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("witan-postgres-").tempdir().expect("make a temporary folder");
        let user = program::unprivileged("postgres");
        give(folder.path(), user);
        reaper::watch(folder.path());
        let data = data(&folder);
        template::copy(&data, user);
        let settings = SETTINGS.iter().chain(settings).map(|(name, value)| format!("{name}={value}"));
        let settings: Vec<String> = settings.collect();
        let log = folder.path().join("log");
        let launch = move |port: u16| {
            let mut command = Command::new(program::find(&["postgres"]));
            command.arg("-D").arg(&data).args(["-p", &port.to_string()]);
            for setting in &settings {
                command.args(["-c", setting]);
            }
            Process::start("PostgreSQL", &mut command, &data, &log, user)
        };
        Self { server: Server::start("PostgreSQL", answers, launch), folder }
    }

    /// `postgres://postgres@127.0.0.1:<port>/postgres`.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The address of another database.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.address())
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Creates an empty database, so that several tests can share a server; returns its [`Self::url_of`].
    ///
    /// # Panics
    /// When the server does not create it.
    pub fn database(&self, name: &str) -> String {
        self.ask(&format!("CREATE DATABASE \"{name}\""));
        self.url_of(name)
    }

    /// Runs SQL in the database `postgres` with `psql`, and returns the rows, their columns separated by `|`.
    ///
    /// # Panics
    /// When it fails.
    pub fn ask(&self, sql: &str) -> String {
        let mut psql = Command::new(program::find(&["psql"]));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", sql]);
        let output = psql.stdin(Stdio::null()).output().expect("run psql");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// `kill -9` of all its processes; they have ended when this returns.
    pub fn kill(&self) {
        self.server.process().kill();
    }

    /// Stops the server as an operator does ("fast": connections are cut, transactions rolled back).
    pub fn stop(&self) {
        self.server.process().end("INT");
    }

    /// Restarts it after [`Self::kill`] or [`Self::stop`], with the same data on the same port; it answers when this
    /// returns.
    ///
    /// # Panics
    /// When it does not start, or is running.
    pub fn start_again(&self) {
        self.server.start_again();
    }

    /// Pauses all its processes (SIGSTOP): it keeps its connections and does not respond.
    pub fn pause(&self) {
        self.server.process().pause();
    }

    /// Resumes them (SIGCONT).
    pub fn resume(&self) {
        self.server.process().resume();
    }

    /// The end of its log since its last start.
    pub fn log(&self) -> String {
        self.server.process().log()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // "Immediate": nothing is saved, but the shared memory is released.
        self.server.process().end("QUIT");
        template::release_shared_memory(&data(&self.folder));
    }
}

fn data(folder: &TempDir) -> PathBuf {
    folder.path().join("data")
}

/// Makes the user the owner of a folder, with access for nobody else.
pub(crate) fn give(folder: &Path, user: Option<User>) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("restrict a folder");
    if let Some(user) = user {
        chown(folder, Some(user.uid), Some(user.gid)).expect("give a folder to the server's user");
    }
}

/// Whether it accepts clients: it responds to a start-up message with a request for authentication, not with an error.
fn answers(address: SocketAddr) -> bool {
    const PATIENCE: Duration = Duration::from_secs(5);
    const VERSION_3: [u8; 4] = [0, 3, 0, 0];
    const PARAMETERS: &[u8] = b"user\0postgres\0database\0postgres\0\0";
    const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = (8 + PARAMETERS.len()) as u32;
        stream.write_all(&[&length.to_be_bytes(), &VERSION_3[..], PARAMETERS].concat())?;
        let mut first = [0];
        stream.read_exact(&mut first)?;
        // The response has arrived; whether the goodbye arrives does not matter.
        let _ = stream.write_all(&TERMINATE);
        std::io::Result::Ok(first == *b"R")
    };
    ask().unwrap_or(false)
}
