//! Metadata in PostgreSQL, for any number of coordinators.
//!
//! Four measures against the hazards of a shared database: an operation runs in a task that is never dropped
//! ([`super::operations`]); it has a time limit, and exceeding it closes its connection ([`super::sql`]); a connection is lent only
//! after the server has confirmed that it is in no transaction ([`connections`]); and the server itself ends idle transactions,
//! statements that take too long, and connections whose peer is gone.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgConnection, Row};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use witan_kernel::port::{Answer, StoreError};

use super::migrations;
use super::sql::{Connection, Db, Driver, Purpose, SqlMetadata};
use connections::Connections;

pub use config::PostgresConfig;
pub(super) use connections::Lent;
pub(super) use errors::failed;
pub use examine::{PostgresFacts, examine};
pub(super) use listen::COMMIT_AND_NOTIFY;

mod config;
mod connections;
mod errors;
mod examine;
mod listen;
mod pooler;

#[cfg(test)]
mod tests;

/// The oldest supported server version.
const OLDEST_SERVER: u32 = 130_000;
/// Time limit of the migrations, including the wait for another coordinator that runs them.
const MIGRATION: Duration = Duration::from_secs(60);

/// The server's settings that decide whether an acknowledged change survives a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresDurability {
    /// `on`, `remote_apply`, `remote_write`, `local` or `off`. With `off`, a crash of the server loses the latest acknowledged
    /// changes.
    pub synchronous_commit: String,
    /// Without it, a power failure can destroy the database.
    pub fsync: bool,
    /// Without it, a power failure can destroy the database on most file systems.
    pub full_page_writes: bool,
    /// A standby: it refuses changes.
    pub in_recovery: bool,
    /// As the server reports it, such as `15.14 (Debian 15.14-0+deb12u1)`.
    pub server_version: String,
}

/// Metadata in PostgreSQL. Clones share its connections.
pub type PostgresMetadata = SqlMetadata<Server>;

/// Connections to a PostgreSQL server.
#[derive(Clone)]
pub struct Server {
    connections: Arc<Connections>,
    patience: Duration,
    /// `None`: no way leads to the server itself, and changes are found by polling.
    listening: Option<Arc<Listening>>,
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
    /// Connects and migrates the schema; of several coordinators that start at once, one migrates and the others wait.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the configuration or the server does not fit (an invalid address, an encoding other than UTF-8, a
    /// server older than PostgreSQL 13), [`StoreError::Unavailable`] when the server does not answer, [`StoreError::Conflict`] when a
    /// newer version of this program has changed the schema beyond this one, [`StoreError::Damaged`] when it is not Witan's schema.
    pub async fn connect(config: PostgresConfig) -> Result<Self, StoreError> {
        let (way, mut first) = pooler::find(&options(&config)?, config.connect).await?;
        // The way on which a session is a session, if there is one.
        let direct = match (&config.direct, way.pooled) {
            (Some(direct), _) => Some(Self::direct(&config, direct, &mut first).await?),
            (None, false) => Some(way.options.clone()),
            (None, true) => None,
        };
        let prepared = timeout(MIGRATION, prepare(&mut first, direct.is_some()));
        prepared
            .await
            .map_err(|_| StoreError::Unavailable(format!("the schema was not migrated within {MIGRATION:?}")))??;
        connections::close(first).await;

        let connections = Arc::new(Connections::new(way, &config));
        let hints = Arc::new(watch::Sender::new(0));
        let listening = direct.map(|options| {
            let listening = tokio::spawn(listen::listen(options, config.connect, hints.clone()));
            Arc::new(Listening(listening.abort_handle()))
        });
        if listening.is_none() {
            tracing::info!(
                "PostgreSQL is behind a pooler: changes by other coordinators are seen within half a second; with \
                 database.direct_url, at once"
            );
        }
        let metadata = Self::over(Server { connections, patience: config.operation, listening }, hints);
        metadata.understood().await?;
        Ok(metadata)
    }

