//! Facts about the store itself: its time and its schema.

use witan_kernel::port::{Answer, StoreError, StoreFacts, rules};

use super::db::Db;
use super::{Driver, SqlMetadata};

/// The newest migration that this program knows.
const SCHEMA: u64 = 16;

impl<D: Driver> SqlMetadata<D> {
    /// Checks that this program knows the store's schema well enough to work on it.
    pub(in crate::metadata) async fn understood(&self) -> Result<(), StoreError> {
        let needs = self.read(|db| Box::pin(needs_schema(db))).await?;
        if needs <= SCHEMA { Ok(()) } else { Err(rules::too_new(needs)) }
    }
}

impl<D: Driver> StoreFacts for SqlMetadata<D> {
    fn now_ms(&self) -> Answer<u64> {
        self.read(|db| Box::pin(db.now_ms()))
    }

    fn schema_version(&self) -> Answer<u64> {
        self.read(|db| Box::pin(schema_version(db)))
    }
}

async fn schema_version(db: &mut Db) -> Result<u64, StoreError> {
    let newest = "SELECT COALESCE(MAX(version), 0) AS version FROM _sqlx_migrations WHERE success";
    db.one(newest, &[]).await?.number("version")
}

/// The newest migration that a program must know to work here.
pub(super) async fn needs_schema(db: &mut Db) -> Result<u64, StoreError> {
    db.one("SELECT needs_schema FROM cluster_state", &[]).await?.number("needs_schema")
}
