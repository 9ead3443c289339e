//! The cluster's secrets.

use witan_kernel::port::{Answer, Changed, SECRETS, Secret, SecretStore, StoreError};

use super::db::{Db, Value};
use super::{Driver, SqlMetadata, changes};

impl<D: Driver> SecretStore for SqlMetadata<D> {
    fn secrets(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>> {
        self.change(move |db| Box::pin(secrets(db, fresh, now_ms)))
    }

    fn rotate_secret(&self, fresh: [u8; 32], now_ms: u64) -> Answer<Vec<Secret>> {
        self.change(move |db| Box::pin(rotate_secret(db, fresh, now_ms)))
    }
}

async fn secrets(db: &mut Db, fresh: [u8; 32], now_ms: u64) -> Result<Vec<Secret>, StoreError> {
    let on_record = all_secrets(db).await?;
    if on_record.is_empty() { rotate_secret(db, fresh, now_ms).await } else { Ok(on_record) }
}

async fn rotate_secret(db: &mut Db, fresh: [u8; 32], now_ms: u64) -> Result<Vec<Secret>, StoreError> {
    db.execute(
        "INSERT INTO cluster_secrets (secret_id, secret, created_at)
         SELECT COALESCE(MAX(secret_id), 0) + 1, $1, $2 FROM cluster_secrets",
        &[Value::Bytes(&fresh), Value::Number(now_ms)],
    )
    .await?;
    db.execute(
        "DELETE FROM cluster_secrets
         WHERE secret_id NOT IN (SELECT secret_id FROM cluster_secrets ORDER BY secret_id DESC LIMIT $1)",
        &[Value::Number(SECRETS as u64)],
    )
    .await?;
    changes::record(db, Changed::Secrets).await?;
    all_secrets(db).await
}

async fn all_secrets(db: &mut Db) -> Result<Vec<Secret>, StoreError> {
    let rows = db.rows("SELECT secret_id, secret FROM cluster_secrets ORDER BY secret_id DESC", &[]).await?;
    rows.iter().map(|row| Ok(Secret { id: row.number("secret_id")?, key: row.exactly("secret")? })).collect()
}
