//! Metadata in an SQLite file: one writing connection, a few that read, and every operation in a task of its own.
//!
//! A future that is dropped while it talks to the database leaves a half-done exchange behind, and with a pool the next
//! caller runs inside it. So no caller's future talks to the database: it waits for a task that does, and that nobody drops.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::sync::Semaphore;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

use super::{Answer, Artifact, ArtifactEntry, Binding, Digest, Metadata, NodeOnRecord, Secret, Slot, Terms};

mod bindings;
mod cluster;
mod columns;
mod plugins;
mod records;
mod tenants;

#[cfg(test)]
mod tests;

/// Connections that read. Reads are point look-ups behind a cache; more of them only wait for the same two cores.
const READERS: u32 = 4;
/// Operations that may be under way or waiting.
const OPERATIONS: usize = 1024;
/// How long an operation waits for a connection, and a connection for the file's lock.
const PATIENCE: Duration = Duration::from_secs(5);

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/sqlite");

/// Metadata in a file. Clones share its connections.
#[derive(Clone)]
pub struct SqliteMetadata {
    file: Arc<Path>,
    writer: SqlitePool,
    readers: SqlitePool,
    operations: Arc<Semaphore>,
}

/// What an operation does with its connection.
type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'c>>;

impl SqliteMetadata {
    /// Opens or creates the file, readable by its owner alone (it holds the cluster's secrets), and brings its schema up to
    /// date.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the file cannot be used, [`StoreError::Damaged`] when it is no such database, and
    /// [`StoreError::Conflict`] when a newer version of this program has changed its schema.
    pub async fn open(file: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let file = file.into();
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
                .busy_timeout(PATIENCE)
        };
        let pool = |most| {
            SqlitePoolOptions::new()
                .max_connections(most)
                .min_connections(1)
                .acquire_timeout(PATIENCE)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
        };
        let writer = pool(1).connect_with(options().journal_mode(SqliteJournalMode::Wal)).await.map_err(failed)?;
        migrate(&writer).await?;
        let readers = pool(READERS).connect_with(options().read_only(true)).await.map_err(failed)?;
        Ok(Self { file: path, writer, readers, operations: Arc::new(Semaphore::new(OPERATIONS)) })
    }

    /// Waits for the operations under way and closes the file. Later operations are answered with
    /// [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Runs `work` in a transaction that holds the file's write lock from its start, so that what it reads still holds when
    /// it writes.
    fn write<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    ) -> Answer<T> {
        let writer = self.writer.clone();
        self.in_own_task(async move {
            let mut connection = writer.acquire().await.map_err(failed)?;
            match in_transaction(&mut connection, work).await {
                Ok(done) => done,
                Err(error) => {
                    connection.close_on_drop();
                    Err(error)
                }
            }
        })
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T> + Send + 'static,
    ) -> Answer<T> {
        let readers = self.readers.clone();
        self.in_own_task(async move {
            let mut connection = readers.acquire().await.map_err(failed)?;
            work(&mut connection).await
        })
    }

    fn in_own_task<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Answer<T> {
        let operations = self.operations.clone();
        Box::pin(async move {
            let place = operations
                .try_acquire_owned()
                .map_err(|_| StoreError::Unavailable("too many metadata operations are under way".into()))?;
            let task = tokio::spawn(async move {
                let _place = place;
                work.await
            });
            task.await
                .unwrap_or_else(|error| Err(StoreError::Unavailable(format!("a metadata operation ended: {error}"))))
        })
    }
}

/// Runs `work` in a transaction. `Err`: the transaction itself failed, and the connection must not be used again. SQLite
/// ends a transaction of its own accord on some errors (a full disk), and sqlx then counts one that is no longer there.
async fn in_transaction<T>(
    connection: &mut SqliteConnection,
    work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> Work<'c, T>,
) -> Result<Result<T, StoreError>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    match work(&mut transaction).await {
        Ok(done) => transaction.commit().await.map_err(failed).map(|()| Ok(done)),
        Err(error) => match transaction.rollback().await {
            Ok(()) => Ok(Err(error)),
            Err(_) => Err(error),
        },
    }
}

/// Creates the file, so that SQLite does not do so with the permissions of the day. Its side files take after it.
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

async fn migrate(writer: &SqlitePool) -> Result<(), StoreError> {
    let mut tried = MIGRATIONS.run(writer).await;
    // Two programs that create the same file: the later finds the tables there, and on another look all is done.
    for _ in 0..2 {
        if matches!(tried, Err(MigrateError::ExecuteMigration(..) | MigrateError::Execute(_))) {
            tried = MIGRATIONS.run(writer).await;
        }
    }
    tried.map_err(|error| match error {
        MigrateError::VersionMissing(version) => StoreError::Conflict(format!(
            "the metadata were changed by a newer version of this program (schema {version}); run that version"
        )),
        MigrateError::Execute(error) => failed(error),
        error => StoreError::Damaged(format!("bring the metadata's schema up to date: {error}")),
    })
}