    /// The way to the server itself. `first` becomes a connection on it.
    async fn direct(
        config: &PostgresConfig,
        direct: &str,
        first: &mut PgConnection,
    ) -> Result<PgConnectOptions, StoreError> {
        let options = options(&PostgresConfig { url: direct.to_owned(), ..config.clone() })?;
        let (way, connection) = pooler::find(&options, config.connect).await?;
        if way.pooled {
            return Err(StoreError::Refused(
                "database.direct_url leads to a pooler as well: use the address of the PostgreSQL server itself".into(),
            ));
        }
        connections::close(std::mem::replace(first, connection)).await;
        Ok(way.options)
    }

    /// Closes idle connections at once and the others after their operation. Later operations fail with
    /// [`StoreError::Unavailable`].
    pub async fn close(&self) {
        if let Some(listening) = &self.driver.listening {
            listening.0.abort();
        }
        self.driver.connections.close().await;
    }

    /// The settings that decide what an acknowledged change survives.
    pub fn durability(&self) -> Answer<PostgresDurability> {
        self.read(|db| {
            Box::pin(async move {
                let row = db
                    .one(
                        "SELECT current_setting('synchronous_commit') AS synchronous_commit,
                            current_setting('fsync') = 'on' AS fsync,
                            current_setting('full_page_writes') = 'on' AS full_page_writes,
                            pg_is_in_recovery() AS in_recovery, current_setting('server_version') AS server_version",
                        &[],
                    )
                    .await?;
                Ok(PostgresDurability {
                    synchronous_commit: row.text("synchronous_commit")?,
                    fsync: row.flag("fsync")?,
                    full_page_writes: row.flag("full_page_writes")?,
                    in_recovery: row.flag("in_recovery")?,
                    server_version: row.text("server_version")?,
                })
            })
        })
    }
}

fn options(config: &PostgresConfig) -> Result<PgConnectOptions, StoreError> {
    // Not the error's text: it may quote the address, including the password.
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

/// Checks the server and migrates the schema, or makes sure that there is nothing to migrate.
async fn prepare(first: &mut PgConnection, direct: bool) -> Result<(), StoreError> {
    fit(first).await?;
    if direct {
        return migrate(first).await;
    }
    let known = migrations::newest();
    match schema(first).await.map_err(failed)? {
        Some(schema) if schema >= known => Ok(()),
        schema => {
            let is = schema.map_or_else(|| "has no schema yet".to_owned(), |schema| format!("has schema {schema}"));
            Err(StoreError::Refused(format!(
                "the database {is}, and this program needs {known}, but a pooler is in between, through which the schema cannot be \
                 migrated: set database.direct_url to the address of the PostgreSQL server itself"
            )))
        }
    }
}

/// The newest migration that is applied; `None`: there is no schema. Simple queries only, which work on any way.
async fn schema(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let there = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    if !sqlx::raw_sql(there).fetch_one(&mut *connection).await?.try_get::<bool, _>(0)? {
        return Ok(None);
    }
    let newest = "SELECT MAX(version) FROM _sqlx_migrations WHERE success";
    sqlx::raw_sql(newest).fetch_one(connection).await?.try_get(0)
}

/// Checks the server's version and encoding.
async fn fit(first: &mut PgConnection) -> Result<(), StoreError> {
    if let Some(version) = first.server_version_num().filter(|version| *version < OLDEST_SERVER) {
        return Err(StoreError::Refused(format!("PostgreSQL {} is too old; use 13 or newer", version / 10_000)));
    }
    let encoding = sqlx::raw_sql("SELECT current_setting('server_encoding')").fetch_one(first).await;
    let encoding: String = encoding.and_then(|row| row.try_get(0)).map_err(failed)?;
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError::Refused(format!("the database's encoding is {encoding}; make one with ENCODING 'UTF8'")))
}

async fn migrate(first: &mut PgConnection) -> Result<(), StoreError> {
    // The migrator waits for an advisory lock, longer than any operation may take.
    let patient = "SET statement_timeout = 0; SET lock_timeout = 0; SET client_min_messages = warning";
    sqlx::raw_sql(patient).execute(&mut *first).await.map_err(failed)?;
    migrations::postgres().run_direct(None, first, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(error),
        error => StoreError::Damaged(format!("migrate the metadata's schema: {error}")),
    })
}

impl fmt::Debug for PostgresMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresMetadata").finish_non_exhaustive()
    }
}
