//! Metadata in an SQL database: statements that both SQLite and PostgreSQL accept, over a connection of either.
//!
//! What differs between the two (how a connection is obtained, how a transaction begins, what an error means) is behind [`Driver`]
//! and [`Db`]. A change holds a lock from start to end (SQLite's write lock; in PostgreSQL the single row of `cluster_state`), so
//! that what it has read still holds when it writes, and changes become visible in the order of their revisions.
//!
//! Each subject's port is implemented in a module of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use witan_kernel::port::{Answer, StoreError};

use super::operations::Operations;
pub(super) use db::{Connection, Db};

mod artifacts;
mod bindings;
mod candidates;
mod changes;
mod classes;
mod db;
mod facts;
mod fences;
mod leases;
mod leftovers;
mod migrations;
mod placement;
mod pushes;
mod references;
mod rings;
mod row;
mod secrets;
mod signing;
mod stores;
mod tenants;
mod tokens;
mod upkeep;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reads.
    Read,
    /// One statement that writes, or a change.
    Write,
}

/// How connections to a database are obtained.
pub trait Driver: Clone + Send + Sync + 'static {
    /// A connection that is in no transaction.
    fn lend(&self, purpose: Purpose) -> impl Future<Output = Result<Db, StoreError>> + Send;

    /// The time limit of an operation, including the wait for its connection. `None`: no limit, since each of its steps is bounded.
    fn patience(&self) -> Option<Duration>;

    /// The database's name in errors.
    const NAME: &'static str;
}

/// Metadata in a database. Clones share its connections.
#[derive(Clone)]
pub struct SqlMetadata<D> {
    pub(super) driver: D,
    pub(super) operations: Operations,
    pub(super) hints: Arc<watch::Sender<u64>>,
}

/// The future of what an operation does with its connection.
type Work<'c, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'c>>;

impl<D: Driver> SqlMetadata<D> {
    pub(super) fn over(driver: D, hints: Arc<watch::Sender<u64>>) -> Self {
        Self { driver, operations: Operations::new(), hints }
    }

    /// Runs `work`, which reads, without a transaction: each statement sees the newest state.
    pub(super) fn read<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut Db) -> Work<'c, T> + Send + 'static,
    ) -> Answer<T> {
        self.without_transaction(Purpose::Read, work)
    }

    /// Runs `work`, whose statements write and need no transaction: nothing is decided from what they read.
    fn write<T: Send + 'static>(
        &self,
        work: impl for<'c> FnOnce(&'c mut Db) -> Work<'c, T> + Send + 'static,
    ) -> Answer<T> {
        self.without_transaction(Purpose::Write, work)
    }

    fn without_transaction<T: Send + 'static>(
        &self,
        purpose: Purpose,
        work: impl for<'c> FnOnce(&'c mut Db) -> Work<'c, T> + Send + 'static,
    ) -> Answer<T> {
        let driver = self.driver.clone();
        self.bounded(async move {
            let mut db = driver.lend(purpose).await?;
            db.begin_reading().await?;
            let answer = work(&mut db).await;
            let ended = db.end_reading(answer.is_ok()).await;
            let answer = answer.and_then(|answer| ended.map(|()| answer));
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

    /// Runs `work` in a separate task, within the driver's time limit. Work that exceeds it is dropped, which closes its connection.
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
            // From here on the outcome of an error is unknown: the change was committed or not.
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