fn unavailable(what: &str, file: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{what} {file}: {error}"))
}

/// Primary result codes of SQLite: the low byte of the extended ones.
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_CONSTRAINT: i32 = 19;
const SQLITE_NOTADB: i32 = 26;

/// What the database's errors mean to a caller. Constraints that a caller can run into are checked before; one that is left
/// is a bound.
fn failed(error: sqlx::Error) -> StoreError {
    let code = |error: &dyn sqlx::error::DatabaseError| error.code().and_then(|code| code.parse::<i32>().ok());
    match &error {
        sqlx::Error::Database(database) => match code(database.as_ref()).map(|code| code & 0xff) {
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => StoreError::Damaged(database.to_string()),
            Some(SQLITE_CONSTRAINT) => StoreError::Refused(database.to_string()),
            Some(SQLITE_FULL) => StoreError::Unavailable("the disk under the metadata is full; free some space".into()),
            _ => StoreError::Unavailable(database.to_string()),
        },
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
            StoreError::Damaged(error.to_string())
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}

impl Metadata for SqliteMetadata {
    fn now_ms(&self) -> Answer<u64> {
        self.read(|db| Box::pin(cluster::now_ms(db)))
    }

    fn schema_version(&self) -> Answer<u64> {
        self.read(|db| Box::pin(cluster::schema_version(db)))
    }

    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.write(|db| Box::pin(tenants::create(db, tenant)))
    }

    fn tenant(&self, id: &TenantId) -> Answer<Option<Tenant>> {
        let id = id.clone();
        self.read(|db| Box::pin(tenants::get(db, id)))
    }

    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<Vec<Tenant>> {
        let after = after.cloned();
        self.read(move |db| Box::pin(tenants::list(db, after, limit)))
    }

    fn update_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.write(|db| Box::pin(tenants::update(db, tenant)))
    }

    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.write(move |db| Box::pin(cluster::add_node(db, node, now_ms)))
    }

    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.write(move |db| Box::pin(cluster::put_node(db, node, now_ms)))
    }

    fn nodes(&self) -> Answer<Vec<NodeOnRecord>> {
        self.read(|db| Box::pin(cluster::nodes(db)))
    }

    fn remove_node(&self, id: &NodeId) -> Answer<()> {
        let id = id.clone();
        self.write(|db| Box::pin(cluster::remove_node(db, id)))
    }

    fn record_store_id(&self, id: &NodeId, told: StoreId) -> Answer<StoreId> {
        let id = id.clone();
        self.write(move |db| Box::pin(cluster::record_store_id(db, id, told)))
    }

    fn put_artifact(&self, artifact: Artifact) -> Answer<()> {
        self.write(|db| Box::pin(plugins::put(db, artifact)))
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Artifact>> {
        self.read(move |db| Box::pin(plugins::get(db, digest)))
    }

    fn artifacts(&self, after: Option<Digest>, limit: u32) -> Answer<Vec<ArtifactEntry>> {
        self.read(move |db| Box::pin(plugins::list(db, after, limit)))
    }

    fn remove_artifact(&self, digest: Digest) -> Answer<()> {
        self.write(move |db| Box::pin(plugins::remove(db, digest)))
    }

    fn bind(&self, terms: Terms) -> Answer<Binding> {
        self.write(|db| Box::pin(bindings::bind(db, terms)))
    }

    fn rollback(&self, slot: &Slot, from: u64) -> Answer<Option<Binding>> {
        let slot = slot.clone();
        self.write(move |db| Box::pin(bindings::rollback(db, slot, from)))
    }

    fn bindings(&self, after: Option<&Slot>, limit: u32) -> Answer<Vec<Binding>> {
        let after = after.cloned();
        self.read(move |db| Box::pin(bindings::list(db, after, limit)))
    }

    fn binding(&self, slot: &Slot, number: u64) -> Answer<Option<Binding>> {
        let slot = slot.clone();
        self.read(move |db| Box::pin(bindings::get(db, slot, number)))
    }

    fn binding_history(&self, slot: &Slot) -> Answer<Vec<Binding>> {
        let slot = slot.clone();
        self.read(|db| Box::pin(bindings::history(db, slot)))
    }

    fn binding_records(&self) -> Answer<Vec<String>> {
        self.read(|db| Box::pin(records::all(db)))
    }

    fn save_binding_record(&self, slot: &Slot, record: String) -> Answer<()> {
        let slot = slot.clone();
        self.write(move |db| Box::pin(records::save(db, slot, record)))
    }

    fn remove_binding_record(&self, slot: &Slot) -> Answer<()> {
        let slot = slot.clone();
        self.write(move |db| Box::pin(records::remove(db, slot)))
    }

    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>> {
        self.write(move |db| Box::pin(cluster::secrets(db, fresh, now_ms)))
    }

    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>> {
        self.write(move |db| Box::pin(cluster::rotate_secret(db, fresh, now_ms)))
    }
}

impl std::fmt::Debug for SqliteMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteMetadata").field("file", &self.file).finish_non_exhaustive()
    }
}
