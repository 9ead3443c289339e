//! Metadata in PostgreSQL, for any number of coordinators.
//!
//! The hazards of a shared database are closed in four places: an operation runs in a task that nobody drops
//! ([`super::operations`]); it has a time limit of its own, and what is dropped by that limit closes its connection
//! ([`super::sql`]); a connection is lent only after it has told that it is in no transaction ([`connections`]); and the server
//! itself ends a transaction that stands idle, a statement that takes too long, and a connection whose other end is gone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use witan_kernel::port::{Answer, StoreError};

use super::migrations;
use super::sql::{Connection, Db, Driver, Purpose, SqlMetadata};
use connections::Connections;

pub(super) use connections::Lent;
pub(super) use errors::failed;
pub use examine::{PostgresFacts, examine};

mod connections;
mod errors;
mod examine;
mod listen;

#[cfg(test)]
mod tests;

/// Ends a change's transaction and tells every coordinator that listens, in one exchange.
pub(super) const COMMIT_AND_NOTIFY: &str = "NOTIFY witan_changes; COMMIT";

/// The oldest server that is tested with.
const OLDEST_SERVER: u32 = 130_000;
/// How long bringing the schema up to date may take, the wait for another coordinator that does so included.
const MIGRATION: Duration = Duration::from_secs(60);

/// How PostgreSQL is reached. Its address holds a password, and is not shown in logs.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`, with `?sslmode=verify-full&sslrootcert=...` and what else libpq knows.
    /// The server itself, or a pooler that keeps a session for each connection.
    pub url: String,
    /// Most connections for operations; there is one more that listens. 1..=100.
    pub connections: u32,
    /// How long an operation waits for a connection to be made.
    pub connect: Duration,
    /// How long an operation may take, all waiting included. Its connection is closed when it takes longer. The server's own
    /// limits are kept below it.
    pub operation: Duration,
}

impl PostgresConfig {
    /// Eight connections, 3 s to connect, 5 s for an operation.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), connections: 8, connect: Duration::from_secs(3), operation: Duration::from_secs(5) }
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

/// What the server's settings make of an acknowledged change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresDurability {
    /// `on`, `remote_apply`, `remote_write`, `local` or `off`. With `off`, a crash of the server loses what it acknowledged
    /// last.
    pub synchronous_commit: String,
    /// Without it, a power failure can destroy the database.
    pub fsync: bool,
    /// Without it, a power failure can destroy the database on most file systems.
    pub full_page_writes: bool,
    /// A standby: it refuses changes.
    pub in_recovery: bool,
    /// As the server tells it, such as `15.14 (Debian 15.14-0+deb12u1)`.
    pub server_version: String,
}

/// Metadata in PostgreSQL. Clones share its connections.
pub type PostgresMetadata = SqlMetadata<Server>;

/// Connections to a PostgreSQL server.
#[derive(Clone)]
pub struct Server {
    connections: Arc<Connections>,
    patience: Duration,
    listening: Arc<Listening>,
}

/// Ends with the last clone of its metadata.
struct Listening(AbortHandle);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Driver for Server {
    const NAME: &'static str = "PostgreSQL";

    async fn lend(&self, _: Purpose) -> Result<Db, StoreError> {
        Ok(Db::over(Connection::Postgres(self.connections.lend().await?)))
    }

    fn patience(&self) -> Option<Duration> {
        Some(self.patience)
    }
}

impl PostgresMetadata {
    /// Connects, and brings the schema up to date; of several coordinators that start at once, one does and the others wait.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the configuration or the server is not what it must be (the address, a database in UTF-8,
    /// PostgreSQL 13), [`StoreError::Unavailable`] when the server does not answer, [`StoreError::Conflict`] when a newer
    /// version of this program has changed the schema beyond this one, [`StoreError::Damaged`] when the schema is no such one.
    pub async fn connect(config: PostgresConfig) -> Result<Self, StoreError> {
        let options = options(&config)?;
        let mut first = connections::open(&options, config.connect).await?;
        timeout(MIGRATION, prepare(&mut first)).await.map_err(|_| {
            StoreError::Unavailable(format!("the schema was not brought up to date in {MIGRATION:?}"))
        })??;
        connections::close(first).await;

        let connections = Arc::new(Connections::new(options.clone(), &config));
        let hints = Arc::new(watch::Sender::new(0));
        let listening = tokio::spawn(listen::listen(options, config.connect, hints.clone()));
        let listening = Arc::new(Listening(listening.abort_handle()));
        let metadata = Self::over(Server { connections, patience: config.operation, listening }, hints);
        metadata.understood().await?;
        Ok(metadata)
    }

    /// Ends the connections that nobody uses, and the others after their operation. Later operations are answered with
    /// [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.driver.listening.0.abort();
        self.driver.connections.close().await;
    }

    /// What an acknowledged change survives.
    pub fn durability(&self) -> Answer<PostgresDurability> {
        self.read(|db| {
            Box::pin(async move {
                let told = db
                    .one(
                        "SELECT current_setting('synchronous_commit') AS synchronous_commit,
                            current_setting('fsync') = 'on' AS fsync,
                            current_setting('full_page_writes') = 'on' AS full_page_writes,
                            pg_is_in_recovery() AS in_recovery, current_setting('server_version') AS server_version",
                        &[],
                    )
                    .await?;
                Ok(PostgresDurability {
                    synchronous_commit: told.text("synchronous_commit")?,
                    fsync: told.flag("fsync")?,
                    full_page_writes: told.flag("full_page_writes")?,
                    in_recovery: told.flag("in_recovery")?,
                    server_version: told.text("server_version")?,
                })
            })
        })
    }
}

fn options(config: &PostgresConfig) -> Result<PgConnectOptions, StoreError> {
    // Not the error's text: it may quote the address, and with it the password.
    let options: PgConnectOptions = config.url.parse().map_err(|_| {
        StoreError::Refused(
            "the database's address is not of the form postgres://user:password@host:port/database".into(),
        )
    })?;
    if !(1..=100).contains(&config.connections) {
        let is = config.connections;
        return Err(StoreError::Refused(format!("{is} connections to the database; use 1 to 100")));
    }
    Ok(options.application_name("witan"))
}

async fn prepare(first: &mut PgConnection) -> Result<(), StoreError> {
    fit(first).await?;
    migrate(first).await
}

/// Whether this server can keep what will be asked of it.
async fn fit(first: &mut PgConnection) -> Result<(), StoreError> {
    if let Some(version) = first.server_version_num().filter(|version| *version < OLDEST_SERVER) {
        return Err(StoreError::Refused(format!("PostgreSQL is of version {}; use 13 or newer", version / 10_000)));
    }
    let encoding: String =
        sqlx::query_scalar("SELECT current_setting('server_encoding')").fetch_one(first).await.map_err(failed)?;
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError::Refused(format!("the database's encoding is {encoding}; make one with ENCODING 'UTF8'")))
}

async fn migrate(first: &mut PgConnection) -> Result<(), StoreError> {
    // The migrator waits for its turn in an advisory lock, longer than any operation may.
    let patient = "SET statement_timeout = 0; SET lock_timeout = 0; SET client_min_messages = warning";
    sqlx::raw_sql(patient).execute(&mut *first).await.map_err(failed)?;
    migrations::postgres().run_direct(None, first, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(error),
        error => StoreError::Damaged(format!("bring the metadata's schema up to date: {error}")),
    })
}

impl fmt::Debug for PostgresMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresMetadata").finish_non_exhaustive()
    }
}
