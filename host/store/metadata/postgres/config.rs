//! How the server is reached.

use std::fmt;
use std::time::Duration;

/// How PostgreSQL is reached. The address contains a password and is not logged.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`, with `?sslmode=verify-full&sslrootcert=...` and libpq's other parameters.
    /// Either the server itself or a pooler, in any mode.
    pub url: String,
    /// The address of the server itself, if `url` is that of a pooler: for migrations, and for hearing of changes at once.
    pub direct: Option<String>,
    /// Most connections for operations, 1..=100; one more listens for changes.
    pub connections: u32,
    /// Time limit of connecting.
    pub connect: Duration,
    /// Time limit of an operation, all waiting included. Its connection is closed when it takes longer. The server's own time limits
    /// are set below it.
    pub operation: Duration,
}

impl PostgresConfig {
    /// Eight connections, 3 s to connect, 5 s for an operation.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            direct: None,
            connections: 8,
            connect: Duration::from_secs(3),
            operation: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("connections", &self.connections)
            .field("connect", &self.connect)
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}
