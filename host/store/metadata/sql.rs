//! Metadata in an SQL database: statements that SQLite and PostgreSQL both take, over a connection of either.
//!
//! What differs between the two (how a connection is had, how a transaction begins, what an error means) is behind [`Driver`]
//! and [`Db`]. A change holds a lock from its start to its end (SQLite's write lock; in PostgreSQL the one row of
//! `cluster_state`), so that what it has read still holds when it writes, and changes become visible in the order of their
//! revisions.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use witan_kernel::name::{NodeId, StoreId, TenantId};
use witan_kernel::port::{StorageNode, StoreError};
use witan_kernel::tenant::Tenant;

use super::operations::Operations;
use super::{
    Answer, Artifact, ArtifactEntry, BindingOnRecord, Changes, Claim, CoordinatorOnRecord, Digest, Lease, Metadata,
    Placement, Secret, Slot, Token, rules,
};
pub(super) use db::{Connection, Db};

mod artifacts;
mod bindings;
mod changes;
mod cluster;
mod coordinators;
mod db;
mod row;
mod tenants;
mod tokens;

/// The newest migration that this program knows.
const SCHEMA: u64 = 2;

/// What a connection is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reads.
    Read,
    /// One statement that writes, or a change.
    Write,
}

/// How connections to a database are had.
pub trait Driver: Clone + Send + Sync + 'static {
    /// A connection that is in no transaction.
    fn lend(&self, purpose: Purpose) -> impl Future<Output = Result<Db, StoreError>> + Send;

    /// How long an operation may take, the wait for its connection included. `None`: as long as it needs, since its every step
    /// is bounded.
    fn patience(&self) -> Option<Duration>;

    /// What to call it in an error.
    const NAME: &'static str;
}

/// Metadata in a database. Clones share its connections.
#[derive(Clone)]
pub struct SqlMetadata<D> {
    pub(super) driver: D,
    pub(super) operations: Operations,
    pub(super) hints: Arc<watch::Sender<u64>>,
}

/// What an operation does with its connection.
type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'c>>;

impl<D: Driver> SqlMetadata<D> {
    pub(super) fn over(driver: D, hints: Arc<watch::Sender<u64>>) -> Self {
        Self { driver, operations: Operations::new(), hints }
    }

    /// Runs `work` without a transaction: it reads, each statement for itself.
    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut Db) -> Work<'c, T> + Send + 'static,
    ) -> Answer<T> {
        let driver = self.driver.clone();
        self.bounded(async move {
            let mut db = driver.lend(Purpose::Read).await?;
            let answer = work(&mut db).await;
            if !matches!(answer, Err(StoreError::Unavailable(_))) {
                db.give_back();
            }
            answer
        })
    }

    /// Runs `work` in a transaction that holds the lock of all changes from its start.
    fn change<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut Db) -> Work<'c, T> + Send + 'static,
    ) -> Answer<T> {
        let (driver, hints) = (self.driver.clone(), self.hints.clone());
        self.bounded(async move { in_transaction(driver.lend(Purpose::Write).await?, &hints, work).await })
    }

    /// Whether this program knows enough of the store's schema to work on it.
    pub(super) async fn understood(&self) -> Result<(), StoreError> {
        let needs = self.read(|db| Box::pin(cluster::needs_schema(db))).await?;
        if needs <= SCHEMA { Ok(()) } else { Err(rules::too_new(needs)) }
    }

    /// In a task of its own, no longer than the driver's patience. What is dropped for taking longer closes its connection.
    fn bounded<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Answer<T> {
        let patience = self.driver.patience();
        self.operations.run(async move {
            let Some(patience) = patience else { return work.await };
            let late = |_| Err(StoreError::Unavailable(format!("{} has not answered within {patience:?}", D::NAME)));
            tokio::time::timeout(patience, work).await.unwrap_or_else(late)
        })
    }
}

async fn in_transaction<T>(
    mut db: Db,
    hints: &watch::Sender<u64>,
    work: impl for<'c> FnOnce(&'c mut Db) -> Work<'c, T>,
) -> Result<T, StoreError> {
    db.begin().await?;
    match work(&mut db).await {
        Ok(done) => {
            // From here on it happened or not: an error is the connection's.
            db.commit().await?;
            if db.has_changed() {
                hints.send_modify(|hints| *hints += 1);
            }
            db.give_back();
            Ok(done)
        }
        Err(error) => {
            if db.rollback().await.is_ok() {
                db.give_back();
            }
            Err(error)
        }
    }
}

impl<D: Driver> Metadata for SqlMetadata<D> {
    fn now_ms(&self) -> Answer<u64> {
        self.read(|db| Box::pin(db.now_ms()))
    }

    fn schema_version(&self) -> Answer<u64> {
        self.read(|db| Box::pin(cluster::schema_version(db)))
    }

    fn changes(&self, after: u64) -> Answer<Changes> {
        self.read(move |db| Box::pin(changes::since(db, after)))
    }

    fn hint(&self) -> watch::Receiver<u64> {
        self.hints.subscribe()
    }

