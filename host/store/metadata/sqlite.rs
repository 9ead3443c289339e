//! Metadata in an SQLite file: one writing connection and a few that read.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::watch;
use witan_kernel::port::StoreError;

use super::migrations;
use super::sql::{Connection, Db, Driver, Purpose, SqlMetadata};

mod errors;

pub(super) use errors::failed;

#[cfg(test)]
mod tests;

/// Reading connections. Reads are point look-ups behind a cache; more connections would only compete for the same cores.
const READERS: u32 = 4;
/// Time limit for obtaining a connection, and for a connection to obtain the file's lock.
const PATIENCE: Duration = Duration::from_secs(5);

/// Metadata in a file. Clones share its connections.
pub type SqliteMetadata = SqlMetadata<File>;

/// Connections to an SQLite file.
#[derive(Clone)]
pub struct File {
    path: Arc<Path>,
    pub(super) writer: SqlitePool,
    readers: SqlitePool,
}

impl Driver for File {
    const NAME: &'static str = "SQLite";

    async fn lend(&self, purpose: Purpose) -> Result<Db, StoreError> {
        let pool = match purpose {
            Purpose::Read => &self.readers,
            Purpose::Write => &self.writer,
        };
        Ok(Db::over(Connection::Sqlite(pool.acquire().await.map_err(failed)?)))
    }

    fn patience(&self) -> Option<Duration> {
        None
    }
}

impl SqliteMetadata {
    /// Opens or creates the file, readable by its owner only (it holds the cluster's secrets), and migrates its schema.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the file cannot be used, [`StoreError::Damaged`] when it is not such a database, and
    /// [`StoreError::Conflict`] when a newer version of this program has changed its schema.
    pub async fn open(file: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(file.into(), PATIENCE).await
    }

    /// Processes that open a new file at once find it locked by one another, in steps in which SQLite does not wait: the change of its
    /// journal mode, the migrations, the first read.
    async fn open_with(file: PathBuf, patience: Duration) -> Result<Self, StoreError> {
        let mut opened = Self::open_once(file.clone(), patience).await;
        for _ in 0..OPENING_TRIES {
            if !matches!(&opened, Err(StoreError::Unavailable(why)) if why.contains("is locked")) {
                break;
            }
            tokio::time::sleep(OPENING_PAUSE).await;
            opened = Self::open_once(file.clone(), patience).await;
        }
        opened
    }

    async fn open_once(file: PathBuf, patience: Duration) -> Result<Self, StoreError> {
        let shown = file.display().to_string();
        let path: Arc<Path> = Arc::from(file.as_path());
        tokio::task::spawn_blocking(move || create_private(&file))
            .await
            .map_err(|error| unavailable("create", &shown, &error))?
            .map_err(|error| unavailable("create", &shown, &error))?;
        let options = || {
            SqliteConnectOptions::new()
                .filename(&path)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .busy_timeout(patience)
        };
        let pool = |most| {
            SqlitePoolOptions::new()
                .max_connections(most)
                .min_connections(1)
                .acquire_timeout(patience)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
        };
        let writer = pool(1).connect_with(options().journal_mode(SqliteJournalMode::Wal)).await.map_err(failed)?;
        migrate(&writer).await?;
        let readers = pool(READERS).connect_with(options().read_only(true)).await.map_err(failed)?;
        let metadata = Self::over(File { path, writer, readers }, Arc::new(watch::Sender::new(0)));
        metadata.understood().await?;
        Ok(metadata)
    }

    /// Waits for the operations in flight and closes the file. Later operations fail with [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.driver.readers.close().await;
        self.driver.writer.close().await;
    }
}

/// Creates the file, so that SQLite does not create it with the process's default permissions. Its side files inherit them.
fn create_private(file: &Path) -> std::io::Result<()> {
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(file).map(drop)
}

/// Tries to open a file that others lock: two seconds in all, where a migration takes a few milliseconds, a hundred on a slow disk.
const OPENING_TRIES: u32 = 100;
const OPENING_PAUSE: Duration = Duration::from_millis(20);

async fn migrate(writer: &SqlitePool) -> Result<(), StoreError> {
    let migrations = migrations::sqlite();
    let mut tried = migrations.run(writer).await;
    // Of several processes that create the same file, all but one find it locked, or the tables there, once for each migration: SQLite
    // does not let a transaction that has read wait for the write lock. A later try finds the migration done.
    for _ in 0..OPENING_TRIES {
        if !matches!(tried, Err(MigrateError::ExecuteMigration(..) | MigrateError::Execute(_))) {
            break;
        }
        tokio::time::sleep(OPENING_PAUSE).await;
        tried = migrations.run(writer).await;
    }
    tried.map_err(|error| match error {
        MigrateError::Execute(error) => failed(error),
        error => StoreError::Damaged(format!("migrate the metadata's schema: {error}")),
    })
}

fn unavailable(what: &str, file: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{what} {file}: {error}"))
}

impl std::fmt::Debug for SqliteMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteMetadata").field("file", &self.driver.path).finish_non_exhaustive()
    }
}
