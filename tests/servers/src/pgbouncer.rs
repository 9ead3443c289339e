//! PgBouncer in front of a PostgreSQL server.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::Process;
use crate::server::Server;
use crate::{Postgres, postgres, program, reaper};

/// A pooler that runs until it is dropped, or the test process ends.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    /// Dropped after the server.
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts one in transaction mode on a free port, as its package configures it otherwise, with this number of connections to the
    /// server for each database: with fewer than a client has, its transactions wander between them.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(postgres: &Postgres, connections: u32) -> Self {
        let folder = tempfile::Builder::new().prefix("witan-pgbouncer-").tempdir().expect("make a temporary folder");
        // It refuses to run as root.
        let user = program::unprivileged("postgres");
        postgres::give(folder.path(), user);
        reaper::watch(folder.path());
        let (path, behind) = (folder.path().to_path_buf(), postgres.address());
        let launch = move |port: u16| {
            let settings = path.join("pgbouncer.ini");
            // Everybody is the superuser of the tests' servers.
            let text = format!(
                "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {connections}\n",
                behind.ip(),
                behind.port()
            );
            fs::write(&settings, text).expect("write the pooler's settings");
            let mut command = Command::new(program::find(&["pgbouncer"]));
            command.arg(&settings);
            Process::start("PgBouncer", &mut command, &path, &path.join("log"), user)
        };
        Self { server: Server::start("PgBouncer", answers, launch), _folder: folder }
    }

    /// The address of a database behind it.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.server.address())
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.server.process().kill();
    }
}

/// Whether it answers a request for TLS, with which connections begin.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(matches!(answer[0], b'N' | b'S'))
    };
    ask().unwrap_or(false)
}