    fn create_tenant(&self, tenant: Tenant) -> Answer<Tenant> {
        self.change(|db| Box::pin(tenants::create(db, tenant)))
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
        self.change(|db| Box::pin(tenants::update(db, tenant)))
    }

    fn delete_tenant(&self, id: &TenantId, version: u64, now_ms: u64) -> Answer<Tenant> {
        let id = id.clone();
        self.change(move |db| Box::pin(tenants::delete(db, id, version, now_ms)))
    }

    fn found_nodes(&self, nodes: Vec<StorageNode>, now_ms: u64) -> Answer<()> {
        self.change(move |db| Box::pin(cluster::found_nodes(db, nodes, now_ms)))
    }

    fn add_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.change(move |db| Box::pin(cluster::add_node(db, node, now_ms)))
    }

    fn put_node(&self, node: StorageNode, now_ms: u64) -> Answer<()> {
        self.change(move |db| Box::pin(cluster::put_node(db, node, now_ms)))
    }

    fn placement(&self) -> Answer<Placement> {
        self.read(|db| Box::pin(cluster::placement(db)))
    }

    fn remove_node(&self, id: &NodeId) -> Answer<()> {
        let id = id.clone();
        self.change(|db| Box::pin(cluster::remove_node(db, id)))
    }

    fn record_store_id(&self, id: &NodeId, told: StoreId) -> Answer<StoreId> {
        let id = id.clone();
        self.change(move |db| Box::pin(cluster::record_store_id(db, id, told)))
    }

    fn replace_store_id(&self, id: &NodeId, from: StoreId, to: StoreId) -> Answer<()> {
        let id = id.clone();
        self.change(move |db| Box::pin(cluster::replace_store_id(db, id, from, to)))
    }

    fn hold_lease(&self, claim: Claim, lease_ms: u64) -> Answer<Lease> {
        let (driver, hints) = (self.driver.clone(), self.hints.clone());
        self.bounded(async move {
            rules::claim(&claim, lease_ms)?;
            let mut db = driver.lend(Purpose::Write).await?;
            // A renewal is one statement, and waits for no other change.
            if let Some(lease) = coordinators::renew(&mut db, &claim, lease_ms).await? {
                db.give_back();
                return Ok(lease);
            }
            in_transaction(db, &hints, move |db| Box::pin(coordinators::grant(db, claim, lease_ms))).await
        })
    }

    fn release_lease(&self, node_id: &NodeId, instance: [u8; 16]) -> Answer<()> {
        let node_id = node_id.clone();
        self.change(move |db| Box::pin(coordinators::release(db, node_id, instance)))
    }

    fn coordinators(&self) -> Answer<Vec<CoordinatorOnRecord>> {
        self.read(|db| Box::pin(coordinators::list(db)))
    }

    fn put_artifact(&self, artifact: Artifact) -> Answer<()> {
        self.change(|db| Box::pin(artifacts::put(db, artifact)))
    }

    fn artifact(&self, digest: Digest) -> Answer<Option<Artifact>> {
        self.read(move |db| Box::pin(artifacts::get(db, digest)))
    }

    fn artifacts(&self, after: Option<Digest>, limit: u32) -> Answer<Vec<ArtifactEntry>> {
        self.read(move |db| Box::pin(artifacts::list(db, after, limit)))
    }

    fn remove_artifact(&self, digest: Digest) -> Answer<()> {
        self.change(move |db| Box::pin(artifacts::remove(db, digest)))
    }

    fn binding_records(&self) -> Answer<Vec<BindingOnRecord>> {
        self.read(|db| Box::pin(bindings::all(db)))
    }

    fn binding_record(&self, slot: &Slot) -> Answer<Option<BindingOnRecord>> {
        let slot = slot.clone();
        self.read(|db| Box::pin(bindings::get(db, slot)))
    }

    fn save_binding_record(
        &self,
        slot: &Slot,
        expected: u64,
        record: String,
        puts_in_force: Option<Digest>,
    ) -> Answer<u64> {
        let slot = slot.clone();
        self.change(move |db| Box::pin(bindings::save(db, slot, expected, record, puts_in_force)))
    }

    fn remove_binding_record(&self, slot: &Slot, expected: u64) -> Answer<()> {
        let slot = slot.clone();
        self.change(move |db| Box::pin(bindings::remove(db, slot, expected)))
    }

    fn create_token(&self, token: Token) -> Answer<()> {
        self.change(|db| Box::pin(tokens::create(db, token)))
    }

    fn token(&self, id: &str) -> Answer<Option<Token>> {
        let id = id.to_owned();
        self.read(|db| Box::pin(tokens::get(db, id)))
    }

    fn tokens(&self, after: Option<&str>, limit: u32) -> Answer<Vec<Token>> {
        let after = after.map(str::to_owned);
        self.read(move |db| Box::pin(tokens::list(db, after, limit)))
    }

    fn remove_token(&self, id: &str) -> Answer<()> {
        let id = id.to_owned();
        self.change(|db| Box::pin(tokens::remove(db, id)))
    }

    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>> {
        self.change(move |db| Box::pin(cluster::secrets(db, fresh, now_ms)))
    }

    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>> {
        self.change(move |db| Box::pin(cluster::rotate_secret(db, fresh, now_ms)))
    }
}
